"""Orbax checkpoints: a folder, whose metadata name the leaves. Each leaf is restored alone."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune.checkpoints import names
from jaxprune.checkpoints.leaf import CheckpointError, Leaf, Leaves, dtype_of
from jaxprune.host import library

NAME = "orbax"
SUFFIXES = (".orbax",)
_MARKS = ("_METADATA", "manifest.ocdbt")


def recognizes(path: Path, start: bytes) -> bool:
    """Whether it is a folder."""
    return path.is_dir()


def read(path: Path) -> dict[str, Leaf]:
    """The leaves, as the metadata list them; text and empty entries are left out."""
    folder = _item(path)
    ocp = library("orbax.checkpoint", "orbax-checkpoint")
    try:
        tree = ocp.PyTreeCheckpointer().metadata(folder.absolute()).item_metadata
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}: a damaged Orbax checkpoint: {error}") from error
    if tree is None:
        raise CheckpointError(f"{folder}: a damaged Orbax checkpoint, or one of something that is no tree of arrays")
    tree = getattr(tree, "tree", tree)
    found, treedef = jax.tree.flatten(tree)
    positions = names.flat(jax.tree.unflatten(treedef, range(len(found))))
    leaves = {}
    for name, i in positions.items():
        if i is not None and getattr(found[i], "dtype", None) is not None:
            dtype, read = dtype_of(np.dtype(found[i].dtype).name), partial(_read, folder, treedef, i)
            leaves[name] = Leaf(name, tuple(found[i].shape), dtype, read)
    return leaves


def write(path: Path, leaves: Leaves) -> None:
    """Writes all leaves at once, as Orbax does: they are in memory together."""
    ocp = library("orbax.checkpoint", "orbax-checkpoint")
    empty = [name for name, leaf in leaves.items() if not leaf.size]
    if empty:
        raise CheckpointError(f"leaf {empty[0]!r} has no entries, which Orbax does not store; write .safetensors")
    store = library("tensorstore", "orbax-checkpoint")  # what Orbax writes with
    for name, leaf in leaves.items():
        try:
            store.dtype(leaf.dtype.name)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"leaf {name!r}: {leaf.dtype} does not go into Orbax; write .npz") from error
    tree = names.nested({name: np.array(leaf.read()) for name, leaf in leaves.items()})
    ocp.PyTreeCheckpointer().save(path.absolute(), tree)


def _item(path: Path) -> Path:
    """The folder of the tree itself: a manager keeps it in a folder for each step and item."""
    if _is_item(path):
        return path
    below = [folder for folder in sorted(path.iterdir()) if folder.is_dir()]
    items = [folder for folder in below if _is_item(folder)]
    if len(items) == 1:
        return items[0]
    steps = [folder.name for folder in below if any(_is_item(item) for item in folder.iterdir() if item.is_dir())]
    inside = [folder.name for folder in items] or steps
    if inside:
        raise CheckpointError(f"{path}: holds several checkpoints; name one, such as {path / inside[-1]}")
    raise CheckpointError(f"{path}: a folder, but no Orbax checkpoint; name the file in it")


def _is_item(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in _MARKS)


def _read(folder: Path, treedef: Any, position: int) -> np.ndarray:
    """One leaf."""
    ocp = library("orbax.checkpoint", "orbax-checkpoint")
    wanted = [ocp.PLACEHOLDER] * treedef.num_leaves
    wanted[position] = 0
    kinds = treedef.unflatten([ocp.RestoreArgs(restore_type=np.ndarray)] * treedef.num_leaves)
    args = ocp.args.PyTreeRestore(item=treedef.unflatten(wanted), restore_args=kinds)
    try:
        return np.asarray(jax.tree.leaves(ocp.PyTreeCheckpointer().restore(folder.absolute(), args=args))[position])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: an array is missing or damaged: {error}") from error
