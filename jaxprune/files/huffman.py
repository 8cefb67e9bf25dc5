"""Canonical Huffman codes, as in "Deep Compression" (Han, Mao and Dally 2016, arXiv:1510.00149, section 4).

A table (:mod:`jaxprune.files.tables`) whose levels are the lengths of the codes, 1 to 16 bits; they fill the tree.
Codes are numbered by length, and by value where lengths are equal: the first is all zeros, the next is one more, with
zeros put behind where codes get longer. If there are at least two values, there follow: one byte e, 6 to 14; if there
are several stretches of 2**e entries, of which the last may be shorter, the bits of the shortest of them (a number) and
what each has above that (:mod:`jaxprune.files.integers`); the codes of the entries one after another, the highest
bit first, filled up with zeros to a whole byte. No bytes for no codes.

Stretches are decoded side by side, one entry of each at a time.
"""

import heapq
import math

import numpy as np

from jaxprune.files import counting, integers, tables
from jaxprune.files.bytestream import Reader, unsigned
from jaxprune.files.errors import ArtifactError

_LONGEST = 16  # bits of a code
_STRETCHES = (6, 14)  # the powers of two that a stretch can be
_ALONGSIDE = 512  # stretches there should be: one more costs a byte or two, one fewer makes steps longer


def encode(codes: np.ndarray) -> bytes | None:
    """Codes as bytes; None above 65536 distinct ones."""
    if not codes.size:
        return b""
    counted = counting.histogram(codes)
    if counted is None:
        return None
    symbols, counts = counted
    lengths = code_lengths(counts)
    head = tables.write(tables.Table(symbols, lengths))
    if len(symbols) == 1:
        return head
    places = tables.places(codes, symbols)
    exponent = min(max((codes.size // _ALONGSIDE).bit_length(), _STRETCHES[0]), _STRETCHES[1] - 2)
    head += bytes([exponent])
    bits = lengths.astype(np.uint8)[places]
    starts = np.arange(0, codes.size, 1 << exponent)
    if len(starts) > 1:
        stretches = np.add.reduceat(bits, starts, dtype=np.int64)
        head += unsigned(int(stretches.min())) + integers.write(stretches - stretches.min())
    return head + integers.join(_canonical(lengths)[places], bits)


def decode(data: bytes, shape: tuple[int, int]) -> np.ndarray:
    """The codes that ``encode`` made ``data`` of, int32 of that shape."""
    reader, size = Reader(data), math.prod(shape)
    if not size:
        reader.end()
        return np.zeros(shape, np.int32)
    symbols, lengths = tables.read(reader, size)
    if len(symbols) == 1:
        reader.end()
        return np.full(shape, symbols[0], np.int32)
    if lengths.max() > _LONGEST or int((1 << (_LONGEST - lengths)).sum()) != 1 << _LONGEST:
        raise ArtifactError("lengths that are not those of a code")
    exponent = reader.take(1)[0]
    if not _STRETCHES[0] <= exponent <= _STRETCHES[1]:
        raise ArtifactError(f"stretches of 2**{exponent} entries")
    number = -(-size >> exponent)
    if number > 1:
        shortest = reader.unsigned(_LONGEST << exponent)
        bits = integers.read(reader, number, _LONGEST << exponent) + shortest
    else:
        bits = np.array([8 * reader.left])
    ends = np.cumsum(bits)
    if reader.left != -(-int(ends[-1]) // 8) or reader.left > 2 * size:
        raise ArtifactError(f"{reader.left} bytes of codes, where {-(-int(ends[-1]) // 8)} are said to be")
    places = _decode(reader.rest(), ends - bits, ends, size, exponent, lengths)
    return symbols[places].reshape(shape)


def code_lengths(counts: np.ndarray) -> np.ndarray:
    """The bits of each value's code, int64 [n], for counts int64 [n] above 0; none is longer than 16 bits.

    Where codes come out too long, counts are halved (and rounded up) until they do not; equal counts of 65536 values
    give 16 bits.
    """
    lengths = _tree_depths(counts)
    while lengths.max() > _LONGEST:
        counts = (counts + 1) // 2
        lengths = _tree_depths(counts)
    return np.maximum(lengths, 1)


def _tree_depths(counts: np.ndarray) -> np.ndarray:
    """Huffman's tree: the two least nodes become one, until one is left; depths follow from the root down."""
    number = len(counts)
    heap = [(int(count), node) for node, count in enumerate(counts)]
    heapq.heapify(heap)
    parents = [0] * (2 * number - 1)
    for node in range(number, 2 * number - 1):
        first, left = heapq.heappop(heap)
        second, right = heap[0]
        parents[left] = parents[right] = node
        heapq.heapreplace(heap, (first + second, node))
    depths = [0] * (2 * number - 1)
    for node in range(2 * number - 3, -1, -1):
        depths[node] = depths[parents[node]] + 1
    return np.array(depths[:number])


def _canonical(lengths: np.ndarray) -> np.ndarray:
    """The code of each value, in the low ``lengths`` bits, uint32."""
    order = np.argsort(lengths, kind="stable")
    ends = np.cumsum(1 << (_LONGEST - lengths[order]))
    codes = np.empty(len(lengths), np.uint32)
    codes[order] = (ends >> (_LONGEST - lengths[order])) - 1
    return codes


def _decode(
    data: memoryview, starts: np.ndarray, ends: np.ndarray, size: int, exponent: int, lengths: np.ndarray
) -> np.ndarray:
    """The place of each entry's value, uint16 [size]; every stretch has to end where the next one begins."""
    widest = int(lengths.max())
    order = np.argsort(lengths, kind="stable")
    # What the next bits say: the place of the value and the length of its code, which any further bits follow.
    lookup = np.repeat(order * 32 + lengths[order], 1 << (widest - lengths[order])).astype(np.uint32)
    padded = np.frombuffer(bytes(data) + bytes((_LONGEST << exponent) // 8 + 4), np.uint8).astype(np.uint32)
    windows = padded[:-2] << 16  # 24 bits from each byte on
    windows |= padded[1:-1] << 8
    windows |= padded[2:]
    tail = (size - 1) % (1 << exponent) + 1  # entries of the last stretch
    places = np.empty((1 << exponent if len(starts) > 1 else tail, len(starts)), np.uint16)
    at, last = starts.copy(), 0
    for step in range(len(places)):
        shifts = (24 - widest) - (at & 7)
        found = lookup[windows[at >> 3] >> shifts & ((1 << widest) - 1)]
        places[step] = found >> 5
        at += found & 31
        if step + 1 == tail:
            last = int(at[-1])
    if (at[:-1] != ends[:-1]).any() or -(-last // 8) != len(data) or (last % 8 and data[-1] % (1 << (8 - last % 8))):
        raise ArtifactError("codes that do not end where they should: damaged")
    return places.T.reshape(-1)[:size]
