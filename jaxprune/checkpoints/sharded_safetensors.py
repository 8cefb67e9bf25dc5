"""Several safetensors files and an index that says which leaf is in which, as large models are published. Read only."""

import json
from pathlib import Path
from typing import Any

from jaxprune.checkpoints import safetensors_files
from jaxprune.checkpoints.leaf import CheckpointError, Leaf

NAME = "safetensors index"
SUFFIXES = ()  # none is written: one file may be of any size
_MAP = "weight_map"


def recognizes(path: Path, start: bytes) -> bool:
    """Whether it is a JSON file that is called an index, or has the map of one."""
    beginning = start.lstrip()[:1] == b"{"
    return path.is_file() and beginning and (path.name.endswith(".index.json") or f'"{_MAP}"'.encode() in start)


def read(path: Path) -> dict[str, Leaf]:
    """The leaves, in the order of the index."""
    places = _places(path)
    shards = {file: safetensors_files.read(file) for file in dict.fromkeys(places.values())}
    for name, file in places.items():
        if name not in shards[file]:
            raise CheckpointError(f"{path}: leaf {name[:80]!r} is not in {file.name}; copy both again")
    return {name: shards[file][name] for name, file in places.items()}


def files(path: Path) -> list[Path]:
    """The index and all that it names."""
    return [path, *dict.fromkeys(_places(path).values())]


def _places(path: Path) -> dict[str, Path]:
    """The file of each leaf, beside the index."""
    try:
        found: Any = json.loads(path.read_bytes())[_MAP]
        names = {str(name): str(file) for name, file in found.items()}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: a JSON file, but no index of safetensors files, or a damaged one") from error
    for file in dict.fromkeys(names.values()):
        if Path(file).name != file or not (path.parent / file).is_file():
            raise CheckpointError(f"{path}: there is no {file[:80]!r} beside it, which it names; copy that too")
    return {name: path.parent / file for name, file in names.items()}
