"""The short verbs: a criterion, a mask and its application in one call."""

from typing import NamedTuple

from jaxprune import masks as masking
from jaxprune import saliency as criteria
from jaxprune import tree
from jaxprune.base import Masks, Params, Saliency, Setting, Where
from jaxprune.masks.selection import Scope


class Pruned(NamedTuple):
    """Pruned parameters, and the masks that pruned them."""

    params: Params
    masks: Masks


def prune(
    params: Params,
    sparsity: Setting,
    *,
    saliency: Saliency = criteria.magnitude,
    scope: Scope = "global",
    min_keep: int | None = None,
    where: Where = None,
) -> Pruned:
    """Zeroes exactly the wanted fraction of the parameters, those of the lowest scores.

    Args:
      params: any pytree of arrays; ``where`` chooses among its leaves.
      sparsity: traced fraction to remove, in [0, 1]; for scope "leaf" a tree of them serves too.
      saliency: static criterion ``params -> scores``, of full shape or one score a unit (which removes whole units).
        Criteria that need data close over it: ``lambda p: jaxprune.saliency.gradient(p, grads)``.
      scope: static; "global" ranks all chosen leaves together, "leaf" each alone.
      min_keep: static, see :func:`jaxprune.masks.by_sparsity`.
      where: see :func:`jaxprune.tree.select`; resolved on the parameters.

    Returns:
      ``Pruned(params, masks)``: the structure and dtypes of ``params``.

    Raises:
      ValueError: as :func:`jaxprune.masks.by_sparsity`, or scores of another structure than the parameters.

    >>> import jax.numpy as jnp
    >>> prune({"kernel": jnp.array([[3.0, -1.0], [0.5, -2.0]])}, 0.5).params["kernel"].tolist()
    [[3.0, 0.0], [0.0, -2.0]]
    """
    chosen = tree.select(params, where)
    scores = saliency(params)
    tree.same_paths(chosen, tree.flatten(scores), "params", "scores")
    names = set(chosen.names)
    kept = masking.by_sparsity(scores, sparsity, scope=scope, min_keep=min_keep, where=lambda path, _: path in names)
    return Pruned(masking.apply_masks(params, kept), kept)


def threshold_prune(params: Params, threshold: Setting, *, where: Where = None) -> Pruned:
    """Zeroes the weights of magnitude below a threshold: ``w`` becomes 0 where ``|w| < threshold``.

    Args:
      params: any pytree of arrays; ``where`` chooses among its leaves.
      threshold: traced, 0 or more, in the units of the weights; a tree of them serves too.
      where: see :func:`jaxprune.tree.select`.

    Returns:
      ``Pruned(params, masks)``: the structure and dtypes of ``params``.

    Raises:
      ValueError: a concrete threshold is NaN.

    >>> import jax.numpy as jnp
    >>> threshold_prune(jnp.array([0.1, -0.2, 0.3]), 0.15).masks.tolist()
    [False, True, True]
    """
    names = set(tree.select(params, where).names)
    kept = masking.by_threshold(criteria.magnitude(params), threshold, where=lambda path, _: path in names)
    return Pruned(masking.apply_masks(params, kept), kept)
