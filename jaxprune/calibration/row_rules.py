"""Where the axes of an array go in an operation: one function an operation, ``(equation, operands) -> result``.

A result gives the factors for the shape of each output, or None where the operation mixes them up. A new operation is a
row of :data:`RULES`; what is in no row works on each entry alone.
"""

from collections.abc import Callable, Sequence

from jaxprune.calibration.factors import Factor, Factors, fresh, moved
from jaxprune.program.jaxprs import Site

#: What a rule gives: for the shape of a result, its factors.
_Result = Callable[[tuple[int, ...]], Factors | None] | None


def by_entry(site: Site, operands: Sequence[Factors]) -> _Result:
    """Operations of each entry alone, or along axes without moving it: operands of one shape but for ones, scalars."""
    shape = site.out_shape()
    for own in (site.shape(i) for i in range(len(operands))):
        if own and not (len(own) == len(shape) and all(n in (1, size) for n, size in zip(own, shape, strict=True))):
            return None
    together = joined([factors for factors in operands if len(factors) == len(shape)])
    return lambda _: together


def joined(many: Sequence[Factors]) -> Factors | None:
    """What is known of one array from several of its shape."""
    axes = []
    for several in zip(*many, strict=True):
        known = [axis for axis in several if any(one.origin is not None for one in axis)]
        if any(axis != known[0] for axis in known[1:]):
            return None
        axes.append(known[0] if known else max(several, key=lambda axis: axis[0].size))
    return tuple(axes)


def _moves(site: Site, operands: Sequence[Factors]) -> _Result:
    return lambda shape: moved(operands[0], site.name, site.params, shape)


def _parts(site: Site, operands: Sequence[Factors]) -> _Result:
    return lambda shape: moved(operands[0], "slice", {}, shape)


def _reduces(site: Site, operands: Sequence[Factors]) -> _Result:
    gone, together = set(site.params["axes"]), joined(operands)
    return lambda _: together and tuple(axis for i, axis in enumerate(together) if i not in gone)


def _dot(site: Site, operands: Sequence[Factors]) -> _Result:
    (contracted, batch), both = site.params["dimension_numbers"], operands[:2]
    stacks = [tuple(own[i] for i in places) for own, places in zip(both, batch, strict=True)]
    free = [
        axis
        for own, gone, stack in zip(both, contracted, batch, strict=True)
        for i, axis in enumerate(own)
        if i not in (*gone, *stack)
    ]
    stack = joined(stacks)
    return None if stack is None else lambda _: (*stack, *free)


def _convolution(site: Site, operands: Sequence[Factors]) -> _Result:
    numbers = site.params["dimension_numbers"]
    axes = list(fresh(site.out_shape(), known=False))
    axes[numbers.out_spec[0]] = operands[0][numbers.lhs_spec[0]]
    kept = site.params["batch_group_count"] == 1
    return (lambda _: tuple(axes)) if kept else None


def _ragged(site: Site, operands: Sequence[Factors]) -> _Result:
    rank = len(site.out_shape())
    return (lambda _: (operands[0][0], fresh(site.out_shape(), known=False)[1])) if rank == 2 else None


def _gather(site: Site, operands: Sequence[Factors]) -> _Result:
    numbers = site.params["dimension_numbers"]
    if any(one.origin is not None for axis in operands[0] for one in axis):
        return None
    axes, places = list(fresh(site.out_shape(), known=False)), iter(operands[1])
    for i in range(len(axes)):
        if i not in numbers.offset_dims:
            axes[i] = next(places)
    return lambda _: tuple(axes)


def _joins(site: Site, operands: Sequence[Factors]) -> _Result:
    along = site.params["dimension"]
    if any(one.origin is not None for own in operands for one in own[along]):
        return None
    rest = joined([tuple(axis for i, axis in enumerate(own) if i != along) for own in operands])
    size = site.out_shape()[along]
    return lambda _: rest and (*rest[:along], (Factor(None, size),), *rest[along:])


RULES: dict[str, Callable[[Site, Sequence[Factors]], _Result]] = {
    **dict.fromkeys("transpose reshape squeeze expand_dims broadcast_in_dim slice".split(), _moves),
    **dict.fromkeys("dynamic_slice split top_k pad".split(), _parts),
    **{f"reduce_{name}": _reduces for name in "sum max min prod and or xor".split()},
    **dict.fromkeys(("argmax", "argmin"), _reduces),
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    **dict.fromkeys(("ragged_dot", "ragged_dot_general"), _ragged),
    "gather": _gather,
    "concatenate": _joins,
    **dict.fromkeys(("sort", "rev"), lambda site, operands: None),
}
