"""Which axes of its origin each axis of an array comes from, through every operation: transposed, reshaped, multiplied.

One function an operation, ``(equation, operands, shape of the result) -> factors of the result``, or None where the
operation mixes them up. A new operation is a row of :data:`RULES`; what is in no row works on each entry alone.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxprune.program.jaxprs import Site


class Factor(NamedTuple):
    """Part of an axis: ``size`` places of the axis ``origin``, or of none that is known."""

    origin: int | None
    size: int


#: The factors of an axis, the slowest first.
Axis = tuple[Factor, ...]

#: The factors of each axis.
Factors = tuple[Axis, ...]


def fresh(shape: Sequence[int], known: int | None = None) -> Factors:
    """Axes that are their own origins: all, or the first few that are ``known``."""
    known = len(shape) if known is None else known
    return tuple((Factor(i if i < known else None, size),) for i, size in enumerate(shape))


def marked(axis: Axis) -> bool:
    """Whether anything is known of an axis."""
    return any(one.origin is not None for one in axis)


def moved(factors: Factors, name: str, params: dict[str, Any], shape: Sequence[int]) -> Factors | None:
    """The factors of the result, of that shape, of an operation that moves numbers; ``None`` if they are mixed up.

    >>> moved(fresh((6, 4)), "reshape", {}, (2, 3, 4))
    ((Factor(origin=0, size=2),), (Factor(origin=0, size=3),), (Factor(origin=1, size=4),))
    """
    if name == "transpose":
        return tuple(factors[axis] for axis in params["permutation"])
    if name in ("reshape", "squeeze"):
        return _regrouped([one for axis in factors for one in axis], shape)
    if name == "broadcast_in_dim":
        places = dict(zip(params["broadcast_dimensions"], factors, strict=True))
        whole = (i in places and _size(places[i]) == size for i, size in enumerate(shape))
        return tuple(places[i] if own else (Factor(None, shape[i]),) for i, own in enumerate(whole))
    if name in ("slice", "rev"):
        return tuple(_cut(axis, size) for axis, size in zip(factors, shape, strict=True))
    return None


def _size(axis: Axis) -> int:
    return math.prod(factor.size for factor in axis)


def _cut(axis: Axis, size: int) -> Axis:
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


def joined(many: Sequence[Factors]) -> Factors | None:
    """What is known of one array from several of its shape."""
    axes = []
    for several in zip(*many, strict=True):
        known = [axis for axis in several if marked(axis)]
        if any(axis != known[0] for axis in known[1:]):
            return None
        axes.append(known[0] if known else max(several, key=lambda axis: axis[0].size))
    return tuple(axes)


#: What is known of the operands, and the shape of a result, give what is known of that.
Rule = Callable[[Site, Sequence[Factors], Sequence[int]], Factors | None]


def by_entry(site: Site, operands: Sequence[Factors], shape: Sequence[int]) -> Factors | None:
    """Operations of each entry alone, or along axes without moving it: operands of one shape but for ones, scalars."""
    for own in filter(None, map(site.shape, range(len(operands)))):
        if len(own) != len(shape) or any(n not in (1, size) for n, size in zip(own, shape, strict=True)):
            return None
    return joined([factors for factors in operands if len(factors) == len(shape)])


def _moves(site: Site, operands: Sequence[Factors], shape: Sequence[int]) -> Factors | None:
    return moved(operands[0], site.name, site.params, shape)


def _parts(site: Site, operands: Sequence[Factors], shape: Sequence[int]) -> Factors | None:
    return moved(operands[0], "slice", {}, shape)


def _reduces(site: Site, operands: Sequence[Factors], shape: Sequence[int]) -> Factors | None:
    together = joined(operands)
    return together and tuple(axis for i, axis in enumerate(together) if i not in site.params["axes"])


def _dot(site: Site, operands: Sequence[Factors], shape: Sequence[int]) -> Factors | None:
    contracted, batch = site.params["dimension_numbers"]
    stack = joined([tuple(own[i] for i in places) for own, places in zip(operands[:2], batch, strict=True)])
    free = [[axis for i, axis in enumerate(operands[k]) if i not in (*contracted[k], *batch[k])] for k in (0, 1)]
    return None if stack is None else (*stack, *free[0], *free[1])


def _convolution(site: Site, operands: Sequence[Factors], shape: Sequence[int]) -> Factors | None:
    numbers, axes = site.params["dimension_numbers"], list(fresh(shape, known=0))
    axes[numbers.out_spec[0]] = operands[0][numbers.lhs_spec[0]]
    return tuple(axes) if site.params["batch_group_count"] == 1 else None


def _ragged(site: Site, operands: Sequence[Factors], shape: Sequence[int]) -> Factors | None:
    return (operands[0][0], (Factor(None, shape[1]),)) if len(shape) == 2 else None


def _gather(site: Site, operands: Sequence[Factors], shape: Sequence[int]) -> Factors | None:
    windows, places, axes = site.params["dimension_numbers"].offset_dims, iter(operands[1]), fresh(shape, known=0)
    if any(map(marked, operands[0])):
        return None
    return tuple(axis if i in windows else next(places) for i, axis in enumerate(axes))


def _joins(site: Site, operands: Sequence[Factors], shape: Sequence[int]) -> Factors | None:
    along = site.params["dimension"]
    rest = joined([own[:along] + own[along + 1 :] for own in operands])
    if rest is None or any(marked(own[along]) for own in operands):
        return None
    return (*rest[:along], (Factor(None, shape[along]),), *rest[along:])


RULES: dict[str, Rule] = {
    **dict.fromkeys("transpose reshape squeeze broadcast_in_dim slice".split(), _moves),
    **dict.fromkeys("dynamic_slice split top_k pad".split(), _parts),
    **{f"reduce_{name}": _reduces for name in "sum max min prod and or xor".split()},
    **dict.fromkeys(("argmax", "argmin"), _reduces),
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    **dict.fromkeys(("ragged_dot", "ragged_dot_general"), _ragged),
    "gather": _gather,
    "concatenate": _joins,
    **dict.fromkeys(("sort", "rev"), lambda site, operands, shape: None),
}
