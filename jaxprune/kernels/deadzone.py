"""Rounding to whole numbers by squared error and bits together. Kernels on one array.

The magnitude a of a number becomes n = ceil(a) if a > n - 1 + up[n], else floor(a); and then 0 if a <= zero[n]. Both
tables follow from (a - n)**2 + penalty * bits(n): up[n] = 1/2 + penalty * (bits(n) - bits(n - 1)) / 2 and zero[n] =
n / 2 + penalty * (bits(n) - bits(0)) / (2 n).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxprune.base import Array
from jaxprune.kernels.histogram import histogram
from jaxprune.kernels.reductions import in_halves, product
from jaxprune.kernels.rounding import TINY, divide

BINS = 1024  # magnitudes with a share of their own; all above have that of the last
_UNSEEN = 64.0  # bits of a magnitude that does not occur


class Cuts(NamedTuple):
    """The tables, float32 [1024]."""

    up: Array
    zero: Array


def codes(x: Array, step: Array, cuts: Cuts) -> Array:
    """Whole numbers, in float32; zeros are +0.0."""
    size = _magnitudes(x, _step(step), *cuts)
    return jnp.where(size == 0, 0, jnp.where(x < 0, -size, size))


def counts(x: Array, step: Array, cuts: Cuts, before: Array) -> Array:
    """How often each magnitude occurs, float32 [1024], and in what was counted ``before``."""
    return before + histogram(x, (_step(step), *cuts), _bin, BINS).astype(jnp.float32)


def squared_errors(x: Array, step: Array, cuts: Cuts, before: Array) -> Array:
    """Sums of squared errors, float32 [1024], that make one sum together, and ``before`` of other arrays."""
    return before + histogram(x, (_step(step), *cuts), _spread, BINS, _error)


def squares(x: Array, before: Array) -> Array:
    """Sums of squares, float32 [1024], that make one sum together, and ``before`` of other arrays."""
    return before + histogram(x, (), _spread, BINS, _square)


def cuts_of(counts: Array, penalty: Array) -> Cuts:
    """The tables that follow from how often each magnitude occurs."""
    bits, penalty = _bits(counts), jnp.maximum(jnp.asarray(penalty, jnp.float32), 0)
    n = jnp.arange(BINS, dtype=jnp.float32)
    up = jnp.concatenate([jnp.full(1, 0.5), 0.5 + product(penalty, jnp.diff(bits)) / 2])
    zero = n / 2 + divide(penalty * (bits - bits[0]), 2 * jnp.maximum(n, 1))
    return Cuts(up.at[-1].set(0.5), zero)  # the last stands for all above


def entropy(counts: Array) -> Array:
    """Bits of all the numbers counted: the sum over them of -log2 of their share, and one for the sign."""
    return jnp.sum(counts * _bits(counts))


def larger(before: Array, x: Array) -> Array:
    """The largest magnitude in ``x``, and ``before`` in other arrays."""
    return jnp.maximum(before, jnp.max(jnp.abs(x), initial=0).astype(jnp.float32))


def step_between(largest: Array, low: Array, high: Array) -> Array:
    """The step in the middle of a bracket of its logarithm, of the largest magnitude; 1 if that is 0."""
    return jnp.where(largest > 0, largest * jnp.exp2((low + high) / 2), 1)


def closer(bracket: tuple[Array, Array], found: Array, limit: Array) -> tuple[Array, Array]:
    """The half of a bracket that is left where the middle is too far if ``found``, summed up, exceeds the limit."""
    low, high = bracket
    middle, too_far = (low + high) / 2, jnp.sum(found) > jnp.sum(limit)
    return jnp.where(too_far, low, middle), jnp.where(too_far, middle, high)


def _bits(counts: Array) -> Array:
    """Bits of each magnitude."""
    share = divide(counts, jnp.maximum(in_halves(counts), 1))
    bits = jnp.where(counts > 0, -jnp.log2(jnp.where(counts > 0, share, 1)), _UNSEEN)
    return bits + (jnp.arange(BINS) > 0).astype(bits.dtype)


def _step(step: Array) -> Array:
    return jnp.maximum(jnp.asarray(step, jnp.float32), TINY)


def _magnitudes(x: Array, step: Array, up: Array, zero: Array) -> Array:
    """The whole number that stands for each magnitude, float32; NaN for NaN."""
    a = divide(jnp.abs(x.astype(jnp.float32)), step)
    below = jnp.floor(a)
    above = below + (a - below > up[_place(below + 1)]).astype(jnp.float32)
    return jnp.where(a <= zero[_place(above)], 0, above) + (a - a)


def _place(n: Array) -> Array:
    return jnp.clip(n, 0, BINS - 1).astype(jnp.int32)


def _bin(x: Array, index: Array, step: Array, up: Array, zero: Array) -> Array:
    return _place(_magnitudes(x, step, up, zero))


def _spread(x: Array, index: Array, *rest: Any) -> Array:
    return (index % BINS).astype(jnp.int32)  # many short sums, as one long one would be inexact


def _error(x: Array, step: Array, up: Array, zero: Array) -> Array:
    return jnp.square(jnp.abs(x.astype(jnp.float32)) - _magnitudes(x, step, up, zero) * step)


def _square(x: Array) -> Array:
    return jnp.square(x.astype(jnp.float32))
