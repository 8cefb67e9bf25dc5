"""Tracing and labelling a function at given input shapes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jax import tree_util

from jaxprune import tree
from jaxprune.base import Params
from jaxprune.program import jaxprs
from jaxprune.program.jaxprs import Frame, visit
from jaxprune.program.labels import STAYS, Labels
from jaxprune.program.narrowing import Labelling, evaluate
from jaxprune.program.primitives import RULES
from jaxprune.structure import groups

#: Which outputs may lose entries: glob patterns over their paths, or a predicate ``(path, output) -> bool``.
FreeOutput = str | Sequence[str] | Callable[[str, Any], bool] | None


@dataclass(frozen=True)
class Traced:
    """A function at given input shapes: its program, labelled.

    Attributes:
      frame: the program and its labels.
      labels: what ties and pins them.
      rows: the axes of the parameters.
      out_tree: structure of what the function returns.
      free: for each output, whether it may lose entries.
      ambiguous: the places where more than one axis could be cut, in words.
    """

    frame: Frame
    labels: Labels
    rows: list[groups.Row]
    out_tree: Any
    free: list[bool]
    ambiguous: list[str] = field(default_factory=list)

    def removed(self, kept: dict[tuple[str, int], np.ndarray]) -> np.ndarray:
        """For each label, whether it is gone; ``ValueError`` if the program ties what the plan parts."""
        gone = np.zeros(self.labels.count + 2, bool)
        roots = [self.labels.resolve(row.labels) for row in self.rows]
        for row, root in zip(self.rows, roots, strict=True):
            if (row.path, row.axis) in kept:
                gone[root[~kept[row.path, row.axis]]] = True
        gone[STAYS] = False
        for row, root in zip(self.rows, roots, strict=True):
            if np.any(bad := gone[root] == kept.get((row.path, row.axis), True)):
                reasons = "; ".join(self.labels.why(row.labels[bad])) or "other entries"
                raise ValueError(
                    f"at these input shapes axis {row.axis} of {tree.show(row.path)} cannot be cut as planned; entries "
                    f"are tied to {reasons}. Trace the function with inputs of these shapes"
                )
        return gone[self.labels.resolve(np.arange(self.labels.count))]

    def run(self, leaves: Sequence[Any], inputs: Any, removed: np.ndarray) -> Any:
        """The outputs for cut parameters."""
        outs = evaluate(self.frame, [*leaves, *jax.tree.leaves(inputs)], removed, RULES)
        return jax.tree.unflatten(self.out_tree, outs)


def label(function: Callable[..., Any], params: Params, inputs: Any, trailing: bool, free: FreeOutput) -> Traced:
    """Visits the program twice: first to see which parts of split axes can be cut, then for good."""
    inputs = jax.tree.map(jaxprs.struct, inputs)
    traced, shape = jaxprs.trace(function, params, *inputs)
    first = _visit(traced, params, inputs, shape, free, Labels(trailing))
    decided = first.labels.decide()
    if not decided:
        return first
    second = _visit(traced, params, inputs, shape, free, Labels(trailing, decided))
    return replace(second, ambiguous=first.labels.ambiguous())  # each visit has labels of its own


def _visit(program: Any, params: Params, inputs: Any, shape: Any, free: FreeOutput, labels: Labels) -> Traced:
    selection = tree.flatten(params)
    axes = [tuple(map(labels.fresh, leaf.shape)) for leaf in selection.leaves]
    labels.born = labels.count
    given = []
    for path, leaf in tree_util.tree_leaves_with_path(inputs):
        name = f"input{tree_util.keystr(path)}"
        given.append(tuple(labels.fixed(size, f"axis {i} of {name}") for i, size in enumerate(leaf.shape)))
    frame = visit(program, [*axes, *given], Labelling(labels, RULES))
    outputs, out_tree = jax.tree.flatten(shape)
    paths = tree.flatten(shape).paths
    if callable(free):
        may_shrink = [bool(free(path, out)) for path, out in zip(paths, outputs, strict=True)]
    else:
        may_shrink = matching(() if free is None else free, [(path,) for path in paths], "free_output")
    for path, out_free, out_axes in zip(paths, may_shrink, frame.results, strict=True):
        if not out_free:
            for i, one in enumerate(out_axes):
                labels.pin(one, f"axis {i} of the output {tree.show(path)}" if path else f"axis {i} of the output")
    return Traced(frame, labels, groups.rows_of(selection.paths, axes, labels), out_tree, may_shrink)


def matching(patterns: str | Sequence[str], names: Sequence[Sequence[str]], what: str) -> list[bool]:
    """Which of some things, each with its names, glob patterns choose; a leading ``!`` excludes.

    Raises:
      ValueError: a pattern that matches none; ``what`` says whose patterns these are.
    """
    listed = [patterns] if isinstance(patterns, str) else patterns
    return tree.matching(listed, names, lambda p: f"{what} {p!r} matches none of {[' or '.join(own) for own in names]}")
