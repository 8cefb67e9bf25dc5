"""The coders of integers, by number, and which of them is taken. A new one is one file, and a line or two here.

They take int32 codes [rows, columns] and give bytes, or None where they cannot or surely do not pay; reading raises
:class:`FormatError` for data that make no sense. A plane without entries has no data.
"""

import math
from typing import Literal

import numpy as np

from jaxprune.files import classes, gaps, lanes, mixing, packing, tables
from jaxprune.files.bytestream import FormatError, Reader
from jaxprune.host import entropy_of_counts

Effort = Literal["fast", "best"]

NAMES = ("packing", "ans", "lanes", "classes", "mixing", "gaps")
PACKING, ANS, LANES, CLASSES, MIXING, GAPS = range(6)
_IN_LANES = 1 << 16  # bytes of the entropy, from which on 64 lanes cost less than 0.6%
_WORTH = 0.98  # of the bytes that a stream takes, below which classes pay: they take three times as long to read


def encode(codes: np.ndarray, effort: Effort = "fast") -> tuple[int, bytes]:
    """The number of a coder, and what it makes of the codes: a short one of few that are quick, or ``best`` of all."""
    if not codes.size:
        return PACKING, b""
    counted = tables.histogram(codes)
    width = (int(codes.max()) - int(codes.min())).bit_length()
    entropy = 0.0 if counted is None else entropy_of_counts(counted[1])
    if counted is None or len(counted[0]) == 1 or entropy >= codes.size * width:
        return PACKING, packing.encode(codes)
    table = tables.from_histogram(*counted)
    ways = [_static(codes, table, entropy >= 8 * _IN_LANES)]
    by_gap = gaps.encode(codes)
    ways += [] if by_gap is None else [(GAPS, by_gap)]
    by_class = classes.encode(codes)
    if by_class is not None and (effort == "best" or len(by_class) < _WORTH * min(len(data) for _, data in ways)):
        ways.append((CLASSES, by_class))
    if effort == "best":
        ways.append(_static(codes, table, False))
        learned = mixing.encode(codes)
        ways += [] if learned is None else [(MIXING, learned)]
    if min(len(data) for _, data in ways) > codes.size * width // 8:
        ways.append((PACKING, packing.encode(codes)))
    return min(ways, key=lambda way: len(way[1]))


def decode(number: int, data: bytes, shape: tuple[int, int]) -> np.ndarray:
    """The codes that a coder made ``data`` of, int32 of that shape."""
    if number >= len(NAMES):
        raise FormatError(f"coder {number} is unknown")
    if not math.prod(shape):
        Reader(data).end()
        return np.zeros(shape, np.int32)
    if number in (ANS, LANES):
        return _read_static(data, shape, number == LANES)
    return {PACKING: packing, CLASSES: classes, MIXING: mixing, GAPS: gaps}[number].decode(data, shape)


def _static(codes: np.ndarray, table: tables.Table, in_lanes: bool) -> tuple[int, bytes]:
    head = tables.write(table)
    stream = lanes.write(table, codes) if in_lanes else None
    return (ANS, head + tables.write_stream([(table, codes)])) if stream is None else (LANES, head + stream)


def _read_static(data: bytes, shape: tuple[int, int], in_lanes: bool) -> np.ndarray:
    reader, size = Reader(data), math.prod(shape)
    table = tables.read(reader, size)
    rest = reader.rest()
    codes = lanes.read(rest, table, size) if in_lanes else tables.read_stream(rest, [(table, size)])[0]
    return codes.reshape(shape)
