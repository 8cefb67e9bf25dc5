"""One array as bytes, without loss: the smallest of several forms, and what every form starts with.

    form, origin, dtype: one byte each; rank and the lengths of the axes: numbers as in :mod:`bytestream`
    what the form needs

The forms: 0 the memory of the array, as it is; 1 the integers themselves, coded; 2 the distinct values (a count, then
each as it is in memory, ascending) and the coded position of each entry, counted from that of 0; 3 a coded plane for
each byte of an entry, from the lowest on; 4 a coded plane that says which entries differ from 0, then form 3 for those
alone. A coded plane is a coder's number, a count of bytes, and those bytes; coders see the array as rows of its last
axis. In forms 3 and 4 the bits of a floating-point number are rotated left by one, so that its exponent is one byte.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.artifact import coders
from jaxprune.artifact.bytestream import Reader, unsigned
from jaxprune.artifact.errors import ArtifactError

RAW, INTEGERS, PALETTE, PLANES, SPARSE = range(5)
JAX, NUMPY, PYTHON, KEY = range(4)  # where an array comes from; a key is followed by the name of its generator

DTYPES = (
    ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    + ("float16", "bfloat16", "float32", "float64", "complex64", "complex128", "int1", "int2", "int4", "uint1", "uint2")
    + ("uint4", "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz")
    + ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
)
LONGEST_HEAD = 1024  # bytes that are sure to hold all of it
_NUMBERS = (bool, int, float, complex)
_MOST_DISTINCT = 2**16
_SAMPLE = 2**14  # entries that tell whether an array has few distinct values
_PLANE_CODERS = ("ans", "packing")


class Head(NamedTuple):
    """What is known of an array before it is decoded."""

    form: int
    origin: int
    dtype: np.dtype
    shape: tuple[int, ...]
    generator: str
    body: Reader

    @property
    def entries(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


def encode(leaf: Any, wanted: Sequence[str]) -> bytes:
    """The array, or Python number, in the smallest form; ``wanted`` names the coders that are tried."""
    origin, generator, array = _plain(leaf)
    head = bytes([origin, DTYPES.index(array.dtype.name), array.ndim]) + b"".join(map(unsigned, array.shape))
    head += bytes([len(generator)]) + generator if origin == KEY else b""
    bodies = [(RAW, array.tobytes())] + list(_coded(array, wanted) if array.size else [])
    form, body = min(bodies, key=lambda item: len(item[1]))
    return bytes([form]) + head + body


def head(data: bytes | memoryview) -> Head:
    """Reads what comes first; raises :class:`ArtifactError` if it makes no sense."""
    reader = Reader(data)
    form, origin, dtype, rank = reader.take(4)
    if form > SPARSE or origin > KEY or dtype >= len(DTYPES) or rank > 64:
        raise ArtifactError(f"form {form}, origin {origin}, dtype {dtype} or rank {rank} is unknown")
    shape = tuple(reader.unsigned() for _ in range(rank))
    generator = bytes(reader.take(reader.take(1)[0])) if origin == KEY else b""
    if math.prod(max(length, 1) for length in shape) >= 2**62:
        raise ArtifactError(f"a shape of {shape}")
    if not generator.isascii():
        raise ArtifactError(f"a random number generator called {generator!r}")
    if origin == PYTHON and shape:
        raise ArtifactError(f"a Python number of shape {shape}")
    return Head(form, origin, np.dtype(getattr(jnp, DTYPES[dtype], DTYPES[dtype])), shape, generator.decode(), reader)


def holds(leaf: Any) -> bool:
    """Whether a leaf can be stored: an array of a known dtype, a random key, or a Python number."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return True
    known = isinstance(leaf, jax.Array | np.ndarray | np.generic) and leaf.dtype.name in DTYPES
    return known or (type(leaf) in _NUMBERS and np.asarray(leaf).dtype.name in DTYPES)


class Parts(NamedTuple):
    """What an array is made of: a table as bytes, and planes, each with its coder, its bytes and its codes."""

    table: memoryview
    planes: list[tuple[str, int, np.ndarray]]


def parts(found: Head) -> Parts:
    """Decodes the planes of an array, whose size has been found bearable."""
    reader, rows, width, table = found.body, _rows(found.shape), found.dtype.itemsize, memoryview(b"")
    planes: list[tuple[str, int, np.ndarray]] = []
    if found.form == RAW:
        table = reader.rest()
    elif found.form == PALETTE:
        table = reader.take(reader.unsigned(_MOST_DISTINCT) * width)
    if found.form in (INTEGERS, PALETTE, SPARSE):
        planes.append(_plane(reader, rows))
    if found.form in (PLANES, SPARSE):
        number = found.entries
        if found.form == SPARSE:
            number = int(np.count_nonzero(_within(planes[0][2], 0, 1)))
        planes += [_plane(reader, (1, number)) for _ in range(width)]
    reader.end()
    return Parts(table, planes)


def decode(found: Head) -> Any:
    """The array of a head."""
    table, planes = parts(found)
    codes = [plane for _, _, plane in planes]
    if found.form == RAW:
        array = np.frombuffer(table, np.uint8)
        if array.size != found.entries * found.dtype.itemsize:
            raise ArtifactError(f"{array.size} bytes for an array of {found.entries} entries of {found.dtype.name}")
        array = array.copy().view(found.dtype)
    elif found.form == INTEGERS:
        array = _from_integers(codes[0], found.dtype)
    elif found.form == PALETTE:
        array = _from_palette(table, codes[0], found.dtype)
    else:
        kept = codes.pop(0).reshape(-1).astype(bool) if found.form == SPARSE else None
        array = _from_planes(codes, kept, found.dtype)
    return _original(array.reshape(found.shape), found)


def _plain(leaf: Any) -> tuple[int, bytes, np.ndarray]:
    """Where a leaf comes from, and itself as a contiguous NumPy array."""
    if type(leaf) in _NUMBERS:
        return PYTHON, b"", np.asarray(leaf)
    origin, generator = (JAX if isinstance(leaf, jax.Array) else NUMPY), b""
    if origin == JAX and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        origin, generator, leaf = KEY, str(jax.random.key_impl(leaf)).encode(), jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return origin, generator, np.ascontiguousarray(array).reshape(array.shape)


def _original(array: np.ndarray, found: Head) -> Any:
    if found.origin == NUMPY:
        return array
    if found.origin == PYTHON:
        return array.item()
    if found.origin == KEY:
        try:
            return jax.random.wrap_key_data(jnp.asarray(array), impl=found.generator)
        except (ValueError, TypeError) as error:
            raise ArtifactError(f"no key of generator {found.generator!r}: {error}") from error
    # JAX would cut 64 bits to 32 unless told otherwise; the bits matter more than the type of the array.
    same = jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype
    return jnp.asarray(array) if same else array


def _rows(shape: tuple[int, ...]) -> tuple[int, int]:
    """An array as a matrix of rows of its last axis; a vector is one row."""
    columns = shape[-1] if shape else 1
    return math.prod(shape[:-1]), columns


def _patterns(array: np.ndarray) -> np.ndarray:
    """The bits of each entry as unsigned integers [size, 1], or [size, 2] if they are more than 64."""
    width = min(array.dtype.itemsize, 8)
    return array.reshape(-1).view(np.uint8).view(f"<u{width}").reshape(array.size, -1)


def _coded(array: np.ndarray, wanted: Sequence[str]) -> Iterator[tuple[int, bytes]]:
    """The forms that take this array."""
    kind = array.dtype.kind
    if (kind in "biu" or array.dtype.name.strip("u").startswith("int")) and array.dtype.itemsize <= 4:
        yield INTEGERS, _put(_integers(array), wanted)
        return
    bits = _patterns(array)
    if bits.shape[1] == 1:
        few = _palette(bits[:, 0], array.shape, wanted)
        if few is not None:
            yield PALETTE, few
    zeros = np.count_nonzero((bits == 0).all(axis=1))
    if 0 < zeros:
        kept = (bits != 0).any(axis=1)
        plane = _put(kept.reshape(_rows(array.shape)).astype(np.int32), wanted)
        yield SPARSE, plane + _byte_planes(bits[kept], array.dtype, wanted)
    if zeros < array.size / 4:
        yield PLANES, _byte_planes(bits, array.dtype, wanted)


def _integers(array: np.ndarray) -> np.ndarray:
    wide = array.view(np.int32) if array.dtype == np.uint32 else array.astype(np.int32)
    return wide.reshape(_rows(array.shape))


def _from_integers(codes: np.ndarray, dtype: np.dtype) -> np.ndarray:
    array = codes.view(np.uint32) if dtype == np.uint32 else codes.astype(dtype)
    if dtype != np.uint32 and not np.array_equal(array.astype(np.int32), codes):
        raise ArtifactError(f"integers from {codes.min()} to {codes.max()} do not fit {dtype.name}")
    return array


def _put(codes: np.ndarray, wanted: Sequence[str]) -> bytes:
    number, data = coders.smallest(codes, wanted)
    return bytes([number]) + unsigned(len(data)) + data


def _plane(reader: Reader, shape: tuple[int, int]) -> tuple[str, int, np.ndarray]:
    number = reader.take(1)[0]
    data = bytes(reader.take(reader.unsigned()))
    codes = coders.decode(number, data, shape)
    return coders.NAMES[number], len(data), codes


def _within(codes: np.ndarray, low: int, high: int) -> np.ndarray:
    if codes.size and not (low <= codes.min() and codes.max() <= high):
        raise ArtifactError(f"codes from {codes.min()} to {codes.max()}, where [{low}, {high}] is allowed")
    return codes


def _palette(bits: np.ndarray, shape: tuple[int, ...], wanted: Sequence[str]) -> bytes | None:
    """Form 2, if few values are worth a table."""
    sample = bits[:: max(1, bits.size // _SAMPLE)]
    if np.unique(sample).size > max(256, sample.size // 8):
        return None
    values, positions = np.unique(bits, return_inverse=True)
    if values.size > min(_MOST_DISTINCT, bits.size):
        return None
    top = np.array(1 << (8 * bits.dtype.itemsize - 1), bits.dtype)
    order = np.argsort(np.where(values & top, ~values, values | top))  # as floating-point numbers ascend
    rank = np.empty(values.size, np.int32)
    rank[order] = np.arange(values.size, dtype=np.int32)
    zero = np.flatnonzero(values[order] == 0)
    codes = rank[positions.reshape(-1)] - (zero[0] if zero.size else 0)
    return unsigned(values.size) + values[order].tobytes() + _put(codes.reshape(_rows(shape)).astype(np.int32), wanted)


def _from_palette(table: memoryview, codes: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.itemsize > 8:
        raise ArtifactError(f"a table of values of dtype {dtype.name}")
    values = np.frombuffer(table, f"<u{dtype.itemsize}")
    zero = np.flatnonzero(values == 0)
    shift = int(zero[0]) if zero.size else 0
    return values[_within(codes, -shift, values.size - 1 - shift) + shift].reshape(-1).view(dtype)


def _byte_planes(bits: np.ndarray, dtype: np.dtype, wanted: Sequence[str]) -> bytes:
    """Form 3, for entries [n, 1 or 2]."""
    planes = _rotated(bits, dtype, 1).reshape(-1).view(np.uint8).reshape(len(bits), dtype.itemsize)
    tried = [name for name in wanted if name in _PLANE_CODERS] or ["packing"]
    return b"".join(_put(plane[None].astype(np.int32), tried) for plane in planes.T)


def _from_planes(planes: list[np.ndarray], kept: np.ndarray | None, dtype: np.dtype) -> np.ndarray:
    mixed = np.empty((planes[0].size, dtype.itemsize), np.uint8)
    for i, plane in enumerate(planes):
        mixed[:, i] = _within(plane, 0, 255)[0]
    entries = _rotated(mixed.view(f"<u{min(dtype.itemsize, 8)}"), dtype, -1)
    if kept is not None:
        whole = np.zeros((kept.size, entries.shape[1]), entries.dtype)
        whole[kept] = entries
        entries = whole
    return entries.reshape(-1).view(np.uint8).view(dtype)


def _rotated(bits: np.ndarray, dtype: np.dtype, by: int) -> np.ndarray:
    """The bits of floating-point numbers rotated left or right by one; others as they are."""
    if not jnp.issubdtype(dtype, jnp.floating):
        return bits
    last = 8 * bits.dtype.itemsize - 1
    left, right = (1, last) if by > 0 else (last, 1)
    return (bits << bits.dtype.type(left)) | (bits >> bits.dtype.type(right))
