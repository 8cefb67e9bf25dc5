"""Numbers as bytes, alone and in lists, and a cursor that reads them back without trusting them.

An unsigned number takes 7 bits a byte, low bits first, the eighth says that more follow (LEB128). A signed one is first
folded to 0, -1, 1, -2, ... = 0, 1, 2, 3, ...

A list of small integers (levels and gaps of a table, classes of rows, lengths of lanes) begins with one byte k; 32 says
that all are 0, and nothing follows. Otherwise an integer falls into a class q: q zeros and a one in a first stretch of
bits. With j = max(q - 2, 0), the class begins at (min(q, 2) + 2**j - 1) * 2**k, and the k + j bits of how much the
integer is above that, the highest first, are in a second stretch. Each is filled up with zeros to a whole byte; the
first bit is the highest of its byte. How many integers there are is known from elsewhere. The first stretch has at most
8 bits an integer and 64 more. (Codes of Golomb, exponential from the third class on.)
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxprune.host import library

_LONGEST = 10  # bytes of a number; 63 bits fit
_ALL_ZERO = 32  # what begins a list of zeros


def unsigned(number: int) -> bytes:
    """An integer in [0, 2**63) as 1 to 9 bytes."""
    out = bytearray()
    while number >= 128:
        out.append(number % 128 + 128)
        number //= 128
    out.append(number)
    return bytes(out)


def signed(number: int) -> bytes:
    """An integer in [-2**62, 2**62) as 1 to 9 bytes."""
    return unsigned(fold(number))


class FormatError(ValueError):
    """A file, or the bytes of one leaf in it, that this library did not write, or that was damaged since.

    Raised before anything of the leaf is given out; the message names the leaf and the fault.
    """


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Whatever goes wrong with bytes that someone made up is a :class:`FormatError` that begins with ``what``.

    Only what is no fault of theirs stays as it is: the disk's errors, and a library that is not installed.
    """
    try:
        yield
    except (OSError, ImportError):
        raise
    except Exception as error:  # of any library that decodes, and RecursionError and MemoryError
        fault = str(error) if isinstance(error, FormatError) else f"{type(error).__name__}: {error}"
        raise FormatError(f"{what}: {fault}") from error


def constriction() -> Any:
    """The entropy coders, imported when they are first used."""
    return library("constriction", "jaxprune[files]")


def words(data: bytes | memoryview, order: str) -> np.ndarray:
    """The words of 32 bits of a stream (``"<"`` or ``">"``: which byte is first), which end before the last zeros."""
    if data and not data[-1]:
        raise FormatError("zeros at the end: damaged")
    return np.frombuffer(bytes(data) + bytes(-len(data) % 4), f"{order}u4").astype(np.uint32, copy=False)


class Reader:
    """Takes numbers and stretches of bytes from the front of ``data``, and never reads past its end."""

    def __init__(self, data: bytes | memoryview):
        self.data = memoryview(data)
        self.at = 0

    @property
    def left(self) -> int:
        """How many bytes have not been taken."""
        return len(self.data) - self.at

    def take(self, number: int) -> memoryview:
        """The next ``number`` bytes."""
        if not 0 <= number <= self.left:
            raise FormatError(f"{number} bytes wanted, {self.left} left: truncated or damaged")
        self.at += number
        return self.data[self.at - number : self.at]

    def rest(self) -> memoryview:
        """All the bytes that are left."""
        return self.take(self.left)

    def unsigned(self, most: int = 2**63 - 1) -> int:
        """The next number, at most ``most``."""
        number = 0
        for place in range(_LONGEST):
            byte = self.take(1)[0]
            number += (byte % 128) << (7 * place)
            if byte < 128:
                if number > most:
                    raise FormatError(f"a number of {number}, where the most is {most}")
                return number
        raise FormatError("a number that does not end")

    def signed(self) -> int:
        """The next signed number, of 32 bits."""
        return unfold(self.unsigned(2**32 - 1))

    def end(self) -> None:
        """Nothing may be left."""
        if self.left:
            raise FormatError(f"{self.left} bytes too many")


# ---------------------------------------------------------------------------------------------------------------------
# Lists


def write_list(values: np.ndarray) -> bytes:
    """Integers in [0, 2**32), int64 [n], as bytes; no bytes when there are none."""
    if not values.size:
        return b""
    if not values.any():
        return bytes([_ALL_ZERO])
    k = _cheapest(values)[1]
    classes = _classes(values, k)
    starts, tails = _extents(classes, k)
    ones = np.zeros(int(classes.sum()) + len(classes), np.uint8)
    ones[np.cumsum(classes + 1) - 1] = 1
    above, at, bits = values - starts, np.cumsum(tails) - tails, np.zeros(int(tails.sum()), np.uint8)
    for place in range(int(tails.max())):
        some = tails > place
        bits[at[some] + place] = above[some] >> (tails[some] - 1 - place) & 1
    return bytes([k]) + np.packbits(ones).tobytes() + np.packbits(bits).tobytes()


def read_list(reader: Reader, count: int, most: int = 2**32 - 1) -> np.ndarray:
    """The next ``count`` integers that ``write_list`` wrote, int64 [count], none above ``most``."""
    if not count:
        return np.zeros(0, np.int64)
    k = reader.take(1)[0]
    if k == _ALL_ZERO:
        return np.zeros(count, np.int64)
    if k > _ALL_ZERO:
        raise FormatError(f"no list of integers begins with {k}")
    data = np.frombuffer(reader.data, np.uint8)[reader.at : reader.at + min(count + 8, reader.left)]
    ends = np.flatnonzero(np.unpackbits(data))[:count]  # of runs of zeros
    if len(ends) < count:
        raise FormatError(f"{len(ends)} numbers, where {count} are expected: truncated or damaged")
    _no_spare_bits(reader.take(int(ends[-1]) // 8 + 1), int(ends[-1]) + 1)
    classes = np.diff(ends, prepend=-1) - 1
    if classes.max() > 34 - k:
        raise FormatError("an integer above 2**32 in a list")
    values, tails = _extents(classes, k)
    total = int(tails.sum())
    packed = reader.take(-(-total // 8))
    _no_spare_bits(packed, total)
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))
    at, above = np.cumsum(tails) - tails, np.zeros(count, np.int64)
    for place in range(int(tails.max())):
        some = tails > place
        above[some] = 2 * above[some] + bits[at[some] + place]
    values += above
    if values.max() > most:
        raise FormatError(f"a number of {values.max()}, where the most is {most}")
    return values


def list_cost(values: np.ndarray) -> int:
    """How many bits ``write_list`` needs, without what fills up bytes."""
    return 8 + (_cheapest(values)[0] if values.any() else 0)


def fold(values: Any) -> Any:
    """0, -1, 1, -2, ... as 0, 1, 2, 3, ...: signed numbers, of up to 63 bits, for ``unsigned`` and ``write_list``."""
    return values << 1 ^ values >> 63


def unfold(values: Any) -> Any:
    """The inverse of ``fold``."""
    return values >> 1 ^ -(values & 1)


def _classes(values: np.ndarray, k: Any) -> np.ndarray:
    units = values >> k
    return np.minimum(units, np.frexp(np.maximum(units - 1, 1).astype(np.float64))[1] + 1)


def _extents(classes: np.ndarray, k: Any) -> tuple[np.ndarray, np.ndarray]:
    """Where each class begins, and how many bits say where in it an integer is."""
    doublings = np.maximum(classes - 2, 0)
    return (np.minimum(classes, 2) + (1 << doublings) - 1) << k, k + doublings


def _cheapest(values: np.ndarray) -> tuple[int, int]:
    """(bits, k) of the code that costs least, of those whose first stretch stays short."""
    distinct, counts = np.unique(values, return_counts=True)
    k = np.arange(min(int(distinct[-1]).bit_length() + 1, _ALL_ZERO))[:, None]
    classes = _classes(distinct, k)
    first = classes @ counts + len(values)
    bits = np.where(first <= 8 * len(values) + 64, first + _extents(classes, k)[1] @ counts, 2**62)
    return int(bits.min()), int(bits.argmin())


def _no_spare_bits(data: memoryview, used: int) -> None:
    """Raises :class:`FormatError` if there is a one behind so many bits."""
    if used % 8 and data[-1] % (1 << 8 - used % 8):
        raise FormatError("spare bits that are not zeros")
