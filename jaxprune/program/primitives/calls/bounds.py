"""What is known of results of programs that are called: once, in turns, or one of several."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from jaxprune.program.bounding import Bound, Step, Value, all_faults
from jaxprune.program.primitives.calls.ties import INLINE, REMAT, scan_counts, while_parts
from jaxprune.program.ranges import Range, join

#: Rounds of a loop that are followed; what still changes then is taken for unknown.
ROUNDS = 3


def _inline(step: Step, values: Sequence[Value]) -> list[Value]:
    return step.follow(step.children[0], values)


def _scan(step: Step, values: Sequence[Value]) -> list[Value]:
    constants, carried = scan_counts(step.equation)
    fixed, carry = list(values[:constants]), list(values[constants : constants + carried])
    inputs = [_shifted(value, -1) for value in values[constants + carried :]]
    carry = _settled(carry, lambda carry: step.follow(step.children[0], [*fixed, *carry, *inputs])[:carried])
    outs = step.follow(step.children[0], [*fixed, *carry, *inputs])
    return [*carry, *(_shifted(value, 1) for value in outs[carried:])]


def _while(step: Step, values: Sequence[Value]) -> list[Value]:
    for_test, for_body, carry = while_parts(step.params, values)
    test, body = step.children
    carry = _settled(carry, lambda carry: step.follow(body, [*for_body, *carry]))
    # How often the body runs decides on every result.
    faults = all_faults(step.follow(test, [*for_test, *carry]))
    return [replace(value, faults=value.faults | faults) for value in carry]


def _cond(step: Step, values: Sequence[Value]) -> list[Value]:
    index, *operands = values
    branches = [step.follow(scope, operands) for scope in step.children]
    joined = [_joined(*outs) for outs in zip(*branches, strict=True)]
    return [replace(value, faults=value.faults | index.faults) for value in joined]


def _settled(carry: list[Value], body: Callable[[list[Value]], list[Value]]) -> list[Value]:
    """What holds for carried values before and after every round."""
    carry, rounds = [_joined(value) for value in carry], 0  # each its own: they may part after the first round
    while True:
        after = body(carry)
        joined = [_joined(a, b) for a, b in zip(carry, after, strict=True)]
        if all(_same(a, b) for a, b in zip(carry, joined, strict=True)):
            return joined
        rounds += 1
        if rounds >= ROUNDS:
            joined = [_grown(a, b) for a, b in zip(carry, joined, strict=True)]
        carry = joined


def _joined(*values: Value) -> Value:
    """What holds for either of some values of one shape."""
    first = values[0]
    axes = {i: join(*(value.axes[i] for value in values)) for i in first.axes}
    cause = next((value.cause for value in values if value.cause), "")
    return Value(join(*(value.rest for value in values)), axes, first.gone, all_faults(values), cause=cause)


def _same(a: Value, b: Value) -> bool:
    pairs = zip(a.ranges(), b.ranges(), strict=True)
    return a.faults == b.faults and all(
        np.array_equal(x, y) for one, other in pairs for x, y in zip(one, other, strict=True)
    )


def _grown(before: Value, after: Value) -> Value:
    """Bounds that still move are moved as far as they go."""

    def grown(a: Range, b: Range) -> Range:
        return Range(
            np.where(b.low < a.low, -np.inf, b.low), np.where(b.high > a.high, np.inf, b.high), b.nan, b.infinite
        )

    axes = {i: grown(before.axes[i], after.axes[i]) for i in after.axes}
    return replace(after, rest=grown(before.rest, after.rest), axes=axes)


def _shifted(value: Value, by: int) -> Value:
    """One step of a stacked value (-1), or the stack of a value at all steps (1)."""
    axes = {i + by: found for i, found in value.axes.items()}
    gone = {i + by: flags for i, flags in value.gone.items()}
    return Value(value.rest, axes, gone, value.faults, cause=value.cause)


BOUNDS: dict[str, Bound] = {
    **{name: _inline for name in (*INLINE, *REMAT, "custom_jvp_call", "custom_vjp_call")},
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
