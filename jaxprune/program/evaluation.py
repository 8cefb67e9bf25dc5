"""Runs a traced program without the entries that are gone: every operation on smaller operands."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.program import jaxprs, visitor
from jaxprune.program.labelling import Axes, Call

#: One bool array for each axis of a value: which entries are left.
Kept = tuple[np.ndarray, ...]

#: ``(equation, shapes of the operands, shape of the first result) -> floating-point operations``.
Count = Callable[[Any, Sequence[tuple[int, ...]], tuple[int, ...]], int]


class Narrow(visitor.Site):
    """An equation about to run on smaller operands."""

    @cached_property
    def ins(self) -> list[Kept]:
        """What is left of each operand."""
        return [self.reader.kept(self.guide.read(atom)) for atom in self.equation.invars]  # type: ignore[union-attr]

    @cached_property
    def outs(self) -> list[Kept]:
        """What is left of each result."""
        return [self.reader.kept(self.guide.values[out]) for out in self.equation.outvars]  # type: ignore[union-attr]

    def bind(self, values: Sequence[Any], **changed: Any) -> list[Any]:
        """Runs the operation on the small values, with some parameters changed."""
        return jaxprs.bind(self.equation, values, **changed)


class Narrowing(NamedTuple):
    """How an operation becomes narrower.

    Attributes:
      tie: ``(call, labels of the operands) -> labels of the results``; ties and pins on the way.
      run: ``(site, small operands) -> small results``.
      calls: whether the operation runs other programs, whose equations answer for themselves.
    """

    tie: Callable[[Call, Sequence[Axes]], Sequence[Axes]]
    run: Callable[[Narrow, Sequence[Any]], Sequence[Any]] = Narrow.bind
    calls: bool = False


def evaluate(
    frame: visitor.Frame, values: Sequence[Any], removed: np.ndarray, rules: Mapping[str, Narrowing]
) -> list[Any]:
    """The results of a program on what is left of its inputs.

    Args:
      frame: the program, labelled.
      values: small inputs, in the program's order. Traced.
      removed: for each label, whether it is gone.
      rules: by the name of the operation.
    """
    return visitor.visit(frame.program, values, _Narrowed(removed, rules), guide=frame).results


class _Narrowed:
    """The reader of a visit with what is left of arrays."""

    site = Narrow

    def __init__(self, removed: np.ndarray, rules: Mapping[str, Narrowing]) -> None:
        self.removed, self.rules = removed, rules

    def kept(self, axes: Axes) -> Kept:
        return tuple(~self.removed[labels] for labels in axes)

    def constant(self, variable: Any, value: Any, guide: visitor.Frame | None) -> Any:
        return cut(value, self.kept(guide.values[variable]))  # type: ignore[union-attr]

    def literal(self, atom: Any) -> Any:
        return atom.val

    def apply(self, site: Narrow, operands: Sequence[Any]) -> Sequence[Any]:
        complete = all(flags.all() for kept in (*site.ins, *site.outs) for flags in kept)
        if complete and not any(removes(child, self.removed) for child in site.children):
            return site.bind(operands)
        return self.rules[site.name].run(site, operands)


def removes(frame: visitor.Frame, removed: np.ndarray) -> bool:
    """Whether something is gone from any value of a labelled program, or of those it calls."""
    values = (labels for axes in frame.values.values() for labels in axes)
    inner = (child for children in frame.children.values() for child in children)
    return any(removed[labels].any() for labels in values) or any(removes(child, removed) for child in inner)


def operations(frame: visitor.Frame, removed: np.ndarray, counts: Mapping[str, Count]) -> int:
    """Floating-point operations of a labelled program without what is gone.

    Padding counts as if it were data. The steps of a scan count each; the body of a while loop, whose length is not
    known, counts once; of the branches of a condition the dearest does.

    Args:
      frame: the program, labelled.
      removed: for each label, whether it is gone.
      counts: by the name of the operation; those that are missing count nothing.
    """

    def shape(axes: Axes) -> tuple[int, ...]:
        return sizes(tuple(~removed[labels] for labels in axes))

    total = 0
    for position, equation in enumerate(jaxprs.body(frame.program).eqns):
        name = equation.primitive.name
        if name in counts:
            operands = [shape(frame.read(atom)) for atom in equation.invars]
            total += counts[name](equation, operands, shape(frame.values[equation.outvars[0]]))
        elif children := frame.children.get(position):
            inner = [operations(child, removed, counts) for child in children]
            if name == "cond":
                total += max(inner)
            elif name == "while":
                total += sum(inner)
            else:  # what follows the first program is its derivative
                total += inner[0] * (equation.params["length"] if name == "scan" else 1)
    return total


def sizes(kept: Kept) -> tuple[int, ...]:
    """The shape that is left."""
    return tuple(int(np.count_nonzero(axis)) for axis in kept)


def run_whole(site: Narrow, values: Sequence[Any]) -> list[Any]:
    """For operations whose operands are complete: runs them as they were, and cuts the results."""
    return [cut(value, kept) for value, kept in zip(site.bind(values), site.outs, strict=True)]


def cut(value: Any, kept: Kept) -> Any:
    """The entries of a complete value that are left."""
    for axis, flags in enumerate(kept):
        if not flags.all():
            value = take(value, np.flatnonzero(flags), axis)
    return value


def take(value: Any, places: np.ndarray, axis: int) -> Any:
    """The entries at fixed places along an axis: a slice where they are evenly spaced, else a gather."""
    if isinstance(value, np.ndarray):
        return np.take(value, places, axis)
    steps = np.unique(np.diff(places))
    if places.size and steps.size <= 1 and (steps.size == 0 or steps[0] > 0):
        return jax.lax.slice_in_dim(value, places[0], places[-1] + 1, int(steps[0]) if steps.size else 1, axis)
    return jax.numpy.take(value, places, axis, unique_indices=True, indices_are_sorted=bool(np.all(steps > 0)))
