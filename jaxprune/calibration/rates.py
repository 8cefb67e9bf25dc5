"""Bits of whole numbers that are spread like rounded normal ones, and rounding that weighs them against error."""

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf

from jaxprune.base import Array

_NARROWEST = 0.05  # of a spread, in steps: a narrower one would make every other number cost too much
_LIKELY = 1e-5  # below this share of a number its density says as much


def bits(magnitude: Array, spread: Array) -> Array:
    """-log2 of the share of a number, of a normal distribution of that standard deviation, rounded."""
    scale = 1 / (spread * np.float32(np.sqrt(2)))
    share = 0.5 * (erf((magnitude + 0.5) * scale) - erf((magnitude - 0.5) * scale))
    density = (magnitude * scale) ** 2 / np.float32(np.log(2)) + jnp.log2(spread * np.float32(np.sqrt(2 * np.pi)))
    return jnp.where(share > _LIKELY, -jnp.log2(jnp.maximum(share, _LIKELY)), density)


def cheapest(x: Array, spread: Array, penalty: Array) -> Array:
    """The whole number n near x of the least ``(x - n)**2 + penalty * bits(n)``: floor or ceiling of abs(x), or 0."""
    size = jnp.abs(x)
    best, cost = jnp.zeros_like(size), size * size + penalty * bits(jnp.zeros_like(size), spread)
    for number in (jnp.floor(size), jnp.floor(size) + 1):
        own = (size - number) ** 2 + penalty * bits(number, spread)
        best, cost = jnp.where(own < cost, number, best), jnp.minimum(own, cost)
    return jnp.where(x < 0, -best, best)


def spreads(x: Array) -> Array:
    """A standard deviation for each entry of [L, K, N], as a product of one for its row and one for its column."""
    square = x * x
    rows = square.mean(2)
    weights = 1 / (jnp.maximum(rows, np.finfo(np.float32).tiny) * x.shape[1])
    columns = jnp.einsum("lk,lkn->ln", weights, square, precision="highest")  # quotients: quadratic in N
    return jnp.maximum(jnp.sqrt(rows[..., None] * columns[:, None]), _NARROWEST)
