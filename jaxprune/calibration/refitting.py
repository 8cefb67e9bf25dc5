"""Least squares for what is left when whole inputs of a product go."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune import settings, tree
from jaxprune.base import Array, Masks, Params, Setting, Where
from jaxprune.calibration import leaves
from jaxprune.calibration.statistics import Statistics


def refit(
    params: Params,
    stats: Statistics,
    masks: Masks,
    *,
    damping: Setting = 0.01,
    max_growth: float = 4.0,
    where: Where = None,
) -> Params:
    """The masked parameters, where inputs that are left make up for those that are gone.

    An input of a product is gone if its mask is ``False`` for all outputs: a neuron that was cut in the layer before.
    The others are fitted so that the product's outputs on the data change least: with the second moments H of the
    inputs, and g for gone, k for kept, ``W_k += inv(H_kk + damping * mean(diag(H)) * I) H_kg W_g``.

    Args:
      params: any pytree, not yet masked.
      stats: of :func:`collect` on these parameters, with Gram matrices.
      masks: bool, True keeps; see :func:`jaxprune.masks.apply_masks`. Of a plan for shrinking, they are
        ``graph.at(plan).mask(jax.tree.map(lambda p: jnp.ones(p.shape, bool), params))``.
      damping: traced, as a fraction of the mean of the diagonal of H; towards the weights as they are.
      max_growth: static; how many times larger the largest weight of a leaf may become. Neurons of massive activations
        should not go: what makes up for them fits the data, and ruins the network.
      where: whose leaves; by default all that the statistics know as factors of products.

    Returns:
      ``params`` under the masks, with the same structure, shapes and dtypes.

    Raises:
      ValueError: outside of a trace, a weight grows too much, with the leaf's path; and as :func:`prune`.

    >>> from jaxprune.calibration import collect
    >>> w, x = jnp.array([[1.0], [2.0], [3.0]]), jnp.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> gone = jnp.array([[False], [True], [True]])  # the second input does what the first did
    >>> refit(w, collect(lambda w, x: x @ w, w, x), gone, damping=1e-6).round(2).tolist()
    [[0.0], [3.0], [3.0]]
    """
    chosen = leaves.choose(params, stats, where)
    everything, kept = tree.pair(params, masks)
    masked = everything.replace([jnp.where(mask, leaf, 0) for leaf, mask in zip(everything.values, kept, strict=True)])
    flags = tree.leaves_like(chosen, masks, "params", "masks")
    dampings = settings.per_leaf(damping, chosen, "damping", 0.0, np.inf)
    fitted = []
    for path, leaf, mask, rate in zip(chosen.names, chosen.values, flags, dampings, strict=True):
        new = jnp.where(mask, leaf.astype(jnp.float32), 0)
        for use, grams in leaves.parts(stats, path):
            own = use.matrices(leaf), use.matrices(jnp.broadcast_to(mask, leaf.shape)) > 0
            new += use.leaf(_fit(*own, grams, rate), leaf)
        _check_growth(path, leaf, new, max_growth)
        fitted.append(new.astype(leaf.dtype))
    return chosen._replace(leaves=jax.tree.leaves(masked)).replace(fitted)


@jax.jit
def _fit(weights: Array, masks: Array, grams: Array, damping: Array) -> Array:
    """What is added to the kept entries of [L, K, N]."""

    def one(row: Any) -> Array:
        weights, mask, gram = row
        kept = mask.any(1)
        mean = jnp.mean(jnp.diagonal(gram))
        among = jnp.where(kept[:, None] & kept, gram, 0)
        diagonal = jnp.where(kept & (mean > 0), damping * mean, 1)
        lost = gram @ jnp.where(kept[:, None], 0, weights)
        factor = jax.scipy.linalg.cho_factor(among + jnp.diag(diagonal))
        found = jax.scipy.linalg.cho_solve(factor, jnp.where(kept[:, None], lost, 0))
        return jnp.where(mask & ~kept.all(), found, 0)

    return jax.lax.map(one, (weights, masks, grams))


def _check_growth(path: str, old: Array, new: Array, limit: float) -> None:
    if isinstance(new, Tracer) or isinstance(old, Tracer):
        return
    before, after = float(jnp.max(jnp.abs(old), initial=0)), float(jnp.max(jnp.abs(new), initial=0))
    if after > limit * before:
        raise ValueError(
            f"leaf {tree.show(path)}: the largest weight would grow {after / before:.3g} times, more than max_growth="
            f"{limit:g}; what went was no small part of its inputs: choose by scores that look at data, such as wanda"
        )
