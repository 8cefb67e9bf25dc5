"""Flax's msgpack files: a map of maps, with an extension for arrays. Their places are found first, unread.

As ``flax.serialization.to_bytes`` writes, and ``msgpack_restore`` reads, with arrays of more than a gigabyte in pieces.
"""

import mmap
import os
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxprune.checkpoints import names
from jaxprune.checkpoints.leaf import CheckpointError, Leaf, Leaves, dtype_of, from_file
from jaxprune.host import library

NAME = "msgpack"
SUFFIXES = (".msgpack",)
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # Flax's extension types
_PIECES = "__msgpack_chunked_array__"
_DEEPEST = 64
_SIZES = {
    0xC4: 1,
    0xC5: 2,
    0xC6: 4,
    0xC7: 1,
    0xC8: 2,
    0xC9: 4,
    0xD9: 1,
    0xDA: 2,
    0xDB: 4,
    0xDC: 2,
    0xDD: 4,
    0xDE: 2,
    0xDF: 4,
}  # of lengths
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8} | dict(zip(range(0xCC, 0xD4), (1, 2, 4, 8) * 2, strict=True))


class _Place(NamedTuple):
    """Bytes of the file: an extension of a type, or (type None) a plain value."""

    kind: int | None
    start: int
    stop: int


def recognizes(path: Path, start: bytes) -> bool:
    """Whether it may be one: it begins with a map whose first key is text, or is called so and has an extension."""
    first = start[0] if start else 0
    skipped = 1 if 0x81 <= first <= 0x8F else {0xDE: 3, 0xDF: 5}.get(first, len(start))
    key = start[skipped : skipped + 1]
    text = bool(key) and (0xA0 <= key[0] <= 0xBF or key[0] in (0xD9, 0xDA, 0xDB))
    return path.is_file() and (text or (path.suffix in SUFFIXES and 0xC7 <= first <= 0xD8))


def read(path: Path) -> dict[str, Leaf]:
    """The leaves; ``None`` entries are left out, numbers are arrays of rank 0."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise CheckpointError(f"{path}: an empty file")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        tree, end = _scan(mapped, 0, 0)
        if end != len(mapped):
            raise ValueError(f"{len(mapped) - end} bytes follow its end")
        found = names.flat(_joined(path, mapped, tree))
    except (IndexError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path}: no msgpack file of Flax, or one that was cut short: {error}") from error
    return {name: leaf._replace(name=name) for name, leaf in found.items() if leaf is not None}


def write(path: Path, leaves: Leaves) -> None:
    """Writes one leaf after the other."""
    flax = library("flax.serialization", "flax")
    packer = library("msgpack", "flax").Packer()

    with open(path, "xb") as file:

        def put(node: Any) -> None:
            if isinstance(node, dict):
                file.write(packer.pack_map_header(len(node)))
                for key, below in node.items():
                    file.write(packer.pack(key))
                    put(below)
            else:
                file.write(flax.msgpack_serialize(np.asarray(node.read())))

        put(names.nested(leaves))


def _scan(data: mmap.mmap, at: int, depth: int) -> tuple[Any, int]:
    """The maps and lists from a position on, with a :class:`_Place` for each value; and where they end."""
    if depth > _DEEPEST:
        raise ValueError(f"maps in maps, {_DEEPEST} deep")
    kind, at = data[at], at + 1
    if kind in _SIZES:
        length, at = int.from_bytes(_take(data, at, _SIZES[kind]), "big"), at + _SIZES[kind]
    else:
        length = kind & (0x0F if kind < 0xA0 else 0x1F)
    if 0x80 <= kind <= 0x8F or kind in (0xDE, 0xDF):
        return _scan_map(data, at, length, depth)
    if 0x90 <= kind <= 0x9F or kind in (0xDC, 0xDD):
        items = []
        for _ in range(length):
            item, at = _scan(data, at, depth + 1)
            items.append(item)
        return items, at
    if 0xD4 <= kind <= 0xD8 or kind in (0xC7, 0xC8, 0xC9):
        length = 1 << (kind - 0xD4) if kind >= 0xD4 else length
        code, stop = data[at], at + 1 + length
        return _inside(data, _Place(code, at + 1, stop))
    if 0xA0 <= kind <= 0xBF or kind in (0xD9, 0xDA, 0xDB, 0xC4, 0xC5, 0xC6):
        return _inside(data, _Place(-1, at, at + length))
    if kind <= 0x7F or kind >= 0xE0 or kind in _FIXED:
        return _inside(data, _Place(None, at - 1, at + _FIXED.get(kind, 0)))
    raise ValueError(f"byte {kind:#x} at {at - 1}, which Flax does not write")


def _scan_map(data: mmap.mmap, at: int, length: int, depth: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    for _ in range(length):
        key, at = _scan(data, at, depth + 1)
        if not isinstance(key, _Place) or key.kind not in (-1, None):
            raise ValueError("a key that is no text")
        name = data[key.start : key.stop].decode() if key.kind == -1 else str(_unpack(data, key))
        found[name], at = _scan(data, at, depth + 1)
    return found, at


def _inside(data: mmap.mmap, place: _Place) -> tuple[_Place, int]:
    if place.stop > len(data):
        raise ValueError(f"the file has {len(data):,} bytes, and a value ends at {place.stop:,}")
    return place, place.stop


def _take(data: mmap.mmap, at: int, length: int) -> bytes:
    if at + length > len(data):
        raise ValueError(f"the file has {len(data):,} bytes, and a value ends at {at + length:,}")
    return data[at : at + length]


def _joined(path: Path, data: mmap.mmap, node: Any) -> Any:
    """The tree with a leaf for each array, of one piece or of several."""
    if isinstance(node, dict) and _PIECES in node:
        shape = tuple(int(_unpack(data, part)) for part in node["shape"].values())
        pieces = [_array(path, data, node["chunks"][str(i)]) for i in range(len(node["chunks"]))]
        if len({piece.dtype for piece in pieces}) != 1 or sum(p.size for p in pieces) != int(np.prod(shape)):
            raise ValueError("an array whose pieces do not fit together")
        read = partial(_concatenated, pieces, shape)
        return Leaf("", shape, pieces[0].dtype, read)
    if isinstance(node, dict):
        return {key: _joined(path, data, below) for key, below in node.items()}
    if isinstance(node, list):
        return [_joined(path, data, below) for below in node]
    return _array(path, data, node)


def _concatenated(pieces: list[Leaf], shape: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([piece.read() for piece in pieces]).reshape(shape)


def _array(path: Path, data: mmap.mmap, place: _Place) -> Any:
    """The leaf of an array, or None for what holds no numbers."""
    if place.kind in (_ARRAY, _SCALAR):
        return _lazy(path, data, place)
    if place.kind == _COMPLEX:
        value: Any = complex(*(_unpack(data, part) for part in _scan(data, place.start, 0)[0]))
    elif place.kind is None:
        value = _unpack(data, place)
    else:
        return None
    array = np.asarray(value)
    return None if value is None else Leaf("", (), array.dtype, lambda: array)


def _lazy(path: Path, data: mmap.mmap, place: _Place) -> Leaf:
    """The extension holds a list of the shape, the dtype's name and the bytes; these come last."""
    shape, at = _scan(data, place.start + 1, 0)
    name, at = _scan(data, at, 0)
    if type(shape) is not list or not all(isinstance(part, _Place) for part in [*shape, name]):
        raise ValueError("an array without a shape or a dtype")
    dtype = dtype_of(data[name.start : name.stop].decode())
    sizes = tuple(int(_unpack(data, part)) for part in shape)
    number = int(np.prod(sizes, dtype=object))
    begin = place.stop - number * dtype.itemsize
    if data[place.start] != 0x93 or not at < begin <= at + 5:
        raise ValueError(f"an array of shape {sizes} and dtype {dtype} in {place.stop - at} bytes")

    return Leaf("", sizes, dtype, partial(from_file, path, dtype, sizes, begin))


def _unpack(data: mmap.mmap, place: _Place) -> Any:
    return library("msgpack", "flax").unpackb(data[place.start : place.stop])
