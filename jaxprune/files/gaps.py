"""A relative index of codes of which most are one value: how far it is to the next that is another, and which that is.

The commonest value (signed); the number n of the others; two tables (:mod:`jaxprune.files.tables`), of their values and
of their gaps, at least 0; one stream, of the n values and then of the n gaps. Row by row, the place in the codes moves
on by a gap, and the entry there takes the value; all that were passed over are the commonest.

Where the others lie in clusters, gaps tell it, and the frequencies of values do not. Section 2 of "Deep Compression"
(Han, Mao and Dally 2016, arXiv:1510.00149) has such an index with gaps of a fixed width, long ones cut by fillers.
"""

import math

import numpy as np

from jaxprune.files import tables
from jaxprune.files.bytestream import FormatError, Reader, signed, unsigned

_RAREST = 4  # others are at most one entry in so many, or gaps do not pay


def encode(codes: np.ndarray) -> bytes | None:
    """Codes as bytes; None where the commonest is too rare, where all are equal, and from 2**31 entries on."""
    counted = tables.histogram(codes)
    if counted is None or codes.size >= 2**31 or not 0 < codes.size - counted[1].max() <= codes.size // _RAREST:
        return None
    flat, common = codes.reshape(-1), counted[0][counted[1].argmax()]
    places = np.flatnonzero(flat != common)
    stretches = []
    for part in (flat[places], (np.diff(places, prepend=-1) - 1).astype(np.int32)):
        counted = tables.histogram(part)
        if counted is None:
            return None
        stretches.append((tables.from_histogram(*counted), part))
    head = signed(int(common)) + unsigned(len(places)) + b"".join(tables.write(table) for table, _ in stretches)
    return head + tables.write_stream(reversed(stretches))


def decode(data: bytes, shape: tuple[int, int]) -> np.ndarray:
    """The codes that ``encode`` made ``data`` of, int32 of that shape, which is not empty."""
    reader, size = Reader(data), math.prod(shape)
    common, number = reader.signed(), reader.unsigned(size)
    found = [(tables.read(reader, number), number) for _ in range(2)]
    values, gaps = tables.read_stream(reader.rest(), found)
    places = np.cumsum(gaps, dtype=np.int64)
    places += np.arange(number)
    if gaps.min() < 0 or places[-1] >= size:
        raise FormatError(f"gaps from {gaps.min()} on that lead to {places[-1]} in {size} entries")
    codes = np.full(size, common, np.int32)
    codes[places] = values
    return codes.reshape(shape)
