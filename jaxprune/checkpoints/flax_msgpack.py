"""Flax's msgpack files: a map of maps, with an extension for arrays. Their places are found first, unread.

As ``flax.serialization.to_bytes`` writes, and ``msgpack_restore`` reads, with arrays of more than a gigabyte in pieces.
"""

import mmap
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxprune.checkpoints.leaf import Content, Format, Leaf, dtype_of, flat, from_file, nested, of_array
from jaxprune.host import library

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # Flax's extension types
_PIECES = "__msgpack_chunked_array__"
_DEEPEST = 64
_EXTENSIONS = {0xC7: 3, 0xC8: 4, 0xC9: 6} | dict.fromkeys(range(0xD4, 0xD9), 2)  # first byte: bytes before the data
_BLOCK = 2**20  # bytes that are read at a time; what is longer is not read


def _recognizes(path: Path, start: bytes) -> bool:
    """Whether it may be one: it begins with a map whose first key is text, or is called so and has an extension."""
    first = start[0] if start else 0
    skipped = 1 if 0x81 <= first <= 0x8F else {0xDE: 3, 0xDF: 5}.get(first, len(start))
    key = start[skipped : skipped + 1]
    text = bool(key) and (0xA0 <= key[0] <= 0xBF or key[0] in (0xD9, 0xDA, 0xDB))
    return path.is_file() and (text or (path.suffix in FORMAT.suffixes and 0xC7 <= first <= 0xD8))


def _read(path: Path, limit: float) -> Content:
    """``None`` entries are left out, numbers are arrays of rank 0."""
    with open(path, "rb") as file:
        opened = _File(path, file)
        found = flat(opened.node())
        if rest := len(opened.data) - opened.place():
            raise ValueError(f"{rest} bytes follow the end of a msgpack file")
    return Content({name: leaf._replace(name=name) for name, leaf in found.items() if leaf is not None})


def _write(path: Path, content: Content) -> None:
    """One leaf after the other."""
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

        put(nested(content.leaves))


class _File:
    """A file and the stream that goes through it; the first byte of what comes next tells what it is."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.go_on(0)

    def go_on(self, place: int) -> None:
        """From a place in the file, with a new stream, for a stream reads what it skips."""
        unpacker = library("msgpack", "flax").Unpacker
        self.base = self.file.seek(place)
        self.stream = unpacker(self.file, read_size=_BLOCK, max_buffer_size=0, strict_map_key=False)

    def place(self) -> int:
        """Of what comes next in the file."""
        return self.base + self.stream.tell()

    def node(self, depth: int = 0) -> Any:
        """The next map or list of leaves, or leaf, or ``None`` for what holds no numbers."""
        if depth > _DEEPEST:
            raise ValueError(f"maps in maps, {_DEEPEST} deep")
        start = self.place()
        kind = self.data[start]
        if 0x80 <= kind <= 0x8F or kind in (0xDE, 0xDF):
            below = {self._key(): self.node(depth + 1) for _ in range(self.stream.read_map_header())}
            return _joined(below) if _PIECES in below else below
        if 0x90 <= kind <= 0x9F or kind in (0xDC, 0xDD):
            return [self.node(depth + 1) for _ in range(self.stream.read_array_header())]
        if kind in _EXTENSIONS:
            return self._extension(start + _EXTENSIONS[kind], kind)
        value = self.stream.unpack()
        return of_array("", value) if isinstance(value, bool | int | float) else None

    def _key(self) -> str:
        key = self.stream.unpack()
        if not isinstance(key, str | int):
            raise ValueError("a key that is no text")
        return str(key)

    def _extension(self, start: int, kind: int) -> Leaf | None:
        """An array is a list of its shape, its dtype's name and its bytes; these come last and stay unread."""
        head, code = self.data[start - _EXTENSIONS[kind] + 1 : start - 1], self.data[start - 1]
        stop = start + (int.from_bytes(head, "big") if head else 1 << (kind - 0xD4))
        if stop > len(self.data):
            raise ValueError("an array ends beyond it")
        self.stream.skip() if stop - start < _BLOCK else self.go_on(stop)
        if code not in (_ARRAY, _COMPLEX, _SCALAR):
            return None
        inner = library("msgpack", "flax").Unpacker()
        inner.feed(self.data[start : min(stop, start + 1024)])
        parts = inner.read_array_header()
        if code == _COMPLEX:
            return of_array("", complex(inner.unpack(), inner.unpack()))
        shape, dtype = tuple(inner.unpack()), dtype_of(inner.unpack())
        begin = stop - int(np.prod(shape, dtype=object)) * dtype.itemsize
        if parts != 3 or not 1 < begin - start - inner.tell() <= 5 or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"an array of shape {shape} and dtype {dtype} in {stop - start} bytes")
        return Leaf("", shape, dtype, partial(from_file, self.path, dtype, shape, begin))


def _joined(node: dict[str, Any]) -> Leaf:
    """The leaf of an array that was written in pieces."""
    shape = tuple(int(size.read()) for size in node["shape"].values())
    pieces: list[Leaf] = [node["chunks"][str(i)] for i in range(len(node["chunks"]))]
    if len({piece.dtype for piece in pieces}) != 1 or sum(p.size for p in pieces) != int(np.prod(shape, dtype=object)):
        raise ValueError("an array whose pieces do not fit together")
    return Leaf("", shape, pieces[0].dtype, lambda: np.concatenate([p.read() for p in pieces]).reshape(shape))


FORMAT = Format("msgpack", (".msgpack",), _recognizes, _read, _write)
