"""LSQ: steps of a quantizer that are learned with the weights (Esser et al. 2020, arXiv:1902.08153).

Steps are ordinary parameters: make them with :func:`init_step_sizes`, put them beside the weights in what the optimizer
trains (without weight decay, which would pull them to 0), and quantize in the loss with :func:`learned_step_size`.
:func:`step_qparams` hands them on to ``jp.fake_quant`` and ``jp.quantize``, which give the same values bit for bit.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import layout, settings, tree
from jaxprune.base import Array, Params, QParams, QuantSpec, Setting, Where
from jaxprune.kernels import by_shape, uniform
from jaxprune.kernels.reductions import full_range, mean_magnitude
from jaxprune.kernels.rounding import HUGE, TINY, divide, grid, top_code
from jaxprune.kernels.sharding import automatic, explicit_spec
from jaxprune.paths import follow_paths

Axes = int | tuple[int, ...] | None


def init_step_sizes(
    params: Params, bits: Setting, *, signed: bool = True, axis: Axes = None, where: Where = None
) -> Params:
    """The steps that LSQ starts from: ``2 * mean(|w|) / sqrt(Q_p)`` (section 2.1 of the paper).

    Args:
      params: any pytree, or one bare array; for a quantizer of activations, a first batch of them.
      bits: width of a code, in [2, 16] if signed, else in [1, 16]; a scalar or a tree of scalars. Traced.
      signed: whether codes are signed: the largest one, Q_p, is 2**(b-1) - 1, else 2**b - 1. Static.
      axis: the axes that keep a step of their own; ``None`` for one step a leaf, ``-1`` for one a unit. Static.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      A tree in the structure of ``params``, float32: scalars, or with ``axis`` arrays of the leaf's rank, of size 1
      along all other axes. Means are over finite entries. In place of a leaf that takes no part stands a scalar 0,
      which nothing reads, so that its gradient is 0 and an optimizer leaves it at 0.

    Raises:
      ValueError: concrete bits out of range; an axis that a leaf does not have, with its path.
      TypeError: a selected leaf does not hold floating-point numbers.

    >>> init_step_sizes({"kernel": jnp.array([[1.0, -3.0]]), "bias": jnp.ones(2)}, 2)
    {'bias': Array(0., dtype=float32), 'kernel': Array(4., dtype=float32)}
    """
    selection = tree.select(params, where)
    named = zip(selection.names, selection.values, strict=True)
    shared = tuple(uniform.layout(leaf.shape, QuantSpec(axis=axis), name)[1] for name, leaf in named)
    widths = _widths(selection, bits, signed)
    steps = by_shape.each(_first_step, selection.values, widths, own=shared, static=(signed,))
    steps = [step.reshape(()) if axis is None else step for step in steps]
    return selection.replace(steps, tree.no_score)


def learned_step_size(
    params: Params,
    steps: Params,
    bits: Setting,
    *,
    signed: bool = True,
    narrow: bool = True,
    batch_axes: Axes = None,
    where: Where = None,
) -> Params:
    """Quantizes with steps that learn: ``round(clip(w / s, -Q_n, Q_p)) * s``, half to even.

    With v = w / s the gradients are those of the paper's equations 3 and 5, computed and summed in float32::

        dy/dw = 1 where -Q_n < v < Q_p, else 0
        dy/ds = g * (round(v) - v where -Q_n < v < Q_p, else -Q_n or Q_p),   g = 1 / sqrt(N * Q_p)

    N is the number of entries that share a step (section 2.2: the weights, or the features, of a layer). There is no
    gradient with respect to ``bits``.

    Args:
      params: any pytree, or one bare array, weights or activations.
      steps: float, as :func:`init_step_sizes` returns them: a step for each selected leaf, which broadcasts to it.
        Traced. A step below the least normal float32, negative ones included, counts as that number, and can grow out
        of there, as its gradient is the one above; infinity counts as the largest. NaN makes all of its weights NaN.
      bits: width of a code, in [2, 16] if signed, else in [1, 16], fractional values round half up; a scalar or a tree
        of scalars. Traced, so a schedule or a sweep of widths is one program.
      signed: ``False`` for codes of activations that are not negative: Q_n = 0, Q_p = 2**b - 1. Static.
      narrow: signed codes end at Q_p = 2**(b-1) - 1. Below they end at Q_n = Q_p, as in all of this library, so that
        quantizing commutes with negation; or, if ``False``, at Q_n = 2**(b-1), as in the paper, which at 2 bits means
        four values in place of three. Static.
      batch_axes: axes that N does not count, for activations: 0 where the batch comes first. Under ``jax.vmap`` over a
        batch none is needed. Static.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      ``params`` with the same structure, shapes and dtypes; leaves that take no part are the same objects. Zeros are
      +0.0, infinities saturate, NaN stays NaN in its place alone and takes no part in gradients.

    Raises:
      ValueError: concrete bits out of range; steps that are missing or do not broadcast, with the leaf's path.
      TypeError: a selected leaf does not hold floating-point numbers.

    >>> params, steps = jnp.array([-0.3, 0.2, 0.0, 0.9]), jnp.array(0.25)
    >>> learned_step_size(params, steps, 3).tolist()
    [-0.25, 0.25, 0.0, 0.75]
    """
    selection = tree.select(params, where)
    chosen = _steps_of(selection, steps)
    named = zip(selection.names, selection.values, chosen, strict=True)
    counts = tuple(_sharers(name, leaf, step, batch_axes) for name, leaf, step in named)
    columns, static = (selection.values, chosen, _widths(selection, bits, signed)), (signed, narrow)
    return selection.replace(by_shape.each(_learned_leaf, *columns, own=counts, static=static))


def step_qparams(
    params: Params, steps: Params, bits: Setting, *, signed: bool = True, narrow: bool = True, where: Where = None
) -> Params:
    """Scale and zero point of a quantizer that has learned its steps, for ``jp.fake_quant`` and ``jp.quantize``.

    These take a spec that is symmetric if the codes are signed and narrow, and ``QuantSpec(symmetric=False)`` if not;
    they then give the values of :func:`learned_step_size` bit for bit.

    Args:
      params, steps, bits, signed, narrow, where: as in :func:`learned_step_size`.

    Returns:
      ``params`` with a ``QParams`` in place of each selected leaf; other leaves are the same objects.

    Raises:
      As :func:`learned_step_size`.

    >>> params, steps = jnp.array([-0.3, 0.2, 0.0, 0.9]), jnp.array(0.25)
    >>> step_qparams(params, steps, 3)
    QParams(scale=Array(0.25, dtype=float32), zero_point=Array(0, dtype=int32))
    """
    selection = tree.select(params, where)
    chosen = _steps_of(selection, steps)
    pairs = zip(chosen, _widths(selection, bits, signed), strict=True)
    return selection.replace([_qparams(step, _codes(width, signed), signed, narrow) for step, width in pairs])


def _widths(selection: tree.Selection, bits: Setting, signed: bool) -> list[Any]:
    return settings.per_leaf(bits, selection, "bits", 2 if signed else 1, 16)


def _steps_of(selection: tree.Selection, steps: Params) -> list[Array]:
    """The step of each chosen leaf, which broadcasts to it."""
    by_path = follow_paths(steps, selection.paths, selection.names, "steps")
    for path, leaf in zip(selection.names, selection.taken, strict=True):
        step, name, wanted = by_path[path], tree.show(path), np.shape(leaf)
        if not tree.is_floating(step):
            raise TypeError(f"the step of {name} is {step!r}; steps are floating-point numbers")
        if not tree.broadcasts(shape := np.shape(step), wanted):
            raise ValueError(f"the step of {name} has shape {shape}, which does not broadcast to {wanted}")
    return [jnp.asarray(by_path[path], jnp.float32) for path in selection.names]


def _sharers(path: str, leaf: Array, step: Array, batch_axes: Axes) -> int:
    """N: how many entries share a step, those along the batch axes not counted."""
    axes = () if batch_axes is None else (batch_axes,) if isinstance(batch_axes, int) else tuple(batch_axes)
    left_out = {layout.check_axis(path, leaf.shape, axis) for axis in axes}
    own = (1,) * (leaf.ndim - step.ndim) + step.shape
    return max(math.prod(n for i, n in enumerate(leaf.shape) if own[i] == 1 and i not in left_out), 1)


def _first_step(x: Array, width: Array, axes: tuple[int, ...], signed: bool) -> Array:
    def first(x: Array, width: Array) -> Array:
        if not x.size:
            return jnp.zeros([1 if i in axes else n for i, n in enumerate(x.shape)], jnp.float32)
        mean = mean_magnitude(axes)(jnp.bool_(True), x, full_range(x, axes, True)[1])
        return divide(2 * mean, jnp.sqrt(top_code(_codes(width, signed), signed)))

    return automatic(first, jax.lax.stop_gradient(x), width)


def _learned_leaf(x: Array, step: Array, width: Array, count: int, signed: bool, narrow: bool) -> Array:
    learned = partial(_learned, signed, narrow, count)
    return automatic(learned, x, step, _codes(width, signed), out=explicit_spec(x))


def _codes(width: Any, signed: bool) -> Array:
    """Whole bits; 1 signed bit would leave Q_p = 0."""
    return jnp.maximum(uniform.width(jnp.asarray(width)), 2 if signed else 1)


def _qparams(step: Array, bits: Array, signed: bool, narrow: bool) -> QParams:
    # Codes from -2**(b-1) to 2**(b-1) - 1 are those of an asymmetric quantizer whose zero lies in the middle.
    zero = jnp.left_shift(1, bits - 1) if signed and not narrow else jnp.zeros((), jnp.int32)
    return QParams(jnp.clip(step, TINY, HUGE), zero.astype(jnp.int32))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _learned(signed: bool, narrow: bool, count: int, x: Array, step: Array, bits: Array) -> Array:
    qparams = _qparams(step, bits, signed, narrow)
    x = jnp.where(jnp.isnan(step), jnp.nan, x)
    return uniform.straight_through(x, *grid(qparams, bits, signed and narrow))


@_learned.defjvp
def _(signed: bool, narrow: bool, count: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    x, step, bits = primals
    _, divisor, lowest, highest = grid(_qparams(step, bits, signed, narrow), bits, signed and narrow)
    ratio = divide(x.astype(jnp.float32), divisor)
    inside = (ratio > lowest) & (ratio < highest)
    missing = jnp.isnan(ratio)
    slope = jnp.where(missing, 0, jnp.clip(jnp.round(ratio), lowest, highest) - jnp.where(inside, ratio, 0))
    scale = 1 / jnp.sqrt(np.float32(count) * top_code(bits, signed))
    by_weight = jnp.where(inside, tangents[0].astype(jnp.float32), 0)
    by_step = jnp.where(missing, 0, slope * (tangents[1] * scale))
    return _learned(signed, narrow, count, x, step, bits), (by_weight + by_step).astype(x.dtype)
