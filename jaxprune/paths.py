"""Where the leaves of a tree stand: their paths as text, through the boxes that frameworks put around arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

from jax import tree_util

from jaxprune.base import Params


def paths_of(tree: Params, keyed: list[Any], nodes: list[Any] | None = None) -> tuple[list[str], list[bool]]:
    """Each leaf's path, and whether it is trainable by where it stands (a collection, an NNX variable's type)."""
    nodes = tree_util.tree_flatten_with_path(tree, is_leaf=is_box)[0] if nodes is None else nodes
    paths = [_join(key) for key, _ in keyed]
    trainable = [True] * len(paths)
    variables = isinstance(tree, Mapping) and "params" in tree
    if nodes is keyed and not variables:
        return paths, trainable
    position = 0
    for key, node in nodes:
        inner = tree_util.tree_leaves(node) if is_box(node) else [node]
        for i in range(position, position + len(inner)):
            if _is_nnx_variable(node):
                trainable[i] = any(base.__name__ == "Param" for base in type(node).__mro__)
            elif variables:
                trainable[i] = _join(key[:1]) == "params"
            if len(inner) == 1 and is_box(node):
                paths[i] = _join(key)
        position += len(inner)
    return paths, trainable


def _is_nnx_variable(node: Any) -> bool:
    return hasattr(type(node), "get_raw_value")


def is_box(node: Any) -> bool:
    # Both Flax APIs mark their boxes by methods; asking for those spares the import of Flax.
    return _is_nnx_variable(node) or hasattr(type(node), "replace_boxed")


def _join(key: Sequence[Any]) -> str:
    return "/".join(_entry(entry) for entry in key)


def _entry(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def within(path: str, prefix: str) -> bool:
    return prefix in ("", path) or path.startswith(prefix + "/")
