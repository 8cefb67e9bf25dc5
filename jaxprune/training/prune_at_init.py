"""Pruning before training: criteria that look ahead, and a loop that prunes by them in rounds.

The criteria differentiate a function of the parameters, so they take the function. Only floating leaves are
differentiated and scored; other leaves reach the function as they are and score the 0-d zero, as in
:mod:`jaxprune.saliency`. Nothing is jitted here: wrap the call, ``jax.jit(lambda p: snip(loss, p, x, y))(params)``.
"""

from collections.abc import Callable
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune import masks as masking
from jaxprune import saliency as criteria
from jaxprune import settings, tree
from jaxprune.base import Array, Masks, Params, Saliency, Scope, Scores, Setting, Where
from jaxprune.kernels.rounding import power_of_two
from jaxprune.training.mask_updates import MaskFn, Ranking, ranked, unpruned
from jaxprune.training.running_saliency import as_running

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
    chosen, of = _differentiable(loss, params, batch)
    return criteria.gradient(params, chosen.replace(jax.grad(of)(chosen.values)))


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
    chosen, of = _differentiable(loss, params, batch)
    slope = jax.grad(of)
    _, product = jax.jvp(slope, (chosen.values,), (slope(chosen.values),))
    pairs = zip(chosen.values, product, strict=True)
    return chosen.replace([w.astype(jnp.float32) * h.astype(jnp.float32) for w, h in pairs], _no_score)


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
    chosen = _floating(params)
    sizes = [jnp.abs(value.astype(jnp.float32)) for value in chosen.values]

    def flow(sizes: list[Array], scale: Array) -> Array:
        outputs = jax.tree.leaves(apply_fn(chosen.replace(sizes), *jax.tree.map(lambda x: _ones(x, scale), inputs)))
        sums = [jnp.sum(y.astype(jnp.float32)) for y in outputs if tree.is_floating(y)]
        return sum(sums, jnp.zeros((), jnp.float32))

    probes = jnp.array([0, -_REACH, _REACH], jnp.int32)
    exponent = _exponent(lax.map(lambda probe: flow(sizes, power_of_two(probe)), probes), probes)
    # Half of the excess comes off the inputs, half off the derivative.
    scale = power_of_two(jnp.where(jnp.abs(exponent) > _REACH, jnp.clip(-exponent // 2, -_REACH, _REACH), 0))
    _, pullback = jax.vjp(lambda sizes: flow(sizes, scale), sizes)
    (slopes,) = pullback(scale)
    return chosen.replace([w * slope for w, slope in zip(sizes, slopes, strict=True)], _no_score)


def prune_at_start(
    params: Params,
    sparsity: Setting,
    saliency: Saliency,
    *,
    rounds: int = 1,
    scope: Scope | MaskFn = "leaf",
    min_keep: int | float | None = None,
    where: Where = None,
) -> Masks:
    """Masks for a network before it is trained, found in rounds of scoring and removing.

    Round k of n takes the sparsity to ``1 - (1 - sparsity) ** (k / n)``: each round removes the same fraction of what
    is left. In each round the masked parameters are scored anew; what has been removed stays removed. Rounds matter to
    criteria that depend on the other weights: :func:`synflow` takes 100.

    Args:
      params: any pytree of arrays; ``where`` chooses among its leaves.
      sparsity: traced fraction to remove in the end, in [0, 1]; for scope "leaf" a tree of them serves too.
      saliency: static criterion ``params -> scores``, of full shape or one score a unit; close over what else it needs:
        ``lambda p: jaxprune.training.snip(loss, p, x, y)``.
      rounds: static number of rounds, 1 or more; they are one compiled loop.
      scope: static; "leaf" ranks each leaf alone, "global" all chosen leaves together, as the papers of these criteria
        do; or a function ``(scores, sparsity) -> masks``.
      min_keep: static, see :func:`jaxprune.masks.by_sparsity`.
      where: see :func:`jaxprune.tree.select`; resolved on the parameters.

    Returns:
      Masks in the shapes of the scores, the 0-d ``True`` for leaves that take no part. Exactly ``round_half_up(n *
      sparsity)`` of n entries are removed, as by :func:`jaxprune.masks.by_sparsity`, and its ties and NaN rules hold.

    Raises:
      ValueError: as :func:`jaxprune.masks.by_sparsity`; ``rounds`` below 1; scores of another structure than the
        parameters.

    Source: Tanaka et al., 2020 (arXiv:2006.05467), Algorithm 1.

    >>> prune_at_start(jnp.array([4.0, -3.0, 2.0, 1.0]), 0.5, criteria.magnitude, rounds=2).tolist()
    [True, True, False, False]
    """
    if isinstance(rounds, bool) or not isinstance(rounds, Integral) or rounds < 1:
        raise ValueError(f"rounds must be an integer of at least 1 (it is static), got {rounds!r}")
    ranking = Ranking(as_running(saliency, with_grads=False), scope, min_keep, where, revive=False)
    levels = jax.tree.map(
        lambda value: _fractions(settings.check_setting(value, "sparsity", 0.0, 1.0), int(rounds)), sparsity
    )

    def prune(masks: Masks, level: Setting) -> tuple[Masks, None]:
        return ranked(ranking, masking.apply_masks(params, masks), level, (), None, masks), None

    return lax.scan(prune, unpruned(ranking, params), levels)[0]


def _fractions(sparsity: Any, rounds: int) -> Array:
    """The sparsity after each round, never falling, the last one exactly as given."""
    end = jnp.clip(jnp.asarray(sparsity, jnp.float32), 0.0, 1.0)
    steps = 1 - (1 - end) ** jnp.asarray(np.arange(1, rounds + 1) / rounds, jnp.float32)
    return jnp.minimum(lax.cummax(steps), end).at[-1].set(end)


def _no_score(leaf: Any) -> Array:
    return jnp.zeros((), jnp.float32)


def _floating(params: Params) -> tree.Selection:
    return tree.select(params, lambda _, leaf: tree.is_floating(leaf))


def _differentiable(
    loss: Callable[..., Any], params: Params, batch: tuple[Any, ...]
) -> tuple[tree.Selection, Callable[[list[Array]], Any]]:
    """The floating leaves, and the loss as a function of them alone."""
    chosen = _floating(params)
    return chosen, lambda values: loss(chosen.replace(values), *batch)


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
