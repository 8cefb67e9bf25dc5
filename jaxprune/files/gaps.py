"""A relative index: how far it is from each entry to the next that is not the commonest value, and which that is.

The commonest value (signed); the number n of records; if there are any, two rows of n values, each as in
:mod:`jaxprune.files.bitmap`, the first behind a count of its bytes: gaps, at least 0, and values. Record by record,
the place in the codes (row by row) moves on by the gap and one entry takes the value; all others are the commonest. As
in section 4 of "Deep Compression" (Han, Mao and Dally 2016, arXiv:1510.00149), a long gap may be cut by records whose
value is the commonest one. No bytes for no codes.
"""

import math

import numpy as np

from jaxprune.files import bitmap
from jaxprune.files.bytestream import Reader, signed, unsigned
from jaxprune.files.errors import ArtifactError

_WIDEST = 16  # bits of a gap in records of a fixed width


def encode(codes: np.ndarray) -> bytes | None:
    """Codes as bytes; None where fewer than half are the commonest value, and from 2**31 entries on."""
    if not codes.size:
        return b""
    if codes.size >= 2**31:
        return None
    flat, common = codes.reshape(-1), bitmap.commonest(codes)
    places = np.flatnonzero(flat != common)
    if len(places) > codes.size // 2:
        return None
    if not len(places):
        return signed(common) + unsigned(0)
    gaps, values = np.diff(places, prepend=-1) - 1, flat[places]
    data, (bits, packed) = _records(common, gaps, values), _fixed_width(gaps, values)
    return data if len(data) <= packed else min(data, _records(common, *_cut(gaps, values, common, bits)), key=len)


def decode(data: bytes, shape: tuple[int, int]) -> np.ndarray:
    """The codes that ``encode`` made ``data`` of, int32 of that shape."""
    reader, size = Reader(data), math.prod(shape)
    if not size:
        reader.end()
        return np.zeros(shape, np.int32)
    codes = np.full(size, reader.signed(), np.int32)
    number = reader.unsigned(size)
    if number:
        gaps = bitmap.decode_row(reader.take(reader.unsigned(reader.left)), number)
        places = np.cumsum(gaps, dtype=np.int64)
        places += np.arange(number)
        if gaps.min() < 0 or places[-1] >= size:
            raise ArtifactError(f"gaps that lead from {places[0]} to {places[-1]} in {size} entries")
        del gaps
        codes[places] = bitmap.decode_row(reader.rest(), number)
    reader.end()
    return codes.reshape(shape)


def _records(common: int, gaps: np.ndarray, values: np.ndarray) -> bytes:
    row = bitmap.encode_row(gaps.astype(np.int32))
    return signed(common) + unsigned(len(gaps)) + unsigned(len(row)) + row + bitmap.encode_row(values)


def _fixed_width(gaps: np.ndarray, values: np.ndarray) -> tuple[int, int]:
    """The bits of a gap with which records of one width take the fewest bytes, and about how many."""
    width = bitmap.width(values)
    sizes = [(len(gaps) + int((gaps >> bits).sum())) * (bits + width) // 8 for bits in range(_WIDEST + 1)]
    return int(np.argmin(sizes)), min(sizes)


def _cut(gaps: np.ndarray, values: np.ndarray, common: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Records with gaps below 2**bits."""
    fillers = gaps >> bits  # each takes the whole of 2**bits entries, itself the last
    ends = np.cumsum(fillers + 1) - 1
    cut = np.full(int(ends[-1]) + 1, (1 << bits) - 1)
    cut[ends] = gaps - (fillers << bits)
    filled = np.full(len(cut), common, np.int32)
    filled[ends] = values
    return cut, filled
