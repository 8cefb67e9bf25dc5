"""Criteria that score each weight; and what every criterion shares: scores for all floating leaves of a tree."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import tree
from jaxprune.base import Array, Layout, Params, Scores
from jaxprune.kernels import by_shape
from jaxprune.kernels.rounding import divide, normalizer
from jaxprune.layout import Axes, axes_of


def score(
    selection: tree.Selection, kernel: Any, *partners: list[Array], static: tuple[Any, ...] = (), axes: Any = ()
) -> Scores:
    """Applies ``kernel(leaf, *partners, *static)`` to every chosen leaf; with its ``axes`` before what is static."""
    return selection.replace(by_shape.each(kernel, selection.values, *partners, static=static, own=axes), tree.no_score)


def matching(params: Params, others: Any, name: str, other_name: str) -> tuple[tree.Selection, list[Array]]:
    """The floating leaves, and those of another tree, whose floating leaves have the same paths and shapes."""
    chosen, other = tree.floating(params), tree.floating(others)
    # Leaves without a gradient do not count: compare the floating ones alone.
    tree.same_paths(chosen._replace(paths=chosen.names), other._replace(paths=other.names), name, other_name)
    for path, shape, wanted in zip(chosen.names, map(np.shape, other.taken), map(np.shape, chosen.taken), strict=True):
        if shape != wanted:
            raise ValueError(f"{other_name} at {path!r} has shape {shape}, that of {name} is {wanted}")
    return chosen, other.values


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
    return score(tree.floating(params), jnp.abs)


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
    selection, partners = matching(params, grads, "params", "grads")
    return score(selection, _gradient, partners)


def _gradient(w: Array, g: Array) -> Array:
    return jnp.abs(w.astype(jnp.float32) * g.astype(jnp.float32))


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
    selection, partners = matching(params, squared_grads, "params", "squared_grads")
    return score(selection, _fisher, partners)


def _fisher(w: Array, squared: Array) -> Array:
    w = w.astype(jnp.float32)
    # In this order no intermediate leaves the range of floats unless the result does; w * w would.
    return w * (w * squared.astype(jnp.float32)) * 0.5


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
    selection = tree.floating(params)
    return selection.replace(_random(key, selection.chosen, tuple(map(np.shape, selection.taken))), tree.no_score)


@partial(jax.jit, static_argnums=(1, 2))
def _random(key: Array, positions: tuple[int, ...], shapes: tuple[tuple[int, ...], ...]) -> list[Array]:
    keys = [jax.random.fold_in(key, i) for i in positions]
    return [jax.random.uniform(k, shape, jnp.float32) for k, shape in zip(keys, shapes, strict=True)]


def connection_entropy(params: Params, *, layout: Layout = None) -> Scores:
    """Scores each weight by ``-p log2 p``, where ``p = |w| / sum of |w|`` over the weights of its unit.

    The sum of the scores over a unit is the entropy of how its total weight is spread over its inputs: 0 for a single
    input, ``log2 n`` for n equal ones. Note that the score is largest at ``p = 1/e`` and falls beyond: a weight that
    dominates its unit carries little entropy.

    Args:
      params: any pytree of arrays; the sum runs over the input axes.
      layout: the axes of leaves, static; see :mod:`jaxprune.layout`.

    Returns:
      Scores of the structure and shapes of ``params``, float32, in bits, in [0, 0.531]. A zero weight scores 0 (0 log
      0 = 0), a unit without any weight 0 throughout. The sum cannot overflow. A NaN makes its whole unit NaN; beside an
      infinite weight, which is NaN, finite weights score 0. The derivative at a zero weight, which is infinite, is
      taken as 0.

    Raises:
      ValueError: a kernel whose axes no rule knows, with its path.
      TypeError: a leaf is no array, with its path.

    >>> connection_entropy(jnp.array([[1.0, 0.0], [1.0, 5.0]]))
    Array([[0.5, 0. ],
           [0.5, 0. ]], dtype=float32)
    """
    selection = tree.floating(params)
    return score(selection, _connection_entropy, axes=axes_of(selection, layout))


def _connection_entropy(w: Array, axes: Axes) -> Array:
    w = jnp.abs(w.astype(jnp.float32))
    largest = jnp.max(w, axis=axes.inputs, keepdims=True, initial=0.0)
    w = w * jax.lax.stop_gradient(normalizer(largest))
    total = jnp.sum(w, axis=axes.inputs, keepdims=True)
    p = divide(w, jnp.where(total == 0, 1.0, total))
    return jnp.where(p == 0, 0.0, 0.0 - p * jnp.log2(jnp.where(p == 0, 1.0, p)))  # never -0.0
