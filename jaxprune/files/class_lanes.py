"""The coder of :mod:`jaxprune.files.classes` with the streams of :mod:`jaxprune.files.lanes`."""

import numpy as np

from jaxprune.files import classes, lanes


def encode(codes: np.ndarray) -> bytes | None:
    """Codes as bytes; None where either is no good."""
    return classes.encode(codes, lanes.write)


def decode(data: bytes, shape: tuple[int, int]) -> np.ndarray:
    """The codes that ``encode`` made ``data`` of, int32 of that shape."""
    return classes.decode(data, shape, lanes.read)
