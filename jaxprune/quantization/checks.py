"""Values that a quantizer cannot take, found before it runs."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxprune import tree
from jaxprune.base import Array


def refuse(leaves: Iterable[tuple[str, Array]], test: Callable[[Array], Array], message: str) -> None:
    """Raises ``ValueError`` for the first concrete leaf, given with its path, that ``test`` is true of."""
    concrete = [(name, leaf) for name, leaf in leaves if not isinstance(leaf, Tracer)]
    with jax.ensure_compile_time_eval():
        found = jax.device_get([test(leaf) for _, leaf in concrete])
    for (name, _), wrong in zip(concrete, found, strict=True):
        if wrong:
            raise ValueError(f"leaf {tree.show(name)} {message}")


@jax.jit
def has_nan(x: Array) -> Array:
    """Whether an entry is NaN."""
    return jnp.isnan(x).any()


@jax.jit
def not_finite(x: Array) -> Array:
    """Whether an entry is NaN or infinite."""
    return ~jnp.isfinite(x).all()


def any_traced(*values: Any) -> bool:
    """Whether any leaf of the trees is traced."""
    return any(isinstance(value, Tracer) for value in jax.tree.leaves(values))
