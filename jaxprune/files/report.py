"""What takes how many bytes in compressed parameters, and how near that is to the entropy of the codes."""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxprune.files import arrays, tables
from jaxprune.host import entropy_of_counts, table

if TYPE_CHECKING:
    from jaxprune.files.compressed import StoredLeaf


class LeafSize(NamedTuple):
    """One leaf, or one record that stands for it. Sizes in bytes.

    Attributes:
      path: where it is.
      shape, dtype: of the dense array.
      coder: what coded it; several, if it is coded in several planes.
      dense_bytes: of the dense array.
      nbytes: all that the leaf takes in the file: the four that follow.
      index_bytes: which entries differ from 0. Where codes are coded together, the share that the entropy of these
        positions has in that of the codes.
      value_bytes: the values of those.
      table_bytes: scales, zero points, centroids or the table of distinct values.
      head_bytes: shapes, dtypes and checksums.
      fixed_bits: bits a weight of codes of one width.
      entropy_bits: bits a weight by the empirical entropy of the codes, one after the other (a coder that uses rows and
        columns can be below it).
      achieved_bits: bits a weight in the file, everything counted.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    coder: str
    dense_bytes: int
    nbytes: int
    index_bytes: int
    value_bytes: int
    table_bytes: int
    head_bytes: int
    fixed_bits: float
    entropy_bits: float
    achieved_bits: float


class SizeReport(NamedTuple):
    """All leaves, and the whole file in bytes; ``print`` shows a table."""

    leaves: tuple[LeafSize, ...]
    nbytes: int

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense arrays."""
        return sum(leaf.dense_bytes for leaf in self.leaves)

    @property
    def bias_bytes(self) -> int:
        """Bytes in the file of leaves of rank 0 and 1."""
        return sum(leaf.nbytes for leaf in self.leaves if len(leaf.shape) < 2)

    @property
    def header_bytes(self) -> int:
        """Bytes in the file that belong to no leaf."""
        return self.nbytes - sum(leaf.nbytes for leaf in self.leaves)

    @property
    def ratio(self) -> float:
        """Bytes of the dense arrays by bytes of the file."""
        return self.dense_bytes / self.nbytes

    def __str__(self) -> str:
        head = ("leaf", "shape", "coder", "dense", "file", "index", "values", "tables", "fixed", "entropy", "achieved")
        drawn = table(head, [_row(leaf) for leaf in self.leaves], left=3)
        total = f"{self.dense_bytes:,} bytes dense, {self.nbytes:,} in the file: {self.ratio:.1f} times smaller"
        parts = f"{self.bias_bytes:,} for vectors, {self.header_bytes:,} for headers; right columns: bits a weight"
        return "\n".join([drawn, "", total, parts])


def leaf_size(leaf: "StoredLeaf") -> LeafSize:
    """What a leaf, which is decoded, takes."""
    (_, main), *side = leaf.parts
    found = arrays.head(main.data())
    values, planes, _ = arrays.parts(found)
    inner = sum(plane.nbytes for plane in planes)
    beside = sum(len(part.data()) for _, part in side)
    payload = inner if planes else len(values)
    kind = leaf.node.kind or {}
    bits, positions = _entropy(found, planes)
    weights = max(math.prod(leaf.shape), 1)
    places = beside if kind.get("type") == "NOfMArray" else 0
    tables = (len(values) if planes else 0) + beside - places
    index = planes[0].nbytes if found.form == arrays.SPARSE else round(payload * positions / bits) if bits else 0
    coder = "+".join(dict.fromkeys(plane.coder for plane in planes)) or "raw"
    dense, head = math.prod(leaf.shape) * leaf.dtype.itemsize, leaf.nbytes - payload - tables - places
    sizes = dense, leaf.nbytes, index + places, payload - index, tables, head
    widths = _fixed_width(found, planes, kind), bits / weights, 8 * leaf.nbytes / weights
    return LeafSize(leaf.path, leaf.shape, leaf.dtype.name, coder, *sizes, *widths)


def _entropy(found: arrays.Head, planes: list[arrays.Plane]) -> tuple[float, float]:
    """Bits of all codes by their empirical entropy, and those of the positions of what is not 0."""
    if not planes:
        return 8.0 * math.prod(found.shape) * found.dtype.itemsize, 0.0
    counts = [(tables.histogram(codes) or np.unique(codes, return_counts=True))[1] for _, _, codes in planes]
    main = planes[0].codes
    nonzero = np.count_nonzero(main)
    return sum(map(entropy_of_counts, counts)), entropy_of_counts(np.array([nonzero, main.size - nonzero]))


def _fixed_width(found: arrays.Head, planes: list[arrays.Plane], kind: dict[str, Any]) -> float:
    """Bits a weight of codes of one width."""
    if "bits" in kind:
        return float(kind["bits"])
    if kind.get("type") == "NOfMArray":
        return kind["n"] / kind["m"] * (8.0 * found.dtype.itemsize + (kind["m"] - 1).bit_length())
    if found.form in (arrays.INTEGERS, arrays.PALETTE, arrays.GRID):
        codes = planes[0].codes
        return float((int(codes.max()) - int(codes.min())).bit_length())
    return 8.0 * found.dtype.itemsize


def _row(leaf: LeafSize) -> tuple[str, ...]:
    sizes = (leaf.dense_bytes, leaf.nbytes, leaf.index_bytes, leaf.value_bytes, leaf.table_bytes)
    widths = (leaf.fixed_bits, leaf.entropy_bits, leaf.achieved_bits)
    shape = "x".join(map(str, leaf.shape)) or "scalar"
    return (leaf.path, shape, leaf.coder, *(f"{size:,}" for size in sizes), *(f"{width:.3g}" for width in widths))
