"""Safetensors files: a JSON header, then the arrays. Leaves are read when they are asked for.

The library of that name cannot give NumPy arrays of 8 bits a float, nor write without all arrays in memory; the format
is plain enough to do both here. A dtype that it has no name for is written as integers, and named in the metadata.
"""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.checkpoints.leaf import CheckpointError, Leaf, Leaves, dtype_of, from_file
from jaxprune.host import chunks

NAME = "safetensors"
SUFFIXES = (".safetensors",)
_LONGEST_HEADER = 2**27  # bytes
_KEY = "jaxprune.dtypes"  # of the metadata: dtypes that the format has no name for, by leaf
_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
_CODES = {name: code for code, name in _NAMES.items()}


def recognizes(path: Path, start: bytes) -> bool:
    """Whether it is one: 8 bytes of length, then a JSON object."""
    return path.is_file() and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER


def read(path: Path) -> dict[str, Leaf]:
    """The leaves, in the order of the file."""
    header, begin = _header(path)
    metadata = header.pop("__metadata__", None) or {}
    try:
        others = dict(json.loads(metadata.get(_KEY, "{}")))
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged: its metadata make no sense") from error
    size = os.path.getsize(path)
    found = [_leaf(path, name, entry, others.get(name), begin, size) for name, entry in header.items()]
    return {leaf.name: leaf for _, leaf in sorted(found, key=lambda placed: placed[0])}


def write(path: Path, leaves: Leaves) -> None:
    """Writes one leaf after the other."""
    header, others, offset = {}, {}, 0
    for name, leaf in leaves.items():
        stored = leaf.dtype.name if leaf.dtype.name in _CODES else f"uint{8 * leaf.dtype.itemsize}"
        if stored not in _CODES:
            raise CheckpointError(f"leaf {name!r}: {leaf.dtype} does not go into safetensors; write .npz")
        if stored != leaf.dtype.name:
            others[name] = leaf.dtype.name
        header[name] = {
            "dtype": _CODES[stored], "shape": list(leaf.shape), "data_offsets": [offset, offset + leaf.nbytes],
        }  # fmt: skip
        offset += leaf.nbytes
    metadata = {"__metadata__": {"format": "np"} | ({_KEY: json.dumps(others)} if others else {})}
    text = json.dumps(metadata | header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for leaf in leaves.values():
            for part in chunks(np.ascontiguousarray(leaf.read())):
                file.write(part.astype(part.dtype.newbyteorder("<"), copy=False).tobytes())


def _header(path: Path) -> tuple[dict[str, Any], int]:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_LONGEST_HEADER, os.path.getsize(path) - 8):
            raise CheckpointError(f"{path}: cut short, or no safetensors file: its header would be {length} bytes long")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: no safetensors file, or a damaged one: its header is no JSON") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: no safetensors file: its header is no JSON object")
    return header, 8 + length


def _leaf(path: Path, name: str, entry: Any, other: Any, begin: int, size: int) -> tuple[int, Leaf]:
    """Where the leaf begins, and the leaf."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int and n >= 0 for n in offsets)):
        raise CheckpointError(f"{path}: damaged: leaf {name[:80]!r} has no place in it")
    shape, code, (first, last) = entry.get("shape"), entry.get("dtype"), offsets
    if not (isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)):
        raise CheckpointError(f"{path}: damaged: leaf {name[:80]!r} has shape {str(shape)[:40]}")
    if code not in _NAMES:
        raise CheckpointError(f"{path}: leaf {name[:80]!r} has dtype {str(code)[:20]}, which cannot be read here")
    stored = dtype_of(_NAMES[code])
    dtype = dtype_of(str(other)) if other else stored
    leaf = Leaf(name, tuple(shape), dtype, lambda: np.empty(0))
    if dtype.itemsize != stored.itemsize or last - first != leaf.nbytes:
        raise CheckpointError(f"{path}: damaged: leaf {name[:80]!r} has {last - first} bytes, not {leaf.nbytes}")
    if begin + last > size:
        raise CheckpointError(
            f"{path}: cut short: it has {size:,} bytes, and leaf {name[:80]!r} ends at {begin + last:,}; copy it again"
        )
    return first, leaf._replace(read=partial(from_file, path, dtype, leaf.shape, begin + first))
