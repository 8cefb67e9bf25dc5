"""``jaxprune sweep``: every combination of sparsities and widths, leaf by leaf."""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from jaxprune import checkpoints, host
from jaxprune.checkpoints import Leaf, compressed, nested
from jaxprune.cli import goals, recipe, shared
from jaxprune.cli.goals import Goal
from jaxprune.cli.treatments import Recipe
from jaxprune.files import Compressed
from jaxprune.reports import measures
from jaxprune.reports.page import around, brief

_NOTES = """\
bytes: of the file that jaxprune compress writes. rel. error: L2 norm of the change over that of the weights, over all
chosen leaves. * is on the front: nothing else has at most these bytes and a better {metric}."""
_OPTIONS = ("scope", "axis", "block_size", "side", *shared.CHOICES)
_USUAL = Goal("relative_error", 0.1, "a relative error of at most 0.1")
_NEAR = 0.01  # of the best metric, that may be lost


#: A setting, as it is printed.
Row = dict[str, Any]


class Setting(NamedTuple):
    """One of the combinations: how its pruning and its width are said, and what they mean for the leaves."""

    said: dict[str, Any]
    bits: float | None
    wanted: Recipe


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add = parser.add_argument
    add("checkpoint", help="any format")
    add("--sparsity", default="0,0.5,0.75,0.9", metavar="S,S,...", help="also N:M, such as 2:4; default: %(default)s")
    add("--bits", default="none,8,4,2", metavar="B,B,...", help="none for no codes; default: %(default)s")
    add("--png", metavar="FILE", help="draw the curves (needs matplotlib)")
    recipe.add_options(parser, _OPTIONS)
    group = parser.add_argument_group("which row to take", "Default: the smallest that loses little.")
    goals.add_options(group)


def run(args: argparse.Namespace) -> None:
    """Try sparsities and bit widths: error and the bytes of the file, or a metric of your own.

    examples:
      jaxprune sweep model.safetensors
      jaxprune sweep model.safetensors --sparsity 0,0.5,0.8,0.9 --bits none,8,4 --png curves.png
      jaxprune sweep model.safetensors --sparsity 0,2:4 --bits 8,4 --block-size 32 --target-size 6MB
      jaxprune sweep model.msgpack --eval my_model:accuracy --bits 8,6,4 --json

      my_model.py has a function accuracy(params) -> number, larger is better; params is a tree of dicts.
    """
    sparsities, widths = _sparsities(args.sparsity), goals.numbers(args.bits, "--bits", 1, 16)
    goal = goals.of(args)
    if args.png:
        checkpoints.check_output(args.png, force=args.force)
        host.library("matplotlib", "jaxprune[plots]")
    if args.eval:
        shared.function(args.eval)
    opened = checkpoints.open(args.checkpoint, max_bytes=args.max_bytes)
    options = recipe.from_options(args, _OPTIONS)
    prunings = [(said, recipe.resolve(options | said, opened.leaves)) for said in sparsities]
    tried = [
        Setting(said, bits, wanted if bits is None else wanted.at(bits=bits))
        for said, wanted in prunings
        for bits in widths
    ]
    rows = curves(tried, opened.leaves, opened.metadata, args.progress)
    metric = "rel. error"
    if args.eval:
        metric = args.eval.partition(":")[2]
        for row, one in zip(rows, shared.tracked(tried, "settings", args.progress), strict=True):
            row["metric"] = evaluated(one.wanted, args.eval)
    _mark_front(rows)
    wanted, left_out = prunings[0][1], max((wanted.left_out for _, wanted in prunings), key=len)
    size = sum(leaf.nbytes for leaf in opened.leaves.values())
    found = {"path": args.checkpoint, "scope": wanted.scope, "bytes": size, "chosen": list(wanted.treatments)}
    found |= {"left_out": left_out, "settings": rows, **_advice(args, goal, tried, rows)}
    if args.png:
        with host.written_whole(checkpoints.check_output(args.png, force=args.force)) as beside:
            drawn(found, metric).savefig(beside, format=Path(args.png).suffix[1:] or "png", dpi=150)
    shared.show(args, found, _text(found, metric, args.wide), opened)


def _advice(args: argparse.Namespace, goal: Goal | None, tried: list[Setting], rows: list[Row]) -> dict[str, Any]:
    """Which row to take, and the command that does; none if none meets the goal."""
    if goal is None and args.eval:
        best = max(row["metric"] for row in rows)
        goal = Goal("metric", best - _NEAR * abs(best), f"{args.eval.partition(':')[2]} within {_NEAR:.0%} of the best")
    goal = goal or _USUAL
    row = goal.best(rows)
    if row is None:
        return {"goal": goal.said, "taken": None, "command": None}
    taken = tried[rows.index(row)]
    said = recipe.from_options(args, _OPTIONS) | {key: value for key, value in taken.said.items() if value}
    said |= ({} if taken.bits is None else {"bits": f"{taken.bits:g}"}) | ({"eval": args.eval} if args.eval else {})
    words = ["jaxprune", "compress", args.checkpoint, "-o", f"{Path(args.checkpoint).stem.partition('.')[0]}.jp"]
    for key, value in said.items():
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{key.replace('_', '-')}", str(one)]
    return {"goal": goal.said, "taken": rows.index(row), "command": shlex.join(words)}


def _sparsities(text: str) -> list[dict[str, Any]]:
    """As a recipe says them: fractions, and N of M."""
    found: list[dict[str, Any]] = []
    for part in map(str.strip, text.split(",")):
        if part == "none":
            raise ValueError("--sparsity none: write 0, which prunes nothing")
        found.append({"n_of_m": part} if ":" in part else {"sparsity": goals.numbers(part, "--sparsity", 0, 1)[0]})
    return found


def _mark_front(rows: list[Row]) -> None:
    quality = [row["metric"] if "metric" in row else -row["relative_error"] for row in rows]
    front = jp.pareto_front({}, cost=[row["bytes"] for row in rows], metric=np.asarray(quality))
    for i, row in enumerate(rows):
        row["front"] = bool(i in front)


def _label(row: Row) -> str:
    return row.get("n_of_m") or f"{row['sparsity']:g}"


def _text(found: dict[str, Any], metric: str, wide: bool) -> str:
    heads = f", sparsity, bits, bytes, smaller, rel. error, {metric}"
    forms = "{mark} {label} {width} {bytes:,} {smaller} {relative_error:.4f} {metric:.6g}"
    rows = []
    for row in found["settings"]:
        width = "-" if row["bits"] is None else f"{row['bits']:g}"
        smaller = shared.times(found["bytes"], row["bytes"])
        rows.append(row | {"mark": "*" * row["front"], "label": _label(row), "width": width, "smaller": smaller})
    ends = [f"Nothing here has {found['goal']}: try other --sparsity or --bits."]
    if found["command"]:
        ends = [f"The {'best' if 'bytes' in found['goal'] else 'smallest'} row with {found['goal']} is made by", ""]
        ends += [f"  {found['command']}"]
    title = f"{found['path']}: {len(found['chosen'])} leaves chosen, {found['bytes']:,} bytes as arrays"
    left_out = [recipe.LEFT_OUT.format(shared.few(found["left_out"])), ""] if found["left_out"] else []
    return "\n".join(
        [
            title,
            "",
            shared.table(heads, forms, rows),
            "",
            *left_out,
            shared.note(_NOTES.format(metric=metric), wide),
            "",
            *ends,
        ]
    )


def drawn(found: dict[str, Any], metric: str) -> Any:
    """A line for each width, over bytes, and the front, whose points say their sparsity."""
    figure = host.library("matplotlib.figure", "jaxprune[plots]").Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    points = [(row["bytes"] / 1e6, row.get("metric", row["relative_error"]), row) for row in found["settings"]]
    points.sort(key=lambda point: point[:2])
    for bits in dict.fromkeys(row["bits"] for row in found["settings"]):
        line = [point[:2] for point in points if point[2]["bits"] == bits]
        axes.plot(*zip(*line, strict=True), "o-", label="not quantized" if bits is None else f"{bits:g} bits")
    front = [point for point in points if point[2]["front"]]
    axes.plot(*list(zip(*front, strict=True))[:2], color="0.2", lw=4, alpha=0.3, zorder=0, label="front")
    least, last = np.ptp([point[1] for point in points]) / 25, None
    for size, value, row in front:
        if last is None or abs(value - last) >= least:  # labels do not meet
            axes.annotate(
                _label(row), (size, value), textcoords="offset points", xytext=(-6, -4), ha="right", fontsize=8
            )
            last = value
    across = around(np.array([point[0] for point in points]), log=True)
    ticks = across.ticks()
    axes.set(xscale="log", xlim=(0.9 * across.low, across.high), xlabel="megabytes (numbers: sparsity)", ylabel=metric)
    axes.set_xticks(ticks, map(brief, ticks))
    axes.set_xticks([], minor=True)
    axes.set_title(f"{Path(found['path']).name}: size and {metric}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def curves(
    tried: Sequence[Setting], leaves: Mapping[str, Leaf], metadata: Mapping[str, str], progress: bool
) -> list[Row]:
    """Relative error of each setting, and the bytes of its file: each leaf is read by itself, and coded."""
    parts: list[dict[str, Compressed]] = [{} for _ in tried]
    sums, chosen = np.zeros((len(tried), 2)), tried[0].wanted.treatments
    for name in shared.tracked(list(leaves), "leaves", progress):
        work = partial(_tried, name, leaves[name].read())
        found = host.in_parallel(work, tried) if name in chosen else [work(tried[0])] * len(tried)
        for i, (part, apart) in enumerate(found):
            parts[i][name] = part
            sums[i] += (apart.squared_error, apart.squared_norm) if name in chosen else 0
    made = (compressed.assemble(part, metadata).nbytes for part in parts)
    sizes = ({"bits": one.bits, "bytes": size} for one, size in zip(tried, made, strict=True))
    errors = (measures.relative(*both) for both in sums.tolist())
    rows = zip(tried, sizes, errors, strict=True)
    return [one.said | size | {"relative_error": error} for one, size, error in rows]


def _tried(name: str, array: np.ndarray, one: Setting) -> tuple[Compressed, measures.Difference]:
    return one.wanted.tried(name, array)


def evaluated(wanted: Recipe, function: str) -> float:
    """The metric of a setting, on the whole tree."""
    arrays = {name: jnp.asarray(wanted.changed(name, leaf.read())) for name, leaf in wanted.leaves.items()}
    return goals.metric(function, nested(arrays))
