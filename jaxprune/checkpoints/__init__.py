"""Checkpoints in several formats, leaf by leaf: opened without reading the arrays, written one array after the other.

A format is one module with ``NAME``, ``SUFFIXES``, ``recognizes(path, start)``, ``read(path)`` and ``write(path,
leaves)``, and a place in ``FORMATS``; reading goes by what is in a file, writing by the suffix. Without suffixes it is
only read; one of several files lists them by ``files(path)``.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from jaxprune.checkpoints import (
    compressed,
    flax_msgpack,
    npz_files,
    orbax_folders,
    safetensors_files,
    sharded_safetensors,
)
from jaxprune.checkpoints.leaf import CheckpointError, Leaf, of_array
from jaxprune.checkpoints.names import nested as nested
from jaxprune.host import written_whole

#: In the order in which a file is offered to them.
FORMATS: tuple[ModuleType, ...] = (
    orbax_folders,
    compressed,
    safetensors_files,
    sharded_safetensors,
    npz_files,
    flax_msgpack,
)

_PICKLE = "a pickle, which may run code when it is read: load it where it is from and save it as safetensors"
_FOREIGN = {  # how some files begin that are not read here
    **{b"\x80" + bytes([protocol]): _PICKLE for protocol in range(2, 6)},
    b"\x89HDF": "an HDF5 file: load it where it is from and save it as .npz or safetensors",
    b"GGUF": "a GGUF file, which is not read here",
    b"version https://git-lfs": "the stand-in for a large file that was not fetched: fetch it with git lfs pull",
}


class Checkpoint(NamedTuple):
    """What :func:`open` returns.

    Attributes:
      path: of the file or folder.
      format: "safetensors", "safetensors index", "npz", "msgpack", "orbax" or "jaxprune".
      leaves: by name, in the order of the file; nothing of them is read yet.
      file_bytes: bytes on the disk, of all files that it is made of.
    """

    path: Path
    format: str
    leaves: Mapping[str, Leaf]
    file_bytes: int


def open(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a checkpoint: names, shapes and dtypes are there at once, each array when its ``read()`` is called.

    Args:
      path: a ``.safetensors`` or ``.npz`` file, a ``.safetensors.index.json`` beside the files that it names, a msgpack
        file of Flax, an Orbax folder, or a file of :func:`jaxprune.save`; told apart by what is in it.

    Returns:
      A :class:`Checkpoint`; the file must stay as it is as long as that is used.

    Raises:
      CheckpointError: no such file; it is foreign, cut short or damaged. ImportError: a format needs a library that is
        not installed.

    >>> import numpy as np, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(folder + "/weights.npz", **{"Dense_0/kernel": np.ones((2, 3)), "step": np.int32(7)})
    ...     opened = open(folder + "/weights.npz")
    ...     opened.format, opened.leaves["Dense_0/kernel"].shape, opened.leaves["step"].read()
    ('npz', (2, 3), array(7, dtype=int32))
    """
    found = Path(path)
    if not found.exists():
        raise CheckpointError(f"{found}: no such file or folder")
    start = b""
    if found.is_file():
        with found.open("rb") as file:
            start = file.read(2**16)
    for mark, kind in _FOREIGN.items():
        if start.startswith(mark):
            raise CheckpointError(f"{found}: {kind}")
    for candidate in FORMATS:
        if candidate.recognizes(found, start):
            return Checkpoint(found, candidate.NAME, candidate.read(found), _bytes(found, candidate))
    raise CheckpointError(f"{found}: {_why_not(found, start)}")


def write(path: str | os.PathLike[str], leaves: Mapping[str, Any], *, force: bool = False) -> int:
    """Writes leaves to a checkpoint, in the format that its suffix names, one after the other; all or nothing.

    Args:
      path: ends in .safetensors, .npz, .msgpack, .orbax (a folder), .jp or .jaxprune.
      leaves: by name; :class:`Leaf`, as :func:`open` gives them, or arrays. Formats of trees cut the names at ``/``, or
        at ``.`` if none has a ``/``.
      force: replace what is there.

    Returns:
      Bytes on the disk.

    Raises:
      CheckpointError: an unknown suffix, a path that exists, a dtype or names that the format cannot hold. OSError.

    >>> import numpy as np, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write(folder + "/weights.safetensors", {"kernel": np.eye(2)})
    ...     open(folder + "/weights.safetensors").leaves["kernel"].read().tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    chosen = format_for(path)
    known = {name: leaf if isinstance(leaf, Leaf) else of_array(name, leaf) for name, leaf in leaves.items()}
    with written_whole(check_output(path, force=force)) as beside:
        chosen.write(beside, known)
    return _bytes(Path(path), chosen)


def format_for(path: str | os.PathLike[str]) -> ModuleType:
    """The format that a suffix names."""
    suffix = Path(path).suffix
    known = {suffix: candidate for candidate in FORMATS for suffix in candidate.SUFFIXES}
    if suffix not in known:
        raise CheckpointError(f"{path}: no format has the suffix {suffix!r}; there are {', '.join(sorted(known))}")
    return known[suffix]


def check_output(path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """The path, if it can be written; checked before long work too."""
    target = Path(path)
    if not target.parent.is_dir():
        raise CheckpointError(f"{target}: there is no folder {target.parent}; make it first")
    if target.exists() and not force:
        raise CheckpointError(f"{target} exists; choose another name, or --force to replace it")
    return target


def _bytes(path: Path, chosen: ModuleType) -> int:
    """What all files of a checkpoint take on the disk."""
    files = chosen.files(path) if hasattr(chosen, "files") else path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _why_not(path: Path, start: bytes) -> str:
    """What a file seems to be instead."""
    if not start:
        return "an empty file"
    if path.suffix == ".npz" and start[:2] == b"PK":
        return "no .npz archive, or one that was cut short; copy it again"
    if any(path.suffix in candidate.SUFFIXES for candidate in FORMATS):
        return f"its content is not that of a {path.suffix} file: damaged, or of another kind"
    if start[:4] == b"PK\x03\x04":
        return "a zip archive that is no .npz, perhaps one of PyTorch: load it there and save it as safetensors"
    return "no checkpoint that is known here: .safetensors (or its index), .npz, msgpack of Flax, Orbax or jaxprune"
