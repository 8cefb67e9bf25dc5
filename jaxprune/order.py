"""Exact order statistics of float arrays in O(n): the kernels that every selection uses.

Elements are ordered by their scores (see ``jaxprune.keys``: -0.0 equals 0.0, NaN above +inf), equal ones by their flat
index, leaves in the order given. No sort, no concatenation, a few reads of memory whatever the number of ranks.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from jaxprune import bisection, radix
from jaxprune.base import Array
from jaxprune.keys import Cut, common_dtype, flat_index, from_keys, highest_key, to_keys

#: Above this many elements in a leaf, positions no longer fit the signed indices of XLA.
MAX_LEAF = 2**31 - 1
#: Above this many elements in leaves that are ranked together, counts no longer fit 32 bits.
MAX_TREE = 2**32 - 1


def keep_from(leaves: Sequence[Array], removed: Array, min_keep: int = 0) -> list[Array]:
    """Masks that remove exactly the ``removed`` smallest elements of all leaves together.

    Args:
      leaves: float arrays of any shapes, at most ``MAX_LEAF`` elements each and ``MAX_TREE`` in all.
      removed: traced uint32 count; more than there are removes all.
      min_keep: static; the best ``min_keep`` elements of each leaf are never removed, others go in their place.

    Returns:
      bool arrays in the shapes of the leaves; ``True`` keeps.
    """
    leaves = [lax.stop_gradient(leaf) for leaf in leaves]
    dtype = common_dtype(leaves)
    guards: list[Cut | None] = [None] * len(leaves)
    if min_keep:
        guards = [_cut([leaf], [None], dtype, np.uint32(max(leaf.size - min_keep, 0))) for leaf in leaves]
    removable = sum(max(leaf.size - min_keep, 0) for leaf in leaves)
    cut = _cut(leaves, guards, dtype, jnp.minimum(removed, np.uint32(removable)))
    masks, base = [], 0
    for leaf, guard in zip(leaves, guards, strict=True):
        index = flat_index(leaf.shape)
        masks.append(cut.keeps(to_keys(leaf, dtype, index, guard), index + np.uint32(base)))
        base += leaf.size
    return masks


def kth_smallest(leaves: Sequence[Array], ranks: Array) -> Array:
    """The elements of 0-based ``ranks`` (uint32, any shape) in the order of all leaves; +inf beyond the last."""
    leaves = [lax.stop_gradient(leaf) for leaf in leaves]
    dtype = common_dtype(leaves)
    total = sum(leaf.size for leaf in leaves)
    if not total:
        return jnp.full(ranks.shape, jnp.inf, dtype)
    keys, _ = _keys_at(leaves, [None] * len(leaves), dtype, jnp.minimum(ranks, np.uint32(total - 1)))
    return jnp.where(ranks >= np.uint32(total), jnp.asarray(jnp.inf, dtype), from_keys(keys, dtype))


def removed_count(size: int, sparsity: Any) -> Array:
    """``round_half_up(size * sparsity)`` as uint32, exact for the float32 ``sparsity`` and any size below 2**32.

    ``sparsity`` is an integer mantissa over a power of two, so the product is taken in integers, in two 32-bit words.
    Traced values are clamped to [0, 1]; a traced NaN removes nothing.
    """
    sparsity = jnp.clip(jnp.asarray(sparsity, jnp.float32), 0.0, 1.0)
    bits = lax.bitcast_convert_type(jnp.where(jnp.isnan(sparsity), 0.0, sparsity), jnp.uint32)
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


def _multiply(a: int, b: Array) -> tuple[Array, Array]:
    """The 64-bit product of a 32-bit number and a traced 24-bit one, as two 32-bit words."""
    a_low, a_high = np.uint32(a & 0xFFFF), np.uint32(a >> 16)
    b_low, b_high = b & 0xFFFF, b >> 16
    lowest = a_low * b_low
    cross = a_high * b_low
    middle = a_low * b_high + (lowest >> 16) + (cross & 0xFFFF)
    return a_high * b_high + (middle >> 16) + (cross >> 16), (middle << 16) | (lowest & 0xFFFF)


def _cut(leaves: Sequence[Array], guards: Sequence[Cut | None], dtype: np.dtype, removed: Any) -> Cut:
    """The cut that removes exactly ``removed`` elements, at most all."""
    total = sum(leaf.size for leaf in leaves)
    nothing_stays = Cut(jnp.asarray(highest_key(dtype)), jnp.zeros((), jnp.uint32))
    if not total:
        return nothing_stays
    cut = _cut_at(leaves, guards, dtype, jnp.minimum(removed, np.uint32(total - 1)))
    # Guarded elements alone have the highest key, and they are not counted as removable.
    return jax.tree.map(lambda a, b: jnp.where(removed >= np.uint32(total), a, b), nothing_stays, cut)


def _cut_at(leaves: Sequence[Array], guards: Sequence[Cut | None], dtype: np.dtype, rank: Array) -> Cut:
    @custom_vmap
    def cut_at(leaves: Any, guards: Any, rank: Array) -> Cut:
        return find(leaves, guards, rank)

    def find(leaves: Any, guards: Any, rank: Array) -> Cut:
        def by_bisection(leaves: Any, guards: Any, rank: Array) -> Cut:
            key, rank = bisection.keys_at(leaves, guards, dtype, rank)
            return Cut(key, bisection.index_at(leaves, guards, dtype, key, rank))

        def by_radix(leaves: Any, guards: Any, rank: Array) -> Cut:
            return radix.cut_at(leaves, guards, dtype, rank)

        return lax.platform_dependent(leaves, guards, rank, tpu=by_bisection, default=by_radix)

    @cut_at.def_vmap
    def _(axis_size: int, batched: Any, leaves: Any, guards: Any, ranks: Array) -> Any:
        if any(jax.tree.leaves(batched[:2])):
            return jax.vmap(find, _axes(batched))(leaves, guards, ranks), Cut(True, True)
        keys, equals = _keys_at(leaves, guards, dtype, ranks)
        indices = lax.map(lambda pair: _index_at(leaves, guards, dtype, *pair), (keys, equals))
        return Cut(keys, indices), Cut(True, True)

    return cut_at(list(leaves), list(guards), rank)


def _keys_at(leaves: Any, guards: Any, dtype: np.dtype, ranks: Array) -> tuple[Array, Array]:
    @custom_vmap
    def keys_at(leaves: Any, guards: Any, ranks: Array) -> tuple[Array, Array]:
        return find(leaves, guards, ranks)

    def find(leaves: Any, guards: Any, ranks: Array) -> tuple[Array, Array]:
        def by_bisection(leaves: Any, guards: Any, ranks: Array) -> tuple[Array, Array]:
            return bisection.keys_at(leaves, guards, dtype, ranks)

        def by_radix(leaves: Any, guards: Any, ranks: Array) -> tuple[Array, Array]:
            return radix.keys_at(leaves, guards, dtype, ranks)

        return lax.platform_dependent(leaves, guards, ranks, tpu=by_bisection, default=by_radix)

    @keys_at.def_vmap
    def _(axis_size: int, batched: Any, leaves: Any, guards: Any, ranks: Array) -> Any:
        if any(jax.tree.leaves(batched[:2])):
            return jax.vmap(find, _axes(batched))(leaves, guards, ranks), (True, True)
        return keys_at(leaves, guards, ranks), (True, True)  # more ranks of the same leaves share the passes

    return keys_at(list(leaves), list(guards), ranks)


def _index_at(leaves: Any, guards: Any, dtype: np.dtype, key: Array, rank: Array) -> Array:
    """A flat index that exactly ``rank`` elements of this key lie before."""

    @custom_vmap
    def index_at(leaves: Any, guards: Any, key: Array, rank: Array) -> Array:
        return lax.platform_dependent(
            leaves,
            guards,
            key,
            rank,
            tpu=lambda leaves, guards, key, rank: bisection.index_at(leaves, guards, dtype, key, rank),
            default=lambda leaves, guards, key, rank: radix.cut_at(leaves, guards, dtype, rank, key).index,
        )

    @index_at.def_vmap
    def _(axis_size: int, batched: Any, *arguments: Any) -> Any:
        # One at a time, so that each search ends when it is done.
        values, treedef = jax.tree.flatten(arguments)
        flags = jax.tree.leaves(batched)

        def one(rows: list[Array]) -> Array:
            row = iter(rows)
            chosen = [next(row) if flag else value for value, flag in zip(values, flags, strict=True)]
            return index_at(*jax.tree.unflatten(treedef, chosen))

        return lax.map(one, [value for value, flag in zip(values, flags, strict=True) if flag]), True

    return index_at(list(leaves), list(guards), key, rank)


def _axes(batched: Any) -> Any:
    return jax.tree.map(lambda flag: 0 if flag else None, tuple(batched))
