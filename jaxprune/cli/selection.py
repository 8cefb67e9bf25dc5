"""Which leaves a command is about, by patterns over their names."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import jax

from jaxprune import tree
from jaxprune.checkpoints import CheckpointError, Leaf, names, nested


def eligible(leaves: Mapping[str, Leaf]) -> list[str]:
    """The names of kernels and embeddings: the leaves that :func:`jaxprune.tree.select` takes by default."""
    by_path = {path: name for name, path in names.paths(leaves).items()}
    shapes = {path: jax.ShapeDtypeStruct(leaves[name].shape, leaves[name].dtype) for path, name in by_path.items()}
    try:
        found = tree.select(nested(shapes)).names
    except CheckpointError:  # names that make no tree
        found = tree.select(shapes).names
    chosen = {by_path[path] for path in found}
    return [name for name in leaves if name in chosen]


def choose(leaves: Mapping[str, Leaf], where: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """The eligible names that some pattern of ``where`` matches (all, without one), and none of ``exclude``.

    Raises:
      ValueError: a pattern that matches nothing, or nothing is left.
    """
    among = eligible(leaves)
    if not among:
        raise ValueError("no leaf can be chosen: only floating arrays of rank 2 and more are kernels or embeddings")
    wanted = set().union(*(matching(pattern, among, leaves) for pattern in where)) if where else set(among)
    for pattern in exclude:
        wanted -= matching(pattern, among, leaves)
    if not wanted:
        raise ValueError("the patterns leave no leaf: each that is chosen is excluded as well")
    return [name for name in among if name in wanted]


def matching(pattern: str, among: Sequence[str], leaves: Iterable[str]) -> set[str]:
    """The names that a pattern matches, as they are or with ``/`` between their parts."""
    paths = names.paths(leaves)
    found = {name for name in among if any(fnmatchcase(form, pattern) for form in _forms(name, paths[name]))}
    if not found:
        few = ", ".join(list(among)[:3]) + (", ..." if len(among) > 3 else "")
        raise ValueError(
            f"pattern {pattern!r} matches none of the {len(among)} leaves that can be chosen: {few} "
            "(jaxprune inspect lists them; * stands for anything)"
        )
    return found


def _forms(name: str, path: str) -> tuple[str, ...]:
    return name, path, path.removeprefix("params/")
