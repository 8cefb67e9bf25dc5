"""What is in one array: counts, extremes, and what low-bit codes of it would take. On the host, in little memory."""

import hashlib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune.host import chunks, entropy_of_counts
from jaxprune.kernels.rounding import HUGE, TINY

WIDTHS = (8, 4)


class Facts(NamedTuple):
    """What :func:`describe` finds.

    Attributes:
      zeros, nan, inf: entries that are 0 (or -0), NaN, infinite.
      absmax: the largest finite magnitude; 0 of no entries.
      entropy: by width, bits a weight: the empirical entropy of the codes that :func:`jaxprune.quantize` makes with one
        scale, NaN entries left out. Empty for what is not floating.
      dead: by axis, the first (0) and the last (-1), how many indices along it have zeros alone; of arrays of rank 2
        and more that are not zero altogether.
      digest: of the bytes; equal arrays have equal ones.
      constant: whether all entries are one value, or there is none.
    """

    zeros: int
    nan: int
    inf: int
    absmax: float
    entropy: dict[int, float]
    dead: dict[int, int]
    digest: str
    constant: bool

    def fixed_bytes(self, bits: int, size: int) -> int:
        """Bytes of codes of that width for ``size`` entries, and a scale of 4 bytes."""
        return -(-size * bits // 8) + 4

    def coded_bytes(self, bits: int, size: int) -> int:
        """Bytes of these codes at their entropy, rounded up, and a scale of 4 bytes."""
        return int(np.ceil(size * self.entropy[bits] / 8)) + 4


def describe(array: np.ndarray) -> Facts:
    """Counts what is in an array of any dtype of numbers.

    Args:
      array: of any shape; read some times, in pieces.

    Returns:
      :class:`Facts`.

    >>> facts = describe(np.array([[1.0, 0.0], [-2.0, 0.0]], np.float32))
    >>> facts.zeros, facts.absmax, facts.dead, round(facts.entropy[8], 3)  # codes 64, 0, -127, 0
    (2, 2.0, {0: 0, -1: 1}, 1.5)
    """
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    zeros = nan = inf = 0
    absmax, first, constant, digest = 0.0, None, True, hashlib.blake2b(digest_size=16)
    for part in chunks(array):
        digest.update(part.tobytes())
        values = widened(part)
        zeros += part.size - int(np.count_nonzero(values))
        first = values[0] if first is None else first
        constant = constant and bool((values == first).all())
        finite = np.isfinite(values)
        if not finite.all():
            nan += int(np.isnan(values).sum())
            inf += int(np.isinf(values).sum())
            values = values[finite]
        if values.dtype.kind in "iub":  # the magnitude of the least integer would overflow
            values = values.astype(np.float64)
        absmax = max(absmax, float(np.abs(values).max(initial=0)))
    entropy = {bits: code_entropy(array, bits) for bits in WIDTHS} if floating else {}
    ranked = array.ndim >= 2 and floating and zeros < array.size
    dead = {axis: _dead(array, axis) if zeros else 0 for axis in (0, -1)} if ranked else {}
    return Facts(zeros, nan, inf, absmax, entropy, dead, digest.hexdigest(), constant)


def code_entropy(array: np.ndarray, bits: int) -> float:
    """The entropy of the codes in bits a weight: symmetric, one scale, as ``jaxprune.quantize(array, bits)``."""
    largest, counts = np.float32(0), np.zeros(2**bits - 1, np.int64)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for part in chunks(array):
            values = np.abs(part.astype(np.float32))
            largest = np.maximum(largest, values.max(where=np.isfinite(values), initial=0))
        top = np.float32(2 ** (bits - 1) - 1)
        scale = np.minimum(largest, np.float32(HUGE)) / top
        for part in chunks(array):
            values = part.astype(np.float32)
            values = values[~np.isnan(values)]
            codes = np.zeros_like(values) if scale < TINY else np.clip(np.rint(values / scale), -top, top)
            counts += np.bincount(codes.astype(np.int32) + int(top), minlength=len(counts))
    return entropy_of_counts(counts) / max(int(counts.sum()), 1)


def widened(array: np.ndarray) -> np.ndarray:
    """The numbers in a dtype that NumPy computes with; exact."""
    if array.dtype.isbuiltin != 2:  # none of ml_dtypes
        return array
    return array.astype(np.float32 if jnp.issubdtype(array.dtype, jnp.floating) else np.int32)


def _dead(array: np.ndarray, axis: int) -> int:
    rest = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
    return array.shape[axis] - int(np.count_nonzero((array != 0).any(axis=rest)))
