"""Parameters as products see them: through transposes, reshapes, slices and the steps of scans; and the way back.

A view is data, a list of steps, so that equal programs have equal views. What a step does to numbers is linear, and
moves them only: its transpose writes numbers back to where they came from.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.base import Array
from jaxprune.calibration.factors import Factors, fresh, moved

#: Operations that move the numbers of one operand. Casts are not steps: matrices are float32.
_MOVES = ("transpose", "reshape", "squeeze", "expand_dims", "slice", "rev", "broadcast_in_dim")
_CASTS = ("convert_element_type", "reduce_precision", "copy", "copy_p", "optimization_barrier", "stop_gradient")


class Step(NamedTuple):
    """One operation of ``jax.lax``, under so many leading axes that scans have taken apart."""

    operation: str
    settings: tuple[tuple[str, Any], ...]
    stacked: int

    def __call__(self, value: Array) -> Array:
        def function(value: Array) -> Array:
            return getattr(lax, f"{self.operation}_p").bind(value, **dict(self.settings))

        for _ in range(self.stacked):
            function = jax.vmap(function)
        return function(value)


@dataclass(frozen=True)
class View:
    """A leaf after some steps.

    Attributes:
      path, shape: of the leaf.
      steps: what was done to it.
      stacked: how many leading axes scans have taken apart: what the product sees has none of them.
      factors: which axes of the leaf each axis that the product sees comes from, if that is known.
      scans: where those scans are, outermost first.
    """

    path: str
    shape: tuple[int, ...]
    steps: tuple[Step, ...] = ()
    stacked: int = 0
    factors: Factors | None = None
    scans: tuple[Any, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, path: str, leaf: Any) -> "View":
        """The leaf itself."""
        return cls(path, leaf.shape, factors=fresh(leaf.shape))

    def then(self, operation: str, shape: Sequence[int], **settings: Any) -> "View":
        """The view after one more operation of ``jax.lax``, whose result has that shape."""
        step = Step(operation, tuple(sorted(settings.items())), self.stacked)
        factors = self.factors and moved(self.factors, operation, settings, shape)
        return replace(self, steps=(*self.steps, step), factors=factors)

    def in_scan(self, scan: Any) -> "View":
        """What one step of a scan sees, whose input the view is."""
        factors = self.factors and self.factors[1:]
        return replace(self, stacked=self.stacked + 1, factors=factors, scans=(*self.scans, scan))

    def __call__(self, leaf: Array) -> Array:
        for step in self.steps:
            leaf = step(leaf)
        return leaf


def follow(view: View, equation: Any) -> list[View] | None:
    """The views that an operation on one operand makes of it; ``None`` if it does more than to move numbers."""
    name, source, results = equation.primitive.name, equation.invars[0].aval, [out.aval for out in equation.outvars]
    if name in _CASTS:
        return [view] if jnp.issubdtype(results[0].dtype, jnp.floating) else None
    if name == "split":
        ends = [sum(equation.params["sizes"][:i]) for i in range(len(results) + 1)]
        axis, rank = equation.params["axis"], source.ndim
        return [_part(view, source.shape, axis, low, high, rank) for low, high in zip(ends, ends[1:], strict=False)]
    if name not in _MOVES or math.prod(results[0].shape) > math.prod(source.shape):
        return None
    return [view.then(name, results[0].shape, **equation.params)]


def _part(view: View, shape: Sequence[int], axis: int, low: int, high: int, rank: int) -> View:
    starts = tuple(low if i == axis else 0 for i in range(rank))
    limits = tuple(high if i == axis else size for i, size in enumerate(shape))
    sizes = [limit - start for start, limit in zip(starts, limits, strict=True)]
    return view.then("slice", sizes, start_indices=starts, limit_indices=limits, strides=None)


class Use(NamedTuple):
    """How a product uses a leaf: as ``L`` matrices of ``K`` inputs and ``N`` outputs.

    Attributes:
      view: the leaf as an array of shape [stacked..., L', K, N], with all axes but the stacked ones grouped.
      shape: (L, K, N); stacked layers count as matrices.
      source: the name of the data that the product multiplies it with; uses of the same data share it.
      lookup: whether rows are looked up instead: ``K`` rows of ``N`` entries.
    """

    view: View
    shape: tuple[int, int, int]
    source: str
    lookup: bool = False

    @property
    def path(self) -> str:
        """The path of the leaf."""
        return self.view.path

    @property
    def axes(self) -> tuple[tuple[int, ...], ...] | None:
        """The batch, input and output axes of the leaf, if they are known; one that is partly an output is one."""
        if self.view.factors is None:
            return None
        seen = [{factor.origin for factor in axis} for axis in self.view.factors]
        groups: tuple[list[int], ...] = ([], [], [])
        for axis in range(len(self.view.shape)):
            groups[max((i for i, origins in enumerate(seen) if axis in origins), default=0)].append(axis)
        return tuple(map(tuple, groups))

    @property
    def form(self) -> "Use":
        """The same without names, equal for all leaves that are used alike: what programs are compiled for."""
        return self._replace(view=replace(self.view, path="", scans=()), source="")

    def by_layer(self, whole: bool) -> tuple[int, "Use"]:
        """The number of layers that a scan takes off the first axis of the leaf, and the form in which it uses one.

        One layer for the ``whole`` leaf, or if no scan does so.
        """
        form, (count, inputs, outputs) = self.form, self.shape
        view = form.view
        if whole or not view.stacked or any(step.stacked == 0 for step in view.steps):
            return 1, form
        steps = tuple(step._replace(stacked=step.stacked - 1) for step in view.steps)
        layers, *shape = view.shape
        view = replace(view, shape=tuple(shape), steps=steps, stacked=view.stacked - 1, factors=None)
        return layers, form._replace(view=view, shape=(count // layers, inputs, outputs))

    def matrices(self, leaf: Array) -> Array:
        """The leaf as float32 [L, K, N]."""
        return self.view(jnp.asarray(leaf).astype(jnp.float32)).reshape(self.shape)

    def leaf(self, matrices: Array, like: Any) -> Array:
        """What [L, K, N] is as a leaf of the shape of ``like``: zero where the product sees nothing of it."""
        shape = jax.ShapeDtypeStruct(like.shape, jnp.float32)
        (leaf,) = jax.linear_transpose(self.matrices, shape)(matrices.astype(jnp.float32))
        return leaf


def grouped(view: View, shape: Sequence[int], axes: tuple[Sequence[int], ...]) -> tuple[View, tuple[int, ...]]:
    """The view with its axes in groups, each of which becomes one, and its shape."""
    order = tuple(axis for group in axes for axis in group)
    sizes = tuple(math.prod(shape[axis] for axis in group) for group in axes)
    if order != tuple(range(len(shape))):
        view = view.then("transpose", [shape[axis] for axis in order], permutation=order)
    if sizes != tuple(shape[axis] for axis in order):
        view = view.then("reshape", sizes, new_sizes=sizes, dimensions=None, sharding=None)
    return view, sizes
