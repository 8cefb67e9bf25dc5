"""What is known of results of operations that combine entries along axes, and whether removed ones contribute."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxprune.program import range_arithmetic as on
from jaxprune.program.bounding import Bound, Step, Value
from jaxprune.program.primitives.elementwise.bounds import finite, linear
from jaxprune.program.primitives.shapes.moves import ALL, same
from jaxprune.program.ranges import UNBOUNDED, Range, between, hull, join, not_zero, pick


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


def _same(step: Step, values: Sequence[Value]) -> list[Value]:
    return step.each(values, _terms)


def _sum(step: Step, values: Sequence[Value]) -> list[Value]:
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


def _extreme(flip: Callable[[Range], Range]) -> Bound:
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


def _neutral(number: float, function: Callable[[Range], Range]) -> Bound:
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


def _running(step: Step, values: Sequence[Value]) -> list[Value]:
    """Running sums, along an axis that stays whole."""
    size = step.shape(0)[step.params["axis"]]
    return step.each(values, lambda terms: on.total(terms, 1, max(size, 1)))


def _ordered(step: Step, values: Sequence[Value]) -> list[Value]:
    """Sorted values are the same ones in another order."""
    return [step.moved(value, same(step), result) for result, value in enumerate(values)]


def _top_k(step: Step, values: Sequence[Value]) -> list[Value]:
    positions = Value(between(0.0, np.inf))
    return [step.moved(values[0], same(step)), step.moved(positions, [(None, ALL)] * len(step.shape(0)), 1)]


def _position(step: Step, values: Sequence[Value]) -> list[Value]:
    size = math.prod(step.shape(0)[i] for i in step.params["axes"])
    return [step.moved(Value(between(0.0, max(size - 1, 0))), [(None, ALL)] * len(step.out_shape()))]


def _window_sum(step: Step, values: Sequence[Value]) -> list[Value]:
    return step.each(values, lambda terms: on.total(terms, 0, math.prod(step.params["window_dimensions"])))


def _window_extreme(neutral: float) -> Bound:
    """Entries of padding are neutral; a window may see nothing else if the padding is as wide."""

    def rule(step: Step, values: Sequence[Value]) -> list[Value]:
        sides = zip(step.params["padding"], step.params["window_dimensions"], strict=True)
        dilated = any(n != 1 for key in ("base_dilation", "window_dilation") for n in step.params.get(key) or ())
        if not dilated and all(max(side) < width for side, width in sides):
            return step.each(values, _terms)
        return step.each(values, lambda terms: join(terms, between(neutral, neutral, False, True)))

    return rule


BOUNDS: dict[str, Bound] = {
    "reduce_sum": _sum,
    "reduce_max": _extreme(_terms),
    "reduce_min": _extreme(on.negative),
    "reduce_prod": _neutral(1, on.unknown),
    "reduce_and": _neutral(1, _terms),
    "reduce_or": _neutral(0, _terms),
    "reduce_xor": _neutral(0, lambda _: UNBOUNDED),
    "cumsum": _running,
    "cummax": _same,
    "cummin": _same,
    "cumprod": finite,
    "cumlogsumexp": finite,
    "sort": _ordered,
    "top_k": _top_k,
    "argmax": _position,
    "argmin": _position,
    "reduce_window_sum": _window_sum,
    "reduce_window_max": _window_extreme(-np.inf),
    "reduce_window_min": _window_extreme(np.inf),
    "fft": linear,
}
