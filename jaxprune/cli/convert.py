"""``jaxprune convert`` and ``decompress``: the same leaves in another format, one by one."""

import argparse

from jaxprune import checkpoints
from jaxprune.checkpoints import Checkpoint
from jaxprune.cli import shared


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("checkpoint", help="any format")
    parser.add_argument("output", help="ends in .safetensors, .npz, .msgpack, .orbax (a folder) or .jp")


def run(args: argparse.Namespace) -> None:
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
