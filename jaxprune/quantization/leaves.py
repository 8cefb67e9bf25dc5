"""What goes into the program of each leaf: its settings, and the spec with the axes of its layout."""

from dataclasses import replace
from typing import Any

import numpy as np

from jaxprune import settings, tree
from jaxprune.base import Array, Layout, Params, QParams, QuantSpec, Setting, Where
from jaxprune.kernels import rounding, uniform
from jaxprune.layout import Axes, find_axes, sure

#: A leaf, its width, its clip ratio, its given parameters, and its spec.
Row = tuple[Array, Any, Any, QParams | None, QuantSpec]


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
    """The spec with the axes of a leaf put in, those of blocks and of stacked layers from the end."""
    rank = len(np.shape(leaf))
    blocks = spec.block_size is not None and spec.block_axis is None and rank > 0
    if blocks or spec.axis == "units":
        axes = sure(path, leaf, axes)
    if not axes or not (blocks or axes.batch or spec.axis == "units"):
        return spec
    axis, along = spec.axis, spec.block_axis
    if blocks:
        along = axes.along - rank
    if axis == "units":
        axis = axes.batch + (axes.inputs if axes.lookup else axes.outputs)
    elif axis is not None:
        written = (axis,) if isinstance(axis, int) else tuple(axis)
        axis = written + tuple(i for i in axes.batch if i not in {a % rank for a in written})
    elif axes.batch and spec.block_size is None:
        axis = axes.batch
    return replace(spec, axis=axis, block_axis=along)


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
