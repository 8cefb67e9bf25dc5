"""The certificate that removal equals masking: that what a plan removes contributes nothing where axes are reduced.

The function of cut parameters gives at every place that is left what the original function gives there with 0 in the
removed entries, as long as each sum, product or extreme over an axis that loses entries is the same without them. So
the traced program is run once on ranges of numbers instead of numbers, and each such operation is looked at.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune import tree
from jaxprune.base import Masks, Params
from jaxprune.program import jaxprs
from jaxprune.program.labels import Axes
from jaxprune.program.primitives import bounds_table, ranges
from jaxprune.program.primitives.elementwise import bounds as elementwise
from jaxprune.program.primitives.elementwise.ties import NAMES
from jaxprune.program.primitives.ranges import Fault, Step, Value
from jaxprune.program.visitor import Scope
from jaxprune.structure import plans, tracing


class Certificate(NamedTuple):
    """Whether removal equals masking, by the program alone.

    Attributes:
      exact: no fault was found: the outputs are the same up to rounding, whatever the parameters and inputs.
      faults: where it makes a difference, or where that cannot be told, in the program's order.
    """

    exact: bool
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        if self.exact:
            return "exact: what is removed contributes nothing"
        places = [f"  {fault.line}: `{fault.operation}` {fault.reason}" for fault in self.faults]
        return "\n".join(["not exact: removal differs from masking", *places])


def certify(traced: tracing.Traced, removed: np.ndarray, params: Params, masked: Masks | None) -> Certificate:
    """Runs a labelled program on ranges. See ``Graph.certify``.

    Args:
      traced: the program.
      removed: for each label, whether it is gone.
      params: their shapes.
      masked: masks of what is known to be 0; ``None``: all that is removed.
    """
    reading = _Reading(removed)
    selection = tree.flatten(params)
    flags = None if masked is None else list(plans.mask_flags(masked, params).values())
    inner = jaxprs.body(traced.scope.program)
    values = []
    for position, variable in enumerate(inner.invars):
        gone = reading.gone(traced.scope.axes[variable])
        if position >= len(selection.leaves):
            values.append(_given(variable.aval, gone))
        else:
            values.append(_parameter(variable.aval, gone, None if flags is None else flags[position]))
    with np.errstate(all="ignore"):
        outs = reading.run(traced.scope, values)
    found = ranges.all_faults(out for out, free in zip(outs, traced.free, strict=True) if not free)
    # A line may be met more than once, as in rounds of a loop: what was found last knows most.
    places = {(fault.operation, fault.line): fault for fault in reading.found if fault in found}
    return Certificate(not found, tuple(places.values()))


def difference(traced: tracing.Traced, outputs: Any, others: Any) -> float:
    """The largest absolute difference between outputs that may not shrink; infinite where only one is a number."""
    pairs = zip(traced.free, jax.tree.leaves(outputs), jax.tree.leaves(others), strict=True)
    return max((_difference(_numbers(a), _numbers(b)) for free, a, b in pairs if not free), default=0.0)


def _numbers(output: Any) -> np.ndarray:
    if jax.numpy.issubdtype(output.dtype, jax.dtypes.prng_key):
        output = jax.random.key_data(output)
    array = np.asarray(output)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    return float(np.max(np.where(np.isnan(apart), np.inf, apart), initial=0.0))


class _Reading:
    """One run of a program on ranges."""

    def __init__(self, removed: np.ndarray) -> None:
        self.removed = removed
        self.found: list[Fault] = []
        self.lines = [""]

    def gone(self, axes: Axes) -> dict[int, np.ndarray]:
        """The axes that lose entries, and which."""
        flags = ((i, self.removed[labels]) for i, labels in enumerate(axes))
        return {i: gone for i, gone in flags if gone.any()}

    def run(self, scope: Scope, values: Sequence[Value]) -> list[Value]:
        """What is known of the results of a program, given its inputs."""
        jaxpr, env = jaxprs.body(scope.program), dict[Any, Value]()
        for variable, constant in zip(jaxpr.constvars, jaxprs.constants(scope.program), strict=True):
            env[variable] = ranges.of_array(constant, self.gone(scope.axes[variable]))
        env.update(zip(jaxpr.invars, values, strict=True))

        def read(atom: Any) -> Value:
            return ranges.of_array(np.asarray(atom.val, atom.aval.dtype), {}) if jaxprs.is_literal(atom) else env[atom]

        for position, equation in enumerate(jaxpr.eqns):
            operands = [read(atom) for atom in equation.invars]
            outs = [self.gone(scope.axes[out]) for out in equation.outvars]
            # Programs of the libraries' own, run by the user's line, have none.
            self.lines.append(jaxprs.line_of(equation) or self.lines[-1])
            step = Step(equation, outs, scope.children.get(position, []), self.run, self.lines[-1])
            env.update(zip(equation.outvars, self._apply(step, operands), strict=True))
            self.lines.pop()
        return [read(atom) for atom in jaxpr.outvars]

    def _apply(self, step: Step, operands: Sequence[Value]) -> list[Value]:
        name = step.equation.primitive.name
        called = bool(step.children)
        rule = bounds_table.RULES.get(name)
        if rule is None or (step.equation.effects and not called):
            rule = elementwise.unknown
            if name not in NAMES and any(value.gone for value in operands):
                step.fault("is not known to the certificate, and may mix removed entries with others")
        results = rule(step, operands)
        self.found += step.faults
        if called:  # what is called answers for itself
            return results
        faults = ranges.all_faults(operands) | frozenset(step.faults)
        cause = next((value.cause for value in operands if value.cause), f"`{name}` at {step.line}")
        if len(results) == 1 and results[0].known is None and all(value.known for value in operands):
            results[0].known = cache(partial(_computed, step.equation, operands))
        return [_with(result, faults, cause) for result in results]


def _computed(equation: Any, operands: Sequence[Value]) -> Any:
    """A value that depends on neither parameters nor inputs: a mask of what comes later, for instance."""
    with jax.ensure_compile_time_eval():
        return jaxprs.bind(equation, [value.known() for value in operands if value.known])[0]


def _with(value: Value, faults: frozenset[Fault], cause: str) -> Value:
    """A result with what it has taken part in; the same object if that is nothing new, as maxima are told by it."""
    if any(not ranges.pick(found, value.gone[i]).finite.all() for i, found in value.axes.items()):
        value = value if value.cause else replace(value, cause=cause)
    return value if value.faults == faults else replace(value, faults=faults)


def _given(aval: Any, gone: dict[int, np.ndarray]) -> Value:
    """An input: any finite numbers."""
    whole = ranges.settle(ranges.UNBOUNDED, aval.dtype)
    return Value(whole, {i: ranges.many(whole, flags.size) for i, flags in gone.items()}, gone)


def _parameter(aval: Any, gone: dict[int, np.ndarray], mask: np.ndarray | None) -> Value:
    """A parameter: 0 where it is known to be, else any finite numbers."""
    value = _given(aval, gone)
    for axis, flags in gone.items():
        zero = flags
        if mask is not None:
            zero = flags & ~np.any(mask, axis=tuple(i for i in range(mask.ndim) if i != axis))
        value.axes[axis] = ranges.choose(zero, ranges.ZERO, value.axes[axis])
    return value
