"""Names of leaves: flat in some formats, nested in others, and the same leaf in both."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxprune.checkpoints.leaf import CheckpointError


def paths(names: Iterable[str]) -> dict[str, str]:
    """Each name as a path with ``/``, so that ``a.b`` of one file and ``a/b`` of another are the same leaf.

    >>> paths(["encoder.kernel", "encoder.bias"])
    {'encoder.kernel': 'encoder/kernel', 'encoder.bias': 'encoder/bias'}
    """
    names = list(names)
    between = "/" if any("/" in name for name in names) else "."
    return {name: name.replace(between, "/") for name in names}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of dicts from flat names.

    Args:
      leaves: anything by name; all names are cut at ``/``, or at ``.`` if none has a ``/``.

    Raises:
      CheckpointError: one name is the beginning of another, so that no tree can hold both.

    >>> nested({"Dense_0/kernel": 1, "Dense_0/bias": 2})
    {'Dense_0': {'kernel': 1, 'bias': 2}}
    """
    found = paths(leaves)
    taken = {path: name for name, path in found.items()}
    tree: dict[str, Any] = {}
    for name, path in found.items():
        *above, last = path.split("/")
        node = tree
        for i, part in enumerate(above):
            leaf = taken.get("/".join(above[: i + 1]))
            if leaf is not None:
                raise CheckpointError(f"{leaf!r} is a leaf, and {name!r} goes on behind it: such names make no tree")
            node = node.setdefault(part, {})
        node[last] = leaves[name]
    return tree


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    """Leaves by path of nested mappings, lists and tuples; a tree that is one leaf is called ``array``."""
    if isinstance(tree, Mapping):
        items = list(tree.items())
    elif type(tree) in (list, tuple):  # a leaf may be a named tuple
        items = list(enumerate(tree))
    else:
        return {name or "array": tree}
    found: dict[str, Any] = {}
    for key, below in items:
        for path, leaf in flat(below, f"{name}/{key}" if name else str(key)).items():
            if path in found:
                raise CheckpointError(f"two leaves are called {path!r}")
            found[path] = leaf
    return found
