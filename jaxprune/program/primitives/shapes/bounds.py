"""What is known of results of operations that move, repeat, pick and join entries."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxprune.program.primitives.elementwise.bounds import each
from jaxprune.program.primitives.indexing.ties import SCATTERS
from jaxprune.program.primitives.range_arithmetic import negative
from jaxprune.program.primitives.ranges import ANYTHING, ZERO, Range, Rule, Step, Value, choose, hull, join, many, pick
from jaxprune.program.primitives.shapes import ties as shapes


def place(step: Step, value: Value, sources: Mapping[int, int], result: int = 0, index: object = None) -> Value:
    """A result each of whose axes is one of the operand's, or new: entries along new ones may be any.

    Args:
      step: the equation.
      value: what is known of the operand.
      sources: for an axis of the result, the axis of the operand.
      result: which of the results.
      index: of an axis that is taken in part: ``(axis of the result, indices)``.
    """
    axes = {}
    for axis, gone in step.outs[result].items():
        found = value.axes.get(sources.get(axis, -1))
        if found is not None and isinstance(index, tuple) and index[0] == axis:
            found = pick(found, index[1])
        axes[axis] = found if found is not None else choose(gone, value.anywhere(), value.rest)
    return step.value(value.rest, axes, [value], result)


def _moved(step: Step, value: Value, sources: Mapping[int, int]) -> list[Value]:
    """Also keeps what is known of maxima."""
    found = place(step, value, sources)
    if value.largest is not None:
        of, over, before = value.largest
        rank, shape = step.equation.outvars[0].aval.ndim, step.equation.outvars[0].aval.shape
        after = [
            before[sources[i]] if i in sources and step.shape(0)[sources[i]] == shape[i] else None for i in range(rank)
        ]
        found.largest = (of, over, tuple(after))
    return [found]


def _broadcast(step: Step, values: Sequence[Value]) -> list[Value]:
    shape, sources = step.shape(0), {}
    for source, axis in enumerate(step.params["broadcast_dimensions"]):
        if shape[source] == step.params["shape"][axis]:
            sources[axis] = source
    return _moved(step, values[0], sources)


def _transpose(step: Step, values: Sequence[Value]) -> list[Value]:
    return _moved(step, values[0], dict(enumerate(step.params["permutation"])))


def _squeeze(step: Step, values: Sequence[Value]) -> list[Value]:
    left = [axis for axis in range(len(step.shape(0))) if axis not in step.params["dimensions"]]
    return _moved(step, values[0], dict(enumerate(left)))


def _reverse(step: Step, values: Sequence[Value]) -> list[Value]:
    (value,) = values
    axes = {i: pick(a, slice(None, None, -1)) if i in step.params["dimensions"] else a for i, a in value.axes.items()}
    return [step.value(value.rest, {i: axes.get(i, value.rest) for i in step.outs[0]}, values)]


def _reshape(step: Step, values: Sequence[Value]) -> list[Value]:
    """Runs of axes are merged and split again: entry by entry, along the axes that lose some."""
    (value,) = values
    before, after = step.shape(0), step.equation.outvars[0].aval.shape
    if 0 in after or step.params.get("dimensions") is not None:
        return [step.value(value.anywhere(), {i: many(value.anywhere(), after[i]) for i in step.outs[0]}, values)]
    sources, axes = {}, {}
    for old, new in shapes.runs(before, after):
        if len(old) == len(new) == 1:
            sources[new[0]] = old[0]
        elif any(axis in step.outs[0] for axis in new):
            flat = _flat(value, old, before)
            for k, axis in enumerate(new):
                if axis in step.outs[0]:
                    grid = Range(*(part.reshape([after[i] for i in new]) for part in flat))
                    axes[axis] = hull(grid, tuple(i for i in range(len(new)) if i != k))
    (found,) = _moved(step, value, sources)
    exact = step.value(value.rest, {i: axes.get(i, found.axes[i]) for i in step.outs[0]}, values)
    exact.largest = found.largest
    return [exact]


def _flat(value: Value, axes: Sequence[int], shape: Sequence[int]) -> Range:
    """A range for each entry of several axes, merged."""
    grid = [shape[axis] for axis in axes]
    found = many(value.rest, math.prod(grid))
    for k, axis in enumerate(axes):
        if axis in value.axes:
            wide = [-1 if i == k else 1 for i in range(len(grid))]
            own = Range(*(np.broadcast_to(part.reshape(wide), grid).ravel() for part in value.axes[axis]))
            gone = np.broadcast_to(value.gone[axis].reshape(wide), grid).ravel()
            found = choose(gone, own, found)
    return found


def _slice(step: Step, values: Sequence[Value]) -> list[Value]:
    (value,), params = values, step.params
    strides = params["strides"] or [1] * len(params["start_indices"])
    parts = [slice(*ends) for ends in zip(params["start_indices"], params["limit_indices"], strides, strict=True)]
    axes = {i: pick(value.axes[i], parts[i]) for i in step.outs[0]}
    return [step.value(value.rest, axes, values)]


def _split(step: Step, values: Sequence[Value]) -> list[Value]:
    (value,), axis = values, step.params["axis"]
    ends = np.cumsum([0, *step.params["sizes"]])
    same, found = {i: i for i in range(len(step.shape(0)))}, []
    for result in range(len(step.outs)):
        index = (axis, slice(ends[result], ends[result + 1]))
        found.append(place(step, value, same, result, index))
    return found


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


def _unstack(step: Step, values: Sequence[Value]) -> list[Value]:
    along, rank = step.params["axis"], len(step.shape(0)) - 1
    sources = {i: i + (i >= along) for i in range(rank)}
    return [place(step, values[0], sources, result) for result in range(len(step.outs))]


def _tile(step: Step, values: Sequence[Value]) -> list[Value]:
    (value,), reps = values, step.params["reps"]
    found = place(step, value, {})
    for axis in found.axes.keys() & value.axes.keys():
        found.axes[axis] = pick(value.axes[axis], np.tile(np.arange(step.shape(0)[axis]), reps[axis]))
    return [found]


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
    return [place(step, values[0], {i: i for i in range(len(step.shape(0)))})]


def _dynamic_update(step: Step, values: Sequence[Value]) -> list[Value]:
    return each(step, values[:2], join)


def _gather(step: Step, values: Sequence[Value]) -> list[Value]:
    """Axes of the operand that are taken whole; positions lie within it, unless a number is written for others."""
    numbers = step.params["dimension_numbers"]
    dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    whole = [axis for axis in range(len(step.shape(0))) if axis not in dropped]
    sources = dict(zip(numbers.offset_dims, whole, strict=True))
    batch = [axis for axis in range(step.equation.outvars[0].aval.ndim) if axis not in numbers.offset_dims]
    for axis, other in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True):
        sources[batch[other]] = axis
    found = place(step, values[0], sources)
    for axis in found.gone.keys() - sources.keys():  # positions that are gone may lie anywhere
        found.axes[axis] = choose(found.gone[axis], ANYTHING, found.axes[axis])
    fill = step.params.get("fill_value")
    if fill is None or np.isnan(fill):
        return [found]
    written = Value(join(ZERO, Range(*(np.asarray(x) for x in (fill, fill, False, False)))))
    return each(step, [found, written], join)


def _scatter(step: Step, values: Sequence[Value]) -> list[Value]:
    """What is written along axes that lose entries is a sum over them; else it is joined with what was there."""
    operand, _, updates = values
    numbers, name = step.params["dimension_numbers"], step.equation.primitive.name
    for axis, gone in updates.gone.items():
        batched = bool(numbers.operand_batching_dims)
        if axis not in numbers.update_window_dims and not batched:
            if name not in ("scatter-add", "scatter-sub") or not pick(updates.axes[axis], gone).zero.all():
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
    return each(step, [operand, moved], _WRITTEN.get(name, join))


def _sums(a: Range, b: Range) -> Range:
    """A number of additions that is not known: only of zeros the result is."""
    low, high = np.where(b.low < 0, -np.inf, a.low), np.where(b.high > 0, np.inf, a.high)
    return Range(low, high, a.nan | b.nan | (a.infinite & b.infinite), a.infinite | b.infinite)


def _products(a: Range, b: Range) -> Range:
    zero, bad = a.zero & b.finite, ~(a.finite & b.finite)
    return Range(np.where(zero, 0, -np.inf), np.where(zero, 0, np.inf), bad, bad)


_WRITTEN = {"scatter-add": _sums, "scatter-sub": lambda a, b: _sums(a, negative(b)), "scatter-mul": _products}

RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "rev": _reverse,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "concatenate": _concatenate,
    "stack": _stack,
    "unstack": _unstack,
    "tile": _tile,
    "pad": _pad,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update,
    "gather": _gather,
    **{name: _scatter for name in SCATTERS},
}
