"""Operations that run other programs: these are visited at each place where they are called, and stay what they are.

Custom derivatives are kept. Their rules are traced like the function itself, from shapes, and cut the same way, so that
the derivative of the smaller function is the smaller derivative: relu'(0), or a gradient that passes straight through.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.program import jaxprs
from jaxprune.program.evaluation import Narrow, Narrowing
from jaxprune.program.labelling import Axes, Call

#: Derivatives up to this order use custom rules.
DERIVATIVES = 2

INLINE = "jit pjit closed_call core_call".split()
REMAT = "remat2 checkpoint remat".split()


def _inline(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    if any(isinstance(sharding, jax.sharding.Sharding) for sharding in call.params.get("in_shardings", ())):
        return call.unknown(ins, "a jit with shardings of its own")
    return call.enter(call.params["jaxpr" if "jaxpr" in call.params else "call_jaxpr"], ins)


def _run_inline(site: Narrow, values: Sequence[Any]) -> list[Any]:
    return site.follow(site.children[0], values)


def _run_remat(site: Narrow, values: Sequence[Any]) -> list[Any]:
    params = {name: site.params[name] for name in ("prevent_cse", "policy")}
    return jax.checkpoint(lambda *args: _run_inline(site, args), **params)(*values)


def scan_counts(equation: Any) -> tuple[int, int]:
    """How many constants the body takes, and how many carried values: told by the ranks, as the stacked ones differ."""
    jaxpr = jaxprs.body(equation.params["jaxpr"])
    outs = zip(equation.outvars, jaxpr.outvars, strict=True)
    carried = sum(len(whole.aval.shape) == len(part.aval.shape) for whole, part in outs)
    ins = zip(equation.invars, jaxpr.invars, strict=True)
    stacked = sum(len(whole.aval.shape) != len(part.aval.shape) for whole, part in ins)
    return len(jaxpr.invars) - carried - stacked, carried


def _scan(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    constants, carried = scan_counts(call.equation)
    fixed, stacked = constants + carried, []
    for axes in ins[fixed:]:
        call.pin(axes[0], "the steps of a scan")
        stacked.append(axes[1:])
    outs = call.enter(call.params["jaxpr"], [*ins[:fixed], *stacked])
    call.tie_all(ins[constants:fixed], outs[:carried])
    steps = call.fixed(call.params["length"], "the steps of a scan")
    return [*outs[:carried], *((steps, *axes) for axes in outs[carried:])]


def _run_scan(site: Narrow, values: Sequence[Any]) -> list[Any]:
    constants, carried = scan_counts(site.equation)
    fixed, count = values[:constants], constants + carried

    def step(carry: list[Any], inputs: list[Any]) -> tuple[list[Any], list[Any]]:
        outs = site.follow(site.children[0], [*fixed, *carry, *inputs])
        return outs[:carried], outs[carried:]

    how = {name: site.params[name] for name in ("length", "reverse", "unroll")}
    carry, stacked = jax.lax.scan(step, list(values[constants:count]), list(values[count:]), **how)
    return [*carry, *stacked]


def while_parts(params: dict[str, Any], values: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """The operands of the test alone, those of the body alone, and those that are carried."""
    tests, bodies = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    return list(values[:tests]), list(values[tests:bodies]), list(values[bodies:])


def _while(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    for_test, for_body, carry = while_parts(call.params, ins)
    call.enter(call.params["cond_jaxpr"], [*for_test, *carry])
    outs = call.enter(call.params["body_jaxpr"], [*for_body, *carry])
    call.tie_all(carry, outs)
    return outs


def _run_while(site: Narrow, values: Sequence[Any]) -> list[Any]:
    for_test, for_body, carry = while_parts(site.params, values)
    test, body = site.children
    return jax.lax.while_loop(
        lambda carry: site.follow(test, [*for_test, *carry])[0],
        lambda carry: site.follow(body, [*for_body, *carry]),
        carry,
    )


def _cond(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    outs = [call.enter(branch, ins[1:]) for branch in call.params["branches"]]
    for other in outs[1:]:
        call.tie_all(outs[0], other)
    return outs[0]


def _run_cond(site: Narrow, values: Sequence[Any]) -> list[Any]:
    branches = [lambda *args, child=child: site.follow(child, args) for child in site.children]
    return list(jax.lax.switch(jnp.asarray(values[0], jnp.int32), branches, *values[1:]))


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


def _custom_jvp(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    outs = call.enter(call.params["call_jaxpr"], ins)
    if _plain(call):
        return outs
    moving = _moving(call.equation)

    def derivative(*args: Any) -> tuple[Any, Any]:
        primals, tangents = args[: len(ins)], args[len(ins) :]
        return jax.jvp(_of_moving(call.equation, primals), tuple(primals[i] for i in moving), tangents)

    avals = [atom.aval for atom in call.equation.invars]
    traced = jaxprs.trace_flat(derivative, [*avals, *(avals[i] for i in moving)])
    call.tie_all([*outs, *outs], call.enter(traced, [*ins, *(ins[i] for i in moving)], "derivative"))
    return outs


def _run_custom_jvp(site: Narrow, values: Sequence[Any]) -> list[Any]:
    function, *derivatives = site.children
    if not derivatives:
        return site.follow(function, values)
    small = jax.custom_jvp(lambda *args: site.follow(function, args))

    @small.defjvp
    def rule(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        both = site.follow(derivatives[0], [*primals, *(tangents[i] for i in _moving(site.equation))])
        return both[: len(both) // 2], both[len(both) // 2 :]

    return list(small(*values))


def _custom_vjp(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    outs = call.enter(call.params["call_jaxpr"], ins)
    if _plain(call):
        return outs
    moving, back = _moving(call.equation), []

    def forward(*args: Any) -> list[Any]:
        results, pullback = jax.vjp(_of_moving(call.equation, args), *(args[i] for i in moving))
        residuals, treedef = jax.tree.flatten(pullback)
        back.append(treedef)
        return [*results, *residuals]

    traced = jaxprs.trace_flat(forward, [atom.aval for atom in call.equation.invars])
    with_residuals = call.enter(traced, ins, "derivative")
    call.tie_all(outs, with_residuals[: len(outs)])
    residuals = [atom.aval for atom in jaxprs.body(traced).outvars[len(outs) :]]

    def backward(*args: Any) -> Any:
        pullback = jax.tree.unflatten(back[0], args[: len(residuals)])
        return pullback(list(args[len(residuals) :]))

    traced = jaxprs.trace_flat(backward, [*residuals, *(out.aval for out in call.equation.outvars)])
    gradients = call.enter(traced, [*with_residuals[len(outs) :], *outs], "derivative")
    call.tie_all([ins[i] for i in moving], gradients)
    return outs


def _run_custom_vjp(site: Narrow, values: Sequence[Any]) -> list[Any]:
    function, *derivatives = site.children
    if not derivatives:
        return site.follow(function, values)
    forward, backward = derivatives
    count = len(site.outs)
    small = jax.custom_vjp(lambda *args: site.follow(function, args))

    def with_residuals(*args: Any) -> tuple[list[Any], list[Any]]:
        both = site.follow(forward, args)
        return both[:count], both[count:]

    def pull_back(residuals: list[Any], cotangents: list[Any]) -> tuple[Any, ...]:
        gradients = site.follow(backward, [*residuals, *cotangents])
        moved = dict(zip(_moving(site.equation), gradients, strict=True))
        return tuple(moved.get(i) for i in range(len(values)))

    small.defvjp(with_residuals, pull_back)
    return list(small(*values))


NARROWINGS = {
    **{name: Narrowing(_inline, _run_inline, True) for name in INLINE},
    **{name: Narrowing(_inline, _run_remat, True) for name in REMAT},
    "scan": Narrowing(_scan, _run_scan, True),
    "while": Narrowing(_while, _run_while, True),
    "cond": Narrowing(_cond, _run_cond, True),
    "custom_jvp_call": Narrowing(_custom_jvp, _run_custom_jvp, True),
    "custom_vjp_call": Narrowing(_custom_vjp, _run_custom_vjp, True),
}
