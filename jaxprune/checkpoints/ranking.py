"""Magnitude pruning of leaves that need not fit into memory together: the same masks as :func:`jaxprune.prune`.

Magnitudes are ranked by the bits of their float32 numbers, which sort like the numbers. Two passes over the leaves, a
histogram of the upper 16 bits and one of the lower bits of the one bucket that matters, find the magnitude up to which
entries go; a third, when the leaf is pruned, applies it.
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from jaxprune.checkpoints.leaf import Leaf
from jaxprune.host import chunks

_NAN = np.uint32(0x7F800001)  # all NaN rank alike, above infinity


class Cut(NamedTuple):
    """What goes of one leaf: entries whose key is below ``key``, and the first ``ties`` of those that equal it.

    Attributes:
      key: the bits of a float32 magnitude.
      ties: a number of entries.
    """

    key: int
    ties: int


def cuts(leaves: Mapping[str, Leaf], sparsity: float) -> dict[str, Cut]:
    """Where each leaf is cut if exactly a fraction of all their entries goes, those of the least magnitude.

    Args:
      leaves: floating, by name; equal magnitudes go in the order of the leaves, and of their entries.
      sparsity: in [0, 1]; ``round_half_up(n * sparsity)`` entries go.

    Raises:
      ValueError: a sparsity outside [0, 1] or NaN.

    >>> from jaxprune.checkpoints.leaf import of_array
    >>> leaves = {"a": of_array("a", np.array([3.0, 1.0])), "b": of_array("b", np.array([-1.0, 2.0]))}
    >>> [mask(leaf.read(), cut).tolist() for leaf, cut in zip(leaves.values(), cuts(leaves, 0.25).values())]
    [[True, False], [True, True]]
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must be in [0, 1], got {sparsity:g}")
    none = np.zeros(2**16, np.int64)
    entries = sum(leaf.size for leaf in leaves.values())
    count = math.floor(entries * Fraction(float(np.float32(sparsity))) + Fraction(1, 2))
    bucket, rest = _bucket(sum((_histogram(leaf, None) for leaf in leaves.values()), none), count)
    low = {name: _histogram(leaf, bucket) for name, leaf in leaves.items()}
    lower, ties = _bucket(sum(low.values(), none), rest)
    found = {}
    for name in leaves:
        found[name] = Cut((bucket << 16) + lower, min(ties, int(low[name][lower])))
        ties -= found[name].ties
    return found


def mask(array: np.ndarray, cut: Cut) -> np.ndarray:
    """Bool, in the shape of the array; ``True`` keeps."""
    kept, ties = [], cut.ties
    for part in chunks(array):
        keys = _keys(part)
        stays = keys >= cut.key
        if ties:
            equal = np.flatnonzero(keys == cut.key)[:ties]
            stays[equal] = False
            ties -= len(equal)
        kept.append(stays)
    return np.concatenate(kept or [np.zeros(0, bool)]).reshape(array.shape)


def _keys(part: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.minimum(np.abs(part.astype(np.float32)).view(np.uint32), _NAN)


def _histogram(leaf: Leaf, bucket: int | None) -> np.ndarray:
    """How many entries have each upper half, or each lower half of those whose upper half is ``bucket``."""
    counts = np.zeros(2**16, np.int64)
    for part in chunks(leaf.read()):
        keys = _keys(part)
        if bucket is not None:
            keys = keys[keys >> 16 == bucket]
        counts += np.bincount(keys >> 16 if bucket is None else keys & 0xFFFF, minlength=2**16)
    return counts


def _bucket(counts: np.ndarray, rank: int) -> tuple[int, int]:
    """The bucket in which a number of entries, from the least on, ends, and how many of it belong to them."""
    ends = np.cumsum(counts)
    found = int(np.searchsorted(ends, rank))
    return found, rank - int(ends[found] - counts[found])
