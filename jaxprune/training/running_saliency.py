"""Criteria that remember: scores gathered over many steps of training."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import saliency as criteria
from jaxprune import settings, tree
from jaxprune.base import Array, Params, Scores


class RunningSaliency(NamedTuple):
    """A criterion with a memory, as three pure functions; the memory is any pytree of arrays.

    Attributes:
      init: ``params -> memory``.
      update: ``(memory, params, grads) -> memory``, at every step, before the parameters change.
      scores: ``(memory, params, grads) -> scores``, when masks are made; ``params`` are those after the step.
    """

    init: Callable[[Params], Any]
    update: Callable[[Any, Params, Any], Any]
    scores: Callable[[Any, Params, Any], Scores]


def movement() -> RunningSaliency:
    """Movement: weights that training moves away from zero matter, whatever their size.

    ``S = -sum over steps of w * dL/dw``, in float32.

    Returns:
      A running criterion for :func:`gradual_pruning` or :func:`straight_through`. Only with the latter does the score
      of a masked weight go on changing, as in the paper: under exact zeros ``w * dL/dw`` is 0.

    Source: Sanh et al., "Movement Pruning", 2020 (arXiv:2005.07683), Eq. 4 and 5, without the learning rate, which is a
    common factor.

    >>> memory = movement().update(jnp.zeros(2), jnp.array([1.0, 1.0]), jnp.array([-0.5, 0.5]))
    >>> movement().scores(memory, None, None).tolist()
    [0.5, -0.5]
    """

    def gather(memory: Array, param: Array, grad: Array) -> Array:
        return memory - param.astype(jnp.float32) * grad.astype(jnp.float32)

    return RunningSaliency(_zeros, lambda *trees: _each(gather, *trees), lambda memory, params, grads: memory)


def running_fisher(decay: Any = 0.99) -> RunningSaliency:
    """The Fisher criterion with squared gradients averaged over the last steps: ``w**2 * average(g**2) / 2``.

    ``average = decay * average + (1 - decay) * g**2``, divided by ``1 - decay**steps``, so that it does not start low.

    Args:
      decay: in [0, 1), traced; about ``1 / (1 - decay)`` steps count.

    Returns:
      A running criterion for :func:`gradual_pruning` or :func:`straight_through`.

    Raises:
      ValueError: a concrete decay outside [0, 1).

    Source: Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018 (arXiv:1801.05787).

    >>> fisher = running_fisher(0.9)
    >>> params, grads = jnp.array([2.0, 1.0]), jnp.array([1.0, 3.0])
    >>> fisher.scores(fisher.update(fisher.init(params), params, grads), params, grads).tolist()
    [2.0, 4.5]
    """
    decay = settings.check_setting(decay, "decay", 0.0, 1.0 - 2**-24)

    def update(memory: Any, params: Params, grads: Any) -> Any:
        average, weight = memory
        average = _each(lambda old, g: decay * old + (1 - decay) * jnp.square(g.astype(jnp.float32)), average, grads)
        return average, decay * weight + (1 - decay)

    def scores(memory: Any, params: Params, grads: Any) -> Scores:
        average, weight = memory
        return criteria.fisher(params, _each(lambda leaf: leaf / weight, average))

    return RunningSaliency(lambda params: (_zeros(params), jnp.zeros((), jnp.float32)), update, scores)


def as_running(saliency: Any, with_grads: bool = True) -> RunningSaliency:
    """Any criterion as one with a memory; a function of (params), or of (params, grads) if there are any, has none."""
    if saliency is None:  # a default that optax.inject_hyperparams does not take for a schedule
        saliency = criteria.magnitude
    if with_grads and isinstance(saliency, RunningSaliency):
        return saliency
    if not callable(saliency):
        raise TypeError(
            f"saliency must be a function of the parameters{' or a RunningSaliency' * with_grads}, got {saliency!r}"
        )
    wanted = with_grads and "grads" in inspect.signature(saliency).parameters

    def scores(memory: Any, params: Params, grads: Any) -> Scores:
        return saliency(params, grads=grads) if wanted else saliency(params)

    return RunningSaliency(lambda params: (), lambda memory, params, grads: (), scores)


def _zeros(params: Params) -> Any:
    """A float32 zero for every weight, in its sharding; 0-d for leaves that are not floating."""
    return jax.tree.map(
        lambda leaf: jnp.zeros_like(leaf, jnp.float32) if tree.is_floating(leaf) else jnp.zeros((), jnp.float32), params
    )


def _each(kernel: Callable[..., Array], first: Any, *rest: Any) -> Any:
    """The kernel on every leaf that has a memory of its own, other leaves of ``first`` as they are."""
    return jax.tree.map(
        lambda leaf, *others: kernel(leaf, *others) if all(map(tree.is_floating, others)) else leaf, first, *rest
    )
