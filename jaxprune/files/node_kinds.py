"""The kinds of tree node that a file can hold: how each is named in JSON, and how it is made again."""

import importlib
import re
import sys
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from jaxprune.files import records
from jaxprune.files.bytestream import FormatError
from jaxprune.files.records import RECORDS

Kind = dict[str, Any]

_MAPPINGS = {"dict": dict, "OrderedDict": OrderedDict}
_FLAX = {"FrozenDict": "flax.core", "State": "flax.nnx"}
_VARIABLE = "nnx."
DEEPEST = 64  # levels of a tree, or of what describes a node; the stack of Python ends far below a hostile one


def is_record(kind: Kind) -> bool:
    """Whether a node stands for one array in several parts."""
    return kind["type"] in RECORDS


def describe(cls: Any, aux: Any, path: str) -> tuple[Kind, tuple[Any, ...], Sequence[Any] | None]:
    """The kind of a node, its keys, and the names of its children (None: numbers), from what JAX knows of it."""
    name = cls.__name__
    if cls in (list, tuple, type(None)):
        return {"type": "None" if cls is type(None) else name}, (), None
    if _MAPPINGS.get(name) is cls or (name in _FLAX and _flax(name) is cls):
        if not all(type(key) in (str, int) for key in aux):
            raise TypeError(f"a {name} at {path!r} has keys {list(aux)}; in files they are strings or integers")
        return {"type": name}, tuple(aux), aux
    if name in RECORDS and RECORDS[name].cls is cls:
        return {"type": name, **records.to_json(name, aux)}, (), RECORDS[name].arrays
    if _is_variable(cls):
        metadata = {key: _jsonable(value, f"metadata {key!r} of {path!r}") for key, value in aux}
        return {"type": _VARIABLE + name, "metadata": metadata}, (), [None]
    if name == "Partitioned" and _flax_class("flax.core.meta", name) is cls and aux[1] is None:
        return {"type": name, "names": _jsonable(aux[0], f"names of {path!r}")}, (), [None]
    return {"type": "other", "name": f"{cls.__module__}.{cls.__qualname__}"}, (), None


def check(kind: Any) -> tuple[Kind, tuple[Any, ...]]:
    """A kind as it was read, and its keys; raises :class:`FormatError` unless it is well formed."""
    if not isinstance(kind, dict) or not isinstance(kind.get("type"), str):
        raise FormatError("a kind of node without a type")
    _check_depth(kind)
    name, keys = kind["type"], kind.pop("keys", [])
    if not isinstance(keys, list) or not all(type(key) in (str, int) for key in keys) or len(set(keys)) < len(keys):
        raise FormatError(f"a node of type {name[:80]!r} has keys {str(keys)[:80]}")
    if name in _MAPPINGS or name in _FLAX:
        return kind, tuple(keys)
    if name in ("list", "tuple", "other") or name in RECORDS:
        well = not keys and (name not in RECORDS or records.from_json(name, kind) is not None)
    elif name == "Partitioned":
        well = not keys and isinstance(kind.get("names"), list)
    else:
        well = not keys and re.fullmatch(r"nnx\.[A-Za-z]\w*", name) and isinstance(kind.get("metadata"), dict)
    if not well:
        raise FormatError(f"a node of type {name[:80]!r} is unknown, or lacks a part")
    return kind, ()


def _check_depth(kind: Kind) -> None:
    level: list[Any] = [kind]
    for _ in range(DEEPEST):
        below = (list(part.values()) if isinstance(part, dict) else part for part in level)
        level = [part for parts in below for part in parts if isinstance(part, dict | list)]
    if level:
        raise FormatError(f"a kind of node is deeper than {DEEPEST} levels")


def names(kind: Kind, keys: tuple[Any, ...], number: int) -> Sequence[Any]:
    """What the children of a node are called; None for one that takes its parent's path."""
    if kind["type"] in _MAPPINGS or kind["type"] in _FLAX:
        wanted: Sequence[Any] = keys
    elif is_record(kind):
        wanted = RECORDS[kind["type"]].arrays
    elif kind["type"] == "Partitioned" or kind["type"].startswith(_VARIABLE):
        wanted = [None]
    else:
        wanted = range(number)
    if len(wanted) != number:
        raise FormatError(f"a node of type {kind['type']!r} has {number} children, not {len(wanted)}")
    return wanted


def build(kind: Kind, keys: tuple[Any, ...], below: list[Any], path: str) -> Any:
    """The node itself."""
    name = kind["type"]
    if name == "None":
        return None
    if name in ("list", "tuple"):
        return tuple(below) if name == "tuple" else below
    if name in _MAPPINGS or name in _FLAX:
        cls = _MAPPINGS.get(name) or _flax(name, load=True)
        return cls(dict(zip(keys, below, strict=True)))
    if name in RECORDS:
        fields = records.from_json(name, kind)
        assert fields is not None  # checked when it was read
        return RECORDS[name].cls(**dict(zip(RECORDS[name].arrays, below, strict=True)), **fields)
    if name == "Partitioned":
        return _flax_class("flax.core.meta", name, load=True)(below[0], names=_tuples(kind["names"]))
    if name.startswith(_VARIABLE):
        cls = _flax_class("flax.nnx", name.removeprefix(_VARIABLE), load=True)
        if cls is not None and _is_variable(cls):
            return _variable(cls, below[0], kind["metadata"], path)
    raise ValueError(
        f"the node at {path!r} is a {kind.get('name', name)}, which a file cannot name safely: "
        "give a tree of the same structure as like="
    )


def _variable(cls: Any, value: Any, metadata: dict[str, Any], path: str) -> Any:
    try:
        return cls.from_metadata(value, {key: _tuples(entry) for key, entry in metadata.items()})
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # whatever Flax makes of a stranger's entries
        raise FormatError(f"the nnx.{cls.__name__} at {path!r} has metadata {str(metadata)[:80]}: {error}") from error


def join(path: str | None, name: Any) -> str | None:
    """The path of a child; None for the root, and for what a box at the root holds."""
    return path if name is None else str(name) if path is None else f"{path}/{name}"


def _jsonable(value: Any, what: str) -> Any:
    if isinstance(value, list | tuple):
        return [_jsonable(part, what) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{what} is {value!r}, which a file cannot hold: save jax.tree.map(jnp.asarray, pure tree) instead")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value


def _is_variable(cls: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(cls, type) and issubclass(cls, nnx.Variable) and _exported(nnx, cls)


def _exported(nnx: Any, cls: type) -> bool:
    return getattr(nnx, cls.__name__, None) is cls


def _flax(name: str, load: bool = False) -> Any:
    return _flax_class(_FLAX[name], name, load)


def _flax_class(module: str, name: str, load: bool = False) -> Any:
    """A class of Flax, which need not be there: what is in a tree has imported it already."""
    found = importlib.import_module(module) if load else sys.modules.get(module)
    return getattr(found, name, None)
