"""How far outputs are from those of the original: one number, 0 where they are equal."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.base import Array

Loss = Callable[[Any, Any], Array]


def divergence(original: Array, outputs: Array) -> Array:
    """The Kullback-Leibler divergence of logits [..., classes], in nats, averaged over all but the last axis."""
    before, after = (jax.nn.log_softmax(x.astype(jnp.float32)) for x in (original, outputs))
    return (jnp.exp(before) * (before - after)).sum(-1).mean()


def squared_error(original: Any, outputs: Any) -> Array:
    """The mean squared error, over the mean square of the original; of a pytree the mean of its arrays."""
    pairs = zip(jax.tree.leaves(original), jax.tree.leaves(outputs), strict=True)
    return jnp.stack([_relative(*(x.astype(jnp.float32) for x in pair)) for pair in pairs]).mean()


def _relative(original: Array, outputs: Array) -> Array:
    size = jnp.square(original).mean()
    return jnp.square(outputs - original).mean() / jnp.where(size > 0, size, 1)


def cosine(original: Array, outputs: Array) -> Array:
    """1 - the cosine between vectors along the last axis, averaged."""
    x, y = (x.astype(jnp.float32) for x in (original, outputs))
    size = jnp.sqrt(jnp.square(x).sum(-1) * jnp.square(y).sum(-1))
    return (1 - (x * y).sum(-1) / jnp.maximum(size, 1e-30)).mean()


LOSSES: dict[str, Loss] = {"divergence": divergence, "squared_error": squared_error, "cosine": cosine}
