"""What the library does on the host, said once: files written whole, progress, tables as text, optional libraries."""

import contextlib
import importlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

_CHUNK = 2**18  # entries that are looked at together: a few megabytes


def library(name: str, install: str) -> Any:
    """The module ``name``, imported when it is first needed; ``install`` is what pip has to be asked for.

    Raises:
      ImportError: it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name.split('.')[0]} is not installed: pip install '{install}'") from error


def entropy_of_counts(counts: np.ndarray) -> float:
    """Bits of all entries of which ``counts`` are alike: the sum of c log2(n / c), 0 log 0 = 0.

    >>> entropy_of_counts(np.array([2, 1, 1, 0]))
    6.0
    """
    some = counts[counts > 0].astype(np.float64)
    return float((some * np.log2(some.sum() / some)).sum())


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a name beside ``path`` to write a file or a folder to, which takes its place if all goes well.

    Whatever goes wrong, an interrupt or a full disk, ``path`` is as it was and nothing is left beside it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with written_whole(folder + "/new") as beside:
    ...         _ = beside.write_text("text")
    ...     os.listdir(folder)
    ['new']
    """
    target = Path(path)
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield beside
        if beside.is_file():
            with open(beside, "rb+") as file:
                os.fsync(file.fileno())
        _move(beside, target)
    finally:
        for left in target.parent.glob(beside.name + "*"):  # Orbax makes folders of its own beside it
            _remove(left)


def _move(beside: Path, target: Path) -> None:
    """A folder cannot be renamed to one that holds something, so that one steps aside."""
    if not (beside.is_dir() or target.is_dir()):
        os.replace(beside, target)
        return
    aside = beside.with_suffix(".old")
    if target.exists():
        os.replace(target, aside)
    try:
        os.replace(beside, target)
    except OSError:
        if aside.exists():
            os.replace(aside, target)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def progress_bar(progress: bool, what: str, start: int, count: int) -> Iterator[Callable[[int], None]]:
    """Gives a function that shows how many of ``count`` are finished; it does nothing without ``progress``."""
    if not progress or jax.process_index() > 0:
        yield lambda finished: None
        return
    console, rich = library("rich.console", "jaxprune[progress]"), library("rich.progress", "jaxprune[progress]")
    columns = (*rich.Progress.get_default_columns(), rich.MofNCompleteColumn())
    with rich.Progress(*columns, console=console.Console(stderr=True)) as drawn:
        task = drawn.add_task(what, total=count, completed=start)
        yield lambda finished: drawn.update(task, completed=finished)


def in_parallel(work: Callable[[Any], Any], items: Sequence[Any], what: str = "", progress: bool = False) -> list[Any]:
    """``[work(item) for item in items]``, in threads, the first error in order raised; ``what`` is on the bar."""
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress_bar(progress, what, 0, len(items)) as show:
        found = []
        for result in pool.map(work, items):
            found.append(result)
            show(len(found))
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]], total: Sequence[str] | None = None, left: int = 1) -> str:
    """Columns in line, the first ``left`` of them to the left, and a last row below a rule.

    >>> print(table(["leaf", "size"], [["a", "12"], ["kernel", "3"]]))
    leaf    size
    ------------
    a         12
    kernel     3
    """
    lines = [list(head), *map(list, rows), *([list(total)] if total else [])]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    drawn = [
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    rule = "-" * max(map(len, drawn))
    body = [drawn[0], rule, *drawn[1 : len(rows) + 1]] + ([rule, drawn[-1]] if total else [])
    return "\n".join(line.rstrip() for line in body)


def chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    """The entries in order, some at a time, so that what is computed of them takes little memory."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        yield flat[start : start + _CHUNK]
