"""One bit an entry: whether it is the commonest value, usually 0; the others follow, coded on their own.

The commonest value (signed); ceil(entries / 8) bytes whose bit i % 8 (the lowest first) of byte i // 8 is one where
entry i is another value; then, if there are any, the other values as one row: one byte, 0 for
:mod:`jaxprune.files.packing` and 1 for :mod:`jaxprune.files.ans`, and what that coder writes. No bytes for no
codes.
"""

import math

import numpy as np

from jaxprune.files import ans, counting, packing
from jaxprune.files.bytestream import Reader, signed
from jaxprune.files.errors import ArtifactError

_CODERS = (packing, ans)  # by their numbers
_RAREST = 8  # the commonest value is at least one entry in so many, or bits do not pay
_AT_ONCE = 1 << 16


def encode(codes: np.ndarray) -> bytes | None:
    """Codes as bytes; None where the commonest value is rare."""
    if not codes.size:
        return b""
    common = commonest(codes)
    other = codes.reshape(-1) != common
    number = int(np.count_nonzero(other))
    if codes.size - number < codes.size // _RAREST:
        return None
    head = signed(common) + np.packbits(other, bitorder="little").tobytes()
    return head + encode_row(codes.reshape(-1)[other]) if number else head


def decode(data: bytes, shape: tuple[int, int]) -> np.ndarray:
    """The codes that ``encode`` made ``data`` of, int32 of that shape."""
    reader, size = Reader(data), math.prod(shape)
    if not size:
        reader.end()
        return np.zeros(shape, np.int32)
    codes = np.full(size, reader.signed(), np.int32)
    bits = np.frombuffer(reader.take(-(-size // 8)), np.uint8)
    if size % 8 and bits[-1] >> (size % 8):
        raise ArtifactError("spare bits that are not zeros")
    other = np.unpackbits(bits, count=size, bitorder="little")
    number = int(np.count_nonzero(other))
    if number:
        _put(codes, other, decode_row(reader.rest(), number))
    reader.end()
    return codes.reshape(shape)


def _put(codes: np.ndarray, other: np.ndarray, values: np.ndarray) -> None:
    """Values to the places of the ones, in stretches that stay in cache: twice as fast as by a mask."""
    taken = 0
    for at in range(0, len(codes), _AT_ONCE):
        places = np.flatnonzero(other[at : at + _AT_ONCE])
        codes[at : at + _AT_ONCE][places] = values[taken : taken + len(places)]
        taken += len(places)


def commonest(codes: np.ndarray) -> int:
    """The value that most entries have, the least of several; 0 where more than 65536 are distinct."""
    counted = counting.histogram(codes)
    return 0 if counted is None else int(counted[0][np.argmax(counted[1])])


def encode_row(values: np.ndarray) -> bytes:
    """Values, int32 [n >= 1], as the number of a coder and its bytes, the fewest."""
    row = values.reshape(1, -1)
    coded = ans.encode(row)
    if coded is not None and len(coded) <= len(values) * width(values) // 8:
        return bytes([1]) + coded
    packed = packing.encode(row)
    return bytes([0]) + packed if coded is None or len(packed) < len(coded) else bytes([1]) + coded


def width(values: np.ndarray) -> int:
    """The bits of a value, packed."""
    return (int(values.max()) - int(values.min())).bit_length()


def decode_row(data: memoryview, number: int) -> np.ndarray:
    """The values that ``encode_row`` wrote, int32 [number]."""
    reader = Reader(data)
    coder = reader.take(1)[0]
    if coder >= len(_CODERS):
        raise ArtifactError(f"coder {coder} is not one of those for values")
    return _CODERS[coder].decode(reader.rest(), (1, number))[0]
