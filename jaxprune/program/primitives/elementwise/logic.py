"""What is known of comparisons, of logic, and of choices that depend on it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.program import range_arithmetic as on
from jaxprune.program.bounding import Bound, Step, Value
from jaxprune.program.primitives.elementwise.bounds import Entrywise


def _select(step: Step, values: Sequence[Value]) -> list[Value]:
    which, *cases = values
    for number, case in enumerate(cases):
        if which.is_number(number):
            return [case]
    (found,) = step.each(values, on.select)
    for number, case in enumerate(cases):
        if which.known is not None and case.is_finite():
            found.finite_at = partial(_chosen, which.known, number)
    return [found]


def _chosen(known: Callable[[], Any], number: int) -> Any:
    return np.asarray(known()) == number


def _compare(function: Entrywise, same: bool) -> Bound:
    """A comparison; of a value with itself it is known, unless that is NaN."""

    def rule(step: Step, values: Sequence[Value]) -> list[Value]:
        if values[0] is not values[1]:
            return step.each(values, function)
        return step.each(values, lambda a, _: on.truth(~a.nan & same, ~a.nan & (not same)))

    return rule


def _bits(function: Entrywise) -> Bound:
    """Logic: known for bools only."""

    def rule(step: Step, values: Sequence[Value]) -> list[Value]:
        logical = step.equation.outvars[0].aval.dtype == jnp.bool_
        return step.each(values, function if logical else on.unknown)

    return rule


BOUNDS: dict[str, Bound] = {
    "select_n": _select,
    "lt": _compare(on.less, False),
    "gt": _compare(lambda a, b: on.less(b, a), False),
    "le": _compare(on.less_equal, True),
    "ge": _compare(lambda a, b: on.less_equal(b, a), True),
    "eq": _compare(on.equal, True),
    "ne": _compare(lambda a, b: on.negation(on.equal(a, b)), False),
    "and": _bits(on.minimum),
    "or": _bits(on.maximum),
    "xor": _bits(on.unknown),
    "not": _bits(on.negation),
    "is_finite": lambda step, values: step.each(values, on.finite),
}
