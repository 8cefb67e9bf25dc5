"""What is known of results of arithmetic on each entry alone."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.program import range_arithmetic as on
from jaxprune.program.bounding import Bound, Step, unknown
from jaxprune.program.ranges import Range, Value, between, hull, join

#: ``(step, ranges of the operands) -> range of the result``.
Entrywise = Callable[..., Range]


def _rule(function: Entrywise) -> Bound:
    return lambda step, values: step.each(values, function)


def _mul(step: Step, values: Sequence[Value]) -> list[Value]:
    return step.each(values, (lambda a, _: on.square(a)) if values[0] is values[1] else on.mul)


def _sub(step: Step, values: Sequence[Value]) -> list[Value]:
    """A value less its own maximum is not above 0, and reaches it."""
    found = step.each(values, on.sub)
    value, other = values
    if other.largest is None or other.largest[0] is not value:
        return found
    _, over, sources = other.largest
    for axis, size in enumerate(step.shape(0)):
        source = sources[axis] if axis < len(sources) else None
        if size > 1 and axis not in over and source != axis:
            return found

    def cap(a: Range, x: Range) -> Range:
        return Range(np.minimum(a.low, 0), np.minimum(a.high, 0), a.nan & ~x.finite, a.infinite)

    rest = cap(found[0].rest, value.rest)
    axes = {i: cap(found[0].axes[i], value.along(i, gone)) for i, gone in found[0].gone.items()}
    return [Value(rest, axes, found[0].gone, peak=(over, 0.0))]


def _exp(step: Step, values: Sequence[Value]) -> list[Value]:
    (found,) = step.each(values, on.MONOTONE["exp"])
    if values[0].peak is not None:
        over, number = values[0].peak
        found.peak = (over, float(np.exp(number) * 0.98))
    return [found]


def _div(step: Step, values: Sequence[Value]) -> list[Value]:
    if jnp.issubdtype(step.equation.outvars[0].aval.dtype, jnp.integer):

        def whole(a: Range, b: Range) -> Range:
            found = on.div(a, b)
            return between(np.trunc(found.low), np.trunc(found.high), found.nan, found.infinite)

        return step.each(values, whole)
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


def _extreme(function: Entrywise, neutral: float) -> Bound:
    """The larger (smaller) of two values: if one is the least (most) of all, the other itself."""

    def rule(step: Step, values: Sequence[Value]) -> list[Value]:
        for i, other in ((0, values[1]), (1, values[0])):
            if step.shape(i) == step.out_shape() and other.is_number(neutral):
                return [values[i]]
        return step.each(values, function)

    return rule


def _same(step: Step, values: Sequence[Value]) -> list[Value]:
    return list(values)


def _convert(step: Step, values: Sequence[Value]) -> list[Value]:
    before, after = step.equation.invars[0].aval.dtype, step.equation.outvars[0].aval.dtype
    if before == after:
        return list(values)

    def converted(a: Range) -> Range:
        if after == jnp.bool_:
            return on.truth((a.low > 0) | (a.high < 0), a.zero)
        if jnp.issubdtype(after, jnp.integer):
            return between(np.trunc(a.low), np.trunc(a.high), a.nan, a.infinite)
        return a if before == jnp.bool_ else on.widen(a)

    (found,) = step.each(values, converted)
    if jnp.issubdtype(before, jnp.floating) and jnp.issubdtype(after, jnp.floating):
        found.peak, found.finite_at = values[0].peak, values[0].finite_at
    return [found]


def _add(step: Step, values: Sequence[Value]) -> list[Value]:
    """A sum with a constant that is infinite in places: masks are added to logits."""
    (found,) = step.each(values, on.add)
    for value, constant in (values, values[::-1]):
        if constant.known is not None and value.is_finite():
            found.finite_at = partial(_finite_in, constant.known)
    return [found]


def _finite_in(known: Callable[[], Any]) -> Any:
    return np.isfinite(np.asarray(known()))


def _power(step: Step, values: Sequence[Value]) -> list[Value]:
    if "y" in step.params:
        return step.each(values, partial(on.power, exponent=float(step.params["y"])))
    exponent = join(*(hull(a) for a in values[1].ranges()))
    if exponent.low == exponent.high and np.isfinite(exponent.low):
        return step.each(values, lambda a, _: on.power(a, float(exponent.low)))
    return step.each(values, on.raised)


def _clamp(low: Range, x: Range, high: Range) -> Range:
    return on.minimum(on.maximum(x, low), high)


def _remainder(a: Range, b: Range) -> Range:
    pole = (b.low <= 0) & (b.high >= 0)
    zero = a.zero & ~pole
    bad = pole | a.infinite | a.nan | b.nan
    return between(np.where(zero, 0, -np.inf), np.where(zero, 0, np.inf), bad)


#: Operations on complex numbers that are followed; these are 0, or finite, or anything.
_SIMPLE = "add add_any sub mul neg".split()


_ODD = "abs square sin tan sinh tanh convert_element_type".split()


def _real(rule: Bound) -> Bound:
    """A rule for real numbers; of most operations on complex ones only little is known."""

    def guarded(step: Step, values: Sequence[Value]) -> list[Value]:
        dtypes = [atom.aval.dtype for atom in (*step.equation.invars, *step.equation.outvars)]
        name = step.name
        if name in _SIMPLE or not any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes):
            return rule(step, values)
        return linear(step, values) if name in _ODD else unknown(step, values)

    return guarded


def _angle(a: Range, b: Range) -> Range:
    return between(np.full_like(a.low, -3.2), 3.2, a.nan | b.nan)


def finite(step: Step, values: Sequence[Value]) -> list[Value]:
    """The results are finite if the operands are."""
    return step.each(values, on.unknown)


def linear(step: Step, values: Sequence[Value]) -> list[Value]:
    """The results are finite if the operands are, and 0 if they are."""
    return step.each(values, partial(on.unknown, zero=True))


_REAL: dict[str, Bound] = {
    **{name: _rule(function) for name, function in on.MONOTONE.items() if name != "exp"},
    "exp": _exp,
    "add": _add,
    "add_any": _rule(on.add),
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "neg": _rule(on.negative),
    "abs": _rule(on.absolute),
    "square": _rule(on.square),
    "integer_pow": _power,
    "pow": _power,
    "max": _extreme(on.maximum, -np.inf),
    "min": _extreme(on.minimum, np.inf),
    "clamp": _rule(_clamp),
    "sign": _rule(on.sign),
    "floor": _rule(on.step(np.floor)),
    "ceil": _rule(on.step(np.ceil)),
    "round": _rule(lambda a: between(np.floor(a.low), np.ceil(a.high), a.nan, a.infinite)),
    "rem": _rule(_remainder),
    "sin": _rule(on.wave(np.sin)),
    "cos": _rule(on.wave(np.cos)),
    "atan2": _rule(_angle),
    "cosh": finite,
    "convert_element_type": _convert,
    "reduce_precision": linear,
}


BOUNDS: dict[str, Bound] = {
    **{name: _real(rule) for name, rule in _REAL.items()},
    **{name: _same for name in ("copy", "copy_p", "device_put", "stop_gradient", "name", "optimization_barrier")},
    **{name: linear for name in ("real", "imag", "conj", "complex")},
    "bitcast_convert_type": unknown,
}
