"""The coders of integers, by number, and which of them is taken. A new one is two functions, and a line or two here.

They take codes [rows, columns], integers of any dtype that 32 bits with a sign hold, and give bytes, or None where they
cannot or surely do not pay; reading gives codes of int8, int16 or int32, and raises :class:`FormatError` for data that
make no sense. A plane without entries has no data. Three are simple and stand here:

* packing: the least code (signed), one byte with the width in bits (0 to 32), and the codes less the least, packed as
  :mod:`jaxprune.quantization.arrays.packed` says.
* ans and lanes: a table, and a stream of all codes (:mod:`jaxprune.files.tables`, :mod:`jaxprune.files.lanes`).
* gaps: a relative index of codes of which most are one value, how far it is to the next that is another, and which that
  is. The commonest value (signed); the number n of the others; two tables, of their values and of their gaps, at least
  0; one stream, of the n values and then of the n gaps. Row by row, the place in the codes moves on by a gap, and the
  entry there takes the value; all that were passed over are the commonest. Where the others lie in clusters, gaps tell
  it, and the frequencies of values do not. Section 2 of "Deep Compression" (Han, Mao and Dally 2016, arXiv:1510.00149)
  has such an index with gaps of a fixed width, long ones cut by fillers.

Bytes, which floating-point numbers are coded as, have one more: zstd, a frame of Zstandard (RFC 8878) without its magic
number, with its size and without a checksum. Hardly anything but its Huffman codes, of 128 kB each, pays here.
"""

import math
from functools import partial
from typing import Literal

import numpy as np

from jaxprune.files import classes, lanes, mixing, tables
from jaxprune.files.bytestream import FormatError, Reader, signed, unsigned
from jaxprune.host import chunks, entropy_of_counts, library
from jaxprune.quantization.arrays.packed import pack_host, packed_length, unpack_host

Effort = Literal["fast", "best"]

NAMES = ("packing", "ans", "lanes", "classes", "mixing", "gaps", "zstd")
PACKING, ANS, LANES, CLASSES, MIXING, GAPS, ZSTD = range(7)
_IN_LANES = 1 << 16  # bytes of the entropy, from which on 64 lanes cost less than 0.6%
_WORTH = 0.98  # of the bytes that a stream takes, below which classes pay: they take three times as long to read
_WINDOW, _SHORT_WINDOW = 17, 14  # binary digits of how many bytes zstd looks back, and in low ones
_HOW = {"strategy": 1, "min_match": 7, "hash_log": 6, "chain_log": 6, "search_log": 1}  # fast: hardly any matches pay
_FEW = 1 << 16  # bytes, which all coders are tried for
_SKEWED = 0.4  # of the size, below which one value may be so frequent that a bit is too much for it
_NEAR = 1.05  # times the entropy
_RAREST = 4  # other values are at most one entry in so many, or gaps do not pay
_HUGE, _ALONE = 1 << 22, 1 << 16  # entries, of so many of which other values are one at most: gaps need a look at these


def encode(
    codes: np.ndarray, effort: Effort = "fast", fraction: int | None = None, counted: tables.Counted | None = None
) -> tuple[int, bytes]:
    """The number of a coder, and what it makes of the codes: a short one of few that are quick, or ``best`` of all.

    Codes with a ``fraction`` are exponents of floating-point numbers, and so many bits behind them. ``counted`` is
    their histogram, where it is known.
    """
    if not codes.size:
        return PACKING, b""
    counted = counted or tables.histogram(codes)
    if counted is None:
        return PACKING, pack(codes)
    packed = codes.size * (int(counted[0][-1]) - int(counted[0][0])).bit_length()  # bits
    entropy = entropy_of_counts(counted[1])
    if (entropy if effort == "best" else _least_bits(counted)) >= packed:
        return PACKING, pack(codes)
    gaps = by_gaps(codes, counted)
    if gaps and effort == "fast" and codes.size >= _HUGE and codes.size - counted[1].max() <= codes.size // _ALONE:
        return GAPS, gaps
    in_lanes = with_table(codes, counted, True) if entropy >= 8 * _IN_LANES else None
    in_one = None if in_lanes and effort == "fast" else with_table(codes, counted, False)
    ways = [(LANES, in_lanes), (ANS, in_one), (GAPS, gaps)]
    by_class = classes.encode(codes, fraction)
    share = 1 if fraction is not None or effort == "best" else _WORTH
    if by_class and len(by_class) < share * min(len(data) for _, data in ways if data):
        ways.append((CLASSES, by_class))
    ways.append((MIXING, mixing.encode(codes) if effort == "best" else None))
    found = [(number, data) for number, data in ways if data is not None]
    if min(len(data) for _, data in found) > packed // 8:
        found.append((PACKING, pack(codes)))
    return min(found, key=lambda way: len(way[1]))


def decode(number: int, data: bytes | memoryview, shape: tuple[int, int]) -> np.ndarray:
    """The codes that a coder made ``data`` of, integers of that shape."""
    if number >= len(_DECODERS):
        raise FormatError(f"coder {number} is unknown")
    if not math.prod(shape):
        Reader(data).end()
        return np.zeros(shape, np.int8)
    return _DECODERS[number](data, shape)


def encode_bytes(plane: np.ndarray, effort: Effort, fraction: int | None, low: bool) -> tuple[int, bytes]:
    """As ``encode``, of uint8 [rows, columns]; ``low`` bytes of numbers are likely to repeat nearby, or not at all."""
    if not plane.size:
        return PACKING, b""
    zstd = library("zstandard", "jaxprune[files]")
    window, plain = _SHORT_WINDOW if low else _WINDOW, zstd.FORMAT_ZSTD1_MAGICLESS
    how = zstd.ZstdCompressionParameters(format=plain, window_log=window, **_HOW)
    data = zstd.ZstdCompressor(compression_params=how).compress(np.ascontiguousarray(plane))
    ways, few, counted = [(ZSTD, data)], plane.size <= _FEW, None
    if effort == "best" or few or len(data) <= _SKEWED * plane.size:  # zstd gives each byte at least a bit
        counted = tables.histogram(plane)
    promised = counted and (_least_bits(counted) if few else _NEAR * entropy_of_counts(counted[1]))
    if effort == "best" or (promised is not None and 8 * len(data) > promised):
        ways.append(encode(plane, fraction=fraction, counted=counted))
    elif few:
        ways.append((PACKING, signed(0) + bytes([8]) + plane.tobytes()))
    return min(ways, key=lambda way: len(way[1]))


def _least_bits(counted: tables.Counted) -> float:
    """About what codes take at least with a table: their entropy, distances of values, and a bit for each level."""
    symbols, counts = counted
    span = int(symbols[-1]) - int(symbols[0]) + 1
    return entropy_of_counts(counts) + len(symbols) * (2 + math.log2(span / len(symbols)))


def decode_bytes(number: int, data: bytes | memoryview, shape: tuple[int, int]) -> np.ndarray:
    """The bytes that ``encode_bytes`` made ``data`` of, uint8 of that shape."""
    size = math.prod(shape)
    if number != ZSTD or not size:
        return within(decode(number, data, shape), 0, 255).astype(np.uint8)
    zstd = library("zstandard", "jaxprune[files]")
    try:
        claimed = zstd.get_frame_parameters(data, zstd.FORMAT_ZSTD1_MAGICLESS).content_size
        if claimed != size:
            raise FormatError(f"a frame of {claimed} bytes, where {size} are expected")
        reader = zstd.ZstdDecompressor(format=zstd.FORMAT_ZSTD1_MAGICLESS, max_window_size=1 << _WINDOW)
        found = reader.decompress(data, max_output_size=size, allow_extra_data=False)
    except zstd.ZstdError as error:
        raise FormatError(f"no frame of Zstandard: {error}") from error
    return np.frombuffer(found, np.uint8).reshape(shape)


def pack(codes: np.ndarray) -> bytes:
    """Codes, at least one, in equally many bits."""
    least = int(codes.min())
    width = (int(codes.max()) - least).bit_length()
    packed = pack_host(codes.reshape(-1), width, least % 2**32).tobytes() if width else b""
    return signed(least) + bytes([width]) + packed


def _unpack(data: bytes | memoryview, shape: tuple[int, int]) -> np.ndarray:
    reader, size = Reader(data), math.prod(shape)
    least, width = reader.signed(), reader.take(1)[0]
    if width > 32:
        raise FormatError(f"codes of {width} bits, where the most is 32")
    packed = np.frombuffer(reader.take(packed_length(size, width)), np.uint8)
    reader.end()
    if not width:
        return np.broadcast_to(tables.narrow(least, least)(least), shape)
    if size * width % 8 and packed[-1] >> (size * width % 8):
        raise FormatError("spare bits that are not zeros")
    codes = unpack_host(packed, width, size, tables.narrow(least, least + 2**width - 1), least % 2**32)
    if least + 2**width > 2**31 and codes.min() < least:  # beyond 2**31 it starts again from below
        raise FormatError("a code above 2**31 - 1")
    return codes.reshape(shape)


def with_table(codes: np.ndarray, counted: tables.Counted, in_lanes: bool) -> bytes | None:
    """Codes by their frequencies; None if lanes cannot have those."""
    table = tables.from_histogram(*counted)
    stream = lanes.write(table, codes) if in_lanes else tables.write_stream([(table, codes)])
    return None if stream is None else tables.write(table) + stream


def _read_with_table(data: bytes | memoryview, shape: tuple[int, int], in_lanes: bool = False) -> np.ndarray:
    reader, size = Reader(data), math.prod(shape)
    table = tables.read(reader, size)
    rest = reader.rest()
    codes = lanes.read(rest, table, size) if in_lanes else tables.read_stream(rest, [(table, size)])[0]
    return codes.reshape(shape)


def within(codes: np.ndarray, low: int, high: int) -> np.ndarray:
    """The codes, if they lie between."""
    if codes.size and not (low <= codes.min() and codes.max() <= high):
        raise FormatError(f"codes from {codes.min()} to {codes.max()}, where [{low}, {high}] is allowed")
    return codes


def by_gaps(codes: np.ndarray, counted: tables.Counted) -> bytes | None:
    """Codes by gaps; None where the commonest is too rare, where all are equal, and from 2**31 entries on."""
    if codes.size >= 2**31 or not 0 < codes.size - counted[1].max() <= codes.size // _RAREST:
        return None
    flat, common = codes.reshape(-1), counted[0][counted[1].argmax()]
    found, at = [], 0
    for part in chunks(flat):
        found.append(at + np.flatnonzero(part != common))
        at += part.size
    places, stretches = np.concatenate(found), []
    for part in (flat[places], (np.diff(places, prepend=-1) - 1).astype(np.int32)):
        own = tables.histogram(part)
        if own is None:
            return None
        stretches.append((tables.from_histogram(*own), part))
    head = signed(int(common)) + unsigned(len(places)) + b"".join(tables.write(table) for table, _ in stretches)
    return head + tables.write_stream(reversed(stretches))


def _read_gaps(data: bytes | memoryview, shape: tuple[int, int]) -> np.ndarray:
    reader, size = Reader(data), math.prod(shape)
    common, number = reader.signed(), reader.unsigned(size)
    found = [(tables.read(reader, number), number) for _ in range(2)]
    values, gaps = tables.read_stream(reader.rest(), found)
    places = np.cumsum(gaps, dtype=np.int64)
    places += np.arange(number)
    if gaps.min() < 0 or places[-1] >= size:
        raise FormatError(f"gaps from {gaps.min()} on that lead to {places[-1]} in {size} entries")
    codes = np.full(size, common, tables.narrow(min(common, values.min()), max(common, values.max())))
    codes[places] = values
    return codes.reshape(shape)


_read_lanes = partial(_read_with_table, in_lanes=True)
_DECODERS = (_unpack, _read_with_table, _read_lanes, classes.decode, mixing.decode, _read_gaps)  # by number
