"""Orbax checkpoints: a folder, whose metadata name the leaves.

Restoring one leaf takes as long as looking at the metadata of all, so small neighbours are restored together and kept
until others are asked for: what is read of many leaves grows with their number, not with its square.
"""

import contextlib
import logging
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune.checkpoints.leaf import CheckpointError, Content, Format, Leaf, dtype_of, flat, nested
from jaxprune.host import library

_TOGETHER, _MOST_GROUPS = 2**26, 64  # bytes that are restored at once, or more if that made too many groups
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
    shaped = {
        name: i for name, i in positions.items() if i is not None and getattr(found[i], "dtype", None) is not None
    }
    leaves = {
        name: Leaf(name, tuple(found[i].shape), dtype_of(np.dtype(found[i].dtype).name), lambda: np.empty(0))
        for name, i in shaped.items()
    }
    array = _arrays(folder, treedef, {shaped[name]: leaf.nbytes for name, leaf in leaves.items()})
    return Content({name: leaf._replace(read=partial(array, shaped[name])) for name, leaf in leaves.items()})


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
    with _quiet():
        try:
            ocp.PyTreeCheckpointer().save(path.absolute(), tree)
        except Exception as error:
            _clear(path)
            if number := re.search(r"os_error_code='(\d+)'", str(error)):  # TensorStore's says it in its text
                raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
            raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what threads of Orbax print of faults that are raised here as well."""
    logger = logging.getLogger("absl")
    before = logger.level, sys.unraisablehook
    logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda *_: None
    try:
        yield
    finally:
        logger.setLevel(before[0])
        sys.unraisablehook = before[1]


def _clear(path: Path) -> None:
    """Removes what was written: again and again, for threads of Orbax go on for a moment after one has failed."""
    none = 0
    for _ in range(100):
        left = [folder for folder in path.parent.iterdir() if folder.name.startswith(path.name)]
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)
        none = 0 if left else none + 1
        if none == 3:
            return
        time.sleep(0.05)


def _item(path: Path) -> Path:
    """The folder of the tree itself: a manager keeps it in a folder for each step and item."""
    if is_checkpoint(path):
        return path
    below = [folder for folder in sorted(path.iterdir()) if folder.is_dir()]
    items = [folder for folder in below if is_checkpoint(folder)]
    if len(items) == 1:
        return items[0]
    steps = [folder.name for folder in below if any(is_checkpoint(item) for item in folder.iterdir() if item.is_dir())]
    inside = [folder.name for folder in items] or steps
    if inside:
        raise CheckpointError(f"holds several checkpoints; name one, such as {path / inside[-1]}")
    raise CheckpointError("a folder, but no Orbax checkpoint; name the file in it")


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is one checkpoint, and no folder of such."""
    return any((folder / mark).exists() for mark in _MARKS)


def _arrays(folder: Path, treedef: Any, sizes: dict[int, int]) -> Callable[[int], np.ndarray]:
    """What gives the array at a position; ``sizes`` are the bytes of all."""
    room, groups, used = max(_TOGETHER, sum(sizes.values()) // _MOST_GROUPS), {}, 0
    for i, size in sizes.items():
        groups[i], used = used // room, used + size
    lock = threading.Lock()

    @lru_cache(maxsize=2)
    def restored(group: int) -> dict[int, np.ndarray]:
        return _restored(folder, treedef, [i for i in groups if groups[i] == group])

    def array(position: int) -> np.ndarray:
        with lock:
            try:
                return restored(groups[position])[position]
            except Exception:  # perhaps of a neighbour
                return _restored(folder, treedef, [position])[position]

    return array


def _restored(folder: Path, treedef: Any, positions: list[int]) -> dict[int, np.ndarray]:
    ocp = library("orbax.checkpoint", "orbax-checkpoint")
    wanted = [ocp.PLACEHOLDER] * treedef.num_leaves
    for i in positions:
        wanted[i] = 0
    kinds = treedef.unflatten([ocp.RestoreArgs(restore_type=np.ndarray)] * treedef.num_leaves)
    args = ocp.args.PyTreeRestore(item=treedef.unflatten(wanted), restore_args=kinds)
    found = jax.tree.leaves(ocp.PyTreeCheckpointer().restore(folder.absolute(), args=args))
    return {i: np.asarray(found[i]) for i in positions}


FORMAT = Format("orbax", (".orbax",), lambda path, start: path.is_dir(), _read, _write)
