"""Probabilities that learn: logistic regression on integers, the same to the last bit on every machine.

A feature is an integer number of 1024ths, a weight of 65536ths, a probability of 65536ths. Integers are held in float64
arrays and every sum of products stays below 2**53: whatever the order in which a library adds, it is exact. The only
roundings are single operations on single numbers, as IEEE 754 defines them.
"""

import functools

import numpy as np

ONE = 1 << 10  # a feature of 1
UNIT = 1 << 16  # a probability of 1, and a weight of 1
MOST = 12 * ONE  # of a feature, either sign
_SURE = 11 * 256  # log-odds in 256ths: nothing is surer
_HEAVIEST = 32 * UNIT
_BITS = 11  # of a mantissa, for its logarithm
_FINE = 20  # binary places of a logarithm
_PATIENCE = 16  # the weights move after every 16th part of what they have seen


def log(numbers: np.ndarray) -> np.ndarray:
    """Natural logarithms of integers in [1, 2**53), as integers in 2**-20ths (from 11 bits of the mantissa)."""
    mantissa, exponent = np.frexp(numbers)
    table, two = _logarithms()
    return table[(mantissa * (2 << _BITS)).astype(np.int64) - (1 << _BITS)] + exponent * two


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

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Of a 1, for features [features, entries]; in 1..65535."""
        return squash(self.weights @ features)

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
    return _sigmoids()[clip(steps, _SURE).astype(np.int64) + _SURE]


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


@functools.cache
def _logarithms() -> tuple[np.ndarray, int]:
    """Of the mantissas (2**11 + k + 1/2) / 2**12, k below 2**11, and of 2; in 2**-20ths, rounded down."""
    half = 2 << _BITS
    minus = [_minus_log(odd, 2 * half) for odd in range(half + 1, 2 * half, 2)]
    return -np.array([float(1 + number) for number in minus]), _minus_log(1, 2)


def _minus_log(over: int, under: int) -> int:
    """log(under / over) = 2 artanh((under - over) / (under + over)) in 2**-20ths, by its series."""
    ratio = ((under - over) << 80) // (under + over)
    power, total, k = ratio, 0, 1
    while power:
        total, power, k = total + 2 * power // k, power * ratio * ratio >> 160, k + 2
    return total >> 80 - _FINE


@functools.cache
def _sigmoids() -> np.ndarray:
    """Of -11 .. 11 in 256ths, in 65536ths."""
    one = 1 << 80
    ratio, term = 0, one
    for k in range(1, 20):  # exp(-1 / 256)
        ratio, term = ratio + term, -term // (256 * k)
    values, power = [], one
    for _ in range(_SURE + 1):
        values.append((UNIT * one + (one + power) // 2) // (one + power))
        power = power * ratio // one
    upper = np.array(values, np.float64)
    return np.clip(np.concatenate([UNIT - upper[:0:-1], upper]), 1, UNIT - 1)
