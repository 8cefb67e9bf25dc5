"""Operations each of whose axes is one of the operand's, whole or in part, or new: which, by the parameters."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxprune.program.bounding import Bound, Step
from jaxprune.program.evaluation import Narrow, Narrowing, sizes, take
from jaxprune.program.labelling import Axes, Call
from jaxprune.program.ranges import Value
from jaxprune.program.visitor import Site

#: All entries of an axis.
ALL = slice(None)

#: For each axis of a result, the axis of the operand that it comes from (``None``: new), and which entries.
Move = list[tuple[int | None, Any]]


def same(site: Site) -> Move:
    """Every axis is the operand's."""
    return [(axis, ALL) for axis in range(len(site.shape(0)))]


def _moves_broadcast(site: Site) -> list[Move]:
    """New axes and repeated ones are new: however many copies are left, they are alike."""
    after = site.out_shape()
    given = enumerate(site.params["broadcast_dimensions"])
    sources = {axis: i for i, axis in given if site.shape(0)[i] == after[axis]}
    return [[(sources.get(axis), ALL) for axis in range(len(after))]]


def _moves_transpose(site: Site) -> list[Move]:
    return [[(axis, ALL) for axis in site.params["permutation"]]]


def _moves_squeeze(site: Site) -> list[Move]:
    return [[move for move in same(site) if move[0] not in site.params["dimensions"]]]


def _moves_reverse(site: Site) -> list[Move]:
    return [[(i, slice(None, None, -1) if i in site.params["dimensions"] else ALL) for i, _ in same(site)]]


def _moves_slice(site: Site) -> list[Move]:
    params = site.params
    strides = params["strides"] or [1] * len(params["start_indices"])
    ends = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return [[(axis, slice(*end)) for axis, end in enumerate(ends)]]


def _moves_split(site: Site) -> list[Move]:
    ends = np.cumsum([0, *site.params["sizes"]])
    parts = [slice(*pair) for pair in zip(ends[:-1], ends[1:], strict=True)]
    return [[(i, part if i == site.params["axis"] else ALL) for i, _ in same(site)] for part in parts]


def _moves_unstack(site: Site) -> list[Move]:
    left = [move for move in same(site) if move[0] != site.params["axis"]]
    return [left] * len(site.equation.outvars)


def _moves_tile(site: Site) -> list[Move]:
    """All copies of an entry go with it; those of an axis of size 1 are alike, so any number of them can be left."""
    repeated = enumerate(zip(site.shape(0), site.params["reps"], strict=True))
    return [[(None, ALL) if size == 1 else (i, np.tile(np.arange(size), n)) for i, (size, n) in repeated]]


#: For each result of an operation, where its axes come from.
MOVES: dict[str, Callable[[Site], list[Move]]] = {
    "broadcast_in_dim": _moves_broadcast,
    "transpose": _moves_transpose,
    "squeeze": _moves_squeeze,
    "rev": _moves_reverse,
    "slice": _moves_slice,
    "split": _moves_split,
    "unstack": _moves_unstack,
    "tile": _moves_tile,
}


def _tie_move(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Axes keep their labels; new ones get labels of their own; a part of a single entry cannot get smaller."""
    results = []
    for result, moves in enumerate(MOVES[call.name](call)):
        sides = [*zip(call.out_shape(result), moves, strict=True)]
        alone = [(i, index) for size, (i, index) in sides if i is not None and size == 1 < ins[0][i].size]
        for axis, index in alone:
            call.pin(ins[0][axis][index], "picks this entry alone")
        axes = call.labels.part(ins[0]) if alone else ins[0]
        out = (call.labels.fresh(size) if i is None or size == 1 else axes[i][index] for size, (i, index) in sides)
        results.append(tuple(out))
    return results


def _tie_unstack(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    along = call.params["axis"]
    call.pin(ins[0][along], "picks each of these entries alone")
    parts = (call.labels.part(ins[0]) for _ in call.equation.outvars)
    return [(*axes[:along], *axes[along + 1 :]) for axes in parts]


def _run_broadcast(site: Narrow, values: Sequence[Any]) -> list[Any]:
    return site.bind(values, shape=sizes(site.outs[0]))


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
    axis = site.params["axis"]
    return site.bind(values, sizes=tuple(sizes(kept)[axis] for kept in site.outs))


def place(step: Step, value: Value, moves: Move, result: int = 0) -> Value:
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
        found.append(place(step, value, moves, result).repeated(alike))
    return found


NARROWINGS = {
    **{name: Narrowing(_tie_move) for name in ("transpose", "squeeze", "rev")},
    "broadcast_in_dim": Narrowing(_tie_move, _run_broadcast),
    "tile": Narrowing(_tie_move, _run_tile),
    "slice": Narrowing(_tie_move, _run_slice),
    "split": Narrowing(_tie_move, _run_split),
    "unstack": Narrowing(_tie_unstack),
}

BOUNDS: dict[str, Bound] = {name: _bound_move for name in MOVES}
