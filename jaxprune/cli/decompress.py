"""Write the dense arrays of a small file, in a format that other programs read.

examples:
  jaxprune decompress model.jp -o model.safetensors
  jaxprune decompress model.jp -o model.npz --force
"""

import argparse

from jaxprune import checkpoints
from jaxprune.cli import convert


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("checkpoint", help="a file that jaxprune compress, or jaxprune.save, wrote")
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="ends in .safetensors, .npz, .msgpack or .orbax (a folder)"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def run(args: argparse.Namespace) -> None:
    """Decodes and writes leaf by leaf."""
    opened = checkpoints.open(args.checkpoint)
    if opened.format != "jaxprune":
        raise ValueError(f"{opened.path} is dense already ({opened.format}); jaxprune convert changes formats")
    convert.copy(args, opened)
