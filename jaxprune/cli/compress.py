"""Make a small file: prune, quantize or share weights, code what is left, read it back and say what it cost.

examples:
  jaxprune compress model.safetensors -o model.jp --sparsity 0.5 --bits 4
  jaxprune compress model.safetensors -o model.jp --bits 8 --exclude '*embeddings*'
  jaxprune compress model.msgpack -o model.jp --n-of-m 2:4 --bits 8 --axis -1
  jaxprune compress model.safetensors -o model.jp --recipe recipe.toml
  jaxprune compress model.safetensors -o model.jp          (without loss)
"""

import argparse
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxprune import checkpoints, files, host, masks
from jaxprune.base import QuantSpec
from jaxprune.checkpoints import Checkpoint, CheckpointError, Leaf, compressed, ranking
from jaxprune.cli import diff, recipe, shared
from jaxprune.cli.recipe import Recipe, Treatment
from jaxprune.layout import Axes, sure
from jaxprune.quantization.leaves import spec_of

_LOST = 0.9  # relative error; 1 is that of zeros alone
_BATCH = 2**24  # bytes
_TOGETHER = ("rd", "trellis")  # quantizers that choose one step for all their leaves


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("checkpoint", help="any format")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="the file to write, such as model.jp")
    parser.add_argument("--recipe", metavar="FILE", help="a TOML file of these options, with sections for patterns")
    group = parser.add_argument_group("what is lost", "Without any of these, nothing is.")
    recipe.add_options(group)


def run(args: argparse.Namespace) -> None:
    """Compresses, writes, verifies and prints before and after."""
    suffix = checkpoints.check_output(args.output, force=args.force).suffix
    if suffix not in compressed.FORMAT.suffixes:
        others = f"; jaxprune decompress makes {suffix} of it" if suffix else ""
        raise ValueError(f"{args.output}: compress writes jaxprune files, so end the name in .jp{others}")
    said = recipe.from_options(args)
    if args.recipe and said:
        raise ValueError(f"--recipe says everything: put {', '.join(said)} into {args.recipe} instead")
    opened = shared.opened(args, args.checkpoint)
    checkpoints.held(args.output, opened.others, skip=args.skip_unreadable)
    wanted = recipe.resolve(recipe.from_file(args.recipe) if args.recipe else said, opened.leaves)
    progress = shared.progress_wanted(args)
    made = replace(coded(opened.leaves, wanted, progress), metadata=dict(opened.metadata))
    output = checkpoints.check_output(args.output, force=args.force)
    with host.written_whole(output, over_folder=args.force) as beside:
        compressed.write_compressed(beside, made)
        rows = _verified(opened, made, str(beside), wanted, progress)
        after = beside.stat().st_size
    found = {
        "path": args.output,
        "verified": True,
        "bytes_before": opened.file_bytes,
        "bytes_after": after,
        "leaves": rows,
        "total": _total(rows),
    }
    shared.show(args, found, _text(found), opened)


def coded(leaves: Mapping[str, Leaf], wanted: Recipe, progress: bool) -> files.Compressed:
    """All leaves, those of the recipe with its losses, coded one by one; their arrays are never in memory together."""
    cuts, axes = _cuts(leaves, wanted), shared.axes(leaves)

    def array_of(name: str) -> np.ndarray:
        treatment, array = wanted.treatments.get(name), leaves[name].read()
        return array if treatment is None else _masked(array, name, treatment, cuts.get(name), axes[name])

    def code(names: list[str]) -> dict[str, files.Compressed]:
        treatment = wanted.treatments.get(names[0])
        options = _options(treatment, _spec(treatment, leaves[names[0]], axes), wanted.side)
        return compressed.code({name: array_of(name) for name in names}, **options)

    alike: dict[tuple[Treatment | None, QuantSpec | None], list[str]] = {}
    for name, leaf in leaves.items():
        treatment = wanted.treatments.get(name)
        alike.setdefault((_coding(treatment), _spec(treatment, leaf, axes)), []).append(name)
    groups = [
        group
        for (treatment, _), names in alike.items()
        for group in ([names] if treatment and treatment.quantizer in _TOGETHER else _batches(names, leaves))
    ]
    parts = host.in_parallel(code, groups, "leaves", progress)
    return compressed.assemble({name: part for group in parts for name, part in group.items()})


def _coding(treatment: Treatment | None) -> Treatment | None:
    """The part of a treatment that is about codes."""
    if treatment is None:
        return None
    made = Treatment(bits=treatment.bits, codebook=treatment.codebook, quantizer=treatment.quantizer)
    together = treatment.quantizer in _TOGETHER
    return made if together else made._replace(axis=treatment.axis, block_size=treatment.block_size)


def _spec(treatment: Treatment | None, leaf: Leaf, axes: Mapping[str, Axes | None]) -> QuantSpec | None:
    """The spec of a uniform quantizer, with the axes of the leaf."""
    if treatment is None or treatment.bits is None or treatment.quantizer != "uniform":
        return None
    spec = QuantSpec(axis=treatment.axis, block_size=treatment.block_size)
    return spec_of(spec, leaf.name, leaf, axes[leaf.name])


def _batches(names: Iterable[str], leaves: Mapping[str, Leaf]) -> list[list[str]]:
    """Leaves that are worked on together: many small ones take no longer than one of their size."""
    found, room = [], 0
    for name in names:
        if room < leaves[name].nbytes or not found:
            found.append([])
            room = _BATCH
        found[-1].append(name)
        room -= leaves[name].nbytes
    return found


def _cuts(leaves: Mapping[str, Leaf], wanted: Recipe) -> dict[str, ranking.Cut]:
    """Where each leaf is cut that has a sparsity; leaves of one section are ranked together if the scope is global."""
    groups: dict[tuple[Any, float], dict[str, Leaf]] = {}
    for name in compressed.tree_order(wanted.treatments):
        treatment = wanted.treatments[name]
        if treatment.sparsity is not None:
            key = treatment.section if wanted.scope == "global" else name
            groups.setdefault((key, treatment.sparsity), {})[name] = leaves[name]
    found: dict[str, ranking.Cut] = {}
    for (_, sparsity), group in groups.items():
        found |= ranking.cuts(group, sparsity)
    return found


def _masked(
    array: np.ndarray, name: str, treatment: Treatment, cut: ranking.Cut | None, axes: Axes | None
) -> np.ndarray:
    """The array with 0 where the treatment removes weights."""
    if cut is not None:
        kept = ranking.mask(array, cut)
    elif treatment.n_of_m is not None:
        scores = {name: np.abs(array.astype(np.float32))}
        axis = treatment.n_of_m_axis
        axis = sure(name, array, axes).along - array.ndim if axis is None else axis
        found = masks.n_of_m(scores, *treatment.n_of_m, axis=axis, where=lambda *_: True)
        kept = np.asarray(found[name])
    else:
        return array
    return np.where(kept, array, np.zeros((), array.dtype))


def _options(treatment: Treatment | None, spec: QuantSpec | None, side: str | None) -> dict[str, Any]:
    """What :func:`jaxprune.compress` is told; every leaf that it is given is meant, or none."""
    options: dict[str, Any] = {"side": side, "where": lambda *_: treatment is not None}
    if treatment is None or (treatment.codebook is None and treatment.bits is None):
        return options
    if treatment.codebook is not None:
        return options | {"codebook": treatment.codebook}
    quantizer = treatment.quantizer if spec is None else spec
    return options | {"bits": treatment.bits, "quantizer": quantizer}


def _verified(
    opened: Checkpoint, made: files.Compressed, path: str, wanted: Recipe, progress: bool
) -> list[dict[str, Any]]:
    """Reads the file back: the bytes are those that were made, every leaf decodes, the untouched ones are equal."""
    back, stored = checkpoints.open(path, max_bytes=math.inf), files.read(path)
    if stored.to_bytes() != made.to_bytes():
        raise CheckpointError("the file reads back with other bytes; the disk or the memory is faulty")
    sizes = dict(zip(back.leaves, (leaf.nbytes for leaf in stored.leaves), strict=True))
    axes = shared.axes(opened.leaves)

    def row(name: str) -> dict[str, Any]:
        found = diff.measured(opened.leaves[name], back.leaves[name], axes[name])
        if name not in wanted.treatments and not wanted.side and not found["equal"]:
            raise CheckpointError(f"leaf {name!r} reads back changed, though nothing was to happen to it")
        sized = {"bytes_before": opened.leaves[name].nbytes, "bytes_after": sizes[name]}
        return found | sized | {"treatment": _said(wanted.treatments.get(name))}

    batches = _batches(opened.leaves, opened.leaves)
    return sum(host.in_parallel(lambda names: list(map(row, names)), batches, "read back", progress), [])


def _said(treatment: Treatment | None) -> dict[str, Any] | None:
    """The treatment without what is as usual."""
    if treatment is None:
        return None
    usual = Treatment()._asdict() | {"section": treatment.section}
    return {key: value for key, value in treatment._asdict().items() if value != usual[key]} or None


def _total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return diff.total(rows) | {key: sum(row[key] for row in rows) for key in ("bytes_before", "bytes_after")}


def _text(found: dict[str, Any]) -> str:
    head = ("leaf", "shape", "before", "after", "smaller", "zeros", "bits/weight", "rel. error")
    total = _cells(found["total"] | {"name": "total"})
    lines = [host.table(head, [_cells(row) for row in found["leaves"]], total, left=2), ""]
    lost = [row["name"] for row in found["leaves"] if row["removed"] and row["relative_error"] > _LOST]
    if lost:
        lines += [
            f"Hardly anything is left of {len(lost)} leaves (rel. error above {_LOST}): {shared.few(lost)}",
            "Try a scale for each unit (--axis -1 for Flax, 0 for PyTorch), --scope leaf, more bits, or --exclude.",
            "",
        ]
    smaller = shared.smaller(found["bytes_before"], found["bytes_after"])
    return "\n".join([*lines, f"{found['path']}: {smaller}. Read back: every leaf is as it was coded."])


def _cells(row: dict[str, Any]) -> list[str]:
    size, before, after = max(row["size"], 1), row["bytes_before"], row["bytes_after"]
    said = {"smaller": shared.times(before, after), "zeros": row["zeros_after"] / size, "width": 8 * after / size}
    form = "{name} {shape} {bytes_before:,} {bytes_after:,} {smaller} {zeros:.1%} {width:.2f} {relative_error:.3g}"
    return shared.cells(form, row | said)
