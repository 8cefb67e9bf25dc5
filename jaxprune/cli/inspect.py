"""``jaxprune inspect``: each leaf is read once, and counted on the host."""

import argparse
import hashlib
from collections import defaultdict
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints, host
from jaxprune.checkpoints import Leaf, compressed
from jaxprune.checkpoints.leaf import dtype_of
from jaxprune.cli import recipe, shared, treatments
from jaxprune.cli.treatments import Recipe
from jaxprune.files import Compressed
from jaxprune.layout import Axes
from jaxprune.reports import measures

_NOTES = """\
error 8, error 4: relative error of the leaves marked * after compress --bits 8 or 4, with a scale a unit; 8-bit, 4-bit:
bytes of each leaf in that file, whose size is the total. !: more than half is lost; the total has that leaf as it is.
axes: which are inputs > which are outputs (units); stacked layers before a colon; ? where no rule knows, and --layout
can say it."""
_SPARE = "dtype, parameters, axes, nan/inf, absmax, zeros, error 8, 8-bit"  # where there is no room
WIDTHS = (8, 4)
MOST_WARNINGS = 10


class Facts(NamedTuple):
    """What :func:`describe` finds.

    Attributes:
      zeros, nan, inf: entries that are 0 (or -0), NaN, infinite.
      absmax: the largest finite magnitude; 0 of no entries.
      dead: of units and of inputs (looked up rows), or of the last and first axis where they are not known: along which
        axes, how many there are, and how many have zeros alone. Of arrays of rank 2 and more that are not all zero.
      digest: of the bytes; equal arrays have equal ones.
      constant: whether all entries are one value, or there is none.
    """

    zeros: int
    nan: int
    inf: int
    absmax: float
    dead: dict[str, tuple[tuple[int, ...], int, int]]
    digest: str
    constant: bool


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    formats = ".safetensors (or its index), .npz, msgpack of Flax, Orbax folder or jaxprune file"
    parser.add_argument("checkpoint", help=formats)
    shared.add_choices(parser, "where", "layout")


def run(args: argparse.Namespace) -> None:
    """What is in a checkpoint, leaf by leaf, and what files of 8-bit and 4-bit codes would take.

    examples:
      jaxprune inspect model.safetensors
      jaxprune inspect model.safetensors --json | jq .total
      jaxprune inspect checkpoints/100 --where 'Dense_*'
    """
    opened = checkpoints.open(args.checkpoint, max_bytes=args.max_bytes)
    shown = shared.matching(args.where, list(opened.leaves), opened.leaves)
    marked, leaves = set(shared.eligible(opened.leaves)), [opened.leaves[name] for name in shown]
    whole = recipe.resolve({"layout": args.layout}, opened.leaves)
    rows, facts = [], {}
    parts: dict[int, dict[str, Compressed]] = {bits: {} for bits in WIDTHS}
    for leaf in shared.tracked(leaves, "leaves", args.progress):
        name, array, axes = leaf.name, leaf.read(), whole.axes[leaf.name]
        facts[name] = describe(array, axes)
        coded, own = _coded(name, array, whole, name in marked)
        rows.append(_row(leaf, facts[name], name in marked, axes) | coded)
        for bits, part in own.items():
            parts[bits][name] = part
    found = {"path": str(opened.path), "format": opened.format, "file_bytes": opened.file_bytes, "leaves": rows}
    found |= {"metadata": dict(opened.metadata), "total": _total(rows), "warnings": _warnings(leaves, facts)}
    for bits, by_name in parts.items():
        found["total"][f"coded_bytes_{bits}"] = compressed.assemble(by_name, opened.metadata).nbytes
    shared.show(args, found, _text(found, args.wide), opened)


def _coded(name: str, array: np.ndarray, whole: Recipe, marked: bool) -> tuple[dict[str, Any], dict[int, Compressed]]:
    """What each width takes and loses, and what stands for the leaf in the file: without loss, if that is too much."""
    row: dict[str, Any] = {}
    parts = {}
    for bits in WIDTHS:
        parts[bits], apart = (whole.at(bits=bits) if marked else whole).tried(name, array)
        row[f"coded_bytes_{bits}"] = parts[bits].leaves[0].nbytes
        if marked:
            row[f"relative_error_{bits}"] = apart.relative_error
            row[f"ruined_{bits}"] = ruined = apart.relative_error > treatments.RUINED
            parts[bits] = whole.tried(name, array)[0] if ruined else parts[bits]
    return row, parts


def _row(leaf: Leaf, facts: Facts, marked: bool, axes: Axes | None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": leaf.name, "shape": list(leaf.shape), "axes": str(axes or "?") if marked else ""}
    row |= {"dtype": leaf.dtype.name, "parameters": leaf.size, "bytes": leaf.nbytes, "selected": marked}
    row |= {key: getattr(facts, key) for key in ("zeros", "nan", "inf", "absmax")}
    dead = {f"dead_{kind}": number for kind, (_, _, number) in facts.dead.items()}
    return row | {"dead_units": 0, "dead_inputs": 0} | dead


def _total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    counts = ("parameters", "bytes", "zeros", "nan", "inf")
    total: dict[str, Any] = {key: sum(row[key] for row in rows) for key in counts}
    floating = (row["absmax"] for row in rows if jnp.issubdtype(dtype_of(row["dtype"]), jnp.floating))
    return total | {"absmax": max(floating, default=0.0)}


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


def _text(found: dict[str, Any], wide: bool) -> str:
    heads = "leaf, shape, axes, dtype, parameters, bytes, zeros, nan/inf, absmax, error 8, error 4, 8-bit, 4-bit"
    forms = "{name} {shape} {axes} {dtype} {parameters:,} {bytes:,} {zeros:,} {odd:,} {absmax:.4g} "
    forms += "{relative_error_8:.2g} {relative_error_4:.2g} {bytes_8} {bytes_4}"
    rows = []
    shown = shared.folded(found["leaves"], lambda row: not row["selected"], "other leaves", wide)
    for row in (*shown, found["total"] | {"name": "total"}):
        sizes = {f"bytes_{b}": f"{'!' * row.get(f'ruined_{b}', False)}{row[f'coded_bytes_{b}']:,}" for b in WIDTHS}
        name = f"{'*' if row.get('selected') else ' '} {row['name']}"
        rows.append(row | sizes | {"name": name, "odd": row["nan"] + row["inf"]})
    table = shared.table(heads, forms, rows[:-1], rows[-1], 4, _SPARE, wide)
    title = f"{found['path']}: {found['format']}, {found['file_bytes']:,} bytes, {len(found['leaves'])} leaves"
    warned = found["warnings"] if wide else found["warnings"][:MOST_WARNINGS]
    warnings = ["", "Warnings", *(f"  {warning}" for warning in warned)] if warned else []
    if more := len(found["warnings"]) - len(warned):
        warnings.append(f"  and {more} more: --wide has all")
    return "\n".join([title, "", table, "", shared.note(_NOTES, wide), *warnings])


def describe(array: np.ndarray, axes: Axes | None = None) -> Facts:
    """Counts what is in an array of any dtype of numbers, which is read some times, in pieces.

    >>> facts = describe(np.array([[1.0, 0.0], [-2.0, 0.0]], np.float32), Axes((), (0,), (1,)))
    >>> facts.zeros, facts.absmax, facts.dead
    (2, 2.0, {'units': ((1,), 2, 1), 'inputs': ((0,), 2, 0)})
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
    ranked = array.ndim >= 2 and floating and 0 < zeros < array.size
    dead = {kind: (along, *_dead(array, along)) for kind, along in _kinds(array, axes).items()} if ranked else {}
    return Facts(zeros, nan, inf, absmax, dead, digest.hexdigest(), constant)


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
