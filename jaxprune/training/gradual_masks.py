"""Pruning while training: masks follow a schedule of sparsities, over weights that are 0 or stay dense underneath."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune import schedules, settings, tree
from jaxprune.base import Array, Masks, Params, Scope, Setting, Where
from jaxprune.kernels.rounding import passed_through
from jaxprune.masks.application import mask_each
from jaxprune.training.held_masks import held, masked
from jaxprune.training.mask_updates import MaskFn, Ranking, as_running, scheduled


def gradual_pruning(
    inner: optax.GradientTransformation,
    schedule: Any,
    *,
    saliency: Any = None,
    every: Any = 1,
    scope: Scope | MaskFn = "leaf",
    min_keep: int | float | None = None,
    where: Where = None,
    revive: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that sparsity follows a schedule, with exact zeros after every ``optax.apply_updates``.

    At an update step the weights that the inner optimizer would give, ``p + u``, are scored, and masks are made for the
    sparsity ``schedule(count)``; then, as at all other steps, the update of each masked weight is ``-p``. The masks
    change at steps 0, ``every``, 2 ``every``, ..., and whenever the schedule has reached a level that it stays at, so
    that the last level is never missed. At other steps nothing is scored or ranked; at an update step the inner
    optimizer is asked twice.

    Masked weights are 0 when the gradient is taken, and the gradient is dense. With ``revive`` the inner optimizer sees
    it whole, and a masked weight comes back as soon as its new score ranks among the kept. Without, a removed weight is
    removed for good: the inner optimizer sees zero gradients there.

    Sparse and dense phases in turn, AC/DC (Peste et al. 2021, arXiv:2106.12379), are the schedule
    ``jaxprune.schedules.alternating(0.9, dense_steps, sparse_steps)`` with ``every=None``.

    Args:
      inner: any optax transformation that gives updates to be added: an optimizer, or a chain that ends in one.
      schedule: a function ``count -> sparsity``, such as ``jaxprune.schedules.cubic(0.0, 0.9, 1000)``, or one sparsity.
        A scalar in [0, 1] or (scope "leaf") a tree of them. Traced: ``jax.vmap`` over its values trains many
        sparsities in one program.
      saliency: static criterion, by default ``jaxprune.saliency.magnitude``: a function ``params -> scores``; one with
        a parameter ``grads`` (such as ``jaxprune.saliency.gradient``) gets the gradients too; or a
        :class:`RunningSaliency` such as :func:`movement`, which remembers. Scores of units remove whole units.
      every: steps between updates of the masks, traced; None for updates only where the schedule reaches a new level.
      scope: static, "leaf" or "global", see :func:`jaxprune.masks.by_sparsity`; or a function ``(scores, sparsity) ->
        masks`` for masks of another kind: ``lambda scores, _: jaxprune.masks.n_of_m(scores, 2, 4)``. It gets 0-d
        scores for leaves that take no part.
      min_keep: static, of each leaf; see :func:`jaxprune.masks.by_sparsity`.
      where: which leaves take part; see :func:`jaxprune.tree.select`.
      revive: static, whether removed weights may come back.

    Returns:
      An optax transformation. It needs ``params`` to update. :func:`masks_of` finds the masks in its state. Sharding of
      the parameters carries over to masks and state.

    Raises:
      ValueError: a concrete sparsity outside [0, 1]; an ``every`` below 1; a ``where`` that matches nothing; no params.

    Source: Zhu & Gupta, "To prune, or not to prune", 2017 (arXiv:1710.01878).

    >>> import jax.numpy as jnp
    >>> optimizer = gradual_pruning(optax.sgd(0.1), schedules.cubic(0.0, 0.5, 10), every=5)
    >>> params = jnp.array([4.0, -3.0, 2.0, 1.0])
    >>> state = optimizer.init(params)
    >>> for _ in range(11):
    ...     updates, state = optimizer.update(jnp.zeros(4), state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> params.tolist()
    [4.0, -3.0, 0.0, 0.0]
    """
    ranking = Ranking(as_running(saliency), scope, min_keep, where, revive)

    def seen(grads: Any, params: Any, masks: Any) -> Any:
        return grads if revive else masked(grads, masks)

    return scheduled(inner, schedule, every, ranking, seen, held, "gradual_pruning")


def one_shot(
    inner: optax.GradientTransformation,
    sparsity: Setting,
    *,
    step: Any = 0,
    saliency: Any = None,
    scope: Scope | MaskFn = "leaf",
    min_keep: int | float | None = None,
    where: Where = None,
) -> optax.GradientTransformationExtraArgs:
    """Prunes once, at one step, and trains on with these masks: dense training, pruning and fine-tuning in one run.

    Args:
      inner: as for :func:`gradual_pruning`.
      sparsity: fraction to remove, a scalar or (scope "leaf") a tree. Traced.
      step: the count of updates at which weights go, traced; from the update of this count on they are 0.
      saliency: as for :func:`gradual_pruning`.
      scope: as for :func:`gradual_pruning`.
      min_keep: as for :func:`gradual_pruning`.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      An optax transformation, as :func:`gradual_pruning`.

    Raises:
      ValueError: as :func:`gradual_pruning`; a step below 0.

    >>> import jax.numpy as jnp
    >>> optimizer = one_shot(optax.sgd(0.1), 0.5)
    >>> params = jnp.array([4.0, -3.0, 2.0, 1.0])
    >>> updates, state = optimizer.update(jnp.zeros(4), optimizer.init(params), params)
    >>> optax.apply_updates(params, updates).tolist()
    [4.0, -3.0, 0.0, 0.0]
    """
    schedule = schedules.one_shot(sparsity, step)
    return gradual_pruning(
        inner, schedule, saliency=saliency, every=None, scope=scope, min_keep=min_keep, where=where, revive=False
    )


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
    values = chosen.values
    return chosen.replace(list(map(passed_through, values, mask_each(values, kept))))
