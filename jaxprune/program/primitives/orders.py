"""Operations that need an axis whole: running sums, orders, windows, Fourier transforms."""

import math
from collections.abc import Sequence

import numpy as np

from jaxprune.program import range_arithmetic as on
from jaxprune.program.bounding import Bound, Step
from jaxprune.program.evaluation import Narrowing
from jaxprune.program.labelling import Axes, Call
from jaxprune.program.primitives.arithmetic import finite, linear
from jaxprune.program.primitives.shapes import ALL, same
from jaxprune.program.ranges import Range, Value, between, join


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
    **{name: Narrowing(_tie_cumulative) for name in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")},
    **{name: Narrowing(_tie_window) for name in ("reduce_window_sum", "reduce_window_max", "reduce_window_min")},
    "sort": Narrowing(_tie_sort),
    "top_k": Narrowing(_tie_top_k),
    "fft": Narrowing(_tie_transform),
}


def _terms(terms: Range) -> Range:
    """What results are one of."""
    return terms


def _bound_same(step: Step, values: Sequence[Value]) -> list[Value]:
    return step.each(values, _terms)


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
    "cumsum": _bound_running,
    "cummax": _bound_same,
    "cummin": _bound_same,
    "cumprod": finite,
    "cumlogsumexp": finite,
    "sort": _bound_ordered,
    "top_k": _bound_top_k,
    "reduce_window_sum": _bound_window_sum,
    "reduce_window_max": _bound_window_extreme(-np.inf),
    "reduce_window_min": _bound_window_extreme(np.inf),
    "fft": linear,
}
