"""Tracing and labelling a function at given input shapes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np
from jax import tree_util

from jaxprune import tree
from jaxprune.base import Params
from jaxprune.program.labels import STAYS, Labels
from jaxprune.program.visitor import Scope, walk
from jaxprune.structure import cutting, groups

#: Which outputs may lose entries: glob patterns over their paths, or a predicate ``(path, output) -> bool``.
FreeOutput = str | Sequence[str] | Callable[[str, Any], bool] | None


@dataclass(frozen=True)
class Traced:
    """A function at given input shapes: its program, labelled.

    Attributes:
      scope: the program and its labels.
      labels: what ties and pins them.
      rows: the axes of the parameters.
      out_tree: structure of what the function returns.
      free: for each output, whether it may lose entries.
      ambiguous: the places where more than one axis could be cut, in words.
    """

    scope: Scope
    labels: Labels
    rows: list[groups.Row]
    out_tree: Any
    free: tuple[bool, ...]
    ambiguous: list[str] = field(default_factory=list)


def structs(inputs: Any) -> Any:
    """The shapes and dtypes of inputs."""
    return jax.tree.map(cutting.struct, inputs)


def label(function: Callable[..., Any], params: Params, inputs: Any, trailing: bool, free: FreeOutput) -> Traced:
    """Walks the program twice: first to see which parts of split axes can be cut, then for good."""
    inputs = structs(inputs)
    for path, leaf in tree_util.tree_leaves_with_path((params, inputs)):
        if not all(isinstance(size, int) for size in leaf.shape):
            raise ValueError(f"symbolic dimensions cannot be traced: {tree_util.keystr(path)} has shape {leaf.shape}")
    traced, shape = jax.make_jaxpr(function, return_shape=True)(params, *inputs)
    first = _walk(traced, params, inputs, shape, free, Labels(trailing))
    decided = first.labels.decide()
    if not decided:
        return first
    second = _walk(traced, params, inputs, shape, free, Labels(trailing, decided))
    return replace(second, ambiguous=first.labels.ambiguous())  # each walk has labels of its own


def _walk(traced: Any, params: Params, inputs: Any, shape: Any, free: FreeOutput, labels: Labels) -> Traced:
    selection = tree.flatten(params)
    axes = [tuple(labels.fresh(size) for size in leaf.shape) for leaf in selection.leaves]
    labels.born = labels.count
    given = []
    for path, leaf in tree_util.tree_leaves_with_path(inputs):
        name = f"input{tree_util.keystr(path)}"
        given.append(tuple(labels.fixed(size, f"axis {i} of {name}") for i, size in enumerate(leaf.shape)))
    scope = walk(traced, [*axes, *given], labels)
    outputs, out_tree = jax.tree.flatten(shape)
    paths = tree.flatten(shape).paths
    may_shrink = tuple(_is_free(path, out, free) for path, out in zip(paths, outputs, strict=True))
    for path, out_free, out_axes in zip(paths, may_shrink, scope.out_axes, strict=True):
        if not out_free:
            for i, one in enumerate(out_axes):
                labels.pin(one, f"axis {i} of the output {tree.show(path)}" if path else f"axis {i} of the output")
    _check_patterns(free, paths)
    return Traced(scope, labels, groups.rows_of(selection.paths, axes, labels), out_tree, may_shrink)


def _is_free(path: str, output: Any, free: FreeOutput) -> bool:
    if free is None:
        return False
    if callable(free):
        return bool(free(path, output))
    return any(fnmatchcase(path, pattern) for pattern in ([free] if isinstance(free, str) else free))


def _check_patterns(free: FreeOutput, paths: Sequence[str]) -> None:
    for pattern in [] if free is None or callable(free) else [free] if isinstance(free, str) else free:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise ValueError(f"free_output {pattern!r} matches none of the outputs {list(paths)}")


def removed(traced: Traced, kept: dict[tuple[str, int], np.ndarray]) -> np.ndarray:
    """For each label, whether it is gone; ``ValueError`` if the program ties what the plan parts."""
    gone = np.zeros(traced.labels.count + 2, bool)
    roots = [traced.labels.resolve(row.labels) for row in traced.rows]
    for row, root in zip(traced.rows, roots, strict=True):
        if (row.path, row.axis) in kept:
            gone[root[~kept[row.path, row.axis]]] = True
    gone[STAYS] = False
    for row, root in zip(traced.rows, roots, strict=True):
        stays = kept.get((row.path, row.axis), np.ones(root.size, bool))
        if np.any(bad := gone[root] == stays):
            reasons = "; ".join(traced.labels.why(row.labels[bad])) or "other entries"
            raise ValueError(
                f"at these input shapes axis {row.axis} of {tree.show(row.path)} cannot be cut as planned; entries are "
                f"tied to {reasons}. Trace the function with inputs of these shapes"
            )
    return gone[traced.labels.resolve(np.arange(traced.labels.count))]


def key(inputs: Any) -> Any:
    """What decides whether a program serves for inputs."""
    leaves, structure = jax.tree.flatten(structs(inputs))
    return structure, tuple((leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves)
