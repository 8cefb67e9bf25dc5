"""Reshapes: axes of size 1 come and go, others are merged and split, of which one at most can be cut."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxprune.program.bounding import Step
from jaxprune.program.labels import STAYS, Axes
from jaxprune.program.narrowing import Call, Rule, sizes
from jaxprune.program.primitives.shapes import ALL, place
from jaxprune.program.ranges import Range, Value, choose, hull, many


def runs(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The shortest runs of axes on both sides that hold the same number of entries; axes of size 1 are left out."""
    left = [axis for axis, size in enumerate(before) if size != 1]
    right = [axis for axis, size in enumerate(after) if size != 1]
    while left:
        run, other = [left.pop(0)], [right.pop(0)]
        while (a := math.prod(before[i] for i in run)) != (b := math.prod(after[i] for i in other)):
            (run if a < b else other).append((left if a < b else right).pop(0))
        yield run, other


def _tie_reshape(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Axes of size 1 come and go; the others are cut into runs of axes with equal products, and each run on its own."""
    shape = call.out_shape()
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


def _merge(call: Call, run: int, axes: list[np.ndarray]) -> np.ndarray:
    """The labels of several axes as one: those of the axis that may be cut, repeated; the others stay.

    Axes that all stay make one that stays: what is left out of it would not be 0 where the parameters are masked.
    """
    if len(axes) == 1:
        return axes[0]
    grid = tuple(labels.size for labels in axes)
    live = {axis: labels for axis, labels in enumerate(axes) if np.any(call.labels.resolve(labels) != STAYS)}
    chosen = _choose(call, (run, "merge"), live, "merges axes that could each be cut")
    others = "an axis that can be cut" if live else "other axes that stay"
    call.pin(f"merged with {others}", *(labels for axis, labels in enumerate(axes) if axis not in live))
    for axis in live.keys() - {chosen}:
        call.labels.pin(axes[axis], call.here("merged with an axis that is cut"), passed_over=True)
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
        _choose(call, (run, "split"), dict(enumerate(parts)), f"splits an axis into {tuple(grid)}")
        return parts
    chosen = alone[0] if len(alone) == 1 else _choose(call, (run, "split"), {}, "")
    if chosen is None:
        call.pin("splits an axis of which no part can be cut on its own", labels)
        return [call.fixed(size, "part of a split axis that stays") for size in grid]
    kept = _edge(labels.reshape(grid), chosen)
    call.labels.tie(_along(kept, grid, chosen).ravel(), labels)
    return [kept if i == chosen else call.fixed(n, "another part of this axis is cut") for i, n in enumerate(grid)]


def _choose(call: Call, part: Any, candidates: dict[int, np.ndarray], words: str) -> int | None:
    return call.labels.choose((*call.place, part), candidates, call.here(words))


def _along(labels: np.ndarray, grid: Sequence[int], axis: int) -> np.ndarray:
    """Labels of one axis, repeated over the others."""
    shape = [1] * len(grid)
    shape[axis] = grid[axis]
    return np.broadcast_to(labels.reshape(shape), tuple(grid))


def _edge(blocks: np.ndarray, axis: int) -> np.ndarray:
    """The entries along one axis, at the start of all others."""
    return blocks[tuple(slice(None) if i == axis else 0 for i in range(blocks.ndim))]


def _bound_reshape(step: Step, values: Sequence[Value]) -> list[Value]:
    """Runs of axes are merged and split again: entry by entry, along the axes that lose some."""
    (value,) = values
    before, after = step.shape(0), step.out_shape()
    if 0 in after or step.params.get("dimensions") is not None:
        return [step.value(value.anywhere(), lambda axis, gone: value.anywhere(), values)]
    sources, axes = {}, {}
    for old, new in runs(before, after):
        if len(old) == len(new) == 1:
            sources[new[0]] = old[0]
        elif lost := [axis for axis in new if axis in step.outs[0]]:
            flat = _flat(value, old, before)
            grid = Range(*(part.reshape([after[i] for i in new]) for part in flat))
            axes |= {axis: hull(grid, tuple(k for k, i in enumerate(new) if i != axis)) for axis in lost}
    found = place(step, value, [(sources.get(axis), ALL) for axis in range(len(after))])
    exact = step.value(value.rest, lambda axis, gone: axes.get(axis, found.axes[axis]), values)
    exact.largest = found.largest
    return [exact]


def _flat(value: Value, axes: Sequence[int], shape: Sequence[int]) -> Range:
    """A range for each entry of several axes, merged."""
    grid = [shape[axis] for axis in axes]
    found = many(value.rest, math.prod(grid))
    for k, axis in enumerate(axes):
        if axis in value.axes:
            own = Range(*(_along(part, grid, k).ravel() for part in value.axes[axis]))
            found = choose(_along(value.gone[axis], grid, k).ravel(), own, found)
    return found


RULES = {
    "reshape": Rule(_tie_reshape, lambda site, values: site.bind(values, new_sizes=sizes(site.outs[0])), _bound_reshape)
}
