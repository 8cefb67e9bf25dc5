"""Which leaves a command is about, by patterns over their names."""

from collections.abc import Mapping, Sequence

import jax

from jaxprune import tree
from jaxprune.checkpoints import CheckpointError, Leaf, names, nested
from jaxprune.cli import output


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
    if not (chosen := matching([*where, *(f"!{pattern}" for pattern in exclude)], among, leaves)):
        raise ValueError("the patterns leave no leaf: each that is chosen is excluded as well")
    return chosen


def matching(patterns: Sequence[str], among: Sequence[str], leaves: Mapping[str, Leaf]) -> list[str]:
    """The names that patterns choose, all without one; they match a name as it is or with ``/`` between its parts."""
    if not patterns:
        return list(among)
    paths = names.paths(leaves)

    def complaint(pattern: str) -> str:
        return (
            f"pattern {pattern.removeprefix('!')!r} matches none of the {len(among)} leaves that can be chosen: "
            f"{output.few(among)} (jaxprune inspect lists them; * stands for anything)"
        )

    forms = [(name, paths[name], paths[name].removeprefix("params/")) for name in among]
    flags = tree.matching(patterns, forms, complaint)
    return [name for name, taken in zip(among, flags, strict=True) if taken]
