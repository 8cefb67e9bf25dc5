"""Bits, each with a probability known to both sides, as bytes: a range coder.

The coder is Martin's (1979), as in ``constriction``: 64 bits of state, words of 32 bits, probabilities of 24 bits. Its
words are written the highest byte first, and end with the shortest bytes that give the bits when zeros follow. A chance
is that of a 1, in 65536ths, from 1 to 65535; a 0 takes (65536 - chance) * (2**24 - 2) // 65536 + 1 parts of 2**24.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxprune.files.bytestream import FormatError, constriction
from jaxprune.files.logistic import UNIT

#: ``(chances, truth) -> bits``: writes or reads bits; ``truth`` are the bits, or None where they are read.
Ask = Callable[[np.ndarray, np.ndarray | None], np.ndarray]


def writing() -> tuple[Ask, Callable[[], bytes]]:
    """What takes bits, and what then gives the bytes."""
    chances, bits = [], []

    def ask(chance: np.ndarray, truth: np.ndarray | None) -> np.ndarray:
        chances.append(chance.astype(np.uint16))
        bits.append(np.array(truth, bool))
        return bits[-1]

    return ask, lambda: _written(np.concatenate(chances), np.concatenate(bits))


def reading(data: bytes) -> tuple[Ask, Callable[[], None]]:
    """What gives the bits, and what then sees that no bytes are left."""
    if data and not data[-1]:
        raise FormatError("zeros at the end: damaged")
    queue, model = constriction().stream.queue, _model()
    coder, again = queue.RangeDecoder(_words(data)), queue.RangeEncoder()

    def ask(chance: np.ndarray, truth: np.ndarray | None) -> np.ndarray:
        if not len(chance):
            return np.zeros(0, bool)
        try:
            bits = coder.decode(model, _shares(chance))
        except AssertionError as error:
            raise FormatError("bits that nothing is written as: damaged") from error
        again.encode(bits, model, _shares(chance))
        return bits > 0

    def end() -> None:
        if len(data) > 4 * again.num_words():  # the decoder cannot tell how much it has taken
            raise FormatError("something is left after the last entry: damaged")

    return ask, end


def _written(chances: np.ndarray, bits: np.ndarray) -> bytes:
    """The shortest bytes: those of the coder, as long as one less, or one less and 1 more, still gives the bits."""
    coder = constriction().stream.queue.RangeEncoder()
    shares = _shares(chances)
    coder.encode(bits.astype(np.int32), _model(), shares)
    data = coder.get_compressed().astype(">u4").tobytes().rstrip(b"\0")
    while data:
        at = max(0, len(data) - 9)
        last, places = int.from_bytes(data[at:-1], "big"), len(data) - 1 - at
        for tried in range(last, min(last + 2, 256**places)):
            shorter = (data[:at] + tried.to_bytes(places, "big")).rstrip(b"\0")
            if _gives(shorter, shares, bits):
                data = shorter
                break
        else:
            break
    return data


def _gives(data: bytes, shares: np.ndarray, bits: np.ndarray) -> bool:
    try:
        coder = constriction().stream.queue.RangeDecoder(_words(data))
        return np.array_equal(coder.decode(_model(), shares), bits)
    except AssertionError:  # no bits at all begin so
        return False


def _model() -> Any:
    return constriction().stream.model.Bernoulli(perfect=False)


def _shares(chances: np.ndarray) -> np.ndarray:
    return chances.astype(np.float32) / np.float32(UNIT)


def _words(data: bytes) -> np.ndarray:
    return np.frombuffer(data + bytes(-len(data) % 4), ">u4").astype(np.uint32)
