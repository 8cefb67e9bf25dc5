"""Scores of units: what a criterion says of all parameters that a unit takes part in, on one scale for all groups."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune import tree
from jaxprune.base import Params, Saliency, Where
from jaxprune.structure.groups import Group


def of_groups(
    groups: Sequence[Group], params: Params, saliency: Saliency, where: Where = None
) -> dict[str, np.ndarray]:
    """Scores each unit by the mean over its group's members of ``s / mean(s)``.

    ``s`` is the mean score of the unit's entries in one member, divided by the mean of all units of the group, so that
    members and groups of any size and scale compare, and the units of every group score 1 on average.

    Args:
      groups: what can be removed.
      params: any pytree of arrays.
      saliency: ``params -> scores``, larger is more important: of weights, as ``jaxprune.saliency.magnitude``, or of
        units, as ``unit_norm`` and ``unit_entropy``. The scores may be of some of the parameters only, by path.
      where: whose scores count; see :func:`jaxprune.tree.select`. Of a group without any of these, all members count.

    Returns:
      For each group, by name, float64 scores of its units. A NaN makes the unit the most important, +inf.

    Raises:
      ValueError: scores of another shape than the parameter, with its path.
      TypeError: traced parameters: what is removed decides on shapes.
    """
    if any(isinstance(leaf, Tracer) for leaf in tree.flatten(params).leaves):
        raise TypeError("shrinking needs concrete parameters: what is removed decides on shapes")
    shapes = tree.select(params, where)
    sizes = {path: np.shape(leaf) for path, leaf in zip(shapes.paths, shapes.leaves, strict=True)}
    scored = tree.flatten(saliency(params))
    leaves = dict(zip(scored.paths, scored.leaves, strict=True))
    for path, leaf in leaves.items():
        wrong = np.ndim(leaf) != len(sizes.get(path, ())) or any(
            n not in (1, size) for n, size in zip(np.shape(leaf), sizes[path], strict=True)
        )
        if path not in sizes or (np.ndim(leaf) and wrong):
            raise ValueError(
                f"scores of {tree.show(path)} have shape {np.shape(leaf)}, the parameter has {sizes.get(path)}"
            )
    return {group.name: _of_group(group, leaves, sizes, set(shapes.names)) for group in groups}


def _of_group(group: Group, leaves: dict[str, Any], sizes: dict[str, tuple[int, ...]], chosen: set[str]) -> np.ndarray:
    usable = [
        (leaves[path], axis, units, path in chosen)
        for (path, axis), units in zip(group.members, group.units, strict=True)
        if path in leaves and np.ndim(leaves[path]) and leaves[path].shape[axis] == sizes[path][axis]
    ]
    first = [entry for entry in usable if entry[3]] or usable
    parts = [_of_member(leaf, axis, units, group.size) for leaf, axis, units, _ in first]
    scores = np.mean(parts, axis=0) if parts else np.zeros(group.size)
    return np.where(np.isnan(scores), np.inf, scores)


def _of_member(leaf: Any, axis: int, units: np.ndarray, size: int) -> np.ndarray:
    """Mean score of each unit's entries, over the mean of that."""
    others = tuple(i for i in range(leaf.ndim) if i != axis)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:  # of several hosts: none of them has it all
        entries = np.asarray(jnp.mean(leaf.astype(jnp.float32), axis=others), np.float64)
    else:
        entries = np.asarray(leaf, np.float32).mean(axis=others, dtype=np.float64)
    own = units >= 0
    total = np.bincount(units[own], weights=entries[own], minlength=size) / np.bincount(units[own], minlength=size)
    finite = total[np.isfinite(total)]
    mean = np.mean(np.abs(finite)) if finite.size else 0.0
    return total / mean if mean else total
