"""How far an array has moved, what was removed of it, and how its values are spread: on the host, in float64."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune.host import chunks

BINS = 64
_REACH = 4  # standard deviations
_LARGEST = float(np.finfo(np.float64).max)


class Difference(NamedTuple):
    """What :func:`compare` finds; numbers of entries, and errors.

    Attributes:
      equal: whether all bytes and the dtype are the same.
      size: entries.
      zeros_before, zeros_after: entries that are 0.
      removed: entries that became 0.
      units_removed: units, of which all entries became 0, or stayed it; ``None`` where it is not known what a unit is.
      changed: entries that differ; NaN in both places is no difference.
      squared_error: the sum of ``(after - before)**2``.
      squared_norm: the sum of ``before**2`` over finite entries.
      max_error: the largest ``abs(after - before)``.
    """

    equal: bool
    size: int
    zeros_before: int
    zeros_after: int
    removed: int
    units_removed: int | None
    changed: int
    squared_error: float
    squared_norm: float
    max_error: float

    @property
    def relative_error(self) -> float:
        """The L2 norm of the difference over that of what was before; inf if only that is 0."""
        return relative(self.squared_error, self.squared_norm)


@dataclass(frozen=True)
class Histogram:
    """The values of one leaf before and after, in 64 bins of equal width.

    Values that are exactly 0 are counted apart: once weights are pruned, one bin would dwarf all others. Values far out
    are counted apart as well: a single one would squeeze all others into few bins.

    Attributes:
      low: lower edge of the first bin: the smallest value, or the mean less 4 standard deviations, of the finite values
        other than 0, before and after taken together.
      high: upper edge of the last bin, which belongs to it: the largest value, or as far above the mean.
      before: entries in each bin, before; empty where no finite value other than 0 is.
      after: entries in each bin, after; likewise.
      beyond: finite entries below ``low`` or above ``high``, before and after.
      zeros: entries that are 0, before and after.
      not_finite: entries that are NaN or infinite, before and after.
    """

    low: float
    high: float
    before: tuple[int, ...]
    after: tuple[int, ...]
    beyond: tuple[int, int]
    zeros: tuple[int, int]
    not_finite: tuple[int, int]

    @property
    def edges(self) -> np.ndarray:
        """The edges of the bins, one more than bins: float64."""
        return _edges(self.low, self.high, len(self.before))


def _edges(low: float, high: float, bins: int) -> np.ndarray:
    """Edges of equal bins, which neither overflow nor run backwards, however large, small or near the two ends are."""
    share = np.arange(bins + 1) / max(bins, 1)
    return np.minimum(np.maximum.accumulate(low * (1 - share) + high * share), high)


def relative(squared_error: float, squared_norm: float) -> float:
    """The root of a quotient, with 0 for no error and inf for an error of nothing."""
    if squared_error == 0:
        return 0.0
    return math.sqrt(squared_error / squared_norm) if squared_norm else math.inf


def compare(before: np.ndarray, after: np.ndarray, inputs: tuple[int, ...] | None = None) -> Difference:
    """Compares two arrays of one shape.

    Args:
      before: of any dtype of numbers.
      after: of the same shape; perhaps of another dtype.
      inputs: the axes that a unit spans; ``None`` where they are not known.

    Returns:
      A :class:`Difference`.

    >>> found = compare(np.array([3.0, -4.0, 0.0]), np.array([3.0, 0.0, 0.0]))
    >>> found.removed, found.zeros_after, found.relative_error, found.max_error
    (1, 2, 0.8, 4.0)
    """
    equal, numbers = before.dtype == after.dtype, np.zeros(4, np.int64)
    squared_error = squared_norm = max_error = 0.0
    for old, new in zip(chunks(before), chunks(after), strict=True):
        equal = equal and old.tobytes() == new.tobytes()
        old, new = wide(old), wide(new)
        none, gone = old == 0, new == 0
        same = (old == new) | (np.isnan(old) & np.isnan(new))
        difference = np.abs(np.subtract(old, new, where=~same, out=np.zeros(old.shape, np.result_type(old, new))))
        numbers += [np.count_nonzero(mask) for mask in (none, gone, gone & ~none, ~same)]
        squared_error += float(np.sum(difference**2))
        squared_norm += float(np.sum(np.abs(old[np.isfinite(old)]) ** 2))
        max_error = float(np.maximum(max_error, np.max(difference, initial=0.0)))
    was, now, removed, changed = map(int, numbers)  # zeros first
    units = None if inputs is None else _units_removed(before, after, inputs) if before.ndim >= 2 and removed else 0
    return Difference(equal, before.size, was, now, removed, units, changed, squared_error, squared_norm, max_error)


def histogram(before: np.ndarray, after: np.ndarray) -> Histogram | None:
    """The values of both in the same bins; None of what is not floating."""
    if not (jnp.issubdtype(before.dtype, jnp.floating) and jnp.issubdtype(after.dtype, jnp.floating)):
        return None
    low, high, some = _range(before, after)
    bins = _edges(low, high, BINS if some else 0)
    (was, *apart), (now, *apart_now) = _counts(before, bins), _counts(after, bins)
    beyond, zeros, not_finite = zip(apart, apart_now, strict=True)
    return Histogram(low, high, was, now, beyond, zeros, not_finite)


def _range(*arrays: np.ndarray) -> tuple[float, float, bool]:
    """From the smallest to the largest shown value, unless that is far from the mean; False if there is no value."""
    shown = (_shown(block) for array in arrays for block in map(wide, chunks(array)))
    with np.errstate(over="ignore", invalid="ignore"):
        parts = np.array([(x.size, x.min(), x.max(), x.mean(), x.var()) for x in shown if x.size]).T
        if not parts.size:
            return 0.0, 0.0, False
        weights, lows, highs, means, variances = parts
        share = weights / weights.sum()
        mean = share @ means
        reach = _REACH * np.sqrt(share @ (variances + (means - mean) ** 2))
        # fmax and fmin take the other one where values near the largest float have made a sum overflow.
        low, high = float(np.fmax(lows.min(), mean - reach)), float(np.fmin(highs.max(), mean + reach))
    if low < high:
        return low, high, True
    return max(low - abs(low) / 2, -_LARGEST), min(high + abs(high) / 2, _LARGEST), True  # a constant, in the middle


def _counts(array: np.ndarray, bins: np.ndarray) -> tuple[tuple[int, ...], int, int, int]:
    """Entries in each bin, beyond them, that are 0 and that are not finite."""
    total, finite, zeros = np.zeros(len(bins) - 1, np.int64), 0, 0
    for block in map(wide, chunks(array)):
        shown = _shown(block)
        finite += shown.size
        zeros += block.size - int(np.count_nonzero(block))
        if len(bins) > 1:
            total += np.histogram(shown, bins)[0]
    return tuple(total.tolist()), finite - int(total.sum()), zeros, array.size - zeros - finite


def _shown(block: np.ndarray) -> np.ndarray:
    """The finite values other than 0."""
    return block[np.isfinite(block) & (block != 0)]


def wide(part: np.ndarray) -> np.ndarray:
    """The numbers in a dtype that NumPy computes with."""
    return part.astype(np.complex128 if jnp.issubdtype(part.dtype, jnp.complexfloating) else np.float64)


def _units_removed(before: np.ndarray, after: np.ndarray, within: tuple[int, ...]) -> int:
    gone = ~(after != 0).any(axis=within) & (before != 0).any(axis=within)
    return int(np.count_nonzero(gone))
