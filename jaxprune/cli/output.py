"""What commands show: tables and JSON on stdout, everything else on stderr."""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from jaxprune import host


def show(args: Any, facts: dict[str, Any], text: str) -> None:
    """Prints the facts as JSON if that is asked for, else the text."""
    print(json.dumps(plain(facts), indent=1, allow_nan=False) if args.json else text)


def progress_wanted(args: Any) -> bool:
    """Whether bars are drawn: to people alone, and where ``rich``, which draws them, is installed."""
    if args.quiet or not sys.stderr.isatty():
        return False
    try:
        import rich.progress  # noqa: F401
    except ImportError:
        return False
    return True


def tracked(items: Sequence[Any], what: str, progress: bool) -> Iterator[Any]:
    """The items, with a bar that shows how many are done."""
    with host.progress_bar(progress, what, 0, len(items)) as finished:
        for number, item in enumerate(items, 1):
            yield item
            finished(number)


def cells(form: str, row: dict[str, Any]) -> list[str]:
    """A line of a table, by a form; what the row lacks stays empty, and a list is a shape.

    >>> cells("{name} {shape} {size:,} {error:.3g}", {"name": "a", "shape": [30, 40], "size": 1200})
    ['a', '30x40', '1,200', '']
    """
    said = {key: shape(value) if isinstance(value, list) else value for key, value in row.items()}
    return [part.format_map(said) if part[1:-1].split(":")[0] in said else "" for part in form.split()]


def plain(value: Any) -> Any:
    """The value as JSON can hold it; numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def size(number: int | float) -> str:
    """Bytes for people, in powers of 1,000.

    >>> size(999), size(90868376), size(12e9)
    ('999 B', '90.9 MB', '12.0 GB')
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{int(number)} B"


def few(names: Sequence[str]) -> str:
    """The first three names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def shape(sizes: Sequence[int]) -> str:
    """A shape such as ``3x3x16``."""
    return "x".join(map(str, sizes)) or "scalar"


def times(before: int, after: int) -> str:
    """How much smaller, such as ``12.3x``."""
    return f"{before / after:.1f}x" if after else "-"


def smaller(before: int, after: int) -> str:
    """Both sizes, and their ratio in words."""
    words = f"{times(before, after)} smaller" if after <= before else f"{times(after, before)} larger"
    return f"{before:,} bytes before, {after:,} after: {words}"
