"""What is in a checkpoint, leaf by leaf, and what 8-bit and 4-bit codes would take.

examples:
  jaxprune inspect model.safetensors
  jaxprune inspect model.safetensors --json | jq .total
  jaxprune inspect checkpoints/100 --where 'Dense_*'
"""

import argparse
import hashlib
from collections import defaultdict
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune import host
from jaxprune.checkpoints import Leaf
from jaxprune.cli import shared
from jaxprune.kernels.rounding import HUGE, TINY
from jaxprune.layout import Axes
from jaxprune.reports import measures

_NOTES = """\
H8, H4: entropy in bits a weight of the codes of jaxprune.quantize(leaf, 8 or 4): symmetric, one scale a leaf.
8-bit, 4-bit: bytes of these codes at their entropy, and 4 for the scale. The total takes them for the leaves marked *,
which compress works on by default (floating, rank 2 and more), and all other leaves as they are.
axes: which are inputs > which are outputs (units); stacked layers before a colon; ? where no rule knows."""
WIDTHS = (8, 4)


class Facts(NamedTuple):
    """What :func:`describe` finds.

    Attributes:
      zeros, nan, inf: entries that are 0 (or -0), NaN, infinite.
      absmax: the largest finite magnitude; 0 of no entries.
      entropy: by width, bits a weight: the empirical entropy of the codes that :func:`jaxprune.quantize` makes with one
        scale, NaN entries left out. Empty for what is not floating.
      dead: by axis, the first (0) and the last (-1), how many indices along it have zeros alone; of arrays of rank 2
        and more that are not zero altogether.
      digest: of the bytes; equal arrays have equal ones.
      constant: whether all entries are one value, or there is none.
    """

    zeros: int
    nan: int
    inf: int
    absmax: float
    entropy: dict[int, float]
    dead: dict[int, int]
    digest: str
    constant: bool


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "checkpoint", help=".safetensors (or its index), .npz, msgpack of Flax, Orbax folder or jaxprune file"
    )
    parser.add_argument("--where", action="append", default=[], metavar="PATTERN", help="only leaves of these names")


def run(args: argparse.Namespace) -> None:
    """Reads each leaf once and prints what is in it."""
    opened = shared.opened(args, args.checkpoint)
    shown = shared.matching(args.where, list(opened.leaves), opened.leaves)
    marked = set(shared.eligible(opened.leaves))
    leaves = [opened.leaves[name] for name in shown]
    tracked = shared.tracked(leaves, "leaves", shared.progress_wanted(args))
    facts = {leaf.name: describe(leaf.read()) for leaf in tracked}
    axes = shared.axes(opened.leaves)
    rows = [_row(leaf, facts[leaf.name], leaf.name in marked, axes[leaf.name]) for leaf in leaves]
    found = {"path": str(opened.path), "format": opened.format, "file_bytes": opened.file_bytes, "leaves": rows}
    found["metadata"] = dict(opened.metadata)
    found |= {"total": _total(rows), "warnings": _warnings(leaves, facts, axes)}
    shared.show(args, found, _text(found), opened)


def _row(leaf: Leaf, facts: Facts, marked: bool, axes: Axes | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": leaf.name,
        "shape": list(leaf.shape),
        "axes": str(axes or "?") if marked else "",
        "dtype": leaf.dtype.name,
        "parameters": leaf.size,
        "bytes": leaf.nbytes,
        "selected": marked,
    }
    row |= {key: getattr(facts, key) for key in ("zeros", "nan", "inf", "absmax")}
    for bits, entropy in facts.entropy.items():
        row[f"entropy_{bits}"] = entropy
        row[f"fixed_bytes_{bits}"] = -(-leaf.size * bits // 8) + 4
        row[f"coded_bytes_{bits}"] = int(np.ceil(leaf.size * entropy / 8)) + 4
    return row | {"zero_rows": facts.dead.get(0, 0), "dead_units": facts.dead.get(-1, 0)}


def _total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    counts = ("parameters", "bytes", "zeros", "nan", "inf")
    total: dict[str, Any] = {key: sum(row[key] for row in rows) for key in counts}
    total["absmax"] = max((row["absmax"] for row in rows if "entropy_8" in row), default=0.0)
    for key in (f"{kind}_bytes_{bits}" for bits in WIDTHS for kind in ("fixed", "coded")):
        total[key] = sum(row[key] if row["selected"] else row["bytes"] for row in rows)
    return total


def _warnings(leaves: list[Leaf], facts: dict[str, Facts], axes: dict[str, Axes | None]) -> list[str]:
    found, alike = [], defaultdict(list)
    for leaf in leaves:
        name, fact = leaf.name, facts[leaf.name]
        if fact.nan or fact.inf:
            found.append(f"{name}: {fact.nan:,} NaN and {fact.inf:,} infinite of {leaf.size:,} entries")
        if leaf.size > 1 and fact.zeros == leaf.size:
            found.append(f"{name}: all {leaf.size:,} entries are 0")
        for at, end, other in ((-1, "last", "columns"), (0, "first", "rows")):
            if fact.dead.get(at):
                known = axes[name]
                units = "units" if known and at % len(leaf.shape) in known.outputs else other
                found.append(f"{name}: {fact.dead[at]:,} of {leaf.shape[at]:,} {units} ({end} axis) have zeros alone")
        if not fact.constant:
            alike[fact.digest, leaf.shape, leaf.dtype].append(name)
    found += [f"{', '.join(same)}: the same array {len(same)} times" for same in alike.values() if len(same) > 1]
    return found


def _text(found: dict[str, Any]) -> str:
    head = (
        "leaf",
        "shape",
        "axes",
        "dtype",
        "parameters",
        "bytes",
        "zeros",
        "nan/inf",
        "absmax",
        "H8",
        "H4",
        "8-bit",
        "4-bit",
    )
    cells = [_cells(row | {"name": f"{'*' if row['selected'] else ' '} {row['name']}"}) for row in found["leaves"]]
    table = host.table(head, cells, _cells(found["total"] | {"name": "  total"}), left=4)
    title = f"{found['path']}: {found['format']}, {shared.size(found['file_bytes'])}, {len(found['leaves'])} leaves"
    warnings = ["", "Warnings", *(f"  {warning}" for warning in found["warnings"])] if found["warnings"] else []
    return "\n".join([title, "", table, "", _NOTES, *warnings])


def _cells(row: dict[str, Any]) -> list[str]:
    form = "{name} {shape} {axes} {dtype} {parameters:,} {bytes:,} {zeros:,} {odd:,} {absmax:.4g} {entropy_8:.2f} "
    form += "{entropy_4:.2f} {coded_bytes_8:,} {coded_bytes_4:,}"
    return shared.cells(form, row | {"odd": row["nan"] + row["inf"]})


def describe(array: np.ndarray) -> Facts:
    """Counts what is in an array of any dtype of numbers, which is read some times, in pieces.

    >>> facts = describe(np.array([[1.0, 0.0], [-2.0, 0.0]], np.float32))
    >>> facts.zeros, facts.absmax, facts.dead, round(facts.entropy[8], 3)  # codes 64, 0, -127, 0
    (2, 2.0, {0: 0, -1: 1}, 1.5)
    """
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    zeros = nan = inf = 0
    absmax, constant, digest = 0.0, True, hashlib.blake2b(digest_size=16)
    for part in host.chunks(array):
        digest.update(part.tobytes())
        constant = constant and bool((part == array.flat[0]).all())
        values = measures.wide(part)
        zeros += part.size - int(np.count_nonzero(values))
        finite = np.isfinite(values)
        if not finite.all():
            nan += int(np.isnan(values).sum())
            inf += int(np.isinf(values).sum())
            values = values[finite]
        absmax = max(absmax, float(np.abs(values).max(initial=0)))
    entropy = {bits: _code_entropy(array, bits) for bits in WIDTHS} if floating else {}
    ranked = array.ndim >= 2 and floating and zeros < array.size
    dead = {axis: _dead(array, axis) if zeros else 0 for axis in (0, -1)} if ranked else {}
    return Facts(zeros, nan, inf, absmax, entropy, dead, digest.hexdigest(), constant)


def _code_entropy(array: np.ndarray, bits: int) -> float:
    """The entropy of the codes in bits a weight: symmetric, one scale, as ``jaxprune.quantize(array, bits)``."""
    largest, counts = np.float32(0), np.zeros(2**bits - 1, np.int64)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for part in host.chunks(array):
            values = np.abs(part.astype(np.float32))
            largest = np.maximum(largest, values.max(where=np.isfinite(values), initial=0))
        top = np.float32(2 ** (bits - 1) - 1)
        scale = np.minimum(largest, np.float32(HUGE)) / top
        for part in host.chunks(array):
            values = part.astype(np.float32)
            values = values[~np.isnan(values)]
            codes = np.zeros_like(values) if scale < TINY else np.clip(np.rint(values / scale), -top, top)
            counts += np.bincount(codes.astype(np.int32) + int(top), minlength=len(counts))
    return host.entropy_of_counts(counts) / max(int(counts.sum()), 1)


def _dead(array: np.ndarray, axis: int) -> int:
    rest = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
    return array.shape[axis] - int(np.count_nonzero((array != 0).any(axis=rest)))
