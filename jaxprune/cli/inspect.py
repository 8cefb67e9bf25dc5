"""What is in a checkpoint, leaf by leaf, and what 8-bit and 4-bit codes would take.

examples:
  jaxprune inspect model.safetensors
  jaxprune inspect model.safetensors --json | jq .total
  jaxprune inspect checkpoints/100 --where 'Dense_*'
"""

import argparse
from collections import defaultdict
from typing import Any

from jaxprune import checkpoints, host
from jaxprune.checkpoints import Leaf, inspection
from jaxprune.cli import output, selection

_NOTES = """\
H8, H4: entropy in bits a weight of the codes of jaxprune.quantize(leaf, 8 or 4): symmetric, one scale a leaf.
8-bit, 4-bit: bytes of these codes at their entropy, and 4 for the scale. The total takes them for the leaves marked *,
which compress works on by default (floating, rank 2 and more), and all other leaves as they are."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "checkpoint", help=".safetensors (or its index), .npz, msgpack of Flax, Orbax folder or jaxprune file"
    )
    parser.add_argument("--where", action="append", default=[], metavar="PATTERN", help="only leaves of these names")


def run(args: argparse.Namespace) -> None:
    """Reads each leaf once and prints what is in it."""
    opened = checkpoints.open(args.checkpoint)
    shown = selection.matching(args.where, list(opened.leaves), opened.leaves)
    marked = set(selection.eligible(opened.leaves))
    leaves = [opened.leaves[name] for name in shown]
    tracked = output.tracked(leaves, "leaves", output.progress_wanted(args))
    facts = {leaf.name: inspection.describe(leaf.read()) for leaf in tracked}
    rows = [_row(leaf, facts[leaf.name], leaf.name in marked) for leaf in leaves]
    found = {"path": str(opened.path), "format": opened.format, "file_bytes": opened.file_bytes, "leaves": rows}
    found |= {"total": _total(rows), "warnings": _warnings(leaves, facts)}
    output.show(args, found, _text(found))


def _row(leaf: Leaf, facts: inspection.Facts, marked: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": leaf.name,
        "shape": list(leaf.shape),
        "dtype": leaf.dtype.name,
        "parameters": leaf.size,
        "bytes": leaf.nbytes,
        "selected": marked,
    }
    row |= {key: getattr(facts, key) for key in ("zeros", "nan", "inf", "absmax")}
    for bits, entropy in facts.entropy.items():
        row[f"entropy_{bits}"] = entropy
        row[f"fixed_bytes_{bits}"] = facts.fixed_bytes(bits, leaf.size)
        row[f"coded_bytes_{bits}"] = facts.coded_bytes(bits, leaf.size)
    return row | {"zero_rows": facts.dead.get(0, 0), "dead_units": facts.dead.get(-1, 0)}


def _total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    counts = ("parameters", "bytes", "zeros", "nan", "inf")
    total: dict[str, Any] = {key: sum(row[key] for row in rows) for key in counts}
    total["absmax"] = max((row["absmax"] for row in rows if "entropy_8" in row), default=0.0)
    for key in (f"{kind}_bytes_{bits}" for bits in inspection.WIDTHS for kind in ("fixed", "coded")):
        total[key] = sum(row[key] if row["selected"] else row["bytes"] for row in rows)
    return total


def _warnings(leaves: list[Leaf], facts: dict[str, inspection.Facts]) -> list[str]:
    found, alike = [], defaultdict(list)
    for leaf in leaves:
        name, fact = leaf.name, facts[leaf.name]
        if fact.nan or fact.inf:
            found.append(f"{name}: {fact.nan:,} NaN and {fact.inf:,} infinite of {leaf.size:,} entries")
        if leaf.size > 1 and fact.zeros == leaf.size:
            found.append(f"{name}: all {leaf.size:,} entries are 0")
        if fact.dead.get(-1):
            found.append(f"{name}: {fact.dead[-1]:,} of {leaf.shape[-1]:,} units (last axis) have zeros alone")
        if fact.dead.get(0):
            found.append(f"{name}: {fact.dead[0]:,} of {leaf.shape[0]:,} rows (first axis) have zeros alone")
        if not fact.constant:
            alike[fact.digest, leaf.shape, leaf.dtype].append(name)
    found += [f"{', '.join(same)}: the same array {len(same)} times" for same in alike.values() if len(same) > 1]
    return found


def _text(found: dict[str, Any]) -> str:
    head = ("leaf", "shape", "dtype", "parameters", "bytes", "zeros", "nan/inf", "absmax", "H8", "H4", "8-bit", "4-bit")
    cells = [_cells(row | {"name": f"{'*' if row['selected'] else ' '} {row['name']}"}) for row in found["leaves"]]
    table = host.table(head, cells, _cells(found["total"] | {"name": "  total"}), left=3)
    title = f"{found['path']}: {found['format']}, {output.size(found['file_bytes'])}, {len(found['leaves'])} leaves"
    warnings = ["", "Warnings", *(f"  {warning}" for warning in found["warnings"])] if found["warnings"] else []
    return "\n".join([title, "", table, "", _NOTES, *warnings])


def _cells(row: dict[str, Any]) -> list[str]:
    form = "{name} {shape} {dtype} {parameters:,} {bytes:,} {zeros:,} {odd:,} {absmax:.4g} {entropy_8:.2f} "
    form += "{entropy_4:.2f} {coded_bytes_8:,} {coded_bytes_4:,}"
    return output.cells(form, row | {"odd": row["nan"] + row["inf"]})
