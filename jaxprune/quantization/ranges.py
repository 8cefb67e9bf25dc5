"""How a quantizer finds its range: by percentile, or by mean squared error.

What ends up in ``QuantSpec.calibration`` has the signature ``(x, axes, bits, spec) -> (low, high)``: float32 ``x``, in
which the entries that fill up a last, shorter block are NaN; int32 ``bits``; the finite entries over ``axes`` count,
which are kept with size 1. Those here are frozen records that can be called: equal ones share one compilation, and they
pickle and go into files. A function of a module will do as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.base import Array, Calibration, QuantSpec
from jaxprune.kernels.reductions import full_range, streamed
from jaxprune.kernels.rounding import HUGE, grid, qparams_of, snap


def percentile(q: float) -> Calibration:
    """The range that leaves out the outermost values: a calibration for :class:`~jaxprune.QuantSpec`.

    Symmetric: the ``q``-th percentile of abs(x). Asymmetric: from the (100 - q)-th to the ``q``-th percentile of x. By
    linear interpolation over the finite entries of each group (a channel, a block), as ``numpy.percentile``; the work
    is a sort. With equal ``q`` they are equal, so nothing recompiles. A group of 2**31 entries or more raises
    ``ValueError``.

    Args:
      q: in (0, 100], percent; 100 is the full range. Static.

    >>> low, high = percentile(75.0)(jnp.arange(5.0), (0,), jnp.int32(8), QuantSpec())
    >>> float(high[0])
    3.0
    """
    if not 0 < q <= 100:
        raise ValueError(f"q must be in (0, 100], got {q!r}")
    return Percentile(float(q))


@dataclass(frozen=True)
class Percentile:
    """What :func:`percentile` gives."""

    q: float

    def __call__(self, x: Array, axes: tuple[int, ...], bits: Array, spec: QuantSpec) -> tuple[Array, Array]:
        del bits
        shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
        if x.size == 0:
            return jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)
        kept = [i for i in range(x.ndim) if i not in axes]
        if x.size // prod(shape) >= 2**31:
            raise ValueError(f"a percentile of {x.size // prod(shape)} entries of {x.shape}; the most are 2**31 - 1")
        rows = x.transpose(*kept, *axes).reshape(prod(shape), -1)
        rows, count = _sorted(jnp.abs(rows) if spec.symmetric else rows)
        high = _quantile(rows, count, self.q).reshape(shape)
        return (-high, high) if spec.symmetric else (_quantile(rows, count, 100 - self.q).reshape(shape), high)


def mean_squared_error(candidates: Sequence[float] = tuple(i / 25 for i in range(25, 4, -1))) -> Calibration:
    """The range, among fractions of the full one, whose rounding error is least: a calibration.

    For each group (a channel, a block) takes the ratio r that minimizes the sum of (x - fake_quant(x))**2 over its
    finite entries, with the range [r * low, r * high]; of equal errors, the ratio named first. Work is one read of x
    for each candidate, memory one copy of x whatever their number. Has no say at 1 bit, symmetric, where the scale is
    the mean magnitude. With equal candidates they are equal. Source: the clipping of Banner et al. 2019
    (arXiv:1810.05723), by trial.

    Args:
      candidates: ratios in (0, 1], static; from 1 down to 0.2 by default.

    >>> x = jnp.array([1.0] * 99 + [10.0])
    >>> low, high = mean_squared_error((1.0, 0.5))(x, (0,), jnp.int32(4), QuantSpec())
    >>> float(high[0])
    10.0
    """
    ratios = tuple(float(c) for c in candidates)
    if not ratios or not all(0 < r <= 1 for r in ratios):
        raise ValueError(f"candidates must be ratios in (0, 1], got {candidates!r}")
    return MeanSquaredError(ratios)


@dataclass(frozen=True)
class MeanSquaredError:
    """What :func:`mean_squared_error` gives."""

    ratios: tuple[float, ...]

    def __call__(self, x: Array, axes: tuple[int, ...], bits: Array, spec: QuantSpec) -> tuple[Array, Array]:
        low, high = full_range(x, axes, spec.symmetric)
        low_, high_ = low.reshape(1, -1), high.reshape(1, -1)

        def attempt(i, best):
            ratio = jnp.asarray(self.ratios, jnp.float32)[i]
            qparams = qparams_of(low_ * ratio, high_ * ratio, bits, spec.symmetric)
            quantizer = grid(qparams, bits, spec.symmetric)

            def squared(row):
                error = jnp.where(jnp.isfinite(row), row - snap(row, *quantizer), 0)
                return jnp.minimum(error * error, HUGE)

            error = streamed(x, axes, squared)
            return tuple(jnp.where(error < best[0], new, old) for new, old in zip((error, ratio), best, strict=True))

        start = (jnp.full(low.size, jnp.inf, jnp.float32), jnp.full(low.size, self.ratios[0], jnp.float32))
        ratio = lax.fori_loop(0, len(self.ratios), attempt, start)[1].reshape(low.shape)
        return low * ratio, high * ratio


def _sorted(x: Array) -> tuple[Array, Array]:
    """Rows in ascending order, non-finite entries at the end, and how many are finite. Integer keys sort faster."""
    finite = jnp.isfinite(x)
    raw = lax.bitcast_convert_type(x, jnp.int32)
    key = jnp.where(finite, raw ^ ((raw >> 31) & 0x7FFFFFFF), 0x7F7FFFFF)  # the last finite number
    key = jnp.sort(key, axis=-1)
    values = lax.bitcast_convert_type(key ^ ((key >> 31) & 0x7FFFFFFF), jnp.float32)
    return values, jnp.sum(finite, axis=-1, dtype=jnp.int32)


def _quantile(rows: Array, count: Array, q: float) -> Array:
    """The ``q``-th percentile of the first ``count`` entries of each sorted row; 0 of none. Counts from the nearer end,
    where the float32 position is finest."""
    last = jnp.maximum(count - 1, 0)
    from_top = q >= 50
    whole = last.astype(jnp.float32)
    distance = jnp.minimum(np.float32((100 - q if from_top else q) / 100) * whole, whole)
    step = jnp.floor(distance)
    near = jnp.minimum(step.astype(jnp.int32), last)
    ends = (near, jnp.minimum(near + 1, last))
    a, b = (jnp.take_along_axis(rows, (last - i if from_top else i)[:, None], -1)[:, 0] for i in ends)
    gap = jnp.abs(b - a)
    part = jnp.where(distance > step, jnp.minimum((distance - step) * gap, gap), 0)
    return jnp.where(count > 0, a - part if from_top else a + part, 0)
