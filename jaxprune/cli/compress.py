"""Make a small file: prune, quantize or share weights, code what is left, read it back and say what it cost.

examples:
  jaxprune compress model.safetensors -o model.jp --sparsity 0.5 --bits 4
  jaxprune compress model.safetensors -o model.jp --bits 8 --exclude '*embeddings*'
  jaxprune compress model.msgpack -o model.jp --n-of-m 2:4 --bits 8 --axis -1
  jaxprune compress model.safetensors -o model.jp --recipe recipe.toml
  jaxprune compress model.safetensors -o model.jp          (without loss)
"""

import argparse
from typing import Any

from jaxprune import checkpoints, host
from jaxprune.checkpoints import Checkpoint, CheckpointError, compressed
from jaxprune.cli import diff, lossy, output, recipe
from jaxprune.files import Compressed
from jaxprune.files import read as open_file

_LOST = 0.9  # relative error; 1 is that of zeros alone


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("checkpoint", help="any format")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="the file to write, such as model.jp")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--recipe", metavar="FILE", help="a TOML file of these options, with sections for patterns")
    group = parser.add_argument_group("what is lost", "Without any of these, nothing is.")
    recipe.add_options(group)


def run(args: argparse.Namespace) -> None:
    """Compresses, writes, verifies and prints before and after."""
    suffix = checkpoints.check_output(args.output, force=args.force).suffix
    if suffix not in compressed.SUFFIXES:
        others = f"; jaxprune decompress makes {suffix} of it" if suffix else ""
        raise ValueError(f"{args.output}: compress writes jaxprune files, so end the name in .jp{others}")
    said = recipe.from_options(args)
    if args.recipe and said:
        raise ValueError(f"--recipe says everything: put {', '.join(said)} into {args.recipe} instead")
    opened = checkpoints.open(args.checkpoint)
    wanted = recipe.resolve(recipe.from_file(args.recipe) if args.recipe else said, opened.leaves)
    progress = output.progress_wanted(args)
    made = lossy.coded(opened.leaves, wanted, progress)
    with host.written_whole(checkpoints.check_output(args.output, force=args.force)) as beside:
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
    output.show(args, found, _text(found))


def _verified(
    opened: Checkpoint, made: Compressed, path: str, wanted: recipe.Recipe, progress: bool
) -> list[dict[str, Any]]:
    """Reads the file back: the bytes are those that were made, every leaf decodes, the untouched ones are equal."""
    back = open_file(path)
    if back.to_bytes() != made.to_bytes():
        raise CheckpointError("the file reads back with other bytes; the disk or the memory is faulty")
    sizes = {leaf.path: leaf.nbytes for leaf in back.leaves}
    leaves = compressed.leaves_of(back, path)

    def row(name: str) -> dict[str, Any]:
        found = diff.measured(opened.leaves[name], leaves[name])
        if name not in wanted.treatments and not wanted.side and not found["equal"]:
            raise CheckpointError(f"leaf {name!r} reads back changed, though nothing was to happen to it")
        sized = {"bytes_before": opened.leaves[name].nbytes, "bytes_after": sizes[name]}
        return found | sized | {"treatment": _said(wanted.treatments.get(name))}

    return host.in_parallel(row, list(opened.leaves), "read back", progress)


def _said(treatment: recipe.Treatment | None) -> dict[str, Any] | None:
    """The treatment without what is as usual."""
    if treatment is None:
        return None
    usual = recipe.Treatment()._asdict() | {"section": treatment.section}
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
            f"Hardly anything is left of {len(lost)} leaves (rel. error above {_LOST}): {output.few(lost)}",
            "Try a scale for each unit (--axis -1 for Flax, 0 for PyTorch), --scope leaf, more bits, or --exclude.",
            "",
        ]
    smaller = output.smaller(found["bytes_before"], found["bytes_after"])
    return "\n".join([*lines, f"{found['path']}: {smaller}. Read back: every leaf is as it was coded."])


def _cells(row: dict[str, Any]) -> list[str]:
    size, before, after = max(row["size"], 1), row["bytes_before"], row["bytes_after"]
    said = {"smaller": output.times(before, after), "zeros": row["zeros_after"] / size, "width": 8 * after / size}
    form = "{name} {shape} {bytes_before:,} {bytes_after:,} {smaller} {zeros:.1%} {width:.2f} {relative_error:.3g}"
    return output.cells(form, row | said)
