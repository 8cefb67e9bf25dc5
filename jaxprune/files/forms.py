"""Arrays as integers that coders take, and back: as they are, by their distinct values, or byte by byte."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.files.bytestream import FormatError, unsigned
from jaxprune.files.coders import within
from jaxprune.files.tables import narrow
from jaxprune.host import chunks, entropy_of_counts

MOST_DISTINCT = 2**16
_SAMPLE = 2**14  # entries that tell whether an array has few distinct values
_PARTS = 4  # the least magnitude is looked for among the first multiples of the step
_LARGEST_MULTIPLE = 2**15
_ALIGNED = 64  # bytes
_AT_ONCE = 2**16  # entries, that stay in cache
_EXPONENT = 6  # bits of it that begin the highest byte
_PROMISING = 0.95  # of the bits that bytes take one by one


def rows(shape: tuple[int, ...]) -> tuple[int, int]:
    """An array as a matrix of rows of its last axis; a vector is one row."""
    return math.prod(shape[:-1]), shape[-1] if shape else 1


# ---------------------------------------------------------------------------------------------------------------------
# Integers themselves


def is_integer(dtype: np.dtype) -> bool:
    """Whether 32 bits hold any value of the dtype as an integer."""
    return (dtype.kind in "biu" or dtype.name.strip("u").startswith("int")) and dtype.itemsize <= 4


def integers(array: np.ndarray) -> np.ndarray:
    """Codes [rows, columns] of any dtype of NumPy's that 32 bits with a sign hold; uint32 by its bits."""
    known = {"bool": np.uint8, "uint32": np.int32}.get(array.dtype.name)
    codes = array.view(known) if known else array.astype(np.int8) if array.dtype.kind == "V" else array
    return codes.reshape(rows(array.shape))


def from_integers(codes: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The other way."""
    if dtype == np.uint32:
        return codes.astype(np.int32).view(np.uint32)
    if not is_integer(dtype):
        raise FormatError(f"integers as an array of {dtype.name}")
    array = codes.astype(dtype, copy=not codes.flags.writeable)
    ends = [codes.min(), codes.max()] if codes.size else []
    if not np.array_equal(np.array(ends, np.int32).astype(dtype).astype(np.int32), ends):
        raise FormatError(f"integers from {codes.min()} to {codes.max()} do not fit {dtype.name}")
    return array


# ---------------------------------------------------------------------------------------------------------------------
# Few distinct values


def few_values(bits: np.ndarray, dtype: np.dtype) -> tuple[bool, bytes, np.ndarray] | None:
    """Whether the entries are multiples of a step; the bytes of it, or else of a table of values; and codes [n].

    None if they are too many, or if some of them show that this needs hardly fewer bits than byte by byte.
    """
    sample = bits[:: max(1, len(bits) // _SAMPLE), 0]
    distinct, counts = np.unique(sample, return_counts=True)
    if bits.shape[1] > 1 or len(counts) > max(256, sample.size // 8):
        return None
    if dtype.itemsize > 1:
        planes = byte_planes(np.ascontiguousarray(sample)[:, None], dtype, 0)
        by_bytes = sum(entropy_of_counts(np.bincount(plane)) for plane in planes)
        if entropy_of_counts(counts) > _PROMISING * by_bytes:
            return None
    values, common = distinct, distinct[np.argmax(counts)]
    for part in chunks(bits):
        part = part[part != common]
        values = np.union1d(values, part[values[_places(part, values)] != part])
        if values.size > min(MOST_DISTINCT, len(bits)):
            return None
    grid = _grid(values.view(dtype)) if values.size > 1 and jnp.issubdtype(dtype, jnp.floating) else None
    if grid is not None:
        return True, step_bytes(grid[0]), _looked_up(bits, values, grid[1], common)
    top = np.array(1 << (8 * values.dtype.itemsize - 1), values.dtype)
    order = np.argsort(np.where(values & top, ~values, values | top))  # as floating-point numbers ascend
    codes = np.argsort(order) - _zero(values[order])
    table = unsigned(len(values)) + values[order].tobytes()
    return False, table, _looked_up(bits, values, codes, common)


def _places(part: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Where entries are among values, ascending; anywhere, if they are not."""
    return np.minimum(np.searchsorted(values, part), len(values) - 1)


def _looked_up(bits: np.ndarray, values: np.ndarray, codes: np.ndarray, common: Any) -> np.ndarray:
    """The code of each entry, of those of all values, of which one is common."""
    codes = codes.astype(narrow(codes.min(), codes.max()))
    found = np.full(bits.size, codes[values == common])
    for part, out in zip(chunks(bits), chunks(found), strict=True):
        others = np.flatnonzero(part != common)
        out[others] = codes[_places(part[others], values)]
    return found


def from_palette(table: memoryview, codes: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The other way, by a table."""
    if dtype.itemsize > 8:
        raise FormatError(f"a table of values of dtype {dtype.name}")
    values = np.frombuffer(table, f"<u{dtype.itemsize}")
    zero, found = _zero(values), np.empty(codes.size, values.dtype)
    for part, out in zip(chunks(within(codes, -zero, values.size - 1 - zero)), chunks(found), strict=True):
        np.take(values, part + np.int32(zero), out=out, mode="clip")
    return found.view(dtype)


def _zero(values: np.ndarray) -> int:
    """The position that codes count from: that of 0, or the first."""
    return int(np.argmax(values == 0)) if values.size else 0


def _grid(values: np.ndarray) -> tuple[np.float32, np.ndarray] | None:
    """The step, and the integers whose products with it these values are, bit for bit; None if there is none."""
    with np.errstate(all="ignore"):
        wide = values.astype(np.float32)
        least = np.min(np.abs(wide), where=wide != 0, initial=np.inf)
        for part in range(1, _PARTS + 1):
            step = np.float32(least / part)
            numbers = np.round(wide / step)
            if not np.all(np.abs(numbers) < _LARGEST_MULTIPLE):  # NaN too
                return None
            codes = numbers.astype(np.int32)
            if multiples(codes, step, values.dtype).tobytes() == values.tobytes():
                return step, codes
    return None


def multiples(codes: np.ndarray, step: Any, dtype: np.dtype) -> np.ndarray:
    """The values of integers on a grid, as ``dequantize`` computes them."""
    memory = np.empty(dtype.itemsize * codes.size + _ALIGNED, np.uint8)
    start = -memory.ctypes.data % _ALIGNED  # JAX takes an array that is aligned as it is, and copies others
    values = memory[start : start + dtype.itemsize * codes.size].view(dtype)
    with np.errstate(all="ignore"):
        for part, out in zip(chunks(codes), chunks(values), strict=True):
            out[:] = np.multiply(part, step, dtype=np.float32, casting="unsafe")
    return values.reshape(codes.shape)


def step_bytes(step: Any) -> bytes:
    """A step as it is stored."""
    return np.asarray(step, "<f4").tobytes()


# ---------------------------------------------------------------------------------------------------------------------
# Byte by byte


def patterns(array: np.ndarray) -> np.ndarray:
    """The bits of each entry as unsigned integers [size, 1], or [size, 2] if they are more than 64."""
    width = min(array.dtype.itemsize, 8)
    return array.reshape(-1).view(np.uint8).view(f"<u{width}").reshape(array.size, -1)


def exponent_bits(dtype: np.dtype) -> int:
    """How many bits of a number are its exponent; 0 where it has none, or is one byte."""
    return jnp.finfo(dtype).nexp if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize > 1 else 0


def exponent_offset(bits: np.ndarray, dtype: np.dtype) -> int:
    """What is added to exponents in byte planes, so that the largest finite one of some of them ends in ones."""
    digits = exponent_bits(dtype)
    if not digits or not len(bits):
        return 0
    some = np.ascontiguousarray(bits[:: max(1, len(bits) // _SAMPLE), 0])
    exponents = _rotated(some, 1) >> some.dtype.type(8 * dtype.itemsize - digits)
    return (2**_EXPONENT - 1 - int(exponents[exponents < 2**digits - 1].max(initial=0))) % 2**digits


def byte_planes(bits: np.ndarray, dtype: np.dtype, offset: int) -> np.ndarray:
    """uint8 [bytes of an entry, n], from the lowest on.

    The bits of a floating-point number are rotated left by one, which makes the sign the last and the exponent the
    first; the offset is added to that; and they are rotated on, until the last six bits of the exponent (or all) begin
    the highest byte. Those that go around to the lowest byte are the same in nearly all weights.
    """
    planes = np.empty((dtype.itemsize, len(bits)), np.uint8)
    for at in range(0, len(bits), _AT_ONCE):
        some = _turned(bits[at : at + _AT_ONCE], dtype, offset)
        planes[:, at : at + _AT_ONCE] = some.reshape(-1).view(np.uint8).reshape(len(some), -1).T
    return planes


def from_planes(planes: list[np.ndarray], kept: np.ndarray | None, dtype: np.dtype, offset: int) -> np.ndarray:
    """The other way; ``kept`` says which entries the planes are about, others are 0."""
    bits = np.empty((planes[0].size, -(-dtype.itemsize // 8)), f"<u{min(dtype.itemsize, 8)}")
    for at in range(0, len(bits), _AT_ONCE):
        some = np.stack([plane[at : at + _AT_ONCE] for plane in planes], axis=1).view(bits.dtype)
        bits[at : at + _AT_ONCE] = _turned(some, dtype, offset, back=True)
    if kept is not None:
        some, bits = bits, np.zeros((kept.size, bits.shape[1]), bits.dtype)
        bits[kept] = some
    return bits.reshape(-1).view(np.uint8).view(dtype)


def fraction(dtype: np.dtype) -> int | None:
    """How many bits of the highest byte are behind those of the exponent; None where there is none."""
    return 8 - min(_EXPONENT, exponent_bits(dtype)) if exponent_bits(dtype) else None


def _turned(bits: np.ndarray, dtype: np.dtype, offset: int, back: bool = False) -> np.ndarray:
    digits = exponent_bits(dtype)
    if not digits:
        return bits
    added, onward = bits.dtype.type(offset << 8 * dtype.itemsize - digits), max(0, digits - _EXPONENT)
    return _rotated(_rotated(bits, -onward) - added, -1) if back else _rotated(_rotated(bits, 1) + added, onward)


def _rotated(bits: np.ndarray, by: int) -> np.ndarray:
    """Rotated left."""
    width = 8 * bits.dtype.itemsize
    return (bits << bits.dtype.type(by % width)) | (bits >> bits.dtype.type(-by % width)) if by else bits
