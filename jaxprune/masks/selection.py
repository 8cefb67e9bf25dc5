"""Scores and a setting in, masks out: by threshold and by exact sparsity."""

import sys
import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import settings, tree
from jaxprune.base import Array, Masks, Scope, Scores, Setting, Where
from jaxprune.kernels import by_shape, float_keys, order, ranking
from jaxprune.kernels.order import removed_count, removed_of


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
    chosen = tree.select(scores, where, scores=True)
    return as_masks(chosen, at_least(chosen, chosen.values, threshold))


def at_least(chosen: tree.Selection, scores: list[Array], threshold: Setting) -> list[Array]:
    """One mask for each of ``scores``, which belong to the chosen leaves: the mechanism of ``by_threshold``."""
    return by_shape.each(_at_least, scores, settings.per_leaf(threshold, chosen, "threshold", -np.inf, np.inf))


def _at_least(leaf: Array, limit: Array) -> Array:
    return ~float_keys.below(leaf, limit)


def by_sparsity(
    scores: Scores,
    sparsity: Setting,
    *,
    scope: Scope = "leaf",
    min_keep: int | float | None = None,
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
      min_keep: static; at least so many entries of each leaf stay, and others go in their place (global scope): a
        count, or a fraction of the leaf as a float in (0, 1), which is rounded half up and at least one entry. By
        default 0; and 1 for global ranks of units, that is if all chosen scores have one axis of more than an entry.
      where: see :func:`jaxprune.tree.select`.

    Returns:
      Masks in the shapes of the scores, in their sharding. If ``min_keep`` leaves less to remove than asked for, all
      that may be removed is.

    Raises:
      ValueError: a concrete sparsity outside [0, 1] or NaN; an unknown scope; a ``min_keep`` that is neither a count
        nor a fraction; a leaf above 2**31 - 1 entries, or leaves above 2**32 - 1 in one ranking.

    Warns:
      UserWarning: outside of a trace, global scope, with the names of leaves that keep under 1% of their entries,
        unless that is what was asked of all of them together.

    >>> by_sparsity(jnp.array([0.0, 0.0, 1.0, 1.0, 2.0, 2.0]), 0.5).tolist()
    [False, False, False, True, True, True]
    """
    chosen = tree.select(scores, where, scores=True)
    return as_masks(chosen, keep_highest(chosen, chosen.values, sparsity, scope, min_keep))


def keep_highest(
    chosen: tree.Selection, scores: list[Array], sparsity: Setting, scope: Scope, min_keep: int | float | None = None
) -> list[Array]:
    """One mask for each of ``scores``, which belong to the chosen leaves: the mechanism of ``by_sparsity``."""
    check_scope(chosen, scores, scope)
    least = _least(chosen, scores, scope, min_keep)
    if scope == "leaf":
        sparsities = settings.per_leaf(sparsity, chosen, "sparsity", 0.0, 1.0)
        spare = [np.uint32(leaf.size - keep) for leaf, keep in zip(scores, least, strict=True)]
        return by_shape.each(_keep_one, scores, sparsities, spare, together=1)
    if not settings.is_scalar(sparsity):
        raise TypeError(f"sparsity must be a real number for scope='global', which ranks all leaves; got {sparsity!r}")
    fraction = settings.check_setting(sparsity, "sparsity", 0.0, 1.0)
    if _in_trace(fraction, scores):
        return _keep_together(scores, fraction, least)
    kept, counts = ranking.keep_from(scores, removed_of(sum(leaf.size for leaf in scores), fraction), least)
    _warn_of_empty(chosen.names, scores, counts, fraction)
    return kept


def _least(chosen: tree.Selection, scores: list[Array], scope: Scope, min_keep: int | float | None) -> tuple[int, ...]:
    """How many entries of each leaf have to stay."""
    if min_keep is None:
        pairs = zip(scores, map(np.size, chosen.taken), strict=True)  # of the parameters, where these are at hand
        units = all(leaf.ndim > 1 and (leaf.size < size or leaf.size == max(leaf.shape)) for leaf, size in pairs)
        min_keep = int(units and scope == "global")
    whole = isinstance(min_keep, int | np.integer)
    if isinstance(min_keep, bool) or not (min_keep >= 0 if whole else 0 < min_keep < 1):
        raise ValueError(f"min_keep must be a count of 0 or more, or a fraction in (0, 1), got {min_keep!r}")
    counts = [int(min_keep) if whole else max(removed_of(leaf.size, min_keep), 1) for leaf in scores]
    return tuple(min(count, leaf.size) for count, leaf in zip(counts, scores, strict=True))


def _keep_one(scores: Array, sparsity: Array, spare: Array) -> Array:
    return order.keep_above(scores, jnp.minimum(removed_count(scores.size, sparsity), spare))


@partial(jax.jit, static_argnums=2)
def _keep_together(scores: list[Array], sparsity: Array, least: tuple[int, ...]) -> list[Array]:
    return order.keep_from(scores, removed_count(sum(leaf.size for leaf in scores), sparsity), least)


def _in_trace(sparsity: Any, scores: list[Array]) -> bool:
    """Whether the masks are part of a program; also where scattering is slow, all leaves make one program."""
    return settings.any_traced(sparsity, scores, jnp.zeros(())) or jax.default_backend() == "tpu"


def _warn_of_empty(names: list[str], scores: list[Array], kept: list[int], sparsity: float) -> None:
    rows = zip(names, [leaf.size for leaf in scores], kept, strict=True)
    empty = [f"{name or 'the array'} ({k} of {size})" for name, size, k in rows if 100 * k < size]
    if empty and sparsity <= 0.99:
        message = f"global ranking keeps under 1% of {', '.join(empty)}; min_keep or scope='leaf' keeps more"
        warnings.warn(message, UserWarning, stacklevel=_caller())


def _caller() -> int:
    """The level of the first frame outside this package, seen from who warns."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("jaxprune."):
        level, frame = level + 1, frame.f_back
    return level


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
    chosen = tree.select(scores, where, scores=True)
    values = chosen.values
    check_scope(chosen, values, scope)
    fractions = settings.check_settings(sparsities, "sparsity", 0.0, 1.0)
    found = [_kth([leaf], fractions) for leaf in values] if scope == "leaf" else [_kth(values, fractions)] * len(values)
    return chosen.replace(found, lambda _: jnp.full(fractions.shape, -jnp.inf, jnp.float32))


@jax.jit
def _kth(scores: list[Array], sparsities: Array) -> Array:
    total = sum(leaf.size for leaf in scores)
    return order.kth_smallest(scores, removed_count(total, sparsities))


def as_masks(chosen: tree.Selection, kept: list[Array]) -> Masks:
    """The mask tree that holds ``kept`` for the chosen leaves and the 0-d ``True`` for the others."""
    return chosen.replace(kept, tree.no_mask)


def check_scope(chosen: tree.Selection, scores: list[Array], scope: Scope) -> None:
    """Raises ``ValueError`` for an unknown scope, or for more entries than can be counted."""
    if scope not in ("leaf", "global"):
        raise ValueError(f"scope must be 'leaf' or 'global', got {scope!r}")
    for path, leaf in zip(chosen.names, scores, strict=True):
        if leaf.size > order.MAX_LEAF:
            most = f"at most {order.MAX_LEAF} can be ranked in one leaf"
            raise ValueError(f"leaf {tree.show(path)} has {leaf.size} entries; {most}")
    total = sum(leaf.size for leaf in scores)
    if scope == "global" and total > order.MAX_TREE:
        most = f"at most {order.MAX_TREE} can be ranked together (scope='leaf' ranks each leaf alone)"
        raise ValueError(f"the chosen leaves have {total} entries; {most}")
