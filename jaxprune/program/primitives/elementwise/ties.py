"""Operations on each entry alone: operands and results are tied along every axis that they share."""

from collections.abc import Sequence

import jax

from jaxprune.program.evaluation import Narrowing, run_whole
from jaxprune.program.labelling import Axes, Call

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
    out = []
    for axis, size in enumerate(call.out_shape()):
        same = [axes[axis] for axes in ins if axes and axes[axis].size == size]
        for other in same[1:]:
            call.labels.tie(same[0], other)
        out.append(same[0] if same else call.labels.fresh(size))
    return [tuple(out)] * len(call.equation.outvars)


def _one_by_one(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Several values that pass through unchanged."""
    return list(ins)


def _placed(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Values that move to a device; one that is split over several devices has to keep its shape."""
    if any(isinstance(place, jax.sharding.Sharding) for place in call.params["devices"]):
        return call.unknown(ins, "placed with a sharding")
    return list(ins)


def _bitcast(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    if call.out_shape() != tuple(labels.size for labels in ins[0]):
        return call.unknown(ins, "changes the width of the entries")
    return [ins[0]]


def _drawn(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Each entry depends on its place alone, so all are made, and those that are gone are cut."""
    for axes in ins:
        for labels in axes:
            call.pin(labels, "the keys of random numbers")
    return [tuple(map(call.labels.fresh, out.aval.shape)) for out in call.equation.outvars]


NARROWINGS = {
    **{name: Narrowing(label) for name in NAMES},
    "optimization_barrier": Narrowing(_one_by_one),
    "device_put": Narrowing(_placed),
    "bitcast_convert_type": Narrowing(_bitcast),
    **{name: Narrowing(_drawn, run_whole) for name in DRAWN},
}
