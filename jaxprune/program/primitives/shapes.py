"""Operations each of whose axes is one of the operand's, whole or in part, or new: which, by the parameters."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxprune.program.bounding import Step
from jaxprune.program.jaxprs import Site
from jaxprune.program.labels import Axes
from jaxprune.program.narrowing import Call, Narrow, Rule, sizes, take
from jaxprune.program.ranges import Value

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


def _moves_reverse(site: Site) -> list[Move]:
    return [[(i, slice(None, None, -1) if i in site.params["dimensions"] else ALL) for i, _ in same(site)]]


def _moves_slice(site: Site) -> list[Move]:
    starts, ends = site.params["start_indices"], site.params["limit_indices"]
    steps = site.params["strides"] or [1] * len(starts)
    return [[(axis, slice(*part)) for axis, part in enumerate(zip(starts, ends, steps, strict=True))]]


def _moves_split(site: Site) -> list[Move]:
    ends = np.cumsum([0, *site.params["sizes"]])
    parts = [slice(*pair) for pair in zip(ends[:-1], ends[1:], strict=True)]
    return [[(i, part if i == site.params["axis"] else ALL) for i, _ in same(site)] for part in parts]


def _moves_tile(site: Site) -> list[Move]:
    """All copies of an entry go with it; those of an axis of size 1 are alike, so any number of them can be left."""
    repeated = enumerate(zip(site.shape(0), site.params["reps"], strict=True))
    return [[(None, ALL) if size == 1 else (i, np.tile(np.arange(size), n)) for i, (size, n) in repeated]]


def _without(site: Site, gone: Sequence[int]) -> list[Move]:
    """For each result, the axes that are left."""
    return [[move for move in same(site) if move[0] not in gone]] * len(site.equation.outvars)


#: For each result of an operation, where its axes come from.
MOVES: dict[str, Callable[[Site], list[Move]]] = {
    "broadcast_in_dim": _moves_broadcast,
    "transpose": lambda site: [[(axis, ALL) for axis in site.params["permutation"]]],
    "squeeze": lambda site: _without(site, site.params["dimensions"]),
    "rev": _moves_reverse,
    "slice": _moves_slice,
    "split": _moves_split,
    "unstack": lambda site: _without(site, [site.params["axis"]]),
    "tile": _moves_tile,
}


def _tie_move(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Axes keep their labels; new ones get labels of their own; a part of a single entry cannot get smaller."""
    results = []
    for result, moves in enumerate(MOVES[call.name](call)):
        sides = [*zip(call.out_shape(result), moves, strict=True)]
        alone = [(i, index) for size, (i, index) in sides if i is not None and size == 1 < ins[0][i].size]
        for axis, index in alone:
            call.pin("picks this entry alone", ins[0][axis][index])
        axes = call.labels.part(ins[0]) if alone or call.name == "unstack" else ins[0]
        out = (call.labels.fresh(size) if i is None or size == 1 else axes[i][index] for size, (i, index) in sides)
        results.append(tuple(out))
    return results


def _tie_unstack(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    call.pin("picks each of these entries alone", ins[0][call.params["axis"]])
    return _tie_move(call, ins)


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


_move = Rule(_tie_move, bound=_bound_move)

RULES = {
    **{name: _move for name in MOVES},
    "broadcast_in_dim": _move._replace(run=lambda site, values: site.bind(values, shape=sizes(site.outs[0]))),
    "slice": _move._replace(run=_run_slice),
    "split": _move._replace(run=_run_split),
    "tile": _move._replace(run=_run_tile),
    "unstack": _move._replace(tie=_tie_unstack),
}
