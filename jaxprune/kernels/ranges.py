"""How a quantizer finds its range: full, by percentile, by mean squared error; and the mean magnitude of 1-bit codes.

Ranges look at finite entries only, over ``axes``, and keep those axes with size 1. The functions that end up in
``QuantSpec.calibration`` have the signature ``(x, axes, bits, spec) -> (low, high)`` with float32 ``x``, in which the
entries that fill up a last, shorter block are NaN, and int32 ``bits``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from jaxprune.base import Array, Calibration, QuantSpec
from jaxprune.kernels.histogram import histogram
from jaxprune.kernels.rounding import HUGE, divide, grid, qparams_of, snap

_LANES = 2**14  # sums that the mean magnitude is made of
_ROWS = 8192  # entries that a step of a streaming loop works on
_LARGE = 2**20  # entries from which a copy is worth avoiding
_FOLD = 16  # entries that a short reduction takes


def full_range(x: Array, axes: tuple[int, ...], symmetric: bool) -> tuple[Array, Array]:
    """Finite extremes over ``axes`` and 0, float32: (-m, m) with m = max abs(x), or (min, max)."""
    if symmetric:
        high = _largest(x, axes, jnp.abs)
        return -high, high
    return -_largest(x, axes, jnp.negative), _largest(x, axes, lambda x: x)


def _largest(x: Array, axes: tuple[int, ...], of: Callable[[Array], Array]) -> Array:
    """The largest finite ``of(x)``, at least 0, over ``axes``, float32."""

    def plain(x):
        return jnp.max(jnp.where(jnp.isfinite(x), of(x), 0), axes, keepdims=True, initial=0)

    def folded(x):
        # XLA's fast CPU reductions lose maxima next to a NaN, and write out an array that is masked first. A reduction
        # over a few entries is compiled into the loop that masks, as long as it compares integers; so one read is left.
        axis = max(axes, key=lambda i: x.shape[i])
        size = x.shape[axis] // _FOLD
        head, tail = jnp.split(x, [size * _FOLD], axis)
        head = head.reshape(*x.shape[:axis], _FOLD, size, *x.shape[axis + 1 :])
        found = [jnp.max(_finite_bits(of(part)), axis, keepdims=part is tail) for part in (head, tail) if part.size]
        found = [jnp.max(lax.bitcast_convert_type(part, x.dtype), axes, keepdims=True) for part in found]
        return jnp.max(jnp.stack(found), 0)

    long = x.size >= _LARGE and max((x.shape[i] for i in axes), default=0) >= _FOLD and x.dtype.itemsize > 1
    high = lax.platform_dependent(x, cpu=folded, default=plain) if long else plain(x)
    return high.astype(jnp.float32)


def _finite_bits(x: Array) -> Array:
    """The bit patterns of positive finite entries, as signed integers, which sort like the numbers; 0 for others."""
    kind = np.dtype(f"int{x.dtype.itemsize * 8}")
    bits = lax.bitcast_convert_type(x, kind)
    return jnp.where((bits >= 0) & (bits < np.asarray(np.inf, x.dtype).view(kind)), bits, kind.type(0))


@cache
def mean_magnitude(axes: tuple[int, ...]):
    """``(wanted, x, high) -> mean abs(x)`` over the finite entries along ``axes``, float32, or zeros where not wanted.

    ``high`` is their largest magnitude. A whole read that only 1-bit codes need, so it happens under a ``cond`` that a
    sweep over bits leaves unbatched.
    """

    @jax.jit  # traced once, though the rule below meets it again
    def mean(x, high):
        shift = jnp.where(jnp.max(high) > 2.0**64, jnp.float32(2.0**-32), 1)  # against overflow; exact
        lane = _Lane(x.shape, axes)
        parts = histogram(x, (shift,), lane, lane.groups * lane.lanes, _finite_magnitude)
        total = _tree_sum(parts.reshape(lane.groups, lane.lanes)).reshape(high.shape)
        count = jnp.sum(jnp.isfinite(x), axes, dtype=jnp.int32, keepdims=True).astype(jnp.float32)
        return divide(total, jnp.maximum(count, 1)) / shift

    @custom_vmap
    def lazily(wanted, x, high):
        return lax.cond(wanted, mean, lambda x, high: jnp.zeros_like(high), x, high)

    @lazily.def_vmap
    def _(size, batched, wanted, x, high):
        wanted = jnp.any(wanted)
        if not batched[1]:
            return lazily(wanted, x, high.max(0) if batched[2] else high), False
        high = high if batched[2] else jnp.broadcast_to(high, (size, *high.shape))
        return mean_magnitude(tuple(a + 1 for a in axes))(wanted, x, high), True

    return lazily


def _finite_magnitude(values: Array, shift: Array) -> Array:
    return jnp.where(jnp.isfinite(values), jnp.abs(values.astype(jnp.float32)) * shift, 0)


@dataclass(frozen=True)
class _Lane:
    """Sends each entry to one of the lanes of its group: sums that are short, and in one order in every program."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def groups(self) -> int:
        return prod(n for i, n in enumerate(self.shape) if i not in self.axes)

    @property
    def lanes(self) -> int:
        return 1 << max(0, (_LANES // max(self.groups, 1)).bit_length() - 1)

    def __call__(self, values: Array, index: Array, shift: Array) -> Array:
        numbers = {True: jnp.zeros_like(index), False: jnp.zeros_like(index)}  # of the entry in its group; of the group
        for i, n in enumerate(self.shape):
            coordinate = (index // np.uint32(prod(self.shape[i + 1 :]))) % np.uint32(n)
            numbers[i in self.axes] = numbers[i in self.axes] * np.uint32(n) + coordinate
        return numbers[False] * np.uint32(self.lanes) + numbers[True] % np.uint32(self.lanes)


def _tree_sum(rows: Array) -> Array:
    """The sum of each row, of a power of two entries, in halves."""
    while rows.shape[1] > 1:
        rows = rows[:, : rows.shape[1] // 2] + rows[:, rows.shape[1] // 2 :]
    return rows[:, 0]


def percentile(q: float) -> Calibration:
    """The range that leaves out the outermost values: a calibration for :class:`~jaxprune.QuantSpec`.

    Symmetric: the ``q``-th percentile of abs(x). Asymmetric: from the (100 - q)-th to the ``q``-th percentile of x. By
    linear interpolation over the finite entries of each group (a channel, a block), as ``numpy.percentile``; the work
    is a sort. Equal ``q`` give the same object, so nothing recompiles.

    Args:
      q: in (0, 100], percent; 100 is the full range. Static.

    >>> low, high = percentile(75.0)(jnp.arange(5.0), (0,), jnp.int32(8), QuantSpec())
    >>> float(high[0])
    3.0
    """
    if not 0 < q <= 100:
        raise ValueError(f"q must be in (0, 100], got {q!r}")
    return _percentile(float(q))


@cache
def _percentile(q: float) -> Calibration:
    def calibrate(x: Array, axes: tuple[int, ...], bits: Array, spec: QuantSpec) -> tuple[Array, Array]:
        del bits
        shape = _kept_shape(x, axes)
        if x.size == 0:
            return jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)
        kept = [i for i in range(x.ndim) if i not in axes]
        rows = x.transpose(*kept, *axes).reshape(prod(shape), -1)
        rows, count = _sorted(jnp.abs(rows) if spec.symmetric else rows)
        high = _quantile(rows, count, q).reshape(shape)
        return (-high, high) if spec.symmetric else (_quantile(rows, count, 100 - q).reshape(shape), high)

    return calibrate


def mean_squared_error(candidates: Sequence[float] = tuple(i / 25 for i in range(25, 4, -1))) -> Calibration:
    """The range, among fractions of the full one, whose rounding error is least: a calibration.

    For each group (a channel, a block) takes the ratio r that minimizes the sum of (x - fake_quant(x))**2 over its
    finite entries, with the range [r * low, r * high]; of equal errors, the ratio named first. Work is one read of x
    for each candidate, memory one copy of x whatever their number. Has no say at 1 bit, symmetric, where the scale is
    the mean magnitude. Equal candidates give the same object. Source: the clipping of Banner et al. 2019
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
    return _mean_squared_error(ratios)


@cache
def _mean_squared_error(ratios: tuple[float, ...]) -> Calibration:
    def calibrate(x: Array, axes: tuple[int, ...], bits: Array, spec: QuantSpec) -> tuple[Array, Array]:
        low, high = full_range(x, axes, spec.symmetric)
        low_, high_ = low.reshape(-1), high.reshape(-1)

        def attempt(i, best):
            ratio = jnp.asarray(ratios, jnp.float32)[i]
            qparams = qparams_of(low_ * ratio, high_ * ratio, bits, spec.symmetric)
            quantizer = grid(qparams, bits, spec.symmetric)

            def squared(row):
                error = jnp.where(jnp.isfinite(row), row - snap(row, *quantizer), 0)
                return jnp.minimum(error * error, HUGE)

            error = _ordered_sum(x, axes, squared)
            return tuple(jnp.where(error < best[0], new, old) for new, old in zip((error, ratio), best, strict=True))

        start = (jnp.full(low_.shape, jnp.inf), jnp.full(low_.shape, jnp.float32(ratios[0])))
        ratio = lax.fori_loop(0, len(ratios), attempt, start)[1].reshape(low.shape)
        return low * ratio, high * ratio

    return calibrate


def _ordered_sum(x: Array, axes: tuple[int, ...], term: Callable[[Array], Array]) -> Array:
    """The sum over ``axes`` of ``term(row)``, rows [lanes, K] in float32, 0 at NaN; shape [K], K the number of groups.

    Compensated, and in one order in every program, so that what it decides is the same bits everywhere. A loop, so that
    no copy of x is made whatever ``term`` computes; lanes is a power of two.
    """
    groups, kept = _groups(x, axes), [i for i in range(x.ndim) if i not in axes]
    count = prod(x.shape[i] for i in axes)
    lanes = 1 << (max(1, min(count, _ROWS // max(groups, 1))).bit_length() - 1)
    rows = x.transpose(*axes, *kept).reshape(count, groups)
    rows = jnp.pad(rows, ((0, -count % lanes), (0, 0)), constant_values=jnp.nan).reshape(-1, lanes, groups)

    def add(i, sums):
        total, rest = sums
        value = term(rows[i].astype(jnp.float32)) + rest
        new = total + value
        return new, value - (new - total)

    total, rest = lax.fori_loop(0, rows.shape[0], add, (jnp.zeros((lanes, groups), jnp.float32),) * 2)
    return _tree_sum((total + rest).T)


def _groups(x: Array, axes: tuple[int, ...]) -> int:
    return prod(_kept_shape(x, axes))


def _kept_shape(x: Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if i in axes else n for i, n in enumerate(x.shape))


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
