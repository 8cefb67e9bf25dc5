"""Try sparsities and bit widths: error and bytes, or a metric of your own.

examples:
  jaxprune sweep model.safetensors
  jaxprune sweep model.safetensors --sparsity 0,0.5,0.8,0.9 --bits none,8,4 --png curves.png
  jaxprune sweep model.msgpack --eval my_model:accuracy --bits 8,6,4 --json

  my_model.py has a function accuracy(params) -> number, larger is better; params is a tree of dicts.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from jaxprune import checkpoints, host
from jaxprune.checkpoints import Leaf, compressed, nested, ranking
from jaxprune.cli import shared
from jaxprune.reports import measures

_NOTES = """\
bytes: ceil(kept * bits / 8) a leaf, and a mask of a bit a weight, and 4 a scale; other leaves as they are. Files of
jaxprune compress are smaller. rel. error: L2 norm of the change over that of the weights, over all chosen leaves.
* is on the front: nothing else has at most these bytes and a better {metric}."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add = parser.add_argument
    add("checkpoint", help="any format")
    add("--sparsity", default="0,0.5,0.75,0.9", metavar="S,S,...", help="default: %(default)s")
    add("--bits", default="none,8,4,2", metavar="B,B,...", help="none for no codes; default: %(default)s")
    add("--scope", choices=("global", "leaf"), default="leaf", help="of the ranking; default: leaf")
    add("--axis", type=int, metavar="AXIS", help="keep a scale for each index along it; else one a leaf")
    add("--where", action="append", default=[], metavar="PATTERN", help="only leaves of these names")
    add("--exclude", action="append", default=[], metavar="PATTERN", help="leaves to leave alone")
    add("--eval", metavar="MODULE:FUNCTION", help="called with the parameters of each setting")
    add("--png", metavar="FILE", help="draw the curves (needs matplotlib)")


def run(args: argparse.Namespace) -> None:
    """Tries each setting and prints a row for each."""
    sparsities = _numbers(args.sparsity, "--sparsity", 0, 1)
    widths = _numbers(args.bits, "--bits", 1, 16)
    if None in sparsities:
        raise ValueError("--sparsity none: write 0, which prunes nothing")
    if args.png:
        checkpoints.check_output(args.png, force=args.force)
        _pyplot()
    evaluate = shared.function(args.eval) if args.eval else None
    opened = shared.opened(args, args.checkpoint)
    chosen = shared.choose(opened.leaves, args.where, args.exclude)
    spec, progress = jp.QuantSpec(axis=args.axis), shared.progress_wanted(args)
    trial = Trial(opened.leaves, chosen, args.scope, spec, progress)
    rows = curves(trial, [float(s) for s in sparsities if s is not None], widths)
    metric = "rel. error"
    if evaluate is not None:
        metric = args.eval.partition(":")[2]
        for row, value in zip(rows, evaluated(trial, rows, evaluate), strict=True):
            row["metric"] = value
    _mark_front(rows)
    size = sum(leaf.nbytes for leaf in opened.leaves.values())
    found = {"path": args.checkpoint, "scope": args.scope, "bytes": size, "chosen": chosen, "settings": rows}
    if args.png:
        _draw(Path(args.png), rows, metric, args.force)
    shared.show(args, found, _text(found, metric), opened)


def _numbers(text: str, option: str, low: float, high: float) -> list[float | None]:
    """Numbers between commas; None for the word none."""
    found: list[float | None] = []
    for part in text.split(","):
        try:
            number = None if part.strip() == "none" else float(part)
        except ValueError as error:
            raise ValueError(f"{option} {text!r}: {part!r} is no number; write them between commas") from error
        if number is not None and not low <= number <= high:
            raise ValueError(f"{option} must be in [{low:g}, {high:g}], got {number:g}")
        found.append(number)
    return found


def _mark_front(rows: list[dict[str, Any]]) -> None:
    quality = [row["metric"] if "metric" in row else -row["relative_error"] for row in rows]
    front = jp.pareto_front({}, cost=[row["bytes"] for row in rows], metric=np.asarray(quality))
    for i, row in enumerate(rows):
        row["front"] = bool(i in front)


def _text(found: dict[str, Any], metric: str) -> str:
    rows = found["settings"]
    head = ["", "sparsity", "bits", "bytes", "smaller", "rel. error"] + ([metric] if "metric" in rows[0] else [])
    form = "{mark} {sparsity:g} {width} {bytes:,} {smaller} {relative_error:.4f}"
    form += " {metric:.6g}" if "metric" in rows[0] else ""
    cells = []
    for row in rows:
        width = "-" if row["bits"] is None else f"{row['bits']:g}"
        said = {"mark": "*" * row["front"], "width": width, "smaller": shared.times(found["bytes"], row["bytes"])}
        cells.append(shared.cells(form, row | said))
    title = f"{found['path']}: {len(found['chosen'])} leaves chosen, {found['bytes']:,} bytes as arrays"
    return "\n".join([title, "", host.table(head, cells), "", _NOTES.format(metric=metric)])


def _pyplot() -> Any:
    """Matplotlib, without a window."""
    host.library("matplotlib", "jaxprune[plots]").use("Agg")
    return host.library("matplotlib.pyplot", "jaxprune[plots]")


def _draw(path: Path, rows: list[dict[str, Any]], metric: str, force: bool) -> None:
    """A line for each width, over bytes."""
    plot = _pyplot()
    figure, axes = plot.subplots(figsize=(7, 4.5), layout="constrained")
    for bits in dict.fromkeys(row["bits"] for row in rows):
        line = [row for row in rows if row["bits"] == bits]
        values = [row.get("metric", row["relative_error"]) for row in line]
        label = "not quantized" if bits is None else f"{bits:g} bits"
        axes.plot([row["bytes"] / 1e6 for row in line], values, "o-", label=label)
        for row, value in zip(line, values, strict=True):
            place = (row["bytes"] / 1e6, value)
            axes.annotate(f"{row['sparsity']:g}", place, textcoords="offset points", xytext=(4, 4), fontsize=8)
    axes.set(xscale="log", xlabel="megabytes (numbers: sparsity)", ylabel=metric)
    axes.grid(alpha=0.3)
    axes.legend()
    with host.written_whole(checkpoints.check_output(path, force=force)) as beside:
        figure.savefig(beside, format=path.suffix[1:] or "png", dpi=150)
    plot.close(figure)


class Trial(NamedTuple):
    """What is tried on which leaves: a ranking of some scope, and the scales of a spec."""

    leaves: Mapping[str, Leaf]
    chosen: Sequence[str]
    scope: str
    spec: jp.QuantSpec
    progress: bool

    def cuts(self, sparsity: float) -> dict[str, ranking.Cut]:
        """Where the chosen leaves are cut."""
        ranked = {name: self.leaves[name] for name in compressed.tree_order(self.chosen)}
        if self.scope == "global":
            return ranking.cuts(ranked, sparsity)
        return {name: ranking.cuts({name: leaf}, sparsity)[name] for name, leaf in ranked.items()}

    def changed(self, array: np.ndarray, mask: np.ndarray, bits: float | None) -> Any:
        """A leaf after a setting."""
        pruned = np.where(mask, array, np.zeros((), array.dtype))
        if bits is None:
            return pruned
        known = pruned if array.dtype.name in ("float16", "bfloat16") else pruned.astype(np.float32)
        return jp.fake_quant(known, bits, spec=self.spec, where=_everything)


def curves(trial: Trial, sparsities: Sequence[float], widths: Sequence[float | None]) -> list[dict[str, Any]]:
    """Relative error and bytes of every combination; each leaf is read by itself, and a shape compiles once."""
    rest = sum(leaf.nbytes for name, leaf in trial.leaves.items() if name not in set(trial.chosen))
    rows: list[dict[str, Any]] = [{"sparsity": s, "bits": b, "bytes": rest} for s in sparsities for b in widths]
    sums, cuts = np.zeros((len(rows), 2)), {s: trial.cuts(s) for s in sparsities}
    for name in shared.tracked(trial.chosen, "leaves", trial.progress):
        array = trial.leaves[name].read()
        masks = {s: ranking.mask(array, cuts[s][name]) for s in sparsities}
        for i, row in enumerate(rows):
            bits, mask = row["bits"], masks[row["sparsity"]]
            found = measures.compare(array, np.asarray(trial.changed(array, mask, bits)))
            sums[i] += found.squared_error, found.squared_norm
            row["bytes"] += int(jp.reports.coded_bytes(array, mask, bits, spec=trial.spec, where=_everything))
    return [row | {"relative_error": measures.relative(*both)} for row, both in zip(rows, sums.tolist(), strict=True)]


def evaluated(trial: Trial, rows: Sequence[dict[str, Any]], evaluate: Callable[..., Any]) -> list[float]:
    """The metric of each row's setting, on the whole tree."""
    cuts = {sparsity: trial.cuts(sparsity) for sparsity in {row["sparsity"] for row in rows}}

    def value(name: str, leaf: Leaf, row: dict[str, Any]) -> jax.Array:
        array, cut = leaf.read(), cuts[row["sparsity"]].get(name)
        return jnp.asarray(array if cut is None else trial.changed(array, ranking.mask(array, cut), row["bits"]))

    def metric(row: dict[str, Any]) -> float:
        found = evaluate(nested({name: value(name, leaf, row) for name, leaf in trial.leaves.items()}))
        try:
            return float(found)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the function of --eval returned {str(found)[:60]}, not a number") from error

    return [metric(row) for row in shared.tracked(rows, "settings", trial.progress)]


def _everything(*_: Any) -> bool:
    return True
