"""Sums that decide something, and so must be the same bits in every program: in a fixed order, and compensated.

A pair is a float32 value and what its rounding left out.
"""

from collections.abc import Callable
from math import prod
from operator import add
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.base import Array

Pair = tuple[Array, Array]

_ROWS = 8192  # entries that a step of a streaming loop works on


def product(a: Array, b: Array) -> Array:
    """``a * b``, with its own rounding: a compiler would fuse a bare product into the sum that it feeds."""
    largest = jnp.finfo(jnp.float32).max
    return jnp.clip(a * b, -largest, largest)


def two_sum(a: Array, b: Array) -> Pair:
    """``a + b`` rounded, and the rest, exactly."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def add_pairs(a: Pair, b: Pair) -> Pair:
    """The sum of two pairs."""
    high, rest = two_sum(a[0], b[0])
    return two_sum(high, rest + (a[1] + b[1]))


def in_halves(rows: Any, plus: Callable[[Any, Any], Any] = add) -> Any:
    """The sum along the last axis, of a power of two entries, of an array or (by ``add_pairs``) of pairs."""
    while (length := jax.tree.leaves(rows)[0].shape[-1]) > 1:
        parts = (slice(length // 2), slice(length // 2, None))
        rows = plus(*(jax.tree.map(lambda array, part=part: array[..., part], rows) for part in parts))
    return jax.tree.map(lambda array: array[..., 0], rows)


def total(rows: Array) -> Pair:
    """The sum along the last axis, of a power of two entries, as a pair."""
    return in_halves((rows, jnp.zeros_like(rows)), add_pairs)


def running(terms: Pair) -> Pair:
    """The sums of none, one, two, ... of the terms, by doubling the stretch that each entry sums up."""
    size = terms[0].size + 1

    def earlier(part: Array, by: Array) -> Array:
        return jax.lax.dynamic_slice(jnp.pad(part, (size, 0)), (size - by,), (size,))

    def double(i: Array, sums: Pair) -> Pair:
        return add_pairs((earlier(sums[0], 1 << i), earlier(sums[1], 1 << i)), sums)

    start = (jnp.pad(terms[0], (1, 0)), jnp.pad(terms[1], (1, 0)))
    return jax.lax.fori_loop(0, (size - 1).bit_length(), double, start)


def streamed(x: Array, axes: tuple[int, ...], term: Callable[[Array], Array]) -> Array:
    """The sum over ``axes`` of ``term(row)``, rows [lanes, K] in float32, 0 at NaN; shape [K], K the number of groups.

    Compensated. A loop, so that no copy of x is made whatever ``term`` computes; lanes is a power of two.
    """
    kept = [i for i in range(x.ndim) if i not in axes]
    groups, count = (prod(x.shape[i] for i in part) for part in (kept, axes))
    lanes = 1 << (max(1, min(count, _ROWS // max(groups, 1))).bit_length() - 1)
    rows = x.transpose(*axes, *kept).reshape(count, groups)
    rows = jnp.pad(rows, ((0, -count % lanes), (0, 0)), constant_values=jnp.nan).reshape(-1, lanes, groups)

    def step(i: Array, sums: Pair) -> Pair:
        total, rest = sums
        value = term(rows[i].astype(jnp.float32)) + rest
        new = total + value
        return new, value - (new - total)

    whole, rest = jax.lax.fori_loop(0, rows.shape[0], step, (jnp.zeros((lanes, groups), jnp.float32),) * 2)
    return in_halves((whole + rest).T)
