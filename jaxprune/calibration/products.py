"""How products use parameters: the matrices that they see, and the rows of data and of gradients that belong to them.

One function a primitive: ``(equation, side, view) -> Product or None``. A new primitive is a row of :data:`PRODUCTS`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxprune.base import Array
from jaxprune.calibration.views import View, grouped


class Product(NamedTuple):
    """A product of data x and a parameter.

    Attributes:
      view: the parameter as [L, K, N].
      shape: (L, K, N).
      data: which operand holds the data.
      rows: ``x -> [L, T, K]``, float32.
      out_rows: ``gradient of the product -> [L, T, N]``, float32.
      kind: what besides the data itself decides on ``rows``.
      groups: which operand holds the sizes of the groups of rows that each matrix has, if they differ.
      batch: the axes of the data and of the gradient that come first among rows, if there are more rows than data.
    """

    view: View
    shape: tuple[int, int, int]
    data: int
    rows: Callable[[Array], Array]
    out_rows: Callable[[Array], Array]
    kind: Any
    groups: int | None = None
    batch: tuple[int, int] | None = None


def _dot(equation: Any, side: int, view: View) -> Product | None:
    contracted, batch = equation.params["dimension_numbers"]
    own, data = equation.invars[side].aval, equation.invars[1 - side].aval
    inputs, stack = contracted[side], batch[side]
    free = [i for i in range(own.ndim) if i not in (*inputs, *stack)]
    view, sizes = grouped(view, own.shape, (stack, inputs, free))
    of_data = (batch[1 - side], [i for i in range(data.ndim) if i not in (*batch[1 - side], *contracted[1 - side])])
    # The result has the batch first, then what is left of the first operand, then of the second.
    places = [len(stack), len(of_data[1]), len(free)] if side else [len(stack), len(free), len(of_data[1])]
    axes = [range(sum(places[:i]), sum(places[: i + 1])) for i in range(3)]
    return Product(
        view,
        (sizes[0], sizes[1], sizes[2]),
        1 - side,
        lambda x: _grouped(x, (*of_data, contracted[1 - side])),
        lambda g: _grouped(g, (axes[0], *(axes[1:] if side else axes[:0:-1]))),
        (tuple(contracted[1 - side]), tuple(batch[1 - side])),
    )


def _grouped(x: Array, axes: Sequence[Sequence[int]]) -> Array:
    sizes = [math.prod(x.shape[i] for i in group) for group in axes]
    return jnp.transpose(x, [i for group in axes for i in group]).reshape(sizes).astype(jnp.float32)


def _convolution(equation: Any, side: int, view: View) -> Product | None:
    params, kernel = equation.params, equation.invars[1].aval
    if side != 1 or params["batch_group_count"] != 1:
        return None
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    out, into, *window = numbers.rhs_spec
    outputs, sizes = kernel.shape[out] // groups, [kernel.shape[i] for i in window]
    inputs = kernel.shape[into] * math.prod(sizes)
    order, shape = (out, into, *window), (groups, outputs, inputs)
    view = view.then("transpose", [kernel.shape[i] for i in order], permutation=order)
    view, _ = grouped(
        view.then("reshape", shape, new_sizes=shape, dimensions=None, sharding=None), shape, ((0,), (2,), (1,))
    )

    def rows(x: Array) -> Array:
        kernels = (kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2))
        patches = lax.conv_general_dilated_patches(
            x.astype(jnp.float32),
            sizes,
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            dimension_numbers=lax.ConvDimensionNumbers(numbers.lhs_spec, kernels, numbers.out_spec),
            precision=lax.Precision.HIGHEST,
        )
        return by_group(patches, inputs)  # channels come first among the features, so groups do

    def by_group(y: Array, size: int) -> Array:
        y = jnp.moveaxis(y, numbers.out_spec[1], -1).reshape(-1, groups, size)
        return jnp.swapaxes(y, 0, 1).astype(jnp.float32)

    kind = tuple(str(params[name]) for name in ("window_strides", "padding", "lhs_dilation", "rhs_dilation"))
    kind = (*kind, tuple(sizes), groups, str(numbers))
    first, _, *places = numbers.out_spec
    batch = None if min(places, default=first) < first else (numbers.lhs_spec[0], first)
    return Product(view, (groups, inputs, outputs), 0, rows, lambda g: by_group(g, outputs), kind, batch=batch)


def _ragged(equation: Any, side: int, view: View) -> Product | None:
    numbers = equation.params.get("ragged_dot_dimension_numbers")
    own = equation.invars[1].aval
    if side != 1 or own.ndim != 3:
        return None
    if numbers is not None:
        (contracted, batch) = numbers.dot_dimension_numbers
        plain = (tuple(map(tuple, contracted)), tuple(map(tuple, batch))) == (((1,), (1,)), ((), ()))
        if not plain or tuple(numbers.lhs_ragged_dimensions) != (0,) or tuple(numbers.rhs_group_dimensions) != (0,):
            return None
    each = lambda y: y.astype(jnp.float32)[None]  # noqa: E731
    return Product(view, own.shape, 0, each, each, "ragged", groups=2)


#: By the name of the operation, how it uses a parameter that is one of its operands.
PRODUCTS: dict[str, Callable[[Any, int, View], Product | None]] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "ragged_dot": _ragged,
    "ragged_dot_general": _ragged,
}


class Lookup(NamedTuple):
    """Rows of a parameter, looked up.

    Attributes:
      view: the table as [1, K, N].
      shape: (1, K, N).
      rows: ``places -> row numbers``, flat; what is out of range is beyond the table.
      out_rows: ``gradient of the result -> [T, N]``, float32.
    """

    view: View
    shape: tuple[int, int, int]
    rows: Callable[[Array], Array]
    out_rows: Callable[[Array], Array]


def lookup(equation: Any, view: View) -> Lookup | None:
    """How a gather uses a table of which it takes whole rows; ``None`` if it does something else."""
    numbers, table, places = equation.params["dimension_numbers"], equation.invars[0].aval, equation.invars[1].aval
    whole = (1, *table.shape[1:])
    of_rows = tuple(numbers.start_index_map) == (0,) and tuple(numbers.collapsed_slice_dims) == (0,)
    if not of_rows or tuple(equation.params["slice_sizes"]) != whole or tuple(numbers.operand_batching_dims):
        return None
    rank = len(equation.outvars[0].aval.shape)
    kept = [i for i in range(rank) if i not in numbers.offset_dims]
    view, _ = grouped(view, table.shape, ((), (0,), range(1, table.ndim)))
    size, width = table.shape[0], math.prod(table.shape[1:])

    def rows(places: Array) -> Array:
        index = places[..., 0].reshape(-1).astype(jnp.int32)
        if "CLIP" in str(equation.params["mode"]):
            return jnp.clip(index, 0, size - 1)
        return jnp.where((index >= 0) & (index < size), index, size)

    assert places.shape[-1] == 1
    return Lookup(view, (1, size, width), rows, lambda g: _grouped(g, (kept, numbers.offset_dims)))
