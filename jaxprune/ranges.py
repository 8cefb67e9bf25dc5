"""The arithmetic of a uniform quantizer on one array: its range, its step, and the rounding itself.

Everything is float32, with one rounding a step, and written so that a compiler cannot change a bit between programs:

* a division by a broadcast operand is rewritten to a multiplication by the reciprocal, and by a constant as well, so a
  divisor here always depends on its numerator (:func:`divide`);
* a product that feeds a sum may be fused into one rounding, so a ``min``, a ``max`` or a ``where`` stands in between;
* a float sum depends on its order, so sums that decide anything run in a fixed order (:func:`tree_sum`).
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from jaxprune.base import Array, Calibration, QParams, QuantSpec

TINY = np.finfo(np.float32).tiny  # a step below it would be subnormal, which backends flush to zero
HUGE = np.finfo(np.float32).max * np.float32(1 - 2**-21)  # room for the rounding of scale * code
_ROWS = 8192  # entries that a step of the error search works on


def divide(x: Array, by: Array) -> Array:
    """Correctly rounded ``x / by`` for finite ``x``, whatever is constant or broadcast."""
    return x / (by + (x - x))


def tree_sum(x: Array, axes: Sequence[int]) -> Array:
    """Sum over ``axes`` (kept with size 1) by halving: the same bits in every program, error growing as log n."""
    for axis in axes:
        while x.shape[axis] > 1:
            half = -(-x.shape[axis] // 2)
            left, right = jnp.split(x, [half], axis)
            x = left + jnp.pad(right, [(0, left.shape[a] - right.shape[a]) for a in range(x.ndim)])
    return x if x.size else jnp.sum(x, tuple(axes), keepdims=True)


def top_code(bits: Array, symmetric: bool) -> Array:
    """Largest code, float32: 2**(b-1) - 1 (but 1 at 1 bit) if symmetric, else 2**b - 1; by shifts, so exact."""
    codes = jnp.left_shift(1, bits - 1 if symmetric else bits) - 1
    return jnp.maximum(codes, 1).astype(jnp.float32)


def qparams_of(low: Array, high: Array, bits: Array, symmetric: bool) -> QParams:
    """Step and zero point of the range [low, high], each in its shape; scale 0 stands for a range without width.

    Symmetric: scale = max(-low, high) / (2**(b-1) - 1). Asymmetric: the range is widened to hold 0, scale = (high -
    low) / (2**b - 1), zero_point = clip(round_half_even(-low / scale), 0, 2**b - 1).
    """
    top = top_code(bits, symmetric)
    low, high = (jnp.where(jnp.isnan(end), 0, jnp.clip(end, -HUGE, HUGE)) for end in (low, high))
    if symmetric:
        scale = divide(jnp.maximum(jnp.maximum(-low, high), 0), top)
        zero_point = jnp.zeros(scale.shape, jnp.int32)
    else:
        low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
        scale = divide(high * 0.5 - low * 0.5, top * 0.5)  # halved: high - low may overflow
        code = jnp.round(divide(-low, jnp.where(scale >= TINY, scale, 1)))
        zero_point = jnp.where(scale >= TINY, jnp.clip(code, 0, top), 0).astype(jnp.int32)
    return QParams(jnp.where(scale >= TINY, scale, 0), zero_point)


def grid(qparams: QParams, bits: Array, symmetric: bool) -> tuple[Array, Array, Array, Array]:
    """``(scale, divisor, lowest, highest)`` for :func:`snap`: multiples of the scale that a code can stand for.

    At a zero scale only 0 is left. At 1 bit, symmetric, the divisor is the least normal number, which makes the clipped
    quotient the sign. Multiples beyond the float32 range are left out.
    """
    scale = jnp.where(qparams.scale >= TINY, jnp.minimum(qparams.scale, HUGE), 0)
    some = scale > 0
    divisor = jnp.where(some, scale, 1)
    top, zero = top_code(bits, symmetric), qparams.zero_point.astype(jnp.float32)
    room = jnp.floor(jnp.float32(HUGE) / divisor) + jnp.where(scale * top < jnp.inf, top, 0)
    lowest, highest = (-top + zero * 0, top + zero * 0) if symmetric else (-zero, top - zero)
    lowest, highest = (jnp.where(some, end, 0) for end in (jnp.maximum(lowest, -room), jnp.minimum(highest, room)))
    if symmetric:
        divisor = jnp.where(bits == 1, TINY, divisor)
    return scale, divisor, lowest, highest


def multiples(x: Array, divisor: Array, lowest: Array, highest: Array) -> tuple[Array, Array]:
    """clip(round_half_even(x / divisor), lowest, highest), and zeros of the shape of ``x``; NaN for NaN in both.

    Clipping first gives the same integers, as rounded division is monotonic and exact at whole multiples, and leaves a
    finite numerator.
    """
    inside = jnp.minimum(jnp.maximum(x, lowest * divisor), highest * divisor)
    zeros = inside - inside
    return jnp.round(inside / (divisor + zeros)), zeros


@custom_vmap
def snap(x: Array, scale: Array, divisor: Array, lowest: Array, highest: Array) -> Array:
    """The float32 value that the quantizer of :func:`grid` stores for ``x``; zeros are +0.0, NaN stays NaN."""
    code, zeros = multiples(x, divisor, lowest, highest)
    return code * scale + zeros


@snap.def_vmap
def _(size: int, batched: list[bool], *args: Array) -> tuple[Array, bool]:
    # A sweep of settings over one array: the same bits by a formula that names x and nothing else twice, which XLA's
    # CPU reductions take in as one pass (1.5 times the speed). Any -0.0 meets scale - scale, which is +0.0.
    def shared(x, scale, divisor, lowest, highest):
        code = jnp.round(x / jnp.maximum(divisor, jnp.minimum(x, -divisor)))
        return jnp.minimum(jnp.maximum(code, lowest), highest) * scale + (scale - scale)

    def own(x, scale, divisor, lowest, highest):
        code, zeros = multiples(x, divisor, lowest, highest)
        return code * scale + zeros

    axes = [0 if flag else None for flag in batched]
    return jax.vmap(own if batched[0] else shared, axes, axis_size=size)(*args), True


# ---------------------------------------------------------------------------------------------------------------------
# Ranges


def full_range(x: Array, axes: tuple[int, ...], symmetric: bool) -> tuple[Array, Array]:
    """Finite extremes over ``axes`` and 0, float32, kept with size 1: (-m, m) with m = max abs(x), or (min, max)."""

    def extremes(x):
        if symmetric:
            high = jnp.max(jnp.abs(x), axes, keepdims=True, initial=0)
            return -high, high
        return jnp.min(x, axes, keepdims=True, initial=0), jnp.max(x, axes, keepdims=True, initial=0)

    def masked(x):
        return extremes(jnp.where(jnp.isfinite(x), x, 0))

    def guarded(x):
        # XLA's fast CPU reductions lose maxima next to a NaN, and would copy a masked array. Sums keep NaN, so one read
        # decides whether the mask is needed.
        found = extremes(x)
        return lax.cond(jnp.sum(x - x) == 0, lambda x: found, masked, x)

    low, high = lax.platform_dependent(x, cpu=guarded, default=masked)
    return low.astype(jnp.float32), high.astype(jnp.float32)


@lru_cache(maxsize=None)
def mean_magnitude(axes: tuple[int, ...]):
    """``(wanted, x) -> mean abs(x)`` over the finite entries along ``axes``, float32, or zeros where not wanted.

    A whole read that only 1-bit codes need, so it happens under a ``cond`` that batching settings leaves alone.
    """

    def mean(x):
        a = jnp.abs(x.astype(jnp.float32))
        finite = a < jnp.inf
        shift = jnp.where(jnp.max(jnp.where(finite, a, 0), initial=0) > 2.0**64, jnp.float32(2.0**-32), 1)
        total = tree_sum(jnp.where(finite, a * shift, 0), axes)
        count = jnp.maximum(jnp.sum(finite, axes, keepdims=True, dtype=jnp.int32), 1)
        return divide(total, count.astype(jnp.float32)) / shift

    @custom_vmap
    def lazily(wanted, x):
        shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
        return lax.cond(wanted, mean, lambda x: jnp.zeros(shape, jnp.float32), x)

    @lazily.def_vmap
    def _(size, batched, wanted, x):
        wanted = jnp.any(wanted)
        if not batched[1]:
            return lazily(wanted, x), False
        return mean_magnitude(tuple(a + 1 for a in axes))(wanted, x), True

    return lazily


@lru_cache(maxsize=None)
def percentile(q: float) -> Calibration:
    """The range that leaves out the outermost values: a calibration for :class:`~jaxprune.QuantSpec`.

    Symmetric: the ``q``-th percentile of abs(x). Asymmetric: from the (100 - q)-th to the ``q``-th percentile of x. By
    linear interpolation over the finite entries of each group (a channel, a block), as ``numpy.percentile``; the work is
    a sort. Equal ``q`` give the same object, so nothing recompiles.

    Args:
      q: in (0, 100], percent; 100 is the full range. Static.

    >>> low, high = percentile(75.0)(jnp.arange(5.0), (0,), jnp.int32(8), QuantSpec())
    >>> float(high[0])
    3.0
    """
    if not 0 < q <= 100:
        raise ValueError(f"q must be in (0, 100], got {q!r}")

    def calibrate(x: Array, axes: tuple[int, ...], bits: Array, spec: QuantSpec) -> tuple[Array, Array]:
        del bits
        shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
        if x.size == 0:
            return jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)
        rows = jnp.moveaxis(_rows(x, axes), 0, -1)
        rows, count = _sorted(jnp.abs(rows) if spec.symmetric else rows)
        high = _quantile(rows, count, q).reshape(shape)
        return (-high, high) if spec.symmetric else (_quantile(rows, count, 100 - q).reshape(shape), high)

    return calibrate


def mean_squared_error(candidates: Sequence[float] = tuple(i / 25 for i in range(25, 4, -1))) -> Calibration:
    """The range, among fractions of the full one, whose rounding error is least: a calibration.

    For each group (a channel, a block) takes the ratio r that minimizes the sum of (x - fake_quant(x))**2 over its
    finite entries, with the range [r * low, r * high]; of equal errors, the ratio named first. Work is one read of x for
    each candidate, memory one copy of x whatever their number. Has no say at 1 bit, symmetric, where the scale is the
    mean magnitude. Source: the clipping search of Banner et al. 2019 (arXiv:1810.05723), by trial.

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
    return _mean_squared_error(ratios)


@lru_cache(maxsize=None)
def _mean_squared_error(ratios: tuple[float, ...]) -> Calibration:
    def calibrate(x: Array, axes: tuple[int, ...], bits: Array, spec: QuantSpec) -> tuple[Array, Array]:
        low, high = full_range(x, axes, spec.symmetric)
        rows, (low_, high_) = _rows(x, axes), (end.reshape(-1) for end in (low, high))

        def attempt(i, best):
            ratio = jnp.asarray(ratios, jnp.float32)[i]
            qparams = qparams_of(low_ * ratio, high_ * ratio, bits, spec.symmetric)
            error = _squared_error(rows, *grid(qparams, bits, spec.symmetric))
            return tuple(jnp.where(error < best[0], new, old) for new, old in zip((error, ratio), best, strict=True))

        start = (jnp.full(low_.shape, jnp.inf), jnp.full(low_.shape, jnp.float32(ratios[0])))
        ratio = lax.fori_loop(0, len(ratios), attempt, start)[1].reshape(low.shape)
        return low * ratio, high * ratio

    return calibrate


def _squared_error(rows: Array, *quantizer: Array) -> Array:
    """Sum over the finite entries of each column of (rows - snap(rows))**2, added in a fixed order; shape [K]."""
    count, groups = rows.shape
    lanes = max(1, min(count, _ROWS // max(groups, 1)))
    rows = jnp.pad(rows, ((0, -count % lanes), (0, 0)), constant_values=jnp.nan).reshape(-1, lanes, groups)

    def add(i, total):
        x = rows[i]
        error = jnp.where(jnp.isfinite(x), x - snap(x, *quantizer), 0)
        return total + jnp.minimum(error * error, HUGE)

    return tree_sum(lax.fori_loop(0, rows.shape[0], add, jnp.zeros((lanes, groups))), (0,))[0]


def _rows(x: Array, axes: tuple[int, ...]) -> Array:
    """[R, K]: the reduced ``axes`` flattened first, the kept ones after."""
    kept = [i for i in range(x.ndim) if i not in axes]
    shape = (prod(x.shape[i] for i in axes), prod(x.shape[i] for i in kept))
    return x.transpose(*axes, *kept).reshape(shape)


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
    distance = jnp.minimum(np.float32((100 - q if from_top else q) / 100) * last, last.astype(jnp.float32))
    step = jnp.floor(distance)
    near = jnp.minimum(step.astype(jnp.int32), last)
    ends = (near, jnp.minimum(near + 1, last))
    a, b = (jnp.take_along_axis(rows, (last - i if from_top else i)[:, None], -1)[:, 0] for i in ends)
    gap = jnp.abs(b - a)
    part = jnp.where(distance > step, jnp.minimum((distance - step) * gap, gap), 0)
    return jnp.where(count > 0, a - part if from_top else a + part, 0)
