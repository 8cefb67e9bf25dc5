"""Programs without the entries that are gone: what is tied to them, every operation on less, and what that costs."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.program import jaxprs
from jaxprune.program.labels import Axes, Labels

#: One bool array for each axis of a value: which entries are left.
Kept = tuple[np.ndarray, ...]


class Call(jaxprs.Abstract):
    """What a rule sees of the equation at hand, besides its operands' labels."""

    @property
    def labels(self) -> Labels:
        """All labels, to tie and pin."""
        return self.reader.labels

    def here(self, reason: str) -> str:
        """A reason, with the operation and its line."""
        return f"{reason}: `{self.name}`" + (f" at {self.line}" if self.line else "")

    def pin(self, reason: str, *axes: np.ndarray) -> None:
        """The entries of these axes stay, because of this equation."""
        for labels in axes:
            self.labels.pin(labels, self.here(reason))

    def fixed(self, size: int, reason: str) -> np.ndarray:
        """An axis of this equation's result whose entries stay."""
        return self.labels.fixed(size, self.here(reason))

    def whole(self, axes: Axes, which: Collection[int], reason: str) -> Axes:
        """The axes of a result, those of an operand; some stay, in both, in whatever size the result has them."""
        self.pin(reason, *(axes[axis] for axis in which))
        sides = enumerate(zip(axes, self.out_shape(), strict=True))
        return tuple(self.fixed(size, reason) if i in which else labels for i, (labels, size) in sides)

    def tie_all(self, left: Sequence[Axes], right: Sequence[Axes], by: str = "") -> None:
        """Ties several values, axis by axis."""
        for one, other in zip(left, right, strict=True):
            for a, b in zip(one, other, strict=True):
                self.labels.tie(a, b, by)

    def shared(self, value: Axes) -> Axes:
        """Noted, as units that all steps have in common are told by it."""
        self.labels.repeated |= {self.labels.origin(labels) for labels in value if labels.size}
        return value

    def unstacked(self, value: Axes) -> Axes:
        """All steps stay."""
        self.pin("the steps of a scan", value[0])
        return value[1:]

    def stacked(self, value: Axes) -> Axes:
        """All steps stay."""
        return (self.fixed(self.params["length"], "the steps of a scan"), *value)

    def join(self, value: Axes, other: Axes, rounds: int = 0) -> Axes:
        """Both are tied, once for all rounds."""
        self.tie_all([value], [other], "" if self.name == "cond" else "step")
        return value

    def unknown(self, ins: Sequence[Axes], reason: str) -> list[Axes]:
        """Pins all operands and results."""
        self.pin(reason, *chain(*ins))
        shapes = (out.aval.shape for out in self.equation.outvars)
        return [tuple(self.fixed(size, reason) for size in shape) for shape in shapes]


class Narrow(jaxprs.Concrete):
    """An equation about to run on smaller operands."""

    @cached_property
    def ins(self) -> list[Kept]:
        """What is left of each operand."""
        return [kept_of(self.guide.read(atom), self.reader.removed) for atom in self.equation.invars]  # type: ignore[union-attr]

    @cached_property
    def outs(self) -> list[Kept]:
        """What is left of each result."""
        return [kept_of(self.guide.read(out), self.reader.removed) for out in self.equation.outvars]  # type: ignore[union-attr]

    def bind(self, values: Sequence[Any], **changed: Any) -> list[Any]:
        """Runs the operation on the small values, with some parameters changed."""
        return jaxprs.bind(self.equation, values, **changed)


class Rule(NamedTuple):
    """What is known of an operation.

    Attributes:
      tie: ``(call, labels of the operands) -> labels of the results``; ties and pins on the way.
      run: ``(site, small operands) -> small results``: how it becomes narrower.
      bound: ``(step, what is known of the operands) -> what is known of the results``; ``None``: they may be anything.
      flops: ``(equation, shapes of the operands, shape of the first result) -> floating-point operations``.
      entrywise: whether each entry of the results is of the entries at the same place alone.
      calls: whether it runs other programs, whose equations answer for themselves: then ``bound`` serves for whatever
        is known of values, and ``run`` for whatever they are.
    """

    tie: Callable[[Call, Sequence[Axes]], Sequence[Axes]]
    run: Callable[[Narrow, Sequence[Any]], Sequence[Any]] = Narrow.bind
    bound: Callable[..., Any] | None = None
    flops: Callable[..., int] | None = None
    entrywise: bool = False
    calls: bool = False


class Labelling:
    """The reader of a visit that labels.

    An operation without a rule pins everything that it touches, so a missing rule costs opportunities, never
    correctness.
    """

    site = Call

    def __init__(self, labels: Labels, rules: Mapping[str, Rule]) -> None:
        self.labels, self.rules = labels, rules

    def constant(self, variable: Any, value: Any, guide: jaxprs.Frame | None) -> Axes:
        """A constant may be cut like a parameter, without counting as one."""
        return tuple(self.labels.fresh(size) for size in variable.aval.shape)

    def literal(self, atom: Any) -> Axes:
        """A number stays."""
        return tuple(np.zeros(size, np.int64) for size in np.shape(atom.val))

    def apply(self, call: Call, operands: Sequence[Axes]) -> Sequence[Axes]:
        """By the rule of the operation."""
        rule, effects = self.rules.get(call.name), call.equation.effects
        if effects and not (rule and rule.calls):
            return call.unknown(operands, f"has the effect {', '.join(map(str, effects))}")
        return rule.tie(call, operands) if rule else call.unknown(operands, "no rule for this operation")


class Narrowing:
    """The reader of a visit with what is left of arrays, guided by labels.

    Args:
      removed: for each label, whether it is gone.
      rules: by the name of the operation.
    """

    site = Narrow

    def __init__(self, removed: np.ndarray, rules: Mapping[str, Rule]) -> None:
        self.removed, self.rules = removed, rules

    def constant(self, variable: Any, value: Any, guide: jaxprs.Frame | None) -> Any:
        """What is left of it."""
        return cut(value, kept_of(guide.values[variable], self.removed))  # type: ignore[union-attr]

    def literal(self, atom: Any) -> Any:
        """The number."""
        return atom.val

    def apply(self, site: Narrow, operands: Sequence[Any]) -> Sequence[Any]:
        """As it was traced where nothing is gone, else by the rule of the operation."""
        complete = all(flags.all() for kept in (*site.ins, *site.outs) for flags in kept)
        if complete and not any(removes(child, self.removed) for child in site.children.values()):
            return site.bind(operands)
        return self.rules[site.name].run(site, operands)


def removes(frame: jaxprs.Frame, removed: np.ndarray) -> bool:
    """Whether something is gone from any value of a labelled program, or of those it calls."""
    values = (labels for axes in frame.values.values() for labels in axes)
    inner = (child for children in frame.children.values() for child in children.values())
    return any(removed[labels].any() for labels in values) or any(removes(child, removed) for child in inner)


def operations(frame: jaxprs.Frame, removed: np.ndarray, rules: Mapping[str, Rule]) -> int:
    """Floating-point operations of a labelled program without what is gone.

    Padding counts as if it were data. The steps of a scan count each; the body of a while loop, whose length is not
    known, counts once; of the branches of a condition the dearest does.

    Args:
      frame: the program, labelled.
      removed: for each label, whether it is gone.
      rules: by the name of the operation; those without ``flops`` count nothing.
    """

    def shape(axes: Axes) -> tuple[int, ...]:
        return sizes(kept_of(axes, removed))

    total = 0
    for position, equation in enumerate(jaxprs.body(frame.program).eqns):
        name = equation.primitive.name
        if name in rules and (count := rules[name].flops):
            operands = [shape(frame.read(atom)) for atom in equation.invars]
            total += count(equation, operands, shape(frame.values[equation.outvars[0]]))
        elif children := frame.children.get(position):
            inner = [operations(child, removed, rules) for child in children.values()]
            if name == "cond":
                total += max(inner)
            elif name == "while":
                total += sum(inner)
            else:  # what follows the first program is its derivative
                total += inner[0] * (equation.params["length"] if name == "scan" else 1)
    return total


def kept_of(axes: Axes, removed: np.ndarray) -> Kept:
    """What is left of a value."""
    return tuple(~removed[labels] for labels in axes)


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
