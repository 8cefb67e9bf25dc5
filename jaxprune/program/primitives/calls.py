"""Operations that run other programs: these are visited at each place where they are called, and stay what they are.

What is known of their results follows from what is known of the programs, whatever that is (``Abstract``); and they run
on other values than those they were traced with as they would on these (``Concrete``).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.program import jaxprs
from jaxprune.program.jaxprs import Abstract, Concrete, Site
from jaxprune.program.labels import Axes
from jaxprune.program.narrowing import Call, Rule


def know_first(site: Abstract, ins: Sequence[Any]) -> list[Any]:
    """The results of the first program that is called; what may follow it is its derivative."""
    return site.enter(0, ins)


def _tie_inline(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    if any(isinstance(sharding, jax.sharding.Sharding) for sharding in call.params.get("in_shardings", ())):
        return call.unknown(ins, "a jit with shardings of its own")
    return call.enter(0, ins)


def run_first(site: Concrete, values: Sequence[Any]) -> list[Any]:
    """The results of the first program that is called."""
    outs, found = site.inner(0, values)
    site.leave(found)
    return outs


def _run_remat(site: Concrete, values: Sequence[Any]) -> list[Any]:
    how = {name: site.params[name] for name in ("prevent_cse", "policy")}
    outs, found = jax.checkpoint(lambda *args: site.inner(0, args), **how)(*values)
    site.leave(found)
    return outs


def _settled(
    site: Abstract, body: int, shared: Sequence[Any], carry: Sequence[Any], each: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
    """What holds for carried values before and after every round, and for the other results of the body."""
    shared, carry = [*map(site.shared, shared)], [*map(site.carried, carry)]
    rounds = 0
    while True:
        outs = site.enter(body, [*shared, *carry, *each])
        joined = [site.join(*pair, rounds) for pair in zip(carry, outs, strict=False)]
        if all(new is old for new, old in zip(joined, carry, strict=True)):
            return carry, outs[len(carry) :]
        carry, rounds = joined, rounds + 1


def _scan_parts(site: Site, values: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """The constants, what is carried, and what is stacked, of which the body has one axis less: told by the ranks."""
    equation, body = site.equation, jaxprs.body(site.params["jaxpr"])
    carried = sum(a.aval.ndim == b.aval.ndim for a, b in zip(equation.outvars, body.outvars, strict=True))
    fixed = sum(a.aval.ndim == b.aval.ndim for a, b in zip(equation.invars, body.invars, strict=True))
    return values[: fixed - carried], values[fixed - carried : fixed], values[fixed:]


def _know_scan(site: Abstract, ins: Sequence[Any]) -> list[Any]:
    shared, carry, stacked = _scan_parts(site, ins)
    carry, outs = _settled(site, 0, shared, carry, [*map(site.unstacked, stacked)])
    return [*carry, *map(site.stacked, outs)]


def _run_scan(site: Concrete, values: Sequence[Any]) -> list[Any]:
    shared, carry, stacked = _scan_parts(site, values)

    def step(state: Any, inputs: Any) -> Any:
        (carry, total), (inputs, each) = state, inputs
        outs, found = site.inner(0, [*shared, *carry, *inputs], each)
        total = {name: site.add(one, found.pop(name)) for name, one in total.items()}
        return (outs[: len(carry)], total), (outs[len(carry) :], found)

    how = {name: site.params[name] for name in ("length", "reverse", "unroll")}
    start, inputs = ([*carry], site.zeros), ([*stacked], site.each)
    (carry, total), (stacked, found) = jax.lax.scan(step, start, inputs, **how)
    site.leave(total, found)
    return [*carry, *stacked]


def _while_parts(site: Site, values: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """The operands of the test alone, those of the body alone, and those that are carried."""
    tests, bodies = site.params["cond_nconsts"], site.params["cond_nconsts"] + site.params["body_nconsts"]
    return values[:tests], values[tests:bodies], values[bodies:]


def _know_while(site: Abstract, ins: Sequence[Any]) -> list[Any]:
    """How often the body runs decides on every result."""
    for_test, for_body, carry = _while_parts(site, ins)
    carry, _ = _settled(site, 1, for_body, carry, ())
    return site.decided(carry, site.enter(0, [*map(site.carried, for_test), *carry]))


def _run_while(site: Concrete, values: Sequence[Any]) -> list[Any]:
    for_test, for_body, carry = _while_parts(site, values)

    def body(state: Any) -> Any:
        carry, total = state
        outs, found = site.inner(1, [*for_body, *carry])
        return outs, {name: site.add(one, found[name]) for name, one in total.items()}

    def test(state: Any) -> Any:
        return site.enter(0, [*for_test, *state[0]])[0]

    carry, total = jax.lax.while_loop(test, body, ([*carry], site.zeros))
    site.leave(total)
    return carry


def _know_cond(site: Abstract, ins: Sequence[Any]) -> list[Any]:
    first, *others = [site.enter(number, ins[1:]) for number in range(len(site.programs))]
    joined = [*map(site.carried, first)]
    for other in others:
        joined = [*map(site.join, joined, other)]
    return site.decided(joined, ins[:1])


def _run_cond(site: Concrete, values: Sequence[Any]) -> list[Any]:
    def branch(number: int) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            outs, found = site.inner(number, args)
            return outs, site.zeros | found

        return run

    outs, found = jax.lax.switch(jnp.asarray(values[0], jnp.int32), [*map(branch, site.children)], *values[1:])
    site.leave(found)
    return outs


_inline = Rule(_tie_inline, run_first, know_first, calls=True)

RULES = {
    **{name: _inline for name in "jit pjit closed_call core_call".split()},
    **{name: _inline._replace(run=_run_remat) for name in "remat2 checkpoint remat".split()},
    "scan": Rule(_know_scan, _run_scan, _know_scan, calls=True),
    "while": Rule(_know_while, _run_while, _know_while, calls=True),
    "cond": Rule(_know_cond, _run_cond, _know_cond, calls=True),
}
