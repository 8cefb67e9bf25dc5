"""One array as bytes, without loss: the smallest of several forms, and what every form starts with.

    form, origin, dtype: one byte each; rank and the lengths of the axes: numbers as in :mod:`bytestream`
    what the form needs

The forms: 0 the memory of the array, as it is; 1 the integers themselves, coded; 2 the distinct values (a count, then
each as it is in memory, ascending) and the coded position of each entry, counted from that of 0; 3 what is added to the
exponents (a number, for floating-point numbers of more than a byte), and a coded plane for each byte of an entry, from
the lowest on, as :func:`jaxprune.files.forms.byte_planes` says; 4 a coded plane that says which entries differ from 0,
then form 3 for those alone, as one row; 5 a step (float32) and coded integers, whose products with it, in float32, the
entries are. A coded plane is a coder's number, a count of bytes, and those bytes; coders see the array as rows of its
last axis.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.files import coders, forms
from jaxprune.files.bytestream import FormatError, Reader, unsigned
from jaxprune.quantization.arrays.coded import QArray

RAW, INTEGERS, PALETTE, PLANES, SPARSE, GRID = range(6)
JAX, NUMPY, PYTHON, KEY = range(4)  # where an array comes from; a key is followed by the name of its generator

DTYPES = """
bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 bfloat16 float32 float64 complex64 complex128 int1 int2
int4 uint1 uint2 uint4 float4_e2m1fn float6_e2m3fn float6_e3m2fn float8_e3m4 float8_e4m3 float8_e4m3b11fnuz
float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu
""".split()
_KNOWN = tuple(np.dtype(getattr(jnp, name, name)) for name in DTYPES)
LONGEST_HEAD = 1024  # bytes that are sure to hold all of it
_NUMBERS = (bool, int, float, complex)
_TINY = 8  # bytes, that no form can save much of
_MANY_ZEROS = 1 / 64  # of the entries, from which on it pays quickly to say where they are


class Head(NamedTuple):
    """What is known of an array before it is decoded."""

    form: int
    origin: int
    dtype: np.dtype
    shape: tuple[int, ...]
    generator: str
    body: Reader


def encode(leaf: Any, effort: coders.Effort = "fast") -> bytes:
    """The array, or Python number, in the smallest form.

    A ``QArray`` that :func:`one_step` is true of stands for the dense array that it makes.
    """
    if isinstance(leaf, QArray):
        codes = np.asarray(leaf.codes).reshape(forms.rows(leaf.shape))
        return bytes([GRID]) + _start(JAX, leaf) + forms.step_bytes(leaf.scale) + _put(coders.encode(codes, effort))
    origin, generator, array = _plain(leaf)
    head = _start(origin, array) + (bytes([len(generator)]) + generator if origin == KEY else b"")
    raw = RAW, array.reshape(-1).view(np.uint8).data
    ways = _coded(array, effort) if array.nbytes > _TINY else ()
    form, body = min(itertools.chain([raw], ways), key=lambda way: len(way[1]))
    return b"".join([bytes([form]), head, body])


def head(data: bytes | memoryview) -> Head:
    """Reads what comes first; raises :class:`FormatError` if it makes no sense."""
    reader = Reader(data)
    form, origin, dtype, rank = reader.take(4)
    if form > GRID or origin > KEY or dtype >= len(DTYPES) or rank > 64:
        raise FormatError(f"form {form}, origin {origin}, dtype {dtype} or rank {rank} is unknown")
    shape = tuple(reader.unsigned() for _ in range(rank))
    generator = bytes(reader.take(reader.take(1)[0])) if origin == KEY else b""
    if math.prod(max(length, 1) for length in shape) >= 2**62:
        raise FormatError(f"a shape of {shape}")
    if not generator.isascii():
        raise FormatError(f"a random number generator called {generator!r}")
    if origin == PYTHON and shape:
        raise FormatError(f"a Python number of shape {shape}")
    return Head(form, origin, _KNOWN[dtype], shape, generator.decode(), reader)


def holds(leaf: Any) -> bool:
    """Whether a leaf can be stored: an array of a known dtype, a random key, or a Python number."""
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic) and type(leaf) not in _NUMBERS:
        return False
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    return dtype.name in DTYPES or jnp.issubdtype(dtype, jax.dtypes.prng_key)


def one_step(record: Any) -> bool:
    """Whether a record is integers times one step, and nothing else."""
    if not isinstance(record, QArray) or not record.spec.symmetric or record.scale.size != 1:
        return False
    most = 2 ** (record.bits - 1) - 1 if record.bits > 1 else 1
    codes = np.asarray(record.codes)
    # A code below the least stands for NaN, an infinite scale for a range that was none.
    return bool(codes.size) and codes.min() >= -most and bool(np.isfinite(record.scale).all())


class Plane(NamedTuple):
    """The coder of a plane, how many bytes it took, and the codes."""

    coder: str
    nbytes: int
    codes: np.ndarray


def parts(found: Head) -> tuple[memoryview, list[Plane], int]:
    """What an array, whose size has been found bearable, is made of.

    A table as bytes, the planes, decoded, and what was added to the exponents in them.
    """
    reader, rows, width = found.body, forms.rows(found.shape), found.dtype.itemsize
    offset, digits, lengths = 0, forms.exponent_bits(found.dtype), {RAW: reader.left, GRID: 4}
    if found.form == PALETTE:
        lengths[PALETTE] = reader.unsigned(forms.MOST_DISTINCT) * width
    table = reader.take(lengths.get(found.form, 0))
    planes = [] if found.form in (RAW, PLANES) else [_plane(reader, rows)]
    if found.form == SPARSE:
        rows = (1, int(np.count_nonzero(coders.within(planes[0].codes, 0, 1))))
    if found.form in (PLANES, SPARSE):
        offset = reader.unsigned(2**digits - 1) if digits else 0
        planes += [_plane(reader, rows, coders.decode_bytes) for _ in range(width)]
    reader.end()
    return table, planes, offset


def decode(found: Head) -> np.ndarray:
    """The array of a head; of a random key its integers."""
    table, planes, offset = parts(found)
    codes = [plane.codes for plane in planes]
    if found.form == RAW:
        if len(table) != (entries := math.prod(found.shape)) * found.dtype.itemsize:
            raise FormatError(f"{len(table)} bytes for an array of {entries} entries of {found.dtype.name}")
        array = np.frombuffer(table, np.uint8).copy().view(found.dtype)
    elif found.form == INTEGERS:
        array = forms.from_integers(codes[0], found.dtype)
    elif found.form == PALETTE:
        array = forms.from_palette(table, codes[0], found.dtype)
    elif found.form == GRID:
        array = forms.multiples(codes[0], np.frombuffer(table, "<f4"), found.dtype)
    else:
        kept = codes.pop(0).reshape(-1).astype(bool) if found.form == SPARSE else None
        array = forms.from_planes([plane.reshape(-1) for plane in codes], kept, found.dtype, offset)
    array = array.reshape(found.shape)
    if found.origin == KEY:
        _as_given(found, array)  # which no made-up generator survives
    return array


def as_given(decoded: list[tuple[Head, np.ndarray]]) -> list[Any]:
    """The arrays, keys and numbers that were stored; all arrays of JAX are put on the device together."""
    found: list[Any] = [_as_given(*one) for one in decoded]
    dtypes = set(filter(_taken_by_jax, {head.dtype for head, _ in decoded if head.origin == JAX}))
    some = [i for i, (head, _) in enumerate(decoded) if head.origin == JAX and head.dtype in dtypes]
    for i, array in zip(some, jax.device_put([found[i] for i in some]), strict=True):  # aligned memory as it is
        found[i] = array
    return found


def _start(origin: int, array: Any) -> bytes:
    """What follows the form."""
    return bytes([origin, DTYPES.index(array.dtype.name), len(array.shape)]) + b"".join(map(unsigned, array.shape))


def _plain(leaf: Any) -> tuple[int, bytes, np.ndarray]:
    """Where a leaf comes from, and itself as a contiguous NumPy array."""
    if type(leaf) in _NUMBERS:
        return PYTHON, b"", np.asarray(leaf)
    origin, generator = (JAX if isinstance(leaf, jax.Array) else NUMPY), b""
    if origin == JAX and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        origin, generator, leaf = KEY, str(jax.random.key_impl(leaf)).encode(), jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return origin, generator, np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)


def _taken_by_jax(dtype: np.dtype) -> bool:
    """Whether arrays come to JAX whole: it cuts 64 bits to 32 unless told otherwise, and not all devices take 6."""
    try:
        return jax.device_put(np.zeros((), dtype)).dtype == dtype
    except (RuntimeError, TypeError):
        return False


def on_device(array: np.ndarray) -> Any:
    """The array as one of JAX, if that takes it whole."""
    return jax.device_put(array) if _taken_by_jax(array.dtype) else array


def _as_given(found: Head, array: np.ndarray) -> Any:
    if found.origin == KEY:
        return jax.random.wrap_key_data(jnp.asarray(array), impl=found.generator)
    return array.item() if found.origin == PYTHON else array


def _coded(array: np.ndarray, effort: coders.Effort) -> Iterator[tuple[int, bytes]]:
    """The forms that take this array."""
    if forms.is_integer(array.dtype):
        yield INTEGERS, _put(coders.encode(forms.integers(array), effort))
        return
    bits = forms.patterns(array)
    few = forms.few_values(bits, array.dtype)
    rows = forms.rows(array.shape)
    if few is not None:
        is_grid, table, codes = few
        yield GRID if is_grid else PALETTE, table + _put(coders.encode(codes.reshape(rows), effort))
        del few, codes  # as much memory as what comes next
    kept: Any = bits[:, 0] != 0 if bits.shape[1] == 1 else bits.any(axis=1)
    zeros = array.size - int(np.count_nonzero(kept))
    if zeros > (array.size * _MANY_ZEROS if effort == "fast" else 0):
        plane = _put(coders.encode(kept.reshape(rows).view(np.uint8), effort))
        yield SPARSE, plane + _by_bytes(bits[kept], array.dtype, (1, array.size - zeros), effort)
    if zeros < array.size / 4:
        yield PLANES, _by_bytes(bits, array.dtype, rows, effort)


def _by_bytes(bits: np.ndarray, dtype: np.dtype, rows: tuple[int, int], effort: coders.Effort) -> bytes:
    offset = forms.exponent_offset(bits, dtype)
    planes = [plane.reshape(rows) for plane in forms.byte_planes(bits, dtype, offset)]
    head = unsigned(offset) if forms.exponent_bits(dtype) else b""
    low = [coders.encode_bytes(plane, effort, None, low=plane is not planes[-2]) for plane in planes[:-1]]
    return head + b"".join(map(_put, [*low, coders.encode_bytes(planes[-1], effort, forms.fraction(dtype), low=False)]))


def _put(coded: tuple[int, bytes]) -> bytes:
    return bytes([coded[0]]) + unsigned(len(coded[1])) + coded[1]


def _plane(reader: Reader, shape: tuple[int, int], decoded: Any = coders.decode) -> Plane:
    number, data = reader.take(1)[0], reader.take(reader.unsigned())
    codes = decoded(number, data, shape)
    return Plane(coders.NAMES[number], len(data), codes)
