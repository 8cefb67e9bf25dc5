"""Operations each of whose axes is one of the operand's, whole or in part, or new: which, by the parameters."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxprune.program.visitor import Site

#: All entries of an axis.
ALL = slice(None)

#: For each axis of a result, the axis of the operand that it comes from (``None``: new), and which entries.
Move = list[tuple[int | None, Any]]


def same(site: Site) -> Move:
    """Every axis is the operand's."""
    return [(axis, ALL) for axis in range(len(site.shape(0)))]


def _broadcast(site: Site) -> list[Move]:
    """New axes and repeated ones are new: however many copies are left, they are alike."""
    after = site.out_shape()
    given = enumerate(site.params["broadcast_dimensions"])
    sources = {axis: i for i, axis in given if site.shape(0)[i] == after[axis]}
    return [[(sources.get(axis), ALL) for axis in range(len(after))]]


def _transpose(site: Site) -> list[Move]:
    return [[(axis, ALL) for axis in site.params["permutation"]]]


def _squeeze(site: Site) -> list[Move]:
    return [[move for move in same(site) if move[0] not in site.params["dimensions"]]]


def _reverse(site: Site) -> list[Move]:
    return [[(i, slice(None, None, -1) if i in site.params["dimensions"] else ALL) for i, _ in same(site)]]


def _slice(site: Site) -> list[Move]:
    params = site.params
    strides = params["strides"] or [1] * len(params["start_indices"])
    ends = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return [[(axis, slice(*end)) for axis, end in enumerate(ends)]]


def _split(site: Site) -> list[Move]:
    ends = np.cumsum([0, *site.params["sizes"]])
    parts = [slice(*pair) for pair in zip(ends[:-1], ends[1:], strict=True)]
    return [[(i, part if i == site.params["axis"] else ALL) for i, _ in same(site)] for part in parts]


def _unstack(site: Site) -> list[Move]:
    left = [move for move in same(site) if move[0] != site.params["axis"]]
    return [left] * len(site.equation.outvars)


def _tile(site: Site) -> list[Move]:
    """All copies of an entry go with it; those of an axis of size 1 are alike, so any number of them can be left."""
    repeated = enumerate(zip(site.shape(0), site.params["reps"], strict=True))
    return [[(None, ALL) if size == 1 else (i, np.tile(np.arange(size), n)) for i, (size, n) in repeated]]


#: For each result of an operation, where its axes come from.
MOVES: dict[str, Callable[[Site], list[Move]]] = {
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "rev": _reverse,
    "slice": _slice,
    "split": _split,
    "unstack": _unstack,
    "tile": _tile,
}
