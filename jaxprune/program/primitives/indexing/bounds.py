"""What is known of results of operations that join, pick and place entries."""

from collections.abc import Sequence

import numpy as np

from jaxprune.program.bounding import Bound, Step, Value
from jaxprune.program.primitives.indexing.ties import SCATTERS
from jaxprune.program.primitives.shapes.moves import ALL, same
from jaxprune.program.range_arithmetic import negative
from jaxprune.program.ranges import ANYTHING, Range, between, choose, join, many, pick


def _concatenate(step: Step, values: Sequence[Value]) -> list[Value]:
    along, axes = step.params["dimension"], {}
    for axis, gone in step.outs[0].items():
        if axis != along:
            axes[axis] = join(*(value.along(axis, gone) for value in values))
            continue
        sizes = [step.shape(i)[axis] for i in range(len(values))]
        flags = np.split(gone, np.cumsum(sizes)[:-1])
        parts = [value.along(axis, own) for value, own in zip(values, flags, strict=True)]
        axes[axis] = Range(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    return [step.value(join(*(value.rest for value in values)), axes, values)]


def _stack(step: Step, values: Sequence[Value]) -> list[Value]:
    along = step.params["axis"]
    axes = {i: join(*(value.along(i - (i > along), gone) for value in values)) for i, gone in step.outs[0].items()}
    return [step.value(join(*(value.rest for value in values)), axes, values)]


def _pad(step: Step, values: Sequence[Value]) -> list[Value]:
    value, filler = values
    axes, fill = {}, filler.anywhere()
    for axis, gone in step.outs[0].items():
        low, high, inside = step.params["padding_config"][axis]
        own = value.along(axis, gone[low : gone.size - high] if not inside else gone)
        within = join(own, fill)
        ends = [many(fill, low), many(fill, high)]
        axes[axis] = Range(*(np.concatenate(part) for part in zip(ends[0], within, ends[1], strict=True)))
    return [step.value(join(value.rest, fill), axes, values)]


def _dynamic_slice(step: Step, values: Sequence[Value]) -> list[Value]:
    return [step.moved(values[0], same(step))]


def _dynamic_update(step: Step, values: Sequence[Value]) -> list[Value]:
    return step.each(values[:2], join)


def _gather(step: Step, values: Sequence[Value]) -> list[Value]:
    """Axes of the operand that are taken whole; positions lie within it, unless a number is written for others."""
    numbers = step.params["dimension_numbers"]
    dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    whole = [axis for axis in range(len(step.shape(0))) if axis not in dropped]
    sources = dict(zip(numbers.offset_dims, whole, strict=True))
    batch = [axis for axis in range(len(step.out_shape())) if axis not in numbers.offset_dims]
    for axis, other in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True):
        sources[batch[other]] = axis
    found = step.moved(values[0], [(sources.get(axis), ALL) for axis in range(len(step.out_shape()))])
    for axis in found.gone.keys() - sources.keys():  # positions that are gone may lie anywhere
        found.axes[axis] = choose(found.gone[axis], ANYTHING, found.axes[axis])
    fill = step.params.get("fill_value")
    if fill is None or np.isnan(fill):
        return [found]
    return step.each([found, Value(between(min(fill, 0.0), max(fill, 0.0)))], join)


def _scatter(step: Step, values: Sequence[Value]) -> list[Value]:
    """What is written along axes that lose entries is a sum over them; else it is joined with what was there."""
    operand, _, updates = values
    numbers = step.params["dimension_numbers"]
    for axis, gone in updates.gone.items():
        if axis not in numbers.update_window_dims and not numbers.operand_batching_dims:
            if step.name not in ("scatter-add", "scatter-sub") or not pick(updates.axes[axis], gone).zero.all():
                step.fault("removed entries are written to positions known at run time")
    windows = [
        i for i in range(len(step.shape(0))) if i not in {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    ]
    sources = dict(zip(windows, numbers.update_window_dims, strict=True))
    moved = Value(
        updates.rest,
        {i: updates.axes[k] for i, k in sources.items() if k in updates.axes},
        {i: updates.gone[k] for i, k in sources.items() if k in updates.gone},
    )
    return step.each([operand, moved], _WRITTEN.get(step.name, join))


def _sums(a: Range, b: Range) -> Range:
    """A number of additions that is not known: only of zeros the result is."""
    low, high = np.where(b.low < 0, -np.inf, a.low), np.where(b.high > 0, np.inf, a.high)
    return Range(low, high, a.nan | b.nan | (a.infinite & b.infinite), a.infinite | b.infinite)


def _products(a: Range, b: Range) -> Range:
    zero, bad = a.zero & b.finite, ~(a.finite & b.finite)
    return Range(np.where(zero, 0, -np.inf), np.where(zero, 0, np.inf), bad, bad)


_WRITTEN = {"scatter-add": _sums, "scatter-sub": lambda a, b: _sums(a, negative(b)), "scatter-mul": _products}

BOUNDS: dict[str, Bound] = {
    "concatenate": _concatenate,
    "stack": _stack,
    "pad": _pad,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update,
    "gather": _gather,
    **{name: _scatter for name in SCATTERS},
}
