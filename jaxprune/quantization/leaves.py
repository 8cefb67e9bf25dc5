"""What goes into the program of each leaf: its settings, and the spec with the axes of its layout."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jax import lax

from jaxprune import settings, tree
from jaxprune.base import Array, Layout, Params, QParams, QuantSpec, Setting, Where
from jaxprune.kernels import rounding, uniform
from jaxprune.kernels.reductions import full_range
from jaxprune.layout import Axes, find_axes, sure

#: A leaf, its width, its clip ratio, its given parameters, and its spec.
Row = tuple[Array, Any, Any, QParams | None, QuantSpec]


@dataclass(frozen=True)
class ShortScale:
    """A calibration: the full range, widened until its scale has so many binary digits behind the first.

    At three digits a file takes half a byte for a scale, and a step is 6% longer in the mean: 0.1 bit a code less.
    """

    digits: int

    def __call__(self, x: Array, axes: tuple[int, ...], bits: Array, spec: QuantSpec) -> tuple[Array, Array]:
        low, high = full_range(x, axes, spec.symmetric)
        if not spec.symmetric:
            return low, high
        top, spare = rounding.top_code(bits, True), (1 << 23 - self.digits) - 1
        pattern = lax.bitcast_convert_type(rounding.divide(high, top), np.int32) + spare & ~spare
        high = lax.bitcast_convert_type(pattern, np.float32) * top  # exact, as the division of it will be
        return -high, high


#: How files are quantized unless they are told otherwise, where a unit is known.
CHANNELS = QuantSpec(axis="units", calibration=ShortScale(3))


def default_spec(leaf: Any, axes: Axes | None) -> QuantSpec:
    """A scale a unit, or one a leaf for vectors and where no rule knows what a unit is."""
    return CHANNELS if axes and len(np.shape(leaf)) > 1 else QuantSpec()


def rows_of(
    params: Params, bits: Setting, clip: Setting, qparams: Any, spec: QuantSpec, where: Where, layout: Layout
) -> tuple[tree.Selection, list[Row], list[tuple[int, ...]]]:
    """The leaves that take part, what goes into the program of each, and along which axes each is or may be stacked."""
    selection = tree.select(params, where)
    leaves, axes = selection.values, find_axes(selection, layout)
    specs = [spec_of(spec, *leaf) for leaf in zip(selection.names, leaves, axes, strict=True)]
    for name, leaf, own in zip(selection.names, leaves, specs, strict=True):
        uniform.layout(leaf.shape, own, name)
    given = _given(selection, leaves, qparams, clip, specs)
    widths = settings.per_leaf(bits, selection, "bits", 1, 16)
    clips = settings.per_leaf(clip, selection, "clip", float(rounding.TINY), 1)
    unknown = selection.paths == [""]
    stacked = [tuple(range(x.ndim - 2)) if unknown or not a else a.batch for x, a in zip(leaves, axes, strict=True)]
    return selection, list(zip(leaves, widths, clips, given, specs, strict=True)), stacked


def spec_of(spec: QuantSpec, path: str, leaf: Any, axes: Axes | None) -> QuantSpec:
    """The spec with the axes of a leaf put in, those of blocks from the end; without blocks for depthwise kernels."""
    shape = np.shape(leaf)
    if spec.block_size is not None and spec.block_axis is None and shape:
        axes = sure(path, leaf, axes)
        if axes.depthwise(shape):
            spec = replace(spec, block_size=None, axis="units" if spec.axis is None else spec.axis)
        else:
            spec = replace(spec, block_axis=axes.along - len(shape))
    if spec.axis is None and spec.block_size is not None:
        return spec
    axis = kept_axes(spec.axis, path, leaf, axes)
    return spec if axis == spec.axis else replace(spec, axis=axis)


def kept_axes(axis: Any, path: str, leaf: Any, axes: Axes | None) -> Any:
    """The axes that keep a range, or a table, of their own: as written, or of the layout; and those of stacked layers.

    As it is, an integer, a tuple or ``None``, if there is nothing to add.
    """
    if axis == "units":
        axes = sure(path, leaf, axes)
        return axes.batch + (axes.inputs if axes.lookup else axes.outputs)
    written = () if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
    batch = axes.batch if axes else ()
    more = tuple(i for i in batch if i not in {a % np.ndim(leaf) for a in written})
    return (*written, *more) if more else axis


def _given(
    selection: tree.Selection, leaves: list[Array], qparams: Any, clip: Setting, specs: list[QuantSpec]
) -> list[QParams] | list[None]:
    """The ``QParams`` of each chosen leaf, checked against it."""
    if qparams is None:
        return [None] * len(leaves)
    if not (isinstance(clip, int | float) and clip == 1):
        raise ValueError("clip scales a range that is found; with qparams the scale is fixed, so leave clip out")
    try:
        follow = selection.treedef.flatten_up_to(qparams)
    except (ValueError, TypeError) as error:
        raise ValueError(f"qparams do not follow the tree, whose paths are {selection.paths}: {error}") from error
    found = []
    for i, name, leaf, spec in zip(selection.chosen, selection.names, leaves, specs, strict=True):
        if not isinstance(follow[i], QParams):
            raise ValueError(f"qparams of leaf {name!r} must be a QParams, got {type(follow[i]).__name__}")
        found.append(uniform.checked(follow[i], leaf.shape, spec, name))
    return found
