"""The coders of integers, by number and by name. A new one is one file with ``encode`` and ``decode``, and a line here.

A coder takes int32 codes [rows, columns]; ``encode(codes)`` gives bytes, or None if it cannot take these or surely does
not pay; ``decode(data, shape)`` gives the codes back, and raises :class:`ArtifactError` for data that make no sense.
"""

from collections.abc import Sequence
from types import ModuleType

import numpy as np

from jaxprune.files import ans, bitmap, class_lanes, classes, counting, gaps, huffman, lanes, mixing, packing
from jaxprune.files.errors import ArtifactError

#: In the order of their numbers in files, which never change.
CODERS: tuple[tuple[str, ModuleType], ...] = (
    ("packing", packing),
    ("ans", ans),
    ("huffman", huffman),
    ("bitmap", bitmap),
    ("gaps", gaps),
    ("mixing", mixing),
    ("classes", classes),
    ("lanes", lanes),
    ("class_lanes", class_lanes),
)
NAMES = tuple(name for name, _ in CODERS)
QUICK = ("lanes", "class_lanes")  # the quickest first
_LARGE = 2**20  # weights; ``mixing`` takes some ten seconds for them, each way
_QUICK_FROM = 2**14  # entries; for fewer, lanes begin with too much
_EXCESS, _HEAD = 1.004, 80  # times the entropy, and bytes, up to which what decodes quickly is good enough


def default(weights: int) -> tuple[str, ...]:
    """What is tried for a tree of so many weights unless somebody chooses.

    Huffman codes are there to be read, and never smaller than those of ``ans``; what decodes quickly is a bit larger.
    """
    left_out = ("huffman", "mixing") if weights > _LARGE else ("huffman", *QUICK)
    return tuple(name for name in NAMES if name not in left_out)


def smallest(codes: np.ndarray, wanted: Sequence[str]) -> tuple[int, bytes]:
    """The number of the coder that needs the fewest bytes, and these; ``packing`` takes what no other does.

    Coders that decode quickly may need 0.4% more than each other and than the entropy of the codes. Only where they
    need more than that, the others are tried.
    """
    quick = [name for name in QUICK if name in wanted]
    others = [name for name in wanted if name not in QUICK]
    found = _tried(codes, quick) if quick and (codes.size >= _QUICK_FROM or not others) else []
    if found:
        least = min(counting.entropy(codes) / 8, *(len(data) for _, data in found))
        for number, data in found:
            if len(data) <= _EXCESS * least + _HEAD or not others:
                return number, data
    found += _tried(codes, others)
    return min(found or [(NAMES.index("packing"), packing.encode(codes))], key=lambda item: len(item[1]))


def _tried(codes: np.ndarray, names: Sequence[str]) -> list[tuple[int, bytes]]:
    tried = [(i, module.encode(codes)) for i, (name, module) in enumerate(CODERS) if name in names]
    return [(i, data) for i, data in tried if data is not None]


def decode(number: int, data: bytes, shape: tuple[int, int]) -> np.ndarray:
    """The codes that a coder made ``data`` of."""
    if number >= len(CODERS):
        raise ArtifactError(f"coder {number} is unknown")
    return CODERS[number][1].decode(data, shape)
