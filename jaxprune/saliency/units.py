"""Criteria that score each unit: one score an index along the output axes, that broadcasts to the leaf."""

import math
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import settings, tree
from jaxprune.base import Array, Layout, Params, Scores
from jaxprune.kernels import unit_statistics
from jaxprune.kernels.rounding import divide, normalizer
from jaxprune.layout import Axes, axes_of, countable_axes
from jaxprune.saliency.weights import matching, score


def unit_norm(params: Params, *, ord: float = 1, layout: Layout = None) -> Scores:
    """Scores each unit by the norm of its weights, ``(sum of |w|**ord) ** (1 / ord)``.

    With ``ord`` 1 the criterion of Li et al., "Pruning Filters for Efficient ConvNets" (2017).

    Args:
      params: any pytree of arrays.
      ord: a real number above 0, or ``inf`` for the largest magnitude. Static.
      layout: the axes of leaves, static; see :mod:`jaxprune.layout`.

    Returns:
      Scores of the structure of ``params``; of a Flax kernel ``(..., C)`` they have shape ``(1, ..., 1, C)``. Float32
      and computed in float32, with no overflow or underflow on the way. The derivative at a zero unit is taken as 0.

    Raises:
      ValueError: ``ord`` is not a number above 0; or a kernel whose axes no rule knows, with its path.
      TypeError: a leaf is no array, with its path.

    >>> unit_norm(jnp.array([[3.0, 1.0], [-4.0, 1.0]]), ord=2)
    Array([[5.       , 1.4142135]], dtype=float32)
    """
    if isinstance(ord, bool) or not isinstance(ord, Real) or not ord > 0:
        raise ValueError(f"ord must be a number above 0 (it is static, inf is allowed), got {ord!r}")
    selection = tree.floating(params)
    return score(selection, _unit_norm, static=(float(ord),), axes=axes_of(selection, layout))


def _unit_norm(w: Array, of: Axes, ord: float) -> Array:
    w, axes = jnp.abs(w.astype(jnp.float32)), of.inputs
    if ord == 1:
        return jnp.sum(w, axis=axes, keepdims=True)
    largest = jnp.max(w, axis=axes, keepdims=True, initial=0.0)
    if ord == math.inf:
        return largest
    # The norm is homogeneous, so the divisor needs no derivative. Both derivatives at 0 are taken as 0.
    scale = jax.lax.stop_gradient(jnp.where((largest > 0) & (largest < jnp.inf), largest, 1.0))
    ratio = divide(w, scale)
    powers = jnp.where(ratio == 0, 0.0, jnp.where(ratio == 0, 1.0, ratio) ** ord)
    total = jnp.sum(powers, axis=axes, keepdims=True)
    return jnp.where(total == 0, 0.0, scale * jnp.where(total == 0, 1.0, total) ** (1 / ord))


def unit_entropy(params: Params, *, bins: int = 64, layout: Layout = None) -> Scores:
    """Scores each unit by the entropy of the histogram of its incoming weights, ``H = -sum P log2 P``.

    All units of a leaf share ``bins`` equal bins between ``lo`` and ``hi``, the finite minimum and maximum of the leaf:
    ``v`` falls in bin ``min(floor((v - lo) / (hi - lo) * bins), bins - 1)``, each step rounded to float32. A unit whose
    weights are all alike has entropy 0, however large they are.

    Args:
      params: any pytree of arrays.
      bins: number of bins, at least 1. Static.
      layout: the axes of leaves, static; see :mod:`jaxprune.layout`.

    Returns:
      Scores of the structure of ``params``; of a Flax kernel ``(..., C)`` they have shape ``(1, ..., 1, C)``.
      Float32, in bits, in [0, log2 bins] up to the rounding of the sum; a unit that fills 2**k bins evenly has k bits.
      Counts are exact integers. Weights that are not finite are not counted, and ranges that overflow float32 do no
      harm. A constant leaf, a unit without weights and a unit of non-finite weights score 0. The derivative is 0.

    Raises:
      ValueError: ``bins`` is not an integer of at least 1; or a unit has 2**31 weights or more, or a leaf as many bins,
        or no rule knows the axes of a kernel, with the leaf's path.
      TypeError: a leaf is no array, with its path.

    >>> unit_entropy(jnp.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [3.0, 1.0]]), bins=4)
    Array([[2., 0.]], dtype=float32)
    """
    selection, axes = _countable(params, bins, layout)
    return score(selection, unit_statistics.entropy, static=(int(bins),), axes=axes)


def unit_sparsity(params: Params, *, layout: Layout = None) -> Scores:
    """Scores each unit by its fraction of zeros, ``zeros / elements``.

    The one criterion here where **larger is less important**: ``masks.by_unit_sparsity`` removes the units *above* a
    threshold. To rank units by it, negate it.

    Args:
      params: any pytree of arrays.
      layout: the axes of leaves, static; see :mod:`jaxprune.layout`.

    Returns:
      Fractions in [0, 1] in the structure of ``params``; of a Flax kernel ``(..., C)`` they have shape
      ``(1, ..., 1, C)``. The counts are exact integers, the quotient is the float32 nearest to the fraction (of units
      above 2**24 elements, to within an ulp or two). -0.0 is a zero, NaN and subnormals are none. Of no elements
      it is 0.

    Raises:
      ValueError: a unit has 2**31 elements or more, or no rule knows the axes of a kernel, with the leaf's path.
      TypeError: a leaf is no array, with its path.

    >>> unit_sparsity(jnp.array([[0.0, 1.0], [2.0, 1.0], [0.0, 0.0], [0.0, 1.0]]))
    Array([[0.75, 0.25]], dtype=float32)
    """
    selection, axes = _countable(params, 1, layout)
    return score(selection, unit_statistics.sparsity, axes=axes)


def activation_entropy(activations: Any, *, bins: int = 64) -> Any:
    """Scores each unit by the entropy of the histogram of its activations over a data set, ``H = -sum P log2 P``.

    As :func:`unit_entropy`, with samples in the place of incoming weights: all units of one array share ``bins`` equal
    bins between that array's finite minimum and maximum. A unit that is always off, or always the same, scores 0.

    Args:
      activations: an array of shape ``(..., C)``, or any pytree of such arrays (one a layer, say). All leading axes
        (batch, height, width) are samples.
      bins: number of bins, at least 1. Static.

    Returns:
      Scores of the structure of ``activations``, float32, in bits, each of shape ``(C,)``: exact counts, as in
      :func:`unit_entropy`.

    Raises:
      ValueError: ``bins`` is not an integer of at least 1; or an array has no axis, or 2**31 samples or more a unit, or
        as many bins, with its path.
      TypeError: a leaf is no array, with its path.

    >>> activation_entropy(jnp.array([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 3.0]]), bins=4)
    Array([0., 2.], dtype=float32)
    """
    selection, axes = _countable(activations, bins, "flax")
    for path, x in zip(selection.names, selection.taken, strict=True):
        if np.ndim(x) == 0:
            raise ValueError(f"activations at {path!r} are a scalar; they need a last axis of units")
    return score(selection, _activation_entropy, static=(int(bins),), axes=axes)


def activation_taylor(activations: Any, grads: Any, *, normalize: bool = False) -> Any:
    """Scores each unit by how much the loss changes, to first order, when its activations become 0.

    ``mean over the batch of |mean over positions of a * g|``: the positions (height and width, say) of one example add
    up with their signs, examples do not cancel each other.

    Args:
      activations: an array of shape ``(batch, ..., C)``, or any pytree of such arrays (one a layer, say). The axes
        between are positions; an array ``(batch, C)`` has a single one.
      grads: the derivatives of the loss with respect to the activations, a tree with the same floating leaves (paths
        and shapes). Take them of the sum of the examples' losses; of the mean, all scores are smaller by the batch.
      normalize: static; divides the scores of each array by their 2-norm, to compare layers. A zero norm stays zero.

    Returns:
      Scores of the structure of ``activations``, each of shape ``(C,)``; float32 and computed in float32. Without
      examples or positions they are 0.

    Raises:
      ValueError: an array without a batch and a last axis; trees with other paths, or other shapes at one path.
      TypeError: a leaf is no array, with its path.

    Source: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", 2017
    (arXiv:1611.06440), Eq. 8; the norm is that of Eq. 9.

    >>> activation_taylor(jnp.array([[1.0, 2.0], [3.0, -4.0]]), jnp.array([[1.0, 0.5], [-1.0, 0.0]]))
    Array([2. , 0.5], dtype=float32)
    """
    selection, partners = matching(activations, grads, "activations", "grads")
    for path, shape in zip(selection.names, map(np.shape, selection.taken), strict=True):
        if len(shape) < 2:
            raise ValueError(f"activations at {path!r} have shape {shape}; they need a batch and a last axis of units")
    return score(selection, _activation_taylor, partners, static=(bool(normalize),))


def _activation_taylor(x: Array, g: Array, normalize: bool) -> Array:
    changes = x.astype(jnp.float32) * g.astype(jnp.float32)
    examples, positions = x.shape[0], math.prod(x.shape[1:-1])
    effects = jnp.abs(jnp.sum(changes, axis=tuple(range(1, x.ndim - 1)))) / max(positions, 1)
    scores = jnp.sum(effects, axis=0) / max(examples, 1)
    if not normalize:
        return scores
    scores = scores * normalizer(jnp.max(scores, initial=0.0))  # so that squares neither overflow
    squares = jnp.sum(jnp.square(jnp.maximum(scores, -1.0)))  # nor underflow, of constants neither
    return divide(scores, jnp.sqrt(jnp.where(squares == 0, 1.0, squares)))


def _activation_entropy(x: Array, axes: Axes, bins: int) -> Array:
    return unit_statistics.entropy(x, axes, bins).reshape(x.shape[-1:])


def _countable(params: Params, bins: int, layout: Layout) -> tuple[tree.Selection, list[Axes]]:
    """The floating leaves and their axes, once it is sure that their histograms fit 32-bit integers."""
    settings.check_count(bins, "bins")
    selection = tree.floating(params)
    return selection, countable_axes(selection, layout, int(bins))
