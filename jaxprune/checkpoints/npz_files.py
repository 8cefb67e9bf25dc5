"""NumPy's .npz archives. A dtype that they have no name for is written as integers in a field of that name.

So ``numpy.load(path)[name]["bfloat16"].view(ml_dtypes.bfloat16)`` is the array, without this library as well.
"""

import tokenize
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from jaxprune.checkpoints.leaf import CheckpointError, Leaf, Leaves, dtype_of

NAME = "npz"
SUFFIXES = (".npz",)
_END = ".npy"
# What zipfile, and NumPy's parser of headers, make of damaged bytes.
_FAULTS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, SyntaxError, tokenize.TokenError)


def recognizes(path: Path, start: bytes) -> bool:
    """Whether it is one: a zip archive of .npy files alone."""
    if start[:4] not in (b"PK\x03\x04", b"PK\x05\x06") or not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return all(name.endswith(_END) for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def read(path: Path) -> dict[str, Leaf]:
    """The leaves, in the order of the archive; only their headers are read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(_END): _leaf(path, archive, name) for name in archive.namelist()}
    except _FAULTS as error:
        raise CheckpointError(f"{path}: no .npz archive, or one that was cut short: {error}; copy it again") from error


def write(path: Path, leaves: Leaves) -> None:
    """Writes one leaf after the other, uncompressed, as ``numpy.savez`` does."""
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, leaf in leaves.items():
            array = np.asanyarray(leaf.read())
            if array.dtype.isbuiltin == 2:  # of ml_dtypes
                integers = np.dtype(f"<u{array.dtype.itemsize}")
                array = array.view(integers).view(np.dtype([(leaf.dtype.name, integers)]))
            with archive.open(name + _END, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _leaf(path: Path, archive: zipfile.ZipFile, name: str) -> Leaf:
    with archive.open(name) as file:
        shape, stored = _header(path, name, file)
    where = f"{path}: leaf {name.removesuffix(_END)!r}"
    fields = list(stored.names or ())
    if fields:
        if len(fields) > 1:
            raise CheckpointError(f"{where} is a table of {', '.join(fields)}, not an array of numbers")
        dtype = dtype_of(fields[0])
        if dtype.itemsize != stored.itemsize:
            raise CheckpointError(f"{where} has {stored.itemsize} bytes for each {dtype}")
    elif stored == np.dtype("V2"):
        dtype = dtype_of("bfloat16")  # what numpy.savez makes of it
    elif stored.kind in "OSUMmV":
        raise CheckpointError(f"{where} has dtype {stored}, which does not say what numbers it holds")
    else:
        dtype = dtype_of(stored.name)  # in the order of this machine
    return Leaf(name.removesuffix(_END), shape, dtype, partial(_read, path, name, dtype))


def _header(path: Path, name: str, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the .npy format")
        shape, _, dtype = getattr(np.lib.format, f"read_array_header_{version[0]}_0")(file)
    except (ValueError, *_FAULTS) as error:
        raise CheckpointError(f"{path}: {name!r} in it is no array of numbers: {error}") from error
    return shape, dtype


def _read(path: Path, name: str, dtype: np.dtype) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, *_FAULTS) as error:
        raise CheckpointError(f"{path}: leaf {name.removesuffix(_END)!r} is damaged: {error}") from error
    return array.view(dtype) if array.dtype.kind == "V" else array.astype(dtype, copy=False)
