"""The small files of this library: leaves are decoded when they are read, and coded one after the other."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune.checkpoints.leaf import Content, Format, Leaf, grown
from jaxprune.files import Compressed, compress, join
from jaxprune.files import read as open_file
from jaxprune.host import distinct

_MARK = b'"jaxprune":"'  # in the header: the metadata, which hold JSON in a string


def _recognizes(path: Path, start: bytes) -> bool:
    """A safetensors container with this library's metadata, which its header begins with."""
    return path.is_file() and start[8:9] == b"{" and _MARK in start[:4096].replace(b" ", b"")


def _read(path: Path, limit: float) -> Content:
    """Records (a ``QArray``) are the dense arrays that they stand for, random keys their integers."""
    opened = open_file(path)
    bare = "" if "" in opened.root.keys else "array"  # what a tree that is one array is called
    names = distinct(leaf.path or bare for leaf in opened.leaves)
    rows = zip(names, opened.leaves, strict=True)
    found = {name: Leaf(name, leaf.shape, leaf.dtype, partial(leaf.read, limit)) for name, leaf in rows}
    return Content(found, opened.metadata)


def _write(path: Path, content: Content) -> None:
    """Codes one leaf after the other without loss; what they take in the file is held in memory, not the arrays."""
    parts = {name: part for name, leaf in content.leaves.items() for name, part in code({name: leaf.read()}).items()}
    write_compressed(path, assemble(parts, content.metadata))


def write_compressed(path: Path, compressed: Compressed) -> None:
    """The bytes of a file."""
    with path.open("wb") as file:
        file.writelines(compressed.pieces())


def code(leaves: Mapping[str, np.ndarray], **options: Any) -> dict[str, Compressed]:
    """Leaves compressed together, each by itself; see :func:`jaxprune.compress`."""
    made = compress(stored_tree(leaves), **options)
    parts = (Compressed(leaf.node, tuple(stored for _, stored in leaf.parts)) for leaf in made.leaves)
    return dict(zip(tree_order(leaves), parts, strict=True))


def assemble(parts: Mapping[str, Compressed], metadata: Mapping[str, str]) -> Compressed:
    """One tree of leaves that were compressed one by one, or some together; what a file says beside them."""
    return replace(join(stored_tree(parts)), metadata=dict(metadata))


def tree_order(names: Iterable[str]) -> list[str]:
    """The names in the order of ``jax.tree.leaves`` of the tree that is stored."""
    return jax.tree.leaves(stored_tree({name: name for name in names}))


def stored_tree(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The tree that is stored: cut at ``/`` alone, so that names with dots come back as they were."""
    return grown(leaves) if any("/" in name for name in leaves) else dict(leaves)


FORMAT = Format("jaxprune", (".jp", ".jaxprune"), _recognizes, _read, _write, True)
