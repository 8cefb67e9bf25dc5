"""The certificate that removal equals masking: that what a plan removes contributes nothing where axes are reduced.

The function of cut parameters gives at every place that is left what the original function gives there with 0 in the
removed entries, as long as each sum, product or extreme over an axis that loses entries is the same without them. So
the traced program is run once on ranges of numbers instead of numbers, and each such operation is looked at.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune import tree
from jaxprune.base import Masks, Params
from jaxprune.program import jaxprs, ranges
from jaxprune.program.bounding import Bounding
from jaxprune.program.jaxprs import visit
from jaxprune.program.primitives import RULES
from jaxprune.program.ranges import Fault, Gone, Value, all_faults
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
    reader = Bounding(removed, RULES)
    count = len(tree.flatten(params).leaves)
    flags = [None] * count if masked is None else list(plans.mask_flags(masked, params).values())
    values = []
    for position, variable in enumerate(jaxprs.body(traced.frame.program).invars):
        given = _given(variable.aval, reader.gone(traced.frame.values[variable]))
        values.append(_parameter(given, flags[position]) if position < count else given)
    with np.errstate(all="ignore"):
        outs = visit(traced.frame.program, values, reader, guide=traced.frame).results
    found = all_faults(out for out, free in zip(outs, traced.free, strict=True) if not free)
    # A line may be met more than once, as in rounds of a loop: what was found last knows most.
    places = {(fault.operation, fault.line): fault for fault in reader.found if fault in found}
    return Certificate(not found, tuple(places.values()))


def difference(free: Sequence[bool], outputs: Any, others: Any) -> float:
    """The largest absolute difference between outputs that may not shrink; infinite where only one is a number."""
    pairs = zip(free, jax.tree.leaves(outputs), jax.tree.leaves(others), strict=True)
    return max((_difference(_numbers(a), _numbers(b)) for may_shrink, a, b in pairs if not may_shrink), default=0.0)


def _numbers(output: Any) -> np.ndarray:
    if jax.numpy.issubdtype(output.dtype, jax.dtypes.prng_key):
        output = jax.random.key_data(output)
    array = np.asarray(output)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    return float(np.max(np.where(np.isnan(apart), np.inf, apart), initial=0.0))


def _given(aval: Any, gone: Gone) -> Value:
    """An input: any finite numbers."""
    whole = ranges.settle(ranges.UNBOUNDED, aval.dtype)
    return Value(whole, {i: ranges.many(whole, flags.size) for i, flags in gone.items()}, gone)


def _parameter(value: Value, mask: np.ndarray | None) -> Value:
    """A parameter: 0 where it is known to be, else any finite numbers."""
    for axis, flags in value.gone.items():
        zero = flags
        if mask is not None:
            zero = flags & ~np.any(mask, axis=tuple(i for i in range(mask.ndim) if i != axis))
        value.axes[axis] = ranges.choose(zero, ranges.ZERO, value.axes[axis])
    return value
