"""Compressed parameters: a tree of leaves that are decoded when they are asked for, within a limit checked before."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Params
from jaxprune.files import arrays, container, records, tree_json
from jaxprune.files.bytestream import FormatError, naming
from jaxprune.files.container import Stored
from jaxprune.files.report import SizeReport, leaf_size
from jaxprune.files.tree_json import Node
from jaxprune.host import in_parallel, limit
from jaxprune.quantization.arrays import protocol


@dataclass(frozen=True, eq=False, repr=False)
class StoredLeaf:
    """A leaf, or a record in several parts that stands for one, which is decoded when it is read.

    Attributes:
      node: where it is in the tree, and what it is.
      parts: the path and the bytes of each of its arrays.
    """

    node: Node
    parts: list[tuple[str, Stored]]

    @property
    def path(self) -> str:
        """Where it is; "" if it is all there is."""
        return self.node.path

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return sum(part.size for _, part in self.parts)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense array."""
        kind = self.node.kind or {}
        return tuple(kind["shape"]) if "shape" in kind else self.heads[0].shape

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the dense array."""
        kind = self.node.kind or {}
        return jnp.dtype(getattr(jnp, kind["dtype"])) if "dtype" in kind else self.heads[0].dtype

    @cached_property
    def heads(self) -> list[arrays.Head]:
        """What is known of its arrays before they are decoded."""
        return self.each(lambda part: arrays.head(part.read(arrays.LONGEST_HEAD)))

    def decoded(self) -> list[tuple[arrays.Head, np.ndarray]]:
        """Its arrays, each with its head."""
        return self.each(lambda part: (found := arrays.head(part.data()), arrays.decode(found)))

    def each(self, work: Callable[[Stored], Any]) -> list[Any]:
        """``work(part)`` for each part; whatever goes wrong is a :class:`FormatError` that names it."""
        return [naming(f"leaf {path!r}")(work)(part) for path, part in self.parts]

    def read(self, max_bytes: float | None = None) -> np.ndarray:
        """The dense array; of a random key its integers. ``max_bytes`` as in :meth:`Compressed.decompress`."""
        check_size([self], self.nbytes, max_bytes)
        array = _assembled(self, [array for _, array in self.decoded()])
        return np.asarray(protocol.dense(array) if records.is_record(array) else array)

    def __repr__(self) -> str:
        return f"StoredLeaf({self.path!r}, shape={self.shape}, dtype={self.dtype.name}, nbytes={self.nbytes})"


def check_size(wanted: Sequence[StoredLeaf], coded: int, max_bytes: float | None) -> None:
    """Raises :class:`FormatError` if arrays take more than the limit, which what was made here has not unless asked.

    ``coded`` is the number of bytes that the whole file has.
    """
    if max_bytes is None and all(part.seed is None for leaf in wanted for _, part in leaf.parts):
        return
    sizes, allowed = [_decoded_bytes(leaf) for leaf in wanted], limit(max_bytes, coded)
    if sum(sizes) > allowed:
        most = wanted[int(np.argmax(np.array(sizes, object)))]
        said = f"the arrays take {sum(sizes)} bytes, most of them leaf {most.path!r}; the limit is {allowed}"
        raise FormatError(f"{said}: give a larger max_bytes if the file can be trusted")


def _decoded_bytes(leaf: StoredLeaf) -> int:
    """What the arrays of a leaf, and the dense array that is made of them, take in memory."""
    total = sum(_volume(head.shape) * head.dtype.itemsize for head in leaf.heads)
    return total if leaf.node.kind is None else total + _volume(leaf.shape) * leaf.dtype.itemsize


def _volume(shape: tuple[int, ...]) -> int:
    return math.prod(max(length, 1) for length in shape)  # an axis of none must not hide a huge one


def _assembled(leaf: StoredLeaf, parts: list[Any]) -> Any:
    """The record of the parts, or the array that it stands for; of what is no record its only part."""
    if leaf.node.kind is None:
        return parts[0]
    with naming(f"leaf {leaf.path!r}"):
        record = tree_json.rebuild(leaf.node, partial(next, iter(parts)))
        records.check(record)
        return protocol.dense(record) if leaf.node.kind.get("dense") else record


@dataclass(frozen=True, eq=False, repr=False)
class Compressed:
    """Parameters in few bytes, made by :func:`compress` or opened by :func:`jaxprune.files.read`.

    ``compressed["Dense_0"]`` is a leaf or a subtree alone, compressed as it is here; nothing is decoded.

    Attributes:
      root: the structure of the tree.
      stored: the bytes of each array.
      metadata: texts by name that the file holds beside, such as those of a safetensors file that it was made of.
    """

    root: Node
    stored: tuple[Stored, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def leaves(self) -> list[StoredLeaf]:
        """The leaves in the order of ``jax.tree.leaves``: path, shape, dtype, nbytes, and ``read()``."""
        remaining, nodes = iter(self.stored), tree_json.leaves(self.root, whole=True)
        return [StoredLeaf(node, [(part.path, next(remaining)) for part in tree_json.leaves(node)]) for node in nodes]

    @cached_property
    def nbytes(self) -> int:
        """The size in bytes of the file that :func:`jaxprune.save` writes, with its headers, tables and checksums."""
        return container.file_size(self.root, [part.size for part in self.stored], self.metadata)

    def without_bytes(self) -> "Compressed":
        """What tells its size, alone or in a :func:`join` of several, and keeps nothing that could be decoded."""
        return replace(self, stored=tuple(part._replace(part=b"") for part in self.stored))

    def to_bytes(self) -> bytes:
        """The file itself."""
        return b"".join(self.pieces())

    def pieces(self) -> list[bytes | memoryview]:
        """The file in pieces, one after another, of which large ones are no copies."""
        return container.pieces(self.root, [part.data() for part in self.stored], self.metadata)

    def __getitem__(self, path: str) -> "Compressed":
        before, pending = 0, [self.root]
        while pending:
            node = pending.pop()
            boxes = len(node.children) == 1 and node.children[0].path == path
            if node.path == path and not boxes:
                last = before + sum(1 for _ in tree_json.leaves(node))
                return Compressed(node, self.stored[before:last], self.metadata)
            before += node.kind is None
            pending.extend(reversed(node.children))
        some = [leaf.path for leaf in self.leaves[:20]]
        raise ValueError(f"there is no leaf {path!r}; the first of those that are there: {some}")

    def decompress(self, leaf: str | None = None, *, max_bytes: int | None = None, like: Params = None) -> Params:
        """The parameters, bit for bit as they were coded; leaves decode in parallel.

        Args:
          leaf: the path of one leaf, or of a subtree, which alone is read and decoded. None for everything.
          max_bytes: the most bytes that the arrays may take; working memory is a small multiple of it. None for 1 GiB
            or 1,000 times the coded size, whichever is more.
          like: a tree of the structure that comes back, for nodes that a file cannot name safely (a ``NamedTuple``, a
            class of one's own); its leaves are not looked at.

        Returns:
          JAX arrays where JAX arrays were given, NumPy arrays and Python numbers where those were. An array of 64 bits
          is a NumPy array as long as JAX has ``jax_enable_x64`` off, which would cut it to 32.

        Raises:
          FormatError: damaged or made-up bytes, or arrays of more than ``max_bytes``; it names the leaf.
          ValueError: there is no such leaf; ``like`` has another structure, or is needed and was not given.

        >>> from jaxprune.files import compress
        >>> compress({"kernel": jax.numpy.zeros(4), "step": 7}).decompress()
        {'kernel': Array([0., 0., 0., 0.], dtype=float32), 'step': 7}
        """
        some = self if leaf is None else self[leaf]
        if like is not None and tree_json.outline(like) != tree_json.collapsed(some.root, dense_only=True):
            raise ValueError(f"like has the structure {jax.tree.structure(like)}, which is not that of the file")
        check_size(some.leaves, self._stored_bytes, max_bytes)
        found = in_parallel(StoredLeaf.decoded, some.leaves, nbytes=lambda leaf: leaf.nbytes)
        given = iter(arrays.as_given([part for parts in found for part in parts]))
        leaves = [_assembled(leaf, [next(given) for _ in leaf.parts]) for leaf in some.leaves]
        if like is not None:
            return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(leaves))
        return tree_json.rebuild(tree_json.collapsed(some.root), partial(next, iter(leaves)))

    def report(self, *, max_bytes: int | None = None) -> SizeReport:
        """What takes how many bytes, leaf by leaf: ``print`` it, or read its rows. ``max_bytes`` as above."""
        check_size(self.leaves, self._stored_bytes, max_bytes)
        return SizeReport(tuple(map(leaf_size, self.leaves)), self.nbytes)

    def __reduce__(self) -> tuple[Any, ...]:
        parts = tuple(container.in_memory(bytes(part.data())) for part in self.stored)
        return Compressed, (self.root, parts, dict(self.metadata))

    def __repr__(self) -> str:
        return f"Compressed({len(self.leaves)} leaves, {self._stored_bytes:,} bytes)"

    @property
    def _stored_bytes(self) -> int:
        return sum(part.size for part in self.stored)
