"""The axes of a leaf, decided in one place: along which its units lie, and which one its product contracts.

A leaf is ``(..., in, out)``. Units lie along the last axis; the inputs are along the axis before it.
"""

import math
from typing import Any

import numpy as np

from jaxprune.tree import Selection, show

#: The axis of the units: output neurons, channels.
UNITS = -1
#: The axis that a product contracts: groups of N:M and blocks of scales run along it.
INPUTS = -2


def within_unit(leaf: Any) -> tuple[int, ...]:
    """The axes that a unit spans: all but that of the units.

    >>> within_unit(np.ones((3, 3, 8, 16)))
    (0, 1, 2)
    """
    return tuple(range(np.ndim(leaf) - 1))


def unit_count(leaf: Any) -> int:
    """How many units a leaf has; a scalar is one."""
    return np.shape(leaf)[UNITS] if np.ndim(leaf) else 1


def unit_shape(leaf: Any) -> tuple[int, ...]:
    """The shape of one value a unit that broadcasts to the leaf: ``(1, ..., 1, C)``; ``()`` of a scalar."""
    return (1,) * (np.ndim(leaf) - 1) + np.shape(leaf)[UNITS:]


def input_axis(ndim: int) -> int:
    """The axis of the inputs, counted from the front; of a vector its only one."""
    return max(ndim + INPUTS, 0)


def check_axis(path: str, leaf: Any, axis: int) -> int:
    """``axis`` of the leaf counted from the front; ``ValueError`` if it has no such axis."""
    ndim = np.ndim(leaf)
    if not -ndim <= axis < ndim:
        raise ValueError(f"leaf {show(path)} has shape {np.shape(leaf)} and no axis {axis}")
    return axis % ndim


def check_countable(chosen: Selection, bins: int = 1) -> None:
    """Raises ``ValueError`` unless the histograms of the chosen leaves fit 32-bit integers."""
    for i in chosen.chosen:
        *rest, units = np.shape(chosen.leaves[i]) or (1,)
        if max(math.prod(rest), units * bins) >= 2**31:
            raise ValueError(
                f"leaf {show(chosen.paths[i])} has {math.prod(rest)} values a unit and {units} units of {bins} bins; "
                "both must be below 2**31 in number"
            )
