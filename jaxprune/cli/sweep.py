"""``jaxprune sweep``: every combination of sparsities and widths, leaf by leaf."""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from jaxprune import checkpoints, host
from jaxprune.checkpoints import nested
from jaxprune.cli import recipe, shared
from jaxprune.reports import measures, sizes

_NOTES = """\
bytes: ceil(kept * bits / 8) a leaf, and a mask of a bit a weight, and 4 a scale; other leaves as they are. Files of
jaxprune compress are smaller. rel. error: L2 norm of the change over that of the weights, over all chosen leaves.
* is on the front: nothing else has at most these bytes and a better {metric}."""
_OPTIONS = ("scope", "axis", "block_size", *shared.CHOICES)


#: One of the sparsities: how it is said, and what it means for the leaves.
Pruning = tuple[dict[str, Any], recipe.Recipe]


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add = parser.add_argument
    add("checkpoint", help="any format")
    add("--sparsity", default="0,0.5,0.75,0.9", metavar="S,S,...", help="also N:M, such as 2:4; default: %(default)s")
    add("--bits", default="none,8,4,2", metavar="B,B,...", help="none for no codes; default: %(default)s")
    add("--eval", metavar="MODULE:FUNCTION", help="called with the parameters of each setting")
    add("--png", metavar="FILE", help="draw the curves (needs matplotlib)")
    recipe.add_options(parser, _OPTIONS)


def run(args: argparse.Namespace) -> None:
    """Try sparsities and bit widths: error and bytes, or a metric of your own.

    examples:
      jaxprune sweep model.safetensors
      jaxprune sweep model.safetensors --sparsity 0,0.5,0.8,0.9 --bits none,8,4 --png curves.png
      jaxprune sweep model.safetensors --sparsity 0,2:4 --bits 8,4 --block-size 32
      jaxprune sweep model.msgpack --eval my_model:accuracy --bits 8,6,4 --json

      my_model.py has a function accuracy(params) -> number, larger is better; params is a tree of dicts.
    """
    sparsities, widths = _sparsities(args.sparsity), _numbers(args.bits, "--bits", 1, 16)
    if args.png:
        checkpoints.check_output(args.png, force=args.force)
        host.library("matplotlib", "jaxprune[plots]")
    evaluate = shared.function(args.eval) if args.eval else None
    opened = checkpoints.open(args.checkpoint, max_bytes=args.max_bytes)
    options = recipe.from_options(args, _OPTIONS)
    prunings = [(said, recipe.resolve(options | said, opened.leaves)) for said in sparsities]
    rows = curves(prunings, widths, args.progress)
    metric = "rel. error"
    if evaluate is not None:
        metric = args.eval.partition(":")[2]
        tried = [(wanted, bits) for _, wanted in prunings for bits in widths]
        for row, (wanted, bits) in zip(rows, shared.tracked(tried, "settings", args.progress), strict=True):
            row["metric"] = evaluated(wanted, bits, evaluate)
    _mark_front(rows)
    wanted, left_out = prunings[0][1], max((wanted.left_out for _, wanted in prunings), key=len)
    size = sum(leaf.nbytes for leaf in opened.leaves.values())
    found = {"path": args.checkpoint, "scope": wanted.scope, "bytes": size, "chosen": list(wanted.treatments)}
    found |= {"left_out": left_out, "settings": rows}
    if args.png:
        _draw(Path(args.png), rows, metric, args.force)
    shared.show(args, found, _text(found, metric), opened)


def _sparsities(text: str) -> list[dict[str, Any]]:
    """As a recipe says them: fractions, and N of M."""
    found: list[dict[str, Any]] = []
    for part in map(str.strip, text.split(",")):
        if part == "none":
            raise ValueError("--sparsity none: write 0, which prunes nothing")
        found.append({"n_of_m": part} if ":" in part else {"sparsity": _numbers(part, "--sparsity", 0, 1)[0]})
    return found


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


def _label(row: dict[str, Any]) -> str:
    return row.get("n_of_m") or f"{row['sparsity']:g}"


def _text(found: dict[str, Any], metric: str) -> str:
    heads = f", sparsity, bits, bytes, smaller, rel. error, {metric}"
    forms = "{mark} {label} {width} {bytes:,} {smaller} {relative_error:.4f} {metric:.6g}"
    rows = []
    for row in found["settings"]:
        width = "-" if row["bits"] is None else f"{row['bits']:g}"
        smaller = shared.times(found["bytes"], row["bytes"])
        rows.append(row | {"mark": "*" * row["front"], "label": _label(row), "width": width, "smaller": smaller})
    title = f"{found['path']}: {len(found['chosen'])} leaves chosen, {found['bytes']:,} bytes as arrays"
    left_out = [recipe.LEFT_OUT.format(shared.few(found["left_out"])), ""] if found["left_out"] else []
    return "\n".join([title, "", shared.table(heads, forms, rows), "", *left_out, _NOTES.format(metric=metric)])


def _draw(path: Path, rows: list[dict[str, Any]], metric: str, force: bool) -> None:
    """A line for each width, over bytes."""
    figure = host.library("matplotlib.figure", "jaxprune[plots]").Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for bits in dict.fromkeys(row["bits"] for row in rows):
        line = [row for row in rows if row["bits"] == bits]
        values = [row.get("metric", row["relative_error"]) for row in line]
        label = "not quantized" if bits is None else f"{bits:g} bits"
        axes.plot([row["bytes"] / 1e6 for row in line], values, "o-", label=label)
        for row, value in zip(line, values, strict=True):
            place = (row["bytes"] / 1e6, value)
            axes.annotate(_label(row), place, textcoords="offset points", xytext=(4, 4), fontsize=8)
    axes.set(xscale="log", xlabel="megabytes (numbers: sparsity)", ylabel=metric)
    axes.grid(alpha=0.3)
    axes.legend()
    with host.written_whole(checkpoints.check_output(path, force=force)) as beside:
        figure.savefig(beside, format=path.suffix[1:] or "png", dpi=150)


def curves(prunings: Sequence[Pruning], widths: Sequence[float | None], progress: bool) -> list[dict[str, Any]]:
    """Relative error and bytes of every combination; each leaf is read by itself, and a shape compiles once."""
    first = prunings[0][1]
    rest = sum(leaf.nbytes for name, leaf in first.leaves.items() if name not in first.treatments)
    rows: list[dict[str, Any]] = [said | {"bits": bits, "bytes": rest} for said, _ in prunings for bits in widths]
    sums = np.zeros((len(rows), 2))
    for name in shared.tracked(list(first.treatments), "leaves", progress):
        array, axes, spec = first.leaves[name].read(), first.axes[name], first.spec(name)
        masks = [wanted.mask(name, array) for _, wanted in prunings]
        for i, row in enumerate(rows):
            bits, mask = row["bits"], masks[i // len(widths)]
            found = measures.compare(array, np.asarray(_changed(array, mask, bits, spec)))
            sums[i] += found.squared_error, found.squared_norm
            kept, entries = sizes.mask_cost(mask, array.size, axes.inputs if axes and mask.ndim else ())
            width = 8 * array.itemsize if bits is None else math.floor(bits + 0.5)
            scales = 0 if bits is None else math.prod(sizes.scales_of(array.shape, spec, name))
            row["bytes"] += sizes.leaf_bytes(kept, width, entries, scales)
    return [row | {"relative_error": measures.relative(*both)} for row, both in zip(rows, sums.tolist(), strict=True)]


def evaluated(wanted: recipe.Recipe, bits: float | None, evaluate: Callable[..., Any]) -> float:
    """The metric of a setting, on the whole tree."""
    arrays = {name: leaf.read() for name, leaf in wanted.leaves.items()}
    for name in wanted.treatments:
        arrays[name] = _changed(arrays[name], wanted.mask(name, arrays[name]), bits, wanted.spec(name))
    found = evaluate(nested({name: jnp.asarray(array) for name, array in arrays.items()}))
    try:
        return float(found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the function of --eval returned {str(found)[:60]}, not a number") from error


def _changed(array: np.ndarray, mask: np.ndarray, bits: float | None, spec: jp.QuantSpec) -> Any:
    """A leaf after a setting."""
    pruned = np.where(mask, array, np.zeros((), array.dtype))
    if bits is None:
        return pruned
    known = pruned if array.dtype.name in ("float16", "bfloat16") else pruned.astype(np.float32)
    return jp.fake_quant(known, bits, spec=spec, where=lambda *_: True)
