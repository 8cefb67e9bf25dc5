"""Scores that look at data: how much the outputs of a leaf's products would miss each weight."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune import settings, tree
from jaxprune.base import Array, Params, Scores, Setting, Where
from jaxprune.calibration import feedback, leaves
from jaxprune.calibration.statistics import Moments, Statistics
from jaxprune.calibration.views import Use
from jaxprune.kernels.rounding import divide


def wanda(params: Params, stats: Statistics, *, where: Where = None) -> Scores:
    """``abs(w) * norm(x)``: the magnitude of a weight times the norm of its input over the data.

    Sun et al. 2023 (arXiv:2306.11695), equation 1. A leaf that is used several times has the norm of all its inputs;
    the input of a row that is looked up counts how often it is.

    Args:
      params: any pytree.
      stats: of :func:`collect`; ``want=()`` will do.
      where: whose scores; by default all leaves that the statistics know.

    Returns:
      Scores of the shapes of the leaves, float32; a 0-d NaN, which keeps all, for leaves that take no part. For
      :func:`jaxprune.masks.by_sparsity`, :func:`jaxprune.masks.n_of_m`, or as ``saliency=lambda p: wanda(p, stats)``.

    Raises:
      ValueError: no statistics of a chosen leaf, of no data, or of other parameters.

    >>> from jaxprune.calibration import collect
    >>> w = jnp.array([[3.0], [1.0]])
    >>> wanda(w, collect(lambda w, x: x @ w, w, jnp.array([[1.0, 6.0], [0.0, 8.0]]))).tolist()
    [[3.0], [10.0]]
    """
    return _scores(params, stats, where, _norms, lambda w, energy: jnp.abs(w) * jnp.sqrt(energy))


def obd(params: Params, stats: Statistics, *, where: Where = None) -> Scores:
    """``w**2 * sum x**2 * sum g**2 / rows``: what a second-order model says the outputs lose with a weight.

    Optimal brain damage, LeCun et al. 1990, equation 5, with the Gauss-Newton metric of the outputs for the loss, and
    x and g taken as unrelated: a diagonal of one number an input times one an output.

    Args:
      params: any pytree.
      stats: of :func:`collect` with a ``key``; ``want=()`` will do.
      where: whose scores; by default all leaves that the statistics know.

    Returns:
      As :func:`wanda`.

    Raises:
      ValueError: as :func:`wanda`, or statistics without gradients.

    >>> import jax
    >>> from jaxprune.calibration import collect
    >>> w = jnp.array([[3.0], [1.0]])
    >>> stats = collect(lambda w, x: x @ w, w, jnp.array([[1.0, 6.0], [0.0, 8.0]]), key=jax.random.key(0))
    >>> float(obd(w, stats)[1, 0] / obd(w, stats)[0, 0]).__round__(3)
    11.111
    """
    return _scores(params, stats, where, _curvatures, lambda w, curvature: w * w * curvature)


def obs(params: Params, stats: Statistics, *, damping: Setting = 0.01, where: Where = None) -> Scores:
    """``w**2 / inv(H)_kk``: what the outputs lose with a weight, once the others have made up for it.

    Optimal brain surgeon, Hassibi & Stork 1992, equation 5, for each output alone, with the second moments H of the
    inputs (weighted by the outputs' gradients, if the statistics have these). Averaged over the outputs it says which
    inputs of a layer can go, if :func:`refit` follows.

    Args:
      params: any pytree.
      stats: of :func:`collect`, with Gram matrices.
      damping: traced; added to the diagonal of H, as a fraction of its mean.
      where: whose scores; by default all leaves that the statistics know as factors of products.

    Returns:
      As :func:`wanda`.

    Raises:
      ValueError: as :func:`wanda`, or statistics without Gram matrices.

    >>> from jaxprune.calibration import collect
    >>> w, x = jnp.ones((3, 1)), jnp.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])  # the second input does as the first
    >>> scores = obs(w, collect(lambda w, x: x @ w, w, x), damping=1e-6)
    >>> bool(scores[0, 0] < scores[2, 0] / 100)
    True
    """
    chosen = leaves.choose(params, stats, where)
    dampings = settings.per_leaf(damping, chosen, "damping", 0.0, np.inf)
    scores = []
    for path, leaf, rate in zip(chosen.names, chosen.values, dampings, strict=True):
        total: Any = 0
        for use, gram in leaves.parts(stats, path):
            mean = jnp.mean(jnp.diagonal(gram, axis1=1, axis2=2), 1)[:, None, None]  # what it is factored in units of
            inverse = jnp.sum(feedback.factor(gram, rate) ** 2, 1)[..., None]
            total += use.leaf(jnp.broadcast_to(mean / inverse, use.shape), leaf)
        scores.append(leaf.astype(jnp.float32) ** 2 * total)
    return chosen.replace(scores, lambda _: jnp.full((), jnp.nan, jnp.float32))


def _scores(
    params: Params,
    stats: Statistics,
    where: Where,
    weigh: Callable[[Statistics, str, Use], Array],
    score: Callable[[Array, Array], Array],
) -> Scores:
    chosen = leaves.choose(params, stats, where, lookups=True)
    scores = []
    for path, leaf in zip(chosen.names, chosen.values, strict=True):
        total: Any = 0
        for name, use in stats.of(path):
            total += use.leaf(jnp.broadcast_to(weigh(stats, name, use), use.shape), leaf)
        scores.append(score(leaf.astype(jnp.float32), total))
    return chosen.replace(scores, lambda _: jnp.full((), jnp.nan, jnp.float32))


def _norms(stats: Statistics, name: str, use: Use) -> Array:
    found = stats.inputs[use.source]
    squares = found.squares if isinstance(found, Moments) else found.rows.astype(jnp.float32)
    return squares[..., None]


def _curvatures(stats: Statistics, name: str, use: Use) -> Array:
    if name not in stats.gradients:
        raise ValueError(f"the statistics of leaf {tree.show(use.path)} have no gradients: collect them with key=")
    gradients, inputs = stats.gradients[name], stats.inputs[use.source]
    if gradients.rows is not None:  # of a row that is looked up, those that it had itself
        return (
            gradients.rows[..., None]
            * divide(gradients.squares, _some(gradients.squares.sum(-1, keepdims=True)))[:, None]
        )
    count = _some(inputs.count.astype(jnp.float32))[:, None, None]
    return _norms(stats, name, use) * divide(gradients.squares, count[:, 0])[:, None]


def _some(x: Array) -> Array:
    return jnp.where(x > 0, x, np.float32(1))
