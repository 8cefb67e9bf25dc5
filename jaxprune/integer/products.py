"""Products of activations and coded weights, on integers: their sums are exact, and scaled once.

One function a primitive: ``(equation, side, weight, data, rounded) -> result``, or a text that says why it can't.
``side`` is the operand that is the weight. A new primitive is a row of :data:`PRODUCTS`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxprune.base import Array
from jaxprune.integer.rounding import LARGEST, Rounded
from jaxprune.integer.weights import Weight

_MOST = 2**31 - 1  # of a sum of integers
_NARROWEST = 64  # blocks of inputs that have a product each

#: ``(data, axes) -> Rounded``: codes, with one scale along all these axes.
Rounding = Callable[[Array, Sequence[int]], Rounded]


def dot(equation: Any, side: int, weight: Weight, data: Array, rounded: Rounding) -> Array | str:
    """``dot_general``; inputs in blocks of their own scale have a product a block."""
    contracted, batch = equation.params["dimension_numbers"]
    parts = _parts(weight, contracted[side])
    if isinstance(parts, str):
        return parts
    codes = rounded(data, contracted[1 - side])
    place = _Place(contracted, batch, [operand.aval.ndim for operand in equation.invars])
    total = jnp.zeros((), jnp.float32)
    for start, limit in parts:
        own, part = _cut(weight, contracted[side], start, limit), codes
        if len(parts) > 1:
            axis = contracted[1 - side][_long(weight, contracted[side])]
            part = codes._replace(codes=lax.slice_in_dim(codes.codes, start, limit, axis=axis))
        pair = (own.codes, part.codes) if side == 0 else (part.codes, own.codes)
        sums = lax.dot_general(*pair, (contracted, batch), preferred_element_type=jnp.int32)
        if own.zero is not None:
            rows = jnp.sum(part.codes, contracted[1 - side], keepdims=True, dtype=jnp.int32)
            sums -= place(own.spread(own.zero), side) * place(rows, 1 - side)
        assert own.scale is not None
        total += sums.astype(jnp.float32) * place(own.spread(own.scale), side)
    return _stored(equation, total * place(codes.scale, 1 - side))


class _Place:
    """Where numbers of an operand, one along its contracted axes, stand in the result: batch, free, free."""

    def __init__(self, contracted: Any, batch: Any, ranks: Sequence[int]) -> None:
        self.batch = batch
        self.free = [[i for i in range(ranks[side]) if i not in (*contracted[side], *batch[side])] for side in range(2)]

    def __call__(self, part: Array, side: int) -> Array:
        order = (*self.batch[side], *self.free[side])
        shape = [part.shape[axis] for axis in self.batch[side]]
        for number in range(2):
            shape += [part.shape[axis] if number == side else 1 for axis in self.free[number]]
        kept = lax.squeeze(part, [i for i in range(part.ndim) if i not in order])
        ranks = {axis: i for i, axis in enumerate(sorted(order))}
        return jnp.transpose(kept, [ranks[axis] for axis in order]).reshape(shape)


def _long(weight: Weight, axes: Sequence[int]) -> int:
    """Which of the contracted axes is cut: the one in blocks, or the longest."""
    cut = [i for i, axis in enumerate(axes) if not weight.one_scale([axis])]
    return cut[0] if cut else max(range(len(axes)), key=lambda i: weight.shape[axes[i]])


def _parts(weight: Weight, axes: Sequence[int]) -> list[tuple[int, int]] | str:
    """Where to cut the inputs, so that each part has one scale and its sums are exact."""
    if not axes:
        return "no inputs are summed up"
    if sum(not weight.one_scale([axis]) for axis in axes) > 1:
        return "scales along two axes of inputs"
    axis = axes[_long(weight, axes)]
    size, many = weight.shape[axis], weight.shared[axis]
    if many < min(size, _NARROWEST):
        return f"a scale for every {many} inputs"
    others = math.prod(weight.shape[i] for i in axes) // max(size, 1)
    most = _MOST // (LARGEST * weight.largest * max(others, 1))
    step = min(many, most)
    blocks = [(start, min(start + many, size)) for start in range(0, size, many)]
    return [(low, min(low + step, end)) for start, end in blocks for low in range(start, end, step)] or [(0, size)]


def _cut(weight: Weight, axes: Sequence[int], start: int, limit: int) -> Weight:
    axis = axes[_long(weight, axes)]
    if (start, limit) == (0, weight.shape[axis]):
        return weight
    many = min(weight.shared[axis], weight.shape[axis])

    def part(x: Array) -> Array:
        return lax.slice_in_dim(x, start // many, start // many + 1, axis=axis)

    zero = None if weight.zero is None else part(weight.zero)
    assert weight.scale is not None
    return replace(
        weight,
        codes=lax.slice_in_dim(weight.codes, start, limit, axis=axis),
        scale=part(weight.scale),
        zero=zero,
        blocks=tuple(limit - start if i == axis else many for i, many in enumerate(weight.shared)),
    )


def convolution(equation: Any, side: int, weight: Weight, data: Array, rounded: Rounding) -> Array | str:
    """``conv_general_dilated``, of a kernel with one scale an output channel; a scale an image."""
    params = equation.params
    numbers = params["dimension_numbers"]
    out, *inputs = numbers.rhs_spec
    if side != 1 or params["batch_group_count"] != 1:
        return "not a kernel" if side != 1 else "groups of the batch"
    if not weight.one_scale(inputs):
        return "more than one scale an output channel"
    if math.prod(weight.shape[i] for i in inputs) * LARGEST * weight.largest > _MOST:
        return "sums beyond int32"
    image, *rest = numbers.lhs_spec
    codes = rounded(data, rest)
    how = {name: params[name] for name in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")}
    how |= {"dimension_numbers": numbers, "preferred_element_type": jnp.int32}
    groups = params["feature_group_count"]
    sums = lax.conv_general_dilated(codes.codes, weight.codes, feature_group_count=groups, **how)

    def channels(part: Array) -> Array:
        shape = [sums.shape[axis] if axis == numbers.out_spec[1] and part.size > 1 else 1 for axis in range(sums.ndim)]
        return part.reshape(shape)

    if weight.zero is not None:
        shape = [groups if axis == out else size for axis, size in enumerate(weight.shape)]
        windows = lax.conv_general_dilated(codes.codes, jnp.ones(shape, jnp.int8), feature_group_count=groups, **how)
        windows = jnp.repeat(windows, weight.shape[out] // groups, numbers.out_spec[1])
        sums -= windows * channels(weight.spread(weight.zero))
    images = [sums.shape[axis] if axis == numbers.out_spec[0] else 1 for axis in range(sums.ndim)]
    assert weight.scale is not None
    scales = channels(weight.spread(weight.scale)) * codes.scale.reshape(images)
    return _stored(equation, sums.astype(jnp.float32) * scales)


def rows(equation: Any, side: int, weight: Weight, data: Array, rounded: Rounding) -> Array | str:
    """``gather`` of whole rows, of codes: the table is never dense."""
    params, table = equation.params, weight.shape
    numbers = params["dimension_numbers"]
    of_rows = tuple(numbers.start_index_map) == (0,) and tuple(numbers.collapsed_slice_dims) == (0,)
    whole = tuple(params["slice_sizes"]) == (1, *table[1:])
    if side or not of_rows or not whole or tuple(numbers.operand_batching_dims):
        return "not whole rows"
    how = {name: params[name] for name in ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")}

    def taken(part: Array, fill: Any) -> Array:
        part = jnp.broadcast_to(part, (table[0], *part.shape[1:]))
        return lax.gather(part, data, slice_sizes=(1, *part.shape[1:]), fill_value=fill, **how)

    assert weight.scale is not None
    codes = taken(weight.codes, 0).astype(jnp.int32)
    codes = codes if weight.zero is None else codes - taken(weight.spread(weight.zero), 0)
    beyond = jnp.nan if params["fill_value"] is None else params["fill_value"]
    return _stored(equation, codes.astype(jnp.float32) * taken(weight.spread(weight.scale), beyond))


def _stored(equation: Any, value: Array) -> Array:
    return value.astype(equation.outvars[0].aval.dtype)


#: By the name of the operation.
PRODUCTS: dict[str, Callable[..., Array | str]] = {
    "dot_general": dot,
    "conv_general_dilated": convolution,
    "gather": rows,
}
