"""Traced programs: how they are made, and one pass over them, with values of any kind: labels, ranges, arrays, data.

A :class:`Reader` says what constants are and what an operation makes of its operands; the pass knows neither.
Operations that run other programs visit these in their turn, by :meth:`Site.enter` or, along an earlier visit,
:meth:`Site.follow`. Access to jaxprs reads alike on the versions of JAX that are supported.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.extend.core as jex
import numpy as np
from jax import tree_util
from jax.extend import source_info_util

Program = Any  # a jaxpr, closed or not


def trace(function: Callable[..., Any], *args: Any) -> tuple[Program, Any]:
    """The program of a function at the shapes of its arguments, and the shapes of what it returns."""
    for path, leaf in tree_util.tree_leaves_with_path(args):
        if not all(isinstance(size, int) for size in leaf.shape):
            name = f"args{tree_util.keystr(path)}"
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
      children: for the equations that call programs, by position, the frames of those.
    """

    program: Any
    reader: "Reader"
    values: dict[Any, Any] = field(default_factory=dict)
    children: dict[int, list["Frame"]] = field(default_factory=dict)

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
      entered: the frames of the programs that the equation has called in this visit.
    """

    equation: Any
    reader: Any
    place: Place = ()
    caller: str = ""
    guide: Frame | None = None
    entered: list[Frame] = field(default_factory=list)

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
    def children(self) -> list[Frame]:
        """The frames of the programs that the equation calls, as the earlier visit has them."""
        return self.guide.children.get(self.place[-1], []) if self.guide else []

    def shape(self, operand: int) -> tuple[int, ...]:
        """The shape of an operand."""
        return self.equation.invars[operand].aval.shape

    def out_shape(self, result: int = 0) -> tuple[int, ...]:
        """The shape of a result."""
        return self.equation.outvars[result].aval.shape

    def enter(self, program: Any, ins: Sequence[Any], name: str = "") -> list[Any]:
        """Visits a program that the equation calls; gives its results."""
        frame = visit(program, ins, self.reader, (*self.place, name or len(self.entered)), self.line)
        self.entered.append(frame)
        return frame.results

    def follow(self, child: Frame, ins: Sequence[Any]) -> list[Any]:
        """Visits a program that the equation calls as an earlier visit did; gives its results."""
        return visit(child.program, ins, self.reader, caller=self.line, guide=child).results


class Reader(Protocol):
    """What values are. ``site`` is the view of an equation that its rules take, a subclass of :class:`Site`."""

    site: Any

    def constant(self, variable: Any, value: Any, guide: Frame | None) -> Any:
        """The value of a variable that holds a constant of the program."""
        ...

    def literal(self, atom: Any) -> Any:
        """The value of a number that is written into the program."""
        ...

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
