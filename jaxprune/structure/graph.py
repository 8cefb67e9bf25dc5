"""``trace``: which entries of the parameters of a JAX function can only be removed together; and their removal."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import jax
import numpy as np

from jaxprune import tree
from jaxprune.base import Masks, Params
from jaxprune.masks import apply_masks
from jaxprune.program import jaxprs
from jaxprune.program.labelling import STAYS
from jaxprune.structure import certification, cost, cutting, plans, tracing
from jaxprune.structure.certification import Certificate
from jaxprune.structure.groups import Group, Row, find
from jaxprune.structure.plans import Plan, Units


@dataclass(frozen=True, eq=False)
class Graph:
    """What :func:`trace` finds out about a function. See there.

    Attributes:
      groups: what can be removed, in the order in which the program uses it.
    """

    groups: tuple[Group, ...]
    _function: Callable[..., Any]
    _label: Callable[[Any], tracing.Traced]
    _params: Params
    _traced: tracing.Traced
    _inputs: Any

    def __repr__(self) -> str:
        units = sum(group.size for group in self.groups)
        return (
            f"Graph({len(self.groups)} groups of {units:,} units, in {len(jax.tree.leaves(self._params))} parameters)"
        )

    @property
    def ambiguous(self) -> list[str]:
        """The places where an axis is split or merged and more than one part could be cut: there ``split`` decides."""
        return self._traced.ambiguous

    def why_pinned(self, path: str, axis: int) -> str:
        """Says why entries along an axis of a parameter stay, with the lines of the source where that comes from.

        Args:
          path: of the parameter, as in ``groups``.
          axis: of the parameter, counted from the front or from the back.

        Returns:
          The reasons, joined by semicolons; the empty string if all entries can be removed.
        """
        row = self._row(path, axis)
        stays = self._traced.labels.resolve(row.labels) == STAYS
        grouped = [units >= 0 for _, units in plans.along(self.groups, row.path, row.axis)]
        reasons = (self._traced.labels.why(row.labels[stays]) or ["it has size 1"]) if stays.any() else []
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
        return plans.from_masks(masks, self._params, self.groups)

    def at(self, plan: Plan) -> "Resolved":
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
        return Resolved(units, plans.entries(units, self.groups), self)

    def _row(self, path: str, axis: int) -> Row:
        named = [row for row in self._traced.rows if row.path == path]
        if not named:
            raise ValueError(
                f"there is no parameter {path!r}; there are {[r.path for r in self._traced.rows if not r.axis]}"
            )
        if not -named[0].rank <= axis < named[0].rank:
            raise ValueError(f"{tree.show(path)} has {named[0].rank} axes and no axis {axis}")
        return named[axis % named[0].rank]


@dataclass(frozen=True, eq=False)
class Resolved:
    """A function under a plan, resolved once: :meth:`Graph.at` gives it.

    Attributes:
      units: for each group that the plan names, which of its units stay.
      kept: for each ``(path, axis)`` of a parameter that loses entries, which of them stay.
    """

    units: Units
    kept: dict[tuple[str, int], np.ndarray]
    _graph: Graph
    _programs: dict[Any, tuple[tracing.Traced, np.ndarray]] = field(default_factory=dict)

    def __repr__(self) -> str:
        left, all_ = sum(int(flags.sum()) for flags in self.units.values()), sum(f.size for f in self.units.values())
        return f"Resolved({left:,} of {all_:,} units of {len(self.units)} groups stay)"

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter that is left, by path."""
        return dict(cutting.small_shapes(self._graph._params, self.kept))

    @cached_property
    def _removed(self) -> np.ndarray:
        return self._graph._traced.removed(self.kept)

    @cached_property
    def flops(self) -> int:
        """Floating-point operations of the smaller function, at the shapes that were traced.

        Matrix products and convolutions count, 2 for a multiplication and an addition, padding included; the steps of
        scans count each, the body of a while loop once, and of the branches of a condition the dearest.
        """
        return cost.operations(self._graph._traced.frame, self._removed)

    @cached_property
    def certificate(self) -> Certificate:
        """Whether removal equals masking, as :meth:`certify` says of ``mask``."""
        return self.certify()

    def cut(self, params: Any) -> Any:
        """Cuts parameters, or anything of their shape: gradients, optimizer states, masks, batch statistics.

        Args:
          params: a tree like the one that was traced; or one that holds such trees, or the collections of one, as
            subtrees: the state of an optimizer. Leaves that broadcast, as masks of units do, are cut along the axes
            that they have.

        Returns:
          The tree, smaller. Dtypes and structure are kept.

        Raises:
          ValueError: no part of the tree is like the parameters, or a leaf has another shape, with its path.
        """
        return cutting.cut_tree(params, self._graph._params, self.kept)

    def mask(self, params: Params) -> Params:
        """The parameters in their full shapes, with 0 in every entry that is removed: what removal imitates."""
        return cutting.mask_tree(params, self._graph._params, self.kept)

    def apply(self, params: Params, *inputs: Any) -> Any:
        """The smaller function, ``apply(cut(params), *inputs)``, under ``jit``, ``grad`` and ``vmap`` as well.

        For inputs of other shapes the original function is traced again.

        Raises:
          ValueError: parameters of other shapes than cut ones have; inputs at whose shapes the plan is not possible.
        """
        leaves = cutting.check_small(params, self._graph._params, list(self.shapes.items()))
        key = jaxprs.key(inputs)
        if key not in self._programs:
            same = key == jaxprs.key(self._graph._inputs)
            traced = self._graph._traced if same else self._graph._label(inputs)
            self._programs[key] = traced, traced.removed(self.kept)
        traced, removed = self._programs[key]
        return traced.run(leaves, inputs, removed)

    def certify(self, masked: Masks | None = None) -> Certificate:
        """Says, without running anything, whether removal equals masking, and where not.

        The program is followed with ranges of numbers instead of numbers. At every sum, product and extreme over an
        axis that loses entries these must contribute nothing: exact means that ``apply`` of the cut parameters gives
        the outputs that the function has for the masked ones, up to rounding, for all parameters and inputs. The other
        way round it is careful: a fault may also mean that nothing was found that rules a difference out.

        It is assumed that parameters, inputs, and what the smaller function computes from them are finite, unless the
        program itself writes infinities; that nothing overflows; and that positions lie within what they index. Outputs
        of ``free_output`` are not compared.

        Args:
          masked: what is known to be 0. ``None``: every entry that is removed, as in ``mask``. Else masks in the
            structure of the parameters, True keeps: only what they remove is 0, everything else may be any finite
            number, removed or not.

        Returns:
          ``Certificate(exact, faults)``, where a fault is ``(operation, line, reason)``. ``print`` it.

        >>> import jax.numpy as jnp
        >>> params = {"first": jnp.ones((3, 8)), "second": jnp.ones((8, 2))}
        >>> graph = trace(lambda p, x: jax.nn.gelu(x @ p["first"]) @ p["second"], params, jnp.ones((4, 3)))
        >>> print(graph.at({"first:1": [0, 2, 5]}).certify())
        exact: what is removed contributes nothing
        """
        return certification.certify(self._graph._traced, self._removed, self._graph._params, masked)

    def check(self, params: Params, *inputs: Any, masked: Masks | None = None) -> float:
        """Runs both functions: the numbers beside the certificate.

        Args:
          params: uncut parameters.
          *inputs: as the function takes them, in the shapes that were traced, or others.
          masked: masks to apply to the parameters first, True keeps. ``None``: all that is removed is 0.

        Returns:
          The largest absolute difference between the outputs of the function of masked parameters and of the smaller
          function of cut ones; infinite where only one of them is a number. Outputs of ``free_output`` do not count.
        """
        full = self.mask(params) if masked is None else apply_masks(params, masked)
        outputs, small = self._graph._function(full, *inputs), self.apply(self.cut(full), *inputs)
        return certification.difference(self._graph._traced.free, outputs, small)


def trace(
    apply_fn: Callable[..., Any],
    params: Params,
    *inputs: Any,
    split: Literal["leading", "trailing"] = "leading",
    free_output: tracing.FreeOutput = None,
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
    shapes, given = jax.tree.map(jaxprs.struct, (params, inputs))

    def label(inputs: Any) -> tracing.Traced:
        return tracing.label(apply_fn, shapes, inputs, split == "trailing", free_output)

    traced = label(given)
    return Graph(find(traced.rows, traced.labels), apply_fn, label, shapes, traced, given)
