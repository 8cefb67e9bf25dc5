"""``jaxprune inspect``: each leaf is read once, and counted on the host."""

import argparse
import hashlib
from collections import defaultdict
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints, host
from jaxprune.checkpoints import Leaf
from jaxprune.cli import shared
from jaxprune.kernels.rounding import HUGE, TINY
from jaxprune.layout import Axes
from jaxprune.reports import measures

_NOTES = """\
H8, H4: entropy in bits a weight of the codes of jaxprune.quantize(leaf, 8 or 4): symmetric, one scale a leaf.
8-bit, 4-bit: bytes of these codes at their entropy, and 4 for the scale. The total takes them for the leaves marked *,
which compress works on by default (floating, rank 2 and more), and all other leaves as they are.
axes: which are inputs > which are outputs (units); stacked layers before a colon; ? where no rule knows, and --layout
can say it."""
WIDTHS = (8, 4)


class Facts(NamedTuple):
    """What :func:`describe` finds.

    Attributes:
      zeros, nan, inf: entries that are 0 (or -0), NaN, infinite.
      absmax: the largest finite magnitude; 0 of no entries.
      entropy: by width, bits a weight: the empirical entropy of the codes that :func:`jaxprune.quantize` makes with one
        scale, NaN entries left out. Empty for what is not floating.
      dead: of units and of inputs (looked up rows), or of the last and first axis where they are not known: along which
        axes, how many there are, and how many have zeros alone. Of arrays of rank 2 and more that are not all zero.
      digest: of the bytes; equal arrays have equal ones.
      constant: whether all entries are one value, or there is none.
    """

    zeros: int
    nan: int
    inf: int
    absmax: float
    entropy: dict[int, float]
    dead: dict[str, tuple[tuple[int, ...], int, int]]
    digest: str
    constant: bool


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    formats = ".safetensors (or its index), .npz, msgpack of Flax, Orbax folder or jaxprune file"
    parser.add_argument("checkpoint", help=formats)
    shared.add_choices(parser, "where", "layout")


def run(args: argparse.Namespace) -> None:
    """What is in a checkpoint, leaf by leaf, and what 8-bit and 4-bit codes would take.

    examples:
      jaxprune inspect model.safetensors
      jaxprune inspect model.safetensors --json | jq .total
      jaxprune inspect checkpoints/100 --where 'Dense_*'
    """
    opened = checkpoints.open(args.checkpoint, max_bytes=args.max_bytes)
    shown = shared.matching(args.where, list(opened.leaves), opened.leaves)
    marked = set(shared.eligible(opened.leaves))
    leaves = [opened.leaves[name] for name in shown]
    axes = shared.axes(opened.leaves, args.layout)
    tracked = shared.tracked(leaves, "leaves", args.progress)
    facts = {leaf.name: describe(leaf.read(), axes[leaf.name]) for leaf in tracked}
    rows = [_row(leaf, facts[leaf.name], leaf.name in marked, axes[leaf.name]) for leaf in leaves]
    found = {"path": str(opened.path), "format": opened.format, "file_bytes": opened.file_bytes, "leaves": rows}
    found["metadata"] = dict(opened.metadata)
    found |= {"total": _total(rows), "warnings": _warnings(leaves, facts)}
    shared.show(args, found, _text(found), opened)


def _row(leaf: Leaf, facts: Facts, marked: bool, axes: Axes | None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": leaf.name, "shape": list(leaf.shape), "axes": str(axes or "?") if marked else ""}
    row |= {"dtype": leaf.dtype.name, "parameters": leaf.size, "bytes": leaf.nbytes, "selected": marked}
    row |= {key: getattr(facts, key) for key in ("zeros", "nan", "inf", "absmax")}
    for bits, entropy in facts.entropy.items():
        row[f"entropy_{bits}"] = entropy
        row[f"fixed_bytes_{bits}"] = -(-leaf.size * bits // 8) + 4
        row[f"coded_bytes_{bits}"] = int(np.ceil(leaf.size * entropy / 8)) + 4
    dead = {f"dead_{kind}": number for kind, (_, _, number) in facts.dead.items()}
    return row | {"dead_units": 0, "dead_inputs": 0} | dead


def _total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    counts = ("parameters", "bytes", "zeros", "nan", "inf")
    total: dict[str, Any] = {key: sum(row[key] for row in rows) for key in counts}
    total["absmax"] = max((row["absmax"] for row in rows if "entropy_8" in row), default=0.0)
    for key in (f"{kind}_bytes_{bits}" for bits in WIDTHS for kind in ("fixed", "coded")):
        total[key] = sum(row[key] if row["selected"] else row["bytes"] for row in rows)
    return total


def _warnings(leaves: list[Leaf], facts: dict[str, Facts]) -> list[str]:
    found, alike = [], defaultdict(list)
    for leaf in leaves:
        name, fact = leaf.name, facts[leaf.name]
        if fact.nan or fact.inf:
            found.append(f"{name}: {fact.nan:,} NaN and {fact.inf:,} infinite of {leaf.size:,} entries")
        if leaf.size > 1 and fact.zeros == leaf.size:
            found.append(f"{name}: all {leaf.size:,} entries are 0")
        for kind, (axes, number, dead) in fact.dead.items():
            if dead:
                along = f"ax{'e' if len(axes) > 1 else 'i'}s {', '.join(map(str, axes))}"
                found.append(f"{name}: {dead:,} of {number:,} {kind} ({along}) have zeros alone")
        if not fact.constant:
            alike[fact.digest, leaf.shape, leaf.dtype].append(name)
    found += [f"{', '.join(same)}: the same array {len(same)} times" for same in alike.values() if len(same) > 1]
    return found


def _text(found: dict[str, Any]) -> str:
    heads = "leaf, shape, axes, dtype, parameters, bytes, zeros, nan/inf, absmax, H8, H4, 8-bit, 4-bit"
    forms = "{name} {shape} {axes} {dtype} {parameters:,} {bytes:,} {zeros:,} {odd:,} {absmax:.4g} {entropy_8:.2f} "
    forms += "{entropy_4:.2f} {coded_bytes_8:,} {coded_bytes_4:,}"
    rows = [row | {"name": f"{'*' if row['selected'] else ' '} {row['name']}"} for row in found["leaves"]]
    rows = [row | {"odd": row["nan"] + row["inf"]} for row in (*rows, found["total"] | {"name": "  total"})]
    table = shared.table(heads, forms, rows[:-1], rows[-1], left=4)
    title = f"{found['path']}: {found['format']}, {found['file_bytes']:,} bytes, {len(found['leaves'])} leaves"
    warnings = ["", "Warnings", *(f"  {warning}" for warning in found["warnings"])] if found["warnings"] else []
    return "\n".join([title, "", table, "", _NOTES, *warnings])


def describe(array: np.ndarray, axes: Axes | None = None) -> Facts:
    """Counts what is in an array of any dtype of numbers, which is read some times, in pieces.

    >>> facts = describe(np.array([[1.0, 0.0], [-2.0, 0.0]], np.float32), Axes((), (0,), (1,)))
    >>> facts.zeros, facts.absmax, facts.dead, round(facts.entropy[8], 3)  # codes 64, 0, -127, 0
    (2, 2.0, {'units': ((1,), 2, 1), 'inputs': ((0,), 2, 0)}, 1.5)
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
    entropy = {bits: _code_entropy(array, bits, absmax) for bits in WIDTHS} if floating else {}
    ranked = array.ndim >= 2 and floating and 0 < zeros < array.size
    dead = {kind: (along, *_dead(array, along)) for kind, along in _kinds(array, axes).items()} if ranked else {}
    return Facts(zeros, nan, inf, absmax, entropy, dead, digest.hexdigest(), constant)


def _code_entropy(array: np.ndarray, bits: int, absmax: float) -> float:
    """The entropy of the codes in bits a weight: symmetric, one scale, as ``jaxprune.quantize(array, bits)``."""
    top, counts = np.float32(2 ** (bits - 1) - 1), np.zeros(2**bits - 1, np.int64)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        scale = np.float32(min(absmax, HUGE)) / top
        for part in host.chunks(array):
            values = part.astype(np.float32)
            values = values[~np.isnan(values)]
            codes = np.zeros_like(values) if scale < TINY else np.clip(np.rint(values / scale), -top, top)
            counts += np.bincount(codes.astype(np.int32) + int(top), minlength=len(counts))
    return host.entropy_of_counts(counts) / max(int(counts.sum()), 1)


def _kinds(array: np.ndarray, axes: Axes | None) -> dict[str, tuple[int, ...]]:
    """The axes that index units, and those that index inputs: channels, whatever the window, or rows of a table."""
    if axes is None:
        return {"columns": (array.ndim - 1,), "rows": (0,)}
    inputs = axes.inputs if axes.lookup else (*axes.batch, axes.along)
    return {"units": (*axes.batch, *axes.outputs), "rows" if axes.lookup else "inputs": inputs}


def _dead(array: np.ndarray, along: tuple[int, ...]) -> tuple[int, int]:
    """How many indices there are, and how many of them have zeros alone."""
    alive = (array != 0).any(axis=tuple(i for i in range(array.ndim) if i not in along))
    return alive.size, alive.size - int(np.count_nonzero(alive))
