"""Operations on each entry alone: operands and results are tied along every axis that they share."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.program import range_arithmetic as on
from jaxprune.program.bounding import Bound, Step
from jaxprune.program.evaluation import Narrowing, run_whole
from jaxprune.program.labelling import Axes, Call
from jaxprune.program.ranges import ANYTHING, UNBOUNDED, Range, Value, between, choose, join

NAMES = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp clz complex conj
convert_element_type copy copy_p cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma
igamma_grad_a igammac imag integer_pow is_finite le le_to lgamma log log1p log2 logistic lt lt_to max min mul mulhi name
ne neg nextafter not one_minus_square or polygamma polynomial population_count pow random_gamma_grad real
reduce_precision regularized_incomplete_beta rem round rsqrt select_n shift_left shift_right_arithmetic
shift_right_logical sign sin sinh sqrt square stage stop_gradient sub tan tanh threefry2x32 xor zeta
""".split()


#: What makes values from shapes and keys.
DRAWN = "empty iota random_bits random_fold_in random_seed random_unwrap random_wrap".split()


def label(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Ties each operand's axis to the result's, unless it has size 1 and is repeated, or the operand is a scalar."""
    factors = call.name in ("mul", "div") or "derivative" in call.place
    out, by = [], "factors" if factors else "step" if "step" in call.place else ""
    for axis, size in enumerate(call.out_shape()):
        same = [axes[axis] for axes in ins if axes and axes[axis].size == size]
        for other in same[1:]:
            call.labels.tie(same[0], other, by)
        out.append(same[0] if same else call.labels.fresh(size))
    return [tuple(out)] * len(call.equation.outvars)


def _tie_one_by_one(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Several values that pass through unchanged."""
    return list(ins)


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
    for axes in ins:
        for labels in axes:
            call.pin(labels, "the keys of random numbers")
    return [tuple(map(call.labels.fresh, out.aval.shape)) for out in call.equation.outvars]


def _bound_drawn(step: Step, values: Sequence[Value]) -> list[Value]:
    """Random bits and keys."""
    return step.each([Value(UNBOUNDED)], lambda a: a)


def _bound_iota(step: Step, values: Sequence[Value]) -> list[Value]:
    size = step.params["shape"][step.params["dimension"]]
    found = {}
    for axis, gone in step.outs[0].items():
        index = np.arange(gone.size) if axis == step.params["dimension"] else np.zeros(gone.size)
        found[axis] = between(index, index if axis == step.params["dimension"] else size - 1)
    return [step.value(between(0.0, max(size - 1, 0)), found, [])]


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
        if which.known is not None and case.is_finite():
            found.finite_at = partial(_chosen, which.known, number)
    return [found]


def _chosen(known: Callable[[], Any], number: int) -> Any:
    return np.asarray(known()) == number


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


NARROWINGS = {
    **{name: Narrowing(label) for name in NAMES},
    "optimization_barrier": Narrowing(_tie_one_by_one),
    "device_put": Narrowing(_tie_placed),
    "bitcast_convert_type": Narrowing(_tie_bitcast),
    **{name: Narrowing(_tie_drawn, run_whole) for name in DRAWN},
}

BOUNDS: dict[str, Bound] = {
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
    "is_finite": lambda step, values: step.each(values, on.finite),
    **{name: _bound_drawn for name in ("threefry2x32", "random_bits", "random_seed", "random_wrap", "random_unwrap")},
    **{name: _bound_drawn for name in ("random_fold_in", "shift_left", "shift_right_logical")},
    "shift_right_arithmetic": _bound_drawn,
    "iota": _bound_iota,
    "empty": lambda step, values: step.each([Value(ANYTHING)], lambda a: a),
}
