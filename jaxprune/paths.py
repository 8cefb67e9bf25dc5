"""Where the leaves of a tree stand: their paths as text, through the boxes that frameworks put around arrays."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple

from jax import tree_util

from jaxprune.base import Params


def follow_paths(values: Any, paths: Sequence[str], wanted: Sequence[str], name: str) -> dict[str, Any]:
    """Looks up each wanted path in a tree of values, or in the longest prefix of it that the tree holds."""
    flat = leaves_of(values)
    given = dict(zip(flat.paths, flat.leaves, strict=True))
    unknown = [path for path in given if not any(within(leaf, path) for leaf in paths)]
    if unknown:
        raise ValueError(f"{name} names {unknown[0]!r}, which is not in the tree; its paths are {list(paths)}")
    found = {path: [prefix for prefix in given if within(path, prefix)] for path in wanted}
    missing = [path for path, prefixes in found.items() if not prefixes]
    if missing:
        raise ValueError(f"{name} has no value for leaf {missing[0]!r}; it has {list(given)}")
    return {path: given[max(prefixes, key=len)] for path, prefixes in found.items()}


def matching(patterns: Sequence[str], things: Sequence[Sequence[str]], complaint: Callable[[str], str]) -> list[bool]:
    """Which of some things, each known by one or more names, glob patterns choose.

    Args:
      patterns: a leading ``!`` excludes; where all exclude, everything else is chosen.
      things: the names of each.
      complaint: what is wrong, of a pattern that matches none.

    Raises:
      ValueError: a pattern matches none.

    >>> matching(["!a*"], [["a1"], ["b", "c"]], str)
    [False, True]
    """

    def flags(pattern: str) -> list[bool]:
        found = [any(fnmatchcase(name, pattern.removeprefix("!")) for name in names) for names in things]
        if not any(found):
            raise ValueError(complaint(pattern))
        return found

    wanted = [flags(pattern) for pattern in patterns if not pattern.startswith("!")]
    excluded = [flags(pattern) for pattern in patterns if pattern.startswith("!")]
    if excluded and not wanted:
        wanted = [[True] * len(things)]
    return [any(f[i] for f in wanted) and not any(f[i] for f in excluded) for i in range(len(things))]


class Leaves(NamedTuple):
    """The leaves of a tree.

    Attributes:
      leaves: in order.
      paths: of each.
      trainable: whether each is, by where it stands (a collection, an NNX variable's type).
      treedef: the structure.
    """

    leaves: list[Any]
    paths: list[str]
    trainable: list[bool]
    treedef: Any


def leaves_of(tree: Params) -> Leaves:
    """The leaves of a tree and where they stand; what is alone in a box has the path of the box."""
    nodes, treedef = tree_util.tree_flatten_with_path(tree, is_leaf=is_box)
    if any(is_box(node) for _, node in nodes):
        treedef = tree_util.tree_structure(tree)
    variables = isinstance(tree, Mapping) and "params" in tree
    found = Leaves([], [], [], treedef)
    for key, node in nodes:
        trainable = not variables or join(key[:1]) == "params"
        if _is_nnx_variable(node):
            trainable = any(base.__name__ == "Param" for base in type(node).__mro__)
        inner = tree_util.tree_flatten_with_path(node)[0] if is_box(node) else [((), node)]
        for below, leaf in inner:
            found.leaves.append(leaf)
            found.paths.append(join(key if len(inner) == 1 else (*key, *below)))
            found.trainable.append(trainable)
    return found


def _is_nnx_variable(node: Any) -> bool:
    return hasattr(type(node), "get_raw_value")


def is_box(node: Any) -> bool:
    # Both Flax APIs mark their boxes by methods; asking for those spares the import of Flax.
    return _is_nnx_variable(node) or hasattr(type(node), "replace_boxed")


#: The path of a key.
join = partial(tree_util.keystr, simple=True, separator="/")


def within(path: str, prefix: str) -> bool:
    return prefix in ("", path) or path.startswith(prefix + "/")
