"""Writing as a whole or not at all: beside the place first, then renamed."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from jaxprune.checkpoints.leaf import CheckpointError


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """Gives a name beside ``path`` to write a file or a folder to, which takes its place if all goes well.

    Whatever goes wrong, an interrupt or a full disk, ``path`` is as it was and nothing is left beside it.

    Args:
      path: what is written in the end; its folder must exist.
      force: whether something that is there may be replaced.

    Raises:
      CheckpointError: ``path`` exists, or its folder does not. OSError: the disk is full, or may not be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(folder + "/new") as beside:
    ...         _ = beside.write_text("text")
    ...     os.listdir(folder)
    ['new']
    """
    target = check_output(path, force=force)
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


def check_output(path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """The path, if it can be written; checked before long work too."""
    target = Path(path)
    if not target.parent.is_dir():
        raise CheckpointError(f"{target}: there is no folder {target.parent}; make it first")
    if target.exists() and not force:
        raise CheckpointError(f"{target} exists; choose another name, or --force to replace it")
    return target


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
