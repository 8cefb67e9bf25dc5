"""``trace``: which entries of the parameters of a JAX function can only be removed together; and their removal."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np

from jaxprune import tree
from jaxprune.base import Masks, Params
from jaxprune.masks import apply_masks
from jaxprune.program.evaluation import evaluate
from jaxprune.program.labels import STAYS
from jaxprune.structure import certification, cost, cutting, plans, tracing
from jaxprune.structure.groups import Group, Row, find
from jaxprune.structure.plans import Plan, Units


@dataclass(frozen=True)
class Graph:
    """What :func:`trace` finds out about a function. See there.

    Attributes:
      groups: what can be removed, in the order in which the program uses it.
    """

    groups: tuple[Group, ...]
    _function: Callable[..., Any] = field(repr=False)
    _params: Params = field(repr=False)
    _options: tuple[bool, tracing.FreeOutput] = field(repr=False)
    _traced: tracing.Traced = field(repr=False)
    _inputs: Any = field(repr=False)

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
        grouped = [
            units >= 0
            for group in self.groups
            for member, units in zip(group.members, group.units, strict=True)
            if member == (row.path, row.axis)
        ]
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

    def resolve(self, plan: Plan) -> Units:
        """A plan as bool flags, one a unit, for each group that it names; ``ValueError`` where it cannot be."""
        return plans.resolve(plan, self.groups, self.why_pinned, lambda path, axis: self._row(path, axis).axis)

    def kept(self, plan: Plan) -> dict[tuple[str, int], np.ndarray]:
        """For each ``(path, axis)`` of a parameter that loses entries under a plan, which of them stay."""
        return plans.entries(self.resolve(plan), self.groups)

    def cut(self, params: Any, plan: Plan) -> Any:
        """Cuts parameters, or anything of their shape: gradients, optimizer states, masks, batch statistics.

        Args:
          params: a tree like the one that was traced; or one that holds such trees, or the collections of one, as
            subtrees: the state of an optimizer. Leaves that broadcast, as masks of units do, are cut along the axes
            that they have.
          plan: what stays; see :func:`trace`.

        Returns:
          The tree, smaller. Dtypes and structure are kept.

        Raises:
          ValueError: no part of the tree is like the parameters, or a leaf has another shape, with its path.
        """
        return cutting.cut_tree(params, self._params, self.kept(plan))

    def mask(self, params: Params, plan: Plan) -> Params:
        """The parameters in their full shapes, with 0 in every entry that a plan removes: what removal imitates."""
        return cutting.mask_tree(params, self._params, self.kept(plan))

    def apply(self, plan: Plan) -> Callable[..., Any]:
        """The function on cut parameters: ``fn(graph.cut(params, plan), *inputs)``.

        It runs under ``jit``, ``grad`` and ``vmap``. For inputs of other shapes the original function is traced again.

        Args:
          plan: what stays; see :func:`trace`.

        Returns:
          A function like the one that was traced. It raises ``ValueError`` for parameters of other shapes than cut
          ones have, and for inputs at whose shapes the plan is not possible.
        """
        kept, cache = self.kept(plan), {tracing.key(self._inputs): self._traced}
        shapes = cutting.small_shapes(self._params, kept)

        def small(params: Params, *inputs: Any) -> Any:
            leaves = cutting.check_small(params, self._params, shapes)
            key = tracing.key(inputs)
            if key not in cache:
                cache[key] = tracing.label(self._function, self._params, inputs, *self._options)
            traced = cache[key]
            outs = evaluate(traced.scope, [*leaves, *jax.tree.leaves(inputs)], tracing.removed(traced, kept))
            return jax.tree.unflatten(traced.out_tree, outs)

        return small

    def shapes(self, plan: Plan) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter under a plan, by path; ``{}`` is the plan that removes nothing."""
        return dict(cutting.small_shapes(self._params, self.kept(plan)))

    def flops(self, plan: Plan) -> int:
        """Floating-point operations of the function under a plan, at the shapes it was traced with.

        Matrix products and convolutions count, 2 for a multiplication and an addition, padding included; the steps of
        scans count each, the body of a while loop once, and of the branches of a condition the dearest.

        Args:
          plan: what stays; ``{}`` removes nothing.
        """
        return cost.operations(self._traced.scope, tracing.removed(self._traced, self.kept(plan)))

    def certify(self, plan: Plan, *, masked: Masks | None = None) -> certification.Certificate:
        """Says, without running anything, whether removal equals masking, and where not.

        The program is followed with ranges of numbers instead of numbers. At every sum, product and extreme over an
        axis that loses entries these must contribute nothing: exact means that ``apply(plan)`` of the cut parameters
        gives the outputs that the function has for the masked ones, up to rounding, for all parameters and inputs. The
        other way round it is careful: a fault may also mean that nothing was found that rules a difference out.

        It is assumed that parameters, inputs, and what the smaller function computes from them are finite, unless the
        program itself writes infinities; that nothing overflows; and that positions lie within what they index. Outputs
        of ``free_output`` are not compared.

        Args:
          plan: what stays; see :func:`trace`.
          masked: what is known to be 0. ``None``: every entry that the plan removes, as in ``graph.mask``. Else masks
            in the structure of the parameters, True keeps: only what they remove is 0, everything else may be any
            finite number, removed or not.

        Returns:
          ``Certificate(exact, faults)``, where a fault is ``(operation, line, reason)``. ``print`` it.

        >>> import jax.numpy as jnp
        >>> params = {"first": jnp.ones((3, 8)), "second": jnp.ones((8, 2))}
        >>> graph = trace(lambda p, x: jax.nn.gelu(x @ p["first"]) @ p["second"], params, jnp.ones((4, 3)))
        >>> print(graph.certify({"first:1": [0, 2, 5]}))
        exact: what is removed contributes nothing
        """
        removed = tracing.removed(self._traced, self.kept(plan))
        return certification.certify(self._traced, removed, self._params, masked)

    def check(self, plan: Plan, params: Params, *inputs: Any, masked: Masks | None = None) -> float:
        """Runs both functions: the numbers beside the certificate.

        Args:
          plan: what stays; see :func:`trace`.
          params: uncut parameters.
          *inputs: as the function takes them, in the shapes that were traced, or others.
          masked: masks to apply to the parameters first, True keeps. ``None``: all that the plan removes is 0.

        Returns:
          The largest absolute difference between the outputs of the function of masked parameters and of the smaller
          function of cut ones; infinite where only one of them is a number. Outputs of ``free_output`` do not count.
        """
        full = self.mask(params, plan) if masked is None else apply_masks(params, masked)
        small = self.apply(plan)(self.cut(full, plan), *inputs)
        return certification.difference(self._traced, self._function(full, *inputs), small)

    def _row(self, path: str, axis: int) -> Row:
        named = [row for row in self._traced.rows if row.path == path]
        if not named:
            raise ValueError(
                f"there is no parameter {path!r}; there are {[r.path for r in self._traced.rows if not r.axis]}"
            )
        if not -named[0].rank <= axis < named[0].rank:
            raise ValueError(f"{tree.show(path)} has {named[0].rank} axes and no axis {axis}")
        return named[axis % named[0].rank]


def trace(
    function: Callable[..., Any],
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
      function: ``(params, *inputs) -> outputs``, any JAX function: ``module.apply``, an NNX model split into graph and
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
      of a parameter) to what stays, as indices or a bool mask; ``cut`` makes parameters smaller, ``apply`` gives the
      function of the small parameters, ``why_pinned`` says why an axis stays.

    Raises:
      ValueError: an unknown ``split``; symbolic dimensions; a pattern of ``free_output`` that matches no output.

    >>> import jax.numpy as jnp
    >>> params = {"first": jnp.ones((3, 8)), "second": jnp.ones((8, 2))}
    >>> def function(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> graph = trace(function, params, jnp.ones((4, 3)))
    >>> [(group.size, group.members) for group in graph.groups]
    [(8, (('first', 1), ('second', 0)))]
    >>> plan = {graph.groups[0]: [0, 2, 5]}
    >>> small = graph.cut(params, plan)
    >>> small["first"].shape, small["second"].shape, graph.apply(plan)(small, jnp.ones((4, 3))).shape
    ((3, 3), (3, 2), (4, 2))
    """
    if split not in ("leading", "trailing"):
        raise ValueError(f"split must be 'leading' or 'trailing', got {split!r}")
    shapes = jax.tree.map(cutting.struct, params)
    traced = tracing.label(function, shapes, inputs, split == "trailing", free_output)
    found = find(traced.rows, traced.labels)
    return Graph(found, function, shapes, (split == "trailing", free_output), traced, tracing.structs(inputs))
