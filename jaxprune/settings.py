"""Settings: what is swept. A scalar for all leaves, or a tree of scalars that follows the paths of the parameters.

And what is looked at before a transform runs: whether concrete leaves hold what it cannot take.
"""

from collections.abc import Callable, Iterable
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune import tree
from jaxprune.base import Array, Setting
from jaxprune.paths import follow_paths


def per_leaf(setting: Setting, selection: tree.Selection, name: str, low: float, high: float) -> list[Any]:
    """One float32 scalar for each chosen leaf.

    A scalar serves all leaves; a tree of scalars follows the parameters' paths (a subtree may be given by one value).
    Concrete values outside [low, high] or NaN raise ``ValueError``; traced ones are left for the transform to clamp.
    """
    if is_scalar(setting) or selection.paths == [""]:
        return [check_setting(setting, name, low, high)] * len(selection.chosen)
    by_path = follow_paths(setting, selection.paths, selection.names, name)
    return [check_setting(by_path[path], f"{name} of {tree.show(path)}", low, high) for path in selection.names]


def check_setting(value: Any, name: str, low: float, high: float) -> Any:
    """``value`` as a float32 scalar, in [low, high] unless it is traced."""
    shape = np.shape(value)
    if shape != ():
        several = "use jax.vmap or jaxprune.sweep for several settings"
        raise ValueError(f"{name} must be a scalar, got shape {shape}; {several}")
    if isinstance(value, Tracer):
        return value.astype(jnp.float32)
    number = np.asarray(value)
    if not (np.issubdtype(number.dtype, np.integer) or jnp.issubdtype(number.dtype, jnp.floating)):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    if not low <= float(number) <= high:  # NaN fails too
        raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {float(number):g}")
    return np.float32(number)


def check_settings(values: Any, name: str, low: float, high: float) -> Array:
    """``values``, an array or nested sequence of settings, as a float32 array; concrete ones lie in [low, high]."""
    array = jnp.asarray(values, jnp.float32)
    if not isinstance(array, Tracer):
        for value in np.ravel(array):
            check_setting(value, name, low, high)
    return array


def check_count(value: Any, name: str) -> None:
    """Raises ``ValueError`` unless ``value`` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1 (it is static), got {value!r}")


def is_scalar(value: Any) -> bool:
    """Whether a setting is one value for all leaves rather than a tree of them."""
    return tree.is_array(value) or isinstance(value, int | float | str) or value is None


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
