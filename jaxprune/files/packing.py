"""A coder: the least code (signed), one byte with the width in bits (0 to 32), and the codes less the least, packed.

They are packed as :mod:`jaxprune.quantization.arrays.packed` says.
"""

import math

import numpy as np

from jaxprune.files.bytestream import FormatError, Reader, signed
from jaxprune.quantization.arrays.packed import pack_host, packed_length, unpack_host


def encode(codes: np.ndarray) -> bytes:
    """Codes, at least one, as bytes."""
    least = int(codes.min())
    width = (int(codes.max()) - least).bit_length()
    head = signed(least) + bytes([width])
    if not width:
        return head
    above = codes.reshape(-1).view(np.uint32) if codes.flags.c_contiguous else codes.reshape(-1).astype(np.uint32)
    return head + pack_host(above, width, least % 2**32).tobytes()


def decode(data: bytes, shape: tuple[int, int]) -> np.ndarray:
    """The codes that ``encode`` made ``data`` of, int32 of that shape, which is not empty."""
    reader, size = Reader(data), math.prod(shape)
    least, width = reader.signed(), reader.take(1)[0]
    if width > 32:
        raise FormatError(f"codes of {width} bits, where the most is 32")
    packed = np.frombuffer(reader.take(packed_length(size, width)), np.uint8)
    reader.end()
    if not width:
        return np.full(shape, least, np.int32)
    if size * width % 8 and packed[-1] >> (size * width % 8):
        raise FormatError("spare bits that are not zeros")
    codes = unpack_host(packed, width, size)
    if least + int(codes.max()) >= 2**31:
        raise FormatError("a code above 2**31 - 1")
    codes += np.uint32(least % 2**32)
    return codes.view(np.int32).reshape(shape)
