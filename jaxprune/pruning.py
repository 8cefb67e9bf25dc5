"""The short verbs: a criterion, a mask and its application in one call."""

from typing import NamedTuple

from jaxprune import saliency as criteria
from jaxprune import tree
from jaxprune.base import Array, Masks, Params, Saliency, Scope, Setting, Where
from jaxprune.masks.application import mask_each
from jaxprune.masks.selection import as_masks, at_least, keep_highest


class Pruned(NamedTuple):
    """Pruned parameters, and the masks that pruned them."""

    params: Params
    masks: Masks


def prune(
    params: Params,
    sparsity: Setting,
    *,
    saliency: Saliency = criteria.magnitude,
    scope: Scope = "leaf",
    min_keep: int | float | None = None,
    where: Where = None,
) -> Pruned:
    """Zeroes exactly the wanted fraction of the parameters, those of the lowest scores.

    Args:
      params: any pytree of arrays; ``where`` chooses among its leaves.
      sparsity: traced fraction to remove, in [0, 1]; for scope "leaf" a tree of them serves too.
      saliency: static criterion ``params -> scores``, of full shape or one score a unit (which removes whole units).
        Criteria that need data close over it: ``lambda p: jaxprune.saliency.gradient(p, grads)``.
      scope: static; "leaf" ranks each chosen leaf alone, "global" all of them together.
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
    scores = scores_of(chosen, saliency(params))
    return _pruned(chosen, keep_highest(chosen, scores, sparsity, scope, min_keep))


def scores_of(chosen: tree.Selection, scores: Params) -> list[Array]:
    """The scores of the chosen leaves."""
    found = tree.leaves_like(chosen, scores, "params", "scores")
    for path, score in zip(chosen.names, found, strict=True):
        if not tree.is_floating(score):
            kind = getattr(score, "dtype", type(score).__name__)
            raise TypeError(f"the scores of leaf {tree.show(path)} have dtype {kind}, which is not floating")
    return tree.arrays(found)


def _pruned(chosen: tree.Selection, kept: list[Array]) -> Pruned:
    values = chosen.values
    for path, value, mask in zip(chosen.names, values, kept, strict=True):
        tree.check_mask(path, value, mask)
    return Pruned(chosen.replace(mask_each(values, kept)), as_masks(chosen, kept))


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
    chosen = tree.select(params, where)
    return _pruned(chosen, at_least(chosen, scores_of(chosen, criteria.magnitude(params)), threshold))
