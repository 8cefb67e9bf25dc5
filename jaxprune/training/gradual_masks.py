"""Pruning while training: optax transformations whose masks follow a schedule of sparsities."""

from typing import Any

import optax

from jaxprune import schedules
from jaxprune.base import Scope, Setting, Where
from jaxprune.training.held_masks import held, masked
from jaxprune.training.mask_updates import MaskFn, Ranking, scheduled
from jaxprune.training.running_saliency import as_running


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
