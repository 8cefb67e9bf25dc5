"""The structure of a tree as JSON, and back, without pickle: only the kinds of node that are listed here come to life.

A leaf is a number, ``None`` is null, a dict with string keys is an object; any other node is an array: the position of
its kind in the table of kinds, then its children. ``docs/format.md`` lists the kinds.
"""

import importlib
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from jaxprune.files import records
from jaxprune.files.bytestream import FormatError
from jaxprune.files.records import RECORDS
from jaxprune.quantization.arrays.protocol import parts

_PLAIN = {"dict": dict, "OrderedDict": OrderedDict, "list": list, "tuple": tuple, "None": type(None)}
_OF_FLAX = {"FrozenDict": "flax.core", "State": "flax.nnx", "Partitioned": "flax.core.meta"}
_MAPPINGS = ("dict", "OrderedDict", "FrozenDict", "State")
_DICT: dict[str, Any] = {"type": "dict"}
_DEEPEST = 66  # levels of lists and objects, in all of the JSON; the stack of Python ends far below a hostile one
_LONG_PATHS = 2**26  # characters of all paths, and as many times those of the header: they repeat what is above


class Node(NamedTuple):
    """A node of a tree.

    Attributes:
      path: where it is, as in :func:`jaxprune.tree.select`.
      kind: what it is, as in the file; None for a leaf.
      keys: the keys of a mapping; empty for others.
      children: the nodes below, in the order of ``jax.tree.leaves``.
    """

    path: str
    kind: dict[str, Any] | None
    keys: tuple[Any, ...] = ()
    children: "tuple[Node, ...]" = ()

    @property
    def is_record(self) -> bool:
        """Whether it stands for one array in several parts."""
        return self.kind is not None and self.kind["type"] in RECORDS


def outline(tree: Any, dense: Collection[str] = ()) -> Node:
    """The nodes of ``tree``; records (a ``QArray``, say) at the paths in ``dense`` will come back as dense arrays."""

    def walk(treedef: Any, path: str | None) -> Node:
        data, here, below = treedef.node_data(), path or "", treedef.children()
        if data is None:
            return Node(here, None)
        kind, keys = _describe(data[0], data[1], here)
        node = Node(here, kind, keys)
        if here in dense and node.is_record:
            node = node._replace(kind={**kind, "dense": True})
        return node._replace(children=tuple(map(walk, below, paths(node, len(below), path))))

    return walk(jax.tree.structure(tree), None)


def leaves(node: Node, whole: bool = False) -> Iterator[Node]:
    """The leaves below, in order; ``whole``: with each record as one."""
    if node.kind is None or (whole and node.is_record):
        yield node
    else:
        for child in node.children:
            yield from leaves(child, whole)


def to_json(node: Node, marks: Sequence[int]) -> dict[str, Any]:
    """``{"kinds": [...], "tree": ...}`` with a mark for each leaf."""
    table: dict[str, int] = {}
    remaining = iter(marks)

    def walk(node: Node) -> Any:
        if node.kind is None:
            return next(remaining)
        below = [walk(child) for child in node.children]
        if node.kind == {"type": "None"}:
            return None
        if node.kind == _DICT and all(isinstance(key, str) for key in node.keys):
            return dict(zip(node.keys, below, strict=True))
        kind = {**node.kind, "keys": list(node.keys)} if node.keys else node.kind
        return [table.setdefault(json.dumps(kind), len(table)), *below]

    tree = walk(node)
    return {"kinds": list(map(json.loads, table)), "tree": tree} if table else {"tree": tree}


def from_json(header: Any, length: int) -> tuple[Node, list[int]]:
    """The nodes and the marks of the leaves; a :class:`FormatError` for what :func:`to_json` cannot have made.

    Work and memory grow with the ``length`` of the header and no faster.
    """
    if not isinstance(header, dict) or "tree" not in header or not isinstance(header.get("kinds", []), list):
        raise FormatError("the header has no tree")
    level: list[Any] = [header]
    for _ in range(_DEEPEST):
        below = (part.values() if isinstance(part, dict) else part for part in level)
        level = [part for parts in below for part in parts if isinstance(part, dict | list)]
    if level:
        raise FormatError(f"the header is deeper than {_DEEPEST} levels")
    table = [_checked(kind) for kind in header.get("kinds", [])]
    marks: list[int] = []
    left = _LONG_PATHS + 64 * length

    def walk(item: Any, path: str | None) -> Node:
        nonlocal left
        here = path or ""
        left -= len(here)
        if left < 0:
            raise FormatError("its paths are too long")
        if item is None:
            return Node(here, {"type": "None"})
        if type(item) is int and item in (0, 1):
            marks.append(item)
            return Node(here, None)
        if isinstance(item, dict):
            kind, keys, below = _DICT, tuple(item), list(item.values())
        elif isinstance(item, list) and item and type(item[0]) is int and 0 <= item[0] < len(table):
            (kind, keys), below = table[item[0]], item[1:]
        else:
            what = f"a {type(item).__name__}" if isinstance(item, dict | list) else repr(item)[:80]
            raise FormatError(f"the tree has {what} at {here[:80]!r}, which is no node")
        node = Node(here, kind, keys)
        return node._replace(children=tuple(map(walk, below, paths(node, len(below), path))))

    return walk(header["tree"], None), marks


def rebuild(node: Node, take: Callable[[], Any]) -> Any:
    """The tree, with its leaves from ``take`` in order."""
    return _made(node, [rebuild(child, take) for child in node.children]) if node.kind else take()


def collapsed(node: Node, dense_only: bool = False) -> Node:
    """The same tree with one leaf in place of each record, or of each that comes back dense."""
    if node.is_record and node.kind and (node.kind.get("dense") or not dense_only):
        return Node(node.path, None)
    return node._replace(children=tuple(collapsed(child, dense_only) for child in node.children))


def _describe(cls: Any, aux: Any, path: str) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """The kind of a node and its keys, from what JAX knows of it."""
    name = "None" if cls is type(None) else cls.__name__
    name = name if not cls.__module__.startswith("flax.") or name in _OF_FLAX else f"nnx.{name}"
    if _class(name) is not cls or (name == "Partitioned" and aux[1] is not None):
        return {"type": "other", "name": f"{cls.__module__}.{cls.__qualname__}"}, ()
    if name in _MAPPINGS:
        if not all(type(key) in (str, int) for key in aux):
            raise TypeError(f"a {name} at {path!r} has keys {list(aux)}; in files they are strings or integers")
        return {"type": name}, tuple(aux)
    if name in RECORDS:
        return {"type": name, **records.to_json(name, aux)}, ()
    if name == "Partitioned":
        return {"type": name, "names": _jsonable(aux[0], f"names of {path!r}")}, ()
    if name.startswith("nnx."):
        metadata = {key: _jsonable(value, f"metadata {key!r} of {path!r}") for key, value in aux}
        return {"type": name, "metadata": metadata}, ()
    return {"type": name}, ()


def _checked(kind: Any) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """A kind as it was read, and its keys; raises :class:`FormatError` unless it is well formed."""
    if not isinstance(kind, dict) or not isinstance(kind.get("type"), str):
        raise FormatError("a kind of node without a type")
    name, keys = kind["type"], kind.pop("keys", [])
    if not isinstance(keys, list) or not all(type(key) in (str, int) for key in keys) or len(set(keys)) < len(keys):
        raise FormatError(f"a node of type {name[:80]!r} has keys {str(keys)[:80]}")
    if name in RECORDS:
        well = records.from_json(name, kind) is not None
    elif name == "Partitioned":
        well = isinstance(kind.get("names"), list)
    elif name in ("list", "tuple", "other", *_MAPPINGS):
        well = True
    else:
        well = re.fullmatch(r"nnx\.[A-Za-z]\w*", name) and isinstance(kind.get("metadata"), dict)
    if not well or (keys and name not in _MAPPINGS):
        raise FormatError(f"a node of type {name[:80]!r} is unknown, or lacks a part")
    return kind, tuple(keys)


def paths(node: Node, number: int, path: str | None) -> Iterator[str | None]:
    """The paths of the children of a node, one by one; None is that of the root, and of what is in a box there."""
    name = (node.kind or _DICT)["type"]
    if name == "Partitioned" or name.startswith("nnx."):
        names: Sequence[Any] = [None]
    else:
        names = node.keys if name in _MAPPINGS else parts(RECORDS[name]) if name in RECORDS else range(number)
    if len(names) != number:
        raise FormatError(f"a node of type {name!r} has {number} children, not {len(names)}")
    return (path if key is None else str(key) if path is None else f"{path}/{key}" for key in names)


def _made(node: Node, below: list[Any]) -> Any:
    """The node itself."""
    kind = node.kind or {}
    name = kind["type"]
    cls = _class(name)
    if name == "None":
        return None
    if name in ("list", "tuple"):
        return cls(below)
    if name in _MAPPINGS:
        return cls(dict(zip(node.keys, below, strict=True)))
    if name in RECORDS:
        fields = records.from_json(name, kind) or {}  # it was checked when it was read
        return cls(**dict(zip(parts(RECORDS[name]), below, strict=True)), **fields)
    if name == "Partitioned":
        return cls(below[0], names=_tuples(kind["names"]))
    if cls is None:
        what = f"the node at {node.path!r} is a {kind.get('name', name)}"
        raise ValueError(f"{what}, which a file cannot name safely: give a tree of the same structure as like=")
    try:
        return cls.from_metadata(below[0], {key: _tuples(entry) for key, entry in kind["metadata"].items()})
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # whatever Flax makes of a stranger's entries
        said = f"metadata {str(kind['metadata'])[:80]}: {error}"
        raise FormatError(f"the nnx.{cls.__name__} at {node.path!r} has {said}") from error


def _jsonable(value: Any, what: str) -> Any:
    if isinstance(value, list | tuple):
        return [_jsonable(part, what) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{what} is {value!r}, which a file cannot hold: save jax.tree.map(jnp.asarray, pure tree) instead")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value


def _class(name: str) -> Any:
    """The class of a kind of node, or None; Flax, which may have it, is imported only then."""
    if name.startswith("nnx."):
        nnx = importlib.import_module("flax.nnx")
        found = getattr(nnx, name.removeprefix("nnx."), None)
        return found if isinstance(found, type) and issubclass(found, nnx.Variable) else None
    if name in _OF_FLAX:
        return getattr(importlib.import_module(_OF_FLAX[name]), name)
    return RECORDS.get(name) or _PLAIN.get(name)
