"""Operations that combine entries along axes: sums and extremes, which lose an axis, and where these are."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxprune.program import range_arithmetic as on
from jaxprune.program.bounding import Bound, Step
from jaxprune.program.evaluation import Narrowing
from jaxprune.program.labelling import Axes, Call
from jaxprune.program.primitives.shapes import ALL
from jaxprune.program.ranges import UNBOUNDED, Range, Value, between, hull, not_zero, pick

COLLECTIVE = "psum pmax pmin".split()


def _tie_reduce(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """What is left of the reduced axis is reduced: whether that is the same is for the certificate to say."""
    return [_without(axes, call.params["axes"]) for axes in ins]


def _tie_collective(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Over an axis that ``vmap`` has made one of the array's own it is a reduction, of several arrays maybe."""
    plain = not call.params.get("axis_index_groups") and all(isinstance(axis, int) for axis in call.params["axes"])
    return _tie_reduce(call, ins) if plain else call.unknown(ins, "collects over a named axis, or within groups")


def _tie_arg(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    for axis in call.params["axes"]:
        call.pin(ins[0][axis], "the result is a position along this axis")
    return [_without(ins[0], call.params["axes"])]


def _without(axes: Axes, gone: Sequence[int]) -> Axes:
    return tuple(labels for axis, labels in enumerate(axes) if axis not in gone)


NARROWINGS = {
    **{name: Narrowing(_tie_reduce) for name in ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod")},
    **{name: Narrowing(_tie_reduce) for name in ("reduce_and", "reduce_or", "reduce_xor")},
    **{name: Narrowing(_tie_collective) for name in COLLECTIVE},
    **{name: Narrowing(_tie_arg) for name in ("argmax", "argmin")},
}


def _left(step: Step, value: Value, operand: int) -> tuple[int, int]:
    """How many entries are combined: those that stay, and all."""
    shape, axes = step.shape(operand), step.params["axes"]
    kept = math.prod(int(np.count_nonzero(~value.gone[i])) if i in value.gone else shape[i] for i in axes)
    return kept, math.prod(shape[i] for i in axes)


def _reduced(step: Step, value: Value, function: Callable[[Range], Range], operand: int = 0) -> Value:
    """The result of a reduction, of which each entry combines entries of one range.

    What goes along reduced axes contributes nothing, which has been seen to: the others remain.
    """
    left = _others(step, operand)
    axes = {axis: function(value.axes[left[axis]]) for axis in step.outs[operand]}
    return step.value(function(value.rest), axes, [value], operand)


def _others(step: Step, operand: int = 0) -> list[int]:
    """The axes that are not reduced."""
    return [axis for axis in range(len(step.shape(operand))) if axis not in step.params["axes"]]


def _each(rule: Callable[[Step, Value, int], Value]) -> Bound:
    """A rule for one operand as one for all."""
    return lambda step, values: [rule(step, value, operand) for operand, value in enumerate(values)]


def _terms(terms: Range) -> Range:
    """What results are one of."""
    return terms


def _bound_sum(step: Step, value: Value, operand: int) -> Value:
    axes = step.params["axes"]
    for axis in axes:
        if axis in value.gone and not (removed := pick(value.axes[axis], value.gone[axis])).zero.all():
            step.fault(f"adds up what is removed; its entries {not_zero(removed, value.cause)}")
    fewest, most = _left(step, value, operand)
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
        found = _reduced(step, value, _terms, operand)
        if step.name in ("reduce_max", "pmax"):
            found.largest = (value, tuple(axes), tuple(_others(step, operand)))
            everywhere = value.finite_at is not None and _everywhere(step, value.finite_at, axes)
            if everywhere and not value.is_finite():
                found.rest, found.axes = _bounded(found.rest), {i: _bounded(a) for i, a in found.axes.items()}
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
        (value,) = values
        for axis in step.params["axes"]:
            if axis in value.gone:
                low, high, nan, infinite = pick(value.axes[axis], value.gone[axis])
                if not np.all((low == number) & (high == number) & ~nan & ~infinite):
                    step.fault(f"combines what is removed; its entries are not {number:g} for sure")
        return [_reduced(step, value, function)]

    return rule


def _bound_position(step: Step, values: Sequence[Value]) -> list[Value]:
    size = math.prod(step.shape(0)[i] for i in step.params["axes"])
    return [step.moved(Value(between(0.0, max(size - 1, 0))), [(None, ALL)] * len(step.out_shape()))]


BOUNDS: dict[str, Bound] = {
    "reduce_sum": _each(_bound_sum),
    "psum": _each(_bound_sum),
    "pmax": _bound_extreme(_terms),
    "pmin": _bound_extreme(on.negative),
    "reduce_max": _bound_extreme(_terms),
    "reduce_min": _bound_extreme(on.negative),
    "reduce_prod": _bound_neutral(1, on.unknown),
    "reduce_and": _bound_neutral(1, _terms),
    "reduce_or": _bound_neutral(0, _terms),
    "reduce_xor": _bound_neutral(0, lambda _: UNBOUNDED),
    "argmax": _bound_position,
    "argmin": _bound_position,
}
