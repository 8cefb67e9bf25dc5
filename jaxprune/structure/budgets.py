"""Which units go: the lowest scores, in each group or in one ranking, until a budget is met."""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np

from jaxprune.structure.groups import Group
from jaxprune.structure.plans import Units


class Limits(Protocol):
    """What a group must keep."""

    def least(self, size: int) -> int:
        """How many of ``size`` units must stay."""
        ...

    def stays(self, size: int, wanted: int) -> int:
        """How many of ``size`` units stay, if ``wanted`` should."""
        ...


def count(size: int, sparsity: float) -> int:
    """How many of ``size`` units a sparsity removes: ``round_half_up(size * sparsity)``, of the float32 sparsity."""
    return math.floor(Fraction(float(np.float32(sparsity))) * size + Fraction(1, 2))


def each(groups: Sequence[Group], scores: Mapping[str, np.ndarray], sparsity: float, limits: Limits) -> Units:
    """Removes the same fraction of every group."""
    kept = {group.name: limits.stays(group.size, group.size - count(group.size, sparsity)) for group in groups}
    return {name: highest(scores[name], keep) for name, keep in kept.items()}


def together(groups: Sequence[Group], scores: Mapping[str, np.ndarray], limits: Limits, removed: int) -> Units:
    """Removes the ``removed`` lowest scores of all groups; what a group must keep is made up for by the others."""
    spare = [group.size - limits.least(group.size) for group in groups]
    ranked = [np.sort(scores[group.name])[:most] for group, most in zip(groups, spare, strict=True)]
    owner = np.repeat(np.arange(len(groups)), spare)
    lowest = np.argsort(np.concatenate(ranked), kind="stable")[:removed]
    gone = np.bincount(owner[lowest], minlength=len(groups))
    return {
        group.name: highest(scores[group.name], limits.stays(group.size, group.size - int(lost)))
        for group, lost in zip(groups, gone, strict=True)
    }


def highest(scores: np.ndarray, keep: int) -> np.ndarray:
    """Flags of the ``keep`` highest scores; of equal ones the lower index goes first."""
    flags = np.ones(scores.size, bool)
    flags[np.argsort(scores, kind="stable")[: scores.size - keep]] = False
    return flags


def least(cost: Callable[[int], float], most: int, limit: float) -> int:
    """The smallest number of removed units, up to ``most``, whose cost is within a limit; ``most`` if none is."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) <= limit else (middle + 1, high)
    return low
