"""Penalties for the loss that make weights small or few: ``loss(params) + strength * l1(params)``.

All values and derivatives are computed in float32, and derivatives are cast to the leaf's dtype once. They stay finite
for all finite weights: where the true derivative does not exist it is taken as 0, and beyond the leaf's range it is cut
off there. To get exact zeros, take the steps of :mod:`jaxprune.training.proximal` in place of these.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import tree
from jaxprune.base import Array, Params, Where
from jaxprune.kernels.rounding import divide, normalizer
from jaxprune.layout import within_unit


def l1(params: Params, *, where: Where = None) -> Array:
    """The sum of all magnitudes, ``sum |w|``: the lasso.

    Args:
      params: any pytree of arrays.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      float32 scalar; 0 for no leaves. The derivative is sign(w), 0 at 0.

    Raises:
      ValueError: a pattern that matches no leaf.
      TypeError: a leaf is no array, with its path.

    Source: Tibshirani, "Regression Shrinkage and Selection via the Lasso", 1996.

    >>> l1({"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0, 3.0])})
    Array(3., dtype=float32)
    """
    return _sum(_l1, tree.select(params, where).values)


def group_lasso(params: Params, *, where: Where = None) -> Array:
    """The sum over units of ``sqrt(m) * ||w_unit||_2``, ``m`` the number of weights of the unit.

    It pulls whole units to 0, where :func:`l1` pulls single weights. A unit is an index along the last axis; of a
    vector each entry is one.

    Args:
      params: any pytree of arrays.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      float32 scalar; 0 for no leaves. The derivative is ``sqrt(m) * w / ||w_unit||_2``, 0 at a zero unit. The norm
      neither overflows nor underflows on the way.

    Raises:
      ValueError: a pattern that matches no leaf.
      TypeError: a leaf is no array, with its path.

    Source: Yuan & Lin, "Model selection and estimation in regression with grouped variables", 2006; for the units of a
    network Wen et al., "Learning Structured Sparsity in Deep Neural Networks", 2016 (arXiv:1608.03665).

    >>> group_lasso(jnp.array([[3.0, 0.0], [4.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    Array(12., dtype=float32)
    """
    return _sum(_group_lasso, tree.select(params, where).values)


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
      ValueError: a pattern that matches no leaf.
      TypeError: a leaf is no array, with its path.

    Source: Yang et al., "DeepHoyer: Learning Sparser Neural Network with Differentiable Scale-Invariant Sparsity
    Measures", 2020 (arXiv:1908.09979), Eq. 2.

    >>> hoyer({"a": jnp.full((2, 2), 7.0), "b": jnp.array([[0.0, -5.0]])})
    Array(5., dtype=float32)
    """
    return _sum(_hoyer, tree.select(params, where).values)


def unit_lengths(w: Array) -> tuple[Array, Array]:
    """``(scale, lengths)``: the 2-norm of each unit of ``w`` (float32) times ``scale``, both (1, ..., 1, C).

    The scale is a power of two, one a unit, under which squares neither overflow nor underflow.
    """
    largest = jnp.max(jnp.abs(w), axis=within_unit(w), keepdims=True, initial=0.0)
    scale = normalizer(largest)
    squares = jnp.sum(jnp.square(_apart(w * scale)), axis=within_unit(w), keepdims=True)
    some = squares != 0  # so that no second derivative is 0/0
    return scale, jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1.0)), 0.0)


def unit_weight(w: Array) -> np.float32:
    """``sqrt(m)``, with m the number of weights of a unit."""
    return np.float32(math.sqrt(math.prod(w.shape[:-1])))


def _apart(scaled: Array) -> Array:
    """The same numbers, which lie in (-4, 4): of a constant w, XLA would make ``w**2 * scale**2``, 0 * inf perhaps."""
    return jnp.maximum(scaled, -8.0)


@partial(jax.jit, static_argnums=0)
def _sum(kernel: Any, leaves: list[Array]) -> Array:
    return sum((_value(kernel, leaf) for leaf in leaves), jnp.zeros((), jnp.float32))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _value(kernel: Any, w: Array) -> Array:
    return kernel(w.astype(jnp.float32))[0]


@_value.defjvp
def _value_jvp(kernel: Any, primals: Any, tangents: Any) -> tuple[Array, Array]:
    # The derivative is written out, as automatic ones run into 0/0 and inf - inf, and then limited to what the leaf's
    # dtype can hold.
    (w,), (tangent,) = primals, tangents
    value, slope = kernel(w.astype(jnp.float32))
    limit = min(float(jnp.finfo(w.dtype).max), float(np.finfo(np.float32).max))
    return value, jnp.sum(jnp.clip(slope, -limit, limit) * tangent.astype(jnp.float32))


# Kernels: one leaf in float32 -> value and derivative.


def _l1(w: Array) -> tuple[Array, Array]:
    return jnp.sum(jnp.abs(w)), jnp.sign(w)


def _group_lasso(w: Array) -> tuple[Array, Array]:
    scale, lengths = unit_lengths(w)
    some, weight = lengths != 0, unit_weight(w)
    slope = jnp.where(some, weight * divide(w * scale, jnp.where(some, lengths, 1.0)), 0.0)
    return jnp.sum(weight * divide(lengths, scale)), slope


def _hoyer(w: Array) -> tuple[Array, Array]:
    largest = jnp.max(jnp.abs(w), initial=0.0)
    some = largest > 0
    scale = jnp.where(some, normalizer(largest), 1.0)
    scaled = w * scale
    total, squares = jnp.sum(jnp.abs(scaled)), jnp.sum(jnp.square(_apart(scaled)))
    ratio = divide(total, jnp.where(some, squares, 1.0))
    return total * ratio, scale * (2 * ratio * (jnp.sign(w) - scaled * ratio))
