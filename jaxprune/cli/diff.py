"""``jaxprune diff``: two checkpoints, leaf by leaf."""

import argparse
from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints
from jaxprune.checkpoints import Leaf
from jaxprune.checkpoints.leaf import paths
from jaxprune.cli import shared
from jaxprune.layout import Axes
from jaxprune.reports import measures

_NOTES = """\
rel. error: L2 norm of after - before over that of before; of the total, over all floating leaves.
removed: entries that became 0; units: indices along the output axes that became 0 altogether. axes: inputs > outputs;
? where no rule knows, and --layout can say it."""
_SPARE = "dtype, max error, zeros before, axes, units, shape"  # where there is no room
_COUNTS = ("size", "zeros_before", "zeros_after", "removed", "units_removed", "changed")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("before", help="any format")
    parser.add_argument("after", help="any format; a.b and a/b are the same leaf")
    shared.add_choices(parser, "layout")


def run(args: argparse.Namespace) -> None:
    """The error of each leaf, and what was removed, between two checkpoints of any formats.

    examples:
      jaxprune diff model.safetensors model.jp
      jaxprune diff before.msgpack after.npz --json
      jaxprune diff model.safetensors model.jp --wide          (equal leaves and all columns)
    """
    old, new = (checkpoints.open(path, max_bytes=args.max_bytes) for path in (args.before, args.after))
    before, after = ({path: file.leaves[name] for name, path in paths(file.leaves).items()} for file in (old, new))
    both = [path for path in before if path in after]
    if not both:
        sides = f"{shared.few(list(before))} against {shared.few(list(after))}"
        raise ValueError(f"{args.before} and {args.after} have no leaf in common: {sides}")
    rows, shapes, axes = [], [], shared.axes(old.leaves, args.layout)
    marked = set(shared.eligible(old.leaves))
    for path in shared.tracked(both, "leaves", args.progress):
        if before[path].shape == after[path].shape:
            known, name = axes[before[path].name], before[path].name
            row = measured(before[path], after[path], known)
            rows.append(row | ({"axes": str(known or "?")} if name in marked else {}))
        else:
            shapes.append({"name": path, "before": list(before[path].shape), "after": list(after[path].shape)})
    sides = zip(("before", "after"), (args.before, args.after), (old, new), strict=True)
    found: dict[str, Any] = {
        side: {"path": path, "format": file.format, "file_bytes": file.file_bytes} for side, path, file in sides
    }
    others = [{name: other.read() for name, other in file.others.items()} for file in (old, new)]
    alike = len(rows) == len(before) == len(after) and others[0] == others[1]
    found |= {"equal": alike and all(row["equal"] for row in rows), "leaves": rows, "shapes": shapes}
    found["only_before"] = [path for path in before if path not in after]
    found["only_after"] = [path for path in after if path not in before]
    found["total"] = total(rows)
    shared.show(args, found, _text(found, args.wide), old, new)


def total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over all leaves; the error over the floating ones, for indices would outweigh any weight."""
    floating = [row for row in rows if row["floating"]]
    largest = max((row["max_error"] for row in floating), default=0.0)
    counts = {key: sum(row[key] or 0 for row in rows) for key in _COUNTS}
    return counts | {"relative_error": relative(floating), "max_error": largest}


def relative(rows: Collection[Mapping[str, Any]]) -> float:
    """The relative error of leaves together."""
    return measures.relative(*(sum(row[key] for row in rows) for key in ("squared_error", "squared_norm")))


def measured(before: Leaf, after: Leaf, axes: Axes | None) -> dict[str, Any]:
    """What is known of a leaf when both its arrays have been read."""
    found = compared(before.read(), after.read(), axes.inputs if axes else None)
    row = {"name": before.name, "shape": list(before.shape), "dtype": before.dtype.name}
    row |= {"dtype_after": after.dtype.name, "floating": bool(jnp.issubdtype(before.dtype, jnp.inexact))}
    return row | found


def compared(before: np.ndarray, after: np.ndarray, inputs: tuple[int, ...] | None = None) -> dict[str, Any]:
    """The fields of a difference, and the relative error that they make."""
    found = measures.compare(before, after, inputs)
    return {"relative_error": found.relative_error, **found._asdict()}


def _text(found: dict[str, Any], wide: bool) -> str:
    heads = "leaf, shape, axes, dtype, rel. error, max error, zeros before, zeros after, removed, units"
    forms = "{name} {shape} {axes} {dtypes} {relative_error:.3g} {max_error:.3g} {zeros_before:,} {zeros_after:,} "
    forms += "{removed:,} {units_removed:,}"
    rows = [
        row | {"dtypes": " -> ".join(dict.fromkeys(row[key] for key in ("dtype", "dtype_after") if key in row))}
        for row in shared.folded(found["leaves"], lambda row: row["equal"], "equal leaves", wide)
    ]
    sums = found["total"] | {"name": "total"}
    lines = [shared.table(heads, forms, rows, sums, 4, _SPARE, wide), "", shared.note(_NOTES, wide), ""]
    for row in found["shapes"]:
        lines.append(f"{row['name']}: {shared.shape(row['before'])} before, {shared.shape(row['after'])} after")
    for key, name in (("only_before", found["before"]["path"]), ("only_after", found["after"]["path"])):
        if found[key]:
            lines.append(f"only in {name}: {', '.join(found[key])}")
    equal = sum(row["equal"] for row in found["leaves"])
    sizes = found["before"]["file_bytes"], found["after"]["file_bytes"]
    lines += [f"{equal} of {len(found['leaves'])} leaves are equal to the bit.", shared.smaller(*sizes)]
    return "\n".join(lines)
