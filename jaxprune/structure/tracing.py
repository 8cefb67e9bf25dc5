"""A function at given input shapes: traced and labelled; what of it goes, how it runs then, and whether that is exact.

The function of cut parameters gives at every place that is left what the original function gives there with 0 in the
removed entries, as long as each sum, product or extreme over an axis that loses entries is the same without them. So
for the certificate the program is run once on ranges of numbers, and each such operation is looked at.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune import tree
from jaxprune.base import Params
from jaxprune.program import jaxprs, ranges
from jaxprune.program.bounding import Bounding
from jaxprune.program.jaxprs import Frame, visit
from jaxprune.program.labels import STAYS, Labels
from jaxprune.program.narrowing import Labelling
from jaxprune.program.primitives import RULES
from jaxprune.program.ranges import Fault, Value, all_faults
from jaxprune.structure import groups, plans

#: Which outputs may lose entries: glob patterns over their paths, or a predicate ``(path, output) -> bool``.
FreeOutput = str | Sequence[str] | Callable[[str, Any], bool] | None


class Certificate(NamedTuple):
    """Whether removal equals masking, by the program alone.

    Attributes:
      exact: no fault was found: the outputs are the same up to rounding, whatever the parameters and inputs.
      faults: where it makes a difference, or where that cannot be told, in the program's order.
    """

    exact: bool
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        if self.exact:
            return "exact: what is removed contributes nothing"
        places = [f"  {fault.line}: `{fault.operation}` {fault.reason}" for fault in self.faults]
        return "\n".join(["not exact: removal differs from masking", *places])


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
                tied = "; ".join(self.labels.why(row.labels[bad])) or "other entries"
                where = f"at these input shapes axis {row.axis} of {tree.show(row.path)} cannot be cut as planned"
                raise ValueError(f"{where}; entries are tied to {tied}. Trace the function with inputs of these shapes")
        return gone[self.labels.resolve(np.arange(self.labels.count))]

    def certify(self, removed: np.ndarray, masks: Sequence[np.ndarray | None]) -> Certificate:
        """Whether the outputs that may not shrink are the same without what is gone as with 0 in its place.

        Args:
          removed: for each label, whether it is gone.
          masks: for each parameter the mask that says what is known to be 0; ``None``: all that is gone.
        """
        reader, values = Bounding(removed, RULES), []
        for variable, mask in zip_longest(jaxprs.body(self.frame.program).invars, masks):  # behind parameters, inputs
            anything, axes = ranges.settle(ranges.UNBOUNDED, variable.aval.dtype), {}
            gone = reader.gone(self.frame.values[variable])
            for axis, flags in gone.items():
                zero = flags if mask is None else flags & ~plans.any_along(mask, axis)
                axes[axis] = ranges.choose(zero, ranges.ZERO, anything)
            values.append(Value(anything, axes, gone))
        with np.errstate(all="ignore"):
            outs = visit(self.frame.program, values, reader, guide=self.frame).results
        found = all_faults(out for out, free in zip(outs, self.free, strict=True) if not free)
        # A line may be met more than once, as in rounds of a loop: what was found last knows most.
        places = {(fault.operation, fault.line): fault for fault in reader.found if fault in found}
        return Certificate(not found, tuple(places.values()))

    def difference(self, outputs: Any, others: Any) -> float:
        """The largest absolute difference between outputs that may not shrink; infinite where only one is a number."""
        pairs = zip(self.free, jax.tree.leaves(outputs), jax.tree.leaves(others), strict=True)
        return max((_difference(_numbers(a), _numbers(b)) for free, a, b in pairs if not free), default=0.0)


@dataclass(eq=False)
class Origin:
    """A function before anything is removed, and its programs at the shapes of its inputs.

    Attributes:
      function: as the user gave it.
      params: shapes of its parameters.
      example: shapes of its inputs.
      trailing: of several axes that may be cut, take the last instead of the first.
      free: which outputs may lose entries.
    """

    function: Callable[..., Any]
    params: Params
    example: Any
    trailing: bool
    free: FreeOutput
    _programs: dict[Any, Traced] = field(default_factory=dict)

    @property
    def traced(self) -> Traced:
        """The program for the example."""
        return self.at(self.example)

    def at(self, inputs: Any) -> Traced:
        """The program for other inputs, visited twice: to see which parts of split axes can be cut, and for good."""
        inputs = jax.tree.map(jaxprs.struct, inputs)
        if (key := jaxprs.key(inputs)) not in self._programs:
            program = jaxprs.trace(self.function, self.params, *inputs)
            traced = self._visit(program, inputs, Labels(self.trailing))
            if decided := traced.labels.decide():
                ambiguous = traced.labels.ambiguous()  # each visit has labels of its own
                traced = replace(self._visit(program, inputs, Labels(self.trailing, decided)), ambiguous=ambiguous)
            self._programs[key] = traced
        return self._programs[key]

    def _visit(self, program: tuple[Any, Any], inputs: Any, labels: Labels) -> Traced:
        params, outputs = tree.flatten(self.params), tree.flatten(program[1])
        axes = [tuple(map(labels.fresh, leaf.shape)) for leaf in params.leaves]
        labels.born = labels.count
        given = []
        for path, leaf in jax.tree.leaves_with_path(inputs):
            name = f"input{jax.tree_util.keystr(path)}"
            given.append(tuple(labels.fixed(size, f"axis {i} of {name}") for i, size in enumerate(leaf.shape)))
        frame = visit(program[0], [*axes, *given], Labelling(labels, RULES))
        if callable(self.free):
            free = [bool(self.free(*pair)) for pair in zip(outputs.paths, jax.tree.leaves(program[1]), strict=True)]
        else:
            free = matching(() if self.free is None else self.free, [(path,) for path in outputs.paths], "free_output")
        for path, out_free, out_axes in zip(outputs.paths, free, frame.results, strict=True):
            name = f"the output {tree.show(path)}" if path else "the output"
            for i, one in enumerate(() if out_free else out_axes):
                labels.pin(one, f"axis {i} of {name}")
        out_tree = jax.tree.structure(program[1])
        return Traced(frame, labels, groups.rows_of(params.paths, axes, labels), out_tree, free)


def matching(patterns: str | Sequence[str], names: Sequence[Sequence[str]], what: str) -> list[bool]:
    """Which of some things, each with its names, glob patterns choose; a leading ``!`` excludes.

    Raises:
      ValueError: a pattern that matches none; ``what`` says whose patterns these are.
    """
    listed = [patterns] if isinstance(patterns, str) else patterns
    return tree.matching(listed, names, lambda p: f"{what} {p!r} matches none of {[' or '.join(own) for own in names]}")


def _numbers(output: Any) -> np.ndarray:
    if jax.numpy.issubdtype(output.dtype, jax.dtypes.prng_key):
        output = jax.random.key_data(output)
    array = np.asarray(output)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    return float(np.max(np.where(np.isnan(apart), np.inf, apart), initial=0.0))
