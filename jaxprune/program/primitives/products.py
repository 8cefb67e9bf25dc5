"""Matrix products and convolutions: contracted axes are tied to each other, free axes pass on."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune.program import range_arithmetic as on
from jaxprune.program.bounding import Bound, Step
from jaxprune.program.evaluation import Count, Narrow, Narrowing
from jaxprune.program.labelling import Axes, Call
from jaxprune.program.ranges import Range, Value, hull, not_zero, pick


def _tie_dot_general(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    left, right = ins
    (left_sum, right_sum), (left_batch, right_batch) = call.params["dimension_numbers"]
    for i, j in zip((*left_sum, *left_batch), (*right_sum, *right_batch), strict=True):
        call.labels.tie(left[i], right[j])
    free = [
        [axes[i] for i in range(len(axes)) if i not in used]
        for axes, used in ((left, {*left_sum, *left_batch}), (right, {*right_sum, *right_batch}))
    ]
    call.labels.notes += [(axes[i], "in") for axes, used in ((left, left_sum), (right, right_sum)) for i in used]
    call.labels.notes += [(labels, "out") for axes in free for labels in axes]
    batch, summed = [left[i] for i in left_batch], [left[i] for i in left_sum]
    call.labels.notes += [(axes[i], "each") for axes, used in ((left, left_batch), (right, right_batch)) for i in used]
    if batch and all(free):
        call.labels.pairs.append((batch, [*summed, *free[0], *free[1]]))
    return [(*(left[i] for i in left_batch), *free[0], *free[1])]


def _tie_convolution(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    image, kernel = ins
    numbers, groups = call.params["dimension_numbers"], call.params["feature_group_count"]
    if call.params["batch_group_count"] != 1:
        return call.unknown(ins, "a convolution with groups of the batch")
    (batch, channel, *space), (outs, per_group, *window) = numbers.lhs_spec, numbers.rhs_spec
    for axis in space:
        call.pin(image[axis], "a spatial axis of a convolution")
    for axis in window:
        call.pin(kernel[axis], "the window of a convolution")
    if groups == 1:
        call.labels.tie(image[channel], kernel[per_group])
    else:
        _tie_groups(call, image[channel], kernel[outs], groups)
        call.pin(kernel[per_group], "the inputs of one group of a convolution, which is removed as a whole")
    call.labels.notes += [(kernel[per_group], "in"), (kernel[outs], "out")]
    shape, result = call.out_shape(), dict[int, np.ndarray]()
    result[numbers.out_spec[0]], result[numbers.out_spec[1]] = image[batch], kernel[outs]
    for axis in numbers.out_spec[2:]:
        result[axis] = call.fixed(shape[axis], "a spatial axis of a convolution")
    return [tuple(result[axis] for axis in range(len(shape)))]


def _tie_groups(call: Call, inputs: np.ndarray, outputs: np.ndarray, groups: int) -> None:
    """A group goes with all of its inputs and outputs, so that all groups stay alike."""
    first = inputs.reshape(groups, -1)[:, :1]
    for labels in (inputs, outputs):
        blocks = labels.reshape(groups, -1)
        call.labels.tie(np.broadcast_to(first, blocks.shape).ravel(), blocks.ravel())


def _run_convolution(site: Narrow, values: Sequence[Any]) -> list[Any]:
    groups = site.params["feature_group_count"]
    if groups > 1:
        outs = site.ins[1][site.params["dimension_numbers"].rhs_spec[0]]
        groups = int(outs.reshape(groups, -1).any(axis=1).sum())
    return site.bind(values, feature_group_count=groups)


NARROWINGS = {
    "dot_general": Narrowing(_tie_dot_general),
    "conv_general_dilated": Narrowing(_tie_convolution, _run_convolution),
}


def _bound_dot_general(step: Step, values: Sequence[Value]) -> list[Value]:
    left, right = values
    (left_sum, right_sum), (left_batch, right_batch) = step.params["dimension_numbers"]
    fewest = most = 1
    for i, j in zip(left_sum, right_sum, strict=True):
        gone = left.gone.get(i, right.gone.get(j))
        most *= step.shape(0)[i]
        fewest *= step.shape(0)[i] if gone is None else int(np.count_nonzero(~gone))
        if gone is not None:
            _contract(step, left, i, right, j, gone)
    sources = [*zip(left_batch, right_batch, strict=True)]
    sources += [(i, None) for i in range(len(step.shape(0))) if i not in (*left_sum, *left_batch)]
    sources += [(None, j) for j in range(len(step.shape(1))) if j not in (*right_sum, *right_batch)]
    axes = {}
    for axis, gone in step.outs[0].items():
        i, j = sources[axis]
        a = left.along(-1 if i is None else i, gone, left_sum)
        b = right.along(-1 if j is None else j, gone, right_sum)
        axes[axis] = on.total(on.mul(a, b), fewest, most)
    return [step.value(on.total(on.mul(left.rest, right.rest), fewest, most), axes, values)]


def _contract(step: Step, left: Value, i: int, right: Value, j: int, gone: np.ndarray) -> None:
    """A product over an axis that loses entries: one factor has to be 0 there, and the other one finite."""
    a, b = pick(left.along(i, gone), gone), pick(right.along(j, gone), gone)
    product = on.mul(a, b)
    if product.zero.all():
        return
    for side, value in ((a, left), (b, right)):
        if not side.finite.all():
            step.fault(f"multiplies and adds up what is removed; factors {not_zero(side, value.cause)}")
            return
    step.fault(f"multiplies and adds up what is removed; its products {not_zero(product)}")


def _bound_convolution(step: Step, values: Sequence[Value]) -> list[Value]:
    image, kernel = values
    numbers, groups = step.params["dimension_numbers"], step.params["feature_group_count"]
    (batch, channel, *_), (outs, per_group, *window) = numbers.lhs_spec, numbers.rhs_spec
    shape = step.shape(1)
    gone = image.gone.get(channel, kernel.gone.get(per_group))
    if gone is not None and groups == 1:
        _contract(step, image, channel, kernel, per_group, gone)
    summed = [channel] if groups == 1 else []
    most = math.prod(shape[i] for i in (per_group, *window))
    axes = {}
    for axis, flags in step.outs[0].items():
        if axis == numbers.out_spec[0]:
            a, b = image.along(batch, flags, summed), kernel.along(-1, flags, [per_group])
        else:
            b = kernel.along(outs, flags, [per_group])
            a = image.along(-1, flags, summed)
            if groups > 1 and channel in image.axes:
                blocks = Range(*(part.reshape(groups, -1) for part in image.axes[channel]))
                a = Range(*(np.repeat(part, flags.size // groups) for part in hull(blocks, 1)))
        axes[axis] = on.total(on.mul(a, b), 0, most)
    return [step.value(on.total(on.mul(image.rest, kernel.rest), 0, most), axes, values)]


BOUNDS: dict[str, Bound] = {"dot_general": _bound_dot_general, "conv_general_dilated": _bound_convolution}


def _count_dot_general(equation: Any, operands: Sequence[tuple[int, ...]], out: tuple[int, ...]) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    return 2 * math.prod(out) * math.prod(operands[0][axis] for axis in contracted)


def _count_convolution(equation: Any, operands: Sequence[tuple[int, ...]], out: tuple[int, ...]) -> int:
    kernel, outputs = operands[1], equation.params["dimension_numbers"].rhs_spec[0]
    return 2 * math.prod(out) * math.prod(size for axis, size in enumerate(kernel) if axis != outputs)


#: Floating-point operations, by the shapes of operands and result; a multiplication and an addition count 2.
OPERATIONS: dict[str, Count] = {"dot_general": _count_dot_general, "conv_general_dilated": _count_convolution}
