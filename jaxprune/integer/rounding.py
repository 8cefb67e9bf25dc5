"""Activations as int8, on the fly or by ranges that are known."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune.base import Array

LARGEST = 127
_TINY = LARGEST * float(np.finfo(np.float32).tiny)


class Rounded(NamedTuple):
    """``codes * scale``: int8, and float32 with one entry along the axes that share a scale."""

    codes: Array
    scale: Array


def dynamic(x: Array, axes: Sequence[int]) -> Rounded:
    """Codes in [-127, 127], one scale for all entries along ``axes``: of the largest finite magnitude.

    Infinities saturate; where there is a NaN, the scale is NaN.
    """
    x = x.astype(jnp.float32)
    size = jnp.abs(x)
    largest = jnp.max(jnp.where(jnp.isinf(x), 0, size), axes, keepdims=True, initial=0)
    return _codes(x, jnp.where(largest < _TINY, 1, largest / LARGEST))


def static(x: Array, axes: Sequence[int], largest: float) -> Rounded:
    """The same with a scale that is known: what is beyond ``largest`` saturates."""
    x = x.astype(jnp.float32)
    bad = jnp.any(jnp.isnan(x), axes, keepdims=True)
    codes, scale = _codes(x, jnp.float32(largest / LARGEST if largest >= _TINY else 1))
    return Rounded(codes, jnp.where(bad, jnp.nan, scale))


def _codes(x: Array, scale: Array) -> Rounded:
    return Rounded(jnp.clip(jnp.round(x / scale), -LARGEST, LARGEST).astype(jnp.int8), scale)
