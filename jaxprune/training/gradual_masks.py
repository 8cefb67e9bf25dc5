"""Pruning while training: optax transformations whose masks follow a schedule of sparsities."""

from functools import partial
from typing import Any

import optax

from jaxprune import schedules
from jaxprune.base import Params, Setting, Where
from jaxprune.masks.selection import Scope
from jaxprune.training.held_masks import held, masked, need
from jaxprune.training.mask_updates import MaskFn, PruningState, mask_rule, ordered, renewed, start


def gradual_pruning(
    inner: optax.GradientTransformation,
    schedule: Any,
    *,
    saliency: Any = None,
    mask_fn: MaskFn | None = None,
    every: int | None = 1,
    scope: Scope = "leaf",
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

    Args:
      inner: any optax transformation that gives updates to be added: an optimizer, or a chain that ends in one.
      schedule: a function ``count -> sparsity``, such as ``jaxprune.schedules.cubic(0.0, 0.9, 1000)``, or one sparsity.
        A scalar in [0, 1] or (scope "leaf") a tree of them. Traced: ``jax.vmap`` over its values trains many
        sparsities in one program.
      saliency: static criterion, by default ``jaxprune.saliency.magnitude``: a function ``params -> scores``; one with
        a parameter ``grads`` (such as ``jaxprune.saliency.gradient``) gets the gradients too; or a
        :class:`RunningSaliency` such as :func:`movement`, which remembers. Scores of units remove whole units.
      mask_fn: static, ``(scores, sparsity) -> masks``, for other masks than exact sparsity in the ``scope``:
        ``lambda scores, _: jaxprune.masks.n_of_m(scores, 2, 4)``. It gets 0-d scores for leaves that take no part.
      every: steps between updates of the masks; None for updates only where the schedule reaches a new level.
      scope: static, "leaf" or "global"; see :func:`jaxprune.masks.by_sparsity`.
      where: which leaves take part; see :func:`jaxprune.tree.select`.
      revive: static, whether removed weights may come back.

    Returns:
      An optax transformation with :class:`PruningState`. It needs ``params`` to update. Sharding of the parameters
      carries over to masks and state.

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
    rule = mask_rule(schedule, saliency, mask_fn, every, scope, where, revive)

    def init(params: Params) -> PruningState:
        return start(rule, params, inner.init(params))

    def update(updates: Any, state: Any, params: Params | None = None, **extra: Any) -> Any:
        params = need(params, "gradual_pruning")
        advance = partial(optax.with_extra_args_support(inner).update, **extra)
        grads = updates if revive else masked(updates, state.masks)
        state = renewed(rule, state, params, grads, lambda *step: advance(*step)[0])
        seen = ordered(grads, state) if revive else masked(updates, state.masks)
        updates, inner_state = advance(seen, state.inner_state, params)
        return held(updates, params, state.masks), state._replace(inner_state=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def one_shot(
    inner: optax.GradientTransformation,
    sparsity: Setting,
    *,
    step: Any = 0,
    saliency: Any = None,
    mask_fn: MaskFn | None = None,
    scope: Scope = "leaf",
    where: Where = None,
) -> optax.GradientTransformationExtraArgs:
    """Prunes once, at one step, and trains on with these masks: dense training, pruning and fine-tuning in one run.

    Args:
      inner: as for :func:`gradual_pruning`.
      sparsity: fraction to remove, a scalar or (scope "leaf") a tree. Traced.
      step: the count of updates at which weights go, traced; from the update of this count on they are 0.
      saliency: as for :func:`gradual_pruning`.
      mask_fn: as for :func:`gradual_pruning`.
      scope: static, "leaf" or "global".
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      An optax transformation with :class:`PruningState`.

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
        inner, schedule, saliency=saliency, mask_fn=mask_fn, every=None, scope=scope, where=where, revive=False
    )


def acdc(
    inner: optax.GradientTransformation,
    sparsity: Setting,
    *,
    dense_steps: Any,
    sparse_steps: Any,
    warmup_steps: Any = 0,
    stop_step: Any = None,
    saliency: Any = None,
    mask_fn: MaskFn | None = None,
    scope: Scope = "global",
    where: Where = None,
) -> optax.GradientTransformationExtraArgs:
    """Alternates sparse and dense phases, and ends sparse: AC/DC.

    Each sparse phase starts with new masks, which it keeps; in a dense phase all weights train, removed ones from 0.

    Args:
      inner: as for :func:`gradual_pruning`.
      sparsity: fraction to remove in sparse phases, a scalar or (scope "leaf") a tree. Traced.
      dense_steps: steps of a dense phase, traced.
      sparse_steps: steps of a sparse phase, traced.
      warmup_steps: dense steps before the first sparse phase, traced.
      stop_step: from this step on the network stays sparse, traced; None alternates for ever.
      saliency: as for :func:`gradual_pruning`.
      mask_fn: as for :func:`gradual_pruning`.
      scope: static, "leaf" or "global".
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      An optax transformation with :class:`PruningState`.

    Raises:
      ValueError: as :func:`gradual_pruning`; a number of steps that is too small.

    Source: Peste et al., "AC/DC: Alternating Compressed/DeCompressed Training", 2021 (arXiv:2106.12379).

    >>> import jax.numpy as jnp
    >>> optimizer = acdc(optax.sgd(1.0), 0.5, dense_steps=1, sparse_steps=1)
    >>> params = jnp.array([4.0, 1.0])
    >>> updates, state = optimizer.update(jnp.zeros(2), optimizer.init(params), params)
    >>> state.masks.tolist()
    [True, False]
    >>> optimizer.update(jnp.zeros(2), state, params)[1].masks.tolist()
    [True, True]
    """
    schedule = schedules.alternating(sparsity, dense_steps, sparse_steps, warmup_steps, stop_step)
    return gradual_pruning(
        inner, schedule, saliency=saliency, mask_fn=mask_fn, every=None, scope=scope, where=where, revive=True
    )
