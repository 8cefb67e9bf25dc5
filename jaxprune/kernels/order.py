"""Exact order statistics of float arrays in O(n): the kernels that every selection uses.

Elements are ordered by their scores (see ``jaxprune.kernels.float_keys``: -0.0 equals 0.0, NaN above +inf), equal
ones by their flat index, leaves in the order given. No sort, no concatenation, a few reads of memory
whatever the number of ranks. What is done for each leaf is jitted, so that leaves of one shape are traced once.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from jaxprune.base import Array
from jaxprune.kernels import bisection, many_ranks, radix
from jaxprune.kernels.batching import batch_axes, one_at_a_time
from jaxprune.kernels.float_keys import Cut, common_dtype, flat_index, from_keys, highest_key, key_type, to_keys
from jaxprune.kernels.histogram import Weigh
from jaxprune.kernels.ties import after_ties, search

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
    guards: list[Cut | None] = [None] * len(leaves)
    if any(min_keep):
        spare = [np.uint32(max(leaf.size - keep, 0)) for leaf, keep in zip(leaves, min_keep, strict=True)]
        removed = jnp.minimum(removed, np.uint32(sum(map(int, spare))))
        guards = [cut_of(leaf, None, count, dtype) for leaf, count in zip(leaves, spare, strict=True)]
    if len(leaves) == 1:
        cut = cut_of(leaves[0], guards[0], removed, dtype)
        return [keeps(leaves[0], guards[0], cut, dtype)]
    if not total:
        return [jnp.ones(leaf.shape, bool) for leaf in leaves]
    key, rest = _key_at(leaves, guards, dtype, jnp.minimum(removed, np.uint32(total - 1)))
    # Guarded elements alone have the highest key, and they are not counted as removable.
    everything = removed >= np.uint32(total)
    key, rest = jnp.where(everything, highest_key(dtype), key), jnp.where(everything, np.uint32(0), rest)
    rows = zip(leaves, guards, after_ties(leaves, guards, dtype, key, rest), strict=True)
    return [keeps(leaf, guard, Cut(key, position), dtype) for leaf, guard, position in rows]


def keep_from_each(leaves: Sequence[Array], removed: Sequence[Array]) -> list[Array]:
    """Masks that remove exactly the ``removed[i]`` smallest elements of leaf i; arguments as for ``keep_from``."""
    return [keep_above(leaf, count) for leaf, count in zip(leaves, removed, strict=True)]


@jax.jit
def keep_above(leaf: Array, removed: Array) -> Array:
    """The mask that removes exactly the ``removed`` smallest elements of one leaf."""
    return keep_from([leaf], removed)[0]


@partial(jax.jit, static_argnums=3)
def keeps(leaf: Array, guard: Cut | None, cut: Cut, dtype: np.dtype) -> Array:
    """The mask of what lies above a cut."""
    index = flat_index(leaf.shape)
    return cut.keeps(to_keys(lax.stop_gradient(leaf), dtype, index, guard), index)


@partial(jax.jit, static_argnums=3)
def cut_of(leaf: Array, guard: Cut | None, removed: Array, dtype: np.dtype) -> Cut:
    """The cut that exactly ``removed`` elements of one leaf lie below, at most all."""
    if not leaf.size:
        return Cut(jnp.asarray(highest_key(dtype)), jnp.zeros((), jnp.uint32))
    cut = _cut_at(lax.stop_gradient(leaf), guard, dtype, jnp.minimum(removed, np.uint32(leaf.size - 1)))
    everything = removed >= np.uint32(leaf.size)
    return Cut(jnp.where(everything, highest_key(dtype), cut.key), jnp.where(everything, np.uint32(0), cut.position))


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
        return jnp.full(counts.shape, jnp.inf, dtype), jnp.zeros(counts.shape, jnp.float32)
    keys, equals = _keys_at(leaves, [None] * len(leaves), dtype, jnp.minimum(counts, total - 1))
    elements = from_keys(keys, dtype)
    ties = jnp.where(equals > 0, equals.astype(jnp.float32) * weigh(elements), 0.0)
    everything = counts >= total
    keys = jnp.where(everything, highest_key(dtype), keys)
    weights = many_ranks.weights_below(leaves, dtype, keys, weigh) + jnp.where(everything, 0.0, ties)
    return jnp.where(everything, jnp.asarray(jnp.inf, dtype), elements), weights


def _cut_at(leaf: Array, guard: Any, dtype: np.dtype, rank: Array) -> Cut:
    @one_at_a_time
    def position(leaf: Array, guard: Any, key: Array, rank: Array) -> Array:
        return search(leaf, guard, dtype, rank, key).position

    @custom_vmap
    def cut_at(leaf: Array, guard: Any, rank: Array) -> Cut:
        return search(leaf, guard, dtype, rank)

    @cut_at.def_vmap
    def _(axis_size: int, batched: Any, leaf: Array, guard: Any, ranks: Array) -> Any:
        if any(jax.tree.leaves(batched[:2])):
            cuts = jax.vmap(lambda leaf, guard, rank: search(leaf, guard, dtype, rank), batch_axes(batched))(
                leaf, guard, ranks
            )
        else:
            keys, equals = _keys_at([leaf], [guard], dtype, ranks)
            positions = lax.map(lambda pair: position(leaf, guard, *pair), (keys, equals))
            cuts = Cut(keys, positions)
        return cuts, Cut(True, True)  # type: ignore

    return cut_at(leaf, guard, rank)


def _key_at(leaves: Any, guards: Any, dtype: np.dtype, rank: Array) -> tuple[Array, Array]:
    """The key of one rank among all leaves, and how many of its equals come before it."""
    return _find_keys(radix.key_at, [lax.stop_gradient(leaf) for leaf in leaves], guards, dtype, rank)


def _keys_at(leaves: Any, guards: Any, dtype: np.dtype, ranks: Array) -> tuple[Array, Array]:
    """The same for ranks of any shape, which share the passes over the leaves."""
    if not ranks.size:
        return jnp.zeros(ranks.shape, key_type(dtype)), ranks
    return _find_keys(many_ranks.keys_at, leaves, guards, dtype, ranks)


def _find_keys(by_counts: Any, leaves: Any, guards: Any, dtype: np.dtype, ranks: Array) -> tuple[Array, Array]:
    """``by_counts`` of one rank or many, or a bisection, as suits the platform. Under ``vmap`` ranks share passes."""

    def find(leaves: Any, guards: Any, ranks: Array) -> tuple[Array, Array]:
        def by(method: Any) -> Any:
            return lambda leaves, guards, ranks: method(leaves, guards, dtype, ranks)

        return lax.platform_dependent(leaves, guards, ranks, tpu=by(bisection.keys_at), default=by(by_counts))

    keys_at = custom_vmap(find)

    @keys_at.def_vmap
    def _(axis_size: int, batched: Any, leaves: Any, guards: Any, ranks: Array) -> Any:
        if any(jax.tree.leaves(batched[:2])):
            return jax.vmap(find, batch_axes(batched))(leaves, guards, ranks), (True, True)
        return _keys_at(leaves, guards, dtype, ranks), (True, True)

    return keys_at(list(leaves), list(guards), ranks)
