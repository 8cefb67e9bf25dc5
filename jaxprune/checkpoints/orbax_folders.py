"""Orbax checkpoints: a folder, whose metadata name the leaves. Each leaf is restored alone."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune.checkpoints.leaf import CheckpointError, Content, Format, Leaf, dtype_of, flat, nested
from jaxprune.host import library

_MARKS = ("_METADATA", "manifest.ocdbt")


def _read(path: Path, limit: float) -> Content:
    """The leaves, as the metadata list them; text and empty entries are left out."""
    folder = _item(path)
    ocp = library("orbax.checkpoint", "orbax-checkpoint")
    tree = ocp.PyTreeCheckpointer().metadata(folder.absolute()).item_metadata
    if tree is None:
        raise CheckpointError("a damaged Orbax checkpoint, or one of something that is no tree of arrays")
    found, treedef = jax.tree.flatten(getattr(tree, "tree", tree))
    positions = flat(jax.tree.unflatten(treedef, range(len(found))))
    leaves = {}
    for name, i in positions.items():
        if i is not None and getattr(found[i], "dtype", None) is not None:
            dtype, read = dtype_of(np.dtype(found[i].dtype).name), partial(_array, folder, treedef, i)
            leaves[name] = Leaf(name, tuple(found[i].shape), dtype, read)
    return Content(leaves)


def _write(path: Path, content: Content) -> None:
    """All leaves at once, as Orbax does: they are in memory together."""
    ocp = library("orbax.checkpoint", "orbax-checkpoint")
    store = library("tensorstore", "orbax-checkpoint")  # what Orbax writes with
    for name, leaf in content.leaves.items():
        if not leaf.size:
            raise CheckpointError(f"leaf {name!r} has no entries, which Orbax does not store; write .safetensors")
        try:
            store.dtype(leaf.dtype.name)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"leaf {name!r}: {leaf.dtype} does not go into Orbax; write .npz") from error
    tree = nested({name: np.array(leaf.read()) for name, leaf in content.leaves.items()})
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
        raise CheckpointError(f"holds several checkpoints; name one, such as {path / inside[-1]}")
    raise CheckpointError("a folder, but no Orbax checkpoint; name the file in it")


def _is_item(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in _MARKS)


def _array(folder: Path, treedef: Any, position: int) -> np.ndarray:
    """One leaf."""
    ocp = library("orbax.checkpoint", "orbax-checkpoint")
    wanted = [ocp.PLACEHOLDER] * treedef.num_leaves
    wanted[position] = 0
    kinds = treedef.unflatten([ocp.RestoreArgs(restore_type=np.ndarray)] * treedef.num_leaves)
    args = ocp.args.PyTreeRestore(item=treedef.unflatten(wanted), restore_args=kinds)
    return np.asarray(jax.tree.leaves(ocp.PyTreeCheckpointer().restore(folder.absolute(), args=args))[position])


FORMAT = Format("orbax", (".orbax",), lambda path, start: path.is_dir(), _read, _write)
