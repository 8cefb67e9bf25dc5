"""Bits whose probabilities are learned as they are coded, the same to the last bit on every machine.

Probabilities by logistic regression on integers: a feature is an integer number of 1024ths, a weight of 65536ths, a
probability of 65536ths. Integers are held in float64 arrays and every sum of products stays below 2**53: whatever the
order in which a library adds, it is exact. The only roundings are single operations on single numbers, as IEEE 754
defines them.

Bits as bytes by a range coder: Martin's (1979), as in ``constriction``, with 64 bits of state, words of 32 bits,
probabilities of 24 bits. Its words are written the highest byte first, and end with the shortest bytes that give the
bits when zeros follow. A chance is that of a 1, in 65536ths, from 1 to 65535; a 0 takes
(65536 - chance) * (2**24 - 2) // 65536 + 1 parts of 2**24.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxprune.files.bytestream import FormatError, constriction, words

ONE = 1 << 10  # a feature of 1
UNIT = 1 << 16  # a probability of 1, and a weight of 1
MOST = 12 * ONE  # of a feature, either sign
_SURE = 11 * 256  # log-odds in 256ths: nothing is surer
_HEAVIEST = 32 * UNIT
_BITS = 11  # of a mantissa, for its logarithm
_FINE = 20  # binary places of a logarithm
_PATIENCE = 16  # the weights move after every 16th part of what they have seen


#: ``(chances, truth) -> bits``: writes the bits ``truth``, or reads as many.
Ask = Callable[[np.ndarray, np.ndarray], np.ndarray]

# What is rounded is at least 1e-4 away from where it would be rounded otherwise: all libraries agree on it.
# Logarithms of the mantissas (2**11 + k + 1/2) / 2**12, k below 2**11, in 2**-20ths, rounded down, and of 2; and the
# logistic function of -11 .. 11 in 256ths, in 65536ths.
_LOGARITHMS = -1 - np.floor(2.0**_FINE * np.log(8192 / np.arange(4097, 8192, 2)))
_LOGARITHM_OF_2 = 726817
_UPPER = np.rint(UNIT / (1 + np.exp(-np.arange(_SURE + 1) / 256)))
_SIGMOIDS = np.clip(np.concatenate([UNIT - _UPPER[:0:-1], _UPPER]), 1, UNIT - 1)


def log(numbers: np.ndarray) -> np.ndarray:
    """Natural logarithms of integers in [1, 2**53), as integers in 2**-20ths (from 11 bits of the mantissa)."""
    mantissa, exponent = np.frexp(numbers)
    return _LOGARITHMS[(mantissa * (2 << _BITS)).astype(np.int64) - (1 << _BITS)] + exponent * _LOGARITHM_OF_2


def log_ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """log(over / under) as a feature, for integers of at least 1."""
    return np.floor((log(over) - log(under)) / (1 << (_FINE - 10)))


class Mixer:
    """Weights of features, learned as they are used: one Newton step of Bayesian logistic regression at a time.

    ``weights`` are where they start, ``stiffness`` says how sure of that we are (an inverse variance).
    """

    def __init__(self, weights: list[float], stiffness: list[float]):
        self.weights = np.floor(np.array(weights) * UNIT)
        self.curvature = np.diag(np.array(stiffness, np.float64))
        self.slope = np.zeros(len(weights))
        self.seen = self.waiting = 0

    def bits(self, ask: Ask, features: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """The bits of entries with features [features, entries], which are learned from."""
        features = clip(features, MOST)
        chances = squash(self.weights @ features)
        bits = ask(chances, truth)
        self.learn(features, bits, chances)
        return bits

    def learn(self, features: np.ndarray, bits: np.ndarray, chances: np.ndarray) -> None:
        """``bits`` are what came out where ``chances`` were given. At most 2**11 entries with |features| up to MOST."""
        self.slope += (features @ (bits * UNIT - chances)) / (ONE * UNIT)
        spread = np.floor(chances * (UNIT - chances) / UNIT) + 1
        self.curvature += ((features * spread) @ features.T) / (ONE * ONE * UNIT)
        self.seen += len(bits)
        self.waiting += len(bits)
        if self.waiting * _PATIENCE >= self.seen:
            step = np.rint(solve(self.curvature, self.slope) * UNIT)
            self.weights = clip(self.weights + step, _HEAVIEST)
            self.slope = np.zeros_like(self.slope)
            self.waiting = 0


def squash(sums: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) in 65536ths, in 1..65535, for x in 2**-26ths (a feature times a weight), rounded to 256ths."""
    steps = np.floor((sums + (1 << 17)) / (1 << 18))
    return _SIGMOIDS[clip(steps, _SURE).astype(np.int64) + _SURE]


def clip(numbers: np.ndarray, most: int) -> np.ndarray:
    """Numbers no larger than ``most``, either sign (np.clip takes four times as long on few)."""
    return np.minimum(np.maximum(numbers, -most), most)


def solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """x of ``matrix`` x = ``right``, positive definite, by Gauss and Jordan: column by column, without pivots."""
    rows = np.concatenate([matrix, right[:, None]], 1)
    for i in range(len(right)):
        factors = rows[:, i] / rows[i, i]
        factors[i] = 0
        rows -= factors[:, None] * rows[i]
    return rows[:, -1] / np.diagonal(rows)


# ---------------------------------------------------------------------------------------------------------------------
# Bits as bytes


def writing() -> tuple[Ask, Callable[[], bytes]]:
    """What takes bits, and what then gives the bytes."""
    chances, bits = [], []

    def ask(chance: np.ndarray, truth: np.ndarray) -> np.ndarray:
        chances.append(chance.astype(np.uint16))
        bits.append(np.array(truth, bool))
        return bits[-1]

    return ask, lambda: _written(np.concatenate(chances), np.concatenate(bits))


def reading(data: bytes) -> tuple[Ask, Callable[[], None]]:
    """What gives the bits, and what then sees that no bytes are left."""
    queue, model = constriction().stream.queue, _model()
    coder, again = queue.RangeDecoder(words(data, ">")), queue.RangeEncoder()

    def ask(chance: np.ndarray, truth: np.ndarray) -> np.ndarray:
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
    """The coder's bytes, rounded up to fewer of them as long as these still give the bits."""
    coder, shares = constriction().stream.queue.RangeEncoder(), _shares(chances)
    coder.encode(bits.astype(np.int32), _model(), shares)
    data = shorter = coder.get_compressed().astype(">u4").tobytes().rstrip(b"\0")
    while shorter and _gives(shorter, shares, bits):
        data, above = shorter, (int.from_bytes(shorter, "big") >> 8) + 1
        shorter = above.to_bytes(len(data), "big")[1:].rstrip(b"\0")
    return data


def _gives(data: bytes, shares: np.ndarray, bits: np.ndarray) -> bool:
    coder = constriction().stream.queue.RangeDecoder(words(data, ">"))
    try:
        return np.array_equal(coder.decode(_model(), shares), bits)
    except AssertionError:  # no bits at all begin so
        return False


def _model() -> Any:
    return constriction().stream.model.Bernoulli(perfect=False)


def _shares(chances: np.ndarray) -> np.ndarray:
    return chances.astype(np.float32) / np.float32(UNIT)
