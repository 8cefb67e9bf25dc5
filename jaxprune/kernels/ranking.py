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
    dtype, sizes = common_dtype(leaves), [leaf.size for leaf in leaves]
    guards: list[Cut | None] = [None] * len(leaves)
    if any(min_keep):
        spare = [max(size - keep, 0) for size, keep in zip(sizes, min_keep, strict=True)]
        removed = min(removed, sum(spare))
        guards = by_shape.each(order.guard, leaves, list(np.asarray(spare, np.uint32)), static=(dtype,), together=1)
    groups = [g for g in by_shape.groups(leaves) if sizes[g[0]]]
    columns = [[Ranked(leaves[i], dtype, guards[i]) for i in group] for group in groups]
    key, rest = _key_at(columns, dtype, min(removed, max(sum(sizes) - 1, 0)))
    if removed >= sum(sizes):
        key, rest = highest_key(dtype), 0
    higher, equal = np.zeros((2, len(leaves)), np.int64)
    tallies = [_count(column, key) for column in columns]
    for group, tally in zip(groups, tallies, strict=True):
        higher[group], equal[group] = np.asarray(tally)
    shares = np.clip(rest - (np.cumsum(equal) - equal), 0, equal)
    masks: list[Array] = [jnp.ones(leaf.shape, bool) if not leaf.size else leaf for leaf in leaves]
    for group, column in zip(groups, columns, strict=True):
        whole = [np.uint32(sizes[i] if shares[i] == equal[i] else 0) for i in group]
        partly = [n for n, i in enumerate(group) if 0 < shares[i] < equal[i]]
        which, rank = (partly[0], shares[group[partly[0]]]) if partly else (-1, 0)
        kept = _keep(column, key, whole, np.int32(which), np.uint32(rank))
        for i, mask in zip(group, kept, strict=True):
            masks[i] = mask
    return masks, (higher + equal - shares).tolist()


def _key_at(columns: Sequence[Any], dtype: np.dtype, rank: int) -> tuple[Any, int]:
    """The key of one rank among all leaves, and how many of its equals come before it."""
    key = key_type(dtype).type(0)
    for shift in radix.digit_shifts(dtype):
        counts = np.zeros(1 << radix.DIGIT, np.uint32)
        for column in columns:
            counts = _count_digit(counts, column, key, shift)
        passed = np.cumsum(np.asarray(counts), dtype=np.int64)
        digit = int(np.searchsorted(passed, rank, side="right")) if columns else 0
        rank -= int(passed[digit - 1]) if digit else 0
        key |= key.dtype.type(digit) << shift
    return key, rank


@jax.jit
def _count_digit(counts: Any, leaves: list[Ranked], above: Array, shift: Array) -> Array:
    return counts + sum((radix.count_digit(leaf, above, shift) for leaf in leaves), jnp.zeros((), jnp.uint32))


@jax.jit
def _count(leaves: list[Ranked], key: Array) -> Array:
    """Elements of a higher key and of this one: uint32 [2, leaves]."""
    return jnp.stack([jnp.stack(ties.count_from(leaf, key)) for leaf in leaves], 1)


@jax.jit
def _keep(leaves: list[Ranked], key: Array, whole: list[Array], which: Array, rank: Array) -> list[Array]:
    """Masks: of its elements of this key, a leaf loses those before ``whole``; leaf ``which`` its ``rank`` first."""
    here = [which == i for i in range(len(leaves))]
    found = ties.index_in(leaves, key, here, rank)
    rows = zip(leaves, here, whole, strict=True)
    return [order.keeps(leaf, Cut(key, jnp.where(mine, found, position))) for leaf, mine, position in rows]
