"""The checkpoint file of a sweep: the finished results, and fingerprints of what they were computed from.

The file is an uncompressed ``.npz`` without pickle: a JSON header, and the raw bytes of every result leaf (NumPy's own
format cannot name bfloat16 and its like). It is replaced as a whole, so a crash leaves the old file or the new one.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import host

_FORMAT = 1
_MIN_SECONDS_BETWEEN_SAVES = 1.0
_MAX_SHARE_OF_TIME = 0.1
_OTHER = {
    "format": "by an incompatible version of jaxprune",
    "settings": "for other settings",
    "args": "for other arguments",
    "result": "for a function with other outputs",
}


def describe(settings: Any, args: Any, results: Any) -> dict[str, Any]:
    """What a checkpoint must agree on before it is continued: digests of the inputs, and the layout of the results."""
    leaves = jax.tree_util.tree_leaves_with_path(results)
    layout = [[jax.tree_util.keystr(path), leaf.dtype.name, list(leaf.shape)] for path, leaf in leaves]
    return {"format": _FORMAT, "settings": digest(settings), "args": digest(args), "result": layout}


def digest(tree: Any) -> str:
    """SHA-256 of the paths, shapes, dtypes and values of the leaves (no values of arrays that other hosts hold)."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        aval = jax.typeof(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {aval.shape} {aval.dtype}\n".encode())
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            sha.update(_raw(np.ascontiguousarray(leaf)).data)
    return sha.hexdigest()


def _raw(array: np.ndarray) -> np.ndarray:
    """The memory of a C-contiguous array as a flat uint8 view."""
    return array.reshape(-1).view(np.uint8)


def load(path: str, description: dict[str, Any], results: Any) -> int:
    """Fills ``results`` (host buffers) with what the file holds and returns how many settings that is; 0 if no file.

    Raises:
      FileNotFoundError: no folder for the file (better now than after hours of evaluation).
      ValueError: the file is damaged, or was written for something else than ``description``.
    """
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise FileNotFoundError(f"the folder of checkpoint {path} does not exist")
    if not os.path.exists(path):
        return 0
    with open(path, "rb") as file:
        try:
            stored = np.lib.npyio.NpzFile(file, allow_pickle=False)
            header = json.loads(stored["arr_0"].tobytes())
            done = int(header["done"])
            leaves = [stored[f"arr_{i}"] for i in range(1, 1 + len(header["result"]))]
        except Exception as error:  # a damaged archive raises almost anything
            raise ValueError(f"{path} is no sweep checkpoint, or is damaged: delete it to start over") from error
    for key, other in _OTHER.items():
        if header.get(key) != description[key]:
            raise ValueError(f"checkpoint {path} was written {other}: delete it or give another path to start over")
    for buffer, leaf in zip(jax.tree.leaves(results), leaves, strict=True):
        target = _raw(buffer[:done])
        if leaf.shape != target.shape:
            raise ValueError(f"checkpoint {path} is damaged ({leaf.size} bytes, not {target.size}): delete it")
        target[:] = leaf
    return done


def save(path: str, description: dict[str, Any], results: Any, done: int) -> None:
    """Replaces the file as a whole by one of the first ``done`` results."""
    header = np.frombuffer(json.dumps(description | {"done": done}).encode(), np.uint8)
    leaves = [_raw(leaf[:done]) for leaf in jax.tree.leaves(results)]
    with host.written_whole(path) as beside, open(beside, "wb") as file:
        np.savez(file, header, *leaves)


@contextlib.contextmanager
def keeping(path: str, description: dict[str, Any], results: Any, done: int) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with the number of finished settings; saves them now and then, and at any exit."""
    saved, due = done, time.monotonic() + _MIN_SECONDS_BETWEEN_SAVES

    def keep(now_done: int) -> None:
        nonlocal done, saved, due
        done = now_done
        start = time.monotonic()
        if start < due:
            return
        save(path, description, results, done)
        # Every save writes all results so far: large ones are saved less often, so that saving stays a small share.
        now = time.monotonic()
        saved, due = done, now + max(_MIN_SECONDS_BETWEEN_SAVES, (now - start) / _MAX_SHARE_OF_TIME)

    try:
        yield keep
    finally:
        if done > saved:
            save(path, description, results, done)
