"""Operations that run other programs: these are walked at each place where they are called, and stay what they are.

Custom derivatives are kept. Their rules are traced like the function itself, from shapes, and cut the same way, so that
the derivative of the smaller function is the smaller derivative: relu'(0), or a gradient that passes straight through.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.program import jaxprs
from jaxprune.program.labels import Axes
from jaxprune.program.primitives.rules import Rule, Site
from jaxprune.program.visitor import Call

#: Derivatives up to this order use custom rules.
DERIVATIVES = 2


def _tie_all(call: Call, left: Sequence[Axes], right: Sequence[Axes]) -> None:
    for one, other in zip(left, right, strict=True):
        for a, b in zip(one, other, strict=True):
            call.labels.tie(a, b)


def _inline(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    if any(isinstance(sharding, jax.sharding.Sharding) for sharding in call.params.get("in_shardings", ())):
        return call.unknown(ins, "a jit with shardings of its own")
    return call.enter(call.params["jaxpr" if "jaxpr" in call.params else "call_jaxpr"], ins)


def _run_inline(site: Site, values: Sequence[Any]) -> list[Any]:
    return site.run(site.children[0], values)


def _run_remat(site: Site, values: Sequence[Any]) -> list[Any]:
    params = {name: site.params[name] for name in ("prevent_cse", "policy")}
    return jax.checkpoint(lambda *args: site.run(site.children[0], args), **params)(*values)


def scan_counts(equation: Any) -> tuple[int, int]:
    """How many constants the body takes, and how many carried values: told by the ranks, as the stacked ones differ."""
    jaxpr = jaxprs.body(equation.params["jaxpr"])
    outs = zip(equation.outvars, jaxpr.outvars, strict=True)
    carried = sum(len(whole.aval.shape) == len(np.shape(_aval(part))) for whole, part in outs)
    ins = zip(equation.invars, jaxpr.invars, strict=True)
    stacked = sum(len(_aval(whole).shape) != len(part.aval.shape) for whole, part in ins)
    return len(jaxpr.invars) - carried - stacked, carried


def _aval(atom: Any) -> Any:
    return atom.aval


def _scan(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    constants, carried = scan_counts(call.equation)
    fixed, stacked = constants + carried, []
    for axes in ins[fixed:]:
        call.pin(axes[0], "the steps of a scan")
        stacked.append(axes[1:])
    outs = call.enter(call.params["jaxpr"], [*ins[:fixed], *stacked])
    _tie_all(call, ins[constants:fixed], outs[:carried])
    steps = call.fixed(call.params["length"], "the steps of a scan")
    return [*outs[:carried], *((steps, *axes) for axes in outs[carried:])]


def _run_scan(site: Site, values: Sequence[Any]) -> list[Any]:
    constants, carried = scan_counts(site.equation)
    fixed, count = values[:constants], constants + carried

    def step(carry: list[Any], inputs: list[Any]) -> tuple[list[Any], list[Any]]:
        outs = site.run(site.children[0], [*fixed, *carry, *inputs])
        return outs[:carried], outs[carried:]

    how = {name: site.params[name] for name in ("length", "reverse", "unroll")}
    carry, stacked = jax.lax.scan(step, list(values[constants:count]), list(values[count:]), **how)
    return [*carry, *stacked]


def _while(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    tests, bodies = call.params["cond_nconsts"], call.params["body_nconsts"]
    carry = ins[tests + bodies :]
    call.enter(call.params["cond_jaxpr"], [*ins[:tests], *carry])
    outs = call.enter(call.params["body_jaxpr"], [*ins[tests : tests + bodies], *carry])
    _tie_all(call, carry, outs)
    return outs


def _run_while(site: Site, values: Sequence[Any]) -> list[Any]:
    tests, bodies = site.params["cond_nconsts"], site.params["body_nconsts"]
    test, body = site.children
    for_test, for_body, carry = values[:tests], values[tests : tests + bodies], list(values[tests + bodies :])
    return jax.lax.while_loop(
        lambda carry: site.run(test, [*for_test, *carry])[0], lambda carry: site.run(body, [*for_body, *carry]), carry
    )


def _cond(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    outs = [call.enter(branch, ins[1:]) for branch in call.params["branches"]]
    for other in outs[1:]:
        _tie_all(call, outs[0], other)
    return outs[0]


def _run_cond(site: Site, values: Sequence[Any]) -> list[Any]:
    branches = [lambda *args, scope=scope: site.run(scope, args) for scope in site.children]
    return list(jax.lax.switch(jnp.asarray(values[0], jnp.int32), branches, *values[1:]))


def _differentiable(equation: Any) -> list[int]:
    return [i for i, atom in enumerate(equation.invars) if jaxprs.is_inexact(_aval(atom))]


def _plain(call: Call) -> bool:
    """Whether to leave out the custom derivative: a rule may call the function itself, and so on without an end."""
    return call.place.count("derivative") >= DERIVATIVES


def _custom_jvp(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    outs = call.enter(call.params["call_jaxpr"], ins)
    if _plain(call):
        return outs
    moving = _differentiable(call.equation)

    def derivative(*args: Any) -> tuple[Any, Any]:
        primals, tangents = args[: len(ins)], args[len(ins) :]

        def moved(*some: Any) -> list[Any]:
            every = list(primals)
            for i, value in zip(moving, some, strict=True):
                every[i] = value
            return jaxprs.bind(call.equation, every)

        return jax.jvp(moved, tuple(primals[i] for i in moving), tangents)

    avals = [_aval(atom) for atom in call.equation.invars]
    traced = jaxprs.trace_flat(derivative, [*avals, *(avals[i] for i in moving)])
    both = call.enter(traced, [*ins, *(ins[i] for i in moving)], "derivative")
    _tie_all(call, [*outs, *outs], both)
    return outs


def _run_custom_jvp(site: Site, values: Sequence[Any]) -> list[Any]:
    function, *derivatives = site.children
    if not derivatives:
        return site.run(function, values)
    moving = _differentiable(site.equation)
    small = jax.custom_jvp(lambda *args: site.run(function, args))

    @small.defjvp
    def rule(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        both = site.run(derivatives[0], [*primals, *(tangents[i] for i in moving)])
        return both[: len(both) // 2], both[len(both) // 2 :]

    return list(small(*values))


def _custom_vjp(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    outs = call.enter(call.params["call_jaxpr"], ins)
    if _plain(call):
        return outs
    moving, back = _differentiable(call.equation), []

    def forward(*args: Any) -> list[Any]:
        def moved(*some: Any) -> list[Any]:
            every = list(args)
            for i, value in zip(moving, some, strict=True):
                every[i] = value
            return jaxprs.bind(call.equation, every)

        results, pullback = jax.vjp(moved, *(args[i] for i in moving))
        residuals, treedef = jax.tree.flatten(pullback)
        back.append(treedef)
        return [*results, *residuals]

    traced = jaxprs.trace_flat(forward, [_aval(atom) for atom in call.equation.invars])
    with_residuals = call.enter(traced, ins, "derivative")
    _tie_all(call, outs, with_residuals[: len(outs)])
    residuals = [_aval(atom) for atom in jaxprs.body(traced).outvars[len(outs) :]]
    cotangents = [out.aval for out in call.equation.outvars]

    def backward(*args: Any) -> Any:
        pullback = jax.tree.unflatten(back[0], args[: len(residuals)])
        return pullback(list(args[len(residuals) :]))

    traced = jaxprs.trace_flat(backward, [*residuals, *cotangents])
    gradients = call.enter(traced, [*with_residuals[len(outs) :], *outs], "derivative")
    _tie_all(call, [ins[i] for i in moving], gradients)
    return outs


def _run_custom_vjp(site: Site, values: Sequence[Any]) -> list[Any]:
    function, *derivatives = site.children
    if not derivatives:
        return site.run(function, values)
    forward, backward = derivatives
    moving, count = _differentiable(site.equation), len(site.outs)
    small = jax.custom_vjp(lambda *args: site.run(function, args))

    def with_residuals(*args: Any) -> tuple[list[Any], list[Any]]:
        both = site.run(forward, args)
        return both[:count], both[count:]

    def pull_back(residuals: list[Any], cotangents: list[Any]) -> tuple[Any, ...]:
        gradients = dict(zip(moving, site.run(backward, [*residuals, *cotangents]), strict=True))
        return tuple(gradients.get(i) for i in range(len(values)))

    small.defvjp(with_residuals, pull_back)
    return list(small(*values))


RULES = {
    **{name: Rule(_inline, _run_inline, True) for name in ("jit", "pjit", "closed_call", "core_call")},
    **{name: Rule(_inline, _run_remat, True) for name in ("remat2", "checkpoint", "remat")},
    "scan": Rule(_scan, _run_scan, True),
    "while": Rule(_while, _run_while, True),
    "cond": Rule(_cond, _run_cond, True),
    "custom_jvp_call": Rule(_custom_jvp, _run_custom_jvp, True),
    "custom_vjp_call": Rule(_custom_vjp, _run_custom_vjp, True),
}
