"""``trace``: which entries of the parameters of a JAX function can only be removed together; and their removal."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from jaxprune import tree
from jaxprune.base import Masks, Params
from jaxprune.program import jaxprs
from jaxprune.program.labels import STAYS
from jaxprune.structure import plans
from jaxprune.structure.groups import Group, Row, find
from jaxprune.structure.plans import Plan, Units
from jaxprune.structure.resolved import Resolved
from jaxprune.structure.tracing import FreeOutput, Origin

_HOLDS_ARRAYS = """apply_fn is a {}, which holds arrays: give a pure function of parameters and inputs. Of NNX:
graphdef, params, rest = nnx.split(model, nnx.Param, ...) and lambda p, x: nnx.merge(graphdef, p, rest)(x). Of Equinox:
params, static = eqx.partition(model, eqx.is_inexact_array) and lambda p, x: eqx.combine(p, static)(x)."""


@dataclass(frozen=True, eq=False)
class Graph:
    """What :func:`trace` finds out about a function. See there.

    Attributes:
      groups: what can be removed, in the order in which the program uses it.
    """

    groups: tuple[Group, ...]
    _origin: Origin

    def __repr__(self) -> str:
        units, leaves = sum(group.size for group in self.groups), len(jax.tree.leaves(self._origin.params))
        return f"Graph({len(self.groups)} groups of {units:,} units, in {leaves} parameters)"

    @property
    def ambiguous(self) -> list[str]:
        """The places where an axis is split or merged and more than one part could be cut: there ``split`` decides."""
        return self._origin.traced.ambiguous

    def why_pinned(self, path: str, axis: int) -> str:
        """Says why entries along an axis of a parameter stay, with the lines of the source where that comes from.

        Args:
          path: of the parameter, as in ``groups``.
          axis: of the parameter, counted from the front or from the back.

        Returns:
          The reasons, joined by semicolons; the empty string if all entries can be removed.
        """
        row = self._row(path, axis)
        stays = self._origin.traced.labels.resolve(row.labels) == STAYS
        grouped = [units >= 0 for _, units in plans.along(self.groups, row.path, row.axis)]
        reasons = (self._origin.traced.labels.why(row.labels[stays]) or ["it has size 1"]) if stays.any() else []
        if not np.any([stays, *grouped], axis=0).all():
            reasons.append("entries of a single unit, which has no like beside it, or that no product makes or uses")
        return "; ".join(reasons)

    def plan_from(self, masks: Masks) -> Units:
        """The plan that removes the units that masks remove.

        A unit goes if every parameter that makes it is masked there altogether, or every parameter that uses it is.

        Args:
          masks: bool, in the structure of the parameters; True keeps. Masks of units, of weights, and the 0-d True.

        Returns:
          For each group that loses units, by name, which of them stay.
        """
        return plans.from_masks(masks, self._origin.params, self.groups)

    def at(self, plan: Plan) -> Resolved:
        """The function under a plan: its shapes, its cost, its certificate; cutting; the smaller function.

        Args:
          plan: what stays: for a group, its name, or the ``(path, axis)`` of a parameter, indices or a bool mask.
            ``{}`` removes nothing.

        Raises:
          ValueError: a group that there is not; an axis that stays, with the reason; entries that go together, but of
            which only some are to stay; indices out of range; nothing that stays.
          TypeError: a plan that is traced, or holds neither indices nor flags.
        """
        units = plans.resolve(plan, self.groups, self.why_pinned, lambda path, axis: self._row(path, axis).axis)
        return Resolved(units, plans.entries(units, self.groups), self._origin)

    def _row(self, path: str, axis: int) -> Row:
        rows = self._origin.traced.rows
        named = [row for row in rows if row.path == path]
        if not named:
            raise ValueError(f"there is no parameter {path!r}; there are {[row.path for row in rows if not row.axis]}")
        if not -named[0].rank <= axis < named[0].rank:
            raise ValueError(f"{tree.show(path)} has {named[0].rank} axes and no axis {axis}")
        return named[axis % named[0].rank]


def trace(
    apply_fn: Callable[..., Any],
    params: Params,
    *inputs: Any,
    split: Literal["leading", "trailing"] = "leading",
    free_output: FreeOutput = None,
) -> Graph:
    """Finds out which entries of the parameters of a function can only be removed together.

    The function is traced to a jaxpr from shapes alone. Every entry of every axis of every value gets a label; each
    operation ties the labels of entries that it brings together, and what is connected is one unit. Operations that are
    not known pin what they touch, so that it stays.

    Args:
      apply_fn: ``(params, *inputs) -> outputs``, any JAX function: ``module.apply``, an NNX model split into graph and
        state, a function of your own. Other arguments have to be closed over.
      params: any pytree of arrays or ``ShapeDtypeStruct``: weights are not needed.
      *inputs: example inputs, arrays or ``ShapeDtypeStruct``.
      split: static. Where an axis is split into several that could be cut (heads and their width), or several are
        merged into one: whether the first or the last of them is cut.
      free_output: the outputs that may lose entries; all others stay whole. Glob patterns over the paths of the outputs
        (``"1/batch_stats/*"`` for the statistics of ``module.apply(..., mutable=["batch_stats"])``), or a predicate
        ``(path, output) -> bool``.

    Returns:
      A :class:`Graph`: ``groups`` lists what can be removed; a *plan* maps a group (or its name, or the path and axis
      of a parameter) to what stays, as indices or a bool mask; ``graph.at(plan)`` cuts parameters and is the function
      of the small ones; ``why_pinned`` says why an axis stays.

    Raises:
      ValueError: an unknown ``split``; symbolic dimensions; a pattern of ``free_output`` that matches no output.
      TypeError: ``apply_fn`` is a module that holds its arrays.

    >>> import jax.numpy as jnp
    >>> params = {"first": jnp.ones((3, 8)), "second": jnp.ones((8, 2))}
    >>> def function(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> graph = trace(function, params, jnp.ones((4, 3)))
    >>> graph.groups
    (Group('first:1', 8 units: features of first; axis 1 of 'first', axis 0 of 'second'),)
    >>> smaller = graph.at({graph.groups[0]: [0, 2, 5]})
    >>> small = smaller.cut(params)
    >>> small["first"].shape, small["second"].shape, smaller.apply(small, jnp.ones((4, 3))).shape
    ((3, 3), (3, 2), (4, 2))
    """
    if split not in ("leading", "trailing"):
        raise ValueError(f"split must be 'leading' or 'trailing', got {split!r}")
    if not isinstance(apply_fn, jax.tree_util.Partial) and any(map(tree.is_array, jax.tree.leaves(apply_fn))):
        raise TypeError(_HOLDS_ARRAYS.format(type(apply_fn).__name__))
    shapes, given = jax.tree.map(jaxprs.struct, (params, inputs))
    origin = Origin(apply_fn, shapes, given, split == "trailing", free_output)
    return Graph(find(origin.traced.rows, origin.traced.labels), origin)
