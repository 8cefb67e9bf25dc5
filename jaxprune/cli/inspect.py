"""``jaxprune inspect``: what is in a checkpoint, and what low-bit codes of it would take."""

import argparse
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from jaxprune import checkpoints, host
from jaxprune.checkpoints import Leaf, inspection
from jaxprune.cli import output, selection
from jaxprune.host import progress_bar

HELP = "what is in a checkpoint, leaf by leaf, and what 8-bit and 4-bit codes would take"
EXAMPLES = """\
  jaxprune inspect model.safetensors
  jaxprune inspect model.safetensors --json | jq .total
  jaxprune inspect checkpoints/100 --where 'Dense_*'"""

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
    shown = list(opened.leaves)
    if args.where:
        some = set().union(*(selection.matching(pattern, shown, opened.leaves) for pattern in args.where))
        shown = [name for name in shown if name in some]
    leaves = {name: opened.leaves[name] for name in shown}
    marked = set(selection.eligible(opened.leaves))
    facts = {}
    with progress_bar(output.progress_wanted(args), "leaves", 0, len(leaves)) as finished:
        for number, (name, leaf) in enumerate(leaves.items(), 1):
            facts[name] = inspection.describe(leaf.read())
            finished(number)
    rows = [_row(leaf, facts[name], name in marked) for name, leaf in leaves.items()]
    total = _total(rows)
    warnings = _warnings(leaves, facts)
    found = {
        "path": str(opened.path),
        "format": opened.format,
        "file_bytes": opened.file_bytes,
        "leaves": rows,
        "total": total,
        "warnings": warnings,
    }
    output.show(args, found, _text(found))


def _row(leaf: Leaf, facts: inspection.Facts, marked: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": leaf.name,
        "shape": list(leaf.shape),
        "dtype": leaf.dtype.name,
        "parameters": leaf.size,
        "bytes": leaf.nbytes,
        "zeros": facts.zeros,
        "nan": facts.nan,
        "inf": facts.inf,
        "absmax": facts.absmax,
        "selected": marked,
    }
    for bits, entropy in facts.entropy.items():
        row[f"entropy_{bits}"] = entropy
        row[f"fixed_bytes_{bits}"] = facts.fixed_bytes(bits, leaf.size)
        row[f"coded_bytes_{bits}"] = facts.coded_bytes(bits, leaf.size)
    return row | {"zero_rows": facts.dead.get(0, 0), "dead_units": facts.dead.get(-1, 0)}


def _total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {
        key: sum(row[key] for row in rows) for key in ("parameters", "bytes", "zeros", "nan", "inf")
    }
    floating = [row["absmax"] for row in rows if "entropy_8" in row]
    total["absmax"] = max(floating, default=0.0)
    for bits in inspection.WIDTHS:
        for kind in ("fixed", "coded"):
            key = f"{kind}_bytes_{bits}"
            total[key] = sum(row[key] if row["selected"] else row["bytes"] for row in rows)
    return total


def _warnings(leaves: Mapping[str, Leaf], facts: dict[str, inspection.Facts]) -> list[str]:
    found, alike = [], defaultdict(list)
    for name, leaf in leaves.items():
        fact = facts[name]
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
    total = found["total"] | {"name": "total", "shape": None, "dtype": "", "selected": False}
    text = host.table(head, [_cells(row) for row in found["leaves"]], _cells(total), left=3)
    return "\n".join(
        [
            f"{found['path']}: {found['format']}, {output.size(found['file_bytes'])}, {len(found['leaves'])} leaves",
            "",
            text,
            "",
            _NOTES,
            *(["", "Warnings"] + [f"  {warning}" for warning in found["warnings"]] if found["warnings"] else []),
        ]
    )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        ("* " if row["selected"] else "  ") + row["name"],
        "" if row["shape"] is None else output.shape(row["shape"]),
        row["dtype"],
        f"{row['parameters']:,}",
        f"{row['bytes']:,}",
        f"{row['zeros']:,}",
        f"{row['nan'] + row['inf']:,}",
        f"{row['absmax']:.4g}",
        f"{row['entropy_8']:.2f}" if "entropy_8" in row else "",
        f"{row['entropy_4']:.2f}" if "entropy_4" in row else "",
        f"{row['coded_bytes_8']:,}" if "coded_bytes_8" in row else "",
        f"{row['coded_bytes_4']:,}" if "coded_bytes_4" in row else "",
    )
