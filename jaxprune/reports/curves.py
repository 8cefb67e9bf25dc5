"""What hundreds of settings do to the weights, without a model: curves for about the price of a few masks.

All in one compiled program. Errors are relative, ``||w - w'|| / ||w||`` in the Euclidean norm of each leaf, summed in
float32.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import settings, tree
from jaxprune.base import Array, Layout, Params, QuantSpec, Where
from jaxprune.kernels import order, unit_statistics
from jaxprune.kernels.clustering import position
from jaxprune.kernels.histogram import histogram
from jaxprune.kernels.order import removed_count
from jaxprune.layout import Axes, countable_axes
from jaxprune.quantization.integers import fake_quant

_PLAIN = QuantSpec()
_LANES = 1 << 10


class SparsityCurve(NamedTuple):
    """For each leaf, an array over the sparsities: the magnitude threshold that reaches it, and the error it costs."""

    thresholds: Params
    errors: Params


class EntropyCurve(NamedTuple):
    """For each leaf, an array over the thresholds: the fraction of units removed, and the error it costs."""

    sparsities: Params
    errors: Params


def sparsity_curve(params: Params, sparsities: Any, *, where: Where = None) -> SparsityCurve:
    """The threshold and the error of magnitude pruning at every sparsity, leaf by leaf.

    As ``masks.by_sparsity(magnitude(params), s)`` for each ``s``: exactly ``round_half_up(n * s)`` of the n smallest
    magnitudes go. All sparsities share a few passes over the weights, for the thresholds and for the errors.

    Args:
      params: float arrays; ``where`` chooses.
      sparsities: traced fractions in [0, 1], shape [S].
      where: see :func:`jaxprune.tree.select`. Leaves that take no part get thresholds and errors of 0.

    Returns:
      ``SparsityCurve``: trees with an array [S] a leaf; thresholds in the leaf's dtype (the lowest magnitude that
      stays, +inf where none does), errors float32. A leaf of zeros has error 0.

    Raises:
      ValueError: a concrete sparsity outside [0, 1] or NaN, or sparsities that are not a vector.

    >>> curve = sparsity_curve(jnp.array([3.0, -4.0, 0.0, 0.0]), [0.5, 0.75, 1.0])
    >>> curve.thresholds.tolist(), [round(e, 4) for e in curve.errors.tolist()]
    ([3.0, 4.0, inf], [0.0, 0.6, 1.0])
    """
    chosen = tree.select(params, where)
    fractions = _vector(sparsities, "sparsity", 0.0, 1.0)
    found = [_sparsity_curve(leaf, fractions) for leaf in chosen.values]
    return SparsityCurve(*(_with_zeros(chosen, [pair[i] for pair in found], fractions.shape) for i in range(2)))


@jax.jit
def _sparsity_curve(w: Array, sparsities: Array) -> tuple[Array, Array]:
    sizes, counts = jnp.abs(w), removed_count(w.size, sparsities)
    thresholds = order.kth_smallest([sizes], counts)
    ascending = jnp.sort(thresholds)
    below = [histogram(sizes, (ascending,), _lane, (counts.size + 1) * _LANES, weigh) for weigh in (None, _squares)]
    own = position(thresholds, ascending)
    number, energy = (jnp.cumsum(found.reshape(-1, _LANES).sum(1, dtype=found.dtype))[own] for found in below)
    stay = jnp.where(number > counts, number - counts, 0).astype(jnp.float32)  # of those as large as the threshold
    return thresholds, _relative(energy - jnp.where(stay > 0, stay * _squares(thresholds), 0.0), w)


def _lane(values: Array, index: Array, ascending: Array) -> Array:
    """How many thresholds are smaller, in one of several bins, whose sums are short."""
    return position(values, ascending) * _LANES + (index % _LANES).astype(jnp.int32)


def quantization_error_curve(params: Params, bits: Any, *, spec: QuantSpec = _PLAIN, where: Where = None) -> Params:
    """The error of fake quantization at every bit width, leaf by leaf.

    Args:
      params: float arrays; ``where`` chooses.
      bits: traced widths in 1..16, shape [B].
      spec: static, see :class:`jaxprune.QuantSpec`.
      where: see :func:`jaxprune.tree.select`. Leaves that take no part get errors of 0.

    Returns:
      A tree with a float32 array [B] a leaf.

    Raises:
      ValueError: a concrete width outside [1, 16] or NaN, or widths that are not a vector.

    >>> [round(e, 3) for e in quantization_error_curve(jnp.array([1.0, -0.4, 0.3]), [2, 4, 8]).tolist()]
    [0.447, 0.029, 0.002]
    """
    chosen = tree.select(params, where)
    widths = _vector(bits, "bits", 1.0, 16.0)
    return _with_zeros(chosen, [_error_curve(leaf, widths, spec) for leaf in chosen.values], widths.shape)


@partial(jax.jit, static_argnums=2)
def _error_curve(w: Array, bits: Array, spec: QuantSpec) -> Array:
    def lost(width: Array) -> Array:
        return jnp.sum(_squares(w.astype(jnp.float32) - fake_quant(w, width, spec=spec).astype(jnp.float32)))

    return _relative(jax.vmap(lost)(bits), w)


def entropy_curve(
    params: Params, thresholds: Any, *, bins: int = 64, where: Where = None, layout: Layout = None
) -> EntropyCurve:
    """The units that entropy masking removes at every threshold, and the error, leaf by leaf.

    As ``masks.by_unit_entropy(params, t, bins=bins)`` for each ``t``; the weights are read twice, whatever the number
    of thresholds.

    Args:
      params: float arrays; ``where`` chooses.
      thresholds: traced, in bits, 0 or more, shape [T].
      bins: static number of bins.
      where: see :func:`jaxprune.tree.select`. Leaves that take no part get zeros.
      layout: the axes of leaves, static; see :mod:`jaxprune.layout`.

    Returns:
      ``EntropyCurve``: trees with a float32 array [T] a leaf.

    Raises:
      ValueError: a concrete threshold is negative or NaN, thresholds that are not a vector, or bins below 1.

    >>> curve = entropy_curve(jnp.array([[0.0, 3.0], [1.0, 3.0], [2.0, 3.0], [3.0, 3.0]]), [0.0, 1.0, 9.0], bins=4)
    >>> curve.sparsities.tolist()
    [0.0, 0.5, 1.0]
    """
    settings.check_count(bins, "bins")
    chosen = tree.select(params, where)
    axes = countable_axes(chosen, layout, int(bins))
    limits = _vector(thresholds, "threshold (bits)", 0.0, np.inf)
    found = [_entropy_curve(leaf, limits, own, int(bins)) for leaf, own in zip(chosen.values, axes, strict=True)]
    return EntropyCurve(*(_with_zeros(chosen, [pair[i] for pair in found], limits.shape) for i in range(2)))


@partial(jax.jit, static_argnums=(2, 3))
def _entropy_curve(w: Array, thresholds: Array, axes: Axes, bins: int) -> tuple[Array, Array]:
    bits = unit_statistics.entropy(w, axes, bins).reshape(-1)
    energy = jnp.sum(_squares(w), axis=axes.inputs).reshape(-1)
    removed = bits[None] < thresholds[:, None]
    share = jnp.sum(removed, axis=1, dtype=jnp.int32).astype(jnp.float32) / max(bits.size, 1)
    return share, _relative(jnp.sum(jnp.where(removed, energy[None], 0.0), axis=1), w)


def _squares(values: Array, *_: Any) -> Array:
    return jnp.square(values.astype(jnp.float32))


def _relative(lost: Array, w: Array) -> Array:
    total = jnp.sum(_squares(w))
    return jnp.sqrt(jnp.where(total > 0, lost / jnp.where(total > 0, total, 1.0), 0.0))


def _vector(values: Any, name: str, low: float, high: float) -> Array:
    """The settings as float32 [N]."""
    array = settings.check_settings(values, name, low, high)
    if array.ndim != 1:
        raise ValueError(f"a curve needs a vector of values for {name}, got shape {array.shape}")
    return array


def _with_zeros(chosen: tree.Selection, found: list[Array], shape: tuple[int, ...]) -> Params:
    return chosen.replace(found, lambda _: jnp.zeros(shape, jnp.float32))
