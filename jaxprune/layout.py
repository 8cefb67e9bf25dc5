"""The axes of a leaf, decided in one place: what its product keeps apart, what it contracts, and what it leaves.

In this order: ``layout=``; the bias beside a kernel; names; a bare array, a matrix or a vector is ``(..., in, out)``.
"""

import math
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np

from jaxprune.base import Layout
from jaxprune.tree import Selection, is_kernel, show

_BIASES = {"w": "b", "in_proj_weight": "in_proj_bias"}


class Axes(NamedTuple):
    """Axes of a leaf, counted from the front.

    Attributes:
      batch: what the product keeps apart: stacked layers.
      inputs: what it contracts; N:M and blocks of scales run along the last of them.
      outputs: what it leaves; an index along them is a unit.
      lookup: whether rows are looked up, as of an embedding: N:M and blocks then run along the outputs.
    """

    batch: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    lookup: bool = False

    @property
    def along(self) -> int:
        """The axis of N:M and of blocks; of a vector its only one."""
        return (self.outputs if self.lookup or not self.inputs else self.inputs)[-1]

    def depthwise(self, shape: tuple[int, ...]) -> bool:
        """Whether each unit has one input, beside a window perhaps: there is nothing to group along."""
        return len(shape) > 2 and bool(self.inputs) and not self.lookup and shape[self.along] == 1

    def unit_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one value a unit that broadcasts to the leaf; ``(1, ..., 1, C)`` of a Flax kernel."""
        return tuple(1 if i in self.inputs else n for i, n in enumerate(shape))

    def grouped(self, shape: tuple[int, ...]) -> bool:
        """Whether N:M takes the leaf: neither rows that are looked up nor depthwise kernels contract an axis."""
        return not (self.lookup or self.depthwise(shape))

    def __str__(self) -> str:
        parts = (",".join(map(str, axes)) for axes in (self.inputs, self.outputs))
        batch = f"{','.join(map(str, self.batch))}: " if self.batch else ""
        return batch + (" looks up " if self.lookup else ">").join(parts)


def axes_of(chosen: Selection, layout: Layout = None) -> list[Axes]:
    """The axes of each chosen leaf.

    Raises:
      ValueError: no rule knows the axes of a kernel, with its path and what to do; or a ``layout`` that does not fit.
    """
    return list(map(sure, chosen.names, chosen.taken, find_axes(chosen, layout)))


def sure(path: str, leaf: Any, axes: Axes | None) -> Axes:
    """The axes found; ``ValueError`` if there are none of a kernel, and the last one is of units for what is none."""
    if axes is not None:
        return axes
    if is_kernel(path, leaf):
        unknown = f"shape {np.shape(leaf)}, and no rule knows which of its axes are inputs and which outputs"
        advice = f"say so by layout={{{path!r}: (batch, inputs, outputs)}}, tuples of axes"
        raise ValueError(f"leaf {show(path)} has {unknown}; {advice}")
    return _flax(np.ndim(leaf))


def grouped_along(
    chosen: Selection, axis: int | None, layout: Layout = None, leave_out: bool = False
) -> tuple[Selection, list[int]]:
    """The leaves that are grouped along an axis, and that axis of each: as given, or from the end that of the layout.

    ``leave_out`` takes embeddings, whose rows are not contracted, and depthwise kernels, of one input, out.
    """
    if axis is not None:
        return chosen, [int(axis)] * len(chosen.chosen)
    leave_out = leave_out and chosen.paths != [""]
    rows = zip(chosen.chosen, map(np.shape, chosen.taken), axes_of(chosen, layout), strict=True)
    rows = [(i, len(shape), axes.along) for i, shape, axes in rows if not leave_out or axes.grouped(shape)]
    found = [along - rank if rank > 1 else -2 for _, rank, along in rows]
    return chosen._replace(chosen=tuple(i for i, _, _ in rows)), found


def find_axes(chosen: Selection, layout: Layout = None) -> list[Axes | None]:
    """The axes of each chosen leaf; ``None`` where no rule knows them."""
    if isinstance(layout, Mapping):
        for pattern in layout:
            if not any(_matches(path, pattern) for path in chosen.paths):
                raise ValueError(f"layout: pattern {pattern!r} matches none of {chosen.paths}")
    elif layout not in (None, "flax", "torch"):
        raise ValueError(f"layout is {layout!r}; give 'flax', 'torch' or {{pattern: (batch, inputs, outputs)}}")
    shapes = dict(zip(chosen.paths, map(np.shape, chosen.leaves), strict=True))
    turned = any(_turned(path, shape, shapes) for path, shape in shapes.items())
    return [_find(path, shapes, layout, turned) for path in chosen.names]


def _turned(path: str, shape: tuple[int, ...], shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether the bias beside a ``weight`` says that its outputs come second, not first: GPT-2, ConvTranspose."""
    if not path.endswith("weight") or len(shape) < 2:
        return False
    outputs = shapes.get(path.removesuffix("weight") + "bias", ())[:1]
    return outputs != shape[:1] and outputs == shape[1:2]


def _find(path: str, shapes: dict[str, tuple[int, ...]], layout: Layout, turned: bool) -> Axes | None:
    if isinstance(layout, Mapping):
        for pattern, given in layout.items():
            if _matches(path, pattern):
                return _given(path, shapes[path], given)
    shape, names = shapes[path], re.split(r"[/.]", path)
    rank, name, parent = len(shape), names[-1], names[-2].lower() if len(names) > 1 else ""
    if rank < 2 or path == "" or layout == "flax":
        return _flax(rank)
    embedding = name.endswith(("embedding", "embeddings")) or (name == "weight" and re.search("(^|_)emb|embed", parent))
    if embedding or parent in ("wte", "wpe"):
        return Axes((), tuple(range(rank - 1)), (rank - 1,), lookup=True)
    bias = shapes.get(bias_beside(path), ())
    if layout == "torch" or re.match("(in_proj_)?weight(_[ih]h|$)", name):
        if layout is None and _turned(path, shape, shapes):
            return _flax(rank) if rank == 2 else None
        square = turned and layout is None and shape[0] == shape[1]  # as others here are turned, it may be as well
        return None if square else Axes((), (*range(2, rank), 1), (0,))
    if rank == 2:
        return _flax(rank)
    attention = name == "kernel" and parent in ("query", "key", "value")
    if name in ("kernel", "w") and len(bias) > 0:
        found = _transposed(rank) if name == "w" and "transpose" in parent else _beside(shape, bias, attention)
        if found:
            return found if isinstance(found, Axes) else None
    if attention:
        return Axes((), (0,), (1, 2)) if rank == 3 else None
    if parent == "out" and path.removesuffix("out/kernel") + "query/kernel" in shapes:
        return _flax(rank) if rank == 3 else None
    return _flax(rank) if rank == 4 or any("conv" in part.lower() for part in names) else None


def bias_beside(path: str) -> str:
    """The path of the bias beside a kernel, if it has one."""
    name = re.split(r"[/.]", path)[-1]
    return path[: len(path) - len(name)] + _BIASES.get(name, "bias")


def _beside(shape: tuple[int, ...], bias: tuple[int, ...], attention: bool) -> Axes | str | None:
    """The axes of a kernel whose bias is batch + outputs: not stacked, or stacked at axis 0 or 1 of both."""
    found = []
    for batch in ((), (0,), (1,)):
        axes = [i for i in range(len(shape)) if i not in batch]
        outputs = tuple(n for i, n in enumerate(bias) if i not in batch)
        stacked = all(i < len(bias) and bias[i] == shape[i] for i in batch)
        first = len(axes) - len(outputs)
        if stacked and outputs and first > 0 and tuple(shape[i] for i in axes[first:]) == outputs:
            found.append(Axes(batch, tuple(axes[:first]), tuple(axes[first:])))
    if not found and len(bias) == 1 and shape[-2] == bias[0]:
        return _transposed(len(shape))
    return found[0] if len(found) == 1 or (found and attention) else "in doubt" if found else None


def _flax(rank: int) -> Axes:
    """``(..., in, out)``; each entry of a vector is a unit."""
    return Axes((), tuple(range(rank - 1)), (rank - 1,) if rank else ())


def _transposed(rank: int) -> Axes:
    """``(window, out, in)``."""
    return Axes((), (*range(rank - 2), rank - 1), (rank - 2,))


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(path.removeprefix("params/"), pattern)


def _given(path: str, shape: tuple[int, ...], given: Any) -> Axes:
    rank = len(shape)
    try:
        batch, inputs, outputs = (tuple(i % rank if -rank <= i else i for i in part) for part in given)
        if sorted((*batch, *inputs, *outputs)) == list(range(rank)) and (inputs or outputs):
            return Axes(batch, inputs, outputs)
    except (TypeError, ValueError):
        pass
    needed = f"(batch, inputs, outputs), tuples of axes that together are all {rank} of its shape {shape}"
    raise ValueError(f"layout of leaf {show(path)} is {given!r}; give {needed}")


def check_axis(path: str, shape: tuple[int, ...], axis: int) -> int:
    """``axis`` of a leaf of that shape counted from the front; ``ValueError`` if it has no such axis."""
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"leaf {show(path)} has shape {shape} and no axis {axis}")
    return axis % len(shape)


def countable_axes(chosen: Selection, layout: Layout, bins: int = 1) -> list[Axes]:
    """The axes of each chosen leaf; ``ValueError`` unless the histograms of its units fit 32-bit integers."""
    axes = axes_of(chosen, layout)
    for path, shape, (_, inputs, outputs, _) in zip(chosen.names, map(np.shape, chosen.taken), axes, strict=True):
        weights, units = (math.prod(shape[i] for i in part) for part in (inputs, outputs))
        if max(weights, units * bins) >= 2**31:
            both = f"{weights} values a unit and {units} units of {bins} bins"
            raise ValueError(f"leaf {show(path)} has {both}; both must be below 2**31 in number")
    return axes
