"""Reductions that decide something, and so must be the same bits in every program: sums, extremes and means.

Sums are in a fixed order, and compensated. A pair is a float32 value and what its rounding left out.
"""

from collections.abc import Callable
from functools import cache
from math import prod
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Array
from jaxprune.kernels.rounding import divide

Pair = tuple[Array, Array]

_ROWS = 8192  # entries that a step of a streaming loop works on
_LARGE = 2**20  # entries from which a copy is worth avoiding
_FOLD = 16  # entries that a short reduction takes


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


def full_range(x: Array, axes: tuple[int, ...], symmetric: bool) -> tuple[Array, Array]:
    """Finite extremes over ``axes`` and 0, float32: (-m, m) with m = max abs(x), or (min, max)."""
    if symmetric:
        high = _largest(x, axes, jnp.abs)
        return -high, high
    return -_largest(x, axes, jnp.negative), _largest(x, axes, lambda x: x)


def _largest(x: Array, axes: tuple[int, ...], of: Callable[[Array], Array]) -> Array:
    """The largest finite ``of(x)``, at least 0, over ``axes``, float32."""

    def plain(x):
        return jnp.max(jnp.where(jnp.isfinite(x), of(x), 0), axes, keepdims=True, initial=0)

    def folded(x):
        # XLA's fast CPU reductions lose maxima next to a NaN, and write out an array that is masked first. A reduction
        # over a few entries is compiled into the loop that masks, as long as it compares integers; so one read is left.
        axis = max(axes, key=lambda i: x.shape[i])
        size = x.shape[axis] // _FOLD
        head, tail = jnp.split(x, [size * _FOLD], axis)
        head = head.reshape(*x.shape[:axis], _FOLD, size, *x.shape[axis + 1 :])
        found = [jnp.max(_finite_bits(of(part)), axis, keepdims=part is tail) for part in (head, tail) if part.size]
        found = [jnp.max(jax.lax.bitcast_convert_type(part, x.dtype), axes, keepdims=True) for part in found]
        return jnp.max(jnp.stack(found), 0)

    long = x.size >= _LARGE and max((x.shape[i] for i in axes), default=0) >= _FOLD and x.dtype.itemsize > 1
    high = jax.lax.platform_dependent(x, cpu=folded, default=plain) if long else plain(x)
    return high.astype(jnp.float32)


def _finite_bits(x: Array) -> Array:
    """The bit patterns of positive finite entries, as signed integers, which sort like the numbers; 0 for others."""
    kind = np.dtype(f"int{x.dtype.itemsize * 8}")
    bits = jax.lax.bitcast_convert_type(x, kind)
    return jnp.where((bits >= 0) & (bits < np.asarray(np.inf, x.dtype).view(kind)), bits, kind.type(0))


@cache
def mean_magnitude(axes: tuple[int, ...]):
    """``(wanted, x, high) -> mean abs(x)`` over the finite entries along ``axes``, float32, or zeros where not wanted.

    ``high`` is their largest magnitude. A whole read that only 1-bit codes need, so it happens under a ``cond`` that a
    sweep over bits leaves unbatched.
    """

    @jax.jit  # traced once, though the rule below meets it again
    def mean(x, high):
        shift = jnp.where(jnp.max(high) > 2.0**64, jnp.float32(2.0**-32), 1)  # against overflow; exact
        total = streamed(x, axes, lambda row: jnp.where(jnp.isfinite(row), jnp.abs(row) * shift, 0)).reshape(high.shape)
        count = jnp.sum(jnp.isfinite(x), axes, dtype=jnp.int32, keepdims=True).astype(jnp.float32)
        return divide(total, jnp.maximum(count, 1)) / shift

    @jax.custom_batching.custom_vmap
    def lazily(wanted, x, high):
        return jax.lax.cond(wanted, mean, lambda x, high: jnp.zeros_like(high), x, high)

    @lazily.def_vmap
    def _(size, batched, wanted, x, high):
        wanted = jnp.any(wanted)
        if not batched[1]:
            return lazily(wanted, x, high.max(0) if batched[2] else high), False
        high = high if batched[2] else jnp.broadcast_to(high, (size, *high.shape))
        return mean_magnitude(tuple(a + 1 for a in axes))(wanted, x, high), True

    return lazily
