"""How often each value occurs among many codes: exactly, or about, by a sample."""

import math
from functools import cache

import numpy as np

MOST = 2**16  # distinct values that are counted
EVERY = 7  # entries, of which a sample takes one
_SPAN = 2**22  # of values that are counted by address
_AT_ONCE = 1 << 18  # entries that are counted together, at least
_MANY = 1 << 17  # entries of which a sample is counted, each
_NARROW = 1 << 12  # range of values for that
_UNSEEN = 10_000  # entries, for each of which the sample may miss a value: these then take a thousandth of all
_PLACES = 1 << 15  # of a sample that are looked up together


def histogram(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The distinct values (int32, ascending) and their counts (int64); None if there are none or more than 65536."""
    flat = codes.reshape(-1)
    if not flat.size:
        return None
    low, high = int(flat.min()), int(flat.max())
    if high - low >= min(_SPAN, 4 * flat.size + 1024):
        if len(np.unique(flat[: 2 * MOST])) > MOST:
            return None
        symbols, counts = np.unique(flat, return_counts=True)
    else:
        counts = np.zeros(high - low + 1, np.int64)
        stretch = max(_AT_ONCE, len(counts))
        for at in range(0, flat.size, stretch):
            counts += np.bincount(flat[at : at + stretch].astype(np.int64) - low, minlength=len(counts))
        present = np.flatnonzero(counts)
        symbols, counts = (present + low).astype(np.int32), counts[present]
    return (symbols, counts) if len(symbols) <= MOST else None


def entropy(codes: np.ndarray) -> float:
    """Bits of all codes by how often each occurs; infinite where more than 65536 are distinct."""
    counted = histogram(codes)
    if counted is None:
        return math.inf if codes.size else 0.0
    return float((counted[1] * np.log2(codes.size / counted[1])).sum())


def sample(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """About how often each integer of a range occurs, once at least; None where that is not much like a histogram.

    One in seven of many codes says enough: that it is not exact costs some bytes, and counting all takes time.
    """
    if flat.size < _MANY:
        return None
    low, high = int(flat.min()), int(flat.max())
    if high - low >= _NARROW:
        return None
    places, counts = _sample_places(), np.zeros(high - low + 1, np.int64)
    for at in range(0, flat.size - EVERY, EVERY * len(places)):
        some = flat[at : at + EVERY * len(places)]
        found = some[places[: len(some) // EVERY]]
        counts += np.bincount(found.astype(np.int64) - low, minlength=len(counts))
    if np.count_nonzero(counts == 0) > flat.size // _UNSEEN:
        return None
    return np.arange(low, high + 1, dtype=np.int32), np.maximum(counts, 1)


@cache
def _sample_places() -> np.ndarray:
    """One place of each seven in a row, with no period, as the columns of a matrix have one."""
    numbers = np.arange(_PLACES, dtype=np.uint32)
    return numbers.astype(np.int64) * EVERY + (numbers * np.uint32(2654435769) >> np.uint32(16)) % EVERY
