"""What a file holds: a safetensors container with one tensor of bytes a leaf, small leaves together in one.

``docs/format.md`` describes it.
"""

import itertools
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxprune.files import tree_json
from jaxprune.files.bytestream import FormatError, Reader, unsigned
from jaxprune.files.tree_json import Node
from jaxprune.host import distinct

VERSION = 3
_KEY = "jaxprune"  # of the metadata
_SMALL = 4096  # bytes; smaller leaves share a tensor
_TOGETHER = "*"  # the name of that tensor
_RESERVED = "__metadata__"  # what safetensors has no tensor by
_CHECKSUM = 4  # bytes, of each leaf


class Stored(NamedTuple):
    """The bytes of one leaf, in memory or still in a file.

    Attributes:
      part: what :func:`jaxprune.files.arrays.encode` made and a checksum: bytes, or what gives them by slices.
      size: number of bytes in a file, with the checksum.
      seed: what the checksum starts from; None where there is none yet, as the bytes were made here.
    """

    part: Any
    size: int
    seed: int | None

    def read(self, number: int) -> memoryview:
        """The first so many bytes, or all."""
        return memoryview(self.part[: min(number, self.size)])

    def data(self) -> memoryview:
        """All the bytes; raises :class:`FormatError` if they are not those that were written."""
        data = self.read(self.size)
        if self.seed is None:
            return data
        if len(data) < _CHECKSUM or _checksum(data[:-_CHECKSUM], self.seed) != data[-_CHECKSUM:]:
            raise FormatError("the checksum is wrong: it, or the header, was damaged")
        return data[:-_CHECKSUM]


def in_memory(data: bytes) -> Stored:
    """Bytes that were made here."""
    return Stored(data, len(data) + _CHECKSUM, None)


def pieces(root: Node, payloads: Sequence[memoryview], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """The bytes of a file, one after another: so that large leaves need not be copied."""
    text, marks, head, _ = _headers(root, [len(data) + _CHECKSUM for data in payloads], metadata)
    leaves = [(data, _checksum(data, seed)) for data, seed in zip(payloads, _seeds(text), strict=False)]
    own = [leaf for leaf, mark in zip(leaves, marks, strict=True) if mark]
    small = [leaf for leaf, mark in zip(leaves, marks, strict=True) if not mark]
    lengths = (unsigned(len(data) + _CHECKSUM) for data, _ in small)
    together = [b"".join([*lengths, *itertools.chain(*small)])] if small else []
    return [len(head).to_bytes(8, "little"), head, *itertools.chain(*own), *together]


def file_size(root: Node, sizes: Sequence[int], metadata: Mapping[str, str]) -> int:
    """The bytes of the file of leaves that take so many each, with their checksums."""
    _, _, head, length = _headers(root, sizes, metadata)
    return 8 + len(head) + length


def _headers(root: Node, sizes: Sequence[int], metadata: Mapping[str, str]) -> tuple[str, list[int], bytes, int]:
    """The header of this library, which leaves have a tensor of their own, the header of all, and what follows it."""
    marks = [int(size - _CHECKSUM >= _SMALL) for size in sizes]
    described = {"metadata": dict(metadata)} if metadata else {}
    text = json.dumps({"version": VERSION, **described, **tree_json.to_json(root, marks)}, separators=(",", ":"))
    own = (size for size, mark in zip(sizes, marks, strict=True) if mark)
    tensors = dict(zip(_names(root, marks), own, strict=True))
    if 0 in marks:
        small = (size for size, mark in zip(sizes, marks, strict=True) if not mark)
        tensors[_TOGETHER] = sum(len(unsigned(size)) + size for size in small)
    header: dict[str, Any] = {_RESERVED: {_KEY: text}}
    end = 0
    for name, length in tensors.items():
        begin, end = end, end + length
        header[name] = {"dtype": "U8", "shape": [length], "data_offsets": [begin, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    return text, marks, head + b" " * (-len(head) % 8), end


def parse(file: Any) -> tuple[Node, list[Stored], dict[str, str]]:
    """The tree, the leaves and the metadata of an open safetensors file; large leaves are read when asked for."""
    header = (file.metadata() or {}).get(_KEY)
    if header is None:
        raise FormatError(
            "a plain safetensors file, without jaxprune's header: jaxprune.read_checkpoint(path) reads it"
        )
    described = _loads(header)
    version = described.get("version") if isinstance(described, dict) else None
    if type(version) is not int or version != VERSION:
        raise FormatError(f"format version {str(version)[:20]}; this jaxprune reads and writes version {VERSION} alone")
    metadata = described.get("metadata", {})
    if not isinstance(metadata, dict) or not all(type(text) is str for text in metadata.values()):
        raise FormatError("metadata that are no texts")
    root, marks = tree_json.from_json(described, len(header))
    tensors, names = {name: file.get_slice(name) for name in file.keys()}, _names(root, marks)
    wanted = set(names) | ({_TOGETHER} if 0 in marks else set())
    if wanted != tensors.keys():
        raise FormatError(f"the tree and the tensors differ in {min(wanted ^ tensors.keys())[:80]!r}")
    for name, part in tensors.items():
        if part.get_dtype() != "U8" or len(part.get_shape()) != 1:
            raise FormatError(f"tensor {name[:80]!r} is no vector of bytes")
    small = ((data, len(data)) for data in (_split(tensors[_TOGETHER], marks.count(0)) if 0 in marks else ()))
    large = ((tensors[name], *tensors[name].get_shape()) for name in names)
    rows = zip(marks, _seeds(header), strict=False)
    return root, [Stored(*next(large if own else small), seed) for own, seed in rows], metadata


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


def _names(root: Node, marks: Sequence[int]) -> list[str]:
    """The names of the tensors of leaves with one of their own: their paths, made different where they are equal."""
    large = (leaf.path for leaf, own in zip(tree_json.leaves(root), marks, strict=True) if own)
    return distinct(large, {_TOGETHER, _RESERVED})


def _seeds(header: str) -> Iterator[int]:
    """What the checksum of each leaf starts from: so that it covers the header and the position as well."""
    whole = zlib.crc32(header.encode())
    return (zlib.crc32(str(position).encode(), whole) for position in itertools.count())


def _checksum(data: memoryview, seed: int) -> bytes:
    return zlib.crc32(data, seed).to_bytes(_CHECKSUM, "little")
