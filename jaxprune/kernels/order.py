"""Exact order statistics of float arrays in O(n): the kernels that every selection uses.

Elements are ordered by their scores (see ``jaxprune.kernels.float_keys``: -0.0 equals 0.0, NaN above +inf), equal
ones by their flat index, leaves in the order given. No sort, no concatenation, a few reads of memory
whatever the number of ranks.
"""

from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from jaxprune.base import Array
from jaxprune.kernels import bisection, radix
from jaxprune.kernels.float_keys import Cut, bases, common_dtype, flat_index, from_keys, highest_key, key_type, to_keys
from jaxprune.kernels.histogram import Weigh

#: Above this many elements in a leaf, positions no longer fit the signed indices of XLA.
MAX_LEAF = 2**31 - 1
#: Above this many elements in leaves that are ranked together, counts no longer fit 32 bits.
MAX_TREE = 2**32 - 1


# What a vmap rule says of a cut: both its parts are batched.
_BATCHED: Any = Cut(*cast(Any, (True, True)))


def keep_from(leaves: Sequence[Array], removed: Array, min_keep: int = 0) -> list[Array]:
    """Masks that remove exactly the ``removed`` smallest elements of all leaves together.

    Args:
      leaves: float arrays of any shapes, at most ``MAX_LEAF`` elements each and ``MAX_TREE`` in all.
      removed: traced uint32 count; more than there are removes all.
      min_keep: static; the best ``min_keep`` elements of each leaf are never removed, others go in their place.

    Returns:
      bool arrays in the shapes of the leaves; ``True`` keeps.
    """
    dtype, guards = common_dtype(leaves), None
    if min_keep:
        spare = [max(leaf.size - min_keep, 0) for leaf in leaves]
        removed = jnp.minimum(removed, np.uint32(sum(spare)))
        best = _cuts(leaves, None, dtype, tuple(range(len(leaves))), jnp.asarray(spare, jnp.uint32))
        guards = [best.of(i) for i in range(len(leaves))]
    return _keep(leaves, guards, dtype, (0,) * len(leaves), jnp.asarray(removed)[None])


def keep_from_each(leaves: Sequence[Array], removed: Sequence[Array]) -> list[Array]:
    """Masks that remove exactly the ``removed[i]`` smallest elements of leaf i; arguments as for ``keep_from``."""
    masks: list[Array] = list(leaves)
    for dtype in dict.fromkeys(np.dtype(leaf.dtype) for leaf in leaves):
        alike = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
        chosen, counts = [leaves[i] for i in alike], jnp.stack([removed[i] for i in alike])
        for i, mask in zip(
            alike, _keep(chosen, None, common_dtype(chosen), tuple(range(len(alike))), counts), strict=True
        ):
            masks[i] = mask
    return masks


def _keep(
    leaves: Sequence[Array], guards: list[Cut] | None, dtype: np.dtype, rankings: tuple[int, ...], removed: Array
) -> list[Array]:
    cut = _cuts(leaves, guards, dtype, rankings, removed)
    masks = []
    for i, (leaf, r, base) in enumerate(zip(leaves, rankings, bases(leaves, rankings), strict=True)):
        index = flat_index(leaf.shape)
        keys = to_keys(lax.stop_gradient(leaf), dtype, index, guards[i] if guards else None)
        masks.append(cut.of(r).keeps(keys, index + np.uint32(base)))
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


def smallest(leaves: Sequence[Array], counts: Array, weigh: Weigh) -> tuple[Array, Array]:
    """For each of ``counts`` (uint32 [K]), the element that follows so many smallest, and what those weigh together.

    Args:
      leaves: float arrays; equal elements must weigh the same.
      counts: how many are taken; for all of them the element that follows is +inf.
      weigh: static, elementwise: elements to float32 amounts, summed in float32.

    Returns:
      The elements, in the leaves' common dtype [K], and the sums, float32 [K].
    """
    dtype = common_dtype(leaves)
    total = np.uint32(sum(leaf.size for leaf in leaves))
    if not total:
        return jnp.full(counts.shape, jnp.inf, dtype), jnp.zeros(counts.shape)
    keys, equals = _keys_at(leaves, [None] * len(leaves), dtype, jnp.minimum(counts, total - 1))
    elements = from_keys(keys, dtype)
    ties = jnp.where(equals > 0, equals.astype(jnp.float32) * weigh(elements), 0.0)
    everything = counts >= total
    keys = jnp.where(everything, highest_key(dtype), keys)
    weights = radix.weights_below(leaves, dtype, keys, weigh) + jnp.where(everything, 0.0, ties)
    return jnp.where(everything, jnp.asarray(jnp.inf, dtype), elements), weights


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


def _cuts(
    leaves: Sequence[Array], guards: list[Cut] | None, dtype: np.dtype, rankings: tuple[int, ...], removed: Array
) -> Cut:
    """For each ranking, the cut that removes exactly ``removed[r]`` of its elements, at most all."""
    if not any(leaf.size for leaf in leaves):
        return Cut(jnp.full(removed.shape, highest_key(dtype)), jnp.zeros(removed.shape, jnp.uint32))
    sizes = np.zeros(removed.size, np.uint32)
    np.add.at(sizes, list(rankings), [leaf.size for leaf in leaves])
    ranks = jnp.minimum(removed, np.maximum(sizes, 1) - 1)
    leaves = [lax.stop_gradient(leaf) for leaf in leaves]
    cut = _cuts_at(leaves, guards or [None] * len(leaves), dtype, rankings, ranks)
    everything = removed >= sizes
    # Guarded elements alone have the highest key, and they are not counted as removable.
    return Cut(jnp.where(everything, highest_key(dtype), cut.key), jnp.where(everything, np.uint32(0), cut.position))


def _cuts_at(leaves: Any, guards: Any, dtype: np.dtype, rankings: tuple[int, ...], ranks: Array) -> Cut:
    groups = [[i for i, r in enumerate(rankings) if r == group] for group in range(ranks.size)]

    def pick(values: Any, group: list[int]) -> list[Any]:
        return [values[i] for i in group]

    def find(leaves: Any, guards: Any, ranks: Array) -> Cut:
        def by_bisection(leaves: Any, guards: Any, ranks: Array) -> Cut:
            cuts = []
            for group, rank in zip(groups, ranks, strict=True):
                key, rank = bisection.keys_at(pick(leaves, group), pick(guards, group), dtype, rank)
                index = bisection.index_at(pick(leaves, group), pick(guards, group), dtype, key, rank)
                cuts.append(Cut(key, index))
            return jax.tree.map(lambda *parts: jnp.stack(parts), *cuts)

        def by_radix(leaves: Any, guards: Any, ranks: Array) -> Cut:
            return radix.cuts_at(leaves, guards, dtype, rankings, ranks)

        return lax.platform_dependent(leaves, guards, ranks, tpu=by_bisection, default=by_radix)

    cuts_at = custom_vmap(find)

    @cuts_at.def_vmap
    def _(axis_size: int, batched: Any, leaves: Any, guards: Any, ranks: Array) -> Any:
        if any(jax.tree.leaves(batched[:2])):
            return jax.vmap(find, _axes(batched))(leaves, guards, ranks), _BATCHED
        cuts = []
        for r, group in enumerate(groups):
            own, walls = pick(leaves, group), pick(guards, group)
            keys, equals = _keys_at(own, walls, dtype, ranks[:, r])
            indices = lax.map(lambda pair, own=own, walls=walls: _index_at(own, walls, dtype, *pair), (keys, equals))
            cuts.append(Cut(keys, indices))
        return jax.tree.map(lambda *parts: jnp.stack(parts, 1), *cuts), _BATCHED

    return cuts_at(list(leaves), list(guards), ranks)


def _keys_at(leaves: Any, guards: Any, dtype: np.dtype, ranks: Array) -> tuple[Array, Array]:
    if not ranks.size:
        return jnp.zeros(ranks.shape, key_type(dtype)), ranks

    def find(leaves: Any, guards: Any, ranks: Array) -> tuple[Array, Array]:
        def by_bisection(leaves: Any, guards: Any, ranks: Array) -> tuple[Array, Array]:
            return bisection.keys_at(leaves, guards, dtype, ranks)

        def by_radix(leaves: Any, guards: Any, ranks: Array) -> tuple[Array, Array]:
            return radix.keys_at(leaves, guards, dtype, ranks)

        return lax.platform_dependent(leaves, guards, ranks, tpu=by_bisection, default=by_radix)

    keys_at = custom_vmap(find)

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
            default=lambda leaves, guards, key, rank: radix.cuts_at(
                leaves, guards, dtype, (0,) * len(leaves), rank[None], key[None]
            ).position[0],
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
