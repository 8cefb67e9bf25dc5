"""What every format makes of a file: its leaves by name, flat or nested, and what is said when it cannot."""

import contextlib
import errno
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

#: Of a disk that takes no more.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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


class Other(NamedTuple):
    """An entry whose numbers are not known here, or that holds none, such as text; files of its format can take it.

    Attributes:
      format: the name of its format.
      kind: what it holds, in words.
      nbytes: of the entry in its file.
      read: gives these bytes.
      described: what else its format needs to write it.
    """

    format: str
    kind: str
    nbytes: int
    read: Callable[[], bytes]
    described: Any = None


class Content(NamedTuple):
    """What is in a file: leaves, text that belongs to all of it, and entries that are no leaves; all by name."""

    leaves: Mapping[str, Leaf]
    metadata: Mapping[str, str] = {}
    others: Mapping[str, Other] = {}


class Format(NamedTuple):
    """A format of files or folders.

    Attributes:
      name: what it is called.
      suffixes: of what is written; empty if it is only read.
      recognizes: ``(path, first bytes of a file) -> bool``.
      read: ``(path, most bytes of an array) -> Content``; may raise anything.
      write: ``(path, content)``, one leaf after the other; None if it is only read.
      keeps_metadata: whether a file has a place for them.
      files: all that belong to a path.
    """

    name: str
    suffixes: tuple[str, ...]
    recognizes: Callable[[Path, bytes], bool]
    read: Callable[[Path, float], Content]
    write: Callable[[Path, Content], None] | None = None
    keeps_metadata: bool = False
    files: Callable[[Path], Iterable[Path]] = lambda path: path.rglob("*") if path.is_dir() else [path]


@contextlib.contextmanager
def faults(path: str, name: str | None = None) -> Iterator[None]:
    """Whatever a file makes its reader raise becomes a :class:`CheckpointError` that names it, and the leaf.

    What says nothing of it stays as it is: it is not there, may not be read, a disk is full, a library is missing.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError, ImportError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        said = str(error)
        if not isinstance(error, ValueError) or not said:
            said = f"damaged, or cut short ({type(error).__name__}: {said})"
        leaf = "" if name is None or repr(name) in said else f"leaf {name[:80]!r}: "
        raise CheckpointError(said if said.startswith(path) else f"{path}: {leaf}{said}") from error


def of_array(name: str, array: Any) -> Leaf:
    """A leaf that is in memory already."""
    found = np.asarray(array)
    return Leaf(name, found.shape, found.dtype, lambda: found)


def dtype_of(name: str) -> np.dtype:
    """A dtype by its name, those of ``ml_dtypes`` included; ``CheckpointError`` if it is none of numbers."""
    try:
        found = np.dtype(getattr(jnp, name, name))
    except Exception as error:  # NumPy parses the text
        raise CheckpointError(f"dtype {name[:40]!r} is unknown") from error
    if found.kind in "OSUMm" or (found.kind == "V" and found.isbuiltin != 2):
        raise CheckpointError(f"dtype {name[:40]!r} holds no numbers")
    return found


def from_file(path: Path, dtype: np.dtype, shape: tuple[int, ...], offset: int) -> np.ndarray:
    """An array whose entries stand in a file, little-endian, from ``offset`` on.

    It is read, not mapped: a map would keep what was read of the file in the memory of the process.
    """
    size = math.prod(shape) * dtype.itemsize
    found = np.fromfile(path, np.uint8, size, offset=offset)
    if len(found) < size:
        raise CheckpointError("it became shorter while it was read; copy it again")
    array = found.view(dtype).reshape(shape)
    return array if sys.byteorder == "little" else array.byteswap()


def paths(names: Iterable[str]) -> dict[str, str]:
    """Each name as a path with ``/``, so that ``a.b`` of one file and ``a/b`` of another are the same leaf.

    >>> paths(["encoder.kernel", "encoder.bias"])
    {'encoder.kernel': 'encoder/kernel', 'encoder.bias': 'encoder/bias'}
    """
    names = list(names)
    between = "/" if any("/" in name for name in names) else "."
    return {name: name.replace(between, "/") for name in names}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of dicts from flat names.

    Args:
      leaves: anything by name; all names are cut at ``/``, or at ``.`` if none has a ``/``.

    Raises:
      CheckpointError: one name is the beginning of another, so that no tree can hold both.

    >>> nested({"Dense_0/kernel": 1, "Dense_0/bias": 2})
    {'Dense_0': {'kernel': 1, 'bias': 2}}
    """
    found = paths(leaves)
    taken = {path: name for name, path in found.items()}
    tree: dict[str, Any] = {}
    for name, path in found.items():
        *above, last = path.split("/")
        node = tree
        for i, part in enumerate(above):
            leaf = taken.get("/".join(above[: i + 1]))
            if leaf is not None:
                raise CheckpointError(f"{leaf!r} is a leaf, and {name!r} goes on behind it: such names make no tree")
            node = node.setdefault(part, {})
        node[last] = leaves[name]
    return tree


def grown(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """:func:`nested`, or flat as they are if the names make no tree."""
    try:
        return nested(leaves)
    except CheckpointError:
        return dict(leaves)


def flat(tree: Any, above: Sequence[str] = ()) -> dict[str, Any]:
    """Leaves by path of nested mappings, lists and tuples; a tree that is one leaf is called ``array``.

    >>> flat({"a": {"": 1, "b": [2, 3]}})
    {'a/': 1, 'a/b/0': 2, 'a/b/1': 3}
    """
    if isinstance(tree, Mapping):
        items = list(tree.items())
    elif type(tree) in (list, tuple):  # a leaf may be a named tuple
        items = list(enumerate(tree))
    else:
        return {"/".join(above) if above else "array": tree}
    found: dict[str, Any] = {}
    for key, below in items:
        for path, leaf in flat(below, (*above, str(key))).items():
            if path in found:
                raise CheckpointError(f"two leaves are called {path!r}")
            found[path] = leaf
    return found
