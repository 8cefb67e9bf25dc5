"""How far one array is from another, and what was removed of it. On the host, in float64 and in little memory."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune.checkpoints.inspection import widened
from jaxprune.checkpoints.leaf import chunks


class Difference(NamedTuple):
    """What :func:`compare` finds; numbers of entries, and errors.

    Attributes:
      equal: whether all bytes and the dtype are the same.
      size: entries.
      zeros_before, zeros_after: entries that are 0.
      removed: entries that became 0.
      units_removed: indices along the last axis of which all entries became 0, or stayed it; of rank 2 and more.
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
    units_removed: int
    changed: int
    squared_error: float
    squared_norm: float
    max_error: float

    @property
    def relative_error(self) -> float:
        """The L2 norm of the difference over that of what was before; inf if only that is 0."""
        return relative(self.squared_error, self.squared_norm)


def relative(squared_error: float, squared_norm: float) -> float:
    """The root of a quotient, with 0 for no error and inf for an error of nothing."""
    if squared_error == 0:
        return 0.0
    return math.sqrt(squared_error / squared_norm) if squared_norm else math.inf


def compare(before: np.ndarray, after: np.ndarray) -> Difference:
    """Compares two arrays of one shape.

    Args:
      before: of any dtype of numbers.
      after: of the same shape; perhaps of another dtype.

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
        old, new = _wide(old), _wide(new)
        none, gone = old == 0, new == 0
        same = (old == new) | (np.isnan(old) & np.isnan(new))
        difference = np.abs(np.subtract(old, new, where=~same, out=np.zeros(old.shape, np.result_type(old, new))))
        numbers += [np.count_nonzero(mask) for mask in (none, gone, gone & ~none, ~same)]
        squared_error += float(np.sum(difference**2))
        squared_norm += float(np.sum(np.abs(old[np.isfinite(old)]) ** 2))
        max_error = float(np.maximum(max_error, np.max(difference, initial=0.0)))
    zeros_before, zeros_after, removed, changed = map(int, numbers)
    units = _units_removed(before, after) if before.ndim >= 2 and removed else 0
    return Difference(
        equal, before.size, zeros_before, zeros_after, removed, units, changed, squared_error, squared_norm, max_error
    )


def _wide(part: np.ndarray) -> np.ndarray:
    complexes = jnp.issubdtype(part.dtype, jnp.complexfloating)
    return widened(part).astype(np.complex128 if complexes else np.float64)


def _units_removed(before: np.ndarray, after: np.ndarray) -> int:
    within = tuple(range(before.ndim - 1))
    gone = ~(after != 0).any(axis=within) & (before != 0).any(axis=within)
    return int(np.count_nonzero(gone))
