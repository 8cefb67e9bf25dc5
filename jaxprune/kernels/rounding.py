"""Rounding to a uniform grid and to powers of two: the arithmetic that every quantizer here shares.

Everything is float32, with one rounding a step, and written so that a compiler cannot change a bit between programs:

* a division by a broadcast operand is rewritten to a multiplication by the reciprocal, and by a constant as well, so a
  divisor here always depends on its numerator (:func:`divide`);
* a product that feeds a sum may be fused into one rounding, so a ``min``, a ``max`` or a ``where`` stands in between;
* a float sum depends on its order, so sums that decide anything run in a fixed order (``ranges``).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Array, QParams
from jaxprune.kernels.sharding import batch_axes

TINY = np.finfo(np.float32).tiny  # a step below it would be subnormal, which backends flush to zero
HUGE = np.finfo(np.float32).max * np.float32(1 - 2**-21)  # room for the rounding of scale * code


def divide(x: Array, by: Any) -> Array:
    """``x / by`` correctly rounded, whatever is constant or broadcast: XLA does not see through the select."""
    return x / jnp.where(jnp.isnan(x), 1.0, jnp.asarray(by).astype(x.dtype))


def top_code(bits: Array, symmetric: bool) -> Array:
    """Largest code, float32: 2**(b-1) - 1 (but 1 at 1 bit) if symmetric, else 2**b - 1; by shifts, so exact."""
    codes = jnp.left_shift(1, bits - 1 if symmetric else bits) - 1
    return jnp.maximum(codes, 1).astype(jnp.float32)


def qparams_of(low: Array, high: Array, bits: Array, symmetric: bool) -> QParams:
    """Step and zero point of the range [low, high], each in its shape; scale 0 stands for a range without width.

    Symmetric: scale = max(-low, high) / (2**(b-1) - 1). Asymmetric: the range is widened to hold 0, scale = (high -
    low) / (2**b - 1), zero_point = clip(round_half_even(-low / scale), 0, 2**b - 1).
    """
    top = top_code(bits, symmetric)
    low, high = jax.lax.optimization_barrier((low, high))  # constants would undo what divide does
    low, high = (jnp.where(jnp.isnan(end), 0, jnp.clip(end, -HUGE, HUGE)) for end in (low, high))
    if symmetric:
        scale = divide(jnp.maximum(jnp.maximum(-low, high), 0), top)
        zero_point = jnp.zeros(scale.shape, jnp.int32)
    else:
        low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
        scale = divide(high * 0.5 - low * 0.5, top * 0.5)  # halved: high - low may overflow
        code = jnp.round(divide(-low, jnp.where(scale >= TINY, scale, 1)))
        zero_point = jnp.where(scale >= TINY, jnp.clip(code, 0, top), 0).astype(jnp.int32)
    return QParams(jnp.where(scale >= TINY, scale, 0), zero_point)


def grid(qparams: QParams, bits: Array, symmetric: bool) -> tuple[Array, Array, Array, Array]:
    """``(scale, divisor, lowest, highest)`` for :func:`snap`: multiples of the scale that a code can stand for.

    At a zero scale only 0 is left. At 1 bit, symmetric, the divisor is the least normal number, which makes the clipped
    quotient the sign. Multiples beyond the float32 range are left out.
    """
    scale = jnp.where(qparams.scale >= TINY, jnp.minimum(qparams.scale, HUGE), 0)
    some = scale > 0
    divisor = jnp.where(some, scale, 1)
    top, zero = top_code(bits, symmetric), qparams.zero_point.astype(jnp.float32)
    room = jnp.floor(jnp.float32(HUGE) / divisor) + jnp.where(scale * top < jnp.inf, top, 0)
    lowest, highest = (-top, top) if symmetric else (-zero, top - zero)
    lowest, highest = (jnp.where(some, end, 0) for end in (jnp.maximum(lowest, -room), jnp.minimum(highest, room)))
    if symmetric:
        divisor = jnp.where(bits == 1, TINY, divisor)
    scale, divisor, lowest, highest = jax.lax.optimization_barrier((scale, divisor, lowest, highest))
    return _once(scale), _once(divisor), _once(lowest), _once(highest)


def _once(x: Array) -> Array:
    """``x``, computed ahead of what is broadcast from it and not again for every entry: XLA's CPU compiler drops
    barriers in some versions, but it never repeats a division."""
    return x / jnp.where(jnp.isnan(x), 2.0, 1.0)


def multiples(x: Array, divisor: Array, lowest: Array, highest: Array) -> tuple[Array, Array]:
    """clip(round_half_even(x / divisor), lowest, highest), and zeros of the shape of ``x``; NaN for NaN in both.

    Clipping first gives the same integers, as rounded division is monotonic and exact at whole multiples, and leaves a
    finite numerator.
    """
    inside = jnp.minimum(jnp.maximum(x, lowest * divisor), highest * divisor)
    zeros = inside - inside
    return jnp.round(inside / (divisor + zeros)), zeros


def _snap(x: Array, scale: Array, divisor: Array, lowest: Array, highest: Array) -> Array:
    code, zeros = multiples(x, divisor, lowest, highest)
    return code * scale + zeros


#: The float32 value that the quantizer of :func:`grid` stores for ``x``; zeros are +0.0, NaN stays NaN.
snap = jax.custom_batching.custom_vmap(_snap)


@snap.def_vmap
def _(size: int, batched: list[bool], *args: Array) -> tuple[Array, bool]:
    # A sweep of settings over one array: the same bits by a formula that names x and nothing else twice, which XLA's
    # CPU reductions take in as one pass (1.5 times the speed). Any -0.0 meets scale - scale, which is +0.0.
    def shared(x, scale, divisor, lowest, highest):
        code = jnp.round(x / jnp.maximum(divisor, jnp.minimum(x, -divisor)))
        return jnp.minimum(jnp.maximum(code, lowest), highest) * scale + (scale - scale)

    return jax.vmap(_snap if batched[0] else shared, batch_axes(batched), axis_size=size)(*args), True


def power_of_two(exponent: Array) -> Array:
    """2**exponent in float32, exactly, from its bits."""
    return jax.lax.bitcast_convert_type(jnp.left_shift(exponent + 127, 23), jnp.float32)


def normalizer(largest: Array) -> Array:
    """The power of two that takes ``largest`` (float32, >= 0) into [2, 4): an exact factor, itself a normal float."""
    exponent = (jax.lax.bitcast_convert_type(largest, jnp.int32) >> 23) & 0xFF
    return jax.lax.bitcast_convert_type((255 - jnp.clip(exponent, 1, 254)) << 23, jnp.float32)


def _exponent(setting: Array) -> Array:
    return jnp.clip(jnp.floor(setting + 0.5), -126, 126).astype(jnp.int32)


@jax.custom_jvp
def passed_through(x: Array, value: Array) -> Array:
    """``value``, with the derivative of ``x``: the straight-through estimator."""
    return value


@passed_through.defjvp
def _(primals, tangents):
    return primals[1], tangents[0]


def round_to_power(x: Array, setting: Array) -> Array:
    """The nearest multiple of ``2**setting``, halves to even; the setting is rounded half up."""
    exponent = _exponent(setting)
    step = power_of_two(exponent)
    scaled = x.astype(jnp.float32) * power_of_two(-exponent)
    nearest, before = jnp.round(scaled) * step, jnp.trunc(scaled) * step
    nearest = jnp.where(jnp.abs(nearest) <= float(jnp.finfo(x.dtype).max), nearest, before)
    rounded = jnp.where(nearest == 0, 0, nearest).astype(x.dtype)
    return passed_through(x, jnp.where(jnp.abs(scaled) < 2.0**23, rounded, x))  # larger ones are multiples, or NaN


def power_codes(x: Array, setting: Array) -> Array:
    """The int32 codes of :func:`round_to_power`: those beyond int32 saturate, NaN becomes 0."""
    scaled = jnp.round(x.astype(jnp.float32) * power_of_two(-_exponent(setting)))
    codes = jnp.where(jnp.abs(scaled) < 2.0**31, scaled, 0).astype(jnp.int32)
    info = jnp.iinfo(jnp.int32)
    return jnp.where(scaled >= 2.0**31, info.max, jnp.where(scaled <= -(2.0**31), info.min, codes))
