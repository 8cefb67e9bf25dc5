"""Masks in the forward pass over weights that stay dense underneath: straight-through pruning."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune import settings, tree
from jaxprune.base import Array, Masks, Params, Scope, Where
from jaxprune.training.mask_updates import MaskFn, Ranking, scheduled
from jaxprune.training.running_saliency import as_running


def masked_forward(params: Params, masks: Masks) -> Params:
    """The masked weights, whose gradient goes to all of them: ``where(mask, w, 0)`` with derivative 1.

    For the loss of :func:`straight_through`: ``loss(masked_forward(params, masks_of(opt_state)))``.

    Args:
      params: any pytree of arrays.
      masks: bool, True keeps, in the structure of the parameters.

    Returns:
      The structure, shapes and dtypes of ``params``; +0.0 under a False, also where NaN or inf was.

    Raises:
      As :func:`jaxprune.masks.apply_masks`.

    Source: Bengio et al., 2013 (arXiv:1308.3432), for the straight-through estimator.

    >>> masks = jnp.array([True, False])
    >>> masked_forward(jnp.array([3.0, 2.0]), masks).tolist()
    [3.0, 0.0]
    >>> jax.grad(lambda w: masked_forward(w, masks).sum())(jnp.array([3.0, 2.0])).tolist()
    [1.0, 1.0]
    """
    chosen, kept = tree.pair(params, masks)
    return chosen.replace([_pass_through(value, mask) for value, mask in zip(chosen.values, kept, strict=True)])


@jax.custom_jvp
def _pass_through(value: Array, mask: Array) -> Array:
    return jnp.where(mask, value, jnp.zeros((), value.dtype))


@_pass_through.defjvp
def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
    return _pass_through(*primals), tangents[0]


def straight_through(
    inner: optax.GradientTransformation,
    schedule: Any,
    *,
    decay: Any = 0.0,
    saliency: Any = None,
    every: Any = 1,
    scope: Scope | MaskFn = "leaf",
    min_keep: int | float | None = None,
    where: Where = None,
) -> optax.GradientTransformationExtraArgs:
    """Masks on a schedule over dense latent weights: the loss sees masked weights, the optimizer trains all of them.

    The state holds the masks, the parameters stay dense. Take the loss at ``masked_forward(params, masks_of(state))``;
    after training, ``jaxprune.masks.apply_masks(params, masks_of(state))`` is the sparse network. A weight that was
    masked comes back at its latent value.

    Args:
      inner: as for :func:`gradual_pruning`.
      schedule: as for :func:`gradual_pruning`.
      decay: adds ``decay * w`` to the gradients of masked weights, which makes masks settle; traced.
      saliency: as for :func:`gradual_pruning`; with :func:`movement` this is movement pruning.
      every: as for :func:`gradual_pruning`.
      scope: as for :func:`gradual_pruning`.
      min_keep: as for :func:`gradual_pruning`.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      An optax transformation; :func:`masks_of` finds the masks in its state.

    Raises:
      ValueError: as :func:`gradual_pruning`; a concrete decay below 0.

    Source: Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", 2021
    (arXiv:2102.04010), Eq. 9 for the decay.

    >>> optimizer = straight_through(optax.sgd(0.1), 0.5)
    >>> params = jnp.array([4.0, -3.0, 2.0, 1.0])
    >>> _, state = optimizer.update(jnp.zeros(4), optimizer.init(params), params)
    >>> masked_forward(params, state.masks).tolist()
    [4.0, -3.0, 0.0, 0.0]
    """
    ranking = Ranking(as_running(saliency), scope, min_keep, where, revive=True)
    decay = settings.check_setting(decay, "decay", 0.0, jnp.inf)

    def drawn(mask: Array, grad: Array, weight: Array) -> Array:
        drawn_in = grad + (decay * weight.astype(jnp.float32)).astype(grad.dtype)
        return jnp.where(mask, grad, drawn_in) if jnp.ndim(mask) else grad

    def seen(grads: Any, params: Params, masks: Masks) -> Any:
        return jax.tree.map(drawn, masks, grads, params)

    return scheduled(inner, schedule, every, ranking, seen, lambda updates, *_: updates, "straight_through")
