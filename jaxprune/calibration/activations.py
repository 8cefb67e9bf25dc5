"""Ranges of activations, from the histograms that statistics hold of their magnitudes.

Within a bin, an eighth of an octave, magnitudes count as spread evenly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune import settings
from jaxprune.base import Array, Calibration, QParams, QuantSpec, Setting
from jaxprune.calibration.statistics import Moments, Statistics
from jaxprune.kernels import uniform
from jaxprune.kernels.rounding import qparams_of
from jaxprune.quantization.ranges import MeanSquaredError, Percentile, mean_squared_error
from jaxprune.tree import show

_FULL = QuantSpec()
_EDGES = (np.arange(2041, dtype=np.uint32) << 20).view(np.float32)  # of the bins of finite numbers
_LINEAR = 2048  # bins of one width, in which divergence is measured
_THIN = 1e-3  # a bin that is narrower than this share of its numbers is one number


def divergence(candidates: Sequence[float] = tuple(i / 128 for i in range(128, 7, -1))) -> Calibration:
    """The range, among fractions of the full one, whose codes tell least from the data: a calibration.

    For :func:`input_qparams`: the ratio of the least Kullback-Leibler divergence of the rounded magnitudes from those
    in the range, with all that is beyond it in its last bin, in bins of a 2048th of the full range (S. Migacz, 8-bit
    inference with TensorRT, GTC 2017). Zeros do not count, as they have a code of their own. Ranges of fewer bins than
    codes are left out; if that leaves none, the ratio named first is taken. Elsewhere it is
    :func:`jaxprune.quantization.mean_squared_error`.

    Args:
      candidates: ratios in (0, 1], static; from 1 down to 1/16 by default.

    >>> from jaxprune.calibration import collect, input_qparams
    >>> x = -jnp.log(jnp.linspace(0.001, 1, 4096))[:, None].at[0].set(64.0)  # the others are below 7
    >>> stats = collect(lambda w, x: x @ w, jnp.ones((1, 1)), x, want=["histogram"])
    >>> scale = input_qparams(stats, 8, spec=QuantSpec(calibration=divergence()))[""].scale
    >>> round(float(scale[0]) * 127, 3)
    7.0
    """
    return Divergence(mean_squared_error(candidates).ratios)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Divergence(MeanSquaredError):
    """What :func:`divergence` gives."""


def input_qparams(stats: Statistics, bits: Setting, *, spec: QuantSpec = _FULL) -> dict[str, QParams]:
    """Scale and zero point of what each product multiplies a parameter with, from statistics alone.

    For ``jp.fake_quant(x, bits, qparams=found[path])`` in the function that computes x. Ranges are symmetric, one for
    all inputs of a product.

    Args:
      stats: of :func:`collect`, with ``want=["histogram"]`` unless it is the full range that is asked for.
      bits: width of a code in [2, 16], fractional values round half up. Traced.
      spec: static; its calibration says how the range is found: the full one without, or ``percentile(q)`` and
        ``mean_squared_error()`` of :mod:`jaxprune.quantization`, or :func:`divergence`.

    Returns:
      ``QParams`` of shape [L] by the names of the uses: a leaf's path, ``path#1`` and so on if there are more. L is the
      number of layers that a scan stacks, or of products that are batched or in groups, and 1 for others.

    Raises:
      ValueError: ``bits`` out of range; statistics without histograms, with the leaf's path; a spec that is asymmetric,
        has an axis or blocks, or another calibration.

    >>> from jaxprune.calibration import collect
    >>> stats = collect(lambda w, x: x @ w, jnp.ones((2, 1)), jnp.array([[1.0, -1.27]]))
    >>> round(float(input_qparams(stats, 8)[""].scale[0]), 4)
    0.01
    """
    known = spec.calibration is None or isinstance(spec.calibration, Percentile | MeanSquaredError)
    if not spec.symmetric or spec.axis is not None or spec.block_size is not None or not known:
        raise ValueError(
            "statistics hold magnitudes of all inputs together: the spec must be symmetric, without axis and blocks, "
            f"and with no calibration, or a percentile, mean_squared_error or divergence; got {spec}"
        )
    width = uniform.width(jnp.asarray(settings.check_setting(bits, "bits", 2, 16)))
    found = {}
    for name, use in stats.uses:
        data = stats.inputs[use.source]
        if isinstance(data, Moments):
            if spec.calibration is not None and data.histogram is None:
                raise ValueError(f"the statistics of leaf {show(use.path)} hold no histograms: want=['histogram']")
            found[name] = _qparams(data.histogram, data.largest, width, spec)
    return found


@partial(jax.jit, static_argnums=3)
def _qparams(histograms: Array | None, largest: Array, bits: Array, spec: QuantSpec) -> QParams:
    high = largest.max(1)
    if spec.calibration is not None:
        ratio = partial(_ratio, bits=bits, calibration=spec.calibration)
        high = high * lax.map(lambda row: ratio(*row), (histograms, high))
    return qparams_of(-high, high, bits, True)


def _ratio(histogram: Array, largest: Array, bits: Array, calibration: Calibration) -> Array:
    """The range, as a fraction of the full one."""
    ends = jnp.minimum(_EDGES / jnp.where(largest > 0, largest, 1), 1)
    counts = histogram[: len(_EDGES) - 1].astype(jnp.float32)
    if isinstance(calibration, Percentile):
        above = _above(counts)
        return jnp.interp((100 - calibration.q) / 100 * above[0], above[::-1], ends[::-1])
    assert isinstance(calibration, MeanSquaredError)
    ratios = jnp.asarray(calibration.ratios, jnp.float32)
    if isinstance(calibration, Divergence):
        above = jnp.interp(jnp.arange(_LINEAR + 1) / _LINEAR, ends, _above(counts.at[0].set(0)))
        costs = lax.map(lambda ratio: _divergence(above, ratio, bits), ratios)
    else:
        costs = lax.map(lambda ratio: _squared_error(ends, counts, ratio, bits), ratios)
    return ratios[jnp.argmin(costs)]


def _above(counts: Array) -> Array:
    """How many are above the ends of bins. From the top, where the few that decide are not lost among the many."""
    return jnp.append(jnp.cumsum(counts[::-1])[::-1], 0)


def _squared_error(ends: Array, counts: Array, ratio: Array, bits: Array) -> Array:
    """The sum of squared errors of rounding and clipping, in closed form."""
    top = (2 ** (bits - 1) - 1).astype(jnp.float32)
    step = ratio / top
    ends = ends / step
    nearest = jnp.floor(jnp.minimum(ends, top) + 0.5)
    rounding = nearest / 12 + (jnp.minimum(ends, top) - nearest) ** 3 / 3  # the integral of squared errors up to here
    clipping = jnp.maximum(ends - top, 0) ** 3 / 3
    width = ends[1:] - ends[:-1]
    thin = width <= _THIN * ends[1:]
    number = (ends[1:] - jnp.minimum(nearest[1:], top)) ** 2
    return step**2 * jnp.sum(
        counts * jnp.where(thin, number, jnp.diff(rounding + clipping) / jnp.where(thin, 1, width))
    )


def _divergence(above: Array, ratio: Array, bits: Array) -> Array:
    """Kullback-Leibler divergence of what is rounded from what is clipped to that ratio."""
    bins = jnp.round(ratio * _LINEAR).astype(jnp.int32)
    levels = 2 ** (bits - 1)
    place = jnp.arange(_LINEAR)
    counts = jnp.where(place < bins, above[:-1] - above[1:], 0)
    level = jnp.where(place < bins, jnp.minimum(place * levels // bins, _LINEAR - 1), _LINEAR - 1)

    def in_level(x: Array) -> Array:
        return jnp.zeros(_LINEAR).at[level].add(x)[level]

    some = counts > 0
    rounded = jnp.where(some, in_level(counts) / jnp.maximum(in_level(some.astype(jnp.float32)), 1), 0)
    clipped = counts + jnp.where(place == bins - 1, above[bins], 0)
    p, q = (x / jnp.maximum(x.sum(), 1) for x in (clipped, rounded))
    each = jnp.where(p > 0, p * jnp.log(p / q), 0)
    return jnp.where(bins < levels, jnp.inf, each.sum())
