"""Static entropy coding: a table of how often each value occurs, and an asymmetric numeral system that follows it.

A table (:mod:`jaxprune.files.tables`); after it, if it has at least two values, the words of the stream coder of
``constriction``: 32 bits each, the lowest byte first, where zero bytes at the very end, at most three, are left out. To
decode, begin with X = 0. Whenever X is below 2**32 and a word is left, the last one is taken away, and X becomes
X * 2**32 and that word. The next value is the one whose range of frequencies [c, c + f) holds X % 2**24, and X becomes
(X >> 24) * f + X % 2**24 - c. After the last value X is 0 and no word is left. No bytes at all for no codes. (Duda
2013, arXiv:1311.2540.)
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxprune.files import extras, tables
from jaxprune.files.bytestream import Reader
from jaxprune.files.errors import ArtifactError


def encode(codes: np.ndarray) -> bytes | None:
    """Codes as bytes; None above 65536 distinct ones."""
    if not codes.size:
        return b""
    table = tables.from_codes(codes)
    return None if table is None else tables.write(table) + write([(table, codes)])


def decode(data: bytes, shape: tuple[int, int]) -> np.ndarray:
    """The codes that ``encode`` made ``data`` of, int32 of that shape."""
    reader, size = Reader(data), math.prod(shape)
    if not size:
        reader.end()
        return np.zeros(shape, np.int32)
    table = tables.read(reader, size)
    return read(reader.rest(), [(table, size)])[0].reshape(shape)


def write(stretches: Iterable[tuple[tables.Table, np.ndarray]]) -> bytes:
    """A stream of stretches, from the last to the first: each a table and codes that it holds, integers of any shape.

    A stretch with a table of one value takes nothing.
    """
    coder = extras.constriction().stream.stack.AnsCoder()
    for table, codes in stretches:
        if len(table.symbols) > 1:
            coder.encode_reverse(tables.places(codes.astype(np.int32, copy=False), table.symbols), tables.model(table))
    return words_of(coder)


def read(data: memoryview, stretches: Sequence[tuple[tables.Table, int]]) -> list[np.ndarray]:
    """What ``write`` wrote, each int32 [n]: for each stretch, from the first to the last, its table and n."""
    coder = coder_of(data, sum(count for table, count in stretches if len(table.symbols) > 1))
    codes = [
        tables.values(coder.decode(tables.model(table), count), table.symbols)
        if len(table.symbols) > 1
        else np.full(count, table.symbols[0], np.int32)
        for table, count in stretches
    ]
    check_empty(coder)
    return codes


def words_of(coder: Any) -> bytes:
    """What a coder has written."""
    return coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


def coder_of(data: memoryview, size: int) -> Any:
    """A coder that reads what another has written of at most ``size`` values."""
    if len(data) > 3 * size + 8:  # a value takes at most 24 bits
        raise ArtifactError(f"{len(data)} bytes for {size} entries: too many")
    if data and not data[-1]:
        raise ArtifactError("zeros at the end: damaged")
    words = np.frombuffer(bytes(data) + bytes(-len(data) % 4), "<u4").astype(np.uint32, copy=False)
    return extras.constriction().stream.stack.AnsCoder(words)


def check_empty(coder: Any) -> None:
    """A coder that has given back everything is as it was at first."""
    if not coder.is_empty():
        raise ArtifactError("something is left after the last entry: damaged")
