"""How far a leaf has moved, and how its values are spread: in float64, block by block, so that memory stays small."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from jaxprune.reports.rows import Histogram, edges

BINS = 64
_REACH = 4  # standard deviations
_BLOCK = 2**18  # entries, 2 MB in float64
_LARGEST = float(np.finfo(np.float64).max)


def errors(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """Sum of squared differences, sum of squares before, largest difference. NaN in both places is no difference."""
    squares, norms, largest = [], [], [0.0]
    for old, new in zip(_blocks(before), _blocks(after), strict=True):
        same = (old == new) | (np.isnan(old) & np.isnan(new))
        difference = np.abs(np.subtract(old, new, where=~same, out=np.zeros_like(old)))
        squares.append(np.sum(difference**2))
        norms.append(np.sum(np.abs(old[np.isfinite(old)]) ** 2))
        largest.append(np.max(difference))
    return float(np.sum(squares)), float(np.sum(norms)), float(np.max(largest))


def histogram(before: np.ndarray, after: np.ndarray) -> Histogram | None:
    """The values of both in the same bins; None of what is not floating."""
    if not (jnp.issubdtype(before.dtype, jnp.floating) and jnp.issubdtype(after.dtype, jnp.floating)):
        return None
    low, high, some = _range(before, after)
    bins = edges(low, high, BINS if some else 0)
    (was, *apart), (now, *apart_now) = _counts(before, bins), _counts(after, bins)
    beyond, zeros, not_finite = zip(apart, apart_now, strict=True)
    return Histogram(low, high, was, now, beyond, zeros, not_finite)


def _range(*arrays: np.ndarray) -> tuple[float, float, bool]:
    """From the smallest to the largest shown value, unless that is far from the mean; False if there is no value."""
    shown = (_shown(block) for array in arrays for block in _blocks(array))
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
    for block in _blocks(array):
        shown = _shown(block)
        finite += shown.size
        zeros += block.size - int(np.count_nonzero(block))
        if len(bins) > 1:
            total += np.histogram(shown, bins)[0]
    return tuple(total.tolist()), finite - int(total.sum()), zeros, array.size - zeros - finite


def _shown(block: np.ndarray) -> np.ndarray:
    """The finite values other than 0."""
    return block[np.isfinite(block) & (block != 0)]


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    wide = np.complex128 if jnp.issubdtype(array.dtype, jnp.complexfloating) else np.float64
    flat = array.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        yield flat[start : start + _BLOCK].astype(wide)
