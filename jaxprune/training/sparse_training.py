"""Sparse from the first step on: masks drawn at random, which stay as they are or exchange weights as training goes."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import schedules, settings
from jaxprune.base import Array, Masks, Params, Setting, Where
from jaxprune.kernels import order
from jaxprune.kernels.sharding import automatic, explicit_spec
from jaxprune.masks.selection import as_masks, keep_highest
from jaxprune.training.held_masks import chosen_of, held, masked, need, within
from jaxprune.training.mask_updates import if_due

#: ``(leaf's gradient, key) -> score`` of each weight that may grow, finite and larger for those that should.
Growth = Callable[[Array, Array], Array]


class SparseState(NamedTuple):
    """State of the transformations of this file: arrays alone.

    Attributes:
      step: int32, updates so far.
      masks: bool, True is live; 0-d for leaves that take no part.
      key: the data of a PRNG key, uint32.
      inner_state: of the inner optimizer.
    """

    step: Array
    masks: Masks
    key: Array
    inner_state: Any


def static_sparse(
    inner: optax.GradientTransformation, sparsity: Setting, *, key: Array, where: Where = None
) -> optax.GradientTransformationExtraArgs:
    """Trains under random masks that never change: the baseline of sparse training.

    Start from ``jaxprune.masks.apply_masks(params, masks_of(state))``, so that the first gradient sees the sparse
    network too. Removed weights are 0 after every ``optax.apply_updates``, and the inner optimizer sees zero gradients
    for them.

    Args:
      inner: any optax transformation that gives updates to be added.
      sparsity: fraction to remove of each leaf, a scalar or a tree such as
        ``jaxprune.masks.allocation.erdos_renyi_kernel(params, 0.9)`` gives. Traced.
      key: PRNG key of the masks, of either kind. Traced.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      An optax transformation that needs ``params`` to update; :func:`masks_of` finds the masks in its state.

    Raises:
      ValueError: a concrete sparsity outside [0, 1]; a ``where`` that matches nothing; no params.

    >>> optimizer = static_sparse(optax.sgd(0.1), 0.75, key=jax.random.key(0))
    >>> int(optimizer.init(jnp.ones((4, 4))).masks.sum())
    4
    """
    return _sparse(inner, sparsity, key, where, "static_sparse")


def sparse_evolution(
    inner: optax.GradientTransformation,
    sparsity: Setting,
    *,
    key: Array,
    every: Any = 100,
    drop_fraction: Any = 0.3,
    stop_step: Any = None,
    where: Where = None,
) -> optax.GradientTransformationExtraArgs:
    """Sparse evolutionary training (SET): drops the smallest live weights, grows as many at random.

    Args:
      inner, sparsity, every, drop_fraction, stop_step, where: as for :func:`rigl`, which also says what is returned
        and what is raised.
      key: PRNG key of the masks and of what grows. Traced.

    Source: Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity", 2018
    (arXiv:1707.04780), Algorithm 2, with the smallest magnitudes in place of the values nearest to 0 of either sign.

    >>> optimizer = sparse_evolution(optax.sgd(0.1), 0.75, key=jax.random.key(0), every=1)
    >>> params = jnp.ones((4, 4))
    >>> state = optimizer.init(params)
    >>> for _ in range(3):
    ...     updates, state = optimizer.update(jnp.ones((4, 4)), state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> int(state.masks.sum()), int((params != 0).sum()) <= 4
    (4, True)
    """
    return _sparse(inner, sparsity, key, where, "sparse_evolution", _uniform, every, drop_fraction, stop_step)


def rigl(
    inner: optax.GradientTransformation,
    sparsity: Setting,
    *,
    key: Array,
    every: Any = 100,
    drop_fraction: Any = 0.3,
    stop_step: Any = None,
    where: Where = None,
) -> optax.GradientTransformationExtraArgs:
    """Rigging the lottery (RigL): drops the smallest live weights, grows those of the largest gradients.

    At steps ``every``, 2 ``every``, ... before ``stop_step``, ``floor(fraction * live)`` weights of each leaf go, those
    that the inner update leaves smallest, and as many come: of all that have not survived, those with the largest
    ``|dL/dw|``, at masked weights the gradient at 0. The number of live weights never changes; a weight that was not
    live starts at exactly 0. Equal magnitudes and equal gradients go by their flat index, the lower one first to go.

    Args:
      inner: as for :func:`static_sparse`.
      sparsity: as for :func:`static_sparse`; constant throughout.
      key: PRNG key of the first masks. Traced.
      every: steps between exchanges, 1 or more, traced.
      drop_fraction: of the live weights, in [0, 1]; with a ``stop_step`` it falls along half a cosine from this to 0.
        Or a function ``count -> fraction``. Traced.
      stop_step: from this step on masks stay, traced; None for exchanges without end.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      An optax transformation, as :func:`static_sparse`.

    Raises:
      ValueError: a concrete sparsity or fraction outside [0, 1]; an ``every`` below 1; no params.

    Source: Evci et al., "Rigging the Lottery: Making All Tickets Winners", 2020 (arXiv:1911.11134), section 3.

    >>> optimizer = rigl(optax.sgd(0.1), 0.75, key=jax.random.key(0), every=1, drop_fraction=0.5)
    >>> params = jnp.ones((4, 4))
    >>> state = optimizer.init(params)
    >>> for _ in range(3):
    ...     updates, state = optimizer.update(jnp.ones((4, 4)), state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> int(state.masks.sum())
    4
    """
    return _sparse(inner, sparsity, key, where, "rigl", _magnitude, every, drop_fraction, stop_step)


def _sparse(
    inner: Any, sparsity: Setting, key: Array, where: Where, name: str, growth: Growth | None = None, *exchange: Any
) -> optax.GradientTransformationExtraArgs:
    """Random masks, and if something grows, exchanges of weights: the last arguments of :func:`rigl`."""
    every, drop_fraction, stop_step = exchange or (1, 0.0, None)
    if not settings.any_traced(every) and not np.asarray(every) >= 1:
        raise ValueError(f"every must be a number of steps, 1 or more; got {every!r}")
    fraction = _drop_schedule(drop_fraction, stop_step)
    typed = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
    generator = jax.random.key_impl(typed)

    def init(params: Params) -> SparseState:
        first, later = jax.random.split(typed)
        masks = _random_masks(params, sparsity, first, where)
        return SparseState(jnp.zeros((), jnp.int32), masks, jax.random.key_data(later), inner.init(params))

    def update(updates: Any, state: Any, params: Params | None = None, **extra: Any) -> Any:
        params = need(params, name)
        advance = partial(optax.with_extra_args_support(inner).update, **extra)
        masks = state.masks
        if growth:
            key = jax.random.fold_in(jax.random.wrap_key_data(state.key, impl=generator), state.step)
            due = (state.step > 0) & (state.step % jnp.asarray(every, jnp.int32) == 0)
            if stop_step is not None:
                due &= state.step < jnp.asarray(stop_step, jnp.int32)
            operands = (params, updates, state.inner_state, fraction(state.step), key, masks)
            masks = if_due(due, partial(_exchange, growth, advance), masks, *operands)
        stayed = jax.tree.map(lambda now, before: now & before if now.ndim else now, masks, state.masks)
        new, inner_state = advance(masked(updates, stayed), state.inner_state, params)
        step = jnp.asarray(optax.safe_increment(state.step))
        return held(new, params, stayed), SparseState(step, masks, state.key, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _drop_schedule(drop_fraction: Any, stop_step: Any) -> Callable[[Array], Any]:
    if callable(drop_fraction):
        return drop_fraction
    fraction = settings.check_setting(drop_fraction, "drop_fraction", 0.0, 1.0)
    return schedules.constant(fraction) if stop_step is None else schedules.cosine(fraction, 0.0, stop_step)


def _random_masks(params: Params, sparsity: Setting, key: Array, where: Where) -> Masks:
    chosen = chosen_of(params, where)
    keys = jax.random.split(key, max(len(chosen.chosen), 1))
    drawn = [_uniform(leaf, k) for k, leaf in zip(keys, chosen.values, strict=False)]
    return as_masks(chosen, keep_highest(chosen, drawn, within(sparsity, params), "leaf"))


def _magnitude(grad: Array, key: Array) -> Array:
    return jnp.abs(grad)


def _uniform(like: Array, key: Array) -> Array:
    """Uniform numbers in the shape and the sharding of an array."""
    drawn = automatic(lambda like, key: jax.random.uniform(key, like.shape), like, key, out=explicit_spec(like))
    if settings.any_traced(drawn) or len(like.sharding.device_set) == 1:
        return drawn
    return jax.device_put(drawn, like.sharding)


def _exchange(
    growth: Growth, advance: Callable[..., Any], params: Params, grads: Any, inner_state: Any, *operands: Any
) -> Masks:
    """New masks, made before the step is taken; ``operands`` are the fraction, the key and the old masks."""
    fraction, key, masks = operands
    updates, _ = advance(masked(grads, masks), inner_state, params)
    flat, treedef = jax.tree.flatten(masks)
    weights, slopes = map(treedef.flatten_up_to, (optax.apply_updates(params, updates), grads))
    places = [i for i, mask in enumerate(flat) if mask.ndim]
    for i, own in zip(places, jax.random.split(key, max(len(places), 1)), strict=False):
        flat[i] = _exchanged(flat[i], weights[i], _finite(growth(slopes[i], own)), fraction)
    return treedef.unflatten(flat)


def _exchanged(mask: Array, weights: Array, wanted: Array, fraction: Array) -> Array:
    """A new mask: of the live weights the largest survive, of all others the most wanted grow."""
    dead = jnp.sum(~mask, dtype=jnp.uint32)
    live = np.uint32(mask.size) - dead
    drop = jnp.floor(jnp.clip(fraction, 0, 1) * live.astype(jnp.float32)).astype(jnp.uint32)
    stay = order.keep_above(jnp.where(mask, jnp.abs(weights), -1), dead + jnp.minimum(drop, live))
    return order.keep_above(jnp.where(stay, jnp.inf, wanted), dead)


def _finite(scores: Array) -> Array:
    """Below the infinity that marks survivors; NaN last of all."""
    scores = jnp.where(jnp.isnan(scores), -1, scores)
    return jnp.minimum(scores, jnp.finfo(scores.dtype).max)
