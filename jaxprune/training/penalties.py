"""Penalties for the loss that make weights small or few, and the steps that make them exactly 0.

A penalty is added: ``loss(params) + strength * l1(params)``. Its values and derivatives are computed in float32, and
derivatives are cast to the leaf's dtype once. They stay finite for all finite weights: where the true derivative does
not exist it is taken as 0, and beyond the leaf's range it is cut off there. Its proximal operator, applied after the
optimizer's step (:func:`soft_threshold`), makes weights 0 and keeps them there for as long as the gradient does not
pull harder than the penalty.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import settings, tree
from jaxprune.base import Array, Layout, Params, Setting, Where
from jaxprune.kernels import by_shape
from jaxprune.kernels.rounding import divide, normalizer
from jaxprune.layout import Axes, axes_of
from jaxprune.training.held_masks import chosen_of, need, within


def l1(params: Params, *, where: Where = None) -> Array:
    """The sum of all magnitudes, ``sum |w|``: the lasso.

    Args:
      params: any pytree of arrays.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      float32 scalar; 0 for no leaves. The derivative is sign(w), 0 at 0.

    Raises:
      ValueError: a pattern that matches no leaf. TypeError: a leaf is no array, with its path.

    Source: Tibshirani, "Regression Shrinkage and Selection via the Lasso", 1996.

    >>> l1({"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0, 3.0])})
    Array(3., dtype=float32)
    """
    return _sum(_l1, None, tree.select(params, where).values)


def group_lasso(params: Params, *, where: Where = None, layout: Layout = None) -> Array:
    """The sum over units of ``sqrt(m) * ||w_unit||_2``, ``m`` the number of weights of the unit.

    It pulls whole units to 0, where :func:`l1` pulls single weights. A unit is an index along the output axes of a
    leaf; of a vector each entry is one.

    Args:
      params: any pytree of arrays.
      where: which leaves take part; see :func:`jaxprune.tree.select`.
      layout: the axes of leaves, static; see :mod:`jaxprune.layout`.

    Returns:
      float32 scalar; 0 for no leaves. The derivative is ``sqrt(m) * w / ||w_unit||_2``, 0 at a zero unit. The norm
      neither overflows nor underflows on the way.

    Raises:
      ValueError: a pattern that matches no leaf, a kernel whose axes no rule knows. TypeError: a leaf is no array.

    Source: Yuan & Lin, "Model selection and estimation in regression with grouped variables", 2006; for the units of a
    network Wen et al., "Learning Structured Sparsity in Deep Neural Networks", 2016 (arXiv:1608.03665).

    >>> group_lasso(jnp.array([[3.0, 0.0], [4.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    Array(12., dtype=float32)
    """
    chosen = tree.select(params, where)
    return _sum(_group_lasso, tuple(axes_of(chosen, layout)), chosen.values)


def hoyer(params: Params, *, where: Where = None) -> Array:
    """The sum over leaves of ``(sum |w|)**2 / sum w**2``: Hoyer-Square.

    About the number of weights that matter: 1 for a single weight, n for n equal ones, whatever their size. It makes
    the small weights of a leaf smaller and spares the large ones, since scaling a leaf changes nothing.

    Args:
      params: any pytree of arrays.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      float32 scalar, at most the number of weights; 0 for no leaves. With S the sum of magnitudes and Q that of squares
      the derivative is ``2 * S / Q * (sign(w) - w * S / Q)``; it is 0 at a zero weight, and a leaf of zeros has value
      and derivative 0. Nothing overflows or underflows on the way.

    Raises:
      ValueError: a pattern that matches no leaf. TypeError: a leaf is no array, with its path.

    Source: Yang et al., "DeepHoyer: Learning Sparser Neural Network with Differentiable Scale-Invariant Sparsity
    Measures", 2020 (arXiv:1908.09979), Eq. 2.

    >>> hoyer({"a": jnp.full((2, 2), 7.0), "b": jnp.array([[0.0, -5.0]])})
    Array(5., dtype=float32)
    """
    return _sum(_hoyer, None, tree.select(params, where).values)


def soft_threshold(
    strength: Setting | Callable[[Any], Setting], *, units: bool = False, where: Where = None, layout: Layout = None
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
      units: static; whole units, as of :func:`group_lasso`, in place of weights.
      where: which leaves take part; see :func:`jaxprune.tree.select`.
      layout: the axes of leaves, static; see :mod:`jaxprune.layout`.

    Returns:
      An optax transformation. Its update is ``prox(p + u) - p``, and ``-p`` where the proximal operator gives 0, so
      that ``optax.apply_updates`` leaves exactly 0.0 there. An update comes back in its own dtype, unless that is
      narrower than the parameter's: then in the parameter's, without which zeros could not be exact. Computed in
      float32; norms neither overflow nor underflow on the way. NaN stays NaN, and makes its whole unit NaN. The state
      is empty, or the count of a schedule.

    Raises:
      ValueError: at the update: no ``params``, parameters and updates with other paths, a concrete strength that is
        negative or NaN, a pattern that matches no leaf, units of a kernel whose axes no rule knows.

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
        axes = axes_of(chosen, layout) if units else [None] * len(limits)
        moved = moved._replace(chosen=chosen.chosen)
        new = by_shape.each(_step, chosen.values, moved.values, limits, own=axes, static=(prox,))
        if scheduled:
            state = optax.ScaleByScheduleState(jnp.asarray(optax.safe_increment(state.count)))
        return moved.replace(new), state

    return optax.GradientTransformationExtraArgs(init, update)


def _unit_lengths(w: Array, axes: Axes) -> tuple[Array, Array, np.float32]:
    """``(scale, lengths, sqrt(m))``: the 2-norms of units of m weights times powers of two that let squares fit."""
    within = axes.inputs
    scale = normalizer(jnp.max(jnp.abs(w), axis=within, keepdims=True, initial=0.0))
    squares = jnp.sum(jnp.square(_apart(w * scale)), axis=within, keepdims=True)
    some = squares != 0  # so that no second derivative is 0/0
    lengths = jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1.0)), 0.0)
    return scale, lengths, np.float32(math.sqrt(math.prod(w.shape[i] for i in within)))


def _apart(scaled: Array) -> Array:
    """The same numbers, which lie in (-4, 4): of a constant w, XLA would make ``w**2 * scale**2``, 0 * inf perhaps."""
    return jnp.maximum(scaled, -8.0)


@partial(jax.jit, static_argnums=(0, 1))
def _sum(kernel: Any, axes: tuple[Axes, ...] | None, leaves: list[Array]) -> Array:
    rows = zip(axes or [None] * len(leaves), leaves, strict=True)
    return sum((_value(kernel, *row) for row in rows), jnp.zeros((), jnp.float32))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _value(kernel: Any, axes: Axes | None, w: Array) -> Array:
    return kernel(w.astype(jnp.float32), axes)[0]


@_value.defjvp
def _value_jvp(kernel: Any, axes: Axes | None, primals: Any, tangents: Any) -> tuple[Array, Array]:
    # Written out, as automatic derivatives run into 0/0 and inf - inf; limited to what the leaf's dtype can hold.
    (w,), (tangent,) = primals, tangents
    value, slope = kernel(w.astype(jnp.float32), axes)
    limit = min(float(jnp.finfo(w.dtype).max), float(np.finfo(np.float32).max))
    return value, jnp.sum(jnp.clip(slope, -limit, limit) * tangent.astype(jnp.float32))


# Kernels: one leaf in float32, and its axes where there are units -> value and derivative.


def _l1(w: Array, _: None) -> tuple[Array, Array]:
    return jnp.sum(jnp.abs(w)), jnp.sign(w)


def _group_lasso(w: Array, axes: Axes) -> tuple[Array, Array]:
    scale, lengths, weight = _unit_lengths(w, axes)
    some = lengths != 0
    slope = jnp.where(some, weight * divide(w * scale, jnp.where(some, lengths, 1.0)), 0.0)
    return jnp.sum(weight * divide(lengths, scale)), slope


def _hoyer(w: Array, _: None) -> tuple[Array, Array]:
    largest = jnp.max(jnp.abs(w), initial=0.0)
    some = largest > 0
    scale = jnp.where(some, normalizer(largest), 1.0)
    scaled = w * scale
    total, squares = jnp.sum(jnp.abs(scaled)), jnp.sum(jnp.square(_apart(scaled)))
    ratio = divide(total, jnp.where(some, squares, 1.0))
    return total * ratio, scale * (2 * ratio * (jnp.sign(w) - scaled * ratio))


def _step(param: Array, update: Array, limit: Array, axes: Axes | None, prox: Any) -> Array:
    start = param.astype(jnp.float32)
    zero, end = prox(start + update.astype(jnp.float32), axes, jnp.maximum(limit, 0.0))
    dtype = jnp.promote_types(param.dtype, update.dtype)  # can hold -param
    return jnp.where(zero, -param.astype(dtype), (end - start).astype(dtype))


# Proximal operators of one leaf in float32: where the result is 0, and the result elsewhere.


def _soft(x: Array, _: None, strength: Array) -> tuple[Array, Array]:
    return jnp.abs(x) <= strength, x - jnp.sign(x) * strength


def _group_soft(x: Array, axes: Axes, strength: Array) -> tuple[Array, Array]:
    scale, lengths, weight = _unit_lengths(x, axes)
    cut = strength * weight * scale
    zero = lengths <= cut
    return zero, x * divide(lengths - cut, jnp.where(zero, 1.0, lengths))
