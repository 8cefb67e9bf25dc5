"""``jaxprune compress``: leaf by leaf, read back before the file takes its place; ``decompress`` and ``convert``."""

import argparse
import math
from typing import Any

from jaxprune import checkpoints, files, host
from jaxprune.checkpoints import Checkpoint, CheckpointError, compressed
from jaxprune.cli import attempts, data, diff, goals, recipe, shared, treatments
from jaxprune.cli.attempts import Attempt

_SPARE = "axes, shape, zeros, bits/weight, smaller"  # where there is no room
_LOST = 0.9  # relative error; 1 is that of zeros alone


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("checkpoint", help="any format")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="the file to write, such as model.jp")
    parser.add_argument("--recipe", metavar="FILE", help="a TOML file of these options, with sections for patterns")
    group = parser.add_argument_group("what is lost", "Without any of these, nothing is.")
    recipe.add_options(group)
    group = parser.add_argument_group("what is wished for", "Finds the step, or with --quantizer uniform the width.")
    goals.add_options(group)
    group.add_argument("--calibrate", metavar="MODULE:FUNCTION", help=data.ABOUT)


def run(args: argparse.Namespace) -> None:
    """Make a small file: prune, quantize or share weights, code what is left, read it back and say what it cost.

    examples:
      jaxprune compress model.safetensors -o model.jp --sparsity 0.5 --bits 4
      jaxprune compress model.safetensors -o model.jp --bits 8 --exclude '*embeddings*'
      jaxprune compress model.msgpack -o model.jp --n-of-m 2:4 --bits 8 --axis units
      jaxprune compress model.safetensors -o model.jp --recipe recipe.toml
      jaxprune compress model.safetensors -o model.jp          (without loss)
    """
    check_output(args)
    said, goal = recipe.from_options(args), goals.of(args)
    if args.recipe and said:
        raise ValueError(f"--recipe says everything: put {', '.join(said)} into {args.recipe} instead")
    opened = checkpoints.open(args.checkpoint, max_bytes=args.max_bytes)
    checkpoints.held(args.output, opened.others, skip=args.skip_unreadable)
    wanted = recipe.resolve(recipe.from_file(args.recipe) if args.recipe else said, opened.leaves)
    params = data.params_of(wanted) if args.calibrate or args.eval else {}
    before = goals.metric(args.eval, params) if args.eval else None
    stats = data.statistics(args.calibrate, params) if args.calibrate else None
    work = attempts.Work(wanted, opened.metadata, args.eval, params, stats, args.progress)
    made = attempts.reached(work, goal) if goal else attempts.once(work)
    found = written(args, opened, made, bool(args.force or args.eval or args.calibrate or args.max_error))
    found |= {"left_out": wanted.left_out, "goal": goal.said if goal else None}
    found |= {"metric_before": before, "chosen": made.row, "attempts": made.tried}
    shared.show(args, found, text(found, args.wide), opened)


def check_output(args: argparse.Namespace) -> None:
    """Raises unless the output can be written, and is a file of this library."""
    suffix = checkpoints.check_output(args.output, force=args.force).suffix
    if suffix not in compressed.FORMAT.suffixes:
        others = f"; jaxprune decompress makes {suffix} of it" if suffix else ""
        raise ValueError(f"{args.output}: {args.command} writes jaxprune files, so end the name in .jp{others}")


def written(args: argparse.Namespace, opened: Checkpoint, made: Attempt, seen: bool) -> dict[str, Any]:
    """Writes what was made, unless it reads back otherwise, or lost too much and nobody has ``seen`` it."""
    output = checkpoints.check_output(args.output, force=args.force)
    with host.written_whole(output, over_folder=args.force) as beside:
        compressed.write_compressed(beside, made.made)
        rows = _verified(made, str(beside), args.progress)
        if not seen:
            _refuse_ruins(rows)
        rows = [row | {"rounded": row["rounded"] and row["rounded"]["relative_error"]} for row in rows]
        after = beside.stat().st_size
    found = {"path": args.output, "verified": True, "bytes_before": opened.file_bytes, "bytes_after": after}
    total = diff.total(rows) | {key: sum(row[key] for row in rows) for key in ("bytes_before", "bytes_after")}
    return found | {"leaves": rows, "total": total}


def _refuse_ruins(rows: list[dict[str, Any]]) -> None:
    """Raises if rounding to fixed widths loses more than half of what is rounded, and nobody looked at data."""
    rounded = {row["name"]: row["rounded"] for row in rows if row["rounded"]}
    error = diff.relative(rounded.values())
    if error > treatments.RUINED:
        worst = max(rounded, key=lambda name: rounded[name]["relative_error"])
        said = f"rounding has a relative error of {error:.2f}, above {treatments.RUINED}"
        most = f"most of {worst!r} ({rounded[worst]['relative_error']:.2f})"
        raise ValueError(f"{said}, {most}; nothing was written: more --bits, --eval or --calibrate, or --force")


def _verified(made: Attempt, path: str, progress: bool) -> list[dict[str, Any]]:
    """Reads the file back: the bytes are those that were made, every leaf decodes, the untouched ones are equal."""
    back, stored, wanted = checkpoints.open(path, max_bytes=math.inf), files.read(path), made.wanted
    if stored.to_bytes() != made.made.to_bytes():
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
        rounded = found if treatment and treatment.keys() & {"bits", "codebook", "step"} else None
        if rounded and found["removed"]:  # pruning was asked for
            rounded = diff.compared(wanted.pruned(name, before[name].read()), back.leaves[name].read())
        return found | sized | axes | {"treatment": treatment, "rounded": rounded}

    return host.in_parallel(row, list(before), "read back", progress, lambda name: before[name].nbytes)


def text(found: dict[str, Any], wide: bool) -> str:
    """What was written, as people read it."""
    heads = "leaf, shape, axes, before, after, smaller, zeros, bits/weight, rel. error"
    forms = "{name} {shape} {axes} {bytes_before:,} {bytes_after:,} {smaller} {zeros:.1%} {width:.2f} "
    forms += "{relative_error:.3g}"
    total = _ratios(found["total"] | {"name": "total"})
    chosen = found.get("chosen", {})
    rows = shared.folded(found["leaves"], lambda row: row["equal"], "unchanged leaves", wide)
    lines = [shared.table(heads, forms, [_ratios(row) for row in rows], total, 3, _SPARE, wide), ""]
    if found.get("left_out"):
        lines += [recipe.LEFT_OUT.format(shared.few(found["left_out"])), ""]
    lost = [row["name"] for row in found["leaves"] if row["removed"] and row["relative_error"] > _LOST]
    if lost:
        lines += [f"Hardly anything is left of {len(lost)} leaves (rel. error above {_LOST}): {shared.few(lost)}"]
        lines += ["Try --scope leaf, more bits, or --exclude.", ""]
    if found.get("goal"):
        knob = next((f"{key} {chosen[key]:.4g}" for key in ("step", "bits") if key in chosen), "without rounding")
        lines += [f"{found['goal'][:1].upper()}{found['goal'][1:]}: {knob}, after {len(found['attempts'])} attempts."]
    if "metric" in chosen:
        lines += [f"metric: {found['metric_before']:.6g} before, {chosen['metric']:.6g} after"]
    smaller = shared.smaller(found["bytes_before"], found["bytes_after"])
    return "\n".join([*lines, f"{found['path']}: {smaller}.", "Read back: every leaf is as it was coded."])


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
