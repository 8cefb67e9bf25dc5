"""What is wished for rather than set: a size, an error, a metric; and how far a setting can go until it is met."""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxprune.cli import shared

_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
_GUESSES = 6  # after which halving is surer


class Goal(NamedTuple):
    """Of a setting with ``bytes``, ``relative_error`` and perhaps ``metric``: which of them has which limit.

    Attributes:
      key: of the three.
      limit: the most, or of a metric the least.
      said: in words.
    """

    key: str
    limit: float
    said: str

    def holds(self, row: dict[str, Any]) -> bool:
        """Whether a setting meets it; NaN never does."""
        return row[self.key] >= self.limit if self.key == "metric" else row[self.key] <= self.limit

    def best(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """Of the settings that meet it the smallest, or, if it is a size, the one that loses least; else ``None``."""

        def rank(row: dict[str, Any]) -> tuple[float, float]:
            loss = -row["metric"] if "metric" in row else row["relative_error"]
            return (loss, row["bytes"]) if self.key == "bytes" else (row["bytes"], loss)

        return min(filter(self.holds, rows), key=rank, default=None)


def add_options(parser: Any) -> None:
    """What is wished for, one at a time."""
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--target-size", metavar="SIZE", help="the most bytes of the file, such as 6MB, 800kB or 2MiB")
    one.add_argument("--max-error", type=float, metavar="E", help="the largest relative error of the weights")
    one.add_argument("--min-metric", type=float, metavar="M", help="the least that the function of --eval may return")
    about = "function(params) -> number, larger is better; params is a tree of dicts"
    parser.add_argument("--eval", metavar="MODULE:FUNCTION", help=about)


def of(args: argparse.Namespace) -> Goal | None:
    """The goal of a command line, if there is one.

    Raises:
      ValueError: a size that is none, an error out of range, a metric without a function.
    """
    if args.target_size is not None:
        most = size(args.target_size)
        return Goal("bytes", most, f"at most {most:,} bytes")
    if args.max_error is not None:
        if not 0 < args.max_error < 1:
            raise ValueError(f"--max-error must lie between 0 and 1, which is that of zeros, got {args.max_error:g}")
        return Goal("relative_error", args.max_error, f"a relative error of at most {args.max_error:g}")
    if args.min_metric is not None:
        if args.eval is None:
            raise ValueError("--min-metric is about what a function returns: name it by --eval module:function")
        return Goal("metric", args.min_metric, f"{args.eval.partition(':')[2]} of at least {args.min_metric:g}")
    return None


def size(text: str) -> int:
    """Bytes, of a number and perhaps a unit.

    >>> size("6MB"), size("2 KiB")
    (6000000, 2048)
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*)\s*([kKMG]i?)?B?\s*", text)
    number = int(float(found[1]) * _UNITS[(found[2] or "").upper()]) if found else 0
    if not number:
        raise ValueError(f"--target-size {text!r} is no size: write such as 6MB, 800kB, 2MiB or 123456")
    return number


def numbers(text: str, option: str, low: float, high: float) -> list[float | None]:
    """Numbers between commas; None for the word none."""
    found: list[float | None] = []
    for part in text.split(","):
        try:
            number = None if part.strip() == "none" else float(part)
        except ValueError as error:
            raise ValueError(f"{option} {text!r}: {part!r} is no number; write them between commas") from error
        if number is not None and not low <= number <= high:
            raise ValueError(f"{option} must be in [{low:g}, {high:g}], got {number:g}")
        found.append(number)
    return found


def metric(function: str, params: Any) -> float:
    """What the function of ``--eval`` says of parameters."""
    found = shared.function(function)(params)
    try:
        return float(found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the function of --eval returned {str(found)[:60]}, not a number") from error


def furthest(meets: Callable[[int], tuple[bool, float]], low: int, high: int) -> int:
    """The largest whole number in [low, high) that meets what all below it meet.

    Args:
      meets: whether a number does, and about how far it is to the last that does; ``inf`` where nobody knows.
      low: is taken to meet it, unseen.
      high: the first that is taken not to.

    >>> furthest(lambda number: (number < 700, 0.9 * (700 - number)), 0, 1000)
    699
    """
    guess, tried, streak, before = (low + high) // 2, 0, 0, True
    while high - low > 1:
        met, distance = meets(guess)
        low, high = (guess, high) if met else (low, guess)
        tried, streak, before = tried + 1, streak + 1 if met == before and tried else 0, met
        known = abs(distance) < math.inf and tried < _GUESSES
        guess = min(max(guess + round(distance * 2**streak), low + 1), high - 1) if known else (low + high) // 2
    return low
