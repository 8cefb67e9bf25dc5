"""What is known of results of arithmetic on each entry alone."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.program import range_arithmetic as on
from jaxprune.program.bounding import Bound, Step, by_ranges, unknown
from jaxprune.program.ranges import Range, Value, between, hull, join

#: Of numbers rounded towards 0.
_whole = on.step(np.trunc)


def _mul(step: Step, values: Sequence[Value]) -> list[Value]:
    return step.each(values, (lambda a, _: on.square(a)) if values[0] is values[1] else on.mul)


def _sub(step: Step, values: Sequence[Value]) -> list[Value]:
    """A value less its own maximum is not above 0, and reaches it."""
    (found,), (value, other) = step.each(values, on.sub), values
    of, over, sources = other.largest or (None, (), ())
    moved = (size > 1 and i not in over and sources[i : i + 1] != (i,) for i, size in enumerate(step.shape(0)))
    if of is not value or any(moved):
        return [found]

    def cap(a: Range, x: Range) -> Range:
        return Range(np.minimum(a.low, 0), np.minimum(a.high, 0), a.nan & ~x.finite, a.infinite)

    axes = {i: cap(found.axes[i], value.along(i, gone)) for i, gone in found.gone.items()}
    return [Value(cap(found.rest, value.rest), axes, found.gone, peak=(over, 0.0))]


def _exp(step: Step, values: Sequence[Value]) -> list[Value]:
    (found,) = step.each(values, on.MONOTONE["exp"])
    if values[0].peak is not None:
        over, number = values[0].peak
        found.peak = (over, float(np.exp(number) * 0.98))
    return [found]


def _div(step: Step, values: Sequence[Value]) -> list[Value]:
    if jnp.issubdtype(step.equation.outvars[0].aval.dtype, jnp.integer):
        return step.each(values, lambda a, b: _whole(on.div(a, b)))
    return step.each([values[0], _reciprocal(step, *values)], on.mul)


def _reciprocal(step: Step, top: Value, bottom: Value) -> Value:
    """1 / bottom. As quotients that stay are finite, divisors of entries that stay are not 0."""
    if any(np.any((b.low <= 0) & (b.high >= 0)) for b in bottom.ranges()):
        bottom = step.exact(bottom, step.shape(1))
    stays = not any(gone.all() for gone in step.outs[0].values())
    trusted = stays and bool((top.rest.finite & bottom.rest.finite).all())

    def inverse(b: Range, kept: Any) -> Range:
        low, high, nan, infinite = on.div(between(np.ones_like(b.low), 1.0), b)
        return Range(low, high, nan & ~kept, infinite & ~kept)

    axes = {i: inverse(b, ~bottom.gone[i] & trusted) for i, b in bottom.axes.items()}
    return Value(inverse(bottom.rest, np.bool_(trusted)), axes, bottom.gone).repeated(bottom.alike)


def _extreme(function: on.Function, neutral: float) -> Bound:
    """The larger (smaller) of two values: if one is the least (most) of all, the other itself."""

    def rule(step: Step, values: Sequence[Value]) -> list[Value]:
        for i, other in ((0, values[1]), (1, values[0])):
            if step.shape(i) == step.out_shape() and other.is_number(neutral):
                return [values[i]]
        return step.each(values, function)

    return rule


def _convert(step: Step, values: Sequence[Value]) -> list[Value]:
    before, after = step.equation.invars[0].aval.dtype, step.equation.outvars[0].aval.dtype
    if before == after:
        return list(values)

    def converted(a: Range) -> Range:
        if after == jnp.bool_:
            return on.truth((a.low > 0) | (a.high < 0), a.zero)
        if jnp.issubdtype(after, jnp.integer):
            return _whole(a)
        return a if before == jnp.bool_ else on.widen(a)

    (found,) = step.each(values, converted)
    if jnp.issubdtype(before, jnp.floating) and jnp.issubdtype(after, jnp.floating):
        found.peak, found.finite_at = values[0].peak, values[0].finite_at
    return [found]


def _add(step: Step, values: Sequence[Value]) -> list[Value]:
    """A sum with a constant that is infinite in places: masks are added to logits."""
    (found,) = step.each(values, on.add)
    for value, constant in (values, values[::-1]):
        if (known := constant.known) is not None and value.is_finite():
            found.finite_at = lambda known=known: np.isfinite(np.asarray(known()))
    return [found]


def _power(step: Step, values: Sequence[Value]) -> list[Value]:
    if "y" in step.params:
        return step.each(values, partial(on.power, exponent=float(step.params["y"])))
    exponent = join(*(hull(a) for a in values[1].ranges()))
    if exponent.low == exponent.high and np.isfinite(exponent.low):
        return step.each(values, lambda a, _: on.power(a, float(exponent.low)))
    return step.each(values, on.raised)


def _remainder(a: Range, b: Range) -> Range:
    pole = (b.low <= 0) & (b.high >= 0)
    zero = a.zero & ~pole
    bad = pole | a.infinite | a.nan | b.nan
    return between(np.where(zero, 0, -np.inf), np.where(zero, 0, np.inf), bad)


def _real(name: str, rule: Bound) -> Bound:
    """A rule for real numbers; of most operations on complex ones only little is known."""

    def guarded(step: Step, values: Sequence[Value]) -> list[Value]:
        dtypes = [atom.aval.dtype for atom in (*step.equation.invars, *step.equation.outvars)]
        if not any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes):
            return rule(step, values)
        odd = name in "abs square sin tan sinh tanh convert_element_type".split()
        return linear(step, values) if odd else unknown(step, values)

    return rule if name in "add add_any sub mul neg".split() else guarded


def unchanged(step: Step, values: Sequence[Value]) -> list[Value]:
    """The results are the operands."""
    return list(values)


#: The results are finite if the operands are.
finite = by_ranges(on.unknown)

#: The results are finite if the operands are, and 0 if they are.
linear = by_ranges(partial(on.unknown, zero=True))

_REAL: dict[str, Bound] = {
    **{name: by_ranges(function) for name, function in on.MONOTONE.items()},
    "exp": _exp,
    "add": _add,
    "add_any": by_ranges(on.add),
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "neg": by_ranges(on.negative),
    "abs": by_ranges(on.absolute),
    "square": by_ranges(on.square),
    "integer_pow": _power,
    "pow": _power,
    "max": _extreme(on.maximum, -np.inf),
    "min": _extreme(on.minimum, np.inf),
    "clamp": by_ranges(lambda low, x, high: on.minimum(on.maximum(x, low), high)),
    "sign": by_ranges(on.sign),
    "floor": by_ranges(on.step(np.floor)),
    "ceil": by_ranges(on.step(np.ceil)),
    "round": by_ranges(lambda a: between(np.floor(a.low), np.ceil(a.high), a.nan, a.infinite)),
    "rem": by_ranges(_remainder),
    "sin": by_ranges(on.wave(np.sin)),
    "cos": by_ranges(on.wave(np.cos)),
    "atan2": by_ranges(lambda a, b: between(np.full_like(a.low, -3.2), 3.2, a.nan | b.nan)),
    "cosh": finite,
    "convert_element_type": _convert,
    "reduce_precision": linear,
}

#: Of operations on each entry alone.
BOUNDS: dict[str, Bound] = {
    **{name: _real(name, rule) for name, rule in _REAL.items()},
    **{name: unchanged for name in "copy copy_p stop_gradient name".split()},
    **{name: linear for name in "real imag conj complex".split()},
}
