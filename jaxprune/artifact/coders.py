"""The coders of integers, by number and by name. A new one is one file with ``encode`` and ``decode``, and a line here.

A coder takes int32 codes [rows, columns]; ``encode(codes)`` gives bytes, or None if it cannot take these or surely does
not pay; ``decode(data, shape)`` gives the codes back, and raises :class:`ArtifactError` for data that make no sense.
"""

from collections.abc import Sequence
from types import ModuleType

import numpy as np

from jaxprune.artifact import ans, bitmap, classes, gaps, huffman, mixing, packing
from jaxprune.artifact.errors import ArtifactError

#: In the order of their numbers in files, which never change.
CODERS: tuple[tuple[str, ModuleType], ...] = (
    ("packing", packing),
    ("ans", ans),
    ("huffman", huffman),
    ("bitmap", bitmap),
    ("gaps", gaps),
    ("mixing", mixing),
    ("classes", classes),
)
NAMES = tuple(name for name, _ in CODERS)
_SLOW_FROM = 2**20  # weights; ``mixing`` takes some ten seconds for them, each way


def default(weights: int) -> tuple[str, ...]:
    """What is tried for a tree of so many weights unless somebody chooses.

    Huffman codes are there to be read, and never smaller than those of ``ans``.
    """
    left_out = ("huffman", "mixing") if weights > _SLOW_FROM else ("huffman",)
    return tuple(name for name in NAMES if name not in left_out)


def smallest(codes: np.ndarray, wanted: Sequence[str]) -> tuple[int, bytes]:
    """The number of the coder that needs the fewest bytes, and these; ``packing`` takes what no other does."""
    tried = [(i, module.encode(codes)) for i, (name, module) in enumerate(CODERS) if name in wanted]
    found = [(i, data) for i, data in tried if data is not None]
    if not found:
        found = [(NAMES.index("packing"), packing.encode(codes))]
    return min(found, key=lambda item: len(item[1]))


def decode(number: int, data: bytes, shape: tuple[int, int]) -> np.ndarray:
    """The codes that a coder made ``data`` of."""
    if number >= len(CODERS):
        raise ArtifactError(f"coder {number} is unknown")
    return CODERS[number][1].decode(data, shape)
