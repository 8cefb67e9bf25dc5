"""Adaptive coding of sparse and few-bit matrices: every entry by what the entries above and to the left foretell.

The number of entries that are not 0. If there are any: ``top``, plus 17 if there are lags, plus 34 if there is a shift;
how many lags, and each as its distance from the one before; the shift; if ``top`` is not 0, the mean of magnitudes in
quarters. Then bits (:mod:`jaxprune.files.learning`), with the probabilities of
:mod:`jaxprune.files.wavefront`: which entries are kept (nothing, if all are), signs, and of all magnitudes less 1,
shifted right, up to ``top``. Then, each with probability 1/2: of those that reach 16, row by row, how much they are
beyond (Elias' gamma code of 1 more: the places after the first in unary, then the lower bits, bit by bit for all), and
the bits shifted out, the lowest of all first.

The mixing of predictions follows Mahoney, "Adaptive weighing of context models for lossless data compression" (Florida
Tech CS-2005-16), with a Newton step (online Bayesian logistic regression) in place of a gradient step.
"""

import math

import numpy as np

from jaxprune.files import wavefront
from jaxprune.files.bytestream import FormatError, Reader, unsigned
from jaxprune.files.learning import UNIT, Ask, reading, writing
from jaxprune.files.wavefront import LEVELS

_MOST_ENTRIES = 1 << 22
_MOST_STEPS = 8192  # rows and columns
_LAGGED, _SHIFTED = LEVELS + 1, 2 * (LEVELS + 1)
_LAGS = 12
_FARTHEST = 1024
_CLEAR = 12  # nats that a lag must promise
_WORTH = 50  # entries kept, for a bit that lags promise together
_TALLEST = 2048  # rows, when lags are sought


def encode(codes: np.ndarray) -> bytes | None:
    """Codes as bytes; None above 2**22 of them, or above 8192 rows and columns together."""
    if not codes.size:
        return b""
    if not _takes(codes.shape):
        return None
    lags, alone = _lags(codes), _encode(codes, [])
    return min(alone, _encode(codes, lags), key=len) if lags else alone


def decode(data: bytes | memoryview, shape: tuple[int, int]) -> np.ndarray:
    """The codes that ``encode`` made ``data`` of, int32 of that shape."""
    reader, size = Reader(data), math.prod(shape)
    if size and not _takes(shape):
        raise FormatError(f"{shape} entries are more than this coder takes")
    count = reader.unsigned(size) if size else 0
    if not count:
        reader.end()
        return np.zeros(shape, np.int32)
    settings = _read_settings(reader, shape)
    ask, end = reading(bytes(reader.rest()))
    codes = _walk(ask, np.zeros(shape, np.int32), count, *settings)
    end()
    return codes


def _takes(shape: tuple[int, ...]) -> bool:
    return math.prod(shape) <= _MOST_ENTRIES and sum(shape) <= _MOST_STEPS


# ---------------------------------------------------------------------------------------------------------------------
# Both ways


def _walk(ask: Ask, codes: np.ndarray, count: int, lags: list[int], *sizes: int) -> np.ndarray:
    """All bits, of the codes or of what is read in their place; the codes that these bits say."""
    mask = np.ones(codes.shape, bool)
    if count < codes.size:
        mask = wavefront.kept(ask, codes != 0, count, lags)
        if mask.sum() != count:
            raise FormatError(f"{mask.sum()} entries are not zero, not {count}: damaged")
    sign = wavefront.signs(ask, codes > 0, mask, lags)
    found = (_sizes(ask, np.abs(codes.astype(np.int64)) - 1, mask, lags, *sizes) + 1) * sign[mask]
    if not -(2**31) <= found.min() <= found.max() < 2**31:
        raise FormatError("an entry beyond 32 bits: damaged")
    out = np.zeros(codes.shape, np.int32)
    out[mask] = found
    return out


def _sizes(
    ask: Ask, size: np.ndarray, mask: np.ndarray, lags: list[int], top: int, shift: int, mean: int
) -> np.ndarray:
    """Magnitudes less 1 of the entries that are not zero, row by row."""
    found, truth = np.zeros(int(mask.sum()), np.int64), size[mask]
    if top:
        found += wavefront.magnitudes(ask, np.minimum(size >> shift, LEVELS), mask, lags, top, mean)[mask]
    beyond = np.flatnonzero(found == LEVELS)
    found[beyond] += _beyond(ask, (truth[beyond] >> shift) - LEVELS)
    found <<= shift
    for place in range(shift):
        found += _fair(ask, truth >> place & 1).astype(np.int64) << place
    return found


def _fair(ask: Ask, truth: np.ndarray) -> np.ndarray:
    return ask(np.full(len(truth), UNIT / 2), truth > 0)


def _beyond(ask: Ask, truth: np.ndarray) -> np.ndarray:
    """Numbers of at least 0."""
    places, alive = np.zeros(len(truth), np.int64), np.arange(len(truth))
    for place in range(1, 33):
        alive = alive[_fair(ask, (truth[alive] + 1) >> place)]
        places[alive] = place
    numbers = np.ones(len(truth), np.int64)
    for place in range(places.max(initial=0) - 1, -1, -1):
        at = np.flatnonzero(places > place)
        numbers[at] = 2 * numbers[at] + _fair(ask, (truth[at] + 1) >> place & 1)
    return numbers - 1


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def _encode(codes: np.ndarray, lags: list[int]) -> bytes:
    count = int(np.count_nonzero(codes))
    if not count:
        return unsigned(0)
    top, shift, mean = _settings(codes)
    numbers = [count, top + _LAGGED * bool(lags) + _SHIFTED * bool(shift)]
    numbers += [len(lags), *np.diff([0, *lags]).tolist()] if lags else []
    numbers += ([shift] if shift else []) + ([mean] if top else [])
    ask, written = writing()
    _walk(ask, codes, count, lags, top, shift, mean)
    return b"".join(map(unsigned, numbers)) + written()


def _settings(codes: np.ndarray) -> tuple[int, int, int]:
    """Levels, low bits apart, mean of the levels in quarters."""
    size = np.abs(codes[codes != 0].astype(np.int64)) - 1
    usual = int(np.partition(size, len(size) * 31 // 32)[len(size) * 31 // 32])
    shift = max(0, usual.bit_length() - (LEVELS - 1).bit_length())
    levels = np.minimum(size >> shift, LEVELS)
    return int(levels.max()), shift, 4 + round(4 * float(levels.mean()))


def _lags(codes: np.ndarray) -> list[int]:
    """The distances of rows that resemble each other in what they keep and in signs, more than other rows do."""
    rows, columns = codes.shape
    farthest = min(rows - 1, _FARTHEST)
    if rows > _TALLEST or farthest < 2:
        return []
    sign = np.sign(codes).astype(np.float32)
    mask = np.abs(sign)
    both, agree = mask @ mask.T, sign @ sign.T
    own = mask.sum(1)
    far = range(1, farthest + 1)
    common, same = (np.array([np.trace(x, d) for d in far], np.float64) for x in (both, agree))
    chance = np.array([np.dot(own[d:], own[:-d]) for d in far], np.float64) / columns
    common_gap = common - chance * np.median(common / np.maximum(chance, 1e-9))
    same_gap = same - common * np.median(same / np.maximum(common, 1e-9))
    promise = np.maximum(common_gap, 0) ** 2 / (chance + 1) / 2 + same_gap**2 / (common + 1) / 2
    best = np.argsort(-promise, kind="stable")[:_LAGS]
    best = best[promise[best] > _CLEAR]
    if promise[best].sum() * _WORTH < math.log(2) * mask.sum():
        return []
    return sorted(int(k) + 1 for k in best)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def _read_settings(reader: Reader, shape: tuple[int, int]) -> tuple[list[int], int, int, int]:
    rest, top = divmod(reader.unsigned(LEVELS + _LAGGED + _SHIFTED), _LAGGED)
    lags, lag = [], 0
    for _ in range(reader.unsigned(_LAGS) if rest % 2 else 0):
        gap = reader.unsigned(shape[0])
        lag += gap
        if not gap or lag >= shape[0]:
            raise FormatError(f"a lag of {lag} in {shape[0]} rows: damaged")
        lags.append(lag)
    shift = reader.unsigned(31) if rest > 1 else 0
    return lags, top, shift, reader.unsigned(4 * LEVELS + 4) if top else 4
