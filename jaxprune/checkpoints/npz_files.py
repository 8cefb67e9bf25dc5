"""NumPy's .npz archives. A dtype that they have no name for is written as integers in a field of that name.

So ``numpy.load(path)[name]["bfloat16"].view(ml_dtypes.bfloat16)`` is the array, without this library as well.
"""

import io
import math
import threading
import zipfile
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from jaxprune.checkpoints.leaf import CheckpointError, Content, Format, Leaf, Other, dtype_of

_END = ".npy"
_LONGEST_HEADER = 2**14  # bytes, more than NumPy reads


class _Archive(zipfile.ZipFile):
    """An archive that threads may read, one after the other."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.one = threading.Lock()

    def content(self, entry: zipfile.ZipInfo) -> bytes:
        with self.one:
            return self.read(entry)

    def array(self, entry: zipfile.ZipInfo, dtype: np.dtype) -> np.ndarray:
        with self.one, self.open(entry) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
        return array.view(dtype) if array.dtype.kind == "V" else array.astype(dtype, copy=False)


def _recognizes(path: Path, start: bytes) -> bool:
    """A zip archive of .npy files alone, or one that is called so and cannot be opened."""
    if start[:4] not in (b"PK\x03\x04", b"PK\x05\x06") or not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return all(name.endswith(_END) for name in archive.namelist())
    except Exception:  # a damaged archive raises almost anything
        return path.suffix in FORMAT.suffixes


def _read(path: Path, limit: float) -> Content:
    """In the order of the archive; only headers are read. It stays open: reading its directory again takes long."""
    leaves, others = {}, {}
    archive = _Archive(path)
    for entry in archive.infolist():
        name = entry.filename.removesuffix(_END)
        with archive.open(entry) as file:  # a little of it: who knows what a stranger's header expands to
            start = io.BytesIO(file.read(_LONGEST_HEADER))
        shape, stored = _header(start)
        size = entry.file_size - start.tell()
        try:
            dtype = _dtype(stored)
        except CheckpointError as error:
            others[name] = Other(FORMAT.name, str(error), entry.file_size, partial(archive.content, entry))
            continue
        if math.prod(shape) * stored.itemsize != size:
            raise CheckpointError(f"damaged: leaf {name[:80]!r} of shape {shape} has {size} bytes as {dtype}")
        leaves[name] = Leaf(name, shape, dtype, partial(archive.array, entry, dtype))
    return Content(leaves, others=others)


def _write(path: Path, content: Content) -> None:
    """One leaf after the other, uncompressed, as ``numpy.savez`` does."""
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, leaf in content.leaves.items():
            array = np.asanyarray(leaf.read())
            if array.dtype.isbuiltin == 2:  # of ml_dtypes
                integers = np.dtype(f"<u{array.dtype.itemsize}")
                array = array.view(integers).view(np.dtype([(leaf.dtype.name, integers)]))
            with archive.open(name + _END, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
        for name, other in content.others.items():
            archive.writestr(name + _END, other.read())


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise CheckpointError(f"version {version} of the .npy format")
    shape, _, dtype = getattr(np.lib.format, f"read_array_header_{version[0]}_0")(file)
    if min(shape, default=0) < 0:
        raise CheckpointError(f"damaged: an array of shape {shape}")
    return shape, dtype


def _dtype(stored: np.dtype) -> np.dtype:
    """What the numbers are, in the order of bytes of this machine; ``CheckpointError`` if they are none."""
    if stored.names is not None:
        if len(stored.names) != 1:
            raise CheckpointError(f"a table of {', '.join(stored.names)}")
        dtype = dtype_of(stored.names[0])
        if dtype.itemsize != stored.itemsize:
            raise CheckpointError(f"{stored.itemsize} bytes for each {dtype}")
        return dtype
    if stored == np.dtype("V2"):
        return dtype_of("bfloat16")  # what numpy.savez makes of it
    if stored.kind in "OSUMmV":
        raise CheckpointError(f"dtype {stored}, which does not say what numbers it holds")
    return dtype_of(stored.name)


FORMAT = Format("npz", (".npz",), _recognizes, _read, _write)
