"""``shrink``: scores, a budget, a plan, the cut and the smaller function in one call, and a report of what is left."""

import bisect
import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxprune import host, settings, tree
from jaxprune import saliency as criteria
from jaxprune.base import Params, Saliency, Where
from jaxprune.structure import ranking
from jaxprune.structure.graph import Graph, trace
from jaxprune.structure.groups import Group
from jaxprune.structure.plans import Units
from jaxprune.structure.ranking import ShrinkSpec
from jaxprune.structure.resolved import Resolved
from jaxprune.structure.tracing import Certificate, matching

#: What a sparsity is a fraction of.
Budget = Literal["leaf", "global", "parameters", "flops", "latency"]


@dataclass(frozen=True)
class GroupRow:
    """One group: its units before and after, and the widths of the parameters that make them.

    Attributes:
      name: of the group.
      description: what its units are.
      size: units before.
      kept: units after.
      widths: for each ``"path:axis"`` of a parameter, the size of the axis after.
    """

    name: str
    description: str
    size: int
    kept: int
    widths: dict[str, int]


@dataclass(frozen=True, repr=False)
class ShrinkReport:
    """What is left. ``print`` shows a table, :meth:`to_dict` gives what is in it.

    Attributes:
      groups: a row for each group, also those that lose nothing.
      parameters: before and after.
      nbytes: bytes of the parameters before and after.
      flops: operations of matrix products and convolutions for the example inputs, before and after.
      certificate: whether the smaller function equals the masked one.
      ambiguous: places where more than one part of an axis could be cut.
    """

    groups: tuple[GroupRow, ...]
    parameters: tuple[int, int]
    nbytes: tuple[int, int]
    flops: tuple[int, int]
    certificate: Certificate
    ambiguous: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for ``json.dumps``."""
        pairs = {name: dict(zip(("before", "after"), getattr(self, name), strict=True)) for name in _PAIRS}
        exact = self.certificate.exact
        return {"groups": [*map(asdict, self.groups)], **pairs, "exact": exact, "ambiguous": list(self.ambiguous)}

    def __repr__(self) -> str:
        (before, after), (slow, fast) = self.parameters, self.flops
        return f"ShrinkReport({after:,} of {before:,} parameters, {fast:,} of {slow:,} operations)"

    def __str__(self) -> str:
        rows = [(row.name, row.description, f"{row.size:,}", f"{row.kept:,}") for row in self.groups]
        sums = [(label, "", *(f"{n:,}" for n in getattr(self, name))) for name, label in _PAIRS.items()]
        table = host.table(("group", "units", "before", "after"), [*rows, *sums], left=2)
        return "\n".join([table, str(self.certificate), *(f"ambiguous: {place}" for place in self.ambiguous)])


_PAIRS = {"parameters": "parameters", "nbytes": "bytes", "flops": "operations of products"}


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

    def __repr__(self) -> str:
        (before, after), groups = self.report.parameters, len(self.plan)
        return f"Shrunk({after:,} of {before:,} parameters; {groups} groups were asked to shrink)"


def shrink(
    apply_fn: Callable[..., Any],
    params: Params,
    *inputs: Any,
    sparsity: float,
    saliency: Saliency = criteria.magnitude,
    scope: Budget = "leaf",
    where: Where = None,
    spec: ShrinkSpec = ShrinkSpec(),  # noqa: B008
) -> Shrunk:
    """Removes the least important channels, heads and neurons of a function, and gives the smaller function.

    The function is traced (:func:`trace`); each unit is scored over all parameters it takes part in, by the mean of
    ``s / mean(s)`` over the members of its group; the lowest go; parameters and program are cut.

    Args:
      apply_fn: ``(params, *inputs) -> outputs``, any JAX function.
      params: any pytree of arrays, concrete.
      *inputs: example inputs, as the function takes them: arrays; or ``ShapeDtypeStruct``, unless latency is measured.
      sparsity: the fraction to remove, in [0, 1]: of the units, or of what ``scope`` names. Concrete.
      saliency: ``params -> scores``, of weights or of units, larger is more important; see ``jaxprune.saliency``.
      scope: static; "leaf" removes the same fraction of each group, "global" the lowest scores of all groups together;
        "parameters", "flops" and "latency" go on in that order until this fraction of the parameters, of the operations
        of matrix products and convolutions, or of the measured time of a call is saved.
      where: whose scores count, kernels and embeddings by default; see :func:`jaxprune.tree.select`.
      spec: static; what may be cut, and what must stay: a :class:`ShrinkSpec`.

    Returns:
      A :class:`Shrunk`. Rounding up and ``min_keep`` may leave more than was asked for; the report has what it is.

    Raises:
      ValueError: sparsity outside [0, 1] or NaN; an unknown scope; a pattern that matches no group, a choice of none;
        nothing that can be removed; a budget that cannot be met; removal that is not the same as masking, with the
        lines of the source, unless ``spec.allow_inexact``.
      TypeError: traced parameters.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> params = {"first": jnp.ones((3, 8)), "second": jnp.ones((8, 2))}
    >>> def function(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> shrunk = shrink(function, params, jnp.ones((4, 3)), sparsity=0.5)
    >>> shrunk
    Shrunk(20 of 40 parameters; 1 groups were asked to shrink)
    >>> shrunk.params["first"].shape, shrunk.apply(shrunk.params, jnp.ones((4, 3))).shape
    ((3, 4), (4, 2))
    """
    amount = float(settings.check_setting(sparsity, "sparsity", 0.0, 1.0))
    graph = trace(apply_fn, params, *inputs, split=spec.split, free_output=spec.free_output)
    groups = _chosen(graph, spec.groups)
    units = ranking.of_groups(groups, params, saliency, where)
    if scope == "leaf":
        plan = ranking.each(groups, units, amount, spec)
    else:
        without = functools.partial(ranking.together, groups, units, spec)
        total = sum(group.size for group in groups)
        plan = without(_count(graph, without, total, amount, scope, (params, *inputs)))
    smaller = graph.at(plan)
    if not smaller.certificate.exact and not spec.allow_inexact:
        advice = "allow_inexact=True in the spec removes them all the same, groups=['!...'] leaves groups alone"
        raise ValueError(f"removal would differ from masking: {smaller.certificate}\n{advice}")
    return Shrunk(smaller.cut(params), smaller.apply, plan, summarize(graph, params, smaller))


def _chosen(graph: Graph, patterns: str | Sequence[str] | None) -> list[Group]:
    """The groups that may lose units."""
    if not graph.groups:
        raise ValueError("nothing can be removed: every axis of every parameter has to stay; see graph.why_pinned")
    names = [(group.name, group.description) for group in graph.groups]
    flags = matching("*" if patterns is None else patterns, names, "groups")
    if not any(flags):
        raise ValueError(f"groups {patterns!r} chooses none of {[' or '.join(own) for own in names]}")
    return [group for group, chosen in zip(graph.groups, flags, strict=True) if chosen]


def _count(
    graph: Graph, without: Callable[[int], Units], total: int, amount: float, scope: Budget, example: tuple[Any, ...]
) -> int:
    """How many of all units have to go until a budget is met."""
    if scope == "global":
        return ranking.count(total, amount)
    params, *inputs = example
    costs: dict[str, Callable[[Any], float]] = {
        "parameters": lambda smaller: sum(map(math.prod, smaller.shapes.values())),
        "flops": lambda smaller: smaller.flops,
        "latency": lambda smaller: _seconds(smaller.apply, smaller.cut(params), *inputs),
    }
    if scope not in costs:
        raise ValueError(f"scope must be 'leaf', 'global', 'parameters', 'flops' or 'latency', got {scope!r}")
    spent = functools.cache(lambda removed: costs[scope](graph.at(without(removed))))
    needed = bisect.bisect_left(range(total), True, key=lambda removed: spent(removed) <= (1 - amount) * spent(0))
    if (left := spent(needed) / spent(0)) > 1 - amount:
        fewest = f"with the fewest units that may stay {left:.3g} of them are left"
        raise ValueError(f"the {scope} cannot be cut by {amount:g}: {fewest}")
    return needed


def summarize(graph: Graph, params: Params, smaller: Resolved) -> ShrinkReport:
    """The report of a plan."""
    selection = tree.flatten(params)
    itemsize = {path: leaf.dtype.itemsize for path, leaf in zip(selection.paths, selection.leaves, strict=True)}

    def row(group: Any) -> GroupRow:
        kept = int(np.count_nonzero(smaller.units.get(group.name, np.ones(group.size, bool))))
        cut = [(path, axis) for path, axis in group.members if (path, axis) in smaller.kept]
        widths = {f"{path}:{axis}": smaller.shapes[path][axis] for path, axis in cut}
        return GroupRow(group.name, group.description, group.size, kept, widths)

    def sizes(of: Resolved) -> tuple[int, int, int]:
        counts = {path: math.prod(shape) for path, shape in of.shapes.items()}
        return sum(counts.values()), sum(itemsize[path] * count for path, count in counts.items()), of.flops

    parameters, nbytes, flops = zip(sizes(graph.at({})), sizes(smaller), strict=True)
    rows, ambiguous = tuple(map(row, graph.groups)), tuple(graph.ambiguous)
    return ShrinkReport(rows, parameters, nbytes, flops, smaller.certificate, ambiguous)


def _seconds(function: Callable[..., Any], *args: Any, repeats: int = 15) -> float:
    """The shortest time of a call, compiled, in seconds; the first call does not count."""
    compiled = jax.jit(function)

    def once() -> float:
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        return time.perf_counter() - start

    return min([once() for _ in range(repeats + 1)][1:])
