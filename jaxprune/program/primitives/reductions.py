"""Operations along axes: sums and extremes, which lose an axis, where these are, orders, windows, Fourier series."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jaxprune.program import range_arithmetic as on
from jaxprune.program.bounding import Bound, Step, always, by_ranges
from jaxprune.program.jaxprs import Site
from jaxprune.program.labels import Axes
from jaxprune.program.narrowing import Call, Rule
from jaxprune.program.primitives.arithmetic import finite, linear
from jaxprune.program.ranges import UNBOUNDED, Range, Value, between, hull, join, not_zero, pick


def _tie_reduce(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """What is left of the reduced axis is reduced: whether that is the same is for the certificate to say."""
    return [tuple(axes[i] for i in _others(call, operand)) for operand, axes in enumerate(ins)]


def _tie_collective(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Over an axis that ``vmap`` has made one of the array's own it is a reduction, of several arrays maybe."""
    plain = not call.params.get("axis_index_groups") and all(isinstance(axis, int) for axis in call.params["axes"])
    return _tie_reduce(call, ins) if plain else call.unknown(ins, "collects over a named axis, or within groups")


def _tie_arg(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    call.pin("the result is a position along this axis", *(ins[0][axis] for axis in call.params["axes"]))
    return _tie_reduce(call, ins)


def _others(site: Site, operand: int) -> list[int]:
    """The axes that are not reduced."""
    return [axis for axis in range(len(site.shape(operand))) if axis not in site.params["axes"]]


def _stays(axes: Callable[[Call], Sequence[int]], reason: str) -> Callable[[Call, Sequence[Axes]], list[Axes]]:
    """All operands are alike, and so are the results; some axes stay."""

    def tie(call: Call, ins: Sequence[Axes]) -> list[Axes]:
        call.tie_all([ins[0]] * len(ins), ins)
        return [call.whole(ins[0], axes(call), f"{reason} along this axis")] * len(call.equation.outvars)

    return tie


def _wide(call: Call) -> list[int]:
    """The axes on which the window is more than a single entry, moved by one."""
    names = "window_dimensions window_strides base_dilation window_dilation".split()
    steps = [call.params[name] for name in names if call.params.get(name)]
    return [i for i, ends in enumerate(call.params["padding"]) if any(ends) or any(one[i] != 1 for one in steps)]


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
            if value.finite_at is None or value.is_finite():
                return found
            if np.any(np.broadcast_to(value.finite_at(), step.shape(0)), axis=tuple(axes)).all():
                # Of entries of which one is finite, wherever along the other axes, no maximum is -infinity.
                return found.mapped(lambda a: a._replace(infinite=a.infinite & (a.high == np.inf)))
        return found

    return _each(rule)


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
    return always(between(0.0, max(size - 1, 0)))(step, values)


def _bound_running(step: Step, values: Sequence[Value]) -> list[Value]:
    """Running sums, along an axis that stays whole."""
    size = step.shape(0)[step.params["axis"]]
    return step.each(values, lambda terms: on.total(terms, 1, max(size, 1)))


def _bound_ordered(step: Step, values: Sequence[Value]) -> list[Value]:
    """Sorted values are the same ones in another order."""
    return [step.value(value.rest, value.along, [value], result) for result, value in enumerate(values)]


def _bound_top_k(step: Step, values: Sequence[Value]) -> list[Value]:
    return _bound_ordered(step, [*values, Value(between(0.0, np.inf))])  # and positions


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


_ordered = _stays(lambda call: [call.params["axis"]], "combined in order")
_windows = _stays(_wide, "combined in windows")
_transformed = _stays(lambda call: range(len(call.shape(0)))[-len(call.params["fft_lengths"]) :], "a Fourier transform")
_top = _stays(lambda call: [call.params.get("axis", len(call.shape(0)) - 1)], "sorted")
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
    **dict.fromkeys(("argmax", "argmin"), Rule(_tie_arg, bound=_bound_position)),
    "cumsum": Rule(_ordered, bound=_bound_running),
    **dict.fromkeys(("cummax", "cummin"), Rule(_ordered, bound=by_ranges(_terms))),
    **dict.fromkeys(("cumprod", "cumlogsumexp"), Rule(_ordered, bound=finite)),
    "sort": Rule(_stays(lambda call: [call.params["dimension"]], "sorted"), bound=_bound_ordered),
    "top_k": Rule(_top, bound=_bound_top_k),
    "reduce_window_sum": Rule(_windows, bound=_bound_window_sum),
    "reduce_window_max": Rule(_windows, bound=_bound_window_extreme(-np.inf)),
    "reduce_window_min": Rule(_windows, bound=_bound_window_extreme(np.inf)),
    "fft": Rule(_transformed, bound=linear),
}
