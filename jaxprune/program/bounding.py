"""A visit that says what the numbers in a program can be, apart for the entries that a plan removes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune.program import jaxprs, visitor
from jaxprune.program.labelling import Axes
from jaxprune.program.ranges import ANYTHING, ZERO, Range, choose, hull, join, many, measure, pick, settle

#: For each axis that loses entries, which go.
Gone = dict[int, np.ndarray]


class Fault(NamedTuple):
    """A place where what is removed makes a difference.

    Attributes:
      operation: name of the operation, as in the traced program.
      line: where it comes from: ``file.py:12 (function)``.
      reason: what is wrong, in words.
    """

    operation: str
    line: str
    reason: str


@dataclass(eq=False)
class Value:
    """What is known of one value.

    Attributes:
      rest: the range of the entries that stay along every axis.
      axes: for each axis that loses entries a range for each index. At an index that goes it holds for all entries
        there; at one that stays, for those that stay along the other axes as well.
      gone: for each of these axes, which indices go.
      faults: the differences that the value may have taken part in.
      peak: ``(axes, number)``: wherever along the other axes, some entry along these is at least the number.
      largest: ``(value, axes, sources)``: this is the maximum of another value over some axes; for each axis of this
        value the axis of the other, or ``None``.
      cause: the operation that first made removed entries infinite or NaN.
      known: gives the value itself, if no parameter and no input takes part in it.
      finite_at: gives the places where entries that may be infinite are finite for sure.
    """

    rest: Range
    axes: dict[int, Range] = field(default_factory=dict)
    gone: Gone = field(default_factory=dict)
    faults: frozenset[Fault] = frozenset()
    peak: tuple[tuple[int, ...], float] | None = None
    largest: "tuple[Value, tuple[int, ...], tuple[int | None, ...]] | None" = None
    cause: str = ""
    known: Callable[[], Any] | None = None
    finite_at: Callable[[], Any] | None = None

    def anywhere(self, but: Sequence[int] = ()) -> Range:
        """A range for all entries, except those that go along some axes."""
        parts = [hull(pick(self.axes[i], gone)) for i, gone in self.gone.items() if i not in but]
        return join(self.rest, *parts)

    def along(self, axis: int, gone: np.ndarray, but: Sequence[int] = ()) -> Range:
        """Ranges for each index of an axis that loses entries, even if this value is repeated along it."""
        return self.axes[axis] if axis in self.axes else choose(gone, self.anywhere(but), self.rest)

    def ranges(self) -> list[Range]:
        """All that is known."""
        return [self.rest, *self.axes.values()]

    def is_number(self, number: float) -> bool:
        """Whether all entries are one number."""
        return all(np.all((a.low == number) & (a.high == number) & ~a.nan) for a in self.ranges())

    def is_finite(self) -> bool:
        """Whether all entries are finite for sure."""
        return all(np.all(a.finite) for a in self.ranges())


@dataclass(eq=False)
class Step(visitor.Site):
    """What a rule sees of the equation at hand, besides what is known of its operands.

    Attributes:
      faults: what the rule finds.
    """

    faults: list[Fault] = field(default_factory=list)

    @cached_property
    def outs(self) -> list[Gone]:
        """For each result, by axis, which entries go: only the axes that lose some."""
        return [self.reader.gone(self.guide.values[out]) for out in self.equation.outvars]  # type: ignore[union-attr]

    def fault(self, reason: str) -> None:
        """Notes that what is removed makes a difference here."""
        self.faults.append(Fault(self.name, self.line, reason))

    def value(self, rest: Range, axes: dict[int, Range], values: Sequence[Value], result: int = 0) -> Value:
        """A result. Entries that stay are finite, unless the program writes infinities or NaN: that is assumed."""
        dtype, gone = self.equation.outvars[result].aval.dtype, self.outs[result]
        nan = any(value.rest.nan.any() for value in values)
        infinite = any(value.rest.infinite.any() for value in values)

        def trust(range_: Range, stays: Any) -> Range:
            low, high, may_nan, may_infinite = settle(range_, dtype)
            return Range(low, high, may_nan & (nan | ~stays), may_infinite & (infinite | ~stays))

        return Value(trust(rest, np.bool_(True)), {i: trust(axes[i], ~gone[i]) for i in gone}, gone)

    def each(self, values: Sequence[Value], function: Callable[..., Range]) -> list[Value]:
        """Applies a function of ranges to what is known of all entries, and at each index that goes."""
        rest = function(*(value.rest for value in values))
        found = []
        for result, outs in enumerate(self.outs):
            axes = {}
            for axis, gone in outs.items():
                ranges = function(*(value.along(axis, gone) for value in values))
                axes[axis] = many(ranges, gone.size) if ranges.low.ndim == 0 else ranges
            found.append(self.value(rest, axes, values, result))
        return found

    def moved(self, value: Value, sources: Sequence[tuple[int | None, Any]], result: int = 0) -> Value:
        """A result each of whose axes is one of the operand's, or new: entries along new ones may be any.

        Args:
          value: what is known of the operand.
          sources: for each axis of the result, the axis of the operand or ``None``, and which of its entries.
          result: which of the results.
        """
        axes = {}
        for axis, gone in self.outs[result].items():
            source, index = sources[axis]
            found = None if source is None else value.axes.get(source)
            axes[axis] = choose(gone, value.anywhere(), value.rest) if found is None else pick(found, index)
        return self.value(value.rest, axes, [value], result)


#: ``(step, what is known of the operands) -> what is known of the results``.
Bound = Callable[[Step, Sequence[Value]], list[Value]]


class Bounding:
    """The reader of a visit with ranges. An operation without a rule may give anything.

    Attributes:
      found: the differences that were met, in the program's order.
    """

    site = Step

    def __init__(self, removed: np.ndarray, rules: Mapping[str, Bound], harmless: Iterable[str]) -> None:
        """``harmless``: operations that mix no entries, so that it costs nothing if they have no rule."""
        self.removed, self.rules, self.harmless = removed, rules, frozenset(harmless)
        self.found: list[Fault] = []

    def gone(self, axes: Axes) -> Gone:
        """The axes that lose entries, and which."""
        flags = ((i, self.removed[labels]) for i, labels in enumerate(axes))
        return {i: gone for i, gone in flags if gone.any()}

    def constant(self, variable: Any, value: Any, guide: visitor.Frame | None) -> Value:
        """What a constant holds."""
        return of_array(value, self.gone(guide.values[variable]))  # type: ignore[union-attr]

    def literal(self, atom: Any) -> Value:
        """The number."""
        return of_array(np.asarray(atom.val, atom.aval.dtype), {})

    def apply(self, step: Step, operands: Sequence[Value]) -> list[Value]:
        """By the rule of the operation; the results carry the faults of their operands on."""
        rule = self.rules.get(step.name)
        if rule is None or (step.equation.effects and not step.children):
            rule = unknown
            if step.name not in self.harmless and any(value.gone for value in operands):
                step.fault("is not known to the certificate, and may mix removed entries with others")
        results = rule(step, operands)
        self.found += step.faults
        if step.children:  # what is called answers for itself
            return results
        if len(results) == 1 and results[0].known is None and all(value.known for value in operands):
            results[0].known = cache(partial(_computed, step.equation, operands))
        faults = all_faults(operands) | frozenset(step.faults)
        return [_with(result, faults, step, operands) for result in results]


def unknown(step: Step, values: Sequence[Value]) -> list[Value]:
    """Nothing is known of the results."""
    return step.each(values, lambda *_: ANYTHING)


def _computed(equation: Any, operands: Sequence[Value]) -> Any:
    """A value that depends on neither parameters nor inputs: a mask of what comes later, for instance."""
    with jax.ensure_compile_time_eval():
        return jaxprs.bind(equation, [value.known() for value in operands if value.known])[0]


def _with(value: Value, faults: frozenset[Fault], step: Step, operands: Sequence[Value]) -> Value:
    """A result with what it has taken part in; the same object if that is nothing new, as maxima are told by it."""
    if not value.cause and any(not pick(found, value.gone[i]).finite.all() for i, found in value.axes.items()):
        earlier = (operand.cause for operand in operands if operand.cause)
        value = replace(value, cause=next(earlier, "") or f"`{step.name}` at {step.line}")
    return value if value.faults == faults else replace(value, faults=faults)


def of_array(array: Any, gone: Gone) -> Value:
    """What is known of a constant."""
    opaque = isinstance(array, Tracer) or jnp.issubdtype(array.dtype, jax.dtypes.extended)
    if opaque or not array.size:
        whole = ANYTHING if opaque else ZERO
        return Value(whole, {i: many(whole, flags.size) for i, flags in gone.items()}, gone)
    numbers = np.asarray(array)
    numbers = (np.abs(numbers) if np.issubdtype(numbers.dtype, np.complexfloating) else numbers).astype(np.float64)
    kept = np.ones(numbers.shape, bool)
    axes = {}
    for i, flags in gone.items():
        axes[i] = settle(measure(numbers, tuple(k for k in range(numbers.ndim) if k != i)), array.dtype)
        kept &= ~flags.reshape([-1 if k == i else 1 for k in range(numbers.ndim)])
    rest = settle(measure(numbers[kept], None), array.dtype) if kept.any() else ZERO
    return Value(rest, axes, gone, known=lambda: array)


def all_faults(values: Iterable[Value]) -> frozenset[Fault]:
    """What any of some values has taken part in."""
    return frozenset().union(*(value.faults for value in values))
