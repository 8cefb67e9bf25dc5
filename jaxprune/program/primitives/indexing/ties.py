"""Operations that pick, place and join entries by position: what is picked keeps its labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune.program.labels import Axes
from jaxprune.program.primitives.rules import Rule, Site, sizes, take
from jaxprune.program.visitor import Call


def _picked(call: Call, labels: np.ndarray) -> np.ndarray:
    """Labels of a part of an axis; a part of a single entry cannot get smaller."""
    if labels.size == 1:
        call.pin(labels, "picks this entry alone")
        return np.zeros(1, np.int64)
    return labels


def _slice(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    return [tuple(_picked(call, labels[part]) for labels, part in zip(ins[0], _parts(call.params), strict=True))]


def _parts(params: dict[str, Any]) -> list[slice]:
    strides = params["strides"] or [1] * len(params["start_indices"])
    return [slice(*ends) for ends in zip(params["start_indices"], params["limit_indices"], strides, strict=True)]


def _run_slice(site: Site, values: Sequence[Any]) -> list[Any]:
    (value,) = values
    for axis, (before, after) in enumerate(zip(site.ins[0], site.outs[0], strict=True)):
        part = np.zeros(before.size, bool)
        part[np.arange(before.size)[_parts(site.params)[axis]][after]] = True
        if not part.all():
            value = take(value, np.flatnonzero(part[before]), axis)
    return [value]


def _split(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    axis, ends = call.params["axis"], np.cumsum(call.params["sizes"])[:-1]
    parts = np.split(ins[0][axis], ends)
    return [(*ins[0][:axis], _picked(call, part), *ins[0][axis + 1 :]) for part in parts]


def _run_split(site: Site, values: Sequence[Any]) -> list[Any]:
    axis = site.params["axis"]
    return site.bind(values, sizes=tuple(sizes(kept)[axis] for kept in site.outs))


def _concatenate(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    along = call.params["dimension"]
    for other in ins[1:]:
        for axis, (left, right) in enumerate(zip(ins[0], other, strict=True)):
            if axis != along:
                call.labels.tie(left, right)
    joined = np.concatenate([axes[along] for axes in ins])
    return [tuple(joined if axis == along else labels for axis, labels in enumerate(ins[0]))]


def _stack(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    for other in ins[1:]:
        for left, right in zip(ins[0], other, strict=True):
            call.labels.tie(left, right)
    along = call.params["axis"]
    return [(*ins[0][:along], call.fixed(len(ins), "stacked along this axis"), *ins[0][along:])]


def _unstack(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    along = call.params["axis"]
    call.pin(ins[0][along], "picks each of these entries alone")
    return [(*ins[0][:along], *ins[0][along + 1 :])] * len(call.shapes)


def _pad(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Entries of padding get labels of their own: any number of them can be left."""
    out = []
    for labels, (low, high, inside), size in zip(ins[0], call.params["padding_config"], call.shapes[0], strict=True):
        if inside or low < 0 or high < 0:
            call.pin(labels, "padded between entries, or by a negative width")
            out.append(call.fixed(size, "padded between entries, or by a negative width"))
        else:
            ends = [call.labels.fresh(width + 1)[1:] for width in (low, high)]  # one label too many: size 1 is fixed
            out.append(np.concatenate([ends[0], labels, ends[1]]) if low or high else labels)
    return [tuple(out)]


def _run_pad(site: Site, values: Sequence[Any]) -> list[Any]:
    config = []
    for after, (low, high, inside) in zip(site.outs[0], site.params["padding_config"], strict=True):
        ends = (int(np.count_nonzero(after[:low])), int(np.count_nonzero(after[after.size - high :])))
        config.append((low, high, inside) if inside or low < 0 or high < 0 else (*ends, 0))
    return site.bind(values, padding_config=tuple(config))


def _dynamic_slice(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    out = []
    for labels, size in zip(ins[0], call.params["slice_sizes"], strict=True):
        if labels.size == size:
            out.append(labels)
        else:
            call.pin(labels, "sliced at a position known at run time")
            out.append(call.fixed(size, "sliced at a position known at run time"))
    return [tuple(out)]


def _run_dynamic_slice(site: Site, values: Sequence[Any]) -> list[Any]:
    return site.bind(values, slice_sizes=sizes(site.outs[0]))


def _dynamic_update_slice(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    for labels, update in zip(ins[0], ins[1], strict=True):
        if labels.size == update.size:
            call.labels.tie(labels, update)
        else:
            call.pin(labels, "written at a position known at run time")
            call.pin(update, "written at a position known at run time")
    return [ins[0]]


def _gather(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Axes that are taken whole pass on; those that are indexed stay; those of the indices come in between."""
    operand, indices = ins
    numbers, taken = call.params["dimension_numbers"], call.params["slice_sizes"]
    dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    for axis in {*range(len(operand))} - {*numbers.operand_batching_dims}:
        if axis in numbers.start_index_map or taken[axis] != operand[axis].size:
            call.pin(operand[axis], "indexed by positions known at run time")
    for axis, other in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True):
        call.labels.tie(operand[axis], indices[other])
    call.pin(indices[-1], "the coordinates of positions")
    whole = iter([axis for axis in range(len(operand)) if axis not in dropped])
    batch, out = iter(indices[:-1]), []
    for axis, size in enumerate(call.shapes[0]):
        if axis not in numbers.offset_dims:
            out.append(next(batch))
            continue
        source = operand[next(whole)]
        out.append(source if source.size == size else call.fixed(size, "a window at positions known at run time"))
    return [tuple(out)]


def _run_gather(site: Site, values: Sequence[Any]) -> list[Any]:
    whole = [
        int(np.count_nonzero(kept)) if size == kept.size else size
        for kept, size in zip(site.ins[0], site.params["slice_sizes"], strict=True)
    ]
    return site.bind(values, slice_sizes=tuple(whole))


def _scatter(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Axes of the operand that are written whole are tied to the updates'; those that are indexed stay."""
    operand, indices, updates = ins
    numbers = call.params["dimension_numbers"]
    windows = iter(numbers.update_window_dims)
    for axis, labels in enumerate(operand):
        if axis in numbers.operand_batching_dims:
            continue
        update = None if axis in numbers.inserted_window_dims else updates[next(windows)]
        if update is not None and update.size == labels.size and axis not in numbers.scatter_dims_to_operand_dims:
            call.labels.tie(labels, update)
            continue
        for side in (labels, update):
            if side is not None:
                call.pin(side, "written at positions known at run time")
    for axis, other in zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True):
        call.labels.tie(operand[axis], indices[other])
    call.pin(indices[-1], "the coordinates of positions")
    rest = [axis for axis in range(len(updates)) if axis not in numbers.update_window_dims]
    for labels, axis in zip(indices[:-1], rest, strict=True):
        call.labels.tie(labels, updates[axis])
    return [operand]


SCATTERS = "scatter scatter-add scatter-sub scatter-mul scatter-min scatter-max".split()

RULES = {
    "slice": Rule(_slice, _run_slice),
    "split": Rule(_split, _run_split),
    "concatenate": Rule(_concatenate),
    "stack": Rule(_stack),
    "unstack": Rule(_unstack),
    "pad": Rule(_pad, _run_pad),
    "dynamic_slice": Rule(_dynamic_slice, _run_dynamic_slice),
    "dynamic_update_slice": Rule(_dynamic_update_slice),
    "gather": Rule(_gather, _run_gather),
    **{name: Rule(_scatter) for name in SCATTERS},
}
