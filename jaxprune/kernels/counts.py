"""How many elements a sparsity removes: exact integers, for any number of elements below 2**32."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.base import Array


def removed_of(size: int, sparsity: float) -> int:
    """``round_half_up(size * sparsity)``, on the host."""
    mantissa, power = float(sparsity).as_integer_ratio()
    return (2 * size * mantissa + power) // (2 * power)


def removed_count(size: int | Array, sparsity: Any) -> Array:
    """``round_half_up(size * sparsity)`` as uint32, exact for the float32 ``sparsity`` and any size below 2**32.

    ``sparsity`` is an integer mantissa over a power of two, so the product is taken in integers, in two 32-bit words.
    A traced size is uint32. Traced values are clamped to [0, 1]; a traced NaN removes nothing.
    """
    sparsity = jnp.clip(jnp.asarray(sparsity, jnp.float32), 0.0, 1.0)
    bits = lax.bitcast_convert_type(jnp.where(jnp.isnan(sparsity), 0.0, sparsity), jnp.uint32)
    exponent = bits >> 23
    mantissa = jnp.where(exponent > 0, (bits & 0x7FFFFF) | 0x800000, 0).astype(jnp.uint32)
    shift = np.uint32(150) - exponent  # sparsity == mantissa / 2**shift, 23 <= shift <= 150
    high, low = _multiply(size, mantissa)
    half_low = jnp.where(shift <= 32, np.uint32(1) << jnp.minimum(shift - 1, 31), 0).astype(jnp.uint32)
    half_high = jnp.where(shift > 32, np.uint32(1) << jnp.minimum(shift - 33, 30), 0).astype(jnp.uint32)
    rounded = low + half_low
    high = high + half_high + (rounded < low).astype(jnp.uint32)
    near = (high << (32 - jnp.minimum(shift, 31))) | (rounded >> jnp.minimum(shift, 31))
    far = high >> (jnp.clip(shift, 32, 63) - 32)
    return jnp.where(shift < 32, near, far)


def _multiply(a: Any, b: Array) -> tuple[Array, Array]:
    """The 64-bit product of a 32-bit number and a traced 24-bit one, as two 32-bit words."""
    a = a if isinstance(a, Array) else np.uint32(a)
    a_low, a_high = a & np.uint32(0xFFFF), a >> np.uint32(16)
    b_low, b_high = b & 0xFFFF, b >> 16
    lowest = a_low * b_low
    cross = a_high * b_low
    middle = a_low * b_high + (lowest >> 16) + (cross & 0xFFFF)
    return a_high * b_high + (middle >> 16) + (cross >> 16), (middle << 16) | (lowest & 0xFFFF)
