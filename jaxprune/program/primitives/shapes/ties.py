"""Operations that arrange axes: repeat, merge, split, permute and drop them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxprune.program.labels import STAYS, Axes
from jaxprune.program.primitives.rules import Rule, Site, sizes
from jaxprune.program.visitor import Call


def _broadcast(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """New axes and repeated ones get labels of their own: however many copies are left, they are alike."""
    source = dict(zip(call.params["broadcast_dimensions"], ins[0], strict=True))
    out = []
    for axis, size in enumerate(call.shapes[0]):
        kept = axis in source and source[axis].size == size
        out.append(source[axis] if kept else call.labels.fresh(size))
    return [tuple(out)]


def _run_broadcast(site: Site, values: Sequence[Any]) -> list[Any]:
    return site.bind(values, shape=sizes(site.outs[0]))


def _tile(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """All copies of an entry go with it; those of an axis of size 1 are alike, so any number of them can be left."""
    repeated = zip(ins[0], call.params["reps"], strict=True)
    return [tuple(call.labels.fresh(n) if labels.size == 1 else np.tile(labels, n) for labels, n in repeated)]


def _run_tile(site: Site, values: Sequence[Any]) -> list[Any]:
    whole = zip(site.ins[0], sizes(site.outs[0]), site.params["reps"], strict=True)
    return site.bind(values, reps=tuple(size if flags.size == 1 else n for flags, size, n in whole))


def _transpose(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    return [tuple(ins[0][axis] for axis in call.params["permutation"])]


def _squeeze(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    gone = call.params["dimensions"]
    return [tuple(labels for axis, labels in enumerate(ins[0]) if axis not in gone)]


def _reverse(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    turned = call.params["dimensions"]
    return [tuple(labels[::-1] if axis in turned else labels for axis, labels in enumerate(ins[0]))]


def _reshape(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Axes of size 1 come and go; the others are cut into runs of axes with equal products, and each run on its own."""
    shape = call.shapes[0]
    if call.params.get("dimensions") is not None:
        return call.unknown(ins, "a reshape that permutes axes")
    if 0 in shape:
        return call.unknown(ins, "a reshape of an empty array")
    out = [np.zeros(size, np.int64) for size in shape]
    for run, (before, after) in enumerate(runs([labels.size for labels in ins[0]], shape)):
        merged = _merge(call, run, [ins[0][axis] for axis in before])
        parts = _split(call, run, merged, [shape[axis] for axis in after])
        for axis, labels in zip(after, parts, strict=True):
            out[axis] = labels
    return [tuple(out)]


def runs(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The shortest runs of axes on both sides that hold the same number of entries; axes of size 1 are left out."""
    left = [axis for axis, size in enumerate(before) if size != 1]
    right = [axis for axis, size in enumerate(after) if size != 1]
    while left:
        run, other = [left.pop(0)], [right.pop(0)]
        while (a := math.prod(before[i] for i in run)) != (b := math.prod(after[i] for i in other)):
            (run if a < b else other).append((left if a < b else right).pop(0))
        yield run, other


def _merge(call: Call, run: int, axes: list[np.ndarray]) -> np.ndarray:
    """The labels of several axes as one: those of the axis that may be cut, repeated; the others stay.

    Axes that all stay make one that stays: what is left out of it would not be 0 where the parameters are masked.
    """
    if len(axes) == 1:
        return axes[0]
    grid = tuple(labels.size for labels in axes)
    live = {axis: labels for axis, labels in enumerate(axes) if call.labels.live(labels)}
    chosen = call.choose((run, "merge"), live, "merges axes that could each be cut")
    for axis, labels in enumerate(axes):
        if axis in live and axis != chosen:
            call.pass_over(labels, "merged with an axis that is cut")
        elif axis != chosen:
            call.pin(labels, "merged with an axis that can be cut" if live else "merged with other axes that stay")
    if chosen is None:
        return call.fixed(math.prod(grid), "merged from axes that stay")
    return _along(axes[chosen], grid, chosen).ravel()


def _split(call: Call, run: int, labels: np.ndarray, grid: Sequence[int]) -> list[np.ndarray]:
    """The labels of one axis as several: the axis along which they differ, if the others only repeat them."""
    if len(grid) == 1:
        return [labels]
    roots = call.labels.resolve(labels).reshape(grid)
    if not np.any(roots != STAYS):
        return [call.fixed(size, "part of an axis that stays") for size in grid]
    alone = [axis for axis in range(len(grid)) if np.array_equal(_along(_edge(roots, axis), grid, axis), roots)]
    if len(alone) != 1 and call.labels.decided is None:
        # A first walk: each part gets labels of its own, to see which of them may be cut.
        parts = [call.labels.fresh(size) for size in grid]
        call.choose((run, "split"), dict(enumerate(parts)), f"splits an axis into {tuple(grid)}")
        return parts
    chosen = alone[0] if len(alone) == 1 else call.choose((run, "split"), {}, "")
    if chosen is None:
        call.pin(labels, "splits an axis of which no part can be cut on its own")
        return [call.fixed(size, "part of a split axis that stays") for size in grid]
    kept = _edge(labels.reshape(grid), chosen)
    call.labels.tie(_along(kept, grid, chosen).ravel(), labels)
    return [kept if i == chosen else call.fixed(n, "another part of this axis is cut") for i, n in enumerate(grid)]


def _along(labels: np.ndarray, grid: Sequence[int], axis: int) -> np.ndarray:
    """Labels of one axis, repeated over the others."""
    shape = [1] * len(grid)
    shape[axis] = grid[axis]
    return np.broadcast_to(labels.reshape(shape), tuple(grid))


def _edge(blocks: np.ndarray, axis: int) -> np.ndarray:
    """The entries along one axis, at the start of all others."""
    return blocks[tuple(slice(None) if i == axis else 0 for i in range(blocks.ndim))]


def _run_reshape(site: Site, values: Sequence[Any]) -> list[Any]:
    return site.bind(values, new_sizes=sizes(site.outs[0]))


RULES = {
    "broadcast_in_dim": Rule(_broadcast, _run_broadcast),
    "tile": Rule(_tile, _run_tile),
    "transpose": Rule(_transpose),
    "squeeze": Rule(_squeeze),
    "rev": Rule(_reverse),
    "reshape": Rule(_reshape, _run_reshape),
}
