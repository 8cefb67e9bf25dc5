"""What the library does on the host, said once: files written whole, progress, tables as text, optional libraries."""

import contextlib
import contextvars
import errno
import importlib
import os
import secrets
import shutil
import socket
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

_CHUNK = 2**18  # entries that are looked at together: a few megabytes
_PART = 2**20  # bytes whose work is worth handing over to a thread


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
def written_whole(path: str | os.PathLike[str], *, over_folder: bool = False) -> Iterator[Path]:
    """Gives a name beside ``path`` to write a file or a folder to, which takes its place if all goes well.

    Whatever goes wrong, an interrupt or a full disk, ``path`` is as it was and nothing is left beside it; and what
    processes left that were killed on this host is removed. A link is followed, and a file keeps its permissions.
    ``over_folder`` says that a folder may be replaced, with all that is in it.

    Raises:
      IsADirectoryError: ``path`` is a folder, which is not to be replaced.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with written_whole(folder + "/new") as beside:
    ...         _ = beside.write_text("text")
    ...     os.listdir(folder)
    ['new']
    """
    target = Path(os.path.realpath(path))
    if target.is_dir() and not over_folder:
        raise IsADirectoryError(errno.EISDIR, "a folder, which no file replaces", str(path))
    start = _start_of_names(target.name)
    beside = target.with_name(f"{start}{os.getpid()}.{secrets.token_hex(4)}.tmp")
    for left in _named(target.parent, start):
        owner = left.name.removeprefix(start).split(".")[0]
        needed = left.suffix == ".old" and not target.exists()  # all that is left of a folder that was being replaced
        if owner.isdigit() and not _runs(int(owner)) and not needed:
            _remove(left)
    try:
        yield beside
        if beside.is_file():
            if target.is_file():
                os.chmod(beside, stat.S_IMODE(target.stat().st_mode))
            with open(beside, "rb+") as file:
                os.fsync(file.fileno())
        _move(beside, target)
    finally:
        for left in _named(target.parent, beside.name):  # Orbax makes folders of its own beside it
            _remove(left)


def _start_of_names(name: str) -> str:
    """How names begin that this host, since it was started, gives beside ``name``: short, and no other's."""
    here = socket.gethostname()
    with contextlib.suppress(OSError):  # Linux tells more: when it was started, and in which container this is
        here += Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    return f".{name[:40]}.{zlib.crc32(name.encode(errors='surrogateescape')):08x}.{zlib.crc32(here.encode()):08x}."


def _named(folder: Path, start: str) -> list[Path]:
    with contextlib.suppress(PermissionError):  # a folder may be written to and not be listed
        return [folder / name for name in os.listdir(folder) if name.startswith(start)]
    return []


def _runs(process: int) -> bool:
    """Whether there is such a process, so far as one can tell."""
    try:
        os.kill(process, 0) if os.name == "posix" else None
    except OSError as error:
        return not isinstance(error, ProcessLookupError)  # else somebody else's
    return True


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
    except BaseException:
        if aside.exists():
            os.replace(aside, target)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


_SHOWN = contextvars.ContextVar("shown", default=False)


@contextlib.contextmanager
def progress() -> Iterator[None]:
    """Draws bars on stderr for what goes layer by layer in its block (needs ``rich``).

    >>> with progress():
    ...     pass  # fitted = jp.calibration.fake_quant(params, stats, 4)
    """
    before = _SHOWN.set(True)
    try:
        yield
    finally:
        _SHOWN.reset(before)


@contextlib.contextmanager
def progress_bar(progress: bool, what: str, start: int, count: int) -> Iterator[Callable[[int], None]]:
    """Gives a function that shows how many of ``count`` are finished; it does nothing unless progress is asked for."""
    if not (progress or _SHOWN.get()) or jax.process_index() > 0:
        yield lambda finished: None
        return
    console, rich = library("rich.console", "jaxprune[progress]"), library("rich.progress", "jaxprune[progress]")
    columns = (*rich.Progress.get_default_columns(), rich.MofNCompleteColumn())
    with rich.Progress(*columns, console=console.Console(stderr=True)) as drawn:
        task = drawn.add_task(what, total=count, completed=start)
        yield lambda finished: drawn.update(task, completed=finished)


def in_parallel(
    work: Callable[[Any], Any], items: Sequence[Any], what: str = "", progress: bool = False, nbytes: Any = None
) -> list[Any]:
    """``[work(item) for item in items]``, in threads, the first error in order raised; ``what`` is on the bar.

    Neighbours of few bytes, as ``nbytes(item)`` says, share a thread: the interpreter, which threads wait for, does
    most of their work.
    """
    parts, found = batches(items, nbytes, _PART), []
    with progress_bar(progress, what, 0, len(items)) as show, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for result in (pool.map if len(parts) > 1 else map)(lambda part: list(map(work, part)), parts):
            found += result
            show(len(found))
    return found


def batches(items: Iterable[Any], nbytes: Callable[[Any], int], most: int) -> list[list[Any]]:
    """Neighbours together, until they reach so many bytes."""
    found, room = [], 0
    for item in items:
        if room <= 0:
            found.append([])
            room = most
        found[-1].append(item)
        room -= nbytes(item) if nbytes else _PART
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
    sides = [str.ljust if i < left else str.rjust for i in range(len(head))]
    drawn = ["  ".join(side(c, w) for side, c, w in zip(sides, line, widths, strict=True)) for line in lines]
    rule = "-" * max(map(len, drawn))
    body = [drawn[0], rule, *drawn[1 : len(rows) + 1]] + ([rule, drawn[-1]] if total else [])
    return "\n".join(line.rstrip() for line in body)


def limit(max_bytes: float | None, nbytes: int) -> float:
    """The most bytes that arrays of a file of ``nbytes`` may take: 1 GiB or 1,000 times as much, unless said."""
    return max(2**30, 1000 * nbytes) if max_bytes is None else max_bytes


def distinct(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """The names, with a number behind each that is taken already.

    >>> distinct(["a", "b", "a", "a"])
    ['a', 'b', 'a#2', 'a#3']
    """
    used, last, found = set(taken), dict[str, int](), []
    for name in names:
        new = name
        while new in used:
            last[name] = last.get(name, 1) + 1
            new = f"{name}#{last[name]}"
        used.add(new)
        found.append(new)
    return found


def chunks(array: np.ndarray, least: int = 0) -> Iterator[np.ndarray]:
    """The entries in order, some at a time (at least ``least``), so that what is computed of them takes little room."""
    flat, number = array.reshape(-1), max(least, _CHUNK)
    for start in range(0, flat.size, number):
        yield flat[start : start + number]
