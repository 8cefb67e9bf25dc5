"""Coding all leaves in one way, measuring it, and finding the step or the width with which it meets a goal."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune import host
from jaxprune.calibration import Statistics
from jaxprune.checkpoints import compressed, nested
from jaxprune.cli import data, diff, goals, treatments
from jaxprune.cli.goals import Goal
from jaxprune.cli.treatments import Recipe
from jaxprune.files import Compressed

_BATCH = 2**24  # bytes
_FINE = 64  # steps in an octave
_OCTAVES = 15  # below the largest weight: codes have 16 bits
_EITHER = 30  # octaves above and below a step of 1, of codes that are fitted to data


class Work(NamedTuple):
    """What attempts share.

    Attributes:
      wanted: what is said of the leaves, without the step or the width that is looked for.
      metadata: of the file.
      evaluate: the function of ``--eval``.
      params, stats: of ``--calibrate``.
      progress: whether to draw it.
    """

    wanted: Recipe
    metadata: Mapping[str, str]
    evaluate: str | None
    params: Mapping[str, Any]
    stats: Statistics | None
    progress: bool


class Attempt(NamedTuple):
    """One way, what it makes, and what is known of it; beside a goal also of those that were tried before."""

    wanted: Recipe
    made: Compressed
    row: dict[str, Any]
    tried: list[dict[str, Any]]


def once(work: Work, data_step: float | None = None, measured: bool = False, **keys: Any) -> Attempt:
    """Codes all leaves; the error, if it is to be measured, and the metric are those of what is in the file.

    ``data_step`` is that of codes that are fitted to data, ``keys`` say how others are made.
    """
    wanted = work.wanted.at(**keys) if keys else work.wanted
    if work.stats is not None:
        wanted = replace(wanted, records=data.fitted(wanted, work.params, work.stats, data_step))
    made = compressed.assemble(_coded(wanted, work.progress), work.metadata)
    row = {"bytes": made.nbytes} | keys | ({} if data_step is None else {"step": data_step})
    if measured or work.evaluate:
        row |= _measured(work, wanted, made)
    return Attempt(wanted, made, row, [])


def _measured(work: Work, wanted: Recipe, made: Compressed) -> dict[str, float]:
    """The error and the metric of what is in a file."""
    arrays = dict(zip(compressed.tree_order(wanted.leaves), (leaf.read() for leaf in made.leaves), strict=True))
    found = {
        "relative_error": diff.relative([diff.compared(wanted.leaves[k].read(), arrays[k]) for k in wanted.treatments])
    }
    if work.evaluate:
        found["metric"] = goals.metric(work.evaluate, nested({name: jnp.asarray(x) for name, x in arrays.items()}))
    return found


def reached(work: Work, goal: Goal) -> Attempt:
    """The finest that has a size, or the coarsest that has an error or a metric.

    Raises:
      ValueError: nothing meets the goal, with what comes nearest; widths that are said already.
    """
    if said := {key for one in work.wanted.treatments.values() for key in one.keys() & {"bits", "codebook"}}:
        raise ValueError(f"{goal.said} is to be met by a step or a width that is found: leave --{min(said)} out")
    kind = next(iter(work.wanted.treatments.values())).get("quantizer", "rd")
    scale = 1 if kind == "uniform" else _FINE
    weights, tried = sum(work.wanted.leaves[name].size for name in work.wanted.treatments), []
    found: dict[str, Attempt] = {}

    quick = work if goal.key == "metric" else work._replace(evaluate=None)  # which is asked at the end

    def attempt(number: int) -> Attempt:
        measured = goal.key == "relative_error"
        if work.stats is not None:
            return once(quick, 2.0 ** (_EITHER - number / _FINE), measured)
        said = {"bits": float(number + 1)} if kind == "uniform" else {"step": largest * 2.0 ** (-number / _FINE)}
        return once(quick, None, measured, **said, quantizer=kind)

    def meets(number: int) -> tuple[bool, float]:
        one = attempt(number if goal.key == "bytes" else count - 1 - number)
        tried.append(one.row)
        met = goal.holds(one.row)
        if met:
            found["best"] = one
        if goal.key == "bytes":
            return met, scale * 8 * (goal.limit - one.row["bytes"]) / weights
        error = one.row.get("relative_error", 0.0)
        return met, scale * math.log2(goal.limit / error) if goal.key == "relative_error" and error else math.inf

    largest = 0.0
    if work.stats is None and kind != "uniform":
        largest = max(float(_largest(work.wanted.leaves[name].read())) for name in work.wanted.treatments)
    count = 2 * _EITHER * _FINE if work.stats is not None else 16 if kind == "uniform" else _OCTAVES * _FINE
    if goal.key == "bytes" and goal.holds((whole := once(work._replace(stats=None))).row):
        return whole  # with no loss but what was asked for
    if goals.furthest(meets, -1, count) < 0:
        nearest = min(tried, key=lambda row: abs(row[goal.key] - goal.limit))
        raise ValueError(f"nothing has {goal.said}; the nearest has {nearest[goal.key]:,.6g}: ask for less, or {_ELSE}")
    best = found["best"]._replace(tried=tried)
    return best if quick is work or not work.evaluate else best._replace(row=best.row | _measured(work, *best[:2]))


_ELSE = "choose other leaves by --where and --exclude, or add --sparsity"


def _largest(array: np.ndarray) -> float:
    finite = np.abs(array[np.isfinite(array)].astype(np.float32))
    return finite.max(initial=np.finfo(np.float32).tiny)


def _coded(wanted: Recipe, progress: bool) -> dict[str, Compressed]:
    """All leaves, those of the recipe with its losses, coded one by one; their arrays are never in memory together."""

    def coded_together(names: list[str]) -> dict[str, Compressed]:
        return wanted.coded({name: wanted.pruned(name, wanted.leaves[name].read()) for name in names})

    def batches(names: list[str]) -> list[list[str]]:  # many small leaves take no longer than one of their size
        return host.batches(names, lambda name: wanted.leaves[name].nbytes, _BATCH)

    alike: dict[Any, list[str]] = {}  # leaves of one treatment are coded together
    for name in wanted.leaves:
        alike.setdefault((name in wanted.treatments, tuple(wanted.codes(name).items())), []).append(name)
    groups = [
        group
        for (_, codes), names in alike.items()
        for group in ([names] if dict(codes).get("quantizer") in treatments.TOGETHER else batches(names))
    ]
    parts = host.in_parallel(coded_together, groups, "leaves", progress)
    return {name: part for group in parts for name, part in group.items()}
