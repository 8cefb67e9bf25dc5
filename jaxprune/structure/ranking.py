"""Which units go: scores on one scale for all groups, and the lowest of them until a budget is met."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import settings, tree
from jaxprune.base import Params, Saliency, Where
from jaxprune.kernels.order import removed_of
from jaxprune.structure.groups import Group
from jaxprune.structure.plans import Units
from jaxprune.structure.tracing import FreeOutput


@dataclass(frozen=True)
class ShrinkSpec:
    """What :func:`shrink` may cut, and what it must leave. Static.

    Attributes:
      round_to: the units that stay in a group are rounded up to a multiple of it, all of them at most.
      min_keep: so much of each group stays at least: an int is a number of units, a float a fraction, rounded up. One
        unit always stays.
      groups: which groups may lose units: glob patterns over their names and descriptions, a leading ``!`` excludes.
      split: see :func:`trace`.
      free_output: see :func:`trace`.
      allow_inexact: whether to remove units although the smaller function may differ from the masked one.

    >>> ShrinkSpec(round_to=8, min_keep=0.25).stays(64, 13)
    16
    """

    round_to: int = 1
    min_keep: int | float = 1
    groups: str | Sequence[str] | None = None
    split: Literal["leading", "trailing"] = "leading"
    free_output: FreeOutput = None
    allow_inexact: bool = False

    def __post_init__(self) -> None:
        if self.round_to < 1:
            raise ValueError(f"round_to must be at least 1, got {self.round_to}")
        whole, allowed = isinstance(self.min_keep, int), "a number of units, 1 or more, or a fraction in [0, 1]"
        if not (self.min_keep >= 1 if whole else 0 <= self.min_keep <= 1):
            raise ValueError(f"min_keep must be {allowed}, got {self.min_keep}")

    def least(self, size: int) -> int:
        """How many of ``size`` units must stay."""
        wanted = self.min_keep if isinstance(self.min_keep, int) else math.ceil(self.min_keep * size)
        return min(max(wanted, 1), size)

    def stays(self, size: int, wanted: int) -> int:
        """How many of ``size`` units stay, if ``wanted`` should."""
        return min(size, math.ceil(max(wanted, self.least(size)) / self.round_to) * self.round_to)


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
    if settings.any_traced(params):
        raise TypeError("shrinking needs concrete parameters: what is removed decides on shapes")
    shapes = tree.select(params, where)
    sizes = {path: np.shape(leaf) for path, leaf in zip(shapes.paths, shapes.leaves, strict=True)}
    scored = tree.flatten(saliency(params))
    leaves = dict(zip(scored.paths, scored.leaves, strict=True))
    for path, leaf in leaves.items():
        own, shape = np.shape(leaf), sizes.get(path)
        if shape is None or (own and not (len(own) == len(shape) and tree.broadcasts(own, shape))):
            raise ValueError(f"scores of {tree.show(path)} have shape {own}, the parameter has {shape}")
    return {group.name: _of_group(group, leaves, sizes, set(shapes.names)) for group in groups}


def count(size: int, sparsity: float) -> int:
    """How many of ``size`` units a sparsity removes: ``round_half_up(size * sparsity)``, of the float32 sparsity."""
    return removed_of(size, float(np.float32(sparsity)))


def each(groups: Sequence[Group], scores: Mapping[str, np.ndarray], sparsity: float, spec: ShrinkSpec) -> Units:
    """Removes the same fraction of every group."""
    kept = {group.name: spec.stays(group.size, group.size - count(group.size, sparsity)) for group in groups}
    return {name: highest(scores[name], keep) for name, keep in kept.items()}


def together(groups: Sequence[Group], scores: Mapping[str, np.ndarray], spec: ShrinkSpec, removed: int) -> Units:
    """Removes the ``removed`` lowest scores of all groups; what a group must keep is made up for by the others."""
    spare = [group.size - spec.least(group.size) for group in groups]
    ranked = [np.sort(scores[group.name])[:most] for group, most in zip(groups, spare, strict=True)]
    owner = np.repeat(np.arange(len(groups)), spare)
    lowest = np.argsort(np.concatenate(ranked), kind="stable")[:removed]
    gone = np.bincount(owner[lowest], minlength=len(groups))
    kept = [spec.stays(group.size, group.size - int(lost)) for group, lost in zip(groups, gone, strict=True)]
    return {group.name: highest(scores[group.name], keep) for group, keep in zip(groups, kept, strict=True)}


def highest(scores: np.ndarray, keep: int) -> np.ndarray:
    """Flags of the ``keep`` highest scores; of equal ones the lower index goes first."""
    flags = np.ones(scores.size, bool)
    flags[np.argsort(scores, kind="stable")[: scores.size - keep]] = False
    return flags


def _of_group(group: Group, leaves: dict[str, Any], sizes: dict[str, tuple[int, ...]], chosen: set[str]) -> np.ndarray:
    def usable(path: str, axis: int) -> bool:
        return path in leaves and bool(np.ndim(leaves[path])) and leaves[path].shape[axis] == sizes[path][axis]

    members = [(*own, units) for own, units in zip(group.members, group.units, strict=True) if usable(*own)]
    members = [member for member in members if member[0] in chosen] or members
    parts = [_of_member(leaves[path], axis, units, group.size) for path, axis, units in members]
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
