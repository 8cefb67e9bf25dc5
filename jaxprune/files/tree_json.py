"""The structure of a tree as JSON, and back, without pickle: only the kinds of node that are listed here come to life.

A leaf is a number, ``None`` is null, a dict with string keys is an object; any other node is an array: the position of
its kind in the table of kinds, then its children. ``docs/format.md`` lists the kinds.
"""

import itertools
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from jaxprune.files import node_kinds
from jaxprune.files.bytestream import FormatError

_DEEPEST = node_kinds.DEEPEST
_SHOWN = 20  # paths in an error
_LONG_PATHS = 2**26  # characters of all paths, and as many times those of the header: they repeat what is above
_DICT: dict[str, Any] = {"type": "dict"}


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


def outline(tree: Any, dense: Collection[str] = ()) -> Node:
    """The nodes of ``tree``; records (a ``QArray``, say) at the paths in ``dense`` will come back as dense arrays."""

    def walk(treedef: Any, path: str | None) -> Node:
        data, here = treedef.node_data(), path or ""
        if data is None:
            return Node(here, None)
        kind, keys, names = node_kinds.describe(data[0], data[1], here)
        if here in dense and node_kinds.is_record(kind):
            kind = {**kind, "dense": True}
        names = range(len(treedef.children())) if names is None else names
        below = zip(treedef.children(), names, strict=True)
        return Node(here, kind, keys, tuple(walk(child, node_kinds.join(path, name)) for child, name in below))

    return walk(jax.tree.structure(tree), None)


def leaves(node: Node) -> Iterator[Node]:
    """The leaves below, in order."""
    if node.kind is None:
        yield node
    for child in node.children:
        yield from leaves(child)


def find(root: Node, path: str) -> tuple[Node, int]:
    """The node at a path (of a box and what it holds, what it holds), and how many leaves come before it."""
    before, pending = 0, [root]
    while pending:
        node = pending.pop()
        boxes = len(node.children) == 1 and node.children[0].path == path
        if node.path == path and not boxes:
            return node, before
        before += node.kind is None
        pending.extend(reversed(node.children))
    some = [leaf.path for leaf in itertools.islice(leaves(root), _SHOWN)]
    raise ValueError(f"there is no leaf {path!r}; the first of those that are there: {some}")


def moved(node: Node, path: str | None) -> Node:
    """The same node at another path; None for the root."""
    if node.kind is None:
        return Node(path or "", None)
    names = node_kinds.names(node.kind, node.keys, len(node.children))
    below = zip(node.children, names, strict=True)
    children = tuple(moved(child, node_kinds.join(path, name)) for child, name in below)
    return node._replace(path=path or "", children=children)


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
    table = [node_kinds.check(kind) for kind in header.get("kinds", [])]
    marks: list[int] = []
    left = _LONG_PATHS + 64 * length

    def walk(item: Any, path: str | None, depth: int) -> Node:
        nonlocal left
        here = path or ""
        left -= len(here)
        if depth > _DEEPEST or left < 0:
            raise FormatError(f"the tree is deeper than {_DEEPEST} levels" if left >= 0 else "its paths are too long")
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
        names = node_kinds.names(kind, keys, len(below))
        under = [walk(part, node_kinds.join(path, name), depth + 1) for part, name in zip(below, names, strict=True)]
        return Node(here, kind, keys, tuple(under))

    return walk(header["tree"], None, 0), marks


def rebuild(node: Node, take: Callable[[], Any]) -> Any:
    """The tree, with its leaves from ``take`` in order."""
    if node.kind is None:
        return take()
    return node_kinds.build(node.kind, node.keys, [rebuild(child, take) for child in node.children], node.path)


def collapsed(node: Node, dense_only: bool = False) -> Node:
    """The same tree with one leaf in place of each record, or of each that comes back dense."""
    if node.kind is not None and node_kinds.is_record(node.kind) and (node.kind.get("dense") or not dense_only):
        return Node(node.path, None)
    return node._replace(children=tuple(collapsed(child, dense_only) for child in node.children))
