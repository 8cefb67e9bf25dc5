"""Runs a traced program without the entries that are gone: every operation on smaller operands."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from jaxprune.program import jaxprs
from jaxprune.program.labels import Axes
from jaxprune.program.primitives.rules import cut
from jaxprune.program.primitives.table import RULES, Kept, Site
from jaxprune.program.visitor import Scope


def evaluate(scope: Scope, values: Sequence[Any], removed: np.ndarray) -> list[Any]:
    """The results of a program on what is left of its inputs.

    Args:
      scope: the program and its labels.
      values: small inputs, in the program's order. Traced.
      removed: for each label, whether it is gone.
    """
    jaxpr, small = jaxprs.body(scope.program), dict[Any, Any]()
    keep = partial(_kept, removed)
    for variable, value in zip(jaxpr.constvars, jaxprs.constants(scope.program), strict=True):
        small[variable] = cut(value, keep(scope.axes[variable]))
    small.update(zip(jaxpr.invars, values, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if jaxprs.is_literal(atom) else small[atom]

    for position, equation in enumerate(jaxpr.eqns):
        operands = [read(atom) for atom in equation.invars]
        outs = _run(scope, position, equation, operands, keep, removed)
        small.update(zip(equation.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _run(
    scope: Scope,
    position: int,
    equation: Any,
    operands: list[Any],
    keep: Callable[[Axes], Kept],
    removed: np.ndarray,
) -> list[Any]:
    children = scope.children.get(position, [])
    ins = [keep(scope.read(atom)) for atom in equation.invars]
    outs = [keep(scope.axes[out]) for out in equation.outvars]
    complete = all(flags.all() for kept in (*ins, *outs) for flags in kept)
    if complete and not any(removes(child, removed) for child in children):
        return jaxprs.bind(equation, operands)
    site = Site(equation, ins, outs, children, partial(evaluate, removed=removed))
    return RULES[equation.primitive.name].run(site, operands)


def removes(scope: Scope, removed: np.ndarray) -> bool:
    """Whether something is gone from any value of a program, or of those it calls."""
    values = (labels for axes in scope.axes.values() for labels in axes)
    inner = (child for children in scope.children.values() for child in children)
    return any(removed[labels].any() for labels in values) or any(removes(child, removed) for child in inner)


def _kept(removed: np.ndarray, axes: Axes) -> Kept:
    return tuple(~removed[labels] for labels in axes)
