"""What can be removed, in words and numbers: units that go as a whole, and groups of like units."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from jaxprune import host, tree
from jaxprune.program.labels import STAYS, Labels


@dataclass(frozen=True, repr=False)
class Group:
    """Units of which any but the last can be removed, each with its entries along some axes of the parameters.

    Attributes:
      name: the member that makes the units, as ``"Conv_1/kernel:3"``; with ``#2`` and so on if others have that name.
      size: number of units.
      members: ``(path, axis)`` of each axis of a parameter that loses entries.
      description: what the units are, in words: "features of Dense_0", "residual width, made by Conv_0, Conv_2".
      roles: for each member "out" if a product makes the units with it, "in" if one uses them, "each" if there is one
        product for each of them, else "".
      units: for each member, the unit of each entry along the axis; -1 for entries of other units, or that stay.
    """

    name: str
    size: int
    members: tuple[tuple[str, int], ...]
    description: str
    roles: tuple[str, ...]
    units: tuple[np.ndarray, ...] = field(compare=False)

    def __repr__(self) -> str:
        places = [f"axis {axis} of {tree.show(path)}" for path, axis in self.members]
        listed = ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")
        return f"Group({self.name!r}, {self.size} units: {self.description}; {listed})"


class Row(NamedTuple):
    """One axis of a parameter: its labels, and what the first product with it does: uses it ("in"), makes new units
    ("out"), or is taken for each entry ("each")."""

    path: str
    axis: int
    rank: int
    labels: np.ndarray
    role: str = ""
    when: float = math.inf

    @property
    def module(self) -> str:
        """The path of the layer that holds the parameter."""
        return self.path.rpartition("/")[0] or self.path


def rows_of(paths: Sequence[str], axes: Sequence[Sequence[np.ndarray]], labels: Labels) -> list[Row]:
    """A row for each axis of each parameter, with its role as the walk has noted it."""
    rows = [Row(path, i, len(all_), one) for path, all_ in zip(paths, axes, strict=True) for i, one in enumerate(all_)]
    owner = {int(row.labels[0]): i for i, row in enumerate(rows) if row.labels.size > 1}
    for when, (noted, role) in enumerate(labels.notes):
        i = owner.get(labels.origin(noted)) if noted.size > 1 else None
        if i is not None and not rows[i].role:
            rows[i] = rows[i]._replace(role=role, when=when)
    return rows


def find(rows: Sequence[Row], labels: Labels) -> tuple[Group, ...]:
    """The groups, in the order in which the program uses them.

    Left out are units without another of their kind, and entries that no product makes or uses, such as those of
    parameters that the function does not read.
    """
    roots = [labels.resolve(row.labels) for row in rows]
    kinds = _kinds(roots, labels.count)
    in_products = np.zeros(labels.count + 2, bool)
    in_products[_resolved(labels, [axis for axis, role in labels.notes if role != "each"])] = True
    members: dict[int, list[int]] = {}
    for i, root in enumerate(roots):
        for kind in np.unique(kinds[root[(root != STAYS) & in_products[root]]]):
            members.setdefault(int(kind), []).append(i)
    describe, found = _words(labels), []
    for kind, where in members.items():
        where = sorted(where, key=lambda i: (rows[i].role != "out", rows[i].when, i))
        own = [np.where(kinds[roots[i]] == kind, roots[i], STAYS) for i in where]
        group = _group([rows[i] for i in where], own, describe)
        if group.size > 1:
            found.append(((rows[where[0]].when, where[0], int(np.argmax(group.units[0] >= 0))), group))
    ordered = [group for _, group in sorted(found, key=lambda pair: pair[0])]
    names = host.distinct(group.name for group in ordered)  # several may lie along one axis
    return tuple(replace(group, name=name) for group, name in zip(ordered, names, strict=True))


def _kinds(roots: Sequence[np.ndarray], count: int) -> np.ndarray:
    """A number for each root, the same for roots that occur equally often in every row: sums of random numbers."""
    random = np.random.default_rng(0)
    kinds = np.zeros(count + 2, np.uint64)
    for root in roots:
        found, times = np.unique(root, return_counts=True)
        kinds[found] += random.integers(2**63, dtype=np.uint64) * times.astype(np.uint64)
    return kinds.view(np.int64)


def _group(rows: Sequence[Row], roots: Sequence[np.ndarray], describe: Callable[..., str]) -> Group:
    first = roots[0][roots[0] != STAYS]
    units = first[np.sort(np.unique(first, return_index=True)[1])]  # in the order of the first member
    ordered = np.argsort(units)

    def places(root: np.ndarray) -> np.ndarray:
        at = np.minimum(np.searchsorted(units, root, sorter=ordered), units.size - 1)
        return np.where(root == STAYS, -1, ordered[at])

    entries = [row.labels[root == first[0]] for row, root in zip(rows, roots, strict=True)]
    members, roles = tuple((row.path, row.axis) for row in rows), tuple(row.role for row in rows)
    name, description = f"{rows[0].path}:{rows[0].axis}", describe(rows, entries, int(first[0]))
    return Group(name, units.size, members, description, roles, tuple(map(places, roots)))


def _words(labels: Labels) -> Callable[..., str]:
    """A function that says what units are, by the products that make them and by what joins these."""
    heads, widths = _of_attention(labels)
    sums = ("", "part")
    outside, summed, multiplied, parts = labels.joined(sums, (*sums, "step"), (*sums, "step", "factors"), ("part",))
    gated = _gated(labels, parts)

    def describe(own: Sequence[Row], entries: Sequence[np.ndarray], unit: int) -> str:
        """Of the rows of a group, the labels of its first unit's entries in each, and the label of that unit."""
        makers = _makers(own, labels)
        if not makers:
            return "entries that no product makes"
        made = [entries[i] for i in makers]
        read = [entries[i] for i, row in enumerate(own) if row.role == "in" and i not in makers]
        modules = list(dict.fromkeys(own[i].module.removeprefix("params/") for i in makers))
        parents = {module.rpartition("/")[0] for module in modules}
        names = ", ".join(modules[:3]) + (", ..." if len(modules) > 3 else "")
        if any(row.role == "each" for row in own):
            return f"experts of {names}"
        if unit in heads or (unit in widths and made[0].size > 1 and np.all(np.diff(made[0]) == 1)):
            return f"heads of {(len(parents) == 1 < len(modules) <= 3 and parents.pop()) or names}"
        if _is_recurrent(own, labels) and not _meet(outside, made, read):
            return f"recurrent state of {(len(parents) == 1 < len(modules) and parents.pop()) or names}"
        if _meet(summed, made, read):
            return f"residual width, made by {names}"
        if unit in widths:
            return f"head width of {names}"
        factors = multiplied[np.concatenate(made)]
        if np.unique(factors).size < factors.size or any(gated[one].any() for one in made):
            return f"gated product of {names}"
        return f"features of {names}" + (f", {made[0].size} at a time" if made[0].size > 1 else "")

    return describe


def _makers(rows: Sequence[Row], labels: Labels) -> list[int]:
    """The rows with which products make the units; without a product, those of tables that are looked up or added."""

    def holds(row: Row) -> bool:
        return int(row.labels[0]) in labels.multiplied if row.role else row.rank > 1

    return [i for i, row in enumerate(rows) if row.role == "out"] or [i for i, row in enumerate(rows) if holds(row)]


def _meet(joined: np.ndarray, made: Sequence[np.ndarray], read: Sequence[np.ndarray]) -> bool:
    """Whether what several layers make becomes one, or one with what is looked up in a table that a product reads."""
    firsts = joined[[one[0] for one in made]]
    return np.unique(firsts).size < firsts.size or bool(np.isin(firsts, joined[[one[0] for one in read]]).any())


def _is_recurrent(rows: Sequence[Row], labels: Labels) -> bool:
    """Whether some parameter makes the units of a step of a loop from those of the step before."""
    own = [row for row in rows if int(row.labels[0]) in labels.repeated]
    made, read = ({row.path for row in own if row.role == role} for role in ("out", "in"))
    return bool(made & read)


def _gated(labels: Labels, parts: np.ndarray) -> np.ndarray:
    """For each label, whether parts of its axis are multiplied with each other: gate and value of one product."""
    gated = np.zeros(labels.count, bool)
    for left, right in labels.factors():
        gated[parts[left][(parts[left] == parts[right]) & (left != right)]] = True
    return gated[parts]


def _of_attention(labels: Labels) -> tuple[set[int], set[int]]:
    """The labels that stand for heads, and those for their width: by the first product that tells.

    Heads are gone through one by one, or, where all share keys, left by a product that contracts the width.
    """
    heads, widths = set[int](), set[int]()
    for batch, *others in labels.pairs:
        one_by_one, width, left = ({*_resolved(labels, axes).tolist()} - {STAYS} for axes in (batch, *others))
        heads |= one_by_one
        if not width:
            widths |= left - heads
            continue
        heads |= left - widths
        if batch:
            widths |= width - heads
    return heads, widths


def _resolved(labels: Labels, axes: Sequence[np.ndarray]) -> np.ndarray:
    return labels.resolve(np.concatenate([np.zeros(0, np.int64), *axes]))
