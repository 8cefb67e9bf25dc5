"""Writing as a whole or not at all: beside the place first, then renamed."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from jaxprune.checkpoints.leaf import CheckpointError
from jaxprune.host import written_whole


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
    with written_whole(check_output(path, force=force)) as beside:
        yield beside


def check_output(path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """The path, if it can be written; checked before long work too."""
    target = Path(path)
    if not target.parent.is_dir():
        raise CheckpointError(f"{target}: there is no folder {target.parent}; make it first")
    if target.exists() and not force:
        raise CheckpointError(f"{target} exists; choose another name, or --force to replace it")
    return target
