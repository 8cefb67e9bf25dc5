"""Checkpoints in several formats, leaf by leaf: opened without reading the arrays, written one array after the other.

A format is one :class:`Format` and a place in ``FORMATS``; reading goes by what is in a file, writing by the suffix.
"""

import os
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxprune.base import Layout
from jaxprune.checkpoints import compressed, flax_msgpack, from_torch, npz_files, orbax_folders, safetensors_files
from jaxprune.checkpoints.leaf import CheckpointError, Content, Format, Leaf, Other, faults, nested, of_array
from jaxprune.files.arrays import on_device
from jaxprune.host import limit, written_whole

#: In the order in which a file is offered to them.
FORMATS: tuple[Format, ...] = (
    orbax_folders.FORMAT,
    compressed.FORMAT,
    safetensors_files.FORMAT,
    safetensors_files.INDEX,
    npz_files.FORMAT,
    flax_msgpack.FORMAT,
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
      file_bytes: bytes on the disk, of all files that it is made of.
      leaves: by name, in the order of the file; nothing of them is read yet.
      metadata: text that belongs to the whole file, by key.
      others: entries that are no numbers that are known here, by name.
    """

    path: Path
    format: str
    file_bytes: int
    leaves: Mapping[str, Leaf]
    metadata: Mapping[str, str]
    others: Mapping[str, Other]


def open(path: str | os.PathLike[str], *, max_bytes: float | None = None) -> Checkpoint:
    """Opens a checkpoint: names, shapes and dtypes are there at once, each array when its ``read()`` is called.

    Args:
      path: a ``.safetensors`` or ``.npz`` file, a ``.safetensors.index.json`` beside the files that it names, a msgpack
        file of Flax, an Orbax folder, or a file of :func:`jaxprune.save`; told apart by what is in it.
      max_bytes: the most bytes that one array may take in memory, for a small file may stand for large ones. None for
        1 GiB or 1,000 times the size of the file, whichever is more.

    Returns:
      A :class:`Checkpoint`; the file must stay as it is as long as that is used.

    Raises:
      CheckpointError: no such file; it is foreign, cut short or damaged. So does ``read()`` of a leaf. ImportError: a
        format needs a library that is not installed.

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
    known = next((candidate for candidate in FORMATS if candidate.recognizes(found, start)), None)
    if known is None:
        raise CheckpointError(f"{found}: {_why_not(found, start)}")
    with faults(str(found)):
        size = _bytes(found, known)
        most = limit(max_bytes, size)
        content = known.read(found, most)
    leaves = {name: leaf._replace(read=partial(_read, found, leaf, most)) for name, leaf in content.leaves.items()}
    return Checkpoint(found, known.name, size, leaves, content.metadata, content.others)


def read_checkpoint(
    path: str | os.PathLike[str], *, torch_to_flax: bool = False, layout: Layout = None, max_bytes: float | None = None
) -> dict[str, Any]:
    """Reads a checkpoint of any format that is known here as a tree of dicts.

    One array is read after the other, so that little more than the tree is in memory. What :func:`jaxprune.save` wrote
    is dense here, in dicts; :func:`jaxprune.load` leaves codes codes, and trees what they were.

    Args:
      path: a ``.safetensors`` file, the ``.safetensors.index.json`` of one in several files, ``.npz``, a msgpack file
        of Flax, an Orbax folder, or a ``.jp``; told apart by what is in it.
      torch_to_flax: whether names and axes of PyTorch become those of Flax: ``weight`` becomes ``kernel``, with
        outputs last (Linear ``[out, in]``, convolutions ``[out, in, *window]``), ``embedding`` (a ``weight`` below a
        name with ``emb``), or ``scale`` (rank 1: norms). Heads stay in one axis, and other names as they are.
      layout: where no rule knows which axes of a ``weight`` are outputs; see :mod:`jaxprune.layout`.
      max_bytes: the most bytes that one array may take; None for 1 GiB or 1,000 times the file, whichever is more.

    Returns:
      Nested dicts, names cut at ``/``, or at ``.`` if none has a ``/``. JAX arrays; NumPy arrays of dtypes that JAX
      would change, such as int64. Entries that are no arrays are left out with a warning.

    Raises:
      ValueError: no such file, a foreign or damaged one; names that make no tree; axes that no rule knows. ImportError:
        a format needs a library that is not installed, with the command that installs it.

    >>> import numpy as np, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write(folder + "/torch.safetensors", {"fc1.weight": np.ones((2, 3)), "fc1.bias": np.zeros(2)})
    ...     params = read_checkpoint(folder + "/torch.safetensors", torch_to_flax=True)
    ...     {name: leaf.shape for name, leaf in params["fc1"].items()}
    {'kernel': (3, 2), 'bias': (2,)}
    """
    opened = open(path, max_bytes=max_bytes)
    if opened.others:
        kinds = ", ".join(f"{name} ({other.kind})" for name, other in list(opened.others.items())[:3])
        warnings.warn(f"{path}: {len(opened.others)} entries are no arrays and left out: {kinds}", stacklevel=2)
    leaves = from_torch.as_flax(opened.leaves, layout) if torch_to_flax else opened.leaves
    nested(leaves)  # fails before anything is read
    return nested({name: on_device(leaf.read()) for name, leaf in leaves.items()})


def _read(path: Path, leaf: Leaf, most: float) -> np.ndarray:
    """The array of a leaf, if it is not too large and is what was promised."""
    with faults(str(path), leaf.name):
        if leaf.nbytes > most:
            said = f"{leaf.nbytes:,} bytes, more than {most:,.0f}"
            raise CheckpointError(f"{said}; raise max_bytes if you trust the file")
        array = leaf.read()
        if (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
            raise CheckpointError(f"damaged: it is {array.dtype} of shape {array.shape}, not {leaf.dtype} {leaf.shape}")
        return array


def write(
    path: str | os.PathLike[str],
    leaves: Mapping[str, Any],
    *,
    metadata: Mapping[str, str] = MappingProxyType({}),
    others: Mapping[str, Other] = MappingProxyType({}),
    force: bool = False,
) -> int:
    """Writes leaves to a checkpoint, in the format that its suffix names, one after the other; all or nothing.

    Args:
      path: ends in .safetensors, .npz, .msgpack, .orbax (a folder), .jp or .jaxprune.
      leaves: by name; :class:`Leaf`, as :func:`open` gives them, or arrays. Formats of trees cut the names at ``/``, or
        at ``.`` if none has a ``/``.
      metadata: text that belongs to the whole file, by key; left out where the format has no place for it.
      others: of :class:`Checkpoint`, written as they are; of the same format.
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
    assert chosen.write is not None  # as it has a suffix
    known = {name: leaf if isinstance(leaf, Leaf) else of_array(name, leaf) for name, leaf in leaves.items()}
    with written_whole(check_output(path, force=force), over_folder=force) as beside:
        chosen.write(beside, Content(known, metadata, held(path, others)))
    return _bytes(Path(path), chosen)


def format_for(path: str | os.PathLike[str]) -> Format:
    """The format that a suffix names."""
    suffix = Path(path).suffix
    known = {suffix: candidate for candidate in FORMATS for suffix in candidate.suffixes}
    if suffix not in known:
        raise CheckpointError(f"{path}: no format has the suffix {suffix!r}; there are {', '.join(sorted(known))}")
    return known[suffix]


def held(path: str | os.PathLike[str], others: Mapping[str, Other], *, skip: bool = False) -> dict[str, Other]:
    """Those of the entries that the format of a file can hold; the rest raises, unless they are to be skipped."""
    chosen = format_for(path).name
    lost = {name: other for name, other in others.items() if other.format != chosen}
    if lost and not skip:
        name, other = next(iter(lost.items()))
        said = f"{len(lost)} entries that are not known here, such as {name!r} ({other.kind})"
        raise CheckpointError(f"{path}: {chosen} cannot hold {said}: --skip-unreadable leaves them out")
    return {name: other for name, other in others.items() if name not in lost}


def check_output(path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """The path, if it can be written; checked before long work too."""
    target = Path(path)
    if not target.parent.is_dir():
        raise CheckpointError(f"{target}: there is no folder {target.parent}; make it first")
    if target.exists() and not force:
        raise CheckpointError(f"{target} exists; choose another name, or --force to replace it")
    if target.is_dir() and not orbax_folders.is_checkpoint(target):
        raise CheckpointError(f"{target} is a folder and no checkpoint that is known here, which nothing replaces")
    return target


def _bytes(path: Path, chosen: Format) -> int:
    """What all files of a checkpoint take on the disk."""
    return sum(file.stat().st_size for file in chosen.files(path) if file.is_file())


def _why_not(path: Path, start: bytes) -> str:
    """What a file seems to be instead."""
    if not start:
        return "an empty file"
    if any(path.suffix in candidate.suffixes for candidate in FORMATS):
        return f"its content is not that of a {path.suffix} file: damaged, cut short or of another kind"
    if start[:4] == b"PK\x03\x04":
        return "a zip archive that is no .npz, perhaps one of PyTorch: load it there and save it as safetensors"
    return "no checkpoint that is known here: .safetensors (or its index), .npz, msgpack of Flax, Orbax or jaxprune"
