"""Operations on each entry alone: operands and results are tied along every axis that they share."""

from collections.abc import Callable, Sequence
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.program import range_arithmetic as on
from jaxprune.program.bounding import Bound, Step, always, by_ranges, unknown
from jaxprune.program.labels import Axes
from jaxprune.program.narrowing import Call, Rule, run_whole
from jaxprune.program.primitives.arithmetic import BOUNDS, unchanged
from jaxprune.program.ranges import ANYTHING, UNBOUNDED, Range, Value, between, choose, join

#: Operations of which no bounds are known.
UNBOUND = """
bessel_i0e bessel_i1e clz digamma eq_to igamma igamma_grad_a igammac le_to lgamma log2 lt_to mulhi nextafter
one_minus_square polygamma polynomial population_count random_gamma_grad regularized_incomplete_beta stage tan zeta
""".split()


def label(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Ties each operand's axis to the result's, unless it has size 1 and is repeated, or the operand is a scalar."""
    factors = call.name in ("mul", "div") or "derivative" in call.place
    out, by = [], "factors" if factors else "step" if {"scan", "while"} & {*call.place} else ""
    for axis, size in enumerate(call.out_shape()):
        same = [axes[axis] for axes in ins if axes and axes[axis].size == size]
        for other in same[1:]:
            call.labels.tie(same[0], other, by)
        out.append(same[0] if same else call.labels.fresh(size))
    return [tuple(out)] * len(call.equation.outvars)


def _tie_placed(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Values that move to a device; one that is split over several devices has to keep its shape."""
    if any(isinstance(place, jax.sharding.Sharding) for place in call.params["devices"]):
        return call.unknown(ins, "placed with a sharding")
    return list(ins)


def _tie_bitcast(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    if call.out_shape() != tuple(labels.size for labels in ins[0]):
        return call.unknown(ins, "changes the width of the entries")
    return [ins[0]]


def _tie_drawn(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Each entry depends on its place alone, so all are made, and those that are gone are cut."""
    call.pin("the keys of random numbers", *chain(*ins))
    return [tuple(map(call.labels.fresh, out.aval.shape)) for out in call.equation.outvars]


def _bound_iota(step: Step, values: Sequence[Value]) -> list[Value]:
    along, size = step.params["dimension"], step.params["shape"][step.params["dimension"]]
    rest, places = between(0.0, max(size - 1, 0)), np.arange(size)
    return [step.value(rest, lambda axis, _: between(places, places) if axis == along else rest, [])]


def _selected(which: Range, *cases: Range) -> Range:
    """The case that a number names; any of them if it is not known."""
    found = join(*cases)
    for number, case in enumerate(cases):
        found = choose((which.low == number) & (which.high == number), case, found)
    return found


def _bound_select(step: Step, values: Sequence[Value]) -> list[Value]:
    which, *cases = values
    for number, case in enumerate(cases):
        if which.is_number(number):
            return [case]
    (found,) = step.each(values, _selected)
    for number, case in enumerate(cases):
        if (known := which.known) is not None and case.is_finite():
            found.finite_at = lambda known=known, number=number: np.asarray(known()) == number
    return [found]


def _compare(function: Callable[..., Range], same: bool) -> Bound:
    """A comparison; of a value with itself it is known, unless that is NaN."""

    def rule(step: Step, values: Sequence[Value]) -> list[Value]:
        if values[0] is not values[1]:
            return step.each(values, function)
        return step.each(values, lambda a, _: on.truth(~a.nan & same, ~a.nan & (not same)))

    return rule


def _bits(function: Callable[..., Range]) -> Bound:
    """Logic: known for bools only."""

    def rule(step: Step, values: Sequence[Value]) -> list[Value]:
        logical = step.equation.outvars[0].aval.dtype == jnp.bool_
        return step.each(values, function if logical else on.unknown)

    return rule


_drawn = always(UNBOUNDED)
_BOUNDS: dict[str, Bound] = {
    **BOUNDS,
    "select_n": _bound_select,
    "lt": _compare(on.less, False),
    "gt": _compare(lambda a, b: on.less(b, a), False),
    "le": _compare(on.less_equal, True),
    "ge": _compare(lambda a, b: on.less_equal(b, a), True),
    "eq": _compare(on.equal, True),
    "ne": _compare(lambda a, b: on.negation(on.equal(a, b)), False),
    "and": _bits(on.minimum),
    "or": _bits(on.maximum),
    "xor": _bits(on.unknown),
    "not": _bits(on.negation),
    "is_finite": by_ranges(on.finite),
    **{name: _drawn for name in "threefry2x32 shift_left shift_right_logical shift_right_arithmetic".split()},
}

_RANDOM = "random_bits random_fold_in random_seed random_unwrap random_wrap".split()

RULES = {
    **{name: Rule(label, entrywise=True) for name in UNBOUND},
    **{name: Rule(label, bound=bound, entrywise=True) for name, bound in _BOUNDS.items()},
    "optimization_barrier": Rule(lambda call, ins: ins, bound=unchanged),
    "device_put": Rule(_tie_placed, bound=unchanged),
    "bitcast_convert_type": Rule(_tie_bitcast, bound=unknown),
    **{name: Rule(_tie_drawn, run_whole, _drawn) for name in _RANDOM},
    "iota": Rule(_tie_drawn, run_whole, _bound_iota),
    "empty": Rule(_tie_drawn, run_whole, always(ANYTHING)),
}
