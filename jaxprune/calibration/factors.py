"""Which axes of its origin each axis of an array comes from, as arrays are transposed, reshaped and sliced."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Factor(NamedTuple):
    """Part of an axis: ``size`` places of the axis ``origin``, or of none that is known."""

    origin: int | None
    size: int


#: The factors of each axis, the slowest first.
Factors = tuple[tuple[Factor, ...], ...]


def fresh(shape: Sequence[int], known: bool = True) -> Factors:
    """Every axis its own origin."""
    return tuple((Factor(i if known else None, size),) for i, size in enumerate(shape))


def moved(factors: Factors, name: str, params: dict[str, Any], shape: Sequence[int]) -> Factors | None:
    """The factors of the result, of that shape, of an operation that moves numbers; ``None`` if they are mixed up.

    >>> moved(fresh((6, 4)), "reshape", {}, (2, 3, 4))
    ((Factor(origin=0, size=2),), (Factor(origin=0, size=3),), (Factor(origin=1, size=4),))
    """
    if name == "transpose":
        return tuple(factors[axis] for axis in params["permutation"])
    if name in ("reshape", "squeeze", "expand_dims"):
        return _regrouped([one for axis in factors for one in axis], shape)
    if name == "broadcast_in_dim":
        places = {place: axis for place, axis in zip(params["broadcast_dimensions"], factors, strict=True)}
        return tuple(
            places[i] if i in places and _size(places[i]) == size else (Factor(None, size),)
            for i, size in enumerate(shape)
        )
    if name in ("slice", "dynamic_slice", "pad", "rev"):
        return tuple(_cut(axis, size) for axis, size in zip(factors, shape, strict=True))
    return None


def _size(axis: tuple[Factor, ...]) -> int:
    size = 1
    for factor in axis:
        size *= factor.size
    return size


def _cut(axis: tuple[Factor, ...], size: int) -> tuple[Factor, ...]:
    origins = {factor.origin for factor in axis}
    return axis if size == _size(axis) else (Factor(origins.pop() if len(origins) == 1 else None, size),)


def _regrouped(factors: list[Factor], shape: Sequence[int]) -> Factors | None:
    left = [factor for factor in factors if factor.size != 1]
    axes = []
    for size in shape:
        axis: list[Factor] = []
        need = size
        while need > 1:
            origin, there = left.pop(0)
            if need % there and there % need:
                return None
            axis.append(Factor(origin, min(need, there)))
            if there > need:
                left.insert(0, Factor(origin, there // need))
            need = max(need // there, 1)
        axes.append(tuple(axis) or (Factor(None, size),))
    return tuple(axes)
