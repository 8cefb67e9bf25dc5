"""When masks are made anew, and how: what the transformations that follow a schedule share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.core import Tracer
from jax.custom_batching import custom_vmap

from jaxprune import masks as masking
from jaxprune import settings, tree
from jaxprune.base import Array, Masks, Params, Scores, Setting, Where
from jaxprune.masks.selection import Scope
from jaxprune.training.held_masks import chosen_of, within
from jaxprune.training.running_saliency import RunningSaliency, as_running

#: ``(scores, sparsity) -> masks``.
MaskFn = Callable[[Scores, Setting], Masks]


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


class MaskRule(NamedTuple):
    """What is fixed about masks that follow a schedule. Fields as the arguments of ``gradual_pruning``."""

    schedule: Callable[[Array], Setting]
    saliency: RunningSaliency
    mask_fn: MaskFn | None
    every: Any
    scope: Scope
    where: Where
    revive: bool


def mask_rule(
    schedule: Any, saliency: Any, mask_fn: MaskFn | None, every: Any, scope: Scope, where: Where, revive: bool
) -> MaskRule:
    """A rule of checked parts; a sparsity that is no function is the same at all steps."""
    if not isinstance(every, Tracer) and every is not None and not np.asarray(every) >= 1:
        raise ValueError(f"every must be a number of steps, 1 or more, or None; got {every!r}")
    if scope not in ("leaf", "global"):
        raise ValueError(f"scope must be 'leaf' or 'global', got {scope!r}")
    function = schedule
    if not callable(schedule):
        level = jax.tree.map(lambda value: settings.check_setting(value, "sparsity", 0.0, 1.0), schedule)
        function = lambda count: level  # noqa: E731
    return MaskRule(function, as_running(saliency), mask_fn, every, scope, where, revive)


def start(rule: MaskRule, params: Params, inner_state: Any) -> PruningState:
    """The state before the first step: masks that keep everything, in the shapes that the rule gives them."""
    target = _target(rule, jnp.zeros((), jnp.int32), params)
    memory = rule.saliency.init(params)
    shapes = jax.eval_shape(lambda p, t, m: ranked(rule, p, t, m, p), params, target, memory)

    def full(shape: Any, leaf: Any) -> Array:
        return jnp.ones_like(leaf, bool) if shape.shape == jnp.shape(leaf) else jnp.ones(shape.shape, bool)

    never = jax.tree.map(lambda _: jnp.full((), -1, jnp.float32), target)
    masks = jax.tree.map(full, shapes, params)
    return PruningState(jnp.zeros((), jnp.int32), never, masks, memory, inner_state)


def renewed(
    rule: MaskRule, state: PruningState, params: Params, grads: Any, preview: Callable[[Any, Any, Params], Any]
) -> PruningState:
    """The state with one step more and, if they are due, new masks; made before the step that they are for is taken.

    Args:
      rule: when, and how.
      state: before the step.
      params: before the step.
      grads: as the inner optimizer sees them.
      preview: ``(grads, inner_state, params) -> updates``, what the inner optimizer would do. Asked only if masks are
        due. Were the updates of the step itself handed over instead, they would have to be written to memory at every
        step, which costs more than all else here.
    """
    target = _target(rule, state.step, params)
    due = _due(rule, state, target, _target(rule, state.step + 1, params))
    memory = rule.saliency.update(state.memory, params, grads)

    def make(due: Array, target: Setting, params: Params, inner: Any, grads: Any, memory: Any, old: Any) -> Any:
        candidate = optax.apply_updates(params, preview(grads, inner, params))
        masks = ranked(rule, candidate, target, memory, grads, old[1])
        return jax.tree.map(lambda new, kept: jnp.where(due, new, kept), (target, masks), old)

    old = (state.sparsity, state.masks)
    operands = (due, target, params, state.inner_state, grads, memory, old)
    if rule.every is not None and not isinstance(rule.every, Tracer) and rule.every == 1:
        sparsity, masks = make(*operands)
    elif isinstance(due, Tracer):
        sparsity, masks = lax.cond(_any_lane(due), make, lambda *operands: operands[-1], *operands)
    else:  # outside of any trace Python can tell, and nothing is compiled anew
        sparsity, masks = make(*operands) if due else old
    return state._replace(
        step=jnp.asarray(optax.safe_increment(state.step)), sparsity=sparsity, masks=masks, memory=memory
    )


def ordered(grads: Any, state: PruningState) -> Any:
    """The gradients as they are, in a form that the compiler cannot use before the masks of ``state`` are made.

    Then the making of masks can read the optimizer's state before the step overwrites it, and no copy is kept.
    """
    known = jnp.stack(jax.tree.leaves(state.sparsity)).min() >= -1 if jax.tree.leaves(state.sparsity) else True

    def wait(mask: Array, grad: Array) -> Array:
        return jnp.where(mask | known, grad, jnp.zeros((), grad.dtype)) if jnp.ndim(mask) else grad

    return jax.tree.map(wait, state.masks, grads)


def _target(rule: MaskRule, count: Array, params: Params) -> Setting:
    target = jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), rule.schedule(count))
    return within(target, params)


def _due(rule: MaskRule, state: PruningState, target: Setting, following: Setting) -> Array:
    """At every so many steps, and where the schedule has come to a level that it stays at."""
    new = _differ(target, state.sparsity)
    if rule.every is None:
        return new
    return (state.step % jnp.asarray(rule.every, jnp.int32) == 0) | (new & ~_differ(target, following))


def _differ(left: Setting, right: Setting) -> Array:
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return sum((a != b for a, b in pairs), jnp.zeros((), bool)) > 0


@custom_vmap
def _any_lane(due: Array) -> Array:
    """Whether any lane of a ``vmap`` is due: not batched, so that ``lax.cond`` stays a branch under ``vmap``."""
    return due


@_any_lane.def_vmap
def _(axis_size: int, batched: Any, due: Array) -> tuple[Array, bool]:
    return _any_lane(jnp.any(due, axis=0)), False


def ranked(rule: MaskRule, params: Params, target: Setting, memory: Any, grads: Any, old: Masks = None) -> Masks:
    """Masks of the params' scores for a target; without revival what ``old`` masks remove stays removed."""
    chosen = chosen_of(params, rule.where)
    found = tree.flatten(rule.saliency.scores(memory, params, grads))
    tree.same_paths(chosen, found, "params", "scores")
    scores = [found.leaves[i] for i in chosen.chosen]
    if old is None or rule.revive:
        masks = _rank(rule, chosen, scores, target)
    else:
        before = [jax.tree.leaves(old)[i] for i in chosen.chosen]
        scores = [jnp.where(mask, score, -jnp.inf) for mask, score in zip(before, scores, strict=True)]
        masks = [new & kept for new, kept in zip(_rank(rule, chosen, scores, target), before, strict=True)]
    return chosen.replace(masks, lambda _: jnp.ones((), bool))


def _rank(rule: MaskRule, chosen: tree.Selection, scores: list[Array], target: Setting) -> list[Array]:
    if not chosen.chosen:
        return []
    names = set(chosen.names)
    given = chosen.replace(scores, lambda _: jnp.zeros((), jnp.float32))
    if rule.mask_fn is None:
        made = masking.by_sparsity(given, target, scope=rule.scope, where=lambda path, _: path in names)
    else:
        made = rule.mask_fn(given, target)
    masks = tree.flatten(made)
    tree.same_paths(chosen, masks, "params", "masks")
    for path, leaf, mask in zip(chosen.paths, chosen.leaves, masks.leaves, strict=True):
        tree.check_mask(path, leaf, mask)
    return [jnp.asarray(masks.leaves[i]) for i in chosen.chosen]
