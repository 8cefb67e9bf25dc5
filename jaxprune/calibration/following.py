"""Follows the axes of a mask of rows, such as of padded tokens, through a program: which axes of each value they are.

An abstract pass ahead of the one that collects. Where an operation mixes rows up, what depends on it is marked so, and
a product that needs it raises.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune.base import Array
from jaxprune.calibration.factors import Factor, Factors, fresh
from jaxprune.calibration.row_rules import RULES, by_entry, joined
from jaxprune.program import jaxprs
from jaxprune.program.jaxprs import Frame, Site
from jaxprune.program.primitives.calls import scan_parts, while_parts

#: Operations that run one program as it is; what else they know of is its derivative, or how to save memory.
INLINE = (
    *("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "remat"),
    *("custom_jvp_call", "custom_vjp_call"),
)


class Mark(NamedTuple):
    """Where the axes of the mask are in a value; ``factors`` is None where they are mixed up, by what ``why`` says."""

    factors: Factors | None
    why: str = ""


class _Follow:
    """The reader of the pass."""

    site = Site

    def constant(self, variable: Any, value: Any, guide: Frame | None) -> Mark:
        return Mark(fresh(np.shape(value), known=False))

    def literal(self, atom: Any) -> Mark:
        return Mark(fresh(np.shape(atom.val), known=False))

    def apply(self, site: Site, operands: Sequence[Mark]) -> Sequence[Mark]:
        outs = [out.aval.shape for out in site.equation.outvars]
        if site.name in _CALLS:
            return _CALLS[site.name](site, operands)
        if not any(map(_marked, operands)):
            return [Mark(fresh(shape, known=False)) for shape in outs]
        mixed = [mark for mark in operands if mark.factors is None]
        if mixed:
            return mixed[:1] * len(outs)
        found = RULES.get(site.name, by_entry)(site, [mark.factors for mark in operands])  # type: ignore[misc]
        return [Mark(found(shape) if found else None, f"{site.name} at {site.line}") for shape in outs]


def _marked(mark: Mark) -> bool:
    return mark.factors is None or any(one.origin is not None for axis in mark.factors for one in axis)


def program_of(site: Site) -> Any:
    """The program that an operation runs."""
    return next(site.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in site.params)


def _inline(site: Site, operands: Sequence[Mark]) -> Sequence[Mark]:
    return site.enter(program_of(site), operands)


def _scan(site: Site, operands: Sequence[Mark]) -> Sequence[Mark]:
    constants, carry, stacked = scan_parts(site, operands)
    each = []
    for mark in stacked:
        over = mark.factors is None or mark.factors[0][0].origin is not None  # a scan over the rows themselves
        each.append(Mark(None if over else mark.factors[1:], mark.why or "a scan over them"))  # type: ignore[index]
    carry, outs = _settled(site, site.params["jaxpr"], [*constants], carry, each)
    steps = (Factor(None, site.params["length"]),)
    ys = [Mark(None if mark.factors is None else (steps, *mark.factors), mark.why) for mark in outs]
    return [*carry, *ys]


def _while(site: Site, operands: Sequence[Mark]) -> Sequence[Mark]:
    for_test, for_body, carry = while_parts(site, operands)
    carry, _ = _settled(site, site.params["body_jaxpr"], for_body, carry, [])
    site.enter(site.params["cond_jaxpr"], [*for_test, *carry])  # behind the body, which alone is read
    return carry


def _settled(site: Site, program: Any, before: list[Mark], carry: list[Mark], after: list[Mark]) -> Any:
    """What holds of carried values in every round, and the marks of the other results."""
    while True:
        site.entered.clear()
        outs = site.enter(program, [*before, *carry, *after])
        both = [_either(*pair) for pair in zip(carry, outs[: len(carry)], strict=True)]
        if [one.factors for one in both] == [one.factors for one in carry]:
            return carry, outs[len(carry) :]
        carry = both


def _either(a: Mark, b: Mark) -> Mark:
    if a.factors is None or b.factors is None:
        return a if a.factors is None else b
    return Mark(joined([a.factors, b.factors]), "values of two branches or rounds")


def _cond(site: Site, operands: Sequence[Mark]) -> Sequence[Mark]:
    outs = [site.enter(branch, operands[1:]) for branch in site.params["branches"]]
    first = list(outs[0])
    for other in outs[1:]:
        first = [_either(*pair) for pair in zip(first, other, strict=True)]
    return first


_CALLS: dict[str, Callable[[Site, Sequence[Mark]], Sequence[Mark]]] = {
    **dict.fromkeys(INLINE, _inline),
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}


def follow_rows(program: Any, mask: tuple[int, ...], parameters: int, inputs: Sequence[Any]) -> Frame:
    """The program with the marks of its values.

    Args:
      program: of parameters and inputs.
      mask: the shape of the mask of rows. Its axes are the first ones of each input, as far as their lengths agree.
      parameters: how many of the program's inputs are.
      inputs: the other ones.
    """
    marks = [Mark(fresh(v.aval.shape, known=False)) for v in jaxprs.body(program).invars[:parameters]]
    for leaf in inputs:
        agree = 0
        while agree < min(len(mask), leaf.ndim) and leaf.shape[agree] == mask[agree]:
            agree += 1
        own = tuple((Factor(i if i < agree else None, size),) for i, size in enumerate(leaf.shape))
        marks.append(Mark(own))
    return jaxprs.visit(program, marks, _Follow())


def rows_of(mask: Array, mark: Mark, shape: tuple[int, ...], line: str) -> Array | None:
    """The mask for each entry of a value of that shape, float32; ``None`` if the value has no rows of it.

    Raises:
      ValueError: the rows are mixed up, with the line of the product.
    """
    if mark.factors is None:
        raise ValueError(f"rows= cannot be followed to the product at {line}: mixed up by {mark.why}")
    factors = [one for axis in mark.factors for one in axis]
    found = [one.origin for one in factors if one.origin is not None]
    if not found:
        return None
    for i in set(found):
        sizes = [one.size for one in factors if one.origin == i]
        if sizes != [mask.shape[i]]:
            raise ValueError(
                f"rows= cannot be followed to the product at {line}: its axis {i} is there in parts {sizes}"
            )
    missing = tuple(i for i in range(mask.ndim) if i not in found)
    kept = jnp.any(mask, axis=missing) if missing else mask
    names = [i for i in range(mask.ndim) if i in found]
    kept = jnp.transpose(kept, [names.index(i) for i in found])
    sizes = iter(kept.shape)
    kept = kept.reshape([next(sizes) if one.origin is not None else 1 for one in factors])
    return jnp.broadcast_to(kept, [one.size for one in factors]).reshape(shape).astype(jnp.float32)
