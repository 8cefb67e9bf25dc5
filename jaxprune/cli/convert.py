"""Write the same leaves in another format.

examples:
  jaxprune convert model.msgpack model.safetensors
  jaxprune convert checkpoints/100 model.npz
  jaxprune convert model.safetensors model.orbax
"""

import argparse

from jaxprune import checkpoints
from jaxprune.cli import output


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("checkpoint", help="any format")
    parser.add_argument("output", help="ends in .safetensors, .npz, .msgpack, .orbax (a folder) or .jp")
    parser.add_argument("--force", action="store_true", help="replace the output if it exists")


def run(args: argparse.Namespace) -> None:
    """Reads and writes leaf by leaf."""
    copy(args, checkpoints.open(args.checkpoint))


def copy(args: argparse.Namespace, opened: checkpoints.Checkpoint) -> None:
    """Writes the leaves to the output, and prints both sizes."""
    checkpoints.check_output(args.output, force=args.force)
    written = checkpoints.write(args.output, opened.leaves, force=args.force)
    found = {"path": args.output, "format": checkpoints.format_for(args.output).NAME, "leaves": len(opened.leaves)}
    found |= {"bytes_before": opened.file_bytes, "bytes_after": written}
    before = f"{opened.path} ({opened.format}, {opened.file_bytes:,} bytes)"
    after = f"{args.output} ({found['format']}, {written:,} bytes)"
    output.show(args, found, f"{before} -> {after}: {len(opened.leaves)} leaves")
