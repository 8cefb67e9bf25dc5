"""What every criterion shares: scores for all floating leaves of a tree, in one jitted call."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import tree
from jaxprune.base import Array, Params, Scores


def score(
    selection: tree.Selection, kernel: Callable[..., Array], *static: Any, partners: Sequence[list[Array]] = ()
) -> Scores:
    """Applies ``kernel(leaf, *partners, *static)`` to every floating leaf, in one jitted call for the whole tree."""
    return selection.replace(_each(kernel, static, selection.values, *partners), no_score)


def floating(params: Params) -> tree.Selection:
    """The floating leaves of a tree, whatever their rank."""
    return tree.select(params, lambda path, leaf: tree.is_floating(leaf))


def no_score(leaf: Any) -> Array:
    """What stands for a leaf that is not floating."""
    return jnp.zeros((), jnp.float32)


@partial(jax.jit, static_argnums=(0, 1))
def _each(kernel: Any, static: tuple[Any, ...], *columns: list[Array]) -> list[Array]:
    return [kernel(*leaves, *static) for leaves in zip(*columns, strict=True)]
