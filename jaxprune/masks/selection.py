"""Scores and a setting in, masks out: by threshold and by exact sparsity."""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune import settings, tree
from jaxprune.base import Array, Masks, Scores, Setting, Where
from jaxprune.kernels import order
from jaxprune.kernels.counts import removed_count

Scope = Literal["leaf", "global"]


def by_threshold(scores: Scores, threshold: Setting, *, where: Where = None) -> Masks:
    """Removes the scores strictly below a threshold: ``keep = not (score < threshold)``.

    Args:
      scores: float arrays of any shapes.
      threshold: traced, in the units of the scores; compared in float32 or the scores' dtype, whichever is wider.
      where: see :func:`jaxprune.tree.select`.

    Returns:
      Masks in the shapes of the scores. NaN scores are kept.

    Raises:
      ValueError: a concrete threshold is NaN.

    >>> by_threshold(jnp.array([0.1, 0.2, 0.3]), 0.2).tolist()
    [False, True, True]
    """
    chosen = tree.select(scores, where)
    limits = settings.per_leaf(threshold, chosen, "threshold", -np.inf, np.inf)
    return as_masks(chosen, _at_least(chosen.values, limits))


@jax.jit
def _at_least(scores: list[Array], limits: list[Array]) -> list[Array]:
    return [~(leaf < limit) for leaf, limit in zip(scores, limits, strict=True)]


def by_sparsity(
    scores: Scores,
    sparsity: Setting,
    *,
    scope: Scope = "leaf",
    min_keep: int | None = None,
    where: Where = None,
) -> Masks:
    """Removes exactly ``round_half_up(n * sparsity)`` of the n smallest scores, in each leaf or over all of them.

    Exact selection in O(n), without a sort: see :mod:`jaxprune.kernels.order`. Equal scores go by their flat
    index, the lower one first (global: leaves in the order of ``jax.tree.leaves``); NaN ranks above +inf;
    -0.0 equals 0.0. Under ``jax.vmap`` over ``sparsity``, all sparsities share the passes over the scores.

    Args:
      scores: float16, bfloat16 or float32 arrays of any shapes; scores of units count units.
      sparsity: traced fraction in [0, 1]; for scope "leaf" a tree of them serves too.
      scope: static; "leaf" ranks each leaf alone, "global" all chosen leaves together.
      min_keep: static; at least so many entries of each leaf stay, and others go in their place (global scope). By
        default 0; and 1 for global ranks of units, that is if all chosen scores have the shape (1, ..., 1, C).
      where: see :func:`jaxprune.tree.select`.

    Returns:
      Masks in the shapes of the scores, in their sharding. If ``min_keep`` leaves less to remove than asked for, all
      that may be removed is.

    Raises:
      ValueError: a concrete sparsity outside [0, 1] or NaN; an unknown scope; a negative ``min_keep``; a leaf above
        2**31 - 1 entries, or leaves above 2**32 - 1 in one ranking.

    >>> by_sparsity(jnp.array([0.0, 0.0, 1.0, 1.0, 2.0, 2.0]), 0.5).tolist()
    [False, False, False, True, True, True]
    """
    chosen = tree.select(scores, where)
    if min_keep is not None and min_keep < 0:
        raise ValueError(f"min_keep must be 0 or more, got {min_keep}")
    if min_keep is None:
        units = all(leaf.ndim > 1 and leaf.size == leaf.shape[-1] for leaf in chosen.values)
        min_keep = int(units and scope == "global")
    return as_masks(chosen, keep_highest(chosen, chosen.values, sparsity, scope, min_keep))


def keep_highest(
    chosen: tree.Selection, scores: list[Array], sparsity: Setting, scope: Scope, min_keep: int = 0
) -> list[Array]:
    """One mask for each of ``scores``, which belong to the chosen leaves: the mechanism of ``by_sparsity``."""
    check_scope(chosen, scores, scope)
    if scope == "global":
        if not settings.is_scalar(sparsity):
            raise TypeError(
                f"sparsity must be a real number for scope='global', which ranks all leaves; got {sparsity!r}"
            )
        return _keep(scores, settings.check_setting(sparsity, "sparsity", 0.0, 1.0), min_keep)
    sparsities = settings.per_leaf(sparsity, chosen, "sparsity", 0.0, 1.0)
    if any(isinstance(leaf, Tracer) for leaf in scores):
        return _keep_each(scores, sparsities, min_keep)  # one program: all leaves share one loop
    pairs = zip(scores, sparsities, strict=True)  # eager: leaves of one shape share one program
    return [_keep_each([leaf], [fraction], min_keep)[0] for leaf, fraction in pairs]


@partial(jax.jit, static_argnums=2)
def _keep(scores: list[Array], sparsity: Array, min_keep: int) -> list[Array]:
    return order.keep_from(
        scores, removed_count(sum(leaf.size for leaf in scores), sparsity), (min_keep,) * len(scores)
    )


@partial(jax.jit, static_argnums=2)
def _keep_each(scores: list[Array], sparsities: list[Array], min_keep: int) -> list[Array]:
    wanted = [removed_count(leaf.size, fraction) for leaf, fraction in zip(scores, sparsities, strict=True)]
    spare = [np.uint32(max(leaf.size - min_keep, 0)) for leaf in scores]
    return order.keep_from_each(scores, [jnp.minimum(count, most) for count, most in zip(wanted, spare, strict=True)])


def thresholds(scores: Scores, sparsities: Any, *, scope: Scope = "leaf", where: Where = None) -> Any:
    """The threshold that reaches each sparsity: the lowest score that ``by_sparsity`` keeps.

    ``by_threshold(scores, t)`` removes exactly as many entries unless equal scores straddle the threshold, of which it
    keeps all. All sparsities are found in about the time of two.

    Args:
      scores: as for :func:`by_sparsity`.
      sparsities: traced fractions in [0, 1], any shape ``S``.
      scope: static, "leaf" or "global".
      where: see :func:`jaxprune.tree.select`.

    Returns:
      A tree like the scores with an array of shape ``S`` a leaf, in the dtype of the scores (global: their common
      dtype); +inf where everything is removed, -inf (float32) for leaves that take no part.

    >>> thresholds(jnp.array([4.0, 1.0, 3.0, 2.0]), jnp.array([0.0, 0.5, 1.0])).tolist()
    [1.0, 3.0, inf]
    """
    chosen = tree.select(scores, where)
    check_scope(chosen, chosen.values, scope)
    fractions = settings.check_settings(sparsities, "sparsity", 0.0, 1.0)
    if scope == "leaf":
        found = [_kth([leaf], fractions) for leaf in chosen.values]
    else:
        found = [_kth(chosen.values, fractions)] * len(chosen.chosen)
    return chosen.replace(found, lambda _: jnp.full(fractions.shape, -jnp.inf))


@jax.jit
def _kth(scores: list[Array], sparsities: Array) -> Array:
    total = sum(leaf.size for leaf in scores)
    return order.kth_smallest(scores, removed_count(total, sparsities))


def as_masks(chosen: tree.Selection, kept: list[Array]) -> Masks:
    """The mask tree that holds ``kept`` for the chosen leaves and the 0-d ``True`` for the others."""
    return chosen.replace(kept, lambda _: jnp.ones((), bool))


def check_scope(chosen: tree.Selection, scores: list[Array], scope: Scope) -> None:
    """Raises ``ValueError`` for an unknown scope, or for more entries than can be counted."""
    if scope not in ("leaf", "global"):
        raise ValueError(f"scope must be 'leaf' or 'global', got {scope!r}")
    for path, leaf in zip(chosen.names, scores, strict=True):
        if leaf.size > order.MAX_LEAF:
            raise ValueError(
                f"leaf {tree.show(path)} has {leaf.size} entries; at most {order.MAX_LEAF} can be ranked in one leaf"
            )
    total = sum(leaf.size for leaf in scores)
    if scope == "global" and total > order.MAX_TREE:
        raise ValueError(
            f"the chosen leaves have {total} entries; at most {order.MAX_TREE} can be ranked together (scope='leaf' "
            "ranks each leaf alone)"
        )
