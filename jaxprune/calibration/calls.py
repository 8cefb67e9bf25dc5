"""How operations that run other programs are read: each program once for every place where it is called."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax import lax

from jaxprune.calibration import statistics
from jaxprune.calibration.following import INLINE, program_of
from jaxprune.calibration.reading import Call, Found, Reading, Seen, seen
from jaxprune.program.jaxprs import Site
from jaxprune.program.primitives.calls import scan_parts, while_parts


def _inline(reading: Reading, site: Site, operands: Sequence[Seen]) -> list[Seen]:
    return reading.enter(site, program_of(site), operands)


def _remat(reading: Reading, site: Site, operands: Sequence[Seen]) -> list[Seen]:
    if not reading.taps:
        return _inline(reading, site, operands)
    views, program = [one.view for one in operands], site.params["jaxpr"]
    ahead = reading.ahead(program, views, site)

    def run(values: Any, taps: Found) -> Any:
        results, inner = reading.within(program, views, values, site, taps)
        return [one.value for one in results], inner.found

    how = {name: site.params[name] for name in ("prevent_cse", "policy")}
    taps = {name: reading.taps[name] for name in ahead.used if name in reading.taps}
    outs, found = jax.checkpoint(run, **how)([one.value for one in operands], taps)
    reading.leave(ahead, found)
    return seen(outs)


def _scan(reading: Reading, site: Site, operands: Sequence[Seen]) -> list[Seen]:
    constants, carry, stacked = scan_parts(site, operands)
    program, length = site.params["jaxpr"], site.params["length"]
    values, start, xs = ([one.value for one in part] for part in (constants, carry, stacked))
    views = [one.view for one in constants] + [None for _ in carry]
    views += [one.view and one.view.in_scan(site.place) for one in stacked]
    ahead = reading.ahead(program, views, site)
    parted = {name for name in ahead.used if site.place in reading.uses[name].view.scans}  # a matrix a step
    taps = {name: reading.taps[name] for name in ahead.used if name in reading.taps}
    split = jax.tree.map(
        lambda one: one.reshape(length, -1, *one.shape[1:]), {name: taps.pop(name) for name in taps.keys() & parted}
    )

    def step(state: Any, inputs: Any) -> Any:
        (carry, summed), (xs, own) = state, inputs
        results, inner = reading.within(program, views, [*values, *carry, *xs], site, taps | own)
        outs = [one.value for one in results]
        summed = {name: statistics.add(one, inner.found[name]) for name, one in summed.items()}
        return (outs[: len(carry)], summed), (outs[len(carry) :], {name: inner.found[name] for name in each})

    each = ahead.shapes.keys() & parted
    zeros = {name: statistics.nothing(ahead.shapes[name]) for name in ahead.shapes.keys() - parted}
    how = {name: site.params[name] for name in ("length", "reverse", "unroll")}
    (after, summed), (ys, found) = lax.scan(step, (start, zeros), (xs, split), **how)
    reading.leave(ahead, summed | jax.tree.map(lambda one: one.reshape(-1, *one.shape[2:]), found))
    for name in parted:
        many, *rest = reading.uses[name].shape
        reading.uses[name] = reading.uses[name]._replace(shape=(length * many, *rest))
    return seen([*after, *ys])


def _while(reading: Reading, site: Site, operands: Sequence[Seen]) -> list[Seen]:
    for_test, for_body, carry = while_parts(site, [one.value for one in operands])
    start, program = site.params["cond_nconsts"], site.params["body_jaxpr"]
    views = [*(one.view for one in operands[start : start + len(for_body)]), *(None for _ in carry)]
    ahead = reading.ahead(program, views, site)
    test = jex.jaxpr_as_fun(site.params["cond_jaxpr"])

    def body(state: Any) -> Any:
        carry, summed = state
        results, inner = reading.within(program, views, [*for_body, *carry], site, {})
        summed = {name: statistics.add(one, inner.found[name]) for name, one in summed.items()}
        return [one.value for one in results], summed

    def going(state: Any) -> Any:
        return test(*for_test, *state[0])[0]

    outs, found = lax.while_loop(going, body, (carry, statistics.nothing(ahead.shapes)))
    reading.leave(ahead, found)
    return seen(outs)


def _cond(reading: Reading, site: Site, operands: Sequence[Seen]) -> list[Seen]:
    index, *rest = operands
    views, branches, shapes = [one.view for one in rest], [], {}
    for number, program in enumerate(site.params["branches"]):
        start = replace(reading, numbers=Counter(reading.numbers))
        ahead = reading.ahead(program, views, site, number)
        reading.leave(ahead, {})
        shapes |= ahead.shapes
        taps = {name: reading.taps[name] for name in ahead.used if name in reading.taps}
        branches.append(partial(start.within, program, views, site=site, taps=taps, branch=number))

    def run(branch: Callable[..., Any]) -> Callable[..., Any]:
        def with_all(*values: Any) -> Any:
            results, inner = branch(values)
            return [one.value for one in results], statistics.nothing(shapes) | inner.found

        return with_all

    index = jnp.asarray(index.value, jnp.int32)
    outs, found = lax.switch(index, [run(branch) for branch in branches], *(one.value for one in rest))
    reading.found |= found
    return seen(outs)


#: By the name of the operation.
CALLS: dict[str, Call] = {
    **dict.fromkeys(INLINE, _inline),
    **dict.fromkeys(("remat2", "checkpoint", "remat"), _remat),
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
