"""What a file holds: a safetensors container with one tensor of bytes a leaf, small leaves together in one.

``docs/format.md`` describes it.
"""

import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune.files import tree_json
from jaxprune.files.bytestream import FormatError, Reader, unsigned
from jaxprune.files.tree_json import Node

VERSION = 2
_KEY = "jaxprune"  # of the metadata
_SMALL = 4096  # bytes; smaller leaves share a tensor
_TOGETHER = "*"  # the name of that tensor
_CHECKSUM = 4  # bytes, of each leaf


class Stored(NamedTuple):
    """The bytes of one leaf, in memory or still in a file.

    Attributes:
      read: gives the first so many bytes (None: all) that :func:`jaxprune.files.arrays.encode` made, and a checksum
        behind them.
      size: number of bytes in a file, with the checksum.
      seed: what the checksum starts from; None where there is none yet.
    """

    read: Callable[[int | None], memoryview]
    size: int
    seed: int | None

    def data(self) -> memoryview:
        """All the bytes; raises :class:`FormatError` if they are not those that were written."""
        data = self.read(None)
        if self.seed is None:
            return data
        if len(data) < _CHECKSUM or _checksum(data[:-_CHECKSUM], self.seed) != data[-_CHECKSUM:]:
            raise FormatError("the checksum is wrong: it, or the header, was damaged")
        return data[:-_CHECKSUM]


def in_memory(data: bytes | memoryview, seed: int | None = None) -> Stored:
    """Bytes that are there."""
    return Stored(lambda number: memoryview(data)[:number], len(data) + (_CHECKSUM if seed is None else 0), seed)


def tensors(root: Node, payloads: Sequence[memoryview]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What a safetensors file is written from: arrays of bytes, and the metadata."""
    marks = [int(len(data) >= _SMALL) for data in payloads]
    header = json.dumps({"version": VERSION, **tree_json.to_json(root, marks)}, separators=(",", ":"))
    summed = [b"".join([data, _checksum(data, seed)]) for data, seed in zip(payloads, _seeds(header), strict=False)]
    together = [data for data, own in zip(summed, marks, strict=True) if not own]
    found = {name: data for name, data, own in zip(_names(root), summed, marks, strict=True) if own}
    if together:
        found[_TOGETHER] = b"".join([unsigned(len(data)) for data in together] + together)
    return {name: np.frombuffer(data, np.uint8) for name, data in found.items()}, {_KEY: header}


def parse(file: Any) -> tuple[Node, list[Stored]]:
    """The tree and the leaves of an open safetensors file; large leaves are read when they are asked for."""
    header = (file.metadata() or {}).get(_KEY)
    if header is None:
        raise FormatError("no header of jaxprune in it; it may be a plain safetensors file")
    described = _loads(header)
    version = described.get("version") if isinstance(described, dict) else None
    if type(version) is not int or version != VERSION:
        raise FormatError(f"format version {str(version)[:20]}; this jaxprune reads and writes version {VERSION} alone")
    root, marks = tree_json.from_json(described)
    names = _names(root)
    wanted = {name for name, own in zip(names, marks, strict=True) if own} | ({_TOGETHER} if 0 in marks else set())
    if wanted != set(file.keys()):
        raise FormatError(f"the tree and the tensors differ in {sorted(wanted ^ set(file.keys()))[:3]}")
    for name in wanted:
        part = file.get_slice(name)
        if part.get_dtype() != "U8" or len(part.get_shape()) != 1:
            raise FormatError(f"tensor {name[:80]!r} is no vector of bytes")
    small = iter(_split(file.get_slice(_TOGETHER), len(marks) - sum(marks)) if 0 in marks else [])
    found = [
        _in_file(file, name, seed) if own else in_memory(next(small), seed)
        for name, own, seed in zip(names, marks, _seeds(header), strict=False)
    ]
    return root, found


def _in_file(file: Any, name: str, seed: int) -> Stored:
    part = file.get_slice(name)
    return Stored(lambda number: memoryview(part[:number]), part.get_shape()[0], seed)


def _split(part: Any, number: int) -> list[memoryview]:
    """The leaves that share a tensor."""
    reader = Reader(memoryview(part[:]))
    if number > reader.left:
        raise FormatError(f"{reader.left} bytes for {number} small leaves")
    lengths = [reader.unsigned() for _ in range(number)]
    found = [reader.take(length) for length in lengths]
    reader.end()
    return found


def _loads(text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise FormatError("a name occurs twice in the tree")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the header of jaxprune is no JSON: {error}") from error


def _names(root: Node) -> list[str]:
    """The names of the leaves' tensors: their paths, made different where they are equal."""
    taken = {_TOGETHER, "__metadata__"}
    found = []
    for leaf in tree_json.leaves(root):
        name, again = leaf.path, 1
        while name in taken:
            again += 1
            name = f"{leaf.path}#{again}"
        taken.add(name)
        found.append(name)
    return found


def _seeds(header: str) -> Iterator[int]:
    """What the checksum of each leaf starts from: so that it covers the header and the position as well."""
    whole = zlib.crc32(header.encode())
    return (zlib.crc32(str(position).encode(), whole) for position in itertools.count())


def _checksum(data: memoryview, seed: int) -> bytes:
    return zlib.crc32(data, seed).to_bytes(_CHECKSUM, "little")
