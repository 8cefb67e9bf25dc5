"""Orbax checkpoints: a folder, whose metadata name the leaves.

Orbax writes them. To restore one leaf it looks at the metadata of all, so the arrays are read as it stores them, each
by itself: by TensorStore, from one database (OCDBT) or a folder a leaf.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxprune.checkpoints.leaf import CheckpointError, Content, Format, Leaf, dtype_of, faults, nested
from jaxprune.host import library

_NODES = 10**8  # bytes of the database's index that are kept, which else is read again for each leaf
_TREE, _MANIFEST = "_METADATA", "manifest.ocdbt"


def _read(path: Path, limit: float) -> Content:
    """The leaves, as the metadata list them; text and empty entries are left out."""
    folder = _item(path).absolute()
    try:
        listed = json.loads((folder / _TREE).read_bytes())
        entries = [(entry["key_metadata"], entry["value_metadata"]) for entry in listed["tree_metadata"].values()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FileNotFoundError) as error:
        raise CheckpointError("a damaged Orbax checkpoint, or one of something that is no tree of arrays") from error
    base = {"driver": "file", "path": f"{folder}/"}
    if (folder / _MANIFEST).exists():
        base = {"driver": "ocdbt", "base": base, "cache_pool": "cache_pool#nodes"}
    store = library("tensorstore", "orbax-checkpoint")  # what Orbax reads with
    driver = "zarr3" if listed.get("use_zarr3") else "zarr"
    context = store.Context({"cache_pool#nodes": {"total_bytes_limit": _NODES}})
    pending = {}  # thousands are opened side by side
    for key, value in entries:
        if value.get("skip_deserialize") or value["value_type"] == "string":
            continue
        keys = [str(part["key"]) for part in key]
        name = "/".join(keys) if keys else "array"
        if name in pending:
            raise CheckpointError(f"two leaves are called {name!r}")
        place = {**base, "path": f"{base.get('path', '')}{'.'.join(keys)}/"}
        pending[name] = store.open({"driver": driver, "kvstore": place}, read=True, open=True, context=context)
    leaves = {}
    for name, future in pending.items():
        with faults(str(path), name):
            array = future.result()
            dtype = dtype_of(array.dtype.numpy_dtype.name)
            leaves[name] = Leaf(name, tuple(array.shape), dtype, lambda array=array: array.read().result())
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
    with contextlib.ExitStack() as afterwards:
        afterwards.callback(logger.setLevel, logger.level)
        afterwards.callback(setattr, sys, "unraisablehook", sys.unraisablehook)
        logger.setLevel(logging.CRITICAL)
        sys.unraisablehook = lambda *_: None
        yield


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
    return any((folder / mark).exists() for mark in (_TREE, _MANIFEST))


FORMAT = Format("orbax", (".orbax",), lambda path, start: path.is_dir(), _read, _write)
