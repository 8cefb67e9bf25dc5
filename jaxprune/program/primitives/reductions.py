"""Operations that combine entries along axes. Sums and extremes lose an axis; windows and orders need theirs whole."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxprune.program import range_arithmetic as on
from jaxprune.program.bounding import Bound, Step
from jaxprune.program.evaluation import Narrowing
from jaxprune.program.labelling import Axes, Call
from jaxprune.program.primitives.arithmetic import finite, linear
from jaxprune.program.primitives.shapes import ALL, same
from jaxprune.program.ranges import UNBOUNDED, Range, Value, between, hull, join, not_zero, pick


def _tie_reduce(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """What is left of the reduced axis is reduced: whether that is the same is for the certificate to say."""
    return [_without(ins[0], call.params["axes"])]


def _tie_arg(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    for axis in call.params["axes"]:
        call.pin(ins[0][axis], "the result is a position along this axis")
    return [_without(ins[0], call.params["axes"])]


def _without(axes: Axes, gone: Sequence[int]) -> Axes:
    return tuple(labels for axis, labels in enumerate(axes) if axis not in gone)


def _tie_cumulative(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    call.pin(ins[0][call.params["axis"]], "combined in order along this axis")
    return [ins[0]]


def _tie_sort(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    for axes in ins:
        for axis, labels in enumerate(axes):
            call.labels.tie(ins[0][axis], labels)
    call.pin(ins[0][call.params["dimension"]], "sorted along this axis")
    return list(ins)


def _tie_top_k(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    ordered = call.params.get("axis", len(ins[0]) - 1)
    call.pin(ins[0][ordered], "sorted along this axis")
    top = call.fixed(call.out_shape()[ordered], "sorted along this axis")
    return [tuple(top if axis == ordered else labels for axis, labels in enumerate(ins[0]))] * 2


def _tie_window(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Axes on which the window is a single entry, moved by one, pass on; the others stay."""
    params, out = call.params, []
    for axis, labels in enumerate(ins[0]):
        moves = (params["window_dimensions"][axis], params["window_strides"][axis], *params["padding"][axis])
        dilated = [params[name][axis] for name in ("base_dilation", "window_dilation") if params.get(name)]
        if moves == (1, 1, 0, 0) and all(width == 1 for width in dilated):
            out.append(labels)
        else:
            call.pin(labels, "combined in windows along this axis")
            out.append(call.fixed(call.out_shape()[axis], "combined in windows along this axis"))
    return [tuple(out)]


def _tie_transform(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    last = len(call.params["fft_lengths"])
    for labels in ins[0][-last:]:
        call.pin(labels, "a Fourier transform along this axis")
    kept = len(ins[0]) - last
    ends = [call.fixed(size, "a Fourier transform along this axis") for size in call.out_shape()[kept:]]
    return [(*ins[0][:kept], *ends)]


NARROWINGS = {
    **{name: Narrowing(_tie_reduce) for name in ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod")},
    **{name: Narrowing(_tie_reduce) for name in ("reduce_and", "reduce_or", "reduce_xor")},
    **{name: Narrowing(_tie_arg) for name in ("argmax", "argmin")},
    **{name: Narrowing(_tie_cumulative) for name in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")},
    **{name: Narrowing(_tie_window) for name in ("reduce_window_sum", "reduce_window_max", "reduce_window_min")},
    "sort": Narrowing(_tie_sort),
    "top_k": Narrowing(_tie_top_k),
    "fft": Narrowing(_tie_transform),
}


def _left(step: Step, value: Value, axes: Sequence[int]) -> tuple[int, int]:
    """How many entries are combined: those that stay, and all."""
    shape = step.shape(0)
    kept = math.prod(int(np.count_nonzero(~value.gone[i])) if i in value.gone else shape[i] for i in axes)
    return kept, math.prod(shape[i] for i in axes)


def _reduced(step: Step, value: Value, function: Callable[[Range], Range]) -> Value:
    """The result of a reduction, of which each entry combines entries of one range.

    What goes along reduced axes contributes nothing, which has been seen to: the others remain.
    """
    left = _others(step)
    axes = {axis: function(value.axes[left[axis]]) for axis in step.outs[0]}
    return step.value(function(value.rest), axes, [value])


def _others(step: Step) -> list[int]:
    """The axes that are not reduced."""
    return [axis for axis in range(len(step.shape(0))) if axis not in step.params["axes"]]


def _terms(terms: Range) -> Range:
    """What results are one of."""
    return terms


def _bound_same(step: Step, values: Sequence[Value]) -> list[Value]:
    return step.each(values, _terms)


def _bound_sum(step: Step, values: Sequence[Value]) -> list[Value]:
    (value,), axes = values, step.params["axes"]
    for axis in axes:
        if axis in value.gone and not (removed := pick(value.axes[axis], value.gone[axis])).zero.all():
            step.fault(f"adds up what is removed; its entries {not_zero(removed, value.cause)}")
    fewest, most = _left(step, value, axes)
    peak = value.peak[1] if value.peak and set(value.peak[0]) <= set(axes) else -np.inf

    def summed(terms: Range) -> Range:
        low, high, nan, infinite = on.total(terms, fewest, most)
        return Range(np.where(terms.low >= 0, np.maximum(low, min(peak * 0.98, peak)), low), high, nan, infinite)

    return [_reduced(step, value, summed)]


def _bound_extreme(flip: Callable[[Range], Range]) -> Bound:
    """A maximum; with ``flip`` a minimum. Removed entries must be below one that stays, or below everything."""

    def rule(step: Step, values: Sequence[Value]) -> list[Value]:
        (value,), axes = values, step.params["axes"]
        stays = all(not value.gone[i].all() for i in axes if i in value.gone)
        for axis in axes:
            if axis not in value.gone:
                continue
            gone, found = value.gone[axis], flip(value.axes[axis])
            removed, kept = hull(pick(found, gone)), pick(found, ~gone)
            below = removed.high == -np.inf and bool(removed.infinite)
            if stays and not (kept.nan.any() or kept.infinite.any()):
                below |= removed.high <= kept.low.max() and not removed.infinite
            if removed.nan or not below:
                step.fault("an extreme over entries of which some are removed; these may be the extreme ones")
        (found,) = [_reduced(step, value, _terms)]
        if step.name == "reduce_max":
            found.largest = (value, tuple(axes), tuple(_others(step)))
            if not value.is_finite() and value.finite_at is not None and _everywhere(step, value.finite_at, axes):
                found.rest, found.axes = _bounded(found.rest), {i: _bounded(a) for i, a in found.axes.items()}
        return [found]

    return rule


def _everywhere(step: Step, finite_at: Callable[[], Any], axes: Sequence[int]) -> bool:
    """Whether some entry along the axes is finite for sure, wherever along the others."""
    return bool(np.any(np.broadcast_to(finite_at(), step.shape(0)), axis=tuple(axes)).all())


def _bounded(found: Range) -> Range:
    """A maximum of entries of which one is finite and none is more than that."""
    return found._replace(infinite=found.infinite & (found.high == np.inf))


def _bound_neutral(number: float, function: Callable[[Range], Range]) -> Bound:
    """A reduction to which entries of one number contribute nothing."""

    def rule(step: Step, values: Sequence[Value]) -> list[Value]:
        (value,) = values
        for axis in step.params["axes"]:
            if axis in value.gone:
                low, high, nan, infinite = pick(value.axes[axis], value.gone[axis])
                if not np.all((low == number) & (high == number) & ~nan & ~infinite):
                    step.fault(f"combines what is removed; its entries are not {number:g} for sure")
        return [_reduced(step, value, function)]

    return rule


def _bound_running(step: Step, values: Sequence[Value]) -> list[Value]:
    """Running sums, along an axis that stays whole."""
    size = step.shape(0)[step.params["axis"]]
    return step.each(values, lambda terms: on.total(terms, 1, max(size, 1)))


def _bound_ordered(step: Step, values: Sequence[Value]) -> list[Value]:
    """Sorted values are the same ones in another order."""
    return [step.moved(value, same(step), result) for result, value in enumerate(values)]


def _bound_top_k(step: Step, values: Sequence[Value]) -> list[Value]:
    positions = Value(between(0.0, np.inf))
    return [step.moved(values[0], same(step)), step.moved(positions, [(None, ALL)] * len(step.shape(0)), 1)]


def _bound_position(step: Step, values: Sequence[Value]) -> list[Value]:
    size = math.prod(step.shape(0)[i] for i in step.params["axes"])
    return [step.moved(Value(between(0.0, max(size - 1, 0))), [(None, ALL)] * len(step.out_shape()))]


def _bound_window_sum(step: Step, values: Sequence[Value]) -> list[Value]:
    return step.each(values, lambda terms: on.total(terms, 0, math.prod(step.params["window_dimensions"])))


def _bound_window_extreme(neutral: float) -> Bound:
    """Entries of padding are neutral; a window may see nothing else if the padding is as wide."""

    def rule(step: Step, values: Sequence[Value]) -> list[Value]:
        sides = zip(step.params["padding"], step.params["window_dimensions"], strict=True)
        dilated = any(n != 1 for key in ("base_dilation", "window_dilation") for n in step.params.get(key) or ())
        if not dilated and all(max(side) < width for side, width in sides):
            return step.each(values, _terms)
        return step.each(values, lambda terms: join(terms, between(neutral, neutral, False, True)))

    return rule


BOUNDS: dict[str, Bound] = {
    "reduce_sum": _bound_sum,
    "reduce_max": _bound_extreme(_terms),
    "reduce_min": _bound_extreme(on.negative),
    "reduce_prod": _bound_neutral(1, on.unknown),
    "reduce_and": _bound_neutral(1, _terms),
    "reduce_or": _bound_neutral(0, _terms),
    "reduce_xor": _bound_neutral(0, lambda _: UNBOUNDED),
    "cumsum": _bound_running,
    "cummax": _bound_same,
    "cummin": _bound_same,
    "cumprod": finite,
    "cumlogsumexp": finite,
    "sort": _bound_ordered,
    "top_k": _bound_top_k,
    "argmax": _bound_position,
    "argmin": _bound_position,
    "reduce_window_sum": _bound_window_sum,
    "reduce_window_max": _bound_window_extreme(-np.inf),
    "reduce_window_min": _bound_window_extreme(np.inf),
    "fft": linear,
}
