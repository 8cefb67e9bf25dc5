"""Traced programs: how they are made, and one pass over them, with values of any kind: labels, ranges, arrays, data.

A :class:`Reader` says what constants are and what an operation makes of its operands; the pass knows neither.
Operations that run other programs visit these in their turn, by :meth:`Site.enter`. Access to jaxprs reads alike on the
versions of JAX that are supported.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.extend.core as jex
import numpy as np
from jax.extend import source_info_util

Program = Any  # a jaxpr, closed or not


def trace(function: Callable[..., Any], *args: Any) -> tuple[Program, Any]:
    """The program of a function at the shapes of its arguments, and the shapes of what it returns."""
    for path, leaf in jax.tree.leaves_with_path(args):
        if not all(isinstance(size, int) for size in leaf.shape):
            name = f"args{jax.tree_util.keystr(path)}"
            raise ValueError(f"symbolic dimensions cannot be traced: {name} has shape {leaf.shape}")
    return jax.make_jaxpr(function, return_shape=True)(*args)


def trace_flat(function: Callable[..., Any], avals: Sequence[Any]) -> Program:
    """The program of a function of flat arguments, from their shapes."""
    return jax.make_jaxpr(function)(*map(struct, avals))


def struct(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of a value as JAX takes it, weak type included."""
    if not hasattr(leaf, "weak_type"):
        leaf = jax.typeof(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=bool(leaf.weak_type))


def key(inputs: Any) -> Any:
    """What decides whether a program serves for inputs: structure, shapes and dtypes."""
    leaves, structure = jax.tree.flatten(inputs)
    return structure, tuple((one.shape, one.dtype, one.weak_type) for one in map(struct, leaves))


def body(program: Program) -> Any:
    """The jaxpr itself, whose constants may be inputs."""
    return getattr(program, "jaxpr", program)


def bind(equation: Any, values: Sequence[Any], **changed: Any) -> list[Any]:
    """Runs one equation on ``values``, with some of its parameters changed."""
    params = equation.primitive.get_bind_params({**equation.params, **changed})
    with source_info_util.user_context(equation.source_info.traceback), equation.ctx.manager:
        out = equation.primitive.bind(*values, **params)
    return list(out) if equation.primitive.multiple_results else [out]


def is_inexact(aval: Any) -> bool:
    """Whether a value has a derivative."""
    return jax.numpy.issubdtype(aval.dtype, np.inexact)


#: A place in a program, across the calls that lead to it.
Place = tuple[Any, ...]


@dataclass(eq=False)
class Frame:
    """A program at one place where it is called, visited.

    Attributes:
      program: the jaxpr.
      reader: what it was visited with.
      values: of each variable.
      children: for the equations that call programs, by position, the frames of those, by their numbers.
    """

    program: Any
    reader: "Reader"
    values: dict[Any, Any] = field(default_factory=dict)
    children: dict[int, dict[int, "Frame"]] = field(default_factory=dict)

    def read(self, atom: Any) -> Any:
        """The value of an operand."""
        return self.reader.literal(atom) if isinstance(atom, jex.Literal) else self.values[atom]

    @property
    def results(self) -> list[Any]:
        """The values that the program returns."""
        return [self.read(atom) for atom in body(self.program).outvars]


@dataclass(eq=False)
class Site:
    """An equation, at one place where its program is called.

    Attributes:
      equation: as it was traced.
      reader: what the program is visited with.
      place: where the equation stands, across the calls that lead to it.
      caller: the line of the source from which its program is called.
      guide: the frame of an earlier visit.
      entered: the frames of the programs that the equation has called, if this is the first visit.
    """

    equation: Any
    reader: Any
    place: Place = ()
    caller: str = ""
    guide: Frame | None = None
    entered: dict[int, Frame] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the operation, as it is printed in a jaxpr."""
        return self.equation.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the equation."""
        return self.equation.params

    @property
    def line(self) -> str:
        """Where the equation comes from; for the libraries' own, the line that calls them."""
        return source_info_util.summarize(self.equation.source_info) or self.caller

    @property
    def children(self) -> dict[int, Frame]:
        """The frames of the programs that the equation calls, as the earlier visit has them."""
        return self.guide.children.get(self.place[-1], {}) if self.guide else {}

    @property
    def programs(self) -> Sequence[Program]:
        """The programs that the equation calls: one, the test and the body of a loop, or the branches of a choice."""
        if "body_jaxpr" in self.params:
            return self.params["cond_jaxpr"], self.params["body_jaxpr"]
        return self.params.get("branches") or [self.params["jaxpr" if "jaxpr" in self.params else "call_jaxpr"]]

    def shape(self, operand: int) -> tuple[int, ...]:
        """The shape of an operand."""
        return self.equation.invars[operand].aval.shape

    def out_shape(self, result: int = 0) -> tuple[int, ...]:
        """The shape of a result."""
        return self.equation.outvars[result].aval.shape

    def enter(self, number: int, ins: Sequence[Any], derivative: Program = None) -> list[Any]:
        """Visits a program that the equation calls, or a derivative, along an earlier visit; gives the results."""
        child = self.children.get(number)
        program = child.program if child else derivative or self.programs[number]
        place = (*self.place, number, "derivative" if derivative else self.name)
        frame = visit(program, ins, self.reader, place, self.line, child)
        if not child:
            self.entered[number] = frame
        return frame.results


class Abstract(Site):
    """An equation in a visit that says what is known of values: of any kind, by methods that each kind brings."""

    def shared(self, value: Any) -> Any:
        """What is known of a value that all steps of a loop take."""
        return value

    def carried(self, value: Any) -> Any:
        """What is known of a value, to be joined with others: that a loop carries, or a branch gives."""
        return value

    def unstacked(self, value: Any) -> Any:
        """What is known of a part of a value, for each step of a scan."""

    def stacked(self, value: Any) -> Any:
        """What is known of the stack of the values of all steps."""

    def join(self, value: Any, other: Any, rounds: int = 0) -> Any:
        """What is known of either of two values, after so many rounds; the first itself, if that is all."""

    def decided(self, values: list[Any], by: Sequence[Any]) -> list[Any]:
        """What is known of values, given those that decided which they are."""
        return values


class Concrete(Site):
    """An equation in a visit that runs the program, and may collect things on the way, by name: in loops too."""

    def inner(self, number: int, values: Sequence[Any], each: Any = None) -> tuple[list[Any], dict[str, Any]]:
        """The results of a program that the equation calls, and what is collected there; ``each``: for this step."""
        return self.enter(number, values), {}

    @property
    def zeros(self) -> dict[str, Any]:
        """Nothing yet, of all that programs that the equation calls collect and add up."""
        return {}

    @property
    def each(self) -> dict[str, Any]:
        """What each step of a scan is given a part of."""
        return {}

    def add(self, total: Any, found: Any) -> Any:
        """What was collected before, and what is found in one more step."""

    def leave(self, total: dict[str, Any], stacked: dict[str, Any] | None = None) -> None:
        """Takes what was collected: in all, and apart for each step."""


class Reader(Protocol):
    """What values are. ``site`` is the view of an equation that its rules take, a subclass of :class:`Site`."""

    site: Any

    def constant(self, variable: Any, value: Any, guide: Frame | None) -> Any:
        """The value of a variable that holds a constant of the program."""

    def literal(self, atom: Any) -> Any:
        """The value of a number that is written into the program."""

    def apply(self, site: Any, operands: Sequence[Any], /) -> Sequence[Any]:
        """The values of an equation's results."""
        ...


def visit(
    program: Any, ins: Sequence[Any], reader: Reader, place: Place = (), caller: str = "", guide: Frame | None = None
) -> Frame:
    """Gives all variables of a program values, equation by equation.

    Args:
      program: a jaxpr; the ``guide``'s own, if there is one.
      ins: the values of its inputs.
      reader: what constants and the results of equations are.
      place, caller: where the program is called, and from which line.
      guide: the frame of an earlier visit, for readers that depend on its values.
    """
    jaxpr, frame = body(program), Frame(program, reader)
    for variable, value in zip(jaxpr.constvars, getattr(program, "consts", ()), strict=True):
        frame.values[variable] = reader.constant(variable, value, guide)
    frame.values.update(zip(jaxpr.invars, ins, strict=True))
    for position, equation in enumerate(jaxpr.eqns):
        site = reader.site(equation, reader, (*place, position), caller, guide)
        outs = reader.apply(site, [frame.read(atom) for atom in equation.invars])
        frame.values.update(zip(equation.outvars, outs, strict=True))
        if site.entered:
            frame.children[position] = site.entered
    return frame
