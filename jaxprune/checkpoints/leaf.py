"""What every format makes of a file, its leaves, and what is said when it cannot."""

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class CheckpointError(ValueError):
    """A file that is not what it should be, or parameters that a format cannot hold; one line says what to do."""


class Leaf(NamedTuple):
    """One array of a checkpoint, not yet read.

    Attributes:
      name: as in the file, such as ``params/Dense_0/kernel`` or ``encoder.layer.0.weight``.
      shape, dtype: of the array.
      read: gives the array, in host memory, perhaps read-only; reads no other leaf.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array in memory."""
        return self.size * self.dtype.itemsize


Leaves = Mapping[str, Leaf]


def of_array(name: str, array: Any) -> Leaf:
    """A leaf that is in memory already."""
    found = np.asarray(array)
    return Leaf(name, found.shape, found.dtype, lambda: found)


def dtype_of(name: str) -> np.dtype:
    """A dtype by its name, those of ``ml_dtypes`` included; ``CheckpointError`` if it is none of numbers."""
    try:
        found = np.dtype(getattr(jnp, name, name))
    except TypeError as error:
        raise CheckpointError(f"dtype {name[:40]!r} is unknown") from error
    if found.kind in "OSUMm":
        raise CheckpointError(f"dtype {name[:40]!r} holds no numbers")
    return found


def from_file(path: Path, dtype: np.dtype, shape: tuple[int, ...], offset: int) -> np.ndarray:
    """An array whose entries stand in a file, little-endian, from ``offset`` on.

    It is read, not mapped: a map would keep what was read of the file in the memory of the process.
    """
    size = math.prod(shape) * dtype.itemsize
    found = np.fromfile(path, np.uint8, size, offset=offset)
    if len(found) < size:
        raise CheckpointError(f"{path}: it became shorter while it was read; copy it again")
    array = found.view(dtype).reshape(shape)
    return array if sys.byteorder == "little" else array.byteswap()
