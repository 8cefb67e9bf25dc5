"""A visit that says what the numbers in a program can be, apart for the entries that a plan removes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import Any

import jax
import numpy as np

from jaxprune.program import jaxprs, ranges
from jaxprune.program.labels import Axes
from jaxprune.program.narrowing import Rule
from jaxprune.program.ranges import ANYTHING, Fault, Gone, Range, Value, all_faults, join, of_array, pick

#: Values that no parameter and no input takes part in are computed up to this size, where ranges say too little.
EVALUATED = 2**20

#: Rounds of a loop that are followed; what still changes then is taken for unknown.
ROUNDS = 3


@dataclass(eq=False)
class Step(jaxprs.Abstract):
    """What a rule sees of the equation at hand, besides what is known of its operands.

    Attributes:
      faults: what the rule finds.
    """

    faults: list[Fault] = field(default_factory=list)

    @cached_property
    def outs(self) -> list[Gone]:
        """For each result, by axis, which entries go: only the axes that lose some."""
        return [self.reader.gone(self.guide.values[out]) for out in self.equation.outvars]  # type: ignore[union-attr]

    def exact(self, value: Value, shape: Sequence[int]) -> Value:
        """What is known of a value of this shape, from its numbers where no parameter and no input takes part in it."""
        if value.known is None or math.prod(shape) > EVALUATED:
            return value
        found = of_array(value.known(), value.gone).mapped(ranges.widen)
        return replace(value, rest=found.rest, axes=found.axes)

    def alike(self, values: Sequence[Value]) -> frozenset[int]:
        """Of the axes that lose entries, those along which no operand of an entrywise operation varies."""

        def repeats(operand: int, axis: int) -> bool:
            shape = self.shape(operand)
            return not shape or shape[axis] == 1 or axis in values[operand].alike

        every = range(len(values))
        return frozenset(axis for axis in self.outs[0] if values and all(repeats(k, axis) for k in every))

    def fault(self, reason: str) -> None:
        """Notes that what is removed makes a difference here."""
        self.faults.append(Fault(self.name, self.line, reason))

    def carried(self, value: Value) -> Value:
        """A value of its own, as those that are one at first may part after a round."""
        return _shifted(value, 0)

    def unstacked(self, value: Value) -> Value:
        """Without the axis of the steps."""
        return _shifted(value, -1)

    def stacked(self, value: Value) -> Value:
        """With an axis of the steps in front."""
        return _shifted(value, 1)

    def join(self, value: Value, other: Value, rounds: int = 0) -> Value:
        """What holds for either; bounds that still move after some rounds are moved as far as they go."""
        faults, found = value.faults | other.faults, value.mapped(join, other)
        if faults == value.faults and jax.tree.all(jax.tree.map(np.array_equal, value.ranges(), found.ranges())):
            return value
        found = found.mapped(_grown, value) if rounds + 1 >= ROUNDS else found
        return replace(found, faults=faults, cause=value.cause or other.cause)

    def decided(self, values: list[Value], by: Sequence[Value]) -> list[Value]:
        """With the faults of those."""
        return [replace(value, faults=value.faults | all_faults(by)) for value in values]

    def value(
        self, rest: Range, at: Callable[[int, np.ndarray], Range], values: Sequence[Value], result: int = 0
    ) -> Value:
        """A result, by its range, and the ranges ``at`` each index of an axis of which some go, from ``values``.

        Entries that stay are finite, unless the program writes infinities or NaN: that is assumed.
        """
        dtype, gone = self.equation.outvars[result].aval.dtype, self.outs[result]
        nan = any(value.rest.nan.any() for value in values)
        infinite = any(value.rest.infinite.any() for value in values)

        def trust(range_: Range, stays: Any) -> Range:
            low, high, may_nan, may_infinite = ranges.settle(range_, dtype)
            bad = may_nan & (nan | ~stays), may_infinite & (infinite | ~stays)
            return Range(*np.broadcast_arrays(low, high, *bad))

        axes = {i: trust(at(i, flags), ~flags) for i, flags in gone.items()}
        return Value(trust(rest, np.bool_(True)), axes, gone)

    def each(self, values: Sequence[Value], function: Callable[..., Range]) -> list[Value]:
        """Applies a function of ranges to what is known of all entries, and at each index that goes."""
        rest = function(*(value.rest for value in values))

        def at(axis: int, gone: np.ndarray) -> Range:
            return function(*(value.along(axis, gone) for value in values))

        return [self.value(rest, at, values, result) for result in range(len(self.outs))]

    def moved(self, value: Value, sources: Sequence[tuple[int | None, Any]], result: int = 0) -> Value:
        """A result each of whose axes is one of the operand's, or new: entries along new ones may be any.

        Args:
          value: what is known of the operand.
          sources: for each axis of the result, the axis of the operand or ``None``, and which of its entries.
          result: which of the results.
        """

        def at(axis: int, gone: np.ndarray) -> Range:
            source, index = sources[axis]
            return pick(value.axes[source], index) if source in value.axes else value.along(None, gone)

        return self.value(value.rest, at, [value], result)


#: What is known of the results, by what is known of the operands.
Bound = Callable[[Step, Sequence[Value]], list[Value]]


class Bounding:
    """The reader of a visit with ranges.

    An operation of which no bounds are known may give anything, and make a difference, unless it is entrywise.

    Attributes:
      found: the differences that were met, in the program's order.
    """

    site = Step

    def __init__(self, removed: np.ndarray, rules: Mapping[str, Rule]) -> None:
        self.removed, self.rules = removed, rules
        self.found: list[Fault] = []

    def gone(self, axes: Axes) -> Gone:
        """The axes that lose entries, and which."""
        flags = ((i, self.removed[labels]) for i, labels in enumerate(axes))
        return {i: gone for i, gone in flags if gone.any()}

    def constant(self, variable: Any, value: Any, guide: jaxprs.Frame | None) -> Value:
        """What a constant holds."""
        return of_array(value, self.gone(guide.values[variable]))  # type: ignore[union-attr]

    def literal(self, atom: Any) -> Value:
        """The number."""
        return of_array(np.asarray(atom.val, atom.aval.dtype), {})

    def apply(self, step: Step, operands: Sequence[Value]) -> list[Value]:
        """By the rule of the operation; the results carry the faults of their operands on."""
        rule = self.rules.get(step.name)
        bound, entrywise = (rule.bound, rule.entrywise) if rule else (None, False)
        if bound is None or (step.equation.effects and not step.children):
            bound = unknown
            if not entrywise and any(value.gone for value in operands):
                step.fault("is not known to the certificate, and may mix removed entries with others")
        results = bound(step, operands)
        if entrywise:
            results = [result.repeated(step.alike(operands)) for result in results]
        self.found += step.faults
        if step.children:  # what is called answers for itself
            return results
        if len(results) == 1 and results[0].known is None and all(value.known for value in operands):
            results[0].known = cache(partial(_computed, step.equation, operands))
            if not results[0].is_finite() and jaxprs.is_inexact(step.equation.outvars[0].aval):
                results = [step.exact(results[0], step.out_shape())]
        faults = all_faults(operands) | frozenset(step.faults)
        return [_with(result, faults, step, operands) for result in results]


def by_ranges(function: Callable[..., Range]) -> Bound:
    """A rule by a function of the operands' ranges."""
    return lambda step, values: step.each(values, function)


def always(range_: Range) -> Bound:
    """A rule for results of which one thing is known, whatever the operands."""
    return lambda step, values: step.each([Value(range_)], lambda a: a)


#: Nothing is known of the results.
unknown = by_ranges(lambda *_: ANYTHING)


def _computed(equation: Any, operands: Sequence[Value]) -> Any:
    """A value that depends on neither parameters nor inputs: a mask of what comes later, for instance."""
    with jax.ensure_compile_time_eval():
        return jaxprs.bind(equation, [value.known() for value in operands if value.known])[0]


def _shifted(value: Value, by: int) -> Value:
    """What is known of its numbers alone, with its axes at other places."""
    axes = {i + by: found for i, found in value.axes.items()}
    gone = {i + by: flags for i, flags in value.gone.items()}
    return Value(value.rest, axes, gone, value.faults, cause=value.cause)


def _grown(after: Range, before: Range) -> Range:
    low = np.where(after.low < before.low, -np.inf, after.low)
    return after._replace(low=low, high=np.where(after.high > before.high, np.inf, after.high))


def _with(value: Value, faults: frozenset[Fault], step: Step, operands: Sequence[Value]) -> Value:
    """A result with what it has taken part in; the same object if that is nothing new, as maxima are told by it."""
    if not value.cause and any(not pick(found, value.gone[i]).finite.all() for i, found in value.axes.items()):
        earlier = (operand.cause for operand in operands if operand.cause)
        value = replace(value, cause=next(earlier, "") or f"`{step.name}` at {step.line}")
    return value if value.faults == faults else replace(value, faults=faults)
