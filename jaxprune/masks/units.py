"""Masks of whole units: those whose weights carry little information, and those that are mostly zeros."""

import numpy as np

from jaxprune import layout, settings, tree
from jaxprune.base import Array, Masks, Params, Setting, Where
from jaxprune.kernels import by_shape, unit_statistics
from jaxprune.masks.selection import as_masks


def by_unit_entropy(params: Params, threshold: Setting, *, bins: int = 64, where: Where = None) -> Masks:
    """Removes the units whose weights have an entropy below a threshold: ``keep = H >= threshold``.

    H = -sum P log2 P of the histogram of the unit's incoming weights; see ``jaxprune.saliency.unit_entropy``.

    Args:
      params: float arrays ``(..., C)``; units are along the last axis.
      threshold: traced, in bits, 0 or more; a tree of them serves too.
      bins: static number of bins, shared by the units of a leaf.
      where: see :func:`jaxprune.tree.select`.

    Returns:
      Masks of shape ``(1, ..., 1, C)``.

    Raises:
      ValueError: a concrete threshold is negative or NaN; ``bins`` is not an integer of at least 1.

    >>> import jax.numpy as jnp
    >>> by_unit_entropy(jnp.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [3.0, 1.0]]), 1.0, bins=4).tolist()
    [[True, False]]
    """
    unit_statistics.check_bins(bins)
    chosen = tree.select(params, where)
    layout.check_countable(chosen, int(bins))
    limits = settings.per_leaf(threshold, chosen, "threshold (bits)", 0.0, np.inf)
    return as_masks(chosen, by_shape.each(_informative, chosen.values, limits, static=(int(bins),)))


def _informative(leaf: Array, limit: Array, bins: int) -> Array:
    return unit_statistics.entropy(leaf, bins) >= limit


def by_unit_sparsity(params: Params, threshold: Setting, *, where: Where = None) -> Masks:
    """Removes the units that are sparser than a threshold: ``keep = zeros / elements <= threshold``.

    Args:
      params: float arrays ``(..., C)``; units are along the last axis. Masked parameters, typically.
      threshold: traced fraction in [0, 1], compared in float32; a tree of them serves too.
      where: see :func:`jaxprune.tree.select`.

    Returns:
      Masks of shape ``(1, ..., 1, C)``.

    Raises:
      ValueError: a concrete threshold outside [0, 1] or NaN.

    >>> import jax.numpy as jnp
    >>> by_unit_sparsity(jnp.array([[0.0, 1.0], [0.0, 2.0], [1.0, 0.0]]), 0.5).tolist()
    [[False, True]]
    """
    chosen = tree.select(params, where)
    layout.check_countable(chosen)
    limits = settings.per_leaf(threshold, chosen, "threshold", 0.0, 1.0)
    return as_masks(chosen, by_shape.each(_dense, chosen.values, limits))


def _dense(leaf: Array, limit: Array) -> Array:
    return unit_statistics.sparsity(leaf) <= limit
