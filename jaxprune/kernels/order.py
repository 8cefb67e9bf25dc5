"""Exact order statistics of float arrays in O(n): the kernels that every selection uses.

Elements are ordered by their scores (see ``jaxprune.kernels.float_keys``: -0.0 equals 0.0, NaN above +inf), equal
ones by their flat index, leaves in the order given; how many a sparsity removes is counted in integers. No sort, a few
reads of memory whatever the number of ranks; only small leaves are joined. What is done for each leaf is jitted, so
that leaves of one shape are traced once.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap, sequential_vmap

from jaxprune.base import Array
from jaxprune.kernels import bisection, many_ranks, radix, ties
from jaxprune.kernels.float_keys import Cut, Ranked, common_dtype, flat_index, from_keys, highest_key, key_type
from jaxprune.kernels.sharding import batch_axes
from jaxprune.kernels.ties import search

#: Above this many elements in a leaf, positions no longer fit the signed indices of XLA.
MAX_LEAF = 2**31 - 1
#: Above this many elements in leaves that are ranked together, counts no longer fit 32 bits.
MAX_TREE = 2**32 - 1


def keep_from(leaves: Sequence[Array], removed: Array, min_keep: Sequence[int] = ()) -> list[Array]:
    """Masks that remove exactly the ``removed`` smallest elements of all leaves together.

    Args:
      leaves: float arrays of any shapes, at most ``MAX_LEAF`` elements each and ``MAX_TREE`` in all.
      removed: traced uint32 count; more than there are removes all.
      min_keep: static; so many of the best elements of each leaf are never removed, others go in their place.

    Returns:
      bool arrays in the shapes of the leaves; ``True`` keeps.
    """
    dtype, total = common_dtype(leaves), sum(leaf.size for leaf in leaves)
    ranked = [Ranked(leaf, dtype) for leaf in leaves]
    if any(min_keep):
        spare = [np.uint32(max(leaf.size - keep, 0)) for leaf, keep in zip(leaves, min_keep, strict=True)]
        removed = jnp.minimum(removed, np.uint32(sum(map(int, spare))))
        ranked = [Ranked(leaf, dtype, guard(leaf, count, dtype)) for leaf, count in zip(leaves, spare, strict=True)]
    if len(leaves) == 1:
        return [keeps(ranked[0], _cut_of(ranked[0], removed))]
    if not total:
        return [jnp.ones(leaf.shape, bool) for leaf in leaves]
    runs, sizes = ties.join(jax.lax.stop_gradient(ranked))
    key, rest = _find_keys(radix.key_at, runs, jnp.minimum(removed, np.uint32(total - 1)))
    # Guarded elements alone have the highest key, and they are not counted as removable.
    everything = removed >= np.uint32(total)
    key, rest = jnp.where(everything, highest_key(dtype), key), jnp.where(everything, np.uint32(0), rest)
    lasts = ties.positions(runs, sizes, key, rest)
    return [keeps(leaf, Cut(key, last)) for leaf, last in zip(ranked, lasts, strict=True)]


@jax.jit
def keep_above(leaf: Array, removed: Array) -> Array:
    """The mask that removes exactly the ``removed`` smallest elements of one leaf."""
    return keep_from([leaf], removed)[0]


@jax.jit
def keeps(leaf: Ranked, cut: Cut) -> Array:
    """The mask of what lies above a cut."""
    return cut.keeps(jax.lax.stop_gradient(leaf).keys(), flat_index(leaf.values.shape))


def guard(leaf: Array, removed: Any, dtype: np.dtype) -> Cut:
    """The cut above which elements must stay, if ``removed`` of the leaf may go."""
    return _cut_of(Ranked(leaf, dtype), removed)


@jax.jit
def _cut_of(leaf: Ranked, removed: Any) -> Cut:
    """The cut that exactly ``removed`` elements of one leaf lie below, at most all."""
    size, highest = leaf.values.size, highest_key(leaf.dtype)
    if not size:
        return Cut(jnp.asarray(highest), jnp.zeros((), jnp.uint32))
    cut = _cut_at(jax.lax.stop_gradient(leaf), jnp.minimum(removed, np.uint32(size - 1)))
    everything = removed >= np.uint32(size)
    return Cut(jnp.where(everything, highest, cut.key), jnp.where(everything, np.uint32(0), cut.position))


def kth_smallest(leaves: Sequence[Array], ranks: Array) -> Array:
    """The elements of 0-based ``ranks`` (uint32, any shape) in the order of all leaves; +inf beyond the last."""
    dtype = common_dtype(leaves)
    total = sum(leaf.size for leaf in leaves)
    if not total:
        return jnp.full(ranks.shape, jnp.inf, dtype)
    ranked = [Ranked(jax.lax.stop_gradient(leaf), dtype) for leaf in leaves]
    keys, _ = _keys_at(ranked, jnp.minimum(ranks, np.uint32(total - 1)))
    return jnp.where(ranks >= np.uint32(total), jnp.asarray(jnp.inf, dtype), from_keys(keys, dtype))


def _cut_at(leaf: Ranked, rank: Array) -> Cut:
    @sequential_vmap  # so that each search ends when it is done
    def position(leaf: Ranked, key: Array, rank: Array) -> Array:
        return search(leaf, rank, key).position

    cut_at = custom_vmap(lambda leaf, rank: search(leaf, rank))

    @cut_at.def_vmap
    def _(axis_size: int, batched: Any, leaf: Ranked, ranks: Array) -> Any:
        if any(jax.tree.leaves(batched[0])):
            cuts = jax.vmap(search, batch_axes(batched))(leaf, ranks)
        else:
            keys, equals = _keys_at([leaf], ranks)
            cuts = Cut(keys, jax.lax.map(lambda pair: position(leaf, *pair), (keys, equals)))
        return cuts, Cut(True, True)  # type: ignore

    return cut_at(leaf, rank)


def _keys_at(leaves: list[Ranked], ranks: Array) -> tuple[Array, Array]:
    """The keys of ranks of any shape among all leaves, and how many of its equals come before each."""
    if not ranks.size:
        return jnp.zeros(ranks.shape, key_type(leaves[0].dtype)), ranks
    return _find_keys(many_ranks.keys_at, leaves, ranks)


def _find_keys(by_counts: Any, leaves: list[Ranked], ranks: Array) -> tuple[Array, Array]:
    """``by_counts`` of one rank or many, or a bisection, as suits the platform. Under ``vmap`` ranks share passes."""

    def find(leaves: list[Ranked], ranks: Array) -> tuple[Array, Array]:
        return jax.lax.platform_dependent(leaves, ranks, tpu=bisection.keys_at, default=by_counts)

    keys_at = custom_vmap(find)

    @keys_at.def_vmap
    def _(axis_size: int, batched: Any, leaves: list[Ranked], ranks: Array) -> Any:
        if any(jax.tree.leaves(batched[0])):
            return jax.vmap(find, batch_axes(batched))(leaves, ranks), (True, True)
        return _keys_at(leaves, ranks), (True, True)

    return keys_at(leaves, ranks)


def removed_of(size: int, sparsity: float) -> int:
    """``round_half_up(size * sparsity)``, on the host."""
    mantissa, power = float(sparsity).as_integer_ratio()
    return (2 * size * mantissa + power) // (2 * power)


def removed_count(size: int | Array, sparsity: Any) -> Array:
    """``round_half_up(size * sparsity)`` as uint32, exact for the float32 ``sparsity`` and any size below 2**32.

    ``sparsity`` is an integer mantissa over a power of two, so the product is taken in integers, in two 32-bit words.
    A traced size is uint32. Traced values are clamped to [0, 1]; a traced NaN removes nothing.
    """
    sparsity = jnp.clip(jnp.asarray(sparsity, jnp.float32), 0.0, 1.0)
    bits = jax.lax.bitcast_convert_type(jnp.where(jnp.isnan(sparsity), 0.0, sparsity), jnp.uint32)
    exponent = bits >> 23
    mantissa = jnp.where(exponent > 0, (bits & 0x7FFFFF) | 0x800000, 0).astype(jnp.uint32)
    shift = np.uint32(150) - exponent  # sparsity == mantissa / 2**shift, 23 <= shift <= 150
    high, low = _multiply(size, mantissa)
    half_low = jnp.where(shift <= 32, np.uint32(1) << jnp.minimum(shift - 1, 31), 0).astype(jnp.uint32)
    half_high = jnp.where(shift > 32, np.uint32(1) << jnp.minimum(shift - 33, 30), 0).astype(jnp.uint32)
    rounded = low + half_low
    high = high + half_high + (rounded < low).astype(jnp.uint32)
    near = (high << (32 - jnp.minimum(shift, 31))) | (rounded >> jnp.minimum(shift, 31))
    far = high >> (jnp.clip(shift, 32, 63) - 32)
    return jnp.where(shift < 32, near, far)


def _multiply(a: Any, b: Array) -> tuple[Array, Array]:
    """The 64-bit product of a 32-bit number and a traced 24-bit one, as two 32-bit words."""
    a = a if isinstance(a, Array) else np.uint32(a)
    a_low, a_high = a & np.uint32(0xFFFF), a >> np.uint32(16)
    b_low, b_high = b & 0xFFFF, b >> 16
    lowest = a_low * b_low
    cross = a_high * b_low
    middle = a_low * b_high + (lowest >> 16) + (cross & 0xFFFF)
    return a_high * b_high + (middle >> 16) + (cross >> 16), (middle << 16) | (lowest & 0xFFFF)
