"""Schedules: what a setting is worth at each step.

A schedule is a function from a step count, an integer from 0 on, to a float32 value: the contract of optax's schedules,
so that either kind goes where the other does. Values and steps may be traced, and trees of values (a sparsity for each
leaf) give trees. Every schedule is flat once its last step is reached, at exactly its last value.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import settings
from jaxprune.base import Array, Setting
from jaxprune.kernels.rounding import divide

__all__ = ["alternating", "constant", "cosine", "cubic", "one_shot", "piecewise", "polynomial"]

#: Step count in, value out.
Schedule = Callable[[Any], Any]


def constant(value: Setting) -> Schedule:
    """The same value at every step.

    Args:
      value: a scalar or a tree of scalars, traced.

    Raises:
      ValueError: a concrete value is not finite.

    >>> float(constant(0.5)(7))
    0.5
    """
    return polynomial(value, value, 1, 0)


def one_shot(value: Setting, step: Any) -> Schedule:
    """``0 if count < step else value``.

    Args:
      value: a scalar or a tree of scalars, traced.
      step: integer of 0 or more, traced.

    Raises:
      ValueError: a concrete value is not finite, or a concrete step is below 0.

    >>> [float(one_shot(0.5, 10)(count)) for count in (0, 9, 10, 11)]
    [0.0, 0.0, 0.5, 0.5]
    """
    return piecewise(jax.tree.map(lambda leaf: [jnp.zeros_like(leaf), leaf], value), [step])


def polynomial(
    init_value: Setting, end_value: Setting, power: Any, transition_steps: Any, transition_begin: Any = 0
) -> Schedule:
    """From one value to another along ``(1 - t) ** power``, ``t`` the fraction of the transition that is over.

    ``value = end_value + (init_value - end_value) * (1 - t) ** power``; before the transition ``init_value``, at its
    last step ``transition_begin + transition_steps`` and ever after exactly ``end_value``. Without steps the end value
    holds from ``transition_begin`` on.

    Args:
      init_value: a scalar or a tree of scalars, traced.
      end_value: likewise; a scalar serves a whole tree of the other.
      power: above 0, traced; 3 is the schedule of Zhu & Gupta.
      transition_steps: integer of 0 or more, traced.
      transition_begin: integer of 0 or more, traced.

    Raises:
      ValueError: a concrete value is not finite, a power is not above 0, or a number of steps is below 0.

    >>> [round(float(polynomial(0.0, 0.8, 3, 100)(count)), 4) for count in (0, 50, 100, 1000)]
    [0.0, 0.7, 0.8, 0.8]
    """
    if not settings.any_traced(power) and not power > 0:
        raise ValueError(f"power must be above 0, got {power!r}")

    def ease(left: Array) -> Array:  # at a power that is no integer the derivative needs a positive base
        return jnp.where(left > 0, left, 1.0) ** power

    return _transition(ease, init_value, end_value, transition_steps, transition_begin)


def cubic(init_value: Setting, end_value: Setting, transition_steps: Any, transition_begin: Any = 0) -> Schedule:
    """Fast at first, slow towards the end: :func:`polynomial` of power 3, the usual schedule of gradual pruning.

    Args:
      init_value, end_value, transition_steps, transition_begin: as for :func:`polynomial`, which also says what is
        returned and what is raised.

    Source: Zhu & Gupta, "To prune, or not to prune", 2017 (arXiv:1710.01878), Eq. 1.

    >>> [round(float(cubic(0.0, 0.8, 100)(count)), 4) for count in (0, 50, 100, 1000)]
    [0.0, 0.7, 0.8, 0.8]
    """
    return polynomial(init_value, end_value, 3, transition_steps, transition_begin)


def cosine(init_value: Setting, end_value: Setting, transition_steps: Any, transition_begin: Any = 0) -> Schedule:
    """From one value to another along half a cosine, flat at both ends.

    ``value = end_value + (init_value - end_value) * (1 + cos(pi * t)) / 2``, else as :func:`polynomial`.

    Args:
      init_value, end_value, transition_steps, transition_begin: as for :func:`polynomial`, which also says what is
        returned and what is raised.

    Source: Evci et al., "Rigging the Lottery", 2020 (arXiv:1911.11134), section 3, for the fraction of weights that
    are exchanged.

    >>> [round(float(cosine(0.3, 0.0, 100)(count)), 4) for count in (0, 50, 100, 1000)]
    [0.3, 0.15, 0.0, 0.0]
    """

    def ease(left: Array) -> Array:
        return (1 - jnp.cos(np.float32(np.pi) * left)) / 2

    return _transition(ease, init_value, end_value, transition_steps, transition_begin)


def piecewise(values: Any, boundaries: Sequence[Any]) -> Schedule:
    """Stairs: ``values[i]`` from ``boundaries[i - 1]`` on, the first value before all boundaries.

    Bit widths that shrink in steps, for one.

    Args:
      values: a sequence of scalars, one more than boundaries, traced; or a tree whose leaves are such sequences.
      boundaries: ascending integers of 0 or more, traced.

    Raises:
      ValueError: a concrete value is not finite; concrete boundaries below 0 or not ascending; the numbers differ.

    >>> [float(piecewise([8, 4, 2], [100, 200])(count)) for count in (0, 99, 100, 200, 1000)]
    [8.0, 8.0, 4.0, 2.0, 2.0]
    """
    edges = [_steps(edge, "boundaries") for edge in boundaries]
    known = [int(edge) for edge in edges if not settings.any_traced(edge)]
    if known != sorted(known):
        raise ValueError(f"boundaries must ascend, got {known}")
    stairs = jax.tree.map(partial(_stairs, edges=len(edges)), values, is_leaf=lambda x: isinstance(x, list | tuple))

    def schedule(count: Any) -> Setting:
        stair = sum((jnp.asarray(count, jnp.int32) >= edge).astype(jnp.int32) for edge in edges)
        return jax.tree.map(lambda leaf: leaf[stair], stairs)

    return schedule


def alternating(
    value: Setting, dense_steps: Any, sparse_steps: Any, transition_begin: Any = 0, transition_end: Any = None
) -> Schedule:
    """The value and 0 in turns: sparse phases and dense ones.

    0 before ``transition_begin``; then phases of ``sparse_steps`` steps at the value and of ``dense_steps`` steps at 0,
    the sparse phase first; from ``transition_end`` on the value.

    Args:
      value: a scalar or a tree of scalars, traced.
      dense_steps: integer of 1 or more, traced.
      sparse_steps: integer of 1 or more, traced.
      transition_begin: integer of 0 or more, traced: the dense steps at the start.
      transition_end: integer, traced, or None for phases without end.

    Raises:
      ValueError: a concrete value is not finite, or a number of steps is too small.

    Source: Peste et al., "AC/DC", 2021 (arXiv:2106.12379), Algorithm 1.

    >>> [float(alternating(0.9, 2, 1, transition_begin=1, transition_end=6)(count)) for count in range(8)]
    [0.0, 0.8999999761581421, 0.0, 0.0, 0.8999999761581421, 0.0, 0.8999999761581421, 0.8999999761581421]
    """
    held = _values(value, "value")
    dense, sparse = _steps(dense_steps, "dense_steps", 1), _steps(sparse_steps, "sparse_steps", 1)
    begin = _steps(transition_begin, "transition_begin")
    end = None if transition_end is None else _steps(transition_end, "transition_end")

    def schedule(count: Any) -> Setting:
        after = jnp.asarray(count, jnp.int32) - begin
        on = (after >= 0) & (after % (dense + sparse) < sparse)
        if end is not None:
            on |= jnp.asarray(count, jnp.int32) >= end
        return jax.tree.map(lambda leaf: jnp.where(on, leaf, 0.0), held)

    return schedule


def _transition(ease: Callable[[Array], Array], first: Any, last: Any, steps: Any, begin: Any) -> Schedule:
    """From one value to another, the weight of the first being ``ease`` of the fraction that is left."""
    first, last = _alike(_values(first, "init_value"), _values(last, "end_value"))
    steps, begin = _steps(steps), _steps(begin, "transition_begin")

    def schedule(count: Any) -> Setting:
        after = jnp.asarray(count, jnp.int32) - begin
        left = 1 - divide(jnp.clip(after, 0, steps).astype(jnp.float32), jnp.maximum(steps, 1).astype(jnp.float32))
        factor = ease(left)

        def value(a: Array, b: Array) -> Array:
            return jnp.where(after >= steps, b, jnp.where(after <= 0, a, b + (a - b) * factor)).astype(jnp.float32)

        return jax.tree.map(value, first, last)

    return schedule


def _values(values: Setting, name: str) -> Any:
    return jax.tree.map(lambda value: _finite(value, name), values)


def _finite(value: Any, name: str) -> Array:
    if not settings.any_traced(value) and not np.all(np.isfinite(np.asarray(value, np.float32))):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return jnp.asarray(value, jnp.float32)


def _alike(first: Any, last: Any) -> tuple[Any, Any]:
    """Both trees in one structure: a single value serves all leaves of the other."""
    if isinstance(first, jax.Array):
        return jax.tree.map(lambda _: first, last), last
    if isinstance(last, jax.Array):
        return first, jax.tree.map(lambda _: last, first)
    if jax.tree.structure(first) != jax.tree.structure(last):
        both = f"{jax.tree.structure(first)}, {jax.tree.structure(last)}"
        raise ValueError(f"init_value and end_value differ in structure: {both}")
    return first, last


def _steps(value: Any, name: str = "transition_steps", least: int = 0) -> Array:
    if not settings.any_traced(value):
        number = np.asarray(value)
        if number.shape or number != np.floor(number) or number < least:
            raise ValueError(f"{name} must be an integer of {least} or more, got {value!r}")
    return jnp.asarray(value, jnp.int32)


def _stairs(values: Any, edges: int) -> Array:
    if len(values) != edges + 1:
        raise ValueError(f"values must be one more than boundaries, got {len(values)} values and {edges} boundaries")
    return jnp.stack([_finite(value, "values") for value in values])
