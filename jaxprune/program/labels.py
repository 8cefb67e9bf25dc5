"""Labels of entries: which of them can only be removed together, and which must stay.

Every entry of every axis of every value carries a label, an integer. Rules tie entries that can only be removed
together, and pin those that must stay, with a reason in words. They do nothing else, so they may come in any order, and
one run of connected components at the end tells what belongs together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxprune.program.jaxprs import Place

#: The label of axes of size 1, which never become shorter.
STAYS = 0

#: One array of labels for each axis of a value.
Axes = tuple[np.ndarray, ...]


class Forest:
    """Numbers that are tied to each other; each stands for the least of these."""

    def __init__(self, size: int = 1) -> None:
        self.parent = np.arange(size)

    def grow(self, size: int) -> None:
        """Room for numbers below ``size``, at least."""
        if (own := self.parent.size) < size:
            self.parent = np.append(self.parent, np.arange(own, max(size, 2 * own)))

    def find(self, numbers: np.ndarray) -> np.ndarray:
        """What numbers stand for."""
        found = self.parent[numbers]
        while not np.array_equal(above := self.parent[found], found):
            self.parent[found] = above = self.parent[above]
            found = above
        return found

    def tie(self, edges: Sequence[tuple[np.ndarray, np.ndarray]]) -> "Forest":
        """Ties numbers at the same place of two arrays."""
        if edges:
            left, right = (np.concatenate(side) for side in zip(*edges, strict=True))
            while left.size:
                left, right = self.find(left), self.find(right)
                np.minimum.at(self.parent, np.maximum(left, right), np.minimum(left, right))
                left, right = left[left != right], right[left != right]
        return self


@dataclass
class Labels:
    """The labels handed out so far, what ties them, and what pins them.

    Attributes:
      trailing: of several axes that may be cut, take the last instead of the first.
      decided: the axis to cut (or None) for each place that offers a choice; ``None`` while these are looked for.
      count: labels handed out.
      born: labels below it are those of parameters.
      choices: for each place at which one of several axes can be cut, but not more, their labels, by axis, and what is
        done there, in words.
      notes: for the arrays of labels that a product contracts over ("in"), leaves ("out") or goes through one by one
        ("each"), in the program's order.
      pairs: of the products of which neither operand is a parameter and both have axes of their own, as in attention:
        the labels of the axes that are gone through one by one, of those that are contracted, and of those left.
      paired: the first label of each of these axes.
      multiplied: the first label of each axis of what products take besides whole parameters: of an embedding, say.
      repeated: the first label of each axis of what a loop takes to all of its steps.
      origins: for the first label of an axis that :meth:`part` has made, that of the axis it was made from.
    """

    trailing: bool = False
    decided: Mapping[Place, int | None] | None = None
    count: int = 1
    born: int = 1
    choices: dict[Place, tuple[dict[int, np.ndarray], str]] = field(default_factory=dict)
    notes: list[tuple[np.ndarray, str]] = field(default_factory=list)
    pairs: list[tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]] = field(default_factory=list)
    paired: list[int] = field(default_factory=list)
    multiplied: set[int] = field(default_factory=set)
    repeated: set[int] = field(default_factory=set)
    origins: dict[int, int] = field(default_factory=dict)
    _pins: list[tuple[np.ndarray, str, bool]] = field(default_factory=list)
    _edges: list[tuple[np.ndarray, np.ndarray, str]] = field(default_factory=list)
    _settled: tuple[int, int] = (0, 0)
    _forest: Forest = field(default_factory=Forest)

    def fresh(self, size: int) -> np.ndarray:
        """New labels for an axis; an axis of size 1 stays."""
        if size == 1:
            return np.zeros(1, np.int64)
        self.count += size
        return np.arange(self.count - size, self.count)

    def fixed(self, size: int, reason: str) -> np.ndarray:
        """One pinned label for all entries of an axis."""
        if size <= 1:
            return np.zeros(size, np.int64)
        self.count += 1
        label = np.full(size, self.count - 1)
        self.pin(label[:1], reason)
        return label

    def part(self, axes: Axes) -> Axes:
        """Labels of their own for one of several parts of a value that are used apart, but go together all the same."""
        parts = tuple(self.fresh(labels.size) for labels in axes)
        for labels, own in zip(axes, parts, strict=True):
            self.tie(labels, own, "part")
            if labels.size > 1:
                self.origins[int(own[0])] = self.origin(labels)
        return parts

    def origin(self, labels: np.ndarray) -> int:
        """The first label of an axis, or of the axis of which these are a part."""
        return self.origins.get(int(labels[0]), int(labels[0]))

    def pin(self, labels: np.ndarray, reason: str, passed_over: bool = False) -> None:
        """These entries stay; ``passed_over``: as others at a place that offers a choice are cut."""
        if labels.size > 1 or (labels.size and labels[0] != STAYS):
            self._pins.append((labels, reason, passed_over))

    def tie(self, left: np.ndarray, right: np.ndarray, by: str = "") -> None:
        """Entries at the same place of both arrays go together.

        ``by`` says what they are: "" if they become one by a sum, a choice, or the like, "step" if that is within a
        loop; "factors"; axes of a "product" of matrices; "part": a value, and a part of it that is used apart.
        """
        if left is not right and not np.array_equal(left, right):
            self._edges.append((left, right, by))

    def resolve(self, labels: np.ndarray) -> np.ndarray:
        """The least of the labels that each is tied to so far: one number for all of them, ``STAYS`` if one is pinned.

        What is new since the last call is merged into what was known, so the work grows with the ties, not with calls.
        """
        edges, pins = self._edges[self._settled[0] :], self._pins[self._settled[1] :]
        self._settled = (len(self._edges), len(self._pins))
        self._forest.grow(self.count)
        return self._forest.tie([edge[:2] for edge in edges] + [_pinned(one) for one, *_ in pins]).find(labels)

    def of_parameters(self, axes: Axes) -> bool:
        """Whether all axes of a value are those of parameters."""
        return all(self.origin(labels) < self.born for labels in axes if labels.size)

    def joined(self, *kinds: Sequence[str]) -> list[np.ndarray]:
        """For each choice of operations a number for each label, the same for those they tie, each to one other."""
        apart = [edge for edge in self._edges if _distinct(edge[0]) and _distinct(edge[1])]
        chosen = [[edge[:2] for edge in apart if edge[2] in by] for by in kinds]
        return [Forest(self.count).tie(edges).find(np.arange(self.count)) for edges in chosen]

    def factors(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The labels of factors, entry by entry."""
        return ((left, right) for left, right, by in self._edges if by == "factors")

    def choose(self, place: Place, candidates: dict[int, np.ndarray], words: str) -> int | None:
        """The axis that is cut at a place: the one decided on, else the preferred one."""
        if self.decided is None and len(candidates) > 1:
            self.choices[place] = candidates, words
        if self.decided is not None and (not candidates or self.decided.get(place) in candidates):
            return self.decided.get(place)
        return self.preferred(candidates)

    def preferred(self, candidates: dict[int, np.ndarray]) -> int | None:
        """Of the axes that can be cut, the first (or last); those of attention and of parameters come before others."""
        roots = {axis: self.resolve(labels) for axis, labels in candidates.items()}
        live = [axis for axis, root in roots.items() if np.any(root != STAYS)]
        if len(live) > 1:
            paired = self.resolve(np.array(self.paired, np.int64))
            shared = [axis for axis in live if np.any((roots[axis] != STAYS) & (roots[axis] < self.born))]
            live = [axis for axis in live if axis in shared or roots[axis][0] in paired] or live
        return live[-1 if self.trailing else 0] if live else None

    def decide(self) -> dict[Place, int | None]:
        """Which axis to cut at each place that offered a choice, now that all ties and pins are known."""
        return {place: self.preferred(candidates) for place, (candidates, _) in self.choices.items()}

    def ambiguous(self) -> list[str]:
        """What is done at the places where more than one axis could be cut, if the choices did not rule them out."""
        pins = [_pinned(labels) for labels, _, passed_over in self._pins if not passed_over]
        forest = Forest(self.count).tie([edge[:2] for edge in self._edges] + pins)

        def free(labels: np.ndarray) -> bool:
            return bool(np.any(forest.find(labels) != STAYS))

        choices = self.choices.values()
        return list(dict.fromkeys(words for axes, words in choices if sum(map(free, axes.values())) > 1))

    def why(self, labels: np.ndarray) -> list[str]:
        """The reasons for which entries stay, each once, in the program's order."""
        forest = Forest(self.count).tie([edge[:2] for edge in self._edges])
        wanted = np.unique(forest.find(labels))
        reasons = [reason for pinned, reason, _ in self._pins if np.isin(forest.find(pinned), wanted).any()]
        if STAYS in wanted:
            reasons.append("it is tied to an axis of size 1")
        return list(dict.fromkeys(reasons))


def _pinned(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return labels, np.full_like(labels, STAYS)


def _distinct(labels: np.ndarray) -> bool:
    steps = np.diff(labels)
    return bool(np.all(steps > 0)) or (bool(np.all(steps != 0)) and np.unique(labels).size == labels.size)
