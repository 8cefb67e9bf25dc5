"""What every criterion shares: scores for all floating leaves of a tree."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from jaxprune import tree
from jaxprune.base import Array, Params, Scores
from jaxprune.kernels import by_shape


def score(
    selection: tree.Selection, kernel: Callable[..., Array], *static: Any, partners: Sequence[list[Array]] = ()
) -> Scores:
    """Applies ``kernel(leaf, *partners, *static)`` to every chosen leaf."""
    return selection.replace(by_shape.each(kernel, selection.values, *partners, static=static), no_score)


def floating(params: Params) -> tree.Selection:
    """The floating leaves of a tree, whatever their rank."""
    return tree.select(params, lambda path, leaf: tree.is_floating(leaf))


def no_score(leaf: Any) -> Array:
    """What stands for a leaf that is not floating."""
    return jnp.zeros((), jnp.float32)
