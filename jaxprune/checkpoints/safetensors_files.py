"""Safetensors files: a JSON header, then the arrays; and indices that say which leaf is in which of several files.

Leaves are read when they are asked for. The library of that name cannot give NumPy arrays of 8 bits a float, nor write
without all arrays in memory; the format is plain enough to do both here. A dtype that it has no name for is written as
integers, and named in the metadata.
"""

import json
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.checkpoints.leaf import CheckpointError, Content, Format, Leaf, Other, dtype_of, faults, from_file
from jaxprune.host import chunks

_LONGEST_HEADER = 2**27  # bytes
_KEY = "jaxprune.dtypes"  # of the metadata: dtypes that the format has no name for, by leaf
_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
_CODES = {name: code for code, name in _NAMES.items()}
_MAP = "weight_map"  # of an index


def _recognizes(path: Path, start: bytes) -> bool:
    """8 bytes of length, then a JSON object."""
    return path.is_file() and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER


def _read(path: Path, limit: float) -> Content:
    """In the order of the file."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_LONGEST_HEADER, size - 8):
            raise CheckpointError(f"cut short, or no safetensors file: its header would be {length} bytes long")
        header = _parsed(file.read(length), "header")
    metadata = header.pop("__metadata__", None) or {}
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise CheckpointError("damaged: its metadata make no sense")
    named = _parsed(metadata.pop(_KEY, "{}"), "metadata")
    leaves, others = {}, {}
    entries = {name: _entry(name, told, size - length - 8) for name, told in header.items()}
    for name, (code, shape, first, last) in sorted(entries.items(), key=lambda item: item[1][2]):
        place, number = 8 + length + first, last - first
        if code not in _NAMES:
            raw = partial(from_file, path, np.dtype(np.uint8), (number,), place)
            others[name] = Other(FORMAT.name, f"dtype {code}", number, lambda get=raw: get().tobytes(), (code, shape))
            continue
        dtype, width = dtype_of(named.get(name) or _NAMES[code]), dtype_of(_NAMES[code]).itemsize
        wanted = math.prod(shape) * width
        if dtype.itemsize != width or number != wanted:
            raise CheckpointError(f"damaged: leaf {name[:80]!r} has {number} bytes, not {wanted}, as {dtype}")
        leaves[name] = Leaf(name, shape, dtype, partial(from_file, path, dtype, shape, place))
    return Content(leaves, metadata, others)


def _parsed(text: str | bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"damaged, or no safetensors file: its {what} is no JSON") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"damaged, or no safetensors file: its {what} is no JSON object")
    return found


def _entry(name: str, told: Any, size: int) -> tuple[str, tuple[int, ...], int, int]:
    """Of the header, checked: dtype, shape, and where it begins and ends; ``size`` is that of all arrays."""
    match told:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [first, last]} if all(
            type(n) is int and n >= 0 for n in (*shape, first, last)
        ):
            if last > size:
                raise CheckpointError(f"cut short: leaf {name[:80]!r} lacks {last - size:,} bytes; copy it again")
            return dtype, tuple(shape), first, last
    raise CheckpointError(f"damaged: leaf {name[:80]!r} is {str(told)[:80]}")


def _write(path: Path, content: Content) -> None:
    """One leaf after the other."""
    named, rows = {}, []
    for name, leaf in content.leaves.items():
        stored = leaf.dtype.name if leaf.dtype.name in _CODES else f"uint{8 * leaf.dtype.itemsize}"
        if stored not in _CODES:
            raise CheckpointError(f"leaf {name!r}: {leaf.dtype} does not go into safetensors; write .npz")
        if stored != leaf.dtype.name:
            named[name] = leaf.dtype.name
        rows.append((name, _CODES[stored], leaf.shape, leaf.nbytes))
    rows += [(name, *other.described, other.nbytes) for name, other in content.others.items()]
    metadata = dict(content.metadata or {"format": "np"}) | ({_KEY: json.dumps(named)} if named else {})
    header, end = dict[str, Any](__metadata__=metadata), 0
    for name, dtype, shape, nbytes in rows:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (end, end := end + nbytes)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for leaf in content.leaves.values():
            for part in chunks(np.ascontiguousarray(leaf.read())):
                file.write(part.astype(part.dtype.newbyteorder("<"), copy=False).tobytes())
        for other in content.others.values():
            file.write(other.read())


def _is_index(path: Path, start: bytes) -> bool:
    """A JSON file that is called an index, or has the map of one."""
    beginning = start.lstrip()[:1] == b"{"
    return path.is_file() and beginning and (path.name.endswith(".index.json") or f'"{_MAP}"'.encode() in start)


def _read_index(path: Path, limit: float) -> Content:
    """In the order of the index; metadata are those of the files."""
    places = _places(path)
    shards: dict[Path, Content] = {}
    for file in dict.fromkeys(places.values()):
        with faults(str(file)):
            shards[file] = _read(file, limit)
    for name, file in places.items():
        if name not in shards[file].leaves and name not in shards[file].others:
            raise CheckpointError(f"leaf {name[:80]!r} is not in {file.name}; copy both again")
    leaves = {name: shards[file].leaves[name] for name, file in places.items() if name in shards[file].leaves}
    others = {name: shards[file].others[name] for name, file in places.items() if name not in leaves}
    metadata = {key: value for shard in reversed(shards.values()) for key, value in shard.metadata.items()}
    return Content(leaves, metadata, others)


def _places(path: Path) -> dict[str, Path]:
    """The file of each leaf, beside the index."""
    names = json.loads(path.read_bytes())[_MAP]
    if not (isinstance(names, dict) and all(isinstance(file, str) for file in names.values())):
        raise CheckpointError("a JSON file, but no index of safetensors files, or a damaged one")
    for file in dict.fromkeys(names.values()):
        if Path(file).name != file or not (path.parent / file).is_file():
            raise CheckpointError(f"there is no {file[:80]!r} beside it, which it names; copy that too")
    return {name: path.parent / file for name, file in names.items()}


FORMAT = Format("safetensors", (".safetensors",), _recognizes, _read, _write, True)
INDEX = Format("safetensors index", (), _is_index, _read_index, files=lambda path: [path, *set(_places(path).values())])
