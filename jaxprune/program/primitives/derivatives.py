"""Functions with derivatives of their own, which are kept.

Their rules are traced like the function itself, from shapes, and cut the same way, so that the derivative of the
smaller function is the smaller derivative: relu'(0), or a gradient that passes straight through.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxprune.program import jaxprs
from jaxprune.program.labels import Axes
from jaxprune.program.narrowing import Call, Narrow, Rule
from jaxprune.program.primitives.calls import know_first, run_first

#: Derivatives up to this order use custom rules.
DERIVATIVES = 2


def _moving(equation: Any) -> list[int]:
    """The operands that have derivatives."""
    return [i for i, atom in enumerate(equation.invars) if jaxprs.is_inexact(atom.aval)]


def _of_moving(equation: Any, values: Sequence[Any]) -> Callable[..., list[Any]]:
    """The equation as a function of those."""

    def moved(*some: Any) -> list[Any]:
        given = dict(zip(_moving(equation), some, strict=True))
        return jaxprs.bind(equation, [given.get(i, value) for i, value in enumerate(values)])

    return moved


def _plain(call: Call) -> bool:
    """Whether to leave out the custom derivative: a rule may call the function itself, and so on without an end."""
    return call.place.count("derivative") >= DERIVATIVES


def _tie_custom_jvp(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    outs = call.enter(0, ins)
    if _plain(call):
        return outs
    moving = _moving(call.equation)

    def derivative(*args: Any) -> tuple[Any, Any]:
        primals, tangents = args[: len(ins)], args[len(ins) :]
        return jax.jvp(_of_moving(call.equation, primals), tuple(primals[i] for i in moving), tangents)

    avals = [atom.aval for atom in call.equation.invars]
    traced = jaxprs.trace_flat(derivative, [*avals, *(avals[i] for i in moving)])
    call.tie_all([*outs, *outs], call.enter(1, [*ins, *(ins[i] for i in moving)], traced))
    return outs


def _run_custom_jvp(site: Narrow, values: Sequence[Any]) -> list[Any]:
    if len(site.children) == 1:
        return run_first(site, values)
    small = jax.custom_jvp(lambda *args: site.enter(0, args))

    @small.defjvp
    def rule(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        both = site.enter(1, [*primals, *(tangents[i] for i in _moving(site.equation))])
        return both[: len(both) // 2], both[len(both) // 2 :]

    return list(small(*values))


def _tie_custom_vjp(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    outs = call.enter(0, ins)
    if _plain(call):
        return outs
    moving, back = _moving(call.equation), []

    def forward(*args: Any) -> list[Any]:
        results, pullback = jax.vjp(_of_moving(call.equation, args), *(args[i] for i in moving))
        residuals, treedef = jax.tree.flatten(pullback)
        back.append(treedef)
        return [*results, *residuals]

    traced = jaxprs.trace_flat(forward, [atom.aval for atom in call.equation.invars])
    with_residuals = call.enter(1, ins, traced)
    call.tie_all(outs, with_residuals[: len(outs)])
    residuals = [atom.aval for atom in jaxprs.body(traced).outvars[len(outs) :]]

    def backward(*args: Any) -> Any:
        pullback = jax.tree.unflatten(back[0], args[: len(residuals)])
        return pullback(list(args[len(residuals) :]))

    traced = jaxprs.trace_flat(backward, [*residuals, *(out.aval for out in call.equation.outvars)])
    gradients = call.enter(2, [*with_residuals[len(outs) :], *outs], traced)
    call.tie_all([ins[i] for i in moving], gradients)
    return outs


def _run_custom_vjp(site: Narrow, values: Sequence[Any]) -> list[Any]:
    if len(site.children) == 1:
        return run_first(site, values)
    count = len(site.outs)
    small = jax.custom_vjp(lambda *args: site.enter(0, args))

    def with_residuals(*args: Any) -> tuple[list[Any], list[Any]]:
        both = site.enter(1, args)
        return both[:count], both[count:]

    def pull_back(residuals: list[Any], cotangents: list[Any]) -> tuple[Any, ...]:
        gradients = site.enter(2, [*residuals, *cotangents])
        moved = dict(zip(_moving(site.equation), gradients, strict=True))
        return tuple(moved.get(i) for i in range(len(values)))

    small.defvjp(with_residuals, pull_back)
    return list(small(*values))


RULES = {
    "custom_jvp_call": Rule(_tie_custom_jvp, _run_custom_jvp, know_first, calls=True),
    "custom_vjp_call": Rule(_tie_custom_vjp, _run_custom_vjp, know_first, calls=True),
}
