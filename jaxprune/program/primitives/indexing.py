"""Operations that join entries, and pick and place them at positions known at run time: these stay."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune.program.bounding import Step
from jaxprune.program.labels import Axes
from jaxprune.program.narrowing import Call, Narrow, Rule, sizes
from jaxprune.program.primitives.shapes import ALL
from jaxprune.program.range_arithmetic import negative
from jaxprune.program.ranges import ANYTHING, Range, Value, between, chain, choose, join, many, pick


def _tie_concatenate(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    along = call.params["dimension"]
    for other in ins[1:]:
        for axis, (left, right) in enumerate(zip(ins[0], other, strict=True)):
            if axis != along:
                call.labels.tie(left, right)
    joined = np.concatenate([axes[along] for axes in ins])
    return [tuple(joined if axis == along else labels for axis, labels in enumerate(ins[0]))]


def _tie_stack(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    call.tie_all([ins[0]] * len(ins), ins)
    along = call.params["axis"]
    return [(*ins[0][:along], call.fixed(len(ins), "stacked along this axis"), *ins[0][along:])]


def _tie_pad(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Entries of padding get labels of their own: any number of them can be left."""
    config = call.params["padding_config"]
    odd = [axis for axis, (low, high, inside) in enumerate(config) if inside or low < 0 or high < 0]
    out = list(call.whole(ins[0], odd, "padded between entries, or by a negative width"))
    for axis, (low, high, _) in enumerate(config):
        if axis not in odd and (low or high):
            ends = [call.labels.fresh(width + 1)[1:] for width in (low, high)]  # one label too many: size 1 is fixed
            out[axis] = np.concatenate([ends[0], out[axis], ends[1]])
    return [tuple(out)]


def _run_pad(site: Narrow, values: Sequence[Any]) -> list[Any]:
    config = []
    for after, (low, high, inside) in zip(site.outs[0], site.params["padding_config"], strict=True):
        ends = after[: max(low, 0)], after[after.size - max(high, 0) :]  # of negative widths, all axes stay
        config.append((*(min(n, 0) + np.count_nonzero(own) for n, own in zip((low, high), ends, strict=True)), inside))
    return site.bind(values, padding_config=tuple(config))


def _tie_dynamic_slice(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    parts = [axis for axis, size in enumerate(call.out_shape()) if ins[0][axis].size != size]
    return [call.whole(ins[0], parts, "sliced at a position known at run time")]


def _write(call: Call, labels: np.ndarray, update: np.ndarray, where: str) -> None:
    """Ties an axis of an operand to that of what is written into it; both stay if that is a part."""
    if update.size == labels.size:
        call.labels.tie(labels, update)
        return
    call.pin(f"written at {where} known at run time", labels, update)


def _tie_dynamic_update_slice(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    for labels, update in zip(ins[0], ins[1], strict=True):
        _write(call, labels, update, "a position")
    return [ins[0]]


def _windows(rank: int, numbers: Any) -> dict[int, int]:
    """For each axis of an operand along which more than one entry is picked or written, that of these entries."""
    picked = hasattr(numbers, "offset_dims")
    windows = numbers.offset_dims if picked else numbers.update_window_dims
    dropped = {*(numbers.collapsed_slice_dims if picked else numbers.inserted_window_dims)}
    kept = [axis for axis in range(rank) if axis not in dropped.union(numbers.operand_batching_dims)]
    return dict(zip(kept, windows, strict=True))


def _tie_positions(call: Call, operand: Axes, indices: Axes, batching: Sequence[int]) -> None:
    """Each entry along axes of a batch has positions of its own."""
    for axis, other in zip(call.params["dimension_numbers"].operand_batching_dims, batching, strict=True):
        call.labels.tie(operand[axis], indices[other])
    call.pin("the coordinates of positions", indices[-1])


def _tie_gather(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Axes that are taken whole pass on, wherever that begins; others stay; those of the indices come in between."""
    operand, indices = ins
    numbers = call.params["dimension_numbers"]
    for axis, (labels, taken) in enumerate(zip(operand, call.params["slice_sizes"], strict=True)):
        if axis not in numbers.operand_batching_dims and taken != labels.size:
            call.pin("indexed by positions known at run time", labels)
    _tie_positions(call, operand, indices, numbers.start_indices_batching_dims)
    sources = {axis: operand[i] for i, axis in _windows(len(operand), numbers).items()}
    batch, out = iter(indices[:-1]), []
    for axis, size in enumerate(call.out_shape()):
        labels = sources[axis] if axis in sources else next(batch)
        whole = labels.size == size
        out.append(labels if whole else call.fixed(size, "a window at positions known at run time"))
    return [tuple(out)]


def _run_gather(site: Narrow, values: Sequence[Any]) -> list[Any]:
    sides = zip(site.ins[0], sizes(site.ins[0]), site.params["slice_sizes"], strict=True)
    return site.bind(values, slice_sizes=tuple(left if size == kept.size else size for kept, left, size in sides))


def _tie_scatter(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Axes of the operand that are written whole, wherever that begins, are tied to the updates'; others stay."""
    operand, indices, updates = ins
    numbers = call.params["dimension_numbers"]
    windows, nothing = _windows(len(operand), numbers), np.zeros(0, np.int64)
    for axis, labels in enumerate(operand):
        if axis not in numbers.operand_batching_dims:
            _write(call, labels, updates[windows[axis]] if axis in windows else nothing, "positions")
    _tie_positions(call, operand, indices, numbers.scatter_indices_batching_dims)
    rest = [labels for axis, labels in enumerate(updates) if axis not in numbers.update_window_dims]
    call.tie_all([indices[:-1]], [tuple(rest)])
    return [operand]


def _bound_concatenate(step: Step, values: Sequence[Value]) -> list[Value]:
    along = step.params["dimension"]
    ends = np.cumsum([step.shape(i)[along] for i in range(len(values))])

    def at(axis: int, gone: np.ndarray) -> Range:
        flags = np.split(gone, ends[:-1]) if axis == along else [gone] * len(values)
        parts = (value.along(axis, own) for value, own in zip(values, flags, strict=True))
        return (chain if axis == along else join)(*parts)

    return [step.value(join(*(value.rest for value in values)), at, values)]


def _bound_stack(step: Step, values: Sequence[Value]) -> list[Value]:
    def at(axis: int, gone: np.ndarray) -> Range:
        return join(*(value.along(axis - (axis > step.params["axis"]), gone) for value in values))

    return [step.value(join(*(value.rest for value in values)), at, values)]


def _bound_pad(step: Step, values: Sequence[Value]) -> list[Value]:
    value, fill = values[0], values[1].anywhere()

    def at(axis: int, gone: np.ndarray) -> Range:
        low, high, inside = step.params["padding_config"][axis]
        own = value.along(axis, gone[low : gone.size - high] if not inside else gone)
        return chain(many(fill, low), join(own, fill), many(fill, high))

    return [step.value(join(value.rest, fill), at, values)]


def _bound_gather(step: Step, values: Sequence[Value]) -> list[Value]:
    """Axes of the operand that are taken whole; positions lie within it, unless a number is written for others."""
    numbers = step.params["dimension_numbers"]
    sources = {axis: i for i, axis in _windows(len(step.shape(0)), numbers).items()}
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


def _bound_scatter(step: Step, values: Sequence[Value]) -> list[Value]:
    """What is written along axes that lose entries is a sum over them; else it is joined with what was there."""
    operand, _, updates = values
    numbers = step.params["dimension_numbers"]
    for axis, gone in updates.gone.items():
        if axis not in numbers.update_window_dims and not numbers.operand_batching_dims:
            if step.name not in ("scatter-add", "scatter-sub") or not pick(updates.axes[axis], gone).zero.all():
                step.fault("removed entries are written to positions known at run time")
    windows = {k: i for i, k in _windows(len(step.shape(0)), numbers).items() if k in updates.gone}
    axes = {i: updates.axes[k] for k, i in windows.items()}
    moved = Value(updates.rest, axes, {i: updates.gone[k] for k, i in windows.items()})
    return step.each([operand, moved], _WRITTEN.get(step.name, join))


def _sums(a: Range, b: Range) -> Range:
    """A number of additions that is not known: only of zeros the result is."""
    low, high = np.where(b.low < 0, -np.inf, a.low), np.where(b.high > 0, np.inf, a.high)
    return Range(low, high, a.nan | b.nan | (a.infinite & b.infinite), a.infinite | b.infinite)


def _products(a: Range, b: Range) -> Range:
    zero, bad = a.zero & b.finite, ~(a.finite & b.finite)
    return Range(np.where(zero, 0, -np.inf), np.where(zero, 0, np.inf), bad, bad)


_WRITTEN = {"scatter-add": _sums, "scatter-sub": lambda a, b: _sums(a, negative(b)), "scatter-mul": _products}
_SCATTERS = "scatter scatter-add scatter-sub scatter-mul scatter-min scatter-max".split()

RULES = {
    "concatenate": Rule(_tie_concatenate, bound=_bound_concatenate),
    "stack": Rule(_tie_stack, bound=_bound_stack),
    "pad": Rule(_tie_pad, _run_pad, _bound_pad),
    "dynamic_slice": Rule(
        _tie_dynamic_slice,
        lambda site, values: site.bind(values, slice_sizes=sizes(site.outs[0])),
        lambda step, values: step.each(values[:1], lambda a: a),
    ),
    "dynamic_update_slice": Rule(_tie_dynamic_update_slice, bound=lambda step, values: step.each(values[:2], join)),
    "gather": Rule(_tie_gather, _run_gather, _bound_gather),
    **{name: Rule(_tie_scatter, bound=_bound_scatter) for name in _SCATTERS},
}
