"""The command line: ``jaxprune inspect | sweep | search | compress | shrink | decompress | diff | convert``.

Arguments are read by argparse: it is part of Python and does all that is needed here.
"""

import argparse
import gc
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from inspect import cleandoc
from typing import NoReturn

from jaxprune.checkpoints.leaf import FULL
from jaxprune.cli import compress, diff, inspect, search, shrink, sweep

#: What adds the arguments of each command, and what runs it; the docstring of that is its help.
COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], None]]] = {
    "inspect": (inspect.configure, inspect.run),
    "sweep": (sweep.configure, sweep.run),
    "search": (search.configure, search.run),
    "compress": (compress.configure, compress.run),
    "shrink": (shrink.configure, shrink.run),
    "decompress": (compress.configure_decompress, compress.decompress),
    "diff": (diff.configure, diff.run),
    "convert": (compress.configure_convert, compress.convert),
}
_READS = ("inspect", "diff")  # and writes nothing

_LIMIT = "most bytes that an array may take in memory; default: 1 GiB or 1,000 times its file"
_ABOUT = """\
Looks into checkpoints and makes them small. Reads and writes .safetensors, .npz, msgpack of Flax, Orbax folders and the
files of jaxprune.save (.jp); a format is told by what is in a file, that of an output by its suffix."""
_END = """\
{examples}

exit codes: 0 done, 1 it failed (one line on stderr says why), 2 wrong arguments, 130 interrupted
JAXPRUNE_DEBUG=1 shows the traceback of a failure."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
      argv: the arguments after the name of the program; None for those of the process.

    Returns:
      0 if all went well, 1 if it failed, 2 for arguments that make no sense, 130 if it was interrupted.

    >>> main(["convert"])
    2
    """
    if argv is None:
        gc.freeze()  # what was imported stays: thousands of leaves else have it searched for garbage again and again
    try:
        args = _parser().parse_args(argv)
    except SystemExit as done:  # --help, or wrong arguments
        return int(done.code or 0)
    # Bars are for people alone, and where there is what draws them.
    args.progress = not args.quiet and sys.stderr.isatty() and find_spec("rich") is not None
    debug = bool(os.environ.get("JAXPRUNE_DEBUG"))
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
            COMMANDS[args.command][1](args)
            sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        print("jaxprune: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"jaxprune {args.command}: {_one_line(error)}", file=sys.stderr)
        return 1


def run() -> int:
    """The console script: :func:`main`, with a request to end treated as an interrupt, so that nothing is left."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return main()


class _Parser(argparse.ArgumentParser):
    """A parser that says which word was perhaps meant, of all its commands."""

    def error(self, message: str) -> NoReturn:
        """Exits with 2."""
        wrong = re.search(r"(?:invalid choice: '|unrecognized arguments: )([\w-]+)", message)
        known = [*COMMANDS, *(word for name in COMMANDS for word in re.findall(r"--[\w-]+", _usage(name)))]
        near = get_close_matches(wrong[1], known, 1) if wrong else []
        super().error(f"{message}; did you mean {near[0]}?" if near else message)


def _usage(command: str) -> str:
    parser = argparse.ArgumentParser(command)
    COMMANDS[command][0](parser)
    return parser.format_usage()


def _parser() -> argparse.ArgumentParser:
    from jaxprune import __version__

    parser = _Parser("jaxprune", description=_ABOUT, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--version", action="version", version=f"jaxprune {__version__}")
    added = parser.add_subparsers(
        parser_class=argparse.ArgumentParser, title="commands", dest="command", required=True, metavar="COMMAND"
    )
    firsts = ["examples:"]
    for name, (configure, run) in COMMANDS.items():
        about, _, examples = cleandoc(run.__doc__ or "").partition("\n\n")
        said, end = about[:1].lower() + about[1:].rstrip("."), _END.format(examples=examples)
        raw = argparse.RawDescriptionHelpFormatter
        command = added.add_parser(name, help=said, description=about, epilog=end, formatter_class=raw)
        configure(command)
        if name not in _READS:
            command.add_argument(
                "--force", action="store_true", help="replace what exists, and write what lost too much"
            )
            command.add_argument("--skip-unreadable", action="store_true", help="leave out entries of unknown dtypes")
        command.add_argument("--max-bytes", type=float, metavar="N", help=_LIMIT)
        command.add_argument("--json", action="store_true", help="print JSON instead of a table")
        command.add_argument("--wide", action="store_true", help="tables with all leaves and columns, in any terminal")
        command.add_argument("--quiet", action="store_true", help="no progress bar (never drawn but on a terminal)")
        firsts += examples.splitlines()[1:2]
    parser.epilog = _END.format(examples="\n".join(firsts))
    return parser


def _one_line(error: Exception) -> str:
    """What went wrong, in one line of at most 500 characters."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename or ''}: {error.strerror}".removeprefix(": ")
        if error.errno in FULL:
            text = f"{text}; nothing was written: make room, or write elsewhere"
    known = isinstance(error, OSError | ValueError | TypeError | ImportError)
    text = text if known and text else f"{type(error).__name__}: {text}"
    text = text if known else f"{text} (JAXPRUNE_DEBUG=1 shows where)"
    return text if len(text) <= 500 else text[:497] + "..."
