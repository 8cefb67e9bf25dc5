"""``shrink``: scores, a budget, a plan, the cut and the smaller function in one call."""

import functools
import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxprune import saliency as criteria
from jaxprune import settings
from jaxprune.base import Params, Saliency, Where
from jaxprune.structure import budgets, cost, scores
from jaxprune.structure.graph import Graph, trace
from jaxprune.structure.groups import Group
from jaxprune.structure.plans import Units
from jaxprune.structure.summary import ShrinkReport, summarize
from jaxprune.structure.tracing import FreeOutput

Scope = Literal["leaf", "global", "parameters", "flops", "latency"]


class Shrunk(NamedTuple):
    """What :func:`shrink` gives.

    Attributes:
      params: the small parameters, in the structure of the large ones.
      apply: the function of them, ``apply(params, *inputs)``.
      plan: for each group that was asked to shrink, by name, which units stay.
      report: what is left of each group, and what it costs.
    """

    params: Params
    apply: Callable[..., Any]
    plan: Units
    report: ShrinkReport


def shrink(
    apply_fn: Callable[..., Any],
    params: Params,
    inputs: Any,
    sparsity: float,
    *,
    saliency: Saliency = criteria.magnitude,
    round_to: int = 1,
    min_keep: int = 1,
    scope: Scope = "global",
    where: Where = None,
    groups: str | Sequence[str] | None = None,
    split: Literal["leading", "trailing"] = "leading",
    free_output: FreeOutput = None,
    allow_inexact: bool = False,
) -> Shrunk:
    """Removes the least important channels, heads and neurons of a function, and gives the smaller function.

    The function is traced (:func:`trace`); each unit is scored over all parameters it takes part in, by the mean of
    ``s / mean(s)`` over the members of its group; the lowest go; parameters and program are cut.

    Args:
      apply_fn: ``(params, *inputs) -> outputs``, any JAX function.
      params: any pytree of arrays, concrete.
      inputs: example inputs: a tuple of them, or the only one. Arrays; or ``ShapeDtypeStruct``, unless latency is
        measured.
      sparsity: the fraction to remove, in [0, 1]: of the units, or of what ``scope`` names. Concrete.
      saliency: ``params -> scores``, of weights or of units, larger is more important; see ``jaxprune.saliency``.
      round_to: static; the units that stay in a group are rounded up to a multiple of it, all of them at most.
      min_keep: static; at least so many units of each group stay.
      scope: static; "leaf" removes the same fraction of each group, "global" the lowest scores of all groups together;
        "parameters", "flops" and "latency" go on in that order until this fraction of the parameters, of the operations
        of matrix products and convolutions, or of the measured time of a call is saved.
      where: whose scores count, kernels and embeddings by default; see :func:`jaxprune.tree.select`.
      groups: which groups may lose units: glob patterns over their names and descriptions, a leading ``!`` excludes.
      split: see :func:`trace`.
      free_output: see :func:`trace`.
      allow_inexact: static; whether to remove units although the smaller function may differ from the masked one.

    Returns:
      A :class:`Shrunk`. Rounding up and ``min_keep`` may leave more than was asked for; the report has what it is.

    Raises:
      ValueError: sparsity outside [0, 1] or NaN; ``round_to`` or ``min_keep`` below 1; an unknown scope; a pattern that
        matches no group; nothing that can be removed; a budget that cannot be met; removal that is not the same as
        masking, with the lines of the source, unless ``allow_inexact``.
      TypeError: traced parameters.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> params = {"first": jnp.ones((3, 8)), "second": jnp.ones((8, 2))}
    >>> def function(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> shrunk = shrink(function, params, jnp.ones((4, 3)), 0.5)
    >>> shrunk.params["first"].shape, shrunk.apply(shrunk.params, jnp.ones((4, 3))).shape
    ((3, 4), (4, 2))
    """
    amount = float(settings.check_setting(sparsity, "sparsity", 0.0, 1.0))
    for name, value in (("round_to", round_to), ("min_keep", min_keep)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    graph = trace(apply_fn, params, *inputs, split=split, free_output=free_output)
    chosen = _chosen(graph, groups)
    units = scores.of_groups(chosen, params, saliency, where)
    plan = _plan(graph, chosen, units, amount, scope, budgets.Limits(round_to, min_keep), (params, inputs))
    certificate = graph.certify(plan)
    if not certificate.exact and not allow_inexact:
        raise ValueError(
            f"removal would differ from masking: {certificate}\nallow_inexact=True removes the units all the same, "
            "groups=['!...'] leaves groups alone"
        )
    small = graph.cut(params, plan)
    return Shrunk(small, graph.apply(plan), plan, summarize(graph, params, plan, certificate))


def _chosen(graph: Graph, patterns: str | Sequence[str] | None) -> tuple[Group, ...]:
    """The groups that may lose units."""
    if not graph.groups:
        raise ValueError("nothing can be removed: every axis of every parameter has to stay; see graph.why_pinned")
    if patterns is None:
        return graph.groups
    listed = [patterns] if isinstance(patterns, str) else list(patterns)

    def matches(group: Group, pattern: str) -> bool:
        return fnmatchcase(group.name, pattern) or fnmatchcase(group.description, pattern)

    for pattern in listed:
        if not any(matches(group, pattern.removeprefix("!")) for group in graph.groups):
            there = [f"{group.name} ({group.description})" for group in graph.groups]
            raise ValueError(f"groups={pattern!r} matches none of {there}")
    wanted = [pattern for pattern in listed if not pattern.startswith("!")] or ["*"]
    unwanted = [pattern[1:] for pattern in listed if pattern.startswith("!")]
    return tuple(
        group
        for group in graph.groups
        if any(matches(group, p) for p in wanted) and not any(matches(group, p) for p in unwanted)
    )


def _plan(
    graph: Graph,
    groups: Sequence[Group],
    units: dict[str, np.ndarray],
    amount: float,
    scope: Scope,
    limits: budgets.Limits,
    example: tuple[Params, Any],
) -> Units:
    if scope == "leaf":
        return budgets.each(groups, units, amount, limits)
    total = sum(group.size for group in groups)

    def without(removed: int) -> Units:
        return budgets.together(groups, units, removed, limits)

    if scope == "global":
        return without(budgets.count(total, amount))
    params, inputs = example
    costs: dict[str, Callable[[Units], float]] = {
        "parameters": lambda plan: sum(math.prod(shape) for shape in graph.shapes(plan).values()),
        "flops": graph.flops,
        "latency": lambda plan: cost.seconds(graph.apply(plan), graph.cut(params, plan), *inputs),
    }
    if scope not in costs:
        raise ValueError(f"scope must be 'leaf', 'global', 'parameters', 'flops' or 'latency', got {scope!r}")
    spent = functools.cache(lambda removed: costs[scope](without(removed)))
    needed = budgets.least(spent, total, (1 - amount) * spent(0))
    if (left := spent(needed) / spent(0)) > 1 - amount:
        raise ValueError(
            f"the {scope} cannot be cut by {amount:g}: with the fewest units that may stay {left:.3g} of them are left"
        )
    return without(needed)
