"""When masks are made anew, and how: what the transformations that follow a schedule share."""

import inspect
import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import saliency as criteria
from jaxprune import settings, tree
from jaxprune.base import Array, Masks, Params, Scope, Scores, Setting, Where
from jaxprune.masks.selection import keep_highest
from jaxprune.pruning import scores_of
from jaxprune.training.criteria import RunningSaliency
from jaxprune.training.held_masks import chosen_of, masked, need, within

#: ``(scores, sparsity) -> masks``.
MaskFn = Callable[[Scores, Setting], Masks]
#: ``(gradients or updates, params, masks) -> gradients or updates``.
Rule = Callable[[Any, Params, Masks], Any]


class PruningState(NamedTuple):
    """State of transformations whose masks follow a schedule: arrays alone.

    Attributes:
      step: int32, updates so far.
      sparsity: what the masks were last made for, float32; -1 before the first time.
      masks: bool, True keeps; 0-d for leaves that take no part.
      memory: of a running criterion, else ``()``.
      inner_state: of the inner optimizer.
    """

    step: Array
    sparsity: Setting
    masks: Masks
    memory: Any
    inner_state: Any


class Ranking(NamedTuple):
    """How masks are made of parameters; fields as the arguments of ``gradual_pruning``."""

    saliency: RunningSaliency
    scope: Scope | MaskFn
    min_keep: int | float | None
    where: Where
    revive: bool


def as_running(saliency: Any, with_grads: bool = True) -> RunningSaliency:
    """Any criterion as one with a memory; a function of (params), or of (params, grads) if there are any, has none."""
    saliency = criteria.magnitude if saliency is None else saliency  # optax.inject_hyperparams calls what it can call
    if with_grads and isinstance(saliency, RunningSaliency):
        return saliency
    if not callable(saliency):
        allowed = "a function of the parameters" + " or a RunningSaliency" * with_grads
        raise TypeError(f"saliency must be {allowed}, got {saliency!r}")
    wanted = with_grads and "grads" in inspect.signature(saliency).parameters

    def scores(memory: Any, params: Params, grads: Any) -> Scores:
        return saliency(params, grads=grads) if wanted else saliency(params)

    return RunningSaliency(lambda params: (), lambda memory, params, grads: (), scores)


def scheduled(
    inner: optax.GradientTransformation, schedule: Any, every: Any, ranking: Ranking, seen: Rule, given: Rule, name: str
) -> optax.GradientTransformationExtraArgs:
    """An optimizer with masks that follow a schedule, and :class:`PruningState`.

    Args:
      inner, schedule, every: as for ``gradual_pruning``.
      ranking: how masks are made.
      seen: makes, of the gradients and the masks before the step, those of the inner optimizer.
      given: makes, of the inner updates and the masks of the step, the updates.
      name: for errors.
    """
    _check(every, ranking.scope)
    level_at = schedule if callable(schedule) else _always(schedule)

    def target(count: Array, params: Params) -> Setting:
        return within(jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), level_at(count)), params)

    def init(params: Params) -> PruningState:
        first, step = target(jnp.zeros((), jnp.int32), params), jnp.zeros((), jnp.int32)
        memory = ranking.saliency.init(params)
        never = jax.tree.map(lambda _: jnp.full((), -1, jnp.float32), first)
        return PruningState(step, never, unpruned(ranking, params, first, memory), memory, inner.init(params))

    def update(updates: Any, state: Any, params: Params | None = None, **extra: Any) -> tuple[Any, Any]:
        params = need(params, name)
        advance = partial(optax.with_extra_args_support(inner).update, **extra)
        grads = seen(updates, params, state.masks)
        memory = ranking.saliency.update(state.memory, params, grads)
        level, following = target(state.step, params), target(state.step + 1, params)

        def renew(level: Setting, params: Params, inner_state: Any, grads: Any, memory: Any, old: Masks) -> Any:
            # The inner optimizer is asked twice. Were the updates of the step handed over instead, they would have to
            # be written to memory at every step, which costs more than all else here.
            candidate = optax.apply_updates(params, advance(grads, inner_state, params)[0])
            return level, ranked(ranking, candidate, level, memory, grads, old)

        operands = (level, params, state.inner_state, grads, memory, state.masks)
        due = (isinstance(every, int) and every == 1) or _due(every, state, level, following)
        sparsity, masks = if_due(due, renew, (state.sparsity, state.masks), *operands)
        grads = _ordered(grads, sparsity, masks) if ranking.revive else masked(grads, masks)
        new, inner_state = advance(grads, state.inner_state, params)
        step = jnp.asarray(optax.safe_increment(state.step))
        return given(new, params, masks), PruningState(step, sparsity, masks, memory, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _check(every: Any, scope: Any) -> None:
    if not settings.any_traced(every) and every is not None and not np.asarray(every) >= 1:
        raise ValueError(f"every must be a number of steps, 1 or more, or None; got {every!r}")
    if not callable(scope) and scope not in ("leaf", "global"):
        raise ValueError(f"scope must be 'leaf', 'global' or (scores, sparsity) -> masks, got {scope!r}")


def if_due(due: Any, make: Callable[..., Any], old: Any, *operands: Any) -> Any:
    """``make(*operands)`` where due, else ``old``: a branch, under ``vmap`` too, which is taken if any lane is due."""
    if not settings.any_traced(due):  # outside of any trace Python can tell, and nothing is compiled anew
        return make(*operands) if due else old

    def renew(due: Array, old: Any, *operands: Any) -> Any:
        return jax.tree.map(lambda new, kept: jnp.where(due, new, kept), make(*operands), old)

    return jax.lax.cond(_any_lane(due), renew, lambda due, old, *_: old, due, old, *operands)


def ranked(ranking: Ranking, params: Params, level: Setting, memory: Any, grads: Any, old: Masks = None) -> Masks:
    """Masks of the params' scores for a sparsity; without revival what ``old`` masks remove stays removed."""
    chosen = chosen_of(params, ranking.where)
    if not chosen.chosen:
        return chosen.replace([], tree.no_mask)
    scores = scores_of(chosen, ranking.saliency.scores(memory, params, grads))
    before = [] if old is None or ranking.revive else [jax.tree.leaves(old)[i] for i in chosen.chosen]
    if before:  # what is removed ranks strictly behind all else
        lowest = (jnp.maximum(score, jnp.finfo(score.dtype).min) for score in scores)
        scores = [jnp.where(mask, score, -jnp.inf) for mask, score in zip(before, lowest, strict=True)]
    masks = _ranked_leaves(ranking, chosen, scores, level)
    if before:  # a mask function may think otherwise
        masks = [new & kept for new, kept in zip(masks, before, strict=True)]
    return chosen.replace(masks, tree.no_mask)


def _ranked_leaves(ranking: Ranking, chosen: tree.Selection, scores: list[Array], level: Setting) -> list[Array]:
    if callable(ranking.scope):
        made = ranking.scope(chosen.replace(scores, tree.no_score), level)
        masks = tree.leaves_like(chosen, made, "params", "masks")
    else:
        masks = keep_highest(chosen, scores, level, ranking.scope, ranking.min_keep)
    for path, leaf, mask in zip(chosen.names, chosen.taken, masks, strict=True):
        tree.check_mask(path, leaf, mask)
    return tree.arrays(masks)


def unpruned(ranking: Ranking, params: Params, level: Setting = 0.0, memory: Any = ()) -> Masks:
    """Masks that keep everything, in the shapes and the sharding of those that the ranking makes."""
    chosen = chosen_of(params, ranking.where)

    def first(values: list[Array], level: Setting, memory: Any) -> list[Array]:
        params = chosen.replace(values)
        masks = ranked(ranking, params, level, memory, params)
        return [jax.tree.leaves(masks)[i] for i in chosen.chosen]

    def full(shape: Any, leaf: Array) -> Array:
        return jnp.ones_like(leaf, bool) if shape.shape == leaf.shape else jnp.ones(shape.shape, bool)

    shapes = jax.eval_shape(first, chosen.values, level, memory)
    return chosen.replace([full(*pair) for pair in zip(shapes, chosen.values, strict=True)], tree.no_mask)


def _always(sparsity: Setting) -> Callable[[Array], Setting]:
    level = jax.tree.map(lambda value: settings.check_setting(value, "sparsity", 0.0, 1.0), sparsity)
    return lambda count: level


def _due(every: Any, state: PruningState, level: Setting, following: Setting) -> Array:
    """At every so many steps, and where the schedule has come to a level that it stays at."""
    new = _differ(level, state.sparsity)
    if every is None:
        return new
    return (state.step % jnp.asarray(every, jnp.int32) == 0) | (new & ~_differ(level, following))


def _differ(left: Setting, right: Setting) -> Array:
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return reduce(operator.or_, (a != b for a, b in pairs), jnp.zeros((), bool))


def _ordered(grads: Any, sparsity: Setting, masks: Masks) -> Any:
    """The gradients as they are, in a form that the compiler cannot use before the masks are made.

    Then the making of masks can read the optimizer's state before the step overwrites it, and no copy is kept.
    """
    known = jnp.stack(jax.tree.leaves(sparsity)).min() >= -1 if jax.tree.leaves(sparsity) else True

    def wait(mask: Array, grad: Array) -> Array:
        return jnp.where(mask | known, grad, jnp.zeros((), grad.dtype)) if jnp.ndim(mask) else grad

    return jax.tree.map(wait, masks, grads)


@jax.custom_batching.custom_vmap
def _any_lane(due: Array) -> Array:
    """Whether any lane of a ``vmap`` is due: not batched, so that ``jax.lax.cond`` stays a branch under ``vmap``."""
    return due


@_any_lane.def_vmap
def _(axis_size: int, batched: Any, due: Array) -> tuple[Array, bool]:
    return _any_lane(jnp.any(due, axis=0)), False
