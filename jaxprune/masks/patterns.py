"""Masks with a pattern: N of every M along the input axis, whole blocks, and whole units by what their weights are."""

from collections.abc import Sequence
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import settings, tree
from jaxprune.base import Array, Layout, Masks, Params, Scope, Scores, Setting, Where
from jaxprune.kernels import by_shape, unit_statistics
from jaxprune.kernels.float_keys import common_dtype, to_keys
from jaxprune.kernels.sharding import automatic, explicit_spec
from jaxprune.layout import Axes, check_axis, countable_axes, grouped_along
from jaxprune.masks.selection import as_masks, keep_highest


def n_of_m(
    scores: Scores,
    n: Setting,
    m: int,
    *,
    axis: int | None = None,
    pad: bool = False,
    where: Where = None,
    layout: Layout = None,
) -> Masks:
    """Keeps the ``n`` largest of every ``m`` consecutive scores along the input axis (N:M sparsity; 2:4 on GPUs).

    Args:
      scores: float arrays in the shapes of the weights.
      n: traced, a whole number in [0, m], how many stay; a tree of them serves too. Traced values are rounded and
        clamped, and NaN keeps all.
      m: static, the length of a group.
      axis: static; by default that of each leaf's layout, the last that its product contracts.
      pad: static; lets the axis end in one shorter group, which keeps what fits: min(n, its length).
      where: see :func:`jaxprune.tree.select`. By default embeddings and depthwise kernels take no part either.
      layout: the axes of leaves, static; see :mod:`jaxprune.layout`.

    Returns:
      Masks in the shapes of the scores. Ties and NaN as in :func:`by_sparsity`.

    Raises:
      ValueError: m or a concrete n out of range, no such axis, a kernel whose axes no rule knows, or a length that m
        does not divide (unless ``pad``).
      TypeError: m is no integer, or n no number.

    Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021.

    >>> n_of_m(jnp.array([[1.0], [4.0], [3.0], [2.0]]), 2, 4)[:, 0].tolist()
    [False, True, True, False]
    """
    if isinstance(m, bool) or not isinstance(m, int | np.integer):
        raise TypeError(f"m must be an integer (it is static), got {m!r}")
    if m < 1:
        raise ValueError(f"m must be 1 or more, got {m}")
    chosen, axes = grouped_along(tree.select(scores, where, scores=True), axis, layout, leave_out=where is None)
    values, counts = chosen.values, settings.per_leaf(n, chosen, "n", 0, m)
    for path, leaf, count, axis in zip(chosen.names, values, counts, axes, strict=True):
        if not settings.any_traced(count) and count != round(count):
            raise ValueError(f"n must be a whole number in [0, {m}], got {count:g}")
        length = leaf.shape[check_axis(path, leaf.shape, axis)]
        if length % m and not pad:
            uneven = f"axis {axis} has length {length}, not a multiple of m={m}"
            raise ValueError(f"leaf {tree.show(path)}: {uneven}; pad=True allows a short tail")
    return as_masks(chosen, by_shape.each(_best_of_groups, values, counts, static=(int(m),), own=axes))


def _best_of_groups(scores: Array, n: Array, axis: int, m: int) -> Array:
    axis %= scores.ndim
    length = scores.shape[axis]
    first = m - jnp.where(jnp.isnan(n), m, jnp.clip(jnp.round(n), 0, m)).astype(jnp.int32)  # rank that stays
    keys = to_keys(jax.lax.stop_gradient(scores), common_dtype([scores]))
    # No float has key 0: the padding of a short tail goes first.
    keys = jnp.pad(keys, [(0, -length % m if i == axis else 0) for i in range(keys.ndim)])
    groups = keys.reshape(*keys.shape[:axis], -1, m, *keys.shape[axis + 1 :])
    # A program of m * m comparisons is fast for short groups alone.
    ranks = (_ranks_at_once if m <= 16 else _ranks_by_loop)(groups, axis + 1)
    kept = (ranks >= first.astype(ranks.dtype)).reshape(keys.shape)
    return jax.lax.slice_in_dim(kept, 0, length, axis=axis)


def _ranks_at_once(groups: Array, axis: int) -> Array:
    """How many of its group go before each member, by one comparison of each two members."""
    members = [jax.lax.index_in_dim(groups, i, axis, keepdims=False) for i in range(groups.shape[axis])]
    ranks = [jnp.zeros(members[0].shape, jnp.uint8) for _ in members]
    for i, j in combinations(range(len(members)), 2):
        earlier_first = members[i] <= members[j]
        ranks[j] += earlier_first.astype(jnp.uint8)
        ranks[i] += (~earlier_first).astype(jnp.uint8)
    return jnp.stack(ranks, axis)


def _ranks_by_loop(groups: Array, axis: int) -> Array:
    """The same by one comparison of all groups with each of their members."""
    position = jax.lax.broadcasted_iota(jnp.int32, groups.shape, axis)

    def step(j: Array, ranks: Array) -> Array:
        other = jax.lax.dynamic_index_in_dim(groups, j, axis)
        return ranks + ((other < groups) | ((other == groups) & (j < position))).astype(jnp.int32)

    return jax.lax.fori_loop(0, groups.shape[axis], step, jnp.zeros(groups.shape, jnp.int32))


def blocks(
    scores: Scores, sparsity: Setting, *, block_shape: Sequence[int], scope: Scope = "leaf", where: Where = None
) -> Masks:
    """Removes whole blocks: exactly ``round_half_up(blocks * sparsity)`` of those with the lowest mean score.

    Args:
      scores: float arrays; the mean is taken in float32 over the entries that a block has.
      sparsity: traced fraction of the blocks, in [0, 1]; a tree of them for scope "leaf".
      block_shape: static; tiles the trailing axes, from the first entry of each. Blocks at the end may be smaller.
      scope: static, "leaf" or "global".
      where: see :func:`jaxprune.tree.select`.

    Returns:
      Masks in the shapes of the scores. Equal blocks go by row-major block index, the lower one first.

    Raises:
      ValueError: a block length below 1, more block axes than a leaf has, or as :func:`by_sparsity`.

    >>> blocks(jnp.array([[1.0, 1.0, 5.0, 5.0]]), 0.5, block_shape=(1, 2)).tolist()
    [[False, False, True, True]]
    """
    block = tuple(int(size) for size in block_shape)
    if not block or min(block) < 1:
        raise ValueError(f"block_shape must hold lengths of 1 or more, got {tuple(block_shape)}")
    chosen = tree.select(scores, where, scores=True)
    for path, leaf in zip(chosen.names, chosen.values, strict=True):
        if leaf.ndim < len(block):
            raise ValueError(f"leaf {tree.show(path)} has shape {leaf.shape}, too few axes for blocks of shape {block}")
    means = by_shape.each(_block_means, chosen.values, static=(block,))
    kept = keep_highest(chosen, means, sparsity, scope, 0)
    return as_masks(chosen, by_shape.each(_spread, chosen.values, kept, static=(block,)))


def _block_means(scores: Array, block: tuple[int, ...]) -> Array:
    shape, sizes = scores.shape, (1,) * (scores.ndim - len(block)) + block
    padding = [(0, -length % size) for length, size in zip(shape, sizes, strict=True)]
    split = [part for length, size in zip(shape, sizes, strict=True) for part in (-(-length // size), size)]

    def total(values: Array) -> Array:
        inner = tuple(range(1, 2 * values.ndim, 2))
        return jnp.pad(values, padding).reshape(split).sum(inner, dtype=jnp.float32)

    return automatic(lambda x: total(x.astype(jnp.float32)) / total(jnp.ones(shape, jnp.float32)), scores)


def _spread(scores: Array, mask: Array, block: tuple[int, ...]) -> Array:
    def spread(scores: Array, mask: Array) -> Array:
        for axis, size in zip(range(-len(block), 0), block, strict=True):
            mask = jnp.repeat(mask, size, axis=axis)
        return mask[tuple(slice(length) for length in scores.shape)]

    return automatic(spread, scores, mask, out=explicit_spec(scores))


def by_unit_entropy(
    params: Params, threshold: Setting, *, bins: int = 64, where: Where = None, layout: Layout = None
) -> Masks:
    """Removes the units whose weights have an entropy below a threshold: ``keep = H >= threshold``.

    H = -sum P log2 P of the histogram of the unit's incoming weights; see ``jaxprune.saliency.unit_entropy``.

    Args:
      params: float arrays.
      threshold: traced, in bits, 0 or more; a tree of them serves too.
      bins: static number of bins, shared by the units of a leaf.
      where: see :func:`jaxprune.tree.select`.
      layout: the axes of leaves, static; see :mod:`jaxprune.layout`.

    Returns:
      Masks of a value a unit: ``(1, ..., 1, C)`` of a Flax kernel.

    Raises:
      ValueError: a concrete threshold is negative or NaN; ``bins`` is not an integer of at least 1.

    >>> by_unit_entropy(jnp.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [3.0, 1.0]]), 1.0, bins=4).tolist()
    [[True, False]]
    """
    settings.check_count(bins, "bins")
    chosen = tree.select(params, where)
    axes = countable_axes(chosen, layout, int(bins))
    limits = settings.per_leaf(threshold, chosen, "threshold (bits)", 0.0, np.inf)
    return as_masks(chosen, by_shape.each(_informative, chosen.values, limits, static=(int(bins),), own=axes))


def _informative(leaf: Array, limit: Array, axes: Axes, bins: int) -> Array:
    return unit_statistics.entropy(leaf, axes, bins) >= limit


def by_unit_sparsity(params: Params, threshold: Setting, *, where: Where = None, layout: Layout = None) -> Masks:
    """Removes the units that are sparser than a threshold: ``keep = zeros / elements <= threshold``.

    Args:
      params: float arrays. Masked parameters, typically.
      threshold: traced fraction in [0, 1], compared in float32; a tree of them serves too.
      where: see :func:`jaxprune.tree.select`.
      layout: the axes of leaves, static; see :mod:`jaxprune.layout`.

    Returns:
      Masks of a value a unit: ``(1, ..., 1, C)`` of a Flax kernel.

    Raises:
      ValueError: a concrete threshold outside [0, 1] or NaN.

    >>> by_unit_sparsity(jnp.array([[0.0, 1.0], [0.0, 2.0], [1.0, 0.0]]), 0.5).tolist()
    [[False, True]]
    """
    chosen = tree.select(params, where)
    axes = countable_axes(chosen, layout)
    limits = settings.per_leaf(threshold, chosen, "threshold", 0.0, 1.0)
    return as_masks(chosen, by_shape.each(_dense, chosen.values, limits, own=axes))


def _dense(leaf: Array, limit: Array, axes: Axes) -> Array:
    return unit_statistics.sparsity(leaf, axes) <= limit
