"""Operations that run other programs: these are visited at each place where they are called, and stay what they are."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.program import jaxprs
from jaxprune.program.bounding import Step
from jaxprune.program.jaxprs import Site
from jaxprune.program.labels import Axes
from jaxprune.program.narrowing import Call, Narrow, Rule
from jaxprune.program.ranges import Range, Value, all_faults, join

#: Rounds of a loop that are followed; what still changes then is taken for unknown.
ROUNDS = 3


def _tie_inline(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    if any(isinstance(sharding, jax.sharding.Sharding) for sharding in call.params.get("in_shardings", ())):
        return call.unknown(ins, "a jit with shardings of its own")
    return call.enter(call.params["jaxpr" if "jaxpr" in call.params else "call_jaxpr"], ins)


def follow_first(site: Site, values: Sequence[Any]) -> list[Any]:
    """As an earlier visit did, the first program that is called; what may follow it is its derivative."""
    return site.follow(site.children[0], values)


def _run_remat(site: Narrow, values: Sequence[Any]) -> list[Any]:
    params = {name: site.params[name] for name in ("prevent_cse", "policy")}
    return jax.checkpoint(lambda *args: follow_first(site, args), **params)(*values)


def scan_parts(site: Site, values: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """The constants, what is carried, and what is stacked, of which the body has one axis less: told by the ranks."""
    equation, body = site.equation, jaxprs.body(site.params["jaxpr"])
    carried = sum(a.aval.ndim == b.aval.ndim for a, b in zip(equation.outvars, body.outvars, strict=True))
    fixed = sum(a.aval.ndim == b.aval.ndim for a, b in zip(equation.invars, body.invars, strict=True))
    return list(values[: fixed - carried]), list(values[fixed - carried : fixed]), list(values[fixed:])


def _enter_steps(call: Call, body: Any, constants: Sequence[Axes], others: Sequence[Axes]) -> list[Axes]:
    """The results of the body of a loop, all of whose steps have the constants in common."""
    call.labels.repeated |= {call.labels.origin(labels) for axes in constants for labels in axes if labels.size}
    return call.enter(body, [*constants, *others], "step")


def _tie_scan(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    constants, carry, stacked = scan_parts(call, ins)
    for axes in stacked:
        call.pin(axes[0], "the steps of a scan")
    outs = _enter_steps(call, call.params["jaxpr"], constants, [*carry, *(axes[1:] for axes in stacked)])
    call.tie_all(carry, outs[: len(carry)], "step")
    steps = call.fixed(call.params["length"], "the steps of a scan")
    return [*outs[: len(carry)], *((steps, *axes) for axes in outs[len(carry) :])]


def _run_scan(site: Narrow, values: Sequence[Any]) -> list[Any]:
    constants, carry, stacked = scan_parts(site, values)

    def step(carry: list[Any], inputs: list[Any]) -> tuple[list[Any], list[Any]]:
        outs = site.follow(site.children[0], [*constants, *carry, *inputs])
        return outs[: len(carry)], outs[len(carry) :]

    how = {name: site.params[name] for name in ("length", "reverse", "unroll")}
    carry, stacked = jax.lax.scan(step, carry, stacked, **how)
    return [*carry, *stacked]


def while_parts(site: Site, values: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """The operands of the test alone, those of the body alone, and those that are carried."""
    tests, bodies = site.params["cond_nconsts"], site.params["cond_nconsts"] + site.params["body_nconsts"]
    return list(values[:tests]), list(values[tests:bodies]), list(values[bodies:])


def _tie_while(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    for_test, for_body, carry = while_parts(call, ins)
    call.enter(call.params["cond_jaxpr"], [*for_test, *carry])
    outs = _enter_steps(call, call.params["body_jaxpr"], for_body, carry)
    call.tie_all(carry, outs, "step")
    return outs


def _run_while(site: Narrow, values: Sequence[Any]) -> list[Any]:
    for_test, for_body, carry = while_parts(site, values)
    test, body = site.children
    return jax.lax.while_loop(
        lambda carry: site.follow(test, [*for_test, *carry])[0],
        lambda carry: site.follow(body, [*for_body, *carry]),
        carry,
    )


def _tie_cond(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    outs = [call.enter(branch, ins[1:]) for branch in call.params["branches"]]
    for other in outs[1:]:
        call.tie_all(outs[0], other)
    return outs[0]


def _run_cond(site: Narrow, values: Sequence[Any]) -> list[Any]:
    branches = [lambda *args, child=child: site.follow(child, args) for child in site.children]
    return list(jax.lax.switch(jnp.asarray(values[0], jnp.int32), branches, *values[1:]))


def _bound_scan(step: Step, values: Sequence[Value]) -> list[Value]:
    constants, carry, stacked = scan_parts(step, values)
    inputs = [_shifted(value, -1) for value in stacked]

    def body(carry: list[Value]) -> list[Value]:
        return step.follow(step.children[0], [*constants, *carry, *inputs])

    carry = _settled(carry, lambda carry: body(carry)[: len(carry)])
    return [*carry, *(_shifted(value, 1) for value in body(carry)[len(carry) :])]


def _bound_while(step: Step, values: Sequence[Value]) -> list[Value]:
    for_test, for_body, carry = while_parts(step, values)
    test, body = step.children
    carry = _settled(carry, lambda carry: step.follow(body, [*for_body, *carry]))
    # How often the body runs decides on every result.
    faults = all_faults(step.follow(test, [*for_test, *carry]))
    return [replace(value, faults=value.faults | faults) for value in carry]


def _bound_cond(step: Step, values: Sequence[Value]) -> list[Value]:
    index, *operands = values
    branches = [step.follow(scope, operands) for scope in step.children]
    joined = [_joined(*outs) for outs in zip(*branches, strict=True)]
    return [replace(value, faults=value.faults | index.faults) for value in joined]


def _settled(carry: list[Value], body: Callable[[list[Value]], list[Value]]) -> list[Value]:
    """What holds for carried values before and after every round."""
    carry, rounds = [_joined(value) for value in carry], 0  # each its own: they may part after the first round
    while True:
        joined = [_joined(a, b) for a, b in zip(carry, body(carry), strict=True)]
        if all(_same(a, b) for a, b in zip(carry, joined, strict=True)):
            return joined
        rounds += 1
        if rounds >= ROUNDS:
            joined = [after.mapped(_grown, before) for before, after in zip(carry, joined, strict=True)]
        carry = joined


def _joined(*values: Value) -> Value:
    """What holds for either of some values of one shape."""
    first = values[0]
    axes = {i: join(*(value.axes[i] for value in values)) for i in first.axes}
    cause = next((value.cause for value in values if value.cause), "")
    return Value(join(*(value.rest for value in values)), axes, first.gone, all_faults(values), cause=cause)


def _same(a: Value, b: Value) -> bool:
    return a.faults == b.faults and jax.tree.all(jax.tree.map(np.array_equal, a.ranges(), b.ranges()))


def _grown(after: Range, before: Range) -> Range:
    """Bounds that still move are moved as far as they go."""
    low, high = (
        np.where(after.low < before.low, -np.inf, after.low),
        np.where(after.high > before.high, np.inf, after.high),
    )
    return Range(low, high, after.nan, after.infinite)


def _shifted(value: Value, by: int) -> Value:
    """One step of a stacked value (-1), or the stack of a value at all steps (1)."""
    axes = {i + by: found for i, found in value.axes.items()}
    gone = {i + by: flags for i, flags in value.gone.items()}
    return Value(value.rest, axes, gone, value.faults, cause=value.cause)


_inline = Rule(_tie_inline, follow_first, follow_first, calls=True)

RULES = {
    **{name: _inline for name in "jit pjit closed_call core_call".split()},
    **{name: _inline._replace(run=_run_remat) for name in "remat2 checkpoint remat".split()},
    "scan": Rule(_tie_scan, _run_scan, _bound_scan, calls=True),
    "while": Rule(_tie_while, _run_while, _bound_while, calls=True),
    "cond": Rule(_tie_cond, _run_cond, _bound_cond, calls=True),
}
