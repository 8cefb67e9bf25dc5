"""Adaptive coding of sparse and few-bit matrices: every entry by what the entries above and to the left foretell.

The number of entries that are not 0. If there are any: ``top``, the largest of their magnitudes less 1, at most 16,
plus 17 times how many lags there are; each lag as its distance from the one before; if ``top`` is not 0, the mean of
magnitudes in quarters. Then bits (:mod:`jaxprune.files.learning`), with the probabilities of
:mod:`jaxprune.files.wavefront`: which entries are kept (nothing, if all are), signs, and magnitudes less 1.

The mixing of predictions follows Mahoney, "Adaptive weighing of context models for lossless data compression" (Florida
Tech CS-2005-16), with a Newton step (online Bayesian logistic regression) in place of a gradient step.
"""

import math

import numpy as np

from jaxprune.files import wavefront
from jaxprune.files.bytestream import FormatError, Reader, unsigned
from jaxprune.files.learning import Ask, reading, writing
from jaxprune.files.wavefront import LEVELS

_MOST_ENTRIES = 1 << 22
_MOST_STEPS = 8192  # rows and columns
_TOPS = LEVELS + 1
_LAGS = 12
_FARTHEST = 1024
_CLEAR = 12  # nats that a lag must promise
_WORTH = 50  # entries kept, for a bit that lags promise together
_TALLEST = 2048  # rows, when lags are sought


def encode(codes: np.ndarray) -> bytes | None:
    """Codes as bytes; None above 2**22 of them, above 8192 rows and columns together, and for one beyond -17 .. 17."""
    if not codes.size:
        return b""
    if not _takes(codes.shape) or max(-int(codes.min()), int(codes.max())) > _TOPS:
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
    number, top = divmod(reader.unsigned((_LAGS + 1) * _TOPS - 1), _TOPS)
    lags, lag = [], 0
    for _ in range(number):
        gap = reader.unsigned(shape[0])
        lag += gap
        if not gap or lag >= shape[0]:
            raise FormatError(f"a lag of {lag} in {shape[0]} rows: damaged")
        lags.append(lag)
    mean = reader.unsigned(4 * _TOPS) if top else 4
    ask, end = reading(bytes(reader.rest()))
    codes = _walk(ask, np.zeros(shape, np.int32), count, lags, top, mean)
    end()
    return codes


def _takes(shape: tuple[int, ...]) -> bool:
    return math.prod(shape) <= _MOST_ENTRIES and sum(shape) <= _MOST_STEPS


def _walk(ask: Ask, codes: np.ndarray, count: int, lags: list[int], top: int, mean: int) -> np.ndarray:
    """All bits, of the codes or of what is read in their place; the codes that these bits say."""
    mask = np.ones(codes.shape, bool)
    if count < codes.size:
        mask = wavefront.kept(ask, codes != 0, count, lags)
        if mask.sum() != count:
            raise FormatError(f"{mask.sum()} entries are not zero, not {count}: damaged")
    found = wavefront.signs(ask, codes > 0, mask, lags).astype(np.int32)
    return found * (wavefront.magnitudes(ask, np.abs(codes.astype(np.int32)) - 1, mask, lags, top, mean) + 1)


def _encode(codes: np.ndarray, lags: list[int]) -> bytes:
    size = np.abs(codes[codes != 0].astype(np.int32)) - 1
    if not size.size:
        return unsigned(0)
    top, mean = int(size.max()), 4 + round(4 * float(size.mean()))
    numbers = [size.size, top + _TOPS * len(lags), *np.diff([0, *lags]).tolist(), *([mean] if top else [])]
    ask, written = writing()
    _walk(ask, codes, size.size, lags, top, mean)
    return b"".join(map(unsigned, numbers)) + written()


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
