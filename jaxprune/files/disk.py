"""Files: what is written to the disk and read from it. A file is replaced as a whole, so a crash leaves the old one."""

import os
from typing import Any

from jaxprune.base import Params
from jaxprune.files import container
from jaxprune.files.bytestream import FormatError, naming
from jaxprune.files.codec import Compressed, compress
from jaxprune.host import library, written_whole

_LONGEST_HEADER = 2**26  # bytes; the library that parses it takes as much again


def save(path: str | os.PathLike[str], params: Params | Compressed, **options: Any) -> int:
    """Writes compressed parameters to a file and returns its size in bytes.

    The file is a safetensors container, described in ``docs/format.md``. It is written beside ``path``, flushed to the
    disk and then renamed: whatever goes wrong, ``path`` holds the old file or the new one.

    Args:
      path: where; the folder must exist.
      params: what :func:`compress` returned, or a tree, which is compressed with ``options`` first.
      **options: of :func:`compress`; none, for no loss.

    Raises:
      TypeError: options for what is compressed already. As :func:`compress`; OSError.

    >>> import numpy as np, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     size = save(folder + "/weights.jp", {"kernel": np.ones((20, 30), np.float32)})
    ...     load(folder + "/weights.jp")["kernel"].sum(), size < 2400
    (np.float32(600.0), True)
    """
    if isinstance(params, Compressed):
        if options:
            raise TypeError(f"the parameters are compressed already; {sorted(options)} would have no effect")
        compressed = params
    else:
        compressed = compress(params, **options)
    pieces = compressed.pieces()
    with written_whole(path) as beside, open(beside, "wb") as file:
        file.writelines(pieces)
    return sum(map(len, pieces))


def load(
    path: str | os.PathLike[str], *, leaf: str | None = None, max_bytes: int | None = None, like: Params = None
) -> Params:
    """Reads parameters from a file that :func:`save` wrote. Safe for files from strangers: nothing in them is run.

    Args:
      path: the file.
      leaf, max_bytes, like: as in :meth:`Compressed.decompress`; of one leaf, only its bytes are read.

    Raises:
      FormatError: the file is damaged, cut short, made up, of another version, or too large when decoded.
      ValueError: no such leaf; ``like`` does not fit or is needed. OSError: no such file.

    >>> import jax.numpy as jnp, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save(folder + "/weights.jp", {"Dense_0": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}}, bits=4)
    ...     load(folder + "/weights.jp", leaf="Dense_0/kernel")
    Array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    return read(path).decompress(leaf, max_bytes=max_bytes, like=like)


def read(path: str | os.PathLike[str]) -> Compressed:
    """Opens a file without decoding it: the header is checked, leaves are read when they are decoded.

    Args:
      path: the file, which must stay as it is as long as the result is used.

    Raises:
      FormatError, OSError: as :func:`load`.

    >>> import numpy as np, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save(folder + "/weights.jp", {"kernel": np.zeros((4, 5), np.int8)})
    ...     [leaf.path for leaf in read(folder + "/weights.jp").report().leaves]
    ['kernel']
    """
    name = os.fspath(path)
    with open(name, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(_LONGEST_HEADER, os.path.getsize(name)):
        raise FormatError(f"{name}: a header of {length} bytes: truncated, or no safetensors file")
    safetensors = library("safetensors", "jaxprune[files]")
    with naming(name):
        try:
            opened = safetensors.safe_open(name, "np")
        except safetensors.SafetensorError as error:
            raise FormatError(f"no safetensors file, or a damaged one: {error}") from error
        root, stored, metadata = container.parse(opened)
    return Compressed(root, tuple(stored), metadata)
