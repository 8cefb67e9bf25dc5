"""One ranking of many leaves from the host: the masks of ``order.keep_from``, by programs of a few leaves each.

The host adds up histograms and finds digits in them; what it cannot know of a leaf, small programs do. So an eager call
compiles a few programs for each distinct shape, whatever the number of leaves.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Array
from jaxprune.kernels import by_shape, order, radix, ties
from jaxprune.kernels.float_keys import Cut, Ranked, common_dtype, highest_key, key_type


def keep_from(leaves: Sequence[Array], removed: int, min_keep: Sequence[int]) -> tuple[list[Array], list[int]]:
    """The masks of ``order.keep_from`` for concrete arguments, and how many elements of each leaf stay."""
    dtype, total = common_dtype(leaves), sum(leaf.size for leaf in leaves)
    guards: list[Cut | None] = [None] * len(leaves)
    if any(min_keep):
        spare = [max(leaf.size - keep, 0) for leaf, keep in zip(leaves, min_keep, strict=True)]
        removed = min(removed, sum(spare))
        guards = by_shape.each(order.guard, leaves, list(np.asarray(spare, np.uint32)), static=(dtype,), together=1)
    runs, sizes = ties.join([Ranked(leaf, dtype, guard) for leaf, guard in zip(leaves, guards, strict=True)])
    groups = [[runs[i] for i in group] for group in by_shape.groups([run.values for run in runs])]
    key, rest = _key_at(groups, dtype, min(removed, max(total - 1, 0)))
    if removed >= total:
        key, rest = highest_key(dtype), 0
    lasts = []
    for last, parts in zip(_positions(runs, key, rest), sizes, strict=True):
        lasts += [np.uint32(max(last - passed, 0)) for passed in np.cumsum([0, *parts])[:-1]]
    found = by_shape.each(_keep, leaves, guards, lasts, [key] * len(leaves), static=(dtype,))
    return [mask for mask, _ in found], [int(count) for _, count in found]


def _key_at(groups: Sequence[list[Ranked]], dtype: np.dtype, rank: int) -> tuple[Any, int]:
    """The key of one rank among all leaves, and how many of its equals come before it."""
    key = key_type(dtype).type(0)
    for shift in radix.digit_shifts(dtype):
        counts = np.zeros(1 << radix.DIGIT, np.uint32)
        for leaves in groups:
            counts = _count_digit(counts, leaves, key, shift)
        passed = np.cumsum(np.asarray(counts), dtype=np.int64)
        digit = int(np.searchsorted(passed, rank, side="right")) if groups else 0
        rank -= int(passed[digit - 1]) if digit else 0
        key |= key.dtype.type(digit) << shift
    return key, rank


def _positions(leaves: Sequence[Ranked], key: Any, rest: int) -> list[int]:
    """``ties.positions``, of leaves that were joined."""
    equal = np.array(jax.device_get([_count_equal(leaf, key) for leaf in leaves]), np.int64)
    shares = np.clip(rest - (np.cumsum(equal) - equal), 0, equal)
    ranks = np.where(shares < equal, shares, 0).astype(np.uint32)  # at most one is not 0; the others are found at once
    found = jax.device_get([_search(leaf, rank, key) for leaf, rank in zip(leaves, ranks, strict=True)])
    return [ties.BEYOND if whole else int(place) for whole, place in zip(shares == equal, found, strict=True)]


@jax.jit
def _count_digit(counts: Any, leaves: list[Ranked], above: Array, shift: Array) -> Array:
    return counts + sum((radix.count_digit(leaf, above, shift) for leaf in leaves), jnp.zeros((), jnp.uint32))


@jax.jit
def _count_equal(leaf: Ranked, key: Array) -> Array:
    return jnp.sum(leaf.keys() == key, dtype=jnp.uint32)


@jax.jit
def _search(leaf: Ranked, rank: Array, key: Array) -> Array:
    return ties.search(leaf, rank, key).position


def _keep(leaf: Array, guard: Cut | None, last: Array, key: Array, dtype: np.dtype) -> tuple[Array, Array]:
    """The mask of what lies above a cut, and how much that is."""
    mask = order.keeps(Ranked(leaf, dtype, guard), Cut(key, last))
    return mask, jnp.sum(mask, dtype=jnp.uint32)
