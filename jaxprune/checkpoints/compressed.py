"""The small files of this library: leaves are decoded when they are read, and coded one after the other."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.checkpoints.leaf import CheckpointError, Leaf, Leaves
from jaxprune.checkpoints.names import nested
from jaxprune.files import ArtifactError, Compressed, arrays, coders, compress, decoding, records, tree_json
from jaxprune.files import read as open_artifact
from jaxprune.files.container import Stored

NAME = "jaxprune"
SUFFIXES = (".jp", ".jaxprune")
_MARK = b'"jaxprune":"'  # in the header: the metadata, which hold JSON in a string


def recognizes(path: Path, start: bytes) -> bool:
    """Whether it is a safetensors container with this library's metadata, which its header begins with."""
    return path.is_file() and start[8:9] == b"{" and _MARK in start[:4096].replace(b" ", b"")


def read(path: Path) -> dict[str, Leaf]:
    """The leaves; records (a ``QArray``) are the dense arrays that they stand for, random keys their integers."""
    try:
        return leaves_of(open_artifact(path), str(path))
    except ArtifactError as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def leaves_of(opened: Compressed, path: str) -> dict[str, Leaf]:
    """The leaves of what is compressed; ``path`` is for messages."""
    found: dict[str, Leaf] = {}
    for unit in decoding.units(opened.root, opened.stored):
        name, again = unit.node.path or "array", 1
        while name in found:
            again += 1
            name = f"{unit.node.path}#{again}"
        found[name] = _leaf(path, name, unit)
    return found


def write(path: Path, leaves: Leaves) -> None:
    """Codes one leaf after the other without loss; what they take in the file is held in memory, not the arrays."""
    tried = coders.default(sum(leaf.size for leaf in leaves.values()))
    write_compressed(
        path, assemble(leaves, ((name, code(leaf.read(), name, use=tried)) for name, leaf in leaves.items()))
    )


def write_compressed(path: Path, compressed: Compressed) -> None:
    """The bytes of a file."""
    with open(path, "xb") as file:
        file.write(compressed.to_bytes())


def code(array: np.ndarray, name: str, **options: Any) -> Compressed:
    """One leaf, compressed under its name; see :func:`jaxprune.compress`."""
    return compress(nested_paths({name: np.asarray(array)}), **options)


def assemble(order: Iterable[str], parts: Iterable[tuple[str, Compressed]]) -> Compressed:
    """One tree of leaves that were compressed one by one, or some together; ``order`` names them all."""
    coded: dict[str, tuple[tree_json.Node, tuple[Stored, ...]]] = {}
    for name, part in parts:
        node, before = tree_json.find(part.root, name)
        coded[name] = node, part.stored[before : before + sum(1 for _ in tree_json.leaves(node))]
    skeleton = tree_json.outline(nested_paths(dict.fromkeys(order, 0)))

    def filled(node: tree_json.Node) -> tree_json.Node:
        if node.kind is None:
            return coded[node.path][0]
        return node._replace(children=tuple(filled(child) for child in node.children))

    stored = tuple(part for leaf in tree_json.leaves(skeleton) for part in coded[leaf.path][1])
    return Compressed(filled(skeleton), stored)


def tree_order(names: Iterable[str]) -> list[str]:
    """The names in the order of ``jax.tree.leaves`` of the tree that is stored."""
    return [leaf.path for leaf in tree_json.leaves(tree_json.outline(nested_paths(dict.fromkeys(names, 0))))]


def nested_paths(leaves: dict[str, Any]) -> dict[str, Any]:
    """The tree that is stored: cut at ``/`` alone, so that names with dots come back as they were."""
    try:
        return nested(leaves) if any("/" in name for name in leaves) else dict(leaves)
    except CheckpointError:
        return dict(leaves)


def _leaf(path: str, name: str, unit: decoding.Unit) -> Leaf:
    head = arrays.head(unit.parts[0][1].read(arrays.LONGEST_HEAD))
    kind = unit.node.kind or {}
    dtype = np.dtype(getattr(jnp, kind["dtype"])) if "dtype" in kind else head.dtype
    return Leaf(name, head.shape, dtype, partial(_decoded, path, unit))


def _decoded(path: str, unit: decoding.Unit) -> np.ndarray:
    try:
        array = decoding.decode_all([unit], sum(part.size for _, part in unit.parts), None, False)[0]
    except ArtifactError as error:
        raise CheckpointError(f"{path}: {error}; copy the file again") from error
    if records.is_record(array):
        array = records.dense(array)
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return np.asarray(array)
