"""What shrinking has left: units of each group, widths, parameters, bytes and operations, as a table and as numbers."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jaxprune import host, tree
from jaxprune.base import Params
from jaxprune.structure.certification import Certificate
from jaxprune.structure.graph import Graph
from jaxprune.structure.resolved import Resolved


@dataclass(frozen=True)
class GroupRow:
    """One group: its units before and after, and the widths of the parameters that make them.

    Attributes:
      name: of the group.
      description: what its units are.
      size: units before.
      kept: units after.
      widths: for each ``"path:axis"`` of a parameter, the size of the axis after.
    """

    name: str
    description: str
    size: int
    kept: int
    widths: dict[str, int]


@dataclass(frozen=True, repr=False)
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
        pairs = {name: dict(zip(("before", "after"), getattr(self, name), strict=True)) for name in _PAIRS}
        exact = self.certificate.exact
        return {"groups": [*map(asdict, self.groups)], **pairs, "exact": exact, "ambiguous": list(self.ambiguous)}

    def __repr__(self) -> str:
        (before, after), (slow, fast) = self.parameters, self.flops
        return f"ShrinkReport({after:,} of {before:,} parameters, {fast:,} of {slow:,} operations)"

    def __str__(self) -> str:
        rows = [(row.name, row.description, f"{row.size:,}", f"{row.kept:,}") for row in self.groups]
        sums = [(label, "", *(f"{n:,}" for n in getattr(self, name))) for name, label in _PAIRS.items()]
        table = host.table(("group", "units", "before", "after"), [*rows, *sums], left=2)
        return "\n".join([table, str(self.certificate), *(f"ambiguous: {place}" for place in self.ambiguous)])


_PAIRS = {"parameters": "parameters", "nbytes": "bytes", "flops": "operations of products"}


def summarize(graph: Graph, params: Params, smaller: Resolved) -> ShrinkReport:
    """The report of a plan."""
    selection, whole = tree.flatten(params), graph.at({})
    itemsize = {path: leaf.dtype.itemsize for path, leaf in zip(selection.paths, selection.leaves, strict=True)}

    def row(group: Any) -> GroupRow:
        kept = int(np.count_nonzero(smaller.units.get(group.name, np.ones(group.size, bool))))
        cut = [(path, axis) for path, axis in group.members if (path, axis) in smaller.kept]
        widths = {f"{path}:{axis}": smaller.shapes[path][axis] for path, axis in cut}
        return GroupRow(group.name, group.description, group.size, kept, widths)

    def size(of: Resolved) -> tuple[int, int]:
        counts = {path: math.prod(shape) for path, shape in of.shapes.items()}
        return sum(counts.values()), sum(itemsize[path] * count for path, count in counts.items())

    (before, bytes_before), (after, bytes_after) = size(whole), size(smaller)
    return ShrinkReport(
        tuple(map(row, graph.groups)),
        (before, after),
        (bytes_before, bytes_after),
        (whole.flops, smaller.flops),
        smaller.certificate,
        tuple(graph.ambiguous),
    )
