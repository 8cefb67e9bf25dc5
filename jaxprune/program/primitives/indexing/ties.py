"""Operations that join entries, and pick and place them at positions known at run time: these stay."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune.program.evaluation import Narrow, Narrowing, sizes
from jaxprune.program.labelling import Axes, Call


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


def _pad(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Entries of padding get labels of their own: any number of them can be left."""
    out = []
    for labels, (low, high, inside), size in zip(ins[0], call.params["padding_config"], call.out_shape(), strict=True):
        if inside or low < 0 or high < 0:
            call.pin(labels, "padded between entries, or by a negative width")
            out.append(call.fixed(size, "padded between entries, or by a negative width"))
        else:
            ends = [call.labels.fresh(width + 1)[1:] for width in (low, high)]  # one label too many: size 1 is fixed
            out.append(np.concatenate([ends[0], labels, ends[1]]) if low or high else labels)
    return [tuple(out)]


def _run_pad(site: Narrow, values: Sequence[Any]) -> list[Any]:
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


def _run_dynamic_slice(site: Narrow, values: Sequence[Any]) -> list[Any]:
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
    for axis, size in enumerate(call.out_shape()):
        if axis not in numbers.offset_dims:
            out.append(next(batch))
            continue
        source = operand[next(whole)]
        out.append(source if source.size == size else call.fixed(size, "a window at positions known at run time"))
    return [tuple(out)]


def _run_gather(site: Narrow, values: Sequence[Any]) -> list[Any]:
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

NARROWINGS = {
    "concatenate": Narrowing(_concatenate),
    "stack": Narrowing(_stack),
    "pad": Narrowing(_pad, _run_pad),
    "dynamic_slice": Narrowing(_dynamic_slice, _run_dynamic_slice),
    "dynamic_update_slice": Narrowing(_dynamic_update_slice),
    "gather": Narrowing(_gather, _run_gather),
    **{name: Narrowing(_scatter) for name in SCATTERS},
}
