"""A visit that hands labels of axis entries from operands to results. What labels are tied by, a caller brings along.

Every entry of every axis of every value carries a label, an integer. Rules tie entries that can only be removed
together, and pin those that must stay, with a reason in words.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxprune.program import visitor

#: The label of axes of size 1, which never become shorter.
STAYS = 0

#: One array of labels for each axis of a value.
Axes = tuple[np.ndarray, ...]


class Labels(Protocol):
    """What rules may ask and say of labels.

    Attributes:
      decided: for each place that offers a choice, the axis to cut; ``None`` while choices are looked for.
      notes: arrays of labels that a product contracts over ("in") or leaves ("out"), in the program's order.
    """

    decided: Mapping[visitor.Place, int | None] | None
    notes: list[tuple[np.ndarray, str]]

    def fresh(self, size: int) -> np.ndarray:
        """New labels for an axis; an axis of size 1 stays."""
        ...

    def fixed(self, size: int, reason: str) -> np.ndarray:
        """One pinned label for all entries of an axis."""
        ...

    def pin(self, labels: np.ndarray, reason: str, passed_over: bool = False) -> None:
        """These entries stay; ``passed_over``: as others at a place that offers a choice are cut."""

    def tie(self, left: np.ndarray, right: np.ndarray) -> None:
        """Entries at the same place of both arrays go together."""

    def resolve(self, labels: np.ndarray) -> np.ndarray:
        """One number for all labels tied so far; ``STAYS`` for those that are pinned."""
        ...

    def choose(self, place: visitor.Place, candidates: dict[int, np.ndarray], words: str) -> int | None:
        """The axis to cut, of several that cannot all be."""


class Call(visitor.Site):
    """What a rule sees of the equation at hand, besides its operands' labels."""

    @property
    def labels(self) -> Labels:
        """All labels, to tie and pin."""
        return self.reader.labels

    def here(self, reason: str) -> str:
        """A reason, with the operation and its line."""
        return f"{reason}: `{self.name}`" + (f" at {self.line}" if self.line else "")

    def pin(self, labels: np.ndarray, reason: str, passed_over: bool = False) -> None:
        """These entries stay, because of this equation."""
        self.labels.pin(labels, self.here(reason), passed_over)

    def fixed(self, size: int, reason: str) -> np.ndarray:
        """An axis of this equation's result whose entries stay."""
        return self.labels.fixed(size, self.here(reason))

    def tie_all(self, left: Sequence[Axes], right: Sequence[Axes]) -> None:
        """Ties several values, axis by axis."""
        for one, other in zip(left, right, strict=True):
            for a, b in zip(one, other, strict=True):
                self.labels.tie(a, b)

    def unknown(self, ins: Sequence[Axes], reason: str) -> list[Axes]:
        """Pins all operands and results."""
        for axes in ins:
            for labels in axes:
                self.pin(labels, reason)
        shapes = (out.aval.shape for out in self.equation.outvars)
        return [tuple(self.fixed(size, reason) for size in shape) for shape in shapes]


class Labelling:
    """The reader of a visit that labels.

    An operation without a rule pins everything that it touches, so a missing rule costs opportunities, never
    correctness.
    """

    site = Call

    def __init__(self, labels: Labels, rules: Mapping[str, Any]) -> None:
        self.labels, self.rules = labels, rules

    def constant(self, variable: Any, value: Any, guide: visitor.Frame | None) -> Axes:
        """A constant may be cut like a parameter, without counting as one."""
        return tuple(self.labels.fresh(size) for size in variable.aval.shape)

    def literal(self, atom: Any) -> Axes:
        """A number stays."""
        return tuple(np.zeros(size, np.int64) for size in np.shape(atom.val))

    def apply(self, call: Call, operands: Sequence[Axes]) -> Sequence[Axes]:
        """By the rule of the operation."""
        rule, effects = self.rules.get(call.name), call.equation.effects
        if effects and not (rule and rule.calls):
            return call.unknown(operands, f"has the effect {', '.join(map(str, effects))}")
        return rule.tie(call, operands) if rule else call.unknown(operands, "no rule for this operation")
