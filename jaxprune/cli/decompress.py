"""Write the dense arrays of a small file, in a format that other programs read.

examples:
  jaxprune decompress model.jp -o model.safetensors
  jaxprune decompress model.jp -o model.npz --force
"""

import argparse

from jaxprune.cli import convert, shared


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("checkpoint", help="a file that jaxprune compress, or jaxprune.save, wrote")
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="ends in .safetensors, .npz, .msgpack or .orbax (a folder)"
    )


def run(args: argparse.Namespace) -> None:
    """Decodes and writes leaf by leaf."""
    opened = shared.opened(args, args.checkpoint)
    if opened.format != "jaxprune":
        raise ValueError(f"{opened.path} is dense already ({opened.format}); jaxprune convert changes formats")
    convert.copy(args, opened)
