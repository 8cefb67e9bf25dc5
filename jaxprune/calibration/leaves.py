"""The leaves that statistics know, their matrices, and what is done to these."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune import settings, tree
from jaxprune.base import Array, Params, Setting, Where
from jaxprune.calibration import feedback
from jaxprune.calibration.statistics import Moments, Statistics
from jaxprune.calibration.views import Use
from jaxprune.kernels.sharding import automatic, explicit_spec


class Part(NamedTuple):
    """Matrices of a leaf, and the second moments [L, K, K] of their inputs."""

    use: Use
    gram: Array


def choose(params: Params, stats: Statistics, where: Where, lookups: bool = False) -> tree.Selection:
    """The leaves that take part; each is the factor of a product on data, or with ``lookups`` a table."""
    known = {use.path for _, use in stats.uses if lookups or not use.lookup}
    if where is None:
        chosen = tree.select(params, lambda path, _: path in known)
    else:
        chosen = tree.select(params, where)
    if not chosen.chosen:
        raise ValueError(f"the statistics are of {sorted(known)}, none of which is a leaf of {chosen.paths}")
    counts = []
    for path, leaf in zip(chosen.names, chosen.values, strict=True):
        for _, use in stats.of(path):
            if leaf.shape != use.view.shape:
                raise ValueError(
                    f"leaf {tree.show(path)} has shape {leaf.shape}; the statistics are of shape {use.view.shape}"
                )
            counts.append(stats.inputs[use.source].count)
    if not any(isinstance(count, Tracer) for count in counts) and not any(
        np.asarray(c).any() for c in jax.device_get(counts)
    ):
        raise ValueError(f"the statistics hold no row of data for any of {chosen.names}")
    return chosen


class Task(NamedTuple):
    """What is asked of one leaf: masks that hold, operands of the rounding for each entry, settings of the choice."""

    mask: Any = True
    operands: Sequence[Array] = ()
    settings: Any = ()


def each(
    chosen: tree.Selection, stats: Statistics, damping: Setting, tasks: Sequence[Task], how: feedback.Pass
) -> tuple[list[Array], list[Array]]:
    """The new leaves, and their masks."""
    dampings = settings.per_leaf(damping, chosen, "damping", 0.0, np.inf)
    cache: dict[Any, tuple[Array, Array]] = {}
    leaves, masks = [], []
    for path, leaf, rate, task in zip(chosen.names, chosen.values, dampings, tasks, strict=True):
        new, kept = leaf.astype(jnp.float32), jnp.broadcast_to(task.mask, leaf.shape)
        for use, gram in parts(stats, path):
            key = id(gram), id(rate)
            if key not in cache:
                cache[key] = gram, feedback.factor(gram, rate)  # the key lives as long as what it is of
            factors = cache[key][1]
            new, kept = _solve((new, kept), factors, tuple(task.operands), task.settings, use.form, how)
        leaves.append(new.astype(leaf.dtype))
        masks.append(kept)
    return leaves, masks


def parts(stats: Statistics, path: str) -> list[Part]:
    """The matrices of a leaf; what is used alike several times is one, of the sum of the second moments."""
    alike: dict[Any, tuple[Use, list[str]]] = {}
    for name, use in stats.of(path):
        if not use.lookup:
            alike.setdefault((use.view, use.shape), (use, []))[1].append(name)
    return [Part(use, _gram(stats, path, names)) for use, names in alike.values()]


def _gram(stats: Statistics, path: str, names: list[str]) -> Array:
    uses = dict(stats.uses)
    weighted = [stats.gradients[name].weighted for name in names if name in stats.gradients]
    grams = [_moments(stats, uses[name]).gram for name in names]
    own = [
        one for one in (weighted if weighted and all(one is not None for one in weighted) else grams) if one is not None
    ]
    if len(own) < len(names):
        raise ValueError(
            f"the statistics of leaf {tree.show(path)} hold no Gram matrices: collect them with want=['gram']"
        )
    return sum(own[1:], own[0])


def _moments(stats: Statistics, use: Use) -> Moments:
    found = stats.inputs[use.source]
    assert isinstance(found, Moments)
    return found


@partial(jax.jit, static_argnums=(4, 5))
def _solve(
    leaf: tuple[Array, Array], factors: Array, operands: tuple[Array, ...], settings: Any, use: Use, how: feedback.Pass
) -> tuple[Array, Array]:
    """The leaf with some of its matrices compressed, and its mask."""

    def solved(old: Array, kept: Array, operands: tuple[Array, ...]) -> tuple[Array, Array]:
        rows = tuple(use.matrices(one) for one in operands)
        matrices, chosen = feedback.run(use.matrices(old), factors, use.matrices(kept) > 0, rows, settings, how)
        new, mask = use.leaf(matrices, old), use.leaf(chosen, old) > 0
        if matrices.size == old.size:
            return new, mask
        seen = use.leaf(jnp.ones(matrices.shape), old) > 0
        return jnp.where(seen, new, old), jnp.where(seen, mask, kept)

    return automatic(solved, *leaf, operands, out=(explicit_spec(leaf[0]),) * 2)
