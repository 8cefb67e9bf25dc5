"""Ranges of sums, products, quotients and functions of ranges."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

from jaxprune.program.ranges import ANYTHING, SLACK, UNBOUNDED, ZERO, Range, between, choose, widen

Function = Callable[..., Range]


def add(a: Range, b: Range) -> Range:
    """a + b. A sum with 0 is exact; else rounding is relative to the larger operand."""
    clash = (_up(a) & _down(b)) | (_down(a) & _up(b))
    low, high = a.low + b.low - _rounding(a.low, b.low), a.high + b.high + _rounding(a.high, b.high)
    return between(low, high, a.nan | b.nan | clash, a.infinite | b.infinite)


def sub(a: Range, b: Range) -> Range:
    """a - b."""
    return add(a, negative(b))


def negative(a: Range) -> Range:
    """-a."""
    return Range(-a.high, -a.low, a.nan, a.infinite)


def mul(a: Range, b: Range) -> Range:
    """a * b, where 0 times a finite number is 0, and 0 times an infinite one is NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        ends = [(x, y, x * y) for x in (a.low, a.high) for y in (b.low, b.high)]
    products = [np.where((x == 0) | (y == 0), 0, product) for x, y, product in ends]
    nan = a.nan | b.nan | (a.infinite & _may_be_zero(b)) | (b.infinite & _may_be_zero(a))
    infinite = (a.infinite & ~b.zero) | (b.infinite & ~a.zero)
    return widen(Range(np.minimum.reduce(products), np.maximum.reduce(products), nan, infinite))


def div(a: Range, b: Range) -> Range:
    """a / b: anything where b may be 0."""
    pole = _may_be_zero(b)
    safe = choose(pole, between(np.ones_like(b.low), 1.0), b)
    found = mul(a, Range(1 / safe.high, 1 / safe.low, b.nan, np.zeros_like(b.nan)))
    nan = found.nan | (b.infinite & a.infinite) | (pole & _may_be_zero(a)) | (pole & b.infinite)
    low, high = np.where(pole, -np.inf, found.low), np.where(pole, np.inf, found.high)
    return Range(low, high, nan, found.infinite | pole)


def maximum(a: Range, b: Range) -> Range:
    """The larger of both."""
    below = a.infinite & b.infinite & _down(a) & _down(b)
    return between(np.maximum(a.low, b.low), np.maximum(a.high, b.high), a.nan | b.nan, _up(a) | _up(b) | below)


def minimum(a: Range, b: Range) -> Range:
    """The smaller of both."""
    return negative(maximum(negative(a), negative(b)))


def absolute(a: Range) -> Range:
    """|a|."""
    low = np.where(_may_be_zero(a), 0, np.minimum(np.abs(a.low), np.abs(a.high)))
    return Range(low, np.maximum(np.abs(a.low), np.abs(a.high)), a.nan, a.infinite)


def square(a: Range) -> Range:
    """a * a."""
    size = absolute(a)
    return mul(size, size)


def power(a: Range, exponent: float) -> Range:
    """a to a known power."""
    if exponent == 0:
        return between(np.ones_like(a.low), 1.0)
    if exponent < 0:
        return div(between(np.ones_like(a.low), 1.0), power(a, -exponent))
    if exponent != round(exponent):
        return raised(a, between(exponent, exponent))
    base = absolute(a) if exponent % 2 == 0 else a
    with np.errstate(all="ignore"):
        low, high = (np.sign(end) * np.abs(end) ** exponent for end in (base.low, base.high))
    return widen(between(low, high, a.nan, a.infinite))


def raised(a: Range, b: Range) -> Range:
    """a to any power: of a positive base between those of the ends."""
    with np.errstate(all="ignore"):
        ends = [x**y for x in (a.low, a.high) for y in (b.low, b.high)]
    low, high = np.fmin.reduce(ends), np.fmax.reduce(ends)
    sure = (a.low > 0) | ((a.low == 0) & (b.low > 0))
    safe = a.finite & b.finite & sure
    return widen(between(np.where(sure, low, -np.inf), np.where(sure, high, np.inf), ~safe, ~safe))


def monotone(function: Callable[[Any], Any], low: float = -np.inf, high: float = np.inf) -> Function:
    """The rule of a monotone function on a domain; outside it is NaN, at its ends it may be infinite."""

    def rule(a: Range) -> Range:
        with np.errstate(all="ignore"):
            start, end = widen(a)[:2]  # an argument is rounded as well; 0 stays 0
            inside = np.clip(start, low, high), np.clip(end, low, high)
            ends = function(inside[0]), function(inside[1])
        # Overflow of float64 even, or the edge of the domain: log(0) is infinite at a finite place.
        pole = (np.isfinite(start) & ~np.isfinite(ends[0])) | (np.isfinite(end) & ~np.isfinite(ends[1]))
        for edge in (low, high):
            if np.isfinite(edge):
                with np.errstate(all="ignore"):
                    pole |= (start <= edge) & (end >= edge) & ~np.isfinite(function(np.float64(edge)))
        grows = [~np.isfinite(function(np.float64(far))) for far in (low, high)]
        infinite = (_down(a) & bool(grows[0])) | (_up(a) & bool(grows[1])) | pole
        return widen(between(np.minimum(*ends), np.maximum(*ends), a.nan | (a.low < low) | (a.high > high), infinite))

    return rule


def wave(function: Callable[[Any], Any]) -> Function:
    """The rule of sine and cosine: in [-1, 1], known at 0."""

    def rule(a: Range) -> Range:
        value = float(function(0.0))
        return between(np.where(a.zero, value, -1.0), np.where(a.zero, value, 1.0), a.nan | a.infinite)

    return rule


def step(function: Callable[[Any], Any]) -> Function:
    """The rule of a function that rounds: exact at both ends."""

    def rule(a: Range) -> Range:
        return between(function(a.low), function(a.high), a.nan, a.infinite)

    return rule


def sign(a: Range) -> Range:
    """The sign of a."""
    return between(np.sign(a.low), np.sign(a.high), a.nan)


def truth(yes: Any, no: Any) -> Range:
    """The range of a bool that is known to be true, or known to be false, or neither."""
    return between(np.where(yes, 1.0, 0.0), np.where(no, 0.0, 1.0))


def less(a: Range, b: Range) -> Range:
    """a < b."""
    return truth(_numbers(a, b) & (a.high < b.low), a.low >= b.high)


def less_equal(a: Range, b: Range) -> Range:
    """a <= b."""
    return truth(_numbers(a, b) & (a.high <= b.low), a.low > b.high)


def equal(a: Range, b: Range) -> Range:
    """a == b."""
    one = (a.low == a.high) & (b.low == b.high) & (a.low == b.low)
    return truth(_numbers(a, b) & one, (a.high < b.low) | (b.high < a.low))


def negation(a: Range) -> Range:
    """not a, of a bool."""
    return between(1 - a.high, 1 - a.low)


def finite(a: Range) -> Range:
    """Whether a is finite."""
    return truth(a.finite, np.zeros_like(a.nan))


def unknown(*ranges: Range, zero: bool = False) -> Range:
    """Finite if all operands are; 0 if they are and ``zero`` says that then the result is."""
    found = choose(np.logical_and.reduce([a.finite for a in ranges]), UNBOUNDED, ANYTHING)
    return choose(np.logical_and.reduce([a.zero for a in ranges]), ZERO, found) if zero else found


def total(terms: Range, fewest: int, most: int) -> Range:
    """The sum of a number of terms."""
    low, high, nan, infinite = terms
    ends = [np.where(end == 0, 0, end * n) if n else np.zeros_like(end) for n in (fewest, most) for end in (low, high)]
    clash = infinite & (low == -np.inf) & (high == np.inf)
    return widen(Range(np.minimum(*ends[::2]), np.maximum(*ends[1::2]), nan | clash, infinite))


def _numbers(a: Range, b: Range) -> np.ndarray:
    return ~(a.nan | b.nan)


def _rounding(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.where((x == 0) | (y == 0), 0, SLACK * np.maximum(np.abs(x), np.abs(y)))


def _may_be_zero(a: Range) -> np.ndarray:
    return (a.low <= 0) & (a.high >= 0)


def _up(a: Range) -> np.ndarray:
    """Whether it may be +infinity."""
    return a.infinite & (a.high == np.inf)


def _down(a: Range) -> np.ndarray:
    """Whether it may be -infinity."""
    return a.infinite & (a.low == -np.inf)


#: Monotone functions, by the name of the operation.
MONOTONE: dict[str, Function] = {
    **{name: monotone(getattr(np, name)) for name in "exp exp2 expm1 tanh sinh cbrt".split()},
    "log": monotone(np.log, low=0),
    "log1p": monotone(np.log1p, low=-1),
    "logistic": monotone(special.expit),
    "sqrt": monotone(np.sqrt, low=0),
    "rsqrt": monotone(lambda x: 1 / np.sqrt(x), low=0),
    "erf": monotone(special.erf),
    "erfc": monotone(special.erfc),
    "erf_inv": monotone(special.erfinv, low=-1, high=1),
    "atan": monotone(np.arctan),
    "asinh": monotone(np.arcsinh),
    "asin": monotone(np.arcsin, low=-1, high=1),
    "acos": monotone(np.arccos, low=-1, high=1),
    "atanh": monotone(np.arctanh, low=-1, high=1),
    "acosh": monotone(np.arccosh, low=1),
}
