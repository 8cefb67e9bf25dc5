"""The small files of this library: leaves are decoded when they are read, and coded one after the other."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune.checkpoints.leaf import CheckpointError, Leaf, Leaves
from jaxprune.checkpoints.names import nested
from jaxprune.files import Compressed, FormatError, compress, join
from jaxprune.files import read as open_file

NAME = "jaxprune"
SUFFIXES = (".jp", ".jaxprune")
_MARK = b'"jaxprune":"'  # in the header: the metadata, which hold JSON in a string


def recognizes(path: Path, start: bytes) -> bool:
    """Whether it is a safetensors container with this library's metadata, which its header begins with."""
    return path.is_file() and start[8:9] == b"{" and _MARK in start[:4096].replace(b" ", b"")


def read(path: Path) -> dict[str, Leaf]:
    """The leaves; records (a ``QArray``) are the dense arrays that they stand for, random keys their integers."""
    try:
        return leaves_of(open_file(path), str(path))
    except FormatError as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def leaves_of(opened: Compressed, path: str) -> dict[str, Leaf]:
    """The leaves of what is compressed; ``path`` is for messages."""
    found: dict[str, Leaf] = {}
    for leaf in opened.leaves:
        name, again = leaf.path or "array", 1
        while name in found:
            again += 1
            name = f"{leaf.path}#{again}"
        found[name] = Leaf(name, leaf.shape, leaf.dtype, partial(_decoded, path, leaf))
    return found


def write(path: Path, leaves: Leaves) -> None:
    """Codes one leaf after the other without loss; what they take in the file is held in memory, not the arrays."""
    write_compressed(path, assemble(leaves, ((name, code(leaf.read(), name)) for name, leaf in leaves.items())))


def write_compressed(path: Path, compressed: Compressed) -> None:
    """The bytes of a file."""
    path.write_bytes(compressed.to_bytes())


def code(array: np.ndarray, name: str, **options: Any) -> Compressed:
    """One leaf, compressed under its name; see :func:`jaxprune.compress`."""
    return compress(nested_paths({name: np.asarray(array)}), **options)


def assemble(order: Iterable[str], parts: Iterable[tuple[str, Compressed]]) -> Compressed:
    """One tree of leaves that were compressed one by one, or some together; ``order`` names them all."""
    coded = {name: part[name] for name, part in parts}
    return join(nested_paths({name: coded[name] for name in order}))


def tree_order(names: Iterable[str]) -> list[str]:
    """The names in the order of ``jax.tree.leaves`` of the tree that is stored."""
    return jax.tree.leaves(nested_paths({name: name for name in names}))


def nested_paths(leaves: dict[str, Any]) -> dict[str, Any]:
    """The tree that is stored: cut at ``/`` alone, so that names with dots come back as they were."""
    try:
        return nested(leaves) if any("/" in name for name in leaves) else dict(leaves)
    except CheckpointError:
        return dict(leaves)


def _decoded(path: str, leaf: Any) -> np.ndarray:
    try:
        return leaf.read()
    except FormatError as error:
        raise CheckpointError(f"{path}: {error}; copy the file again") from error
