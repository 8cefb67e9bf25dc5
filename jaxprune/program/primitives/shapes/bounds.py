"""What is known of results of operations that arrange axes."""

import math
from collections.abc import Sequence

import numpy as np

from jaxprune.program.bounding import Bound, Step, Value
from jaxprune.program.primitives.shapes.moves import ALL, MOVES, Move
from jaxprune.program.primitives.shapes.ties import runs
from jaxprune.program.ranges import Range, choose, hull, many


def _place(step: Step, value: Value, moves: Move, result: int = 0) -> Value:
    """Also keeps what is known of maxima, along axes that stay whole."""
    found = step.moved(value, moves, result)
    if value.largest is not None:
        of, over, before = value.largest
        after = (None if source is None or index is not ALL else before[source] for source, index in moves)
        found.largest = (of, over, tuple(after))
    return found


def _move(step: Step, values: Sequence[Value]) -> list[Value]:
    return [_place(step, values[0], moves, result) for result, moves in enumerate(MOVES[step.name](step))]


def _reshape(step: Step, values: Sequence[Value]) -> list[Value]:
    """Runs of axes are merged and split again: entry by entry, along the axes that lose some."""
    (value,) = values
    before, after = step.shape(0), step.out_shape()
    if 0 in after or step.params.get("dimensions") is not None:
        return [step.value(value.anywhere(), {i: many(value.anywhere(), after[i]) for i in step.outs[0]}, values)]
    sources, axes = {}, {}
    for old, new in runs(before, after):
        if len(old) == len(new) == 1:
            sources[new[0]] = old[0]
        elif any(axis in step.outs[0] for axis in new):
            flat = _flat(value, old, before)
            for k, axis in enumerate(new):
                if axis in step.outs[0]:
                    grid = Range(*(part.reshape([after[i] for i in new]) for part in flat))
                    axes[axis] = hull(grid, tuple(i for i in range(len(new)) if i != k))
    found = _place(step, value, [(sources.get(axis), ALL) for axis in range(len(after))])
    exact = step.value(value.rest, {i: axes.get(i, found.axes[i]) for i in step.outs[0]}, values)
    exact.largest = found.largest
    return [exact]


def _flat(value: Value, axes: Sequence[int], shape: Sequence[int]) -> Range:
    """A range for each entry of several axes, merged."""
    grid = [shape[axis] for axis in axes]
    found = many(value.rest, math.prod(grid))
    for k, axis in enumerate(axes):
        if axis in value.axes:
            wide = [-1 if i == k else 1 for i in range(len(grid))]
            own = Range(*(np.broadcast_to(part.reshape(wide), grid).ravel() for part in value.axes[axis]))
            gone = np.broadcast_to(value.gone[axis].reshape(wide), grid).ravel()
            found = choose(gone, own, found)
    return found


BOUNDS: dict[str, Bound] = {**{name: _move for name in MOVES}, "reshape": _reshape}
