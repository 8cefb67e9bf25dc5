"""How often each value occurs, in few bytes: what static coders share between writer and reader.

A table holds the values that occur, ascending, and a level for each, from 1 to 32767. Frequencies are those of the
squares of the levels. So every level is known to about the same number of standard deviations of a count, and what the
rounding costs (less than a bit a value) is the same for frequent and for rare ones. For a coder, n levels L become
n frequencies of 24 bits: with C[i] the sum of the first i squares, shifted right by as much as brings C[n] below 2**39,
value i has 1 + C[i+1] * (2**24 - n) // C[n] - C[i] * (2**24 - n) // C[n] of 2**24. They begin at 0 in the order of the
values.

As bytes: the least value (signed); how many values there are, at most 65536; two lists
(:mod:`jaxprune.files.bytestream`): the differences of successive values less 1, and, of at least two values, the levels
less 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxprune.files.bytestream import FormatError, Reader, constriction, read_list, signed, unsigned, words, write_list
from jaxprune.host import chunks

MOST = 2**16  # values of a table
PRECISION = 24  # bits of a frequency
_HIGHEST = 2**15 - 1  # level
_STEP = 1.75  # of the square root of a count; its standard deviation is 1/2
_SPAN = 2**22  # of values that are counted by address
_AT_ONCE = 1 << 20  # entries that are coded together


class Table(NamedTuple):
    """Values and the square roots of their frequencies, up to a common factor.

    Attributes:
      symbols: int32 [n], ascending.
      levels: int64 [n], 1 to 32767.
    """

    symbols: np.ndarray
    levels: np.ndarray


#: Distinct values (int32, ascending), and how often each occurs (int64).
Counted = tuple[np.ndarray, np.ndarray]


def narrow(low: Any, high: Any) -> type:
    """The smallest of int8, int16 and int32 that holds both: as large as decoded arrays are, codes are not larger."""
    held = ((dtype, np.iinfo(dtype)) for dtype in (np.int8, np.int16))
    return next((dtype for dtype, info in held if info.min <= low and high <= info.max), np.int32)


def histogram(codes: np.ndarray) -> Counted | None:
    """The distinct values (int32, ascending) and their counts (int64); None if there are none or more than 65536."""
    flat = codes.reshape(-1)
    if not flat.size:
        return None
    low, high = int(flat.min()), int(flat.max())
    if high - low >= min(_SPAN, 4 * flat.size + 1024):
        if len(np.unique(flat[: 2 * MOST])) > MOST:
            return None
        symbols, counts = np.unique(flat, return_counts=True)
    else:
        counts = np.zeros(high - low + 1, np.int64)
        for part in chunks(flat, len(counts)):
            counts += np.bincount(part.astype(np.int64) - low, minlength=len(counts))
        present = np.flatnonzero(counts)
        symbols, counts = present + low, counts[present]
    return (symbols.astype(np.int32), counts) if len(symbols) <= MOST else None


def from_histogram(symbols: np.ndarray, counts: np.ndarray) -> Table:
    """A table for values (int32 [n], ascending, 1 <= n <= 65536) that occur ``counts`` times (int64 [n], above 0)."""
    roots = np.sqrt(counts.astype(np.float64))
    levels = np.rint(roots / max(_STEP, float(roots.max()) / _HIGHEST))
    return Table(symbols.astype(np.int32), np.clip(levels, 1, _HIGHEST).astype(np.int64))


def probabilities(table: Table) -> np.ndarray:
    """The frequencies of a table's n >= 2 values, of 2**24, int64 [n]; each is at least 1."""
    sums = np.cumsum(np.concatenate([[0], table.levels**2]))
    sums >>= max(0, int(sums[-1]).bit_length() - 39)
    return np.diff(sums * (2**PRECISION - len(table.levels)) // sums[-1]) + 1


def model(table: Table) -> Any:
    """The model of at least two values that the coders of ``constriction`` take; value i is its symbol i."""
    # It gives each value one part of 2**24 and shares out the rest in proportion: these floats, exactly.
    exact = (probabilities(table) - 1).astype(np.float32)
    return constriction().stream.model.Categorical(exact, perfect=False)


def places(codes: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """Which of ``symbols`` (int32 [n], ascending) each code is, int32 and flat; all of them are among these."""
    flat, low, span = codes.reshape(-1), int(symbols[0]), int(symbols[-1]) - int(symbols[0]) + 1
    if span == len(symbols):
        return flat - np.int32(low)
    if span > _SPAN:
        return np.searchsorted(symbols, flat.astype(np.int32)).astype(np.int32)
    address = np.zeros(span, np.int32)
    address[symbols.astype(np.int64) - low] = np.arange(len(symbols))
    return np.take(address, flat - np.int32(low), mode="clip")  # which checks nothing


def write(table: Table) -> bytes:
    """A table as bytes."""
    gaps = np.diff(table.symbols.astype(np.int64)) - 1
    levels = table.levels - 1 if len(table.levels) > 1 else table.levels[:0]
    head = signed(int(table.symbols[0])) + unsigned(len(table.symbols))
    return head + write_list(gaps) + write_list(levels)


def read(reader: Reader, entries: int) -> Table:
    """The table that ``write`` wrote for at most that many entries; :class:`FormatError` for what is none."""
    first, number = reader.signed(), reader.unsigned(min(MOST, entries))
    if not number:
        raise FormatError("a table of no values")
    offsets = np.cumsum(read_list(reader, number - 1) + 1)
    if len(offsets) and first + int(offsets[-1]) >= 2**31:
        raise FormatError("a value above 2**31 - 1")
    symbols = (first + np.concatenate([[0], offsets])).astype(np.int32)
    levels = read_list(reader, number, _HIGHEST - 1) + 1 if number > 1 else np.ones(1, np.int64)
    return Table(symbols, levels)


# ---------------------------------------------------------------------------------------------------------------------
# Streams

#: A table, and entries that it holds, integers of any shape.
Stretch = tuple[Table, np.ndarray]


def write_stream(stretches: Any) -> bytes:
    """A stream of stretches, given from the last to the first. One whose table has a single value takes nothing."""
    coder = constriction().stream.stack.AnsCoder()
    for table, codes in stretches:
        frequencies, flat = model(table) if len(table.symbols) > 1 else None, codes.reshape(-1)
        for at in range(0, flat.size if frequencies else 0, _AT_ONCE)[::-1]:
            coder.encode_reverse(places(flat[at : at + _AT_ONCE], table.symbols), frequencies)
    return coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


def read_stream(data: memoryview, stretches: list[tuple[Table, int]]) -> list[np.ndarray]:
    """What ``write_stream`` wrote, each integers [n]: for each stretch, from the first to the last, its table and n."""
    take, end = reading(data, sum(count for table, count in stretches if len(table.symbols) > 1))
    found = [take(table, count) for table, count in stretches]
    end()
    return found


def reading(data: memoryview, size: int) -> tuple[Callable[[Table, int], np.ndarray], Callable[[], None]]:
    """What takes so many entries of a table from a stream of at most ``size``, and what sees that none are left."""
    if len(data) > 3 * size + 8:  # a value takes at most 24 bits
        raise FormatError(f"{len(data)} bytes for {size} entries: too many")
    coder = constriction().stream.stack.AnsCoder(words(data, "<"))

    def take(table: Table, count: int) -> np.ndarray:
        symbols = table.symbols.astype(narrow(table.symbols[0], table.symbols[-1]))
        found = np.full(count, symbols[0])
        frequencies = model(table) if len(symbols) > 1 and count else None
        for at in range(0, count if frequencies else 0, _AT_ONCE):  # the library cannot do without memory
            part = found[at : at + _AT_ONCE]
            np.take(symbols, coder.decode(frequencies, len(part)), out=part, mode="clip")
        return found

    def end() -> None:
        if not coder.is_empty():
            raise FormatError("something is left after the last entry: damaged")

    return take, end
