"""Scores: how much each weight, or each unit, matters. Larger is more important.

Every function maps a pytree of parameters to scores of the same structure (containers and boxes included), so that
masks can be made of them leaf by leaf. All floating leaves get scores, whatever their rank: which of them are pruned
is decided later, by the ``where`` of the mask. Leaves that are not floating (integers, bools, PRNG keys, callables)
get a 0-d float32 zero, which only keeps the structure.

A **unit** is an index along a leaf's last axis; of a vector each entry is a unit. Scores of units have the shape
``(1, ..., 1, C)``, which broadcasts against the parameter. A scalar leaf is one unit of one weight.

Nothing here is a class or a registry: a criterion is any function ``params -> scores``.
"""

import math
from collections.abc import Sequence
from functools import partial
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import tree, unit_statistics
from jaxprune.base import Array, Params, Scores
from jaxprune.unit_statistics import divide, power_of_two, within_unit

__all__ = [
    "activation_entropy",
    "connection_entropy",
    "fisher",
    "gradient",
    "magnitude",
    "random",
    "unit_entropy",
    "unit_norm",
    "unit_sparsity",
]


def magnitude(params: Params) -> Scores:
    """Scores each weight by its magnitude, ``|w|``.

    Args:
      params: any pytree of arrays.

    Returns:
      Scores of the structure, shapes and dtypes of ``params`` (the magnitude is exact in every dtype).

    Raises:
      TypeError: a leaf is no array, with its path.

    >>> magnitude({"kernel": jnp.array([[-2.0, 0.5]])})
    {'kernel': Array([[2. , 0.5]], dtype=float32)}
    """
    return _score(_floating(params), _magnitude)


def gradient(params: Params, grads: Params) -> Scores:
    """Scores each weight by ``|w * g|``: to first order, how much the loss changes when the weight becomes 0.

    The Taylor criterion of Molchanov et al., "Importance Estimation for Neural Network Pruning" (2019), without the
    square; at initialization it is the connection sensitivity of SNIP (Lee et al., 2019).

    Args:
      params: any pytree of arrays.
      grads: the loss gradient, a tree with the same floating leaves (paths and shapes) as ``params``. Other leaves
        of it are not looked at, so ``float0`` and ``None`` may stand for parameters that have no gradient.

    Returns:
      Scores of the structure and shapes of ``params``, float32 and computed in float32.

    Raises:
      ValueError: the floating leaves of the trees have different paths, or different shapes at one path.
      TypeError: a leaf is no array, with its path.

    >>> gradient(jnp.array([2.0, -3.0]), jnp.array([0.5, 1.0]))
    Array([1., 3.], dtype=float32)
    """
    selection = _floating(params)
    return _score(selection, _gradient, partners=[_matching(selection, grads, "grads")])


def fisher(params: Params, squared_grads: Params) -> Scores:
    """Scores each weight by ``w**2 * F / 2``: the loss that its removal costs by a diagonal Fisher approximation.

    With ``F = E[g**2]`` this is the criterion of Theis et al., "Faster gaze prediction with dense networks and Fisher
    pruning" (2018); with the diagonal of the Hessian it is Optimal Brain Damage (LeCun et al., 1990).

    Args:
      params: any pytree of arrays.
      squared_grads: the mean over samples of each weight's squared gradient (not the square of the mean gradient), a
        tree with the same floating leaves as ``params``. Not checked to be non-negative.

    Returns:
      Scores of the structure and shapes of ``params``, float32 and computed in float32, in units of the loss. Nothing
      on the way overflows or underflows unless twice the score does.

    Raises:
      ValueError: the floating leaves of the trees have different paths, or different shapes at one path.
      TypeError: a leaf is no array, with its path.

    >>> fisher(jnp.array([2.0, -4.0]), jnp.array([1.0, 0.5]))
    Array([2., 4.], dtype=float32)
    """
    selection = _floating(params)
    return _score(selection, _fisher, partners=[_matching(selection, squared_grads, "squared_grads")])


def random(params: Params, key: Array) -> Scores:
    """Scores each weight by a uniform random number in [0, 1): the baseline that every criterion has to beat.

    Args:
      params: any pytree of arrays. Only paths and shapes matter.
      key: a PRNG key, traced. Each leaf draws from the key folded with the leaf's position in the tree.

    Returns:
      Scores of the structure and shapes of ``params``, float32. The same key gives the same scores.

    Raises:
      TypeError: a leaf is no array, with its path; or ``key`` is no key.

    >>> scores = random(jnp.zeros((2, 3)), jax.random.key(0))
    >>> scores.shape, bool(jnp.all((scores >= 0) & (scores < 1)))
    ((2, 3), True)
    """
    selection = _floating(params)
    shapes = tuple(np.shape(selection.leaves[i]) for i in selection.chosen)
    return selection.replace(_random(key, selection.chosen, shapes), _no_score)


def connection_entropy(params: Params) -> Scores:
    """Scores each weight by ``-p log2 p``, where ``p = |w| / sum of |w|`` over the weights of its unit.

    The sum of the scores over a unit is the entropy of how its total weight is spread over its inputs: 0 for a single
    input, ``log2 n`` for n equal ones. Note that the score is largest at ``p = 1/e`` and falls beyond: a weight that
    dominates its unit carries little entropy.

    Args:
      params: any pytree of arrays; units are along the last axis, the sum runs over all the others.

    Returns:
      Scores of the structure and shapes of ``params``, float32, in bits, in [0, 0.531]. A zero weight scores 0 (0 log
      0 = 0), a unit without any weight 0 throughout. The sum cannot overflow. A NaN makes its whole unit NaN; beside an
      infinite weight, which is NaN, finite weights score 0. The derivative at a zero weight, which is infinite, is
      taken as 0.

    Raises:
      TypeError: a leaf is no array, with its path.

    >>> connection_entropy(jnp.array([[1.0, 0.0], [1.0, 5.0]]))
    Array([[0.5, 0. ],
           [0.5, 0. ]], dtype=float32)
    """
    return _score(_floating(params), _connection_entropy)


def unit_norm(params: Params, ord: float = 1) -> Scores:
    """Scores each unit by the norm of its weights, ``(sum of |w|**ord) ** (1 / ord)``.

    With ``ord`` 1 the criterion of Li et al., "Pruning Filters for Efficient ConvNets" (2017).

    Args:
      params: any pytree of arrays; units are along the last axis.
      ord: a real number above 0, or ``inf`` for the largest magnitude. Static.

    Returns:
      Scores of the structure of ``params``; of a leaf of shape ``(..., C)`` they have shape ``(1, ..., 1, C)``. Float32
      and computed in float32, with no overflow or underflow on the way. The derivative at a zero unit is taken as 0.

    Raises:
      ValueError: ``ord`` is not a number above 0.
      TypeError: a leaf is no array, with its path.

    >>> unit_norm(jnp.array([[3.0, 1.0], [-4.0, 1.0]]), ord=2)
    Array([[5.       , 1.4142135]], dtype=float32)
    """
    if isinstance(ord, bool) or not isinstance(ord, Real) or not ord > 0:
        raise ValueError(f"ord must be a number above 0 (it is static, inf is allowed), got {ord!r}")
    return _score(_floating(params), _unit_norm, float(ord))


def unit_entropy(params: Params, bins: int = 64) -> Scores:
    """Scores each unit by the entropy of the histogram of its incoming weights, ``H = -sum P log2 P``.

    All units of a leaf share ``bins`` equal bins between ``lo`` and ``hi``, the finite minimum and maximum of the leaf:
    ``v`` falls in bin ``min(floor((v - lo) / (hi - lo) * bins), bins - 1)``, each step rounded to float32. A unit whose
    weights are all alike has entropy 0, however large they are.

    Args:
      params: any pytree of arrays; units are along the last axis.
      bins: number of bins, at least 1. Static.

    Returns:
      Scores of the structure of ``params``; of a leaf of shape ``(..., C)`` they have shape ``(1, ..., 1, C)``.
      Float32, in bits, in [0, log2 bins] up to the rounding of the sum; a unit that fills 2**k bins evenly has k bits.
      Counts are exact integers. Weights that are not finite are not counted, and ranges that overflow float32 do no
      harm. A constant leaf, a unit without weights and a unit of non-finite weights score 0. The derivative is 0.

    Raises:
      ValueError: ``bins`` is not an integer of at least 1; or a unit has 2**31 weights or more, or a leaf as many bins,
        with the leaf's path.
      TypeError: a leaf is no array, with its path.

    >>> unit_entropy(jnp.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [3.0, 1.0]]), bins=4)
    Array([[2., 0.]], dtype=float32)
    """
    return _score(_countable(params, bins), _unit_entropy, int(bins))


def unit_sparsity(params: Params) -> Scores:
    """Scores each unit by its fraction of zeros, ``zeros / elements``.

    The one criterion here where **larger is less important**: ``masks.by_unit_sparsity`` removes the units *above* a
    threshold. To rank units by it, negate it.

    Args:
      params: any pytree of arrays; units are along the last axis.

    Returns:
      Fractions in [0, 1] in the structure of ``params``; of a leaf of shape ``(..., C)`` they have shape
      ``(1, ..., 1, C)``. The counts are exact integers, the quotient is the float32 nearest to the fraction (of units
      above 2**24 elements, to within an ulp or two). -0.0 is a zero, NaN is none; a subnormal is one where the backend
      flushes them, as XLA does on CPU. A unit without elements has 0.

    Raises:
      ValueError: a unit has 2**31 elements or more, with the leaf's path.
      TypeError: a leaf is no array, with its path.

    >>> unit_sparsity(jnp.array([[0.0, 1.0], [2.0, 1.0], [0.0, 0.0], [0.0, 1.0]]))
    Array([[0.75, 0.25]], dtype=float32)
    """
    return _score(_countable(params), _unit_sparsity)


def activation_entropy(activations: Any, bins: int = 64) -> Any:
    """Scores each unit by the entropy of the histogram of its activations over a data set, ``H = -sum P log2 P``.

    As :func:`unit_entropy`, with samples in the place of incoming weights: all units of one array share ``bins`` equal
    bins between that array's finite minimum and maximum. A unit that is always off, or always the same, scores 0.

    Args:
      activations: an array of shape ``(..., C)``, or any pytree of such arrays (one a layer, say). All leading axes
        (batch, height, width) are samples.
      bins: number of bins, at least 1. Static.

    Returns:
      Scores of the structure of ``activations``, float32, in bits, each of shape ``(C,)``: exact counts, as in
      :func:`unit_entropy`.

    Raises:
      ValueError: ``bins`` is not an integer of at least 1; or an array has no axis, or 2**31 samples or more a unit, or
        as many bins, with its path.
      TypeError: a leaf is no array, with its path.

    >>> activation_entropy(jnp.array([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 3.0]]), bins=4)
    Array([0., 2.], dtype=float32)
    """
    selection = _countable(activations, bins)
    for i in selection.chosen:
        if np.ndim(selection.leaves[i]) == 0:
            raise ValueError(f"activations at {selection.paths[i]!r} are a scalar; they need a last axis of units")
    return _score(selection, _activation_entropy, int(bins))


def _score(selection: tree.Selection, kernel: Any, *static: Any, partners: Sequence[list[Array]] = ()) -> Scores:
    """Applies ``kernel(leaf, *partners, *static)`` to every floating leaf, in one jitted call for the whole tree."""
    return selection.replace(_each(kernel, static, selection.values, *partners), _no_score)


def _floating(params: Params) -> tree.Selection:
    return tree.select(params, lambda path, leaf: tree.is_floating(leaf))


def _no_score(leaf: Any) -> Array:
    return jnp.zeros((), jnp.float32)


def _matching(selection: tree.Selection, grads: Any, name: str) -> list[Array]:
    """The gradients of the chosen leaves, by path; their structure and shapes must be those of the parameters."""
    other = _floating(grads)
    # Leaves without a gradient do not count: compare the floating ones alone.
    tree.same_paths(selection._replace(paths=selection.names), other._replace(paths=other.names), "params", name)
    for path, value, partner in zip(selection.names, selection.values, other.values, strict=True):
        if value.shape != partner.shape:
            raise ValueError(f"{name} at {path!r} has shape {partner.shape}, the parameter has shape {value.shape}")
    return other.values


def _countable(params: Params, bins: int = 1) -> tree.Selection:
    """The floating leaves, once it is sure that their histograms fit 32-bit integers."""
    unit_statistics.check_bins(bins)
    selection = _floating(params)
    unit_statistics.check_countable(selection, int(bins))
    return selection


@partial(jax.jit, static_argnums=(0, 1))
def _each(kernel: Any, static: tuple[Any, ...], *columns: list[Array]) -> list[Array]:
    return [kernel(*leaves, *static) for leaves in zip(*columns, strict=True)]


@partial(jax.jit, static_argnums=(1, 2))
def _random(key: Array, positions: tuple[int, ...], shapes: tuple[tuple[int, ...], ...]) -> list[Array]:
    keys = [jax.random.fold_in(key, i) for i in positions]
    return [jax.random.uniform(k, shape, jnp.float32) for k, shape in zip(keys, shapes, strict=True)]


# The kernels: one array in, one array out. Traced; written for float32, into which narrower floats widen exactly.


def _magnitude(w: Array) -> Array:
    return jnp.abs(w)


def _gradient(w: Array, g: Array) -> Array:
    return jnp.abs(w.astype(jnp.float32) * g.astype(jnp.float32))


def _fisher(w: Array, squared: Array) -> Array:
    w = w.astype(jnp.float32)
    # In this order no intermediate leaves the range of floats unless the result does; w * w would.
    return w * (w * squared.astype(jnp.float32)) * 0.5


def _connection_entropy(w: Array) -> Array:
    w = jnp.abs(w.astype(jnp.float32))
    largest = jnp.max(w, axis=within_unit(w), keepdims=True, initial=0.0)
    w = w * jax.lax.stop_gradient(power_of_two(largest))
    total = jnp.sum(w, axis=within_unit(w), keepdims=True)
    p = divide(w, jnp.where(total == 0, 1.0, total))
    return jnp.where(p == 0, 0.0, 0.0 - p * jnp.log2(jnp.where(p == 0, 1.0, p)))  # never -0.0


def _unit_norm(w: Array, ord: float) -> Array:
    w = jnp.abs(w.astype(jnp.float32))
    axes = within_unit(w)
    if ord == 1:
        return jnp.sum(w, axis=axes, keepdims=True)
    largest = jnp.max(w, axis=axes, keepdims=True, initial=0.0)
    if ord == math.inf:
        return largest
    # The norm is homogeneous, so the divisor needs no derivative. Both derivatives at 0 are taken as 0.
    scale = jax.lax.stop_gradient(jnp.where((largest > 0) & (largest < jnp.inf), largest, 1.0))
    ratio = divide(w, scale)
    powers = jnp.where(ratio == 0, 0.0, jnp.where(ratio == 0, 1.0, ratio) ** ord)
    total = jnp.sum(powers, axis=axes, keepdims=True)
    return jnp.where(total == 0, 0.0, scale * jnp.where(total == 0, 1.0, total) ** (1 / ord))


def _unit_entropy(w: Array, bins: int) -> Array:
    return unit_statistics.entropy(w, bins)


def _activation_entropy(x: Array, bins: int) -> Array:
    return unit_statistics.entropy(x, bins).reshape(x.shape[-1:])


def _unit_sparsity(w: Array) -> Array:
    return unit_statistics.sparsity(w)
