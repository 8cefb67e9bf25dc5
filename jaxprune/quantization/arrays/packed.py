"""Codes of a few bits, packed without gaps: on the host, or inside a jitted function.

Code i of a flattened array is bits [i * bits, (i + 1) * bits) of the packed bytes, where bit j is bit j % 8 of byte
j // 8, the lowest first. A code's own lowest bit comes first too. The last byte is filled up with zeros.
"""

import math
from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Either: TypeAlias = Any  # a NumPy or a JAX array

_AT_ONCE = 1 << 16  # codes that the host works on together, in cache
_FEW = 1 << 10  # codes whose single bits are looked at, which takes fewer steps


def pack(codes: Either, bits: int) -> Either:
    """Packs integers of ``bits`` bits, eight of them into ``bits`` bytes.

    A NumPy array is packed on the host, anything else on the device, to the same bytes. Works under ``jit`` (``bits``
    static) and ``vmap``; integers that no bits can hold are cut off under ``jit``.

    Args:
      codes: integers or bools of any shape: all in [0, 2**bits), or all in [-2**(bits-1), 2**(bits-1)), which are
        packed in two's complement.
      bits: width of a code, 1 to 16, static.

    Returns:
      uint8 [ceil(codes.size * bits / 8)].

    Raises:
      ValueError: the bits are not 1 to 16, or a concrete code does not fit; the message names it.
      TypeError: codes that are not integers.

    >>> import numpy as np
    >>> pack(np.array([1, 2, 3]), 4)
    array([33,  3], dtype=uint8)
    >>> pack(np.array([-1, 0, 1]), 2)
    array([19], dtype=uint8)
    """
    bits = _checked(bits)
    codes = codes if isinstance(codes, np.ndarray) else jnp.asarray(codes)
    if not (jnp.issubdtype(codes.dtype, jnp.integer) or codes.dtype == bool):
        raise TypeError(f"codes are integers, not {codes.dtype}")
    if codes.size and not isinstance(codes, Tracer):
        low, high = int(codes.min()), int(codes.max())
        if low < -(2 ** (bits - 1)) or high >= 2**bits or (low < 0 and high >= 2 ** (bits - 1)):
            raise ValueError(f"codes from {low} to {high} do not fit into {bits} bits")
    if isinstance(codes, np.ndarray):
        return pack_host(codes.reshape(-1), bits)
    padding = -codes.size % 8
    lanes = jnp.pad(codes.reshape(-1).astype(jnp.uint32), (0, padding)).reshape(-1, 8)
    packed = jnp.stack(_bytes_of([lanes[:, j] for j in range(8)], bits), axis=-1)
    return packed.astype(jnp.uint8).reshape(-1)[: packed_length(codes.size, bits)]


def unpack(packed: Either, bits: int, shape: int | Sequence[int], *, signed: bool = False) -> Either:
    """The codes that :func:`pack` packed.

    Args:
      packed: uint8 [ceil(n * bits / 8)] for n codes, NumPy (unpacked on the host) or JAX.
      bits: width of a code, 1 to 16, static.
      shape: shape of the codes, static.
      signed: whether the codes are in two's complement, static.

    Returns:
      The codes, in the smallest of uint8, uint16 (``signed``: int8, int16) that holds them.

    Raises:
      ValueError: the bits are not 1 to 16, or there are not as many bytes as the shape needs.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> packed = jax.jit(pack, static_argnums=1)(jnp.array([[1, 7, 0], [5, 6, 2]]), 3)
    >>> unpack(packed, 3, (2, 3))
    Array([[1, 7, 0],
           [5, 6, 2]], dtype=uint8)
    >>> unpack(packed, 3, 6, signed=True)
    Array([ 1, -1,  0, -3, -2,  2], dtype=int8)
    """
    bits = _checked(bits)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    size = math.prod(shape)
    if packed.dtype != np.uint8 or packed.shape != (packed_length(size, bits),):
        needed = f"uint8 [{packed_length(size, bits)}]"
        raise ValueError(f"{size} codes of {bits} bits are {needed}, not {packed.dtype} {list(packed.shape)}")
    unsigned, integers = ("uint8", "int8") if bits <= 8 else ("uint16", "int16")
    if isinstance(packed, np.ndarray):
        codes = unpack_host(packed, bits, size, unsigned)
    else:
        groups = -(-size // 8)
        lanes = jnp.pad(packed, (0, groups * bits - packed.size)).astype(jnp.uint32).reshape(groups, bits)
        codes = jnp.stack(_codes_of([lanes[:, k] for k in range(bits)], bits), axis=-1)
        codes = codes.astype(unsigned).reshape(-1)[:size]
    if signed:
        spare = jnp.iinfo(unsigned).bits - bits
        codes = (codes << spare).astype(integers) >> spare
    return codes.reshape(shape)


def _checked(bits: int) -> int:
    if isinstance(bits, bool) or not isinstance(bits, int | np.integer):
        raise TypeError(f"bits is a Python integer from 1 to 16, not {bits!r}")
    if not 1 <= bits <= 16:
        raise ValueError(f"bits is an integer from 1 to 16, not {bits}")
    return int(bits)


def packed_length(size: int, bits: int) -> int:
    """Bytes of so many codes."""
    return -(-size * bits // 8)


def _bytes_of(codes: list[Either], bits: int) -> list[Either]:
    """Eight lanes of codes, uint32, as ``bits`` lanes of bytes: each byte is made of the codes that reach into it."""
    out: list[Either] = []
    for k in range(bits):
        inside = range(8 * k // bits, min(8, -(-8 * (k + 1) // bits)))
        pieces = [_shifted(codes[j] & np.uint32(2**bits - 1), bits * j - 8 * k) for j in inside]
        out.append(reduce(or_, pieces) & np.uint32(255))
    return out


def _codes_of(lanes: list[Either], bits: int) -> list[Either]:
    """The inverse of ``_bytes_of``."""
    out: list[Either] = []
    for j in range(8):
        pieces = [_shifted(lanes[k], 8 * k - bits * j) for k in range(bits * j // 8, -(-bits * (j + 1) // 8))]
        out.append(reduce(or_, pieces) & np.uint32(2**bits - 1))
    return out


def _shifted(lane: Either, bits: int) -> Either:
    return lane << np.uint32(bits) if bits >= 0 else lane >> np.uint32(-bits)


def pack_host(codes: np.ndarray, bits: int, least: int = 0) -> np.ndarray:
    """``pack`` of a vector less ``least``, in stretches that stay in cache."""
    if codes.size <= _FEW:
        above = codes.astype(np.uint32) - np.uint32(least)
        return np.packbits(above[:, None] >> np.arange(bits, dtype=np.uint32) & 1 > 0, bitorder="little")
    groups = -(-codes.size // 8)
    packed = np.empty((groups, bits), np.uint8)
    for at in range(0, groups, _AT_ONCE // 8):
        stretch = codes[8 * at : 8 * at + _AT_ONCE].astype(np.uint32) - np.uint32(least)
        lanes = np.pad(stretch, (0, -stretch.size % 8)).reshape(-1, 8).T.copy()
        for k, byte in enumerate(_bytes_of(list(lanes), bits)):
            packed[at : at + lanes.shape[1], k] = byte
    return packed.reshape(-1)[: packed_length(codes.size, bits)]


def unpack_host(packed: np.ndarray, bits: int, size: int, dtype: Any, least: int = 0) -> np.ndarray:
    """``size`` codes, each with ``least`` added to its 32 bits, cut to a dtype; in stretches that stay in cache."""
    if size <= _FEW:
        places = np.unpackbits(packed, count=size * bits, bitorder="little").reshape(size, bits)
        return (places @ (np.uint32(1) << np.arange(bits, dtype=np.uint32)) + np.uint32(least)).astype(dtype)
    groups = -(-size // 8)
    codes = np.empty((groups, 8), dtype)
    for at in range(0, groups, _AT_ONCE // 8):
        stretch = packed[bits * at : bits * (at + _AT_ONCE // 8)]
        lanes = np.pad(stretch, (0, -stretch.size % bits)).reshape(-1, bits).T.astype(np.uint32, order="C")
        for j, code in enumerate(_codes_of(list(lanes), bits)):
            codes[at : at + lanes.shape[1], j] = (code + np.uint32(least)).astype(dtype)
    return codes.reshape(-1)[:size]
