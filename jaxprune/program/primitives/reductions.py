"""Operations along axes: sums and extremes, which lose an axis, where these are, orders, windows, Fourier series."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxprune.program import range_arithmetic as on
from jaxprune.program.bounding import Bound, Step, by_ranges
from jaxprune.program.jaxprs import Site
from jaxprune.program.labels import Axes
from jaxprune.program.narrowing import Call, Rule
from jaxprune.program.primitives.arithmetic import finite, linear
from jaxprune.program.primitives.shapes import ALL, same
from jaxprune.program.ranges import UNBOUNDED, Range, Value, between, hull, join, not_zero, pick


def _tie_reduce(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """What is left of the reduced axis is reduced: whether that is the same is for the certificate to say."""
    return [tuple(axes[i] for i in _others(call, operand)) for operand, axes in enumerate(ins)]


def _tie_collective(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Over an axis that ``vmap`` has made one of the array's own it is a reduction, of several arrays maybe."""
    plain = not call.params.get("axis_index_groups") and all(isinstance(axis, int) for axis in call.params["axes"])
    return _tie_reduce(call, ins) if plain else call.unknown(ins, "collects over a named axis, or within groups")


def _tie_arg(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    for axis in call.params["axes"]:
        call.pin(ins[0][axis], "the result is a position along this axis")
    return _tie_reduce(call, ins)


def _others(site: Site, operand: int) -> list[int]:
    """The axes that are not reduced."""
    return [axis for axis in range(len(site.shape(operand))) if axis not in site.params["axes"]]


def _tie_cumulative(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    call.pin(ins[0][call.params["axis"]], "combined in order along this axis")
    return [ins[0]]


def _tie_sort(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    call.tie_all([ins[0]] * len(ins), ins)
    call.pin(ins[0][call.params["dimension"]], "sorted along this axis")
    return list(ins)


def _tie_top_k(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    ordered = call.params.get("axis", len(ins[0]) - 1)
    return [call.whole(ins[0], [ordered], "sorted along this axis")] * 2


def _tie_window(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Axes on which the window is a single entry, moved by one, pass on; the others stay."""
    names = "window_dimensions window_strides base_dilation window_dilation".split()
    steps = [call.params[name] for name in names if call.params.get(name)]
    wide = [
        axis
        for axis, padding in enumerate(call.params["padding"])
        if any(padding) or any(one[axis] != 1 for one in steps)
    ]
    return [call.whole(ins[0], wide, "combined in windows along this axis")]


def _tie_transform(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    last = range(len(ins[0]))[-len(call.params["fft_lengths"]) :]
    return [call.whole(ins[0], last, "a Fourier transform along this axis")]


def _removed(step: Step, value: Value) -> Iterator[tuple[Range, Range]]:
    """For each reduced axis that loses entries, the ranges at the indices that go, and at those that stay."""
    for axis in step.params["axes"]:
        if axis in value.gone:
            yield pick(value.axes[axis], value.gone[axis]), pick(value.axes[axis], ~value.gone[axis])


def _reduced(step: Step, value: Value, function: Callable[[Range], Range], operand: int = 0) -> Value:
    """The result of a reduction, of which each entry combines entries of one range.

    What goes along reduced axes contributes nothing, which has been seen to: the others remain.
    """
    left = _others(step, operand)
    return step.value(function(value.rest), lambda axis, _: function(value.axes[left[axis]]), [value], operand)


def _each(rule: Callable[[Step, Value, int], Value]) -> Bound:
    """A rule for one operand as one for all."""
    return lambda step, values: [rule(step, value, operand) for operand, value in enumerate(values)]


def _terms(terms: Range) -> Range:
    """What results are one of."""
    return terms


def _bound_sum(step: Step, value: Value, operand: int) -> Value:
    for removed, _ in _removed(step, value):
        if not removed.zero.all():
            step.fault(f"adds up what is removed; its entries {not_zero(removed, value.cause)}")
    axes, shape = step.params["axes"], step.shape(operand)
    most = math.prod(shape[i] for i in axes)
    fewest = math.prod(int(np.count_nonzero(~value.gone[i])) if i in value.gone else shape[i] for i in axes)
    peak = value.peak[1] if value.peak and set(value.peak[0]) <= set(axes) else -np.inf

    def summed(terms: Range) -> Range:
        low, high, nan, infinite = on.total(terms, fewest, most)
        return Range(np.where(terms.low >= 0, np.maximum(low, min(peak * 0.98, peak)), low), high, nan, infinite)

    return _reduced(step, value, summed, operand)


def _bound_extreme(flip: Callable[[Range], Range]) -> Bound:
    """A maximum; with ``flip`` a minimum. Removed entries must be below one that stays, or below everything."""

    def rule(step: Step, value: Value, operand: int) -> Value:
        axes = step.params["axes"]
        stays = all(not value.gone[i].all() for i in axes if i in value.gone)
        for gone, staying in _removed(step, value):
            removed, kept = hull(flip(gone)), flip(staying)
            below = removed.high == -np.inf and bool(removed.infinite)
            if stays and not (kept.nan.any() or kept.infinite.any()):
                below |= removed.high <= kept.low.max() and not removed.infinite
            if removed.nan or not below:
                step.fault("an extreme over entries of which some are removed; these may be the extreme ones")
        found = _reduced(step, value, _terms, operand)
        if step.name in ("reduce_max", "pmax"):
            found.largest = (value, tuple(axes), tuple(_others(step, operand)))
            everywhere = value.finite_at is not None and _everywhere(step, value.finite_at, axes)
            if everywhere and not value.is_finite():
                return found.mapped(_bounded)
        return found

    return _each(rule)


def _everywhere(step: Step, finite_at: Callable[[], Any], axes: Sequence[int]) -> bool:
    """Whether some entry along the axes is finite for sure, wherever along the others."""
    return bool(np.any(np.broadcast_to(finite_at(), step.shape(0)), axis=tuple(axes)).all())


def _bounded(found: Range) -> Range:
    """A maximum of entries of which one is finite and none is more than that."""
    return found._replace(infinite=found.infinite & (found.high == np.inf))


def _bound_neutral(number: float, function: Callable[[Range], Range]) -> Bound:
    """A reduction to which entries of one number contribute nothing."""

    def rule(step: Step, values: Sequence[Value]) -> list[Value]:
        for removed, _ in _removed(step, values[0]):
            if not np.all((removed.low == number) & (removed.high == number) & removed.finite):
                step.fault(f"combines what is removed; its entries are not {number:g} for sure")
        return [_reduced(step, values[0], function)]

    return rule


def _bound_position(step: Step, values: Sequence[Value]) -> list[Value]:
    size = math.prod(step.shape(0)[i] for i in step.params["axes"])
    return [step.moved(Value(between(0.0, max(size - 1, 0))), [(None, ALL)] * len(step.out_shape()))]


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


_sum, _highest, _lowest = _each(_bound_sum), _bound_extreme(_terms), _bound_extreme(on.negative)

RULES = {
    "reduce_sum": Rule(_tie_reduce, bound=_sum),
    "reduce_max": Rule(_tie_reduce, bound=_highest),
    "reduce_min": Rule(_tie_reduce, bound=_lowest),
    "reduce_prod": Rule(_tie_reduce, bound=_bound_neutral(1, on.unknown)),
    "reduce_and": Rule(_tie_reduce, bound=_bound_neutral(1, _terms)),
    "reduce_or": Rule(_tie_reduce, bound=_bound_neutral(0, _terms)),
    "reduce_xor": Rule(_tie_reduce, bound=_bound_neutral(0, lambda _: UNBOUNDED)),
    "psum": Rule(_tie_collective, bound=_sum),
    "pmax": Rule(_tie_collective, bound=_highest),
    "pmin": Rule(_tie_collective, bound=_lowest),
    "argmax": Rule(_tie_arg, bound=_bound_position),
    "argmin": Rule(_tie_arg, bound=_bound_position),
    "cumsum": Rule(_tie_cumulative, bound=_bound_running),
    "cummax": Rule(_tie_cumulative, bound=by_ranges(_terms)),
    "cummin": Rule(_tie_cumulative, bound=by_ranges(_terms)),
    "cumprod": Rule(_tie_cumulative, bound=finite),
    "cumlogsumexp": Rule(_tie_cumulative, bound=finite),
    "sort": Rule(_tie_sort, bound=_bound_ordered),
    "top_k": Rule(_tie_top_k, bound=_bound_top_k),
    "reduce_window_sum": Rule(_tie_window, bound=_bound_window_sum),
    "reduce_window_max": Rule(_tie_window, bound=_bound_window_extreme(-np.inf)),
    "reduce_window_min": Rule(_tie_window, bound=_bound_window_extreme(np.inf)),
    "fft": Rule(_tie_transform, bound=linear),
}
