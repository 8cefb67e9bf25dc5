"""Criteria that look ahead, before training, and criteria that remember, over many steps of it.

Those that look ahead differentiate a function of the parameters, so they take the function. Only floating leaves are
differentiated and scored; other leaves reach the function as they are and score the 0-d zero, as in
:mod:`jaxprune.saliency`. Nothing is jitted here: wrap the call, ``jax.jit(lambda p: snip(loss, p, x, y))(params)``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import saliency as criteria
from jaxprune import settings, tree
from jaxprune.base import Array, Params, Scores
from jaxprune.kernels.rounding import power_of_two

# Beyond these powers of two the sum that synflow differentiates is brought back to about 1.
_REACH = 100


def snip(loss: Callable[..., Any], params: Params, *batch: Any) -> Scores:
    """Scores each weight by its connection sensitivity, ``|w * dL/dw|``, before or during training.

    Args:
      loss: ``(params, *batch) -> scalar``, static.
      params: any pytree of arrays.
      batch: what else the loss takes, traced: a batch with all classes in it.

    Returns:
      Scores of the structure and shapes of ``params``, float32. Not normalized: Lee et al. divide by the sum over all
      weights, a common factor that no ranking sees.

    Raises:
      TypeError: a leaf is no array, with its path; a loss that is not a real scalar.

    Source: Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity", 2019 (arXiv:1810.02340).

    >>> snip(lambda w, x: jnp.sum(w * x), jnp.array([2.0, -3.0]), jnp.array([0.5, 1.0]))
    Array([1., 3.], dtype=float32)
    """
    chosen = tree.floating(params)
    grads = jax.grad(lambda values: loss(chosen.replace(values), *batch))(chosen.values)
    return criteria.gradient(params, chosen.replace(grads))


def grasp(loss: Callable[..., Any], params: Params, *batch: Any) -> Scores:
    """Scores each weight by what it does for the flow of gradients, ``w * (H g)``, with gradient g and Hessian H.

    To first order, removing a weight changes ``g^T g``, how fast training starts, by twice ``-w * (H g)``. Larger is
    more important, as everywhere here: this is the negative of the score of Wang et al., who remove the largest. Scores
    may be negative. Their temperature belongs in the loss: divide the logits, by 200 say.

    Args:
      loss: ``(params, *batch) -> scalar``, static, twice differentiable.
      params: any pytree of arrays.
      batch: what else the loss takes, traced.

    Returns:
      Scores of the structure and shapes of ``params``, float32. ``H g`` is one derivative of the gradient along itself;
      the Hessian is never formed.

    Raises:
      TypeError: a leaf is no array, with its path; a loss that is not a real scalar.

    Source: Wang et al., "Picking Winning Tickets Before Training by Preserving Gradient Flow", 2020 (arXiv:2002.07376).

    >>> grasp(lambda w: jnp.sum(w**3) / 6, jnp.array([2.0, -1.0]))  # g = w**2 / 2, H = diag(w)
    Array([8. , 0.5], dtype=float32)
    """
    chosen = tree.floating(params)
    slope = jax.grad(lambda values: loss(chosen.replace(values), *batch))
    _, product = jax.jvp(slope, (chosen.values,), (slope(chosen.values),))
    pairs = zip(chosen.values, product, strict=True)
    return chosen.replace([w.astype(jnp.float32) * h.astype(jnp.float32) for w, h in pairs], tree.no_score)


def synflow(apply_fn: Callable[..., Any], params: Params, *inputs: Any) -> Scores:
    """Scores each weight by the flow through it, ``|w| * dR/d|w|``, without data.

    R is the sum of the outputs of the network with all parameters replaced by their magnitudes, on inputs of ones. In a
    network of linear and ReLU layers without biases the scores of each layer add up to R, which keeps layers from being
    emptied when pruning goes in rounds (:func:`prune_at_start`).

    R grows exponentially with depth, beyond float32 in networks of some tens of layers. Where it leaves ``2**-100 ..
    2**100``, inputs and derivative are scaled by a power of two, which reaches to ``2**-200 .. 2**200``: then all
    scores together are smaller or larger by a power of two, which no ranking sees. That is exact for ReLU networks
    without biases, residual ones included, and approximate for others. Beyond, scores overflow or vanish.

    Args:
      apply_fn: ``(params, *inputs) -> outputs``, static: any pytree, of which floating leaves are summed. It should not
        be random, and batch normalization should use its stored statistics.
      params: any pytree of arrays; all floating leaves are replaced by magnitudes, in float32.
      inputs: arrays or ``jax.ShapeDtypeStruct`` or pytrees of them. Floating ones become ones in float32 of the same
        shape, a batch of 1 will do; other values (token ids, keys, flags) are passed as they are.

    Returns:
      Scores of the structure and shapes of ``params``, float32, not negative for networks that map non-negative numbers
      to such.

    Raises:
      TypeError: a leaf is no array, with its path; an input of another dtype than a floating one that is no array.

    Source: Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow", 2020
    (arXiv:2006.05467).

    >>> params = {"a": jnp.array([[1.0, -2.0]]), "b": jnp.array([[3.0], [0.5]])}
    >>> scores = synflow(lambda p, x: x @ p["a"] @ p["b"], params, jnp.zeros((1, 1)))
    >>> scores["a"].tolist(), scores["b"].tolist()
    ([[3.0, 1.0]], [[3.0], [1.0]])
    """
    chosen = tree.floating(params)
    sizes = [jnp.abs(value.astype(jnp.float32)) for value in chosen.values]

    def flow(sizes: list[Array], scale: Array) -> Array:
        outputs = jax.tree.leaves(apply_fn(chosen.replace(sizes), *jax.tree.map(lambda x: _ones(x, scale), inputs)))
        sums = [jnp.sum(y.astype(jnp.float32)) for y in outputs if tree.is_floating(y)]
        return sum(sums, jnp.zeros((), jnp.float32))

    probes = jnp.array([0, -_REACH, _REACH], jnp.int32)
    exponent = _exponent(jax.lax.map(lambda probe: flow(sizes, power_of_two(probe)), probes), probes)
    # Half of the excess comes off the inputs, half off the derivative.
    scale = power_of_two(jnp.where(jnp.abs(exponent) > _REACH, jnp.clip(-exponent // 2, -_REACH, _REACH), 0))
    _, pullback = jax.vjp(lambda sizes: flow(sizes, scale), sizes)
    (slopes,) = pullback(scale)
    return chosen.replace([w * slope for w, slope in zip(sizes, slopes, strict=True)], tree.no_score)


class RunningSaliency(NamedTuple):
    """A criterion with a memory, as three pure functions; the memory is any pytree of arrays.

    Attributes:
      init: ``params -> memory``.
      update: ``(memory, params, grads) -> memory``, at every step, before the parameters change.
      scores: ``(memory, params, grads) -> scores``, when masks are made; ``params`` are those after the step.
    """

    init: Callable[[Params], Any]
    update: Callable[[Any, Params, Any], Any]
    scores: Callable[[Any, Params, Any], Scores]


def movement() -> RunningSaliency:
    """Movement: weights that training moves away from zero matter, whatever their size.

    ``S = -sum over steps of w * dL/dw``, in float32.

    Returns:
      A running criterion for :func:`gradual_pruning` or :func:`straight_through`. Only with the latter does the score
      of a masked weight go on changing, as in the paper: under exact zeros ``w * dL/dw`` is 0.

    Source: Sanh et al., "Movement Pruning", 2020 (arXiv:2005.07683), Eq. 4 and 5, without the learning rate, which is a
    common factor.

    >>> memory = movement().update(jnp.zeros(2), jnp.array([1.0, 1.0]), jnp.array([-0.5, 0.5]))
    >>> movement().scores(memory, None, None).tolist()
    [0.5, -0.5]
    """

    def gather(memory: Array, param: Array, grad: Array) -> Array:
        return memory - param.astype(jnp.float32) * grad.astype(jnp.float32)

    return RunningSaliency(_zeros, lambda *trees: _each(gather, *trees), lambda memory, params, grads: memory)


def running_fisher(decay: Any = 0.99) -> RunningSaliency:
    """The Fisher criterion with squared gradients averaged over the last steps: ``w**2 * average(g**2) / 2``.

    ``average = decay * average + (1 - decay) * g**2``, divided by ``1 - decay**steps``, so that it does not start low.

    Args:
      decay: in [0, 1), traced; about ``1 / (1 - decay)`` steps count.

    Returns:
      A running criterion for :func:`gradual_pruning` or :func:`straight_through`.

    Raises:
      ValueError: a concrete decay outside [0, 1).

    Source: Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018 (arXiv:1801.05787).

    >>> fisher = running_fisher(0.9)
    >>> params, grads = jnp.array([2.0, 1.0]), jnp.array([1.0, 3.0])
    >>> fisher.scores(fisher.update(fisher.init(params), params, grads), params, grads).tolist()
    [2.0, 4.5]
    """
    decay = settings.check_setting(decay, "decay", 0.0, 1.0 - 2**-24)

    def update(memory: Any, params: Params, grads: Any) -> Any:
        average, weight = memory
        average = _each(lambda old, g: decay * old + (1 - decay) * jnp.square(g.astype(jnp.float32)), average, grads)
        return average, decay * weight + (1 - decay)

    def scores(memory: Any, params: Params, grads: Any) -> Scores:
        average, weight = memory
        return criteria.fisher(params, _each(lambda leaf: leaf / weight, average))

    return RunningSaliency(lambda params: (_zeros(params), jnp.zeros((), jnp.float32)), update, scores)


def _ones(x: Any, scale: Array) -> Any:
    if tree.is_floating(x):
        return jnp.full(np.shape(x), scale)
    if isinstance(x, jax.ShapeDtypeStruct):
        raise TypeError(f"an input of dtype {x.dtype} must be an array, got {x}; only floating ones become ones")
    return x


def _exponent(sums: Array, probes: Array) -> Array:
    """The binary exponent of R, from its values at scaled inputs; 0 if none of them can tell."""
    known = jnp.isfinite(sums) & (sums > 0)
    best = jnp.argmax(known)  # the first: the one without scale if it can tell
    return jnp.where(known[best], jnp.frexp(sums[best])[1] - probes[best], 0)


def _zeros(params: Params) -> Any:
    """A float32 zero for every weight, in its sharding; 0-d for leaves that are not floating."""
    chosen = tree.floating(params)
    return chosen.replace([jnp.zeros_like(leaf, jnp.float32) for leaf in chosen.values], tree.no_score)


def _each(kernel: Callable[..., Array], first: Any, *rest: Any) -> Any:
    """The kernel on every leaf that has a memory of its own, other leaves of ``first`` as they are."""

    def on_leaf(leaf: Any, *others: Any) -> Any:
        return kernel(leaf, *others) if all(map(tree.is_floating, others)) else leaf

    return jax.tree.map(on_leaf, first, *rest)
