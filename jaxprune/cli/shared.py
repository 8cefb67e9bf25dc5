"""What commands share: which leaves they are about, functions of the user, and what they show.

Tables and JSON go to stdout, everything else to stderr.
"""

import argparse
import glob
import importlib
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from jaxprune import host, tree
from jaxprune.base import Layout
from jaxprune.checkpoints import Checkpoint, Leaf
from jaxprune.checkpoints.leaf import grown, paths
from jaxprune.layout import Axes, find_axes

CHOICES = {
    "where": "pattern of the leaves that are chosen; all kernels and embeddings without it",
    "exclude": "pattern of leaves that are left alone",
    "layout": "flax, torch, or PATTERN=AXES, axes as inspect shows them, such as 'fused.*=0>1,2' or 'stack.*=0: 1>2'",
}

_NAME = 38  # characters of a name that are worth more than a column
_FEW = 4  # leaves that are all shown


def add_choices(parser: Any, *names: str) -> None:
    """Options that may be repeated."""
    for name in names:
        parser.add_argument(f"--{name}", action="append", default=[], metavar=name.upper(), help=CHOICES[name])


def fraction(text: str) -> float:
    """The type of an option that is a fraction; other numbers are wrong arguments."""
    if not 0 <= (number := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"a fraction in [0, 1], got {text}: write 0.5 for 50%")
    return number


def eligible(leaves: Mapping[str, Leaf]) -> list[str]:
    """The names of kernels and embeddings: the leaves that :func:`jaxprune.tree.select` takes by default."""
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
    order = jax.tree.leaves(grown({name: name for name in leaves}))
    chosen = {order[i] for i in tree.select(grown(shapes)).chosen}
    return [name for name in leaves if name in chosen]


def axes(leaves: Mapping[str, Leaf], said: Sequence[str] = ()) -> dict[str, Axes | None]:
    """The axes of each leaf by ``--layout``, its name and the bias beside it; ``None`` where no rule knows them."""
    flat = tree.flatten({name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in leaves.items()})
    every = flat._replace(chosen=tuple(range(len(flat.paths))))
    return dict(zip(flat.paths, find_axes(every, _layout(said, leaves)), strict=True))


def _layout(said: Sequence[str], leaves: Mapping[str, Leaf]) -> Layout:
    """What ``--layout`` says, as functions take it: of patterns the first that matches a leaf."""
    if not said or list(said) in (["flax"], ["torch"]):
        return said[0] if said else None  # type: ignore[return-value]
    found: dict[str, Any] = {}
    for text in said:
        pattern, _, written = text.rpartition("=")
        batch, _, product = written.rpartition(":")
        inputs, between, outputs = product.partition(">")
        try:
            parts = tuple(tuple(map(int, part.split(","))) if part.strip() else () for part in (batch, inputs, outputs))
        except ValueError:
            parts = ()
        if not (pattern and between and parts):
            raise ValueError(f"layout {text!r}: write {CHOICES['layout']}")
        for name in matching([pattern], list(leaves), leaves):
            found.setdefault(glob.escape(name), parts)
    return found


def choose(leaves: Mapping[str, Leaf], where: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """The eligible names that some pattern of ``where`` matches (all, without one), and none of ``exclude``.

    Raises:
      ValueError: a pattern that matches nothing, or nothing is left.
    """
    among = eligible(leaves)
    if not among:
        raise ValueError("no leaf can be chosen: only floating arrays of rank 2 and more are kernels or embeddings")
    if not (chosen := matching([*where, *(f"!{pattern}" for pattern in exclude)], among, leaves)):
        raise ValueError("the patterns leave no leaf: each that is chosen is excluded as well")
    return chosen


def matching(patterns: Sequence[str], among: Sequence[str], leaves: Mapping[str, Leaf]) -> list[str]:
    """The names that patterns choose, all without one; they match a name as it is or with ``/`` between its parts."""
    if not patterns:
        return list(among)
    cut = paths(leaves)

    def complaint(pattern: str) -> str:
        said = f"pattern {pattern.removeprefix('!')!r} matches none of the {len(among)} leaves that can be chosen"
        return f"{said}: {few(among)} (jaxprune inspect lists them; * stands for anything)"

    forms = [(name, cut[name], cut[name].removeprefix("params/")) for name in among]
    flags = tree.matching(patterns, forms, complaint)
    return [name for name, taken in zip(among, flags, strict=True) if taken]


def function(text: str) -> Callable[..., Any]:
    """The function; modules are looked for in the current folder too.

    Raises:
      ValueError: the text names none, with what is wrong.
    """
    module, between, name = text.partition(":")
    if not (module and between and name):
        raise ValueError(f"{text!r} names no function; write module:function, such as my_model:accuracy")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module.removesuffix(".py").replace("/", "."))
    except ImportError as error:
        raise ValueError(f"module {module!r} cannot be imported from {os.getcwd()}: {error}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            public = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
            raise ValueError(f"module {module!r} has no {name!r}; it has {', '.join(public[:6]) or 'nothing'}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{text!r} is a {type(found).__name__}, not a function")
    return found


def show(args: Any, facts: dict[str, Any], text: str, *read: Checkpoint) -> None:
    """Prints the facts as JSON if that is asked for, else the text; and what of the files that were read was not."""
    found = [(file.path, name, other.kind) for file in read for name, other in file.others.items()]
    facts |= {"unreadable": [{"path": str(path), "name": name, "kind": kind} for path, name, kind in found]}
    text = "\n".join([text, *(f"not read: {path}: {name!r} ({kind})" for path, name, kind in found)])
    print(json.dumps(plain(facts), indent=1, allow_nan=False) if args.json else text)


def tracked(items: Sequence[Any], what: str, progress: bool) -> Iterator[Any]:
    """The items, with a bar that shows how many are done."""
    with host.progress_bar(progress, what, 0, len(items)) as finished:
        for number, item in enumerate(items, 1):
            yield item
            finished(number)


def table(
    heads: str, forms: str, rows: Sequence[Any], total: Any = None, left: int = 1, spare: str = "", wide: bool = True
) -> str:
    """Lines in columns, by a form each; a column that is empty throughout is left out.

    What a row lacks stays empty, a list is a shape, and ``None`` is not known. Unless ``wide`` the columns fit the
    terminal: those of ``spare`` go, one after the other, then the first words of long names become letters.

    >>> print(table("leaf, shape, size", "{name} {shape} {size:,}", [{"name": "a", "shape": [30, 40]}]))
    leaf  shape
    -----------
    a     30x40
    """

    def cell(form: str, row: dict[str, Any]) -> str:
        key = form[1:-1].split(":")[0]
        value = row.get(key, "")
        value = shape(value) if isinstance(value, list) else "?" if value is None else value
        return value if isinstance(value, str) else form.format_map({key: value})

    lines = [[cell(form, row) for form in forms.split()] for row in [*rows, *([total] if total else [])]]
    columns = list(zip(heads.split(", "), *lines, strict=True))
    left = sum(any(column[1:]) for column in columns[:left])
    kept = [column for column in columns if any(column[1:])]
    fit, gone = (kept, []) if wide else _fitted(kept, spare.split(", "))
    left -= sum(column[0] in gone for column in kept[:left])
    head, *cells = zip(*fit, strict=True)
    drawn = host.table(head, cells[: len(rows)], cells[-1] if total else None, left)
    return "\n\n".join([drawn, note(f"Not shown: {', '.join(gone)} (--wide).", wide)]) if gone else drawn


def _fitted(columns: list[tuple[str, ...]], spare: Sequence[str]) -> tuple[list[tuple[str, ...]], list[str]]:
    """The columns that the terminal has room for, and the heads of those that it has not."""
    room, longest, gone = shutil.get_terminal_size().columns, max(map(len, columns[0])), list[str]()

    def others() -> int:
        return sum(2 + max(map(len, column)) for column in columns[1:])

    for head in spare:
        if others() + min(longest, _NAME) > room and head in [column[0] for column in columns]:
            columns, gone = [column for column in columns if column[0] != head], [*gone, head]
    most = max(room - others(), 12)

    def cut(name: str) -> str:
        parts = re.split("([./])", name)
        for i in range(0, len(parts) - 1, 2):
            if sum(map(len, parts)) > most:
                parts[i] = re.sub("[A-Za-z_]+", lambda word: word[0][0], parts[i])
        short = "".join(parts)
        return short if len(short) <= most else f"…{short[1 - most :]}"

    return [tuple(map(cut, columns[0])), *columns[1:]], gone


def folded(rows: Sequence[Any], alike: Callable[[Any], bool], said: str, wide: bool) -> list[Any]:
    """The rows; unless ``wide``, or they are few, those that are alike become one, with sums of whole numbers."""
    some = [row for row in rows if alike(row)]
    if wide or len(some) < _FEW:
        return list(rows)
    sums = {
        k: sum(row[k] or 0 for row in some) for k, v in some[0].items() if isinstance(v, int) and type(v) is not bool
    }
    return [*(row for row in rows if not alike(row)), sums | {"name": f"{len(some)} {said}"}]


def note(text: str, wide: bool) -> str:
    """Text in lines that fit the terminal, or 120 columns."""
    return textwrap.fill(text, 120 if wide else min(120, shutil.get_terminal_size().columns))


def plain(value: Any) -> Any:
    """The value as JSON can hold it; numbers that are not finite become null."""
    return json.loads(json.dumps(value, default=lambda number: number.item()), parse_constant=lambda name: None)


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
