"""One pass over a traced program that hands labels from operands to results, by the rules of its operations."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxprune.program import jaxprs
from jaxprune.program.labels import Axes, Labels, Place


@dataclass
class Scope:
    """A program, at one place where it is called: its values' labels, and the scopes of the programs it calls.

    Attributes:
      program: the jaxpr.
      axes: the labels of each variable.
      children: for the equations that call programs, by position, the scopes of those.
    """

    program: Any
    axes: dict[Any, Axes] = field(default_factory=dict)
    children: dict[int, list["Scope"]] = field(default_factory=dict)

    def read(self, atom: Any) -> Axes:
        """The labels of an operand."""
        if jaxprs.is_literal(atom):
            return tuple(np.zeros(size, np.int64) for size in np.shape(atom.val))
        return self.axes[atom]

    @property
    def out_axes(self) -> list[Axes]:
        """The labels of what the program returns."""
        return [self.read(atom) for atom in jaxprs.body(self.program).outvars]


@dataclass
class Call:
    """What a rule sees of the equation at hand, besides its operands' labels.

    Attributes:
      equation: as it was traced.
      labels: all of them, to tie and pin.
      place: where the equation stands, across the calls that lead to it.
      caller: the line of the source from which its program is called.
      children: the scopes of the programs that it calls, so far.
    """

    equation: Any
    labels: Labels
    place: Place = ()
    caller: str = ""
    children: list[Scope] = field(default_factory=list)

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the equation."""
        return self.equation.params

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the results."""
        return [out.aval.shape for out in self.equation.outvars]

    def pin(self, labels: np.ndarray, reason: str) -> None:
        """These entries stay, because of this equation."""
        self.labels.pin(labels, f"{reason}: {jaxprs.describe(self.equation, self.caller)}")

    def pass_over(self, labels: np.ndarray, reason: str) -> None:
        """These entries stay, because of what was chosen at this equation."""
        self.labels.pass_over(labels, f"{reason}: {jaxprs.describe(self.equation, self.caller)}")

    def fixed(self, size: int, reason: str) -> np.ndarray:
        """An axis of this equation's result whose entries stay."""
        return self.labels.fixed(size, f"{reason}: {jaxprs.describe(self.equation, self.caller)}")

    def enter(self, inner: Any, ins: Sequence[Axes], name: str = "") -> list[Axes]:
        """Walks a program that the equation calls; gives its results' labels."""
        line = jaxprs.line_of(self.equation) or self.caller
        scope = walk(inner, ins, self.labels, (*self.place, name or len(self.children)), line)
        self.children.append(scope)
        return scope.out_axes

    def choose(self, part: Any, candidates: dict[int, np.ndarray], words: str) -> int | None:
        """The axis to cut, of several that cannot all be."""
        words = f"{words}: {jaxprs.describe(self.equation, self.caller)}" if words else ""
        return self.labels.choose((*self.place, part), candidates, words)

    def unknown(self, ins: Sequence[Axes], reason: str) -> list[Axes]:
        """Pins all operands and results."""
        for axes in ins:
            for labels in axes:
                self.pin(labels, reason)
        return [tuple(self.fixed(size, reason) for size in shape) for shape in self.shapes]


def walk(inner: Any, ins: Sequence[Axes], labels: Labels, place: Place = (), caller: str = "") -> Scope:
    """Labels all values of a program, given the labels of its inputs, and the place and line where it is called."""
    from jaxprune.program.primitives.table import RULES  # the rules of calls walk in their turn

    jaxpr = jaxprs.body(inner)
    scope = Scope(inner)
    for variable in jaxpr.constvars:  # a constant may be cut like a parameter, without counting as one
        scope.axes[variable] = tuple(labels.fresh(size) for size in variable.aval.shape)
    scope.axes.update(zip(jaxpr.invars, ins, strict=True))
    for position, equation in enumerate(jaxpr.eqns):
        call = Call(equation, labels, (*place, position), caller)
        operands = [scope.read(atom) for atom in equation.invars]
        rule = RULES.get(equation.primitive.name)
        if equation.effects and not (rule and rule.calls):
            outs = call.unknown(operands, f"has the effect {', '.join(map(str, equation.effects))}")
        elif rule is None:
            outs = call.unknown(operands, "no rule for this operation")
        else:
            outs = rule.label(call, operands)
        scope.axes.update(zip(equation.outvars, outs, strict=True))
        if call.children:
            scope.children[position] = call.children
    return scope
