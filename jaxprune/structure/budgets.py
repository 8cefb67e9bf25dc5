"""Which units go: the lowest scores, in each group or in one ranking, until a budget is met."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

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


def count(size: int, sparsity: float) -> int:
    """How many of ``size`` units a sparsity removes: ``round_half_up(size * sparsity)``, of the float32 sparsity."""
    return math.floor(Fraction(float(np.float32(sparsity))) * size + Fraction(1, 2))


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
    return {
        group.name: highest(scores[group.name], spec.stays(group.size, group.size - int(lost)))
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
