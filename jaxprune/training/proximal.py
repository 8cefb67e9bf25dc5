"""Proximal steps: optax transformations that come last in a chain and make weights exactly 0.

A penalty in the loss (:mod:`jaxprune.training.penalties`) makes weights small; its proximal operator, applied after the
optimizer's step, makes them 0 and keeps them there for as long as the gradient does not pull harder than the penalty.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import settings, tree
from jaxprune.base import Array, Params, Setting, Where
from jaxprune.kernels.rounding import divide
from jaxprune.training.held_masks import chosen_of, need, within
from jaxprune.training.penalties import unit_lengths, unit_weight


def soft_threshold(
    strength: Setting | Callable[[Any], Setting], *, units: bool = False, where: Where = None
) -> optax.GradientTransformationExtraArgs:
    """The proximal step of :func:`l1` or :func:`group_lasso`: after the update ``u`` a weight ``p`` is ``prox(p + u)``.

    ``prox(x) = sign(x) * max(|x| - strength, 0)`` for l1. For the group lasso it is ``x * max(1 - strength * sqrt(m) /
    ||x||_2, 0)``, x a unit of m weights: units shrink, and become 0, as a whole.

    Put it last in a chain, after the learning rate. With plain gradient descent before it this is ISTA, which minimizes
    ``loss + penalty * l1`` for ``strength = step size * penalty``; behind other optimizers it is the usual way to
    sparsity. Mind the factor: the strength is the step size times the weight of the penalty, so with a schedule of
    learning rates it takes one too.

    Args:
      strength: 0 or more, in the units of the weights; a scalar, a tree of scalars that follows the parameters' paths,
        or a schedule ``count -> scalar or tree``, such as one of optax's. Traced. Concrete ones are checked, traced
        ones below 0 count as 0.
      units: static; whole units (an index along the last axis; of a vector each entry is one) in place of weights.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      An optax transformation. Its update is ``prox(p + u) - p``, and ``-p`` where the proximal operator gives 0, so
      that ``optax.apply_updates`` leaves exactly 0.0 there. An update comes back in its own dtype, unless that is
      narrower than the parameter's: then in the parameter's, without which zeros could not be exact. Computed in
      float32; norms neither overflow nor underflow on the way. NaN stays NaN, and makes its whole unit NaN. The state
      is empty, or the count of a schedule.

    Raises:
      ValueError: at the update: no ``params``, parameters and updates with other paths, a concrete strength that is
        negative or NaN, a pattern that matches no leaf.

    Sources: Beck & Teboulle, "A Fast Iterative Shrinkage-Thresholding Algorithm for Linear Inverse Problems", 2009;
    Parikh & Boyd, "Proximal Algorithms", 2014, sections 6.5.2 and 6.5.4.

    >>> optimizer = optax.chain(optax.sgd(0.1), soft_threshold(0.1 * 2.0))
    >>> params = jnp.array([1.0, -0.5, 0.25])
    >>> updates, _ = optimizer.update(jnp.array([0.0, 0.0, 1.0]), optimizer.init(params), params)
    >>> [round(x, 6) for x in optax.apply_updates(params, updates).tolist()]
    [0.8, -0.3, 0.0]
    """
    prox, scheduled = _group_soft if units else _soft, callable(strength)

    def init(params: Params) -> Any:
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)) if scheduled else optax.EmptyState()

    def update(updates: Any, state: Any, params: Params | None = None, **_: Any) -> tuple[Any, Any]:
        chosen = chosen_of(need(params, "soft_threshold"), where)
        moved = tree.flatten(updates)
        tree.same_paths(chosen, moved, "params", "updates")
        setting = within(strength(state.count) if scheduled else strength, params)
        limits = settings.per_leaf(setting, chosen, "strength", 0.0, np.inf)
        new = _step(prox, chosen.values, [jnp.asarray(moved.leaves[i]) for i in chosen.chosen], limits)
        if scheduled:
            state = optax.ScaleByScheduleState(jnp.asarray(optax.safe_increment(state.count)))
        return moved._replace(chosen=chosen.chosen).replace(new), state

    return optax.GradientTransformationExtraArgs(init, update)


@partial(jax.jit, static_argnums=0)
def _step(prox: Any, params: list[Array], updates: list[Array], limits: list[Array]) -> list[Array]:
    new = []
    for p, u, limit in zip(params, updates, limits, strict=True):
        start = p.astype(jnp.float32)
        zero, end = prox(start + u.astype(jnp.float32), jnp.maximum(limit, 0.0))
        dtype = jnp.promote_types(p.dtype, u.dtype)  # can hold -p
        new.append(jnp.where(zero, -p.astype(dtype), (end - start).astype(dtype)))
    return new


# Proximal operators of one leaf in float32: where the result is 0, and the result elsewhere.


def _soft(x: Array, strength: Array) -> tuple[Array, Array]:
    return jnp.abs(x) <= strength, x - jnp.sign(x) * strength


def _group_soft(x: Array, strength: Array) -> tuple[Array, Array]:
    scale, lengths = unit_lengths(x)
    cut = strength * unit_weight(x) * scale
    zero = lengths <= cut
    return zero, x * divide(lengths - cut, jnp.where(zero, 1.0, lengths))
