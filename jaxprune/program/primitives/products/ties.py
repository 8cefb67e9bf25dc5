"""Matrix products and convolutions: contracted axes are tied to each other, free axes pass on."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune.program.evaluation import Narrow, Narrowing
from jaxprune.program.labelling import Axes, Call


def _dot_general(call: Call, ins: Sequence[Axes]) -> list[Axes]:
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
    return [(*(left[i] for i in left_batch), *free[0], *free[1])]


def _convolution(call: Call, ins: Sequence[Axes]) -> list[Axes]:
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


NARROWINGS = {"dot_general": Narrowing(_dot_general), "conv_general_dilated": Narrowing(_convolution, _run_convolution)}
