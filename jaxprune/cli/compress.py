"""``jaxprune compress``: leaf by leaf, read back before the file takes its place; ``decompress`` and ``convert``."""

import argparse
import math
from dataclasses import replace
from typing import Any

import numpy as np

from jaxprune import checkpoints, files, host
from jaxprune.checkpoints import Checkpoint, CheckpointError, compressed
from jaxprune.cli import diff, recipe, shared
from jaxprune.cli.recipe import Recipe

_LOST = 0.9  # relative error; 1 is that of zeros alone
_BATCH = 2**24  # bytes


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("checkpoint", help="any format")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="the file to write, such as model.jp")
    parser.add_argument("--recipe", metavar="FILE", help="a TOML file of these options, with sections for patterns")
    group = parser.add_argument_group("what is lost", "Without any of these, nothing is.")
    recipe.add_options(group)


def run(args: argparse.Namespace) -> None:
    """Make a small file: prune, quantize or share weights, code what is left, read it back and say what it cost.

    examples:
      jaxprune compress model.safetensors -o model.jp --sparsity 0.5 --bits 4
      jaxprune compress model.safetensors -o model.jp --bits 8 --exclude '*embeddings*'
      jaxprune compress model.msgpack -o model.jp --n-of-m 2:4 --bits 8 --axis units
      jaxprune compress model.safetensors -o model.jp --recipe recipe.toml
      jaxprune compress model.safetensors -o model.jp          (without loss)
    """
    suffix = checkpoints.check_output(args.output, force=args.force).suffix
    if suffix not in compressed.FORMAT.suffixes:
        others = f"; jaxprune decompress makes {suffix} of it" if suffix else ""
        raise ValueError(f"{args.output}: compress writes jaxprune files, so end the name in .jp{others}")
    said = recipe.from_options(args)
    if args.recipe and said:
        raise ValueError(f"--recipe says everything: put {', '.join(said)} into {args.recipe} instead")
    opened = checkpoints.open(args.checkpoint, max_bytes=args.max_bytes)
    checkpoints.held(args.output, opened.others, skip=args.skip_unreadable)
    wanted = recipe.resolve(recipe.from_file(args.recipe) if args.recipe else said, opened.leaves)
    made = replace(coded(wanted, args.progress), metadata=dict(opened.metadata))
    output = checkpoints.check_output(args.output, force=args.force)
    with host.written_whole(output, over_folder=args.force) as beside:
        compressed.write_compressed(beside, made)
        rows = _verified(made, str(beside), wanted, args.progress)
        after = beside.stat().st_size
    found = {"path": args.output, "verified": True, "bytes_before": opened.file_bytes, "bytes_after": after}
    total = diff.total(rows) | {key: sum(row[key] for row in rows) for key in ("bytes_before", "bytes_after")}
    found |= {"leaves": rows, "total": total, "left_out": wanted.left_out}
    shared.show(args, found, _text(found), opened)


def coded(wanted: Recipe, progress: bool) -> files.Compressed:
    """All leaves, those of the recipe with its losses, coded one by one; their arrays are never in memory together."""

    def array_of(name: str) -> np.ndarray:
        array = wanted.leaves[name].read()
        mask = wanted.mask(name, array)
        return array if mask.all() else np.where(mask, array, np.zeros((), array.dtype))

    def code(group: tuple[bool, dict[str, Any], list[str]]) -> dict[str, files.Compressed]:
        meant, codes, names = group
        arrays = {name: array_of(name) for name in names}
        return compressed.code(arrays, side=wanted.side, where=lambda *_: meant, **codes)

    def batches(names: list[str]) -> list[list[str]]:  # many small leaves take no longer than one of their size
        return host.batches(names, lambda name: wanted.leaves[name].nbytes, _BATCH)

    alike: dict[Any, list[str]] = {}  # leaves of one treatment are coded together
    for name in wanted.leaves:
        alike.setdefault((name in wanted.treatments, tuple(wanted.codes(name).items())), []).append(name)
    groups = [
        (meant, dict(codes), group)
        for (meant, codes), names in alike.items()
        for group in ([names] if dict(codes).get("quantizer") in recipe.TOGETHER else batches(names))
    ]
    parts = host.in_parallel(code, groups, "leaves", progress)
    return compressed.assemble({name: part for group in parts for name, part in group.items()})


def _verified(made: files.Compressed, path: str, wanted: Recipe, progress: bool) -> list[dict[str, Any]]:
    """Reads the file back: the bytes are those that were made, every leaf decodes, the untouched ones are equal."""
    back, stored = checkpoints.open(path, max_bytes=math.inf), files.read(path)
    if stored.to_bytes() != made.to_bytes():
        raise CheckpointError("the file reads back with other bytes; the disk or the memory is faulty")
    sizes = dict(zip(back.leaves, (leaf.nbytes for leaf in stored.leaves), strict=True))
    before = wanted.leaves

    def row(name: str) -> dict[str, Any]:
        found = diff.measured(before[name], back.leaves[name], wanted.axes[name])
        said = wanted.treatments.get(name, {}).items()
        treatment = {key: value for key, value in said if key != "section" and value != "uniform"} or None
        if name not in wanted.treatments and not wanted.side and not found["equal"]:
            raise CheckpointError(f"leaf {name!r} reads back changed, though nothing was to happen to it")
        sized = {"bytes_before": before[name].nbytes, "bytes_after": sizes[name]}
        by_axes = treatment and (treatment.keys() & {"n_of_m", "block_size"} or treatment.get("axis") == "units")
        axes = {"axes": str(wanted.axes[name] or "?")} if by_axes else {}
        return found | sized | axes | {"treatment": treatment}

    return host.in_parallel(row, list(before), "read back", progress, lambda name: before[name].nbytes)


def _text(found: dict[str, Any]) -> str:
    heads = "leaf, shape, axes, before, after, smaller, zeros, bits/weight, rel. error"
    forms = "{name} {shape} {axes} {bytes_before:,} {bytes_after:,} {smaller} {zeros:.1%} {width:.2f} "
    forms += "{relative_error:.3g}"
    total = _ratios(found["total"] | {"name": "total"})
    lines = [shared.table(heads, forms, [_ratios(row) for row in found["leaves"]], total, left=3), ""]
    if found["left_out"]:
        lines += [recipe.LEFT_OUT.format(shared.few(found["left_out"])), ""]
    lost = [row["name"] for row in found["leaves"] if row["removed"] and row["relative_error"] > _LOST]
    if lost:
        lines += [f"Hardly anything is left of {len(lost)} leaves (rel. error above {_LOST}): {shared.few(lost)}"]
        lines += ["Try a scale for each unit (--axis units), --scope leaf, more bits, or --exclude.", ""]
    smaller = shared.smaller(found["bytes_before"], found["bytes_after"])
    return "\n".join([*lines, f"{found['path']}: {smaller}. Read back: every leaf is as it was coded."])


def _ratios(row: dict[str, Any]) -> dict[str, Any]:
    size, before, after = max(row["size"], 1), row["bytes_before"], row["bytes_after"]
    return row | {"smaller": shared.times(before, after), "zeros": row["zeros_after"] / size, "width": 8 * after / size}


# ---------------------------------------------------------------------------------------------------------------------
# The same leaves in another format, one by one


def configure_convert(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("checkpoint", help="any format")
    parser.add_argument("output", help="ends in .safetensors, .npz, .msgpack, .orbax (a folder) or .jp")


def convert(args: argparse.Namespace) -> None:
    """Write the same leaves in another format.

    examples:
      jaxprune convert model.msgpack model.safetensors
      jaxprune convert checkpoints/100 model.npz
      jaxprune convert model.safetensors model.orbax
    """
    _copy(args, checkpoints.open(args.checkpoint, max_bytes=args.max_bytes))


def configure_decompress(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("checkpoint", help="a file that jaxprune compress, or jaxprune.save, wrote")
    suffixes = "ends in .safetensors, .npz, .msgpack or .orbax (a folder)"
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help=suffixes)


def decompress(args: argparse.Namespace) -> None:
    """Write the dense arrays of a small file, in a format that other programs read.

    examples:
      jaxprune decompress model.jp -o model.safetensors
      jaxprune decompress model.jp -o model.npz --force
    """
    opened = checkpoints.open(args.checkpoint, max_bytes=args.max_bytes)
    if opened.format != "jaxprune":
        raise ValueError(f"{opened.path} is dense already ({opened.format}); jaxprune convert changes formats")
    _copy(args, opened)


def _copy(args: argparse.Namespace, opened: Checkpoint) -> None:
    """Writes the leaves to the output, and prints both sizes."""
    chosen = checkpoints.format_for(args.output)
    others = checkpoints.held(args.output, opened.others, skip=args.skip_unreadable)
    written = checkpoints.write(args.output, opened.leaves, metadata=opened.metadata, others=others, force=args.force)
    found = {"path": args.output, "format": chosen.name, "leaves": len(opened.leaves)}
    found |= {"bytes_before": opened.file_bytes, "bytes_after": written}
    found["metadata_lost"] = [] if chosen.keeps_metadata else list(opened.metadata)
    before = f"{opened.path} ({opened.format}, {opened.file_bytes:,} bytes)"
    after = f"{args.output} ({chosen.name}, {written:,} bytes): {len(opened.leaves)} leaves"
    lost = f"; no place for the metadata {shared.few(found['metadata_lost'])}" if found["metadata_lost"] else ""
    shared.show(args, found, f"{before} -> {after}{lost}", opened)
