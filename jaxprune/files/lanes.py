"""Static entropy coding in 64 lanes, which are decoded side by side: several times as fast as one stream after another.

Entry i of a stretch of codes is in lane i % 64. A lane is a stream of its own, of 16-bit words, and the frequencies
that a table gives are rounded to 12 bits. A value that is too rare for that escapes: an escape stands in its place, and
a plain stream, as in :mod:`jaxprune.files.ans`, says which of the rare values it is. docs/format.md has the details.
Giesen 2014, "Interleaved entropy coders", arXiv:1402.3392.

The loops are in :mod:`jaxprune.files.lane_steps`.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune.files import ans, extras, integers, lane_steps, tables
from jaxprune.files.bytestream import Reader, unsigned
from jaxprune.files.errors import ArtifactError
from jaxprune.files.lane_steps import BITS, LANES, SLOTS, START


def encode(codes: np.ndarray) -> bytes | None:
    """Codes as bytes; None where frequencies of 12 bits do not do, and above 65536 distinct ones."""
    if not codes.size:
        return b""
    table = tables.from_codes(codes)
    stream = None if table is None else write([(table, codes)])
    return None if table is None or stream is None else tables.write(table) + stream


def decode(data: bytes, shape: tuple[int, int]) -> np.ndarray:
    """The codes that ``encode`` made ``data`` of, int32 of that shape."""
    reader, size = Reader(data), math.prod(shape)
    if not size:
        reader.end()
        return np.zeros(shape, np.int32)
    table = tables.read(reader, size)
    return read(reader.rest(), [(table, size)])[0].reshape(shape)


def write(stretches: Iterable[tuple[tables.Table, np.ndarray]]) -> bytes | None:
    """A stream of stretches, from the last to the first: each a table and codes that it holds, integers of any shape.

    None if frequencies of 12 bits do not do. A stretch with a table of one value takes nothing.
    """
    rest = extras.constriction().stream.stack.AnsCoder()
    models, rows = [], []
    for table, codes in stretches:
        if len(table.symbols) == 1:
            continue
        model = _model(table)
        if model is None:
            return None
        models.append(model)
        rows.append(_slots(codes.reshape(-1), table, model))
        if len(model.rare.symbols) > 1:
            escaped = codes.reshape(-1)[rows[-1] == len(model.symbols)].astype(np.int32)
            rest.encode_reverse(tables.places(escaped, model.rare.symbols), tables.model(model.rare))
    if not models:
        return b""
    states, lanes = lane_steps.encode([_encoding(model) for model in models[::-1]], rows[::-1])
    lengths = np.array([len(lane) for lane in lanes])
    head = unsigned(int(lengths.min())) + integers.write(lengths - lengths.min())
    words = np.concatenate(lanes).astype("<u2").tobytes()
    return head + states.astype("<u4").tobytes() + words + ans.words_of(rest)


def read(data: memoryview, stretches: Sequence[tuple[tables.Table, int]]) -> list[np.ndarray]:
    """What ``write`` wrote, each int32 [n]: for each stretch, from the first to the last, its table and n."""
    several = [(table, count) for table, count in stretches if len(table.symbols) > 1]
    reader = Reader(data)
    found = iter(_read(reader, several) if several else [])
    reader.end()
    return [
        next(found) if len(table.symbols) > 1 else np.full(count, table.symbols[0], np.int32)
        for table, count in stretches
    ]


def _read(reader: Reader, stretches: list[tuple[tables.Table, int]]) -> list[np.ndarray]:
    """The stretches that are in the stream."""
    models = [_checked(table) for table, _ in stretches]
    counts = [count for _, count in stretches]
    least = reader.unsigned(reader.left)
    lengths = least + integers.read(reader, LANES, reader.left)
    states = np.frombuffer(reader.take(4 * LANES), "<u4").astype(np.uint32)
    words = np.frombuffer(reader.take(2 * int(lengths.sum())), "<u2")
    if states.min() < START:
        raise ArtifactError(f"a lane that begins at {states.min()}: damaged")
    found = lane_steps.decode([_decoding(model) for model in models], counts, words, lengths, states)
    rest = ans.coder_of(reader.rest(), sum(counts))
    for model, (some, slots) in zip(models, found, strict=True):
        if not len(model.rare.symbols):
            continue
        escaped = np.flatnonzero(slots == len(model.symbols))
        if len(model.rare.symbols) > 1 and len(escaped):
            values = rest.decode(tables.model(model.rare), len(escaped))
            some[escaped] = tables.values(values, model.rare.symbols)
        else:
            some[escaped] = model.rare.symbols[0]
    ans.check_empty(rest)
    return [codes for codes, _ in found]


# ---------------------------------------------------------------------------------------------------------------------
# Frequencies of 12 bits


class _Model(NamedTuple):
    """What lanes make of a table.

    Attributes:
      symbols: int32 [n]: values with slots of their own; an escape, if there is one, has the next slot.
      frequencies: int64 [n or n + 1]: of the slots, of 2**12.
      rare: the table of those that escape, perhaps none.
    """

    symbols: np.ndarray
    frequencies: np.ndarray
    rare: tables.Table


def _model(table: tables.Table) -> _Model | None:
    """Frequencies of 24 bits rounded to 12; None if no values are left, or too little for the most frequent."""
    fine, shift = tables.probabilities(table), tables.PRECISION - BITS
    half = 1 << (shift - 1)
    coarse = (fine + half) >> shift
    kept = coarse > (np.sort(coarse)[-SLOTS] if len(coarse) >= SLOTS else 0)
    frequencies = coarse[kept]
    if not len(frequencies):
        return None
    largest = int(np.argmax(frequencies))
    if len(frequencies) < len(coarse):
        frequencies = np.append(frequencies, max(1, (int(fine[~kept].sum()) + half) >> shift))
    frequencies[largest] += (1 << BITS) - frequencies.sum()
    if frequencies[largest] < 1:
        return None
    return _Model(table.symbols[kept], frequencies, tables.Table(table.symbols[~kept], table.levels[~kept]))


def _checked(table: tables.Table) -> _Model:
    model = _model(table)
    if model is None:
        raise ArtifactError(f"a table of {len(table.symbols)} values that lanes cannot have")
    return model


def _slots(codes: np.ndarray, table: tables.Table, model: _Model) -> np.ndarray:
    """The slot of each code, uint8."""
    of_table = np.full(len(table.symbols), len(model.symbols), np.uint8)
    of_table[np.searchsorted(table.symbols, model.symbols)] = np.arange(len(model.symbols))
    return tables.looked_up(of_table, tables.places(codes.astype(np.int32, copy=False), table.symbols))


def _encoding(model: _Model) -> np.ndarray:
    """For each slot its frequency, and that of all before it in the lowest 12 bits: uint32 [256]."""
    table = np.zeros(SLOTS, np.uint32)
    table[: len(model.frequencies)] = model.frequencies << BITS | _begins(model)
    return table


def _decoding(model: _Model) -> tuple[np.ndarray, np.ndarray]:
    """For each remainder its slot (8 bits), the frequency, and its number in the slot; and the values of slots."""
    slots = np.repeat(np.arange(len(model.frequencies)), model.frequencies)
    table = slots << 2 * BITS | model.frequencies[slots] << BITS | np.arange(1 << BITS) - _begins(model)[slots]
    symbols = np.zeros(SLOTS, np.int32)
    symbols[: len(model.symbols)] = model.symbols
    return table.astype(np.uint32), symbols


def _begins(model: _Model) -> Any:
    return np.cumsum(model.frequencies) - model.frequencies
