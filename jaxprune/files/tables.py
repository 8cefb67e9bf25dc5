"""How often each value occurs, in few bytes: what static coders share between writer and reader.

A table holds the values that may occur, ascending, and a level for each, from 1 to 32767. Frequencies are those of the
squares of the levels. So every level is known to about the same number of standard deviations of a count, and what the
rounding costs (about a bit a value) is the same for frequent and for rare ones. For a coder, n levels L become
n frequencies of 24 bits: with C[i] the sum of the first i squares, shifted right by as much as brings C[n] below 2**39,
value i has 1 + C[i+1] * (2**24 - n) // C[n] - C[i] * (2**24 - n) // C[n] of 2**24. They begin at 0 in the order of the
values.

As bytes: the least value (signed); the spacing, by which all differences can be divided; how many runs of values with
that spacing there are. Of a single run the length follows as a number, of several their lengths less 1 and then the
values that are missing between them less 1, as in :mod:`jaxprune.files.integers`. If that is one value, this is all.
Otherwise follow one byte, order + 3 * least, and integers as above: the levels less ``least`` (order 0), the
differences of successive ones (order 1) or the differences of these (order 2), where what comes before the first counts
as ``least``, folded as signed numbers are. With a ``least`` of 0 some values in the runs may have level 0, which are no
values of the table; the first and the last do not. Runs are at most 65536 values in all, and twice the number of
entries that the table is for.
"""

from functools import cache, partial, reduce
from typing import Any, NamedTuple

import numpy as np

from jaxprune.files import counting, extras, integers
from jaxprune.files.bytestream import Reader, signed, unsigned
from jaxprune.files.errors import ArtifactError

MOST = counting.MOST  # values of a table
PRECISION = 24  # bits of a frequency
_HIGHEST = 2**15 - 1  # level
_STEPS = (1.25, 2.0, 3.5, 16.0)  # of the square root of a count; its standard deviation is 1/2
_USUAL = 0  # the place of a step that is never bad
_LARGE = 400  # bytes a value, from which on the choice of the step does not matter
_REACHES = (0, 1, 8)  # missing values in a row that may be taken in
_TWO_OVER_LOG_2 = 2.8853900817779268
_SPAN = 2**22  # of values that are counted by address
_IN_CACHE = 1 << 15  # entries


class Table(NamedTuple):
    """Values and the square roots of their frequencies, up to a common factor.

    Attributes:
      symbols: int32 [n], ascending.
      levels: int64 [n], 1 to 32767.
    """

    symbols: np.ndarray
    levels: np.ndarray


def from_codes(codes: np.ndarray) -> Table | None:
    """A table for int32 codes of any shape, made to cost little; None for no codes or above 65536 distinct ones."""
    sampled = counting.sample(codes.reshape(-1))
    if sampled is not None:
        return from_histogram(*sampled, every=counting.EVERY)
    counted = counting.histogram(codes)
    return None if counted is None else from_histogram(*counted)


def from_histogram(symbols: np.ndarray, counts: np.ndarray, *, every: int = 1) -> Table:
    """A table for values (int32 [n], ascending, 1 <= n <= 65536) that occur ``counts`` times (int64 [n], above 0).

    Or about ``every`` times as often. Tries several precisions, and whether values that do not occur are better taken
    in; takes the fewest bytes in all.
    """
    if len(symbols) == 1:
        return Table(symbols, np.ones(1, np.int64))
    usual, payload = _rounded(symbols, counts, _USUAL, len(_REACHES) - 1)
    if payload * every > 8 * _LARGE * len(symbols):
        return usual  # as good as any, and without gaps it is quicker
    price = cache(partial(_priced, symbols, counts))
    best = price(_USUAL, 0)
    for _ in range(2):
        best = min((price(step, best.reach) for step in range(len(_STEPS))), key=_bits)
        best = min((price(best.step, reach) for reach in range(len(_REACHES))), key=_bits)
    return best.table


def probabilities(table: Table) -> np.ndarray:
    """The frequencies of a table's n >= 2 values, of 2**24, int64 [n]; each is at least 1."""
    sums = np.cumsum(np.concatenate([[0], table.levels**2]))
    sums >>= max(0, int(sums[-1]).bit_length() - 39)
    return np.diff(sums * (2**PRECISION - len(table.levels)) // sums[-1]) + 1


def model(table: Table) -> Any:
    """The model of at least two values that the coders of ``constriction`` take; value i is its symbol i."""
    # It gives each value one part of 2**24 and shares out the rest in proportion: these floats, exactly.
    exact = (probabilities(table) - 1).astype(np.float32)
    return extras.constriction().stream.model.Categorical(exact, perfect=False)


def places(codes: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """Which of ``symbols`` (int32 [n], ascending) each code is, int32 and flat; all of them are among these."""
    flat, low, span = codes.reshape(-1), int(symbols[0]), int(symbols[-1]) - int(symbols[0]) + 1
    if span == len(symbols):
        return flat - np.int32(low)
    if span > _SPAN:
        return np.searchsorted(symbols, flat).astype(np.int32)
    address = np.zeros(span, np.int32)
    address[symbols.astype(np.int64) - low] = np.arange(len(symbols))
    return looked_up(address, flat, np.int32(low))


def values(places: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """The opposite of :func:`places`, which it may change."""
    if int(symbols[-1]) - int(symbols[0]) == len(symbols) - 1:
        places += symbols[0]
        return places
    return looked_up(symbols, places)


def looked_up(values: np.ndarray, places: np.ndarray, first: Any = 0) -> np.ndarray:
    """``values[places - first]`` of flat int32 places, in stretches that stay in cache."""
    found = np.empty(places.size, values.dtype)
    for at in range(0, places.size, _IN_CACHE):
        some = slice(at, at + _IN_CACHE)
        np.take(values, places[some] - first, out=found[some], mode="clip")  # which spares a copy of the places
    return found


def write(table: Table) -> bytes:
    """A table as bytes, by the cheapest of several ways to say it."""
    _, runs, order, levels = _cheapest(table)
    lengths, missing = runs
    head = signed(int(table.symbols[0])) + unsigned(_spacing(table.symbols)) + unsigned(len(lengths))
    head += integers.write(lengths - 1) + integers.write(missing - 1) if len(missing) else unsigned(int(lengths[0]))
    return head + (bytes([order]) + integers.write(levels) if len(table.symbols) > 1 else b"")


def read(reader: Reader, entries: int) -> Table:
    """The table that ``write`` wrote for at most that many entries; :class:`ArtifactError` for what is none."""
    most = min(MOST, 2 * entries)
    first, spacing = reader.signed(), reader.unsigned(2**32)
    runs = reader.unsigned(most)
    if not (spacing and runs):
        raise ArtifactError("a table of no values")
    if runs == 1:
        lengths, missing = np.array([reader.unsigned(most)]), np.zeros(0, np.int64)
    else:
        lengths, missing = integers.read(reader, runs, most) + 1, integers.read(reader, runs - 1) + 1
    number = int(lengths.sum())
    if not 1 <= number <= most:
        raise ArtifactError(f"a table of {number} values for {entries} entries")
    if first + spacing * (number - 1 + int(missing.sum())) >= 2**31:
        raise ArtifactError("a value above 2**31 - 1")
    skipped = np.repeat(np.cumsum(np.concatenate([[0], missing])), lengths)
    symbols = (first + spacing * (np.arange(number) + skipped)).astype(np.int32)
    levels = _read_levels(reader, number)
    return Table(symbols[levels > 0], levels[levels > 0])


class _Priced(NamedTuple):
    step: int  # a place in _STEPS
    reach: int  # a place in _REACHES
    table: Table
    size: int  # bits
    payload: int  # bits


def _priced(symbols: np.ndarray, counts: np.ndarray, step: int, reach: int) -> _Priced:
    """What a table costs, and what follows it."""
    table, payload = _rounded(symbols, counts, step, reach)
    return _Priced(step, reach, table, _cheapest(table)[0], payload)


def _rounded(symbols: np.ndarray, counts: np.ndarray, step: int, reach: int) -> tuple[Table, int]:
    """Rounds to levels that far apart, fills in values that are missing between others; and the bits of all entries."""
    roots = np.sqrt(counts.astype(np.float64))
    levels = np.clip(np.rint(roots / max(_STEPS[step], float(roots.max()) / _HIGHEST)), 1, _HIGHEST).astype(np.int64)
    spacing = _spacing(symbols)
    offsets = (symbols.astype(np.int64) - int(symbols[0])) // spacing
    grid, at = _grid(offsets, _REACHES[reach])
    if len(grid) > min(MOST, int(counts.sum())):
        grid, at = _grid(offsets, 0)
    filled = np.ones(len(grid), np.int64)
    filled[at] = levels
    table = Table((int(symbols[0]) + spacing * grid).astype(np.int32), filled)
    return table, int(counts @ _costs(probabilities(table)[at])) >> 16


def _bits(priced: _Priced) -> int:
    return priced.size + priced.payload


def _costs(frequencies: np.ndarray) -> np.ndarray:
    """The bits that a frequency of 24 bits costs, in units of 2**-16, int64; single operations, alike everywhere."""
    mantissa, exponent = np.frexp(frequencies.astype(np.float64))
    ratio = (mantissa - 1) / (mantissa + 1)
    square = ratio * ratio
    series = reduce(lambda total, n: total * square + 1 / n, (7, 5, 3, 1), np.full_like(ratio, 1 / 9))
    log2 = series * ratio * _TWO_OVER_LOG_2
    return np.rint((PRECISION - exponent - log2) * 2**16).astype(np.int64)


def _spacing(symbols: np.ndarray) -> int:
    return int(np.gcd.reduce(symbols.astype(np.int64) - int(symbols[0]))) or 1


def _grid(offsets: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Ascending offsets with those between that are missing, up to ``reach`` in a row; and where the old ones are."""
    steps = np.diff(offsets, append=offsets[-1] + 1)
    steps[steps > reach + 1] = 1
    at = np.cumsum(steps) - steps
    return np.repeat(offsets - at, steps) + np.arange(int(steps.sum())), at


def _cheapest(table: Table) -> tuple[int, tuple[np.ndarray, np.ndarray], int, np.ndarray]:
    """(bits, (lengths of runs, missing values between), order + 3 * least, integers for the levels) that cost least."""
    offsets = (table.symbols.astype(np.int64) - int(table.symbols[0])) // _spacing(table.symbols)
    ways, before = [], 0
    for reach in _REACHES:
        grid, at = _grid(offsets, reach)
        if before < len(grid) and (not reach or len(grid) <= min(MOST, 2 * len(at))):
            levels = np.zeros(len(grid), np.int64)
            levels[at] = table.levels
            runs, (order, written) = _runs(grid), _differences(levels)
            ways.append((integers.cost(written) + sum(integers.cost(part) for part in runs), runs, order, written))
            before = len(grid)
    return min(ways, key=lambda way: way[0])


def _runs(grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    steps = np.diff(grid)
    ends = np.flatnonzero(steps != 1)
    return np.diff(ends, prepend=-1, append=len(grid) - 1), steps[ends] - 1


def _differences(levels: np.ndarray) -> tuple[int, np.ndarray]:
    """Levels as integers that are small, by their number of bits; and how they were made, order + 3 * least."""
    least = min(1, int(levels.min()))
    above = levels - least
    ways = [above, *(integers.fold(np.diff(above, order, prepend=[0] * order)) for order in (1, 2))]
    order = int(np.argmin([np.frexp(way + 1.0)[1].sum() for way in ways]))
    return order + 3 * least, ways[order]


def _read_levels(reader: Reader, number: int) -> np.ndarray:
    if number == 1:
        return np.ones(1, np.int64)
    way = reader.take(1)[0]
    if way > 5:
        raise ArtifactError(f"no levels are written in way {way}")
    order, least = way % 3, way // 3
    levels = integers.read(reader, number, 8 * _HIGHEST)
    if order:
        levels = integers.unfold(levels)
    for _ in range(order):
        levels = np.cumsum(levels)
    levels += least
    if levels.min() < least or levels.max() > _HIGHEST or not (levels[0] and levels[-1]):
        raise ArtifactError(f"levels from {levels.min()} to {levels.max()}, where 0 to {_HIGHEST} are allowed")
    return levels
