"""What is known of comparisons, of logic, and of choices that depend on it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.program.primitives import range_arithmetic as on
from jaxprune.program.primitives.elementwise.bounds import Entrywise, each
from jaxprune.program.primitives.ranges import Rule, Step, Value


def _select(step: Step, values: Sequence[Value]) -> list[Value]:
    which, *cases = values
    for number, case in enumerate(cases):
        if all(np.all((a.low == number) & (a.high == number)) for a in which.ranges()):
            return [case]
    (found,) = each(step, values, on.select)
    for number, case in enumerate(cases):
        if which.known is not None and all(np.all(a.finite) for a in case.ranges()):
            found.finite_at = partial(_chosen, which.known, number)
    return [found]


def _chosen(known: Callable[[], Any], number: int) -> Any:
    return np.asarray(known()) == number


def _compare(function: Entrywise, same: bool) -> Rule:
    """A comparison; of a value with itself it is known, unless that is NaN."""

    def rule(step: Step, values: Sequence[Value]) -> list[Value]:
        if values[0] is not values[1]:
            return each(step, values, function)
        return each(step, values, lambda a, _: on.truth(~a.nan & same, ~a.nan & (not same)))

    return rule


def _bits(function: Entrywise) -> Rule:
    """Logic: known for bools only."""

    def rule(step: Step, values: Sequence[Value]) -> list[Value]:
        logical = step.equation.outvars[0].aval.dtype == jnp.bool_
        return each(step, values, function if logical else on.unknown)

    return rule


RULES: dict[str, Rule] = {
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
    "is_finite": lambda step, values: each(step, values, on.finite),
}
