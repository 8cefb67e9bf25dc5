"""Rounding to whole numbers by squared error and bits together, whose shares are counted and used by turns.

The magnitude a of a number becomes n = ceil(a) if a > n - 1 + up[n], else floor(a); and then 0 if a <= zero[n]. Both
tables follow from (a - n)**2 + penalty * bits(n): up[n] = 1/2 + penalty * (bits(n) - bits(n - 1)) / 2 and zero[n] =
n / 2 + penalty * (bits(n) - bits(0)) / (2 n).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxprune.base import Array
from jaxprune.kernels.histogram import histogram
from jaxprune.kernels.rounding import TINY, divide

_ROUNDS = 4  # after which the shares hardly change any more
_BINS = 1024  # magnitudes with a share of their own; all above have that of the last
_UNSEEN = 64.0  # bits of a magnitude that does not occur


class Cuts(NamedTuple):
    """The tables, float32 [1024]."""

    up: Array
    zero: Array


def codes(leaves: list[Array], steps: list[Any], penalties: list[Any], scope: str) -> list[Array]:
    """Whole numbers, in float32; zeros are +0.0. Called under ``jit``."""
    steps = [jnp.maximum(jnp.asarray(step, jnp.float32), TINY) for step in steps]
    result = []
    for x, step, cuts in zip(leaves, steps, cuts_of(leaves, steps, penalties, scope), strict=True):
        size = magnitudes(x, step, *cuts)
        result.append(jnp.where(size == 0, 0, jnp.where(x < 0, -size, size)))
    return result


def measures(leaves: list[Array], step: Array, penalty: Any, scope: str) -> tuple[Array, Array]:
    """Sum of squared errors, and mean entropy in bits a number. Called under ``jit``."""
    steps = [step] * len(leaves)
    tables = cuts_of(leaves, steps, [penalty] * len(leaves), scope)
    errors = [histogram(x, (step, *cuts), _spread, _BINS, _error) for x, cuts in zip(leaves, tables, strict=True)]
    counts = _counts(leaves, steps, tables)
    if scope == "global":
        counts = [jnp.stack(counts).sum(0)]
    total = jnp.stack([count.sum() for count in counts]).sum()
    bits = jnp.stack([jnp.sum(count * bits_of(count)) for count in counts]).sum()
    return jnp.stack(errors).sum(), bits / jnp.maximum(total, 1)


def squares(x: Array) -> Array:
    """Sum of squares, float32."""
    return histogram(x, (), _spread, _BINS, _square).sum()


def cuts_of(leaves: list[Array], steps: list[Any], penalties: list[Any], scope: str) -> list[Cuts]:
    """The tables of each leaf."""
    penalties = [jnp.maximum(jnp.asarray(penalty, jnp.float32), 0) for penalty in penalties]
    plain = Cuts(jnp.full(_BINS, 0.5, jnp.float32), jnp.zeros(_BINS, jnp.float32))

    def estimate(_, tables: list[Cuts]) -> list[Cuts]:
        counts = _counts(leaves, steps, tables)
        if scope == "global":
            counts = [jnp.stack(counts).sum(0)] * len(counts)
        return [_cuts(bits_of(count), penalty) for count, penalty in zip(counts, penalties, strict=True)]

    if not leaves:
        return []
    rounds = jnp.where(jnp.any(jnp.stack(penalties) > 0), _ROUNDS, 0)  # at 0 nothing would change
    return lax.fori_loop(0, rounds, estimate, [plain] * len(leaves))


def bits_of(counts: Array) -> Array:
    """Bits of each magnitude: -log2 of its share, and one for the sign."""
    share = counts / jnp.maximum(counts.sum(), 1)
    bits = jnp.where(counts > 0, -jnp.log2(jnp.where(counts > 0, share, 1)), _UNSEEN)
    return bits + (jnp.arange(_BINS) > 0)


def magnitudes(x: Array, step: Array, up: Array, zero: Array) -> Array:
    """The whole number that stands for each magnitude, float32; NaN for NaN."""
    a = divide(jnp.abs(x.astype(jnp.float32)), step)
    below = jnp.floor(a)
    above = below + (a - below > up[_place(below + 1)])
    return jnp.where(a <= zero[_place(above)], 0, above) + (a - a)


def _cuts(bits: Array, penalty: Array) -> Cuts:
    n = jnp.arange(_BINS, dtype=jnp.float32)
    up = jnp.concatenate([jnp.full(1, 0.5), 0.5 + penalty * jnp.diff(bits) / 2])
    zero = n / 2 + penalty * (bits - bits[0]) / (2 * jnp.maximum(n, 1))
    return Cuts(up.at[-1].set(0.5), zero)  # the last stands for all above


def _counts(leaves: list[Array], steps: list[Any], tables: list[Cuts]) -> list[Array]:
    found = []
    for x, step, cuts in zip(leaves, steps, tables, strict=True):
        found.append(histogram(x, (step, *cuts), _bin, _BINS).astype(jnp.float32))
    return found


def _place(n: Array) -> Array:
    return jnp.clip(n, 0, _BINS - 1).astype(jnp.int32)


def _bin(x: Array, index: Array, step: Array, up: Array, zero: Array) -> Array:
    return _place(magnitudes(x, step, up, zero))


def _spread(x: Array, index: Array, *rest: Any) -> Array:
    return (index % _BINS).astype(jnp.int32)  # many short sums, as one long one would be inexact


def _error(x: Array, step: Array, up: Array, zero: Array) -> Array:
    return jnp.square(jnp.abs(x.astype(jnp.float32)) - magnitudes(x, step, up, zero) * step)


def _square(x: Array) -> Array:
    return jnp.square(x.astype(jnp.float32))
