"""What is known of results of products, and whether removed entries contribute to them."""

import math
from collections.abc import Sequence

import numpy as np

from jaxprune.program import range_arithmetic as on
from jaxprune.program.bounding import Bound, Step, Value
from jaxprune.program.ranges import Range, hull, not_zero, pick


def _dot_general(step: Step, values: Sequence[Value]) -> list[Value]:
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


def _convolution(step: Step, values: Sequence[Value]) -> list[Value]:
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


BOUNDS: dict[str, Bound] = {"dot_general": _dot_general, "conv_general_dilated": _convolution}
