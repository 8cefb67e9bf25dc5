"""Entropy coding of large leaves whose rows and columns differ in scale: a distribution for each sum of two classes.

Row i has a class a[i], column j a class b[j], both about four times the logarithm (base 2) of its scale. Entries whose
classes add up to the same number are about as wide, and share a distribution. As bytes:

* which sides have classes (1: rows, 2: columns, 3: both); then, for each of these, rows first, the class that serves as
  a center (a number) and a list (:mod:`jaxprune.files.bytestream`) of the differences from it, folded. Classes are 0
  to 127, and 0 on a side without. Only rows of at least 16 entries have classes, and columns as well.
* a table for each sum that occurs, ascending (:mod:`jaxprune.files.tables`).
* one stream as there, over the entries of the least sum, then of the next, and so on. Within
  a sum they come by the class of their row, ascending, then row by row, then column by column. Sums whose table has
  one value alone take no part.

Classes by variance for entropy-coded quantizers: Joshi, Jafarkhani, Kasner, Fischer, Farvardin, Marcellin and
Bamberger 1997, "Comparison of different methods of classification in subband coding of images".
"""

from collections.abc import Iterator

import numpy as np

from jaxprune.files import tables
from jaxprune.files.bytestream import FormatError, Reader, fold, list_cost, read_list, unfold, unsigned, write_list

_LEAST = 4096  # entries, below which classes cannot pay
_SHORTEST = 16  # entries of what has a class
_HIGHEST = 127  # class
_SAMPLE = 1024  # rows that decide the classes of columns
_AT_ONCE = 1 << 16  # entries that are looked at together
_LARGEST = 1 << 15  # codes are below it
_OCTAVES = 14  # below the largest exponent, where all is about 0
_QUARTERS = (64, 54, 45, 38, 32, 27, 23, 19, 16, 13, 11, 10, 8, 7, 6, 5, 4, 3, 3, 2, 2, 2, 1)  # 64 * 2**(-i / 4)
_BETWEEN = (0.5452538663326288, 0.6484197773255048, 0.7711054127039704, 0.9170040432046712)  # 2**(i / 4 - 7 / 8)
_NOISE = 0.72  # bits that each of many things alike seems to gain by a class of its own


#: Rows and columns by class: their order, and for each sum of classes, ascending, its rectangles in that order.
_Order = tuple[np.ndarray, np.ndarray, list[list[tuple[slice, slice]]]]


def encode(codes: np.ndarray, fraction: int | None = None) -> bytes | None:
    """Codes as bytes; None for few or large ones, and where the classes of neither rows nor columns pay.

    Codes with a ``fraction`` are exponents, and so many bits behind them: four times the logarithm for two bits.
    """
    if codes.size < _LEAST or codes.min() <= -_LARGEST or codes.max() >= _LARGEST:
        return None
    codes = codes.astype(np.int16) if codes.dtype.itemsize > 1 or fraction is not None else codes
    sides = _classes(codes if fraction is None else 1 << np.maximum((codes - codes.max() >> fraction) + _OCTAVES, 0))
    flags = [bool(side.any()) for side in sides]
    if not any(flags):
        return None
    head, heads = bytes([flags[0] + 2 * flags[1]]), []
    for side in sides:
        if side.any():
            center = int(np.bincount(side).argmax())
            head += unsigned(center) + write_list(fold(side - center))

    def stretches() -> Iterator[tables.Stretch]:
        rows, columns, groups = _order(*sides)
        placed = np.take(codes[rows], columns, axis=1, mode="clip")
        for blocks in reversed(groups):
            values = np.concatenate([placed[block].reshape(-1) for block in blocks])
            counted = tables.histogram(values)
            assert counted is not None  # 16-bit codes
            table = tables.from_histogram(*counted)
            heads.append(tables.write(table))
            yield table, values

    stream = tables.write_stream(stretches())
    return head + b"".join(reversed(heads)) + stream


def decode(data: bytes | memoryview, shape: tuple[int, int]) -> np.ndarray:
    """The codes that ``encode`` made ``data`` of, integers of that shape, which is not empty."""
    reader = Reader(data)
    sides = reader.unsigned(3)
    if not sides or any(sides & bit and length < _SHORTEST for bit, length in ((1, shape[1]), (2, shape[0]))):
        raise FormatError(f"classes of sides {sides} do not go with {shape[0]} rows and {shape[1]} columns")
    rows, columns, groups = _order(*(_read_side(reader, n, sides & bit) for n, bit in zip(shape, (1, 2), strict=True)))
    counts = [sum(_area(*block) for block in blocks) for blocks in groups]
    found = [tables.read(reader, count) for count in counts]
    entries = tables.read_stream(reader.rest(), list(zip(found, counts, strict=True)))
    placed = np.empty(shape, np.result_type(*entries))
    for blocks, values in zip(groups, entries, strict=True):
        ends = np.cumsum([_area(*block) for block in blocks])
        for block, part in zip(blocks, np.split(values, ends[:-1]), strict=True):
            placed[block] = part.reshape(placed[block].shape)
    rows, columns = np.argsort(rows, kind="stable"), np.argsort(columns, kind="stable")  # back to their places
    return np.take(placed[rows], columns, axis=1, mode="clip")


def _classes(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes of rows and columns, int64 from 0 on; all 0 on a side where they do not pay."""
    rows, columns = codes.shape
    sample = np.abs(codes[:: -(-rows // _SAMPLE)].astype(np.float32))
    first = _levels(sample @ np.ones(columns, np.float32))
    b = _levels(_weights(first) @ sample)
    weights, height = _weights(b), max(1, _AT_ONCE // columns)
    sums = [np.abs(codes[at : at + height].astype(np.float32)) @ weights for at in range(0, rows, height)]
    return _paying(_levels(np.concatenate(sums)), columns), _paying(b, rows)


def _levels(sums: np.ndarray) -> np.ndarray:
    """round(4 * log2(sum)), from the least on, at most 127.

    Sums of whole numbers that stay below 2**24 are exact however they are added up, and comparisons find the class: so
    all machines find the same (a file with other classes can be read as well, though).
    """
    mantissa, exponent = np.frexp(sums + np.float32(1))
    levels = 4 * exponent.astype(np.int64) + np.searchsorted(_BETWEEN, mantissa)
    return np.minimum(levels - levels.min(), _HIGHEST)


def _weights(levels: np.ndarray) -> np.ndarray:
    """About 64 over the scale, as small whole numbers."""
    return np.array(_QUARTERS, np.float32)[np.minimum(levels, len(_QUARTERS) - 1)]


def _paying(levels: np.ndarray, length: int) -> np.ndarray:
    """The classes of rows or columns of that length, unless they gain less than they cost."""
    if length < _SHORTEST:
        return np.zeros_like(levels)
    counts = np.bincount(levels)
    mean = counts @ np.exp2(np.arange(len(counts)) / 2) / len(levels)  # variance
    gain = len(levels) * (length / 2 * (np.log2(mean) - levels.mean() / 2) - _NOISE)
    price = list_cost(fold(levels - int(counts.argmax()))) + 32 * (int(levels.max()) + 1)
    return levels if gain > price else np.zeros_like(levels)


def _order(a: np.ndarray, b: np.ndarray) -> _Order:
    rows, columns = np.argsort(a, kind="stable"), np.argsort(b, kind="stable")
    by_row, by_column = _runs(a), _runs(b)
    groups: dict[int, list[tuple[slice, slice]]] = {}
    for row, down in by_row:
        for column, across in by_column:
            groups.setdefault(row + column, []).append((down, across))
    return rows, columns, [groups[key] for key in sorted(groups)]


def _runs(levels: np.ndarray) -> list[tuple[int, slice]]:
    """Each class that occurs, and where its members are once they are sorted."""
    counts = np.bincount(levels)
    ends = np.cumsum(counts)
    return [(int(i), slice(int(ends[i] - counts[i]), int(ends[i]))) for i in np.flatnonzero(counts)]


def _area(down: slice, across: slice) -> int:
    return (down.stop - down.start) * (across.stop - across.start)


def _read_side(reader: Reader, number: int, given: int) -> np.ndarray:
    if not given:
        return np.zeros(number, np.int64)
    center = reader.unsigned(_HIGHEST)
    levels = center + unfold(read_list(reader, number, 2 * _HIGHEST))
    if levels.min() < 0 or levels.max() > _HIGHEST:
        raise FormatError(f"classes from {levels.min()} to {levels.max()}, where 0 to {_HIGHEST} are allowed")
    return levels
