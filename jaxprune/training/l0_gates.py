"""L0 regularization: random gates on weights or units, whose expected number can be differentiated.

A gate multiplies a weight. It is drawn from the hard-concrete distribution: with ``L`` logistic noise,

    s = sigmoid((L + log_alpha) / beta),   z = clip(s * (zeta - gamma) + gamma, 0, 1),

so that z is exactly 0 or exactly 1 with a probability that ``log_alpha`` governs, and has a derivative between. The
loss ``task(apply_gates(params, log_alpha, key)) + strength * expected_l0(params, log_alpha)`` trains weights and gates
together, by any optimizer. Without a key the gates are those of the finished network, ``clip(sigmoid(log_alpha) *
(zeta - gamma) + gamma, 0, 1)``, and :func:`gate_masks` says which of them are open.

Source: Louizos, Welling & Kingma, "Learning Sparse Neural Networks through L0 Regularization", 2018 (arXiv:1712.01312),
with its beta = 2/3, gamma = -0.1 and zeta = 1.1.

``log_alpha`` is a tree like the parameters, float32: in the shape of the weight, or for one gate a unit with size 1
along its inputs, ``(1, ..., 1, C)`` of a Flax kernel. Leaves without gates have a 0-d zero, which only keeps the
structure: nothing reads it, so its derivative is 0 and it does not matter what an optimizer makes of it.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import settings, tree
from jaxprune.base import Array, Layout, Masks, Params, Setting, Where
from jaxprune.layout import axes_of

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
#: log(-gamma / zeta): the logit below which the stretched sigmoid is negative.
_CLOSED = np.float32(math.log(-GAMMA / ZETA))
#: How far ``log_alpha`` lies above the logit of the probability that the gate is not 0.
_SHIFT = np.float32(BETA * math.log(-GAMMA / ZETA))
_LEAST = 2.0**-20


def init_gates(
    params: Params, keep: Setting = 0.9, *, units: bool = False, where: Where = None, layout: Layout = None
) -> Any:
    """Gates to start with: ``log_alpha`` such that every gate is open with probability ``keep``.

    ``log_alpha = log(keep / (1 - keep)) + beta * log(-gamma / zeta)``. Training starts from weights times their gates:
    on average 0.63 of the weights for ``keep`` 0.9, 0.77 for 0.95, 0.94 for 0.99.

    Args:
      params: any pytree of arrays; only paths and shapes matter.
      keep: traced probability that a gate is not 0, in [2**-20, 1 - 2**-20]; a scalar or a tree of scalars that follows
        the parameters' paths. Traced values outside count as the nearest end.
      units: static; one gate a unit (an index along the output axes) in place of one a weight.
      where: which leaves get gates; see :func:`jaxprune.tree.select`.
      layout: the axes of leaves, static; see :mod:`jaxprune.layout`.

    Returns:
      ``log_alpha``: float32, in the structure of ``params``, in the shapes that the module describes.

    Raises:
      ValueError: a concrete ``keep`` out of range; a pattern that matches no leaf; a chosen leaf that is a scalar, or
        units of a kernel whose axes no rule knows.
      TypeError: a leaf is no array, with its path.

    >>> gates = init_gates({"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}, 0.9, units=True)
    >>> jax.tree.map(jnp.shape, gates)
    {'bias': (), 'kernel': (1, 3)}
    >>> round(float(expected_l0({"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}, gates)), 4)  # 0.9 of 12
    10.8
    """
    chosen = tree.select(params, where)
    chances = settings.per_leaf(keep, chosen, "keep", _LEAST, 1 - _LEAST)
    shapes = list(map(np.shape, chosen.taken))
    if () in shapes:
        raise ValueError(f"leaf {tree.show(chosen.names[shapes.index(())])} is a scalar; gates need an axis")
    if units:
        shapes = [own.unit_shape(shape) for own, shape in zip(axes_of(chosen, layout), shapes, strict=True)]
    logits = [jax.scipy.special.logit(jnp.clip(chance, _LEAST, 1 - _LEAST)) + _SHIFT for chance in chances]
    gates = [jnp.full(shape, logit, jnp.float32) for shape, logit in zip(shapes, logits, strict=True)]
    return chosen.replace(gates, tree.no_score)


def apply_gates(params: Params, log_alpha: Any, key: Array | None = None) -> Params:
    """Parameters times their gates: random ones with a key, the finished network's without.

    Args:
      params: any pytree of arrays.
      log_alpha: as made by :func:`init_gates`.
      key: a PRNG key for random gates, traced: a new one each training step. Each leaf draws from the key folded with
        the leaf's position in the tree.

    Returns:
      The structure, shapes and dtypes of ``params``, computed in float32. A closed gate gives exactly 0.0, whatever the
      weight. Differentiable in the weights and, where gates are neither 0 nor 1, in ``log_alpha``. Leaves without gates
      come back as they are.

    Raises:
      ValueError: the trees differ in structure, or a gate does not fit its parameter.
      TypeError: a gate on a leaf that is not floating.

    >>> apply_gates(jnp.array([4.0, 5.0, -6.0]), jnp.array([9.0, 0.0, -9.0])).tolist()
    [4.0, 2.5, 0.0]
    """
    chosen, gates = _pair(params, log_alpha)
    return chosen.replace(_gated(chosen.values, gates, key, chosen.chosen))


def expected_l0(params: Params, log_alpha: Any) -> Array:
    """The expected number of weights whose gate is not 0: the penalty for the loss.

    ``sum of sigmoid(log_alpha - beta * log(-gamma / zeta))``, in which the gate of a unit counts once for each of its
    weights. Divide by the number of weights for a fraction.

    Args:
      params: the parameters, for their shapes.
      log_alpha: as made by :func:`init_gates`.

    Returns:
      float32 scalar; weights without gates are not counted.

    Raises:
      As :func:`apply_gates`.

    Source: Louizos et al., Eq. 12.

    >>> round(float(expected_l0(jnp.ones((3, 2)), jnp.array([[30.0, -30.0]]))), 4)
    3.0
    """
    chosen, gates = _pair(params, log_alpha)
    pairs = zip(chosen.taken, gates, strict=True)
    return _expected(gates, tuple(np.size(leaf) // max(gate.size, 1) for leaf, gate in pairs))


def gate_masks(params: Params, log_alpha: Any) -> Masks:
    """Masks of the gates that are open in the finished network, to freeze them.

    The gate without noise is above 0 where ``log_alpha > log(-gamma / zeta)``, about -2.4. The finished network is
    ``apply_gates(params, log_alpha)``, in which the same weights are 0.0.

    Args:
      params: the parameters, for their shapes.
      log_alpha: as made by :func:`init_gates`. Not differentiable.

    Returns:
      bool, in the structure of ``params`` and the shapes of ``log_alpha``; the 0-d ``True`` for leaves without gates.
      The gate of a NaN is open, as NaN is never silently removed.

    Raises:
      As :func:`apply_gates`.

    >>> gate_masks(jnp.ones((3, 2)), jnp.array([[-2.3, -2.5]])).tolist()
    [[True, False]]
    """
    chosen, gates = _pair(params, log_alpha)
    return chosen.replace([_is_open(gate.astype(jnp.float32)) for gate in gates], tree.no_mask)


def _pair(params: Params, log_alpha: Any) -> tuple[tree.Selection, list[Array]]:
    """The parameters that have gates, and their gates."""
    flat, every = tree.flatten(params), tree.flatten(log_alpha)
    tree.same_paths(flat, every, "params", "log_alpha")
    chosen = flat._replace(chosen=tuple(i for i, gate in enumerate(every.leaves) if np.ndim(gate)))
    gates = [every.leaves[i] for i in chosen.chosen]
    for path, leaf, gate in zip(map(tree.show, chosen.names), chosen.taken, gates, strict=True):
        if not tree.is_floating(leaf) or not tree.is_floating(gate):
            kinds = [getattr(x, "dtype", type(x).__name__) for x in (leaf, gate)]
            raise TypeError(f"leaf {path} has dtype {kinds[0]} and gates of {kinds[1]}; both must be floats")
        shape, wanted = np.shape(gate), np.shape(leaf)
        if len(shape) != len(wanted) or not tree.broadcasts(shape, wanted):
            needed = f"they need its shape {wanted}, or one entry a unit"
            raise ValueError(f"the gates of {path} have shape {shape}; {needed}")
    return chosen, tree.arrays(gates)


@partial(jax.jit, static_argnums=3)
def _gated(values: list[Array], gates: list[Array], key: Array | None, positions: tuple[int, ...]) -> list[Array]:
    new = []
    for i, value, gate in zip(positions, values, gates, strict=True):
        logit = gate.astype(jnp.float32)
        if key is not None:
            logit = (logit + jax.random.logistic(jax.random.fold_in(key, i), gate.shape, jnp.float32)) / BETA
        z = jnp.clip(jax.nn.sigmoid(logit) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)
        # Closed gates take the weight away before the product, where an infinite one would make NaN.
        new.append((jnp.where(_is_open(logit), value.astype(jnp.float32), 0.0) * z).astype(value.dtype))
    return new


@partial(jax.jit, static_argnums=1)
def _expected(gates: list[Array], weights: tuple[int, ...]) -> Array:
    chances = (jnp.sum(jax.nn.sigmoid(gate.astype(jnp.float32) - _SHIFT)) for gate in gates)
    return sum((np.float32(w) * c for w, c in zip(weights, chances, strict=True)), jnp.zeros((), jnp.float32))


def _is_open(logit: Array) -> Array:
    """Whether the stretched sigmoid is above 0: by the logit, so that no rounding can decide otherwise elsewhere."""
    return ~(logit <= _CLOSED)
