"""What shrinking has left: units of each group, widths, parameters, bytes and operations, as a table and as numbers."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jaxprune import tree
from jaxprune.base import Params
from jaxprune.structure.certification import Certificate
from jaxprune.structure.graph import Graph
from jaxprune.structure.plans import Units


@dataclass(frozen=True)
class GroupRow:
    """One group: its units before and after, and the widths of the parameters that make them.

    Attributes:
      name: of the group.
      description: what its units are.
      size: units before.
      kept: units after.
      widths: for each ``(path, axis)`` of a parameter, the size of the axis after.
    """

    name: str
    description: str
    size: int
    kept: int
    widths: dict[tuple[str, int], int]


@dataclass(frozen=True)
class ShrinkReport:
    """What is left. ``print`` shows a table, :meth:`to_dict` gives what is in it.

    Attributes:
      groups: a row for each group, also those that lose nothing.
      parameters: before and after.
      nbytes: bytes of the parameters before and after.
      flops: operations of matrix products and convolutions for the example inputs, before and after.
      certificate: whether the smaller function equals the masked one.
      ambiguous: places where more than one part of an axis could be cut.
    """

    groups: tuple[GroupRow, ...]
    parameters: tuple[int, int]
    nbytes: tuple[int, int]
    flops: tuple[int, int]
    certificate: Certificate
    ambiguous: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for ``json.dumps``."""
        rows = [
            asdict(row) | {"widths": {f"{path}:{axis}": size for (path, axis), size in row.widths.items()}}
            for row in self.groups
        ]
        pairs = {name: dict(zip(("before", "after"), getattr(self, name), strict=True)) for name in _PAIRS}
        return {"groups": rows, **pairs, "exact": self.certificate.exact, "ambiguous": list(self.ambiguous)}

    def __str__(self) -> str:
        lines = [("group", "units", "before", "after")]
        lines += [(row.name, row.description, f"{row.size:,}", f"{row.kept:,}") for row in self.groups]
        lines += [(label, "", *(f"{n:,}" for n in getattr(self, name))) for name, label in _PAIRS.items()]
        widths = [max(len(line[i]) for line in lines) for i in range(4)]
        table = [
            "  ".join(
                [line[0].ljust(widths[0]), line[1].ljust(widths[1]), line[2].rjust(widths[2]), line[3].rjust(widths[3])]
            )
            for line in lines
        ]
        rule = "-" * len(table[0])
        table = [table[0], rule, *table[1 : -len(_PAIRS)], rule, *table[-len(_PAIRS) :], str(self.certificate)]
        return "\n".join([*table, *(f"ambiguous: {place}" for place in self.ambiguous)])


_PAIRS = {"parameters": "parameters", "nbytes": "bytes", "flops": "operations of products"}


def _pair(values: Iterable[int]) -> tuple[int, int]:
    before, after = values
    return before, after


def summarize(graph: Graph, params: Params, plan: Units, certificate: Certificate) -> ShrinkReport:
    """The report of a plan."""
    selection, shapes, flags = tree.flatten(params), graph.shapes(plan), graph.kept(plan)
    widths = {path: leaf.dtype.itemsize for path, leaf in zip(selection.paths, selection.leaves, strict=True)}
    pair = (graph.shapes({}), shapes)
    rows = tuple(
        GroupRow(
            group.name,
            group.description,
            group.size,
            int(np.count_nonzero(plan.get(group.name, np.ones(group.size, bool)))),
            {(path, axis): shapes[path][axis] for path, axis in group.members if (path, axis) in flags},
        )
        for group in graph.groups
    )
    return ShrinkReport(
        rows,
        _pair(sum(map(math.prod, of.values())) for of in pair),
        _pair(sum(widths[path] * math.prod(shape) for path, shape in of.items()) for of in pair),
        _pair(map(graph.flops, ({}, plan))),
        certificate,
        tuple(graph.ambiguous),
    )
