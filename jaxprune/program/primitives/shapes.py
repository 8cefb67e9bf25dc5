"""Operations each of whose axes is one of the operand's, whole or in part, or new: which, by the parameters.

And reshapes: axes of size 1 come and go, others are merged and split, of which one at most can be cut.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxprune.program.bounding import Step
from jaxprune.program.jaxprs import Site
from jaxprune.program.labels import STAYS, Axes
from jaxprune.program.narrowing import Call, Narrow, Rule, sizes, take
from jaxprune.program.ranges import Range, Value, choose, hull, many

#: All entries of an axis, and these from the last to the first.
ALL, BACK = slice(None), slice(None, None, -1)

#: For each axis of a result, the axis of the operand that it comes from (``None``: new), and which entries.
Move = list[tuple[int | None, Any]]


def _same(site: Site) -> Move:
    return [(axis, ALL) for axis in range(len(site.shape(0)))]


def _moves_broadcast(site: Site) -> list[Move]:
    """New axes and repeated ones are new: however many copies are left, they are alike."""
    after = site.out_shape()
    given = enumerate(site.params["broadcast_dimensions"])
    sources = {axis: i for i, axis in given if site.shape(0)[i] == after[axis]}
    return [[(sources.get(axis), ALL) for axis in range(len(after))]]


def _moves_slice(site: Site) -> list[Move]:
    starts, ends = site.params["start_indices"], site.params["limit_indices"]
    steps = site.params["strides"] or [1] * len(starts)
    return [[(axis, slice(*part)) for axis, part in enumerate(zip(starts, ends, steps, strict=True))]]


def _moves_split(site: Site) -> list[Move]:
    ends = np.cumsum([0, *site.params["sizes"]])
    parts = [slice(*pair) for pair in zip(ends[:-1], ends[1:], strict=True)]
    return [[(i, part if i == site.params["axis"] else ALL) for i, _ in _same(site)] for part in parts]


def _moves_tile(site: Site) -> list[Move]:
    """All copies of an entry go with it; those of an axis of size 1 are alike, so any number of them can be left."""
    repeated = enumerate(zip(site.shape(0), site.params["reps"], strict=True))
    return [[(None, ALL) if size == 1 else (i, np.tile(np.arange(size), n)) for i, (size, n) in repeated]]


def _without(site: Site, gone: Sequence[int]) -> list[Move]:
    """For each result, the axes that are left."""
    return [[move for move in _same(site) if move[0] not in gone]] * len(site.equation.outvars)


#: For each result of an operation, where its axes come from.
MOVES: dict[str, Callable[[Site], list[Move]]] = {
    "broadcast_in_dim": _moves_broadcast,
    "transpose": lambda site: [[(axis, ALL) for axis in site.params["permutation"]]],
    "squeeze": lambda site: _without(site, site.params["dimensions"]),
    "rev": lambda site: [[(i, BACK if i in site.params["dimensions"] else ALL) for i, _ in _same(site)]],
    "slice": _moves_slice,
    "split": _moves_split,
    "unstack": lambda site: _without(site, [site.params["axis"]]),
    "tile": _moves_tile,
}


def _tie_move(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Axes keep their labels; new ones get labels of their own; a part of a single entry cannot get smaller."""
    results = []
    if call.name == "unstack":
        call.pin("picks each of these entries alone", ins[0][call.params["axis"]])
    for result, moves in enumerate(MOVES[call.name](call)):
        sides = [*zip(call.out_shape(result), moves, strict=True)]
        alone = [(i, index) for size, (i, index) in sides if i is not None and size == 1 < ins[0][i].size]
        for axis, index in alone:
            call.pin("picks this entry alone", ins[0][axis][index])
        axes = call.labels.part(ins[0]) if alone or call.name == "unstack" else ins[0]
        out = (call.labels.fresh(size) if i is None or size == 1 else axes[i][index] for size, (i, index) in sides)
        results.append(tuple(out))
    return results


def _run_tile(site: Narrow, values: Sequence[Any]) -> list[Any]:
    whole = zip(site.ins[0], sizes(site.outs[0]), site.params["reps"], strict=True)
    return site.bind(values, reps=tuple(size if flags.size == 1 else n for flags, size, n in whole))


def _run_slice(site: Narrow, values: Sequence[Any]) -> list[Any]:
    ((value,), (before,), (after,), (moves,)) = values, site.ins, site.outs, MOVES["slice"](site)
    for axis, (_, index) in enumerate(moves):
        part = np.zeros(before[axis].size, bool)
        part[np.arange(part.size)[index][after[axis]]] = True
        if not part.all():
            value = take(value, np.flatnonzero(part[before[axis]]), axis)
    return [value]


def _run_split(site: Narrow, values: Sequence[Any]) -> list[Any]:
    return site.bind(values, sizes=tuple(sizes(kept)[site.params["axis"]] for kept in site.outs))


def _place(step: Step, value: Value, moves: Move, result: int = 0) -> Value:
    """Also keeps what is known of maxima, along axes that stay whole."""
    found = step.moved(value, moves, result)
    if value.largest is not None:
        of, over, before = value.largest
        after = (None if source is None or index is not ALL else before[source] for source, index in moves)
        found.largest = (of, over, tuple(after))
    return found


def _bound_move(step: Step, values: Sequence[Value]) -> list[Value]:
    """Along new axes, and those that were so before, entries are alike."""
    (value,), found = values, []
    for result, moves in enumerate(MOVES[step.name](step)):
        alike = frozenset(i for i, (source, _) in enumerate(moves) if source is None or source in value.alike)
        found.append(_place(step, value, moves, result).repeated(alike))
    return found


def _runs(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The shortest runs of axes on both sides that hold the same number of entries; axes of size 1 are left out."""
    left = [axis for axis, size in enumerate(before) if size != 1]
    right = [axis for axis, size in enumerate(after) if size != 1]
    while left:
        run, other = [left.pop(0)], [right.pop(0)]
        while (a := math.prod(before[i] for i in run)) != (b := math.prod(after[i] for i in other)):
            (run if a < b else other).append((left if a < b else right).pop(0))
        yield run, other


def _tie_reshape(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    shape = call.out_shape()
    if call.params.get("dimensions") is not None:
        return call.unknown(ins, "a reshape that permutes axes")
    if 0 in shape:
        return call.unknown(ins, "a reshape of an empty array")
    out = {axis: np.zeros(size, np.int64) for axis, size in enumerate(shape)}
    for run, (before, after) in enumerate(_runs([labels.size for labels in ins[0]], shape)):
        merged = _merge(call, run, [ins[0][axis] for axis in before])
        parts = _split(call, run, merged, [shape[axis] for axis in after])
        out.update(zip(after, parts, strict=True))
    return [tuple(out.values())]


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
    for old, new in _runs(before, after):
        if len(old) == len(new) == 1:
            sources[new[0]] = old[0]
        elif lost := [axis for axis in new if axis in step.outs[0]]:
            flat = _flat(value, old, before)
            grid = Range(*(part.reshape([after[i] for i in new]) for part in flat))
            axes |= {axis: hull(grid, tuple(k for k, i in enumerate(new) if i != axis)) for axis in lost}
    found = _place(step, value, [(sources.get(axis), ALL) for axis in range(len(after))])
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


_move = Rule(_tie_move, bound=_bound_move)
_reshape = Rule(_tie_reshape, lambda site, values: site.bind(values, new_sizes=sizes(site.outs[0])), _bound_reshape)

RULES = {
    **{name: _move for name in MOVES},
    "broadcast_in_dim": _move._replace(run=lambda site, values: site.bind(values, shape=sizes(site.outs[0]))),
    "slice": _move._replace(run=_run_slice),
    "split": _move._replace(run=_run_split),
    "tile": _move._replace(run=_run_tile),
    "reshape": _reshape,
}
