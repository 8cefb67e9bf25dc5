"""Decodes the leaves of a tree, some at once, within a limit that is checked before the first array is made."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.files import arrays, node_kinds, records, tree_json
from jaxprune.files.bytestream import FormatError, naming
from jaxprune.files.container import Stored
from jaxprune.files.tree_json import Node
from jaxprune.host import in_parallel
from jaxprune.quantization.arrays import protocol

_LEAST_LIMIT = 2**30  # bytes that any file may decode to
_LEAST_RATIO = 1000  # times its coded size that any file may decode to


class StoredLeaf(NamedTuple):
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
        return tuple(kind["shape"]) if "shape" in kind else self.heads()[0].shape

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the dense array."""
        kind = self.node.kind or {}
        return jnp.dtype(getattr(jnp, kind["dtype"])) if "dtype" in kind else self.heads()[0].dtype

    def heads(self) -> list[arrays.Head]:
        """What is known of its arrays before they are decoded."""
        found = []
        for path, part in self.parts:
            with naming(f"leaf {path!r}"):
                found.append(arrays.head(part.read(arrays.LONGEST_HEAD)))
        return found

    def read(self, max_bytes: float | None = None) -> np.ndarray:
        """The dense array; of a random key its integers. ``max_bytes`` as in :meth:`Compressed.decompress`."""
        array = decode_all([self], self.nbytes, max_bytes)[0]
        if records.is_record(array):
            array = protocol.dense(array)
        if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        return np.asarray(array)

    def __repr__(self) -> str:
        return f"StoredLeaf({self.path!r}, shape={self.shape}, dtype={self.dtype.name}, nbytes={self.nbytes})"


def leaves_of(root: Node, stored: Sequence[Stored]) -> list[StoredLeaf]:
    """The leaves of a tree, in order; a record is one."""
    remaining = iter(stored)

    def walk(node: Node) -> Iterator[StoredLeaf]:
        if node.kind is None or node_kinds.is_record(node.kind):
            yield StoredLeaf(node, [(leaf.path, next(remaining)) for leaf in tree_json.leaves(node)])
        else:
            for child in node.children:
                yield from walk(child)

    return list(walk(root))


def decode_all(wanted: Sequence[StoredLeaf], coded: int, max_bytes: float | None) -> list[Any]:
    """The array or record of each leaf; ``coded`` is the number of bytes that the whole file has."""
    check_size(wanted, coded, max_bytes)
    return in_parallel(_decoded, wanted)


def check_size(wanted: Sequence[StoredLeaf], coded: int, max_bytes: float | None) -> None:
    """Raises :class:`FormatError` if arrays take more than the limit, which what was made here has not unless asked."""
    if max_bytes is None and all(part.seed is None for leaf in wanted for _, part in leaf.parts):
        return
    limit = max(_LEAST_LIMIT, _LEAST_RATIO * coded) if max_bytes is None else max_bytes
    sizes = [_decoded_bytes(leaf) for leaf in wanted]
    if sum(sizes) > limit:
        most = wanted[int(np.argmax(np.array(sizes, object)))]
        raise FormatError(
            f"the arrays take {sum(sizes)} bytes, most of them leaf {most.path!r}; the limit is {limit}: "
            "give a larger max_bytes if the file can be trusted"
        )


def _decoded_bytes(leaf: StoredLeaf) -> int:
    """What the arrays of a leaf, and the dense array that is made of them, take in memory."""
    total = sum(_volume(head.shape) * head.dtype.itemsize for head in leaf.heads())
    return total if leaf.node.kind is None else total + _volume(leaf.shape) * leaf.dtype.itemsize


def _volume(shape: tuple[int, ...]) -> int:
    return math.prod(max(length, 1) for length in shape)  # an axis of none must not hide a huge one


def _decoded(leaf: StoredLeaf) -> Any:
    found = []
    for path, part in leaf.parts:
        with naming(f"leaf {path!r}"):
            found.append(arrays.decode(arrays.head(part.data())))
    if leaf.node.kind is None:
        return found[0]
    with naming(f"leaf {leaf.path!r}"):
        record = tree_json.rebuild(leaf.node, partial(next, iter(found)))
        records.check(record)
        return protocol.dense(record) if leaf.node.kind.get("dense") else record
