"""What a rule is: how an operation hands labels on, and how it runs when some of the entries are gone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.program import jaxprs
from jaxprune.program.labels import Axes
from jaxprune.program.visitor import Call, Scope

#: One bool array for each axis of a value: which entries are left.
Kept = tuple[np.ndarray, ...]


@dataclass
class Site:
    """An equation about to run on smaller operands.

    Attributes:
      equation: as it was traced, with the shapes before.
      ins: what is left of each operand.
      outs: what is left of each result.
      children: the scopes of the programs it calls.
      run: runs such a scope on small values.
    """

    equation: Any
    ins: list[Kept]
    outs: list[Kept]
    children: list[Scope]
    run: Callable[[Scope, Sequence[Any]], list[Any]]

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the equation."""
        return self.equation.params

    def bind(self, values: Sequence[Any], **changed: Any) -> list[Any]:
        """Runs the operation on the small values, with some parameters changed."""
        return jaxprs.bind(self.equation, values, **changed)


class Rule(NamedTuple):
    """How one operation takes part.

    Attributes:
      label: ``(call, labels of the operands) -> labels of the results``; ties and pins on the way.
      run: ``(site, small operands) -> small results``.
      calls: whether the operation runs other programs, whose equations answer for themselves.
    """

    label: Callable[[Call, Sequence[Axes]], list[Axes]]
    run: Callable[[Site, Sequence[Any]], list[Any]] = Site.bind
    calls: bool = False


def sizes(kept: Kept) -> tuple[int, ...]:
    """The shape that is left."""
    return tuple(int(np.count_nonzero(axis)) for axis in kept)


def run_whole(site: Site, values: Sequence[Any]) -> list[Any]:
    """For operations whose operands are complete: runs them as they were, and cuts the results."""
    return [cut(value, kept) for value, kept in zip(site.bind(values), site.outs, strict=True)]


def cut(value: Any, kept: Kept) -> Any:
    """The entries of a complete value that are left."""
    for axis, flags in enumerate(kept):
        if not flags.all():
            value = take(value, np.flatnonzero(flags), axis)
    return value


def take(value: Any, places: np.ndarray, axis: int) -> Any:
    """The entries at fixed places along an axis: a slice where they are evenly spaced, else a gather."""
    if isinstance(value, np.ndarray):
        return np.take(value, places, axis)
    steps = np.unique(np.diff(places))
    if places.size and steps.size <= 1 and (steps.size == 0 or steps[0] > 0):
        return jax.lax.slice_in_dim(value, places[0], places[-1] + 1, int(steps[0]) if steps.size else 1, axis)
    return jax.numpy.take(value, places, axis, unique_indices=True, indices_are_sorted=bool(np.all(steps > 0)))
