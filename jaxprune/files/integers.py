"""Lists of small numbers as bits: those of a table of frequencies, of an alphabet, of the lengths of chunks.

``write`` gives one byte of parameters, k + 32 * mode, and two stretches of bits, each filled up with zeros to a whole
byte; the first bit is the highest of its byte. A number falls into a class q: q zeros and a one in the first stretch.
With s = (0, 2, 6, 14)[mode], class q begins at q * 2**k and has k further bits as long as q <= s; class s + j begins at
(s + 2**j - 1) * 2**k and has k + j of them. These (the number less the beginning of its class, the highest bit first)
follow one another in the second stretch. So s = 0 is the exponential code of Golomb, a large s the code of Rice; the
parameters are those that cost least. Parameters of 128 say that all numbers are 0, and nothing follows. How many
numbers there are is known from elsewhere. The first stretch has at most 8 bits a number and 64 more.
"""

from functools import cache

import numpy as np

from jaxprune.files.bytestream import Reader
from jaxprune.files.errors import ArtifactError

_SWITCHES = (0, 2, 6, 14)
_ZEROS = 32 * len(_SWITCHES)
_AT_ONCE = 1 << 14  # bits, or values, that are looked at together
LIMIT = 2**32  # numbers are below it


def write(values: np.ndarray) -> bytes:
    """Numbers in [0, 2**32), int64 [n], as bytes; no bytes when there are none."""
    if not values.size:
        return b""
    if not values.any():
        return bytes([_ZEROS])
    _, k, mode = _cheapest(values)
    starts, extra = _classes(k, mode)
    places = np.searchsorted(starts, values, side="right") - 1
    bits = np.zeros(int(places.sum()) + len(places), np.uint8)
    bits[np.cumsum(places + 1) - 1] = 1
    rests = join((values - starts[places]).astype(np.uint32), extra[places])
    return bytes([k + 32 * mode]) + np.packbits(bits).tobytes() + rests


def read(reader: Reader, count: int, most: int = LIMIT - 1) -> np.ndarray:
    """The next ``count`` numbers that ``write`` wrote, int64 [count], none above ``most``."""
    if not count:
        return np.zeros(0, np.int64)
    parameters = reader.take(1)[0]
    if parameters == _ZEROS:
        return np.zeros(count, np.int64)
    if parameters >= 32 * len(_SWITCHES):
        raise ArtifactError(f"no code of numbers has the parameters {parameters}")
    starts, extra = _classes(parameters % 32, parameters // 32)
    places = _read_places(reader, count)
    if places.max() >= len(starts):
        raise ArtifactError("a number above 2**32")
    lengths = extra[places]
    values = starts[places]
    values += split(reader.take(-(-int(lengths.sum()) // 8)), lengths)
    if values.max() > most:
        raise ArtifactError(f"a number of {values.max()}, where the most is {most}")
    return values


def cost(values: np.ndarray) -> int:
    """How many bits ``write`` needs, without what fills up bytes."""
    return 8 + (_cheapest(values)[0] if values.any() else 0)


def fold(values: np.ndarray) -> np.ndarray:
    """0, -1, 1, -2, ... as 0, 1, 2, 3, ...: signed numbers for ``write``."""
    return np.where(values < 0, -2 * values - 1, 2 * values)


def unfold(values: np.ndarray) -> np.ndarray:
    """The inverse of ``fold``."""
    return np.where(values % 2, -(values + 1) // 2, values // 2)


def join(values: np.ndarray, lengths: np.ndarray) -> bytes:
    """The low ``lengths`` (0 to 32) bits of each of ``values``, one after another, the highest first."""
    words = np.zeros(int(lengths.sum(dtype=np.int64)) // 32 + 2, np.uint64)
    end = 0
    for at in range(0, len(values), _AT_ONCE):
        length = lengths[at : at + _AT_ONCE].astype(np.int64)
        ends = np.cumsum(length) + end
        starts = ends - length
        end = int(ends[-1])
        # Each piece lies in a pair of 32-bit words, and only the last one to begin in a word goes on into the next.
        shifts = 64 - starts % 32 - length
        pieces = values[at : at + _AT_ONCE].astype(np.uint64) << shifts.astype(np.uint64)
        word = starts // 32
        first = np.flatnonzero(np.diff(word, prepend=-1))
        words[word[first]] += np.add.reduceat(pieces >> np.uint64(32), first)
        words[word[first] + 1] += np.add.reduceat(pieces & np.uint64(2**32 - 1), first)
    return words.astype(">u4").tobytes()[: -(-end // 8)]


def split(data: bytes | memoryview, lengths: np.ndarray) -> np.ndarray:
    """What ``join`` joined, int64; ``data`` is as long as ``lengths`` say. Spare bits must be zeros."""
    total = int(lengths.sum())
    if total % 8 and data[-1] % (1 << (8 - total % 8)):
        raise ArtifactError("spare bits that are not zeros")
    padded = np.frombuffer(bytes(data) + bytes(8), np.uint8)
    values, end = np.empty(len(lengths), np.int64), 0
    for at in range(0, len(lengths), _AT_ONCE):
        length = lengths[at : at + _AT_ONCE].astype(np.int64)
        ends = np.cumsum(length) + end
        starts, end = ends - length, int(ends[-1])
        window = np.zeros(len(length), np.int64)  # 40 bits that hold a piece
        for byte in range(5):
            window = window * 256 + padded[starts // 8 + byte]
        values[at : at + _AT_ONCE] = window >> (40 - starts % 8 - length) & ((1 << length) - 1)
    return values


@cache
def _classes(k: int, mode: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each class begins, and how many further bits its numbers have."""
    switch = _SWITCHES[mode]
    linear = [(q << k, k) for q in range(switch)]
    classes = linear + [((switch + 2**j - 1) << k, k + j) for j in range(33)]
    classes = [(start, extra) for start, extra in classes if start < LIMIT]
    return np.array([start for start, _ in classes]), np.array([extra for _, extra in classes], np.int8)


def _cheapest(values: np.ndarray) -> tuple[int, int, int]:
    """(bits, k, mode) of the code that costs least, of those whose first stretch stays short."""
    distinct, counts = np.unique(values, return_counts=True)
    middle = int(distinct[np.searchsorted(np.cumsum(counts), (len(values) + 1) // 2)])
    mean = int(distinct @ counts) // len(values)
    widths = range(max(0, middle.bit_length() - 3), min(max(middle, mean).bit_length() + 1, 31))
    k = np.array([*widths, 31])[:, None, None]
    switch = np.array(_SWITCHES)[:, None]
    units = distinct >> k
    doublings = np.frexp(np.maximum(units - switch + 1, 1))[1] - 1
    places = np.minimum(units, switch + doublings)
    ones = (places + 1) @ counts
    costs = ones + (np.maximum(places - switch, 0) + k) @ counts
    costs[ones > 8 * len(values) + 64] = np.iinfo(np.int64).max
    best = np.unravel_index(np.argmin(costs), costs.shape)
    return int(costs[best]), int(k[best[0], 0, 0]), int(best[1])


def _read_places(reader: Reader, count: int) -> np.ndarray:
    """The next ``count`` runs of zeros that end in a one, int32 [count]."""
    longest = -(-(8 * count + 64) // 8)
    data = np.frombuffer(reader.data, np.uint8)[reader.at : reader.at + min(longest, reader.left)]
    ends, found = [], 0
    for at in range(0, len(data), _AT_ONCE // 8):
        ones = np.flatnonzero(np.unpackbits(data[at : at + _AT_ONCE // 8]))[: count - found]
        ends.append((ones + 8 * at).astype(np.int32))
        found += len(ones)
        if found == count:
            break
    else:
        raise ArtifactError(f"{found} numbers, where {count} are expected: truncated or damaged")
    place = np.concatenate(ends)
    taken = reader.take(int(place[-1]) // 8 + 1)
    if taken[-1] % (1 << (7 - int(place[-1]) % 8)):
        raise ArtifactError("spare bits that are not zeros")
    return np.diff(place, prepend=np.int32(-1)) - 1
