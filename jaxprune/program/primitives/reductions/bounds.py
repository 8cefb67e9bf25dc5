"""What is known of results of operations that combine entries along axes, and whether removed ones contribute."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxprune.program.primitives import range_arithmetic as on
from jaxprune.program.primitives.elementwise.bounds import each, finite, linear
from jaxprune.program.primitives.ranges import UNBOUNDED, Range, Rule, Step, Value, between, hull, join, pick, widen
from jaxprune.program.primitives.shapes.bounds import place


def total(terms: Range, fewest: int, most: int) -> Range:
    """The sum of a number of terms."""
    low, high, nan, infinite = terms
    counts = (fewest, most)
    lows = [np.where(low == 0, 0, low * n) if n else np.zeros_like(low) for n in counts]
    highs = [np.where(high == 0, 0, high * n) if n else np.zeros_like(high) for n in counts]
    clash = infinite & (low == -np.inf) & (high == np.inf)
    return widen(Range(np.minimum(*lows), np.maximum(*highs), nan | clash, infinite))


def _what(removed: Range, cause: str) -> str:
    """In words, what is wrong with removed entries that should be 0."""
    if not removed.finite.all():
        return "may be infinite or NaN there" + (f", from {cause}" if cause else "")
    worst = pick(removed, np.flatnonzero(~removed.zero)[:1])
    if worst.low == worst.high:
        return f"are {worst.low[0]:.4g} there"
    return f"are not 0 for sure there, but in [{worst.low[0]:.4g}, {worst.high[0]:.4g}]"


def _left(step: Step, value: Value, axes: Sequence[int]) -> tuple[int, int]:
    """How many entries are combined: those that stay, and all."""
    shape = step.shape(0)
    kept = math.prod(int(np.count_nonzero(~value.gone[i])) if i in value.gone else shape[i] for i in axes)
    return kept, math.prod(shape[i] for i in axes)


def _reduced(step: Step, values: Sequence[Value], function: Callable[[Range], Range]) -> Value:
    """The result of a reduction, of which each entry combines entries of one range."""
    (value,) = values
    axes = step.params["axes"]
    left = [axis for axis in range(len(step.shape(0))) if axis not in axes]
    # What goes along reduced axes contributes nothing, which has been seen to: the others remain.
    rest = function(value.rest)
    found = {}
    for axis in step.outs[0]:
        found[axis] = function(value.axes[left[axis]])
    return step.value(rest, found, values)


def _sum(step: Step, values: Sequence[Value]) -> list[Value]:
    (value,), axes = values, step.params["axes"]
    for axis in axes:
        if axis in value.gone and not (removed := pick(value.axes[axis], value.gone[axis])).zero.all():
            step.fault(f"adds up what is removed; its entries {_what(removed, value.cause)}")
    fewest, most = _left(step, value, axes)
    peak = value.peak[1] if value.peak and set(value.peak[0]) <= set(axes) else -np.inf

    def summed(terms: Range) -> Range:
        low, high, nan, infinite = total(terms, fewest, most)
        return Range(np.where(terms.low >= 0, np.maximum(low, min(peak * 0.98, peak)), low), high, nan, infinite)

    return [_reduced(step, values, summed)]


def _extreme(flip: Callable[[Range], Range]) -> Rule:
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
        (found,) = [_reduced(step, values, lambda terms: terms)]
        left = [axis for axis in range(len(step.shape(0))) if axis not in axes]
        if step.equation.primitive.name == "reduce_max":
            found.largest = (value, tuple(axes), tuple(left))
            doubt = not all(np.all(a.finite) for a in value.ranges())
            if doubt and value.finite_at is not None and _everywhere(step, value.finite_at, axes):
                found.rest, found.axes = _bounded(found.rest), {i: _bounded(a) for i, a in found.axes.items()}
        return [found]

    return rule


def _everywhere(step: Step, finite_at: Callable[[], Any], axes: Sequence[int]) -> bool:
    """Whether some entry along the axes is finite for sure, wherever along the others."""
    return bool(np.any(np.broadcast_to(finite_at(), step.shape(0)), axis=tuple(axes)).all())


def _bounded(found: Range) -> Range:
    """A maximum of entries of which one is finite and none is more than that."""
    return found._replace(infinite=found.infinite & (found.high == np.inf))


def _neutral(number: float, function: Callable[[Range], Range]) -> Rule:
    """A reduction to which entries of one number contribute nothing."""

    def rule(step: Step, values: Sequence[Value]) -> list[Value]:
        (value,) = values
        for axis in step.params["axes"]:
            if axis in value.gone:
                low, high, nan, infinite = pick(value.axes[axis], value.gone[axis])
                if not np.all((low == number) & (high == number) & ~nan & ~infinite):
                    step.fault(f"combines what is removed; its entries are not {number:g} for sure")
        return [_reduced(step, values, function)]

    return rule


def _dot_general(step: Step, values: Sequence[Value]) -> list[Value]:
    left, right = values
    (left_sum, right_sum), (left_batch, right_batch) = step.params["dimension_numbers"]
    fewest = most = 1
    for i, j in zip(left_sum, right_sum, strict=True):
        gone = left.gone.get(i, right.gone.get(j))
        most *= step.shape(0)[i]
        fewest *= step.shape(0)[i] if gone is None else int(np.count_nonzero(~gone))
        if gone is not None:
            _contract(step, left, i, right, j, gone)
    sources = [*zip(left_batch, right_batch, strict=True)]
    sources += [(i, None) for i in range(len(step.shape(0))) if i not in (*left_sum, *left_batch)]
    sources += [(None, j) for j in range(len(step.shape(1))) if j not in (*right_sum, *right_batch)]
    axes = {}
    for axis, gone in step.outs[0].items():
        i, j = sources[axis]
        a = left.along(-1 if i is None else i, gone, left_sum)
        b = right.along(-1 if j is None else j, gone, right_sum)
        axes[axis] = total(on.mul(a, b), fewest, most)
    return [step.value(total(on.mul(left.rest, right.rest), fewest, most), axes, values)]


def _contract(step: Step, left: Value, i: int, right: Value, j: int, gone: np.ndarray) -> None:
    """A product over an axis that loses entries: one factor has to be 0 there, and the other one finite."""
    a, b = pick(left.along(i, gone), gone), pick(right.along(j, gone), gone)
    product = on.mul(a, b)
    if product.zero.all():
        return
    for side, value in ((a, left), (b, right)):
        if not side.finite.all():
            step.fault(f"multiplies and adds up what is removed; factors {_what(side, value.cause)}")
            return
    step.fault(f"multiplies and adds up what is removed; its products {_what(product, '')}")


def _convolution(step: Step, values: Sequence[Value]) -> list[Value]:
    image, kernel = values
    numbers, groups = step.params["dimension_numbers"], step.params["feature_group_count"]
    (batch, channel, *_), (outs, per_group, *window) = numbers.lhs_spec, numbers.rhs_spec
    shape = step.shape(1)
    gone = image.gone.get(channel, kernel.gone.get(per_group))
    if gone is not None and groups == 1:
        _contract(step, image, channel, kernel, per_group, gone)
    summed = [channel] if groups == 1 else []
    most = math.prod(shape[i] for i in (per_group, *window))
    axes = {}
    for axis, flags in step.outs[0].items():
        if axis == numbers.out_spec[0]:
            a, b = image.along(batch, flags, summed), kernel.along(-1, flags, [per_group])
        else:
            b = kernel.along(outs, flags, [per_group])
            a = image.along(-1, flags, summed)
            if groups > 1 and channel in image.axes:
                blocks = Range(*(part.reshape(groups, -1) for part in image.axes[channel]))
                a = Range(*(np.repeat(part, flags.size // groups) for part in hull(blocks, 1)))
        axes[axis] = total(on.mul(a, b), 0, most)
    return [step.value(total(on.mul(image.rest, kernel.rest), 0, most), axes, values)]


def _running(step: Step, values: Sequence[Value]) -> list[Value]:
    """Running sums, along an axis that stays whole."""
    size = step.shape(0)[step.params["axis"]]
    return each(step, values, lambda terms: total(terms, 1, max(size, 1)))


def _ordered(step: Step, values: Sequence[Value]) -> list[Value]:
    """Sorted values are the same ones in another order."""
    same = {i: i for i in range(len(step.shape(0)))}
    return [place(step, value, same, result) for result, value in enumerate(values)]


def _top_k(step: Step, values: Sequence[Value]) -> list[Value]:
    same = {i: i for i in range(len(step.shape(0)))}
    return [place(step, values[0], same, 0), place(step, Value(between(0.0, np.inf)), {}, 1)]


def _position(step: Step, values: Sequence[Value]) -> list[Value]:
    size = math.prod(step.shape(0)[i] for i in step.params["axes"])
    return [place(step, Value(between(0.0, max(size - 1, 0))), {})]


def _windows(step: Step) -> int:
    return math.prod(step.params["window_dimensions"])


def _window_sum(step: Step, values: Sequence[Value]) -> list[Value]:
    return each(step, values, lambda terms: total(terms, 0, _windows(step)))


def _window_extreme(neutral: float) -> Rule:
    """Entries of padding are neutral; a window may see nothing else if the padding is as wide."""

    def rule(step: Step, values: Sequence[Value]) -> list[Value]:
        sides = zip(step.params["padding"], step.params["window_dimensions"], strict=True)
        dilated = any(n != 1 for key in ("base_dilation", "window_dilation") for n in step.params.get(key) or ())
        if not dilated and all(max(side) < width for side, width in sides):
            return each(step, values, lambda terms: terms)
        return each(step, values, lambda terms: join(terms, between(neutral, neutral, False, True)))

    return rule


RULES: dict[str, Rule] = {
    "reduce_sum": _sum,
    "reduce_max": _extreme(lambda found: found),
    "reduce_min": _extreme(on.negative),
    "reduce_prod": _neutral(1, on.unknown),
    "reduce_and": _neutral(1, lambda terms: terms),
    "reduce_or": _neutral(0, lambda terms: terms),
    "reduce_xor": _neutral(0, lambda _: UNBOUNDED),
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "cumsum": _running,
    "cummax": lambda step, values: each(step, values, lambda terms: terms),
    "cummin": lambda step, values: each(step, values, lambda terms: terms),
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
__all__ = ["RULES", "total"]
