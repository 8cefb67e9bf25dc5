"""Matrix products and convolutions: contracted axes are tied to each other, free axes pass on."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from jaxprune.program import range_arithmetic as on
from jaxprune.program.bounding import Step
from jaxprune.program.labels import Axes
from jaxprune.program.narrowing import Call, Narrow, Rule
from jaxprune.program.ranges import Range, Value, hull, not_zero, pick


class _Axes(NamedTuple):
    """Which axes of the two operands a product contracts, and goes through one by one, each with its partner.

    With groups, each entry along the ``ragged`` axes of the first operand is of one of them, how many is known at run
    time; the second operand has them along its ``grouped`` axes, the result in front if they part a contracted axis.
    """

    contracted: tuple[tuple[int, ...], tuple[int, ...]]
    batch: tuple[tuple[int, ...], tuple[int, ...]]
    ragged: tuple[int, ...] = ()
    grouped: tuple[int, ...] = ()

    @classmethod
    def of(cls, params: dict[str, Any]) -> "_Axes":
        numbers = params.get("ragged_dot_dimension_numbers")
        contracted, batch = params["dimension_numbers"] if numbers is None else numbers.dot_dimension_numbers
        groups = () if numbers is None else (numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions)
        return cls(contracted, batch, *groups)

    @property
    def apart(self) -> bool:
        """Whether the result has groups in front."""
        return bool({*self.ragged} & {*self.contracted[0]})

    def free(self, left: Sequence[Any], right: Sequence[Any]) -> tuple[list[int], list[int]]:
        """The other axes of both, which the result has last; by labels or shapes."""
        used = {*self.contracted[0], *self.batch[0]}, {*self.contracted[1], *self.batch[1], *self.grouped}
        return [i for i in range(len(left)) if i not in used[0]], [j for j in range(len(right)) if j not in used[1]]


def _tie_product(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    (left, right, *groups), axes, all_ = ins, _Axes.of(call.params), call.labels
    grouped = [right[j] for j in axes.grouped]
    by_group = *(left[i] for i in axes.ragged), *grouped, *chain(*groups)
    call.pin("rows of groups whose sizes are known at run time", *by_group)
    contracted, batch = ([(left[i], right[j]) for i, j in zip(*pair, strict=True)] for pair in axes[:2])
    for pair in (*contracted, *batch):
        all_.tie(*pair, "product")
    free = axes.free(left, right)
    rows, columns = [left[i] for i in free[0]], [right[j] for j in free[1]]
    roles = {"in": [*chain(*contracted)], "out": [*rows, *columns], "each": [*chain(*batch), *grouped]}
    all_.notes += [(labels, role) for role, axes_ in roles.items() for labels in axes_]
    one_by_one = [labels for labels, _ in batch]
    data = [own for own in (left, right) if not all_.of_parameters(own)]
    all_.multiplied |= {all_.origin(labels) for own in data for labels in own if labels.size}
    if rows and columns and len(data) == 2:
        all_.pairs.append((one_by_one, [labels for labels, _ in contracted], [*rows, *columns]))
        all_.paired += [int(labels[0]) for labels in (*left, *right) if labels.size]
    front = [call.fixed(call.out_shape()[0], "groups of rows")] if axes.apart else []
    return [(*front, *one_by_one, *rows, *columns)]


def _tie_convolution(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    image, kernel = ins
    numbers, groups = call.params["dimension_numbers"], call.params["feature_group_count"]
    if call.params["batch_group_count"] != 1:
        return call.unknown(ins, "a convolution with groups of the batch")
    (batch, channel, *space), (outs, per_group, *window) = numbers.lhs_spec, numbers.rhs_spec
    call.pin("a spatial axis of a convolution", *(image[axis] for axis in space))
    call.pin("the window of a convolution", *(kernel[axis] for axis in window))
    if groups == 1:
        call.labels.tie(image[channel], kernel[per_group], "product")
    else:
        _tie_groups(call, image[channel], kernel[outs], groups)
        call.pin("the inputs of one group of a convolution, which is removed as a whole", kernel[per_group])
    call.labels.notes += [(kernel[per_group], "in"), (kernel[outs], "out")]
    shape = call.out_shape()
    spatial = [call.fixed(shape[axis], "a spatial axis of a convolution") for axis in numbers.out_spec[2:]]
    result = dict(zip(numbers.out_spec, [image[batch], kernel[outs], *spatial], strict=True))
    return [tuple(result[axis] for axis in range(len(shape)))]


def _tie_groups(call: Call, inputs: np.ndarray, outputs: np.ndarray, groups: int) -> None:
    """A group goes with all of its inputs and outputs, so that all groups stay alike."""
    first = inputs.reshape(groups, -1)[:, :1]
    for labels in (inputs, outputs):
        blocks = labels.reshape(groups, -1)
        call.labels.tie(np.broadcast_to(first, blocks.shape).ravel(), blocks.ravel(), "product")


def _run_convolution(site: Narrow, values: Sequence[Any]) -> list[Any]:
    groups = site.params["feature_group_count"]
    if groups > 1:
        outs = site.ins[1][site.params["dimension_numbers"].rhs_spec[0]]
        groups = int(outs.reshape(groups, -1).any(axis=1).sum())
    return site.bind(values, feature_group_count=groups)


def _bound_product(step: Step, values: Sequence[Value]) -> list[Value]:
    (left, right, *_), dims = values, _Axes.of(step.params)
    fewest = most = 1
    for i, j in zip(*dims.contracted, strict=True):
        gone = left.gone.get(i, right.gone.get(j))
        most *= step.shape(0)[i]
        fewest *= 0 if dims.ragged else step.shape(0)[i] if gone is None else int(np.count_nonzero(~gone))
        if gone is not None:
            _contract(step, left, i, right, j, gone)
    free = dims.free(step.shape(0), step.shape(1))
    sources: list[tuple[int | None, int | None]] = [(None, None)] if dims.apart else []
    sources += [*zip(*dims.batch, strict=True), *((i, None) for i in free[0]), *((None, j) for j in free[1])]

    def at(axis: int, gone: np.ndarray) -> Range:
        i, j = sources[axis]
        a, b = left.along(i, gone, dims.contracted[0]), right.along(j, gone, dims.contracted[1])
        return on.total(on.mul(a, b), fewest, most)

    return [step.value(on.total(on.mul(left.rest, right.rest), fewest, most), at, values)]


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

    def at(axis: int, flags: np.ndarray) -> Range:
        source, into = (batch, None) if axis == numbers.out_spec[0] else (None, outs)
        a, b = image.along(source, flags, summed), kernel.along(into, flags, [per_group])
        if into is not None and groups > 1 and channel in image.axes:
            blocks = Range(*(part.reshape(groups, -1) for part in image.axes[channel]))
            a = Range(*(np.repeat(part, flags.size // groups) for part in hull(blocks, 1)))
        return on.total(on.mul(a, b), 0, most)

    return [step.value(on.total(on.mul(image.rest, kernel.rest), 0, most), at, values)]


def _count_product(equation: Any, operands: Sequence[tuple[int, ...]], out: tuple[int, ...]) -> int:
    axes = _Axes.of(equation.params)
    return 2 * math.prod(out[axes.apart :]) * math.prod(operands[0][axis] for axis in axes.contracted[0])


def _count_convolution(equation: Any, operands: Sequence[tuple[int, ...]], out: tuple[int, ...]) -> int:
    kernel, outputs = operands[1], equation.params["dimension_numbers"].rhs_spec[0]
    return 2 * math.prod(out) * math.prod(size for axis, size in enumerate(kernel) if axis != outputs)


RULES = {
    "dot_general": Rule(_tie_product, bound=_bound_product, flops=_count_product),
    "ragged_dot_general": Rule(_tie_product, bound=_bound_product, flops=_count_product),
    "conv_general_dilated": Rule(_tie_convolution, _run_convolution, _bound_convolution, _count_convolution),
}
