"""What a sweep has found, and pictures for notebooks and papers, by matplotlib, imported when it is asked for."""

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jaxprune.host import library
from jaxprune.reports.page import around, brief, visible
from jaxprune.sweeps.sweeping import column, host_settings, pareto_front

if TYPE_CHECKING:
    from jaxprune.reports.summary import Report, Row

# Okabe and Ito's: told apart by all eyes, and in grey.
_BEFORE, _AFTER, _CHOSEN = "#c3c8ce", "#0072b2", "#d55e00"
_LONGEST = 44  # characters of a path


class Frontier(NamedTuple):
    """What a sweep has found.

    Attributes:
      cost: float64 [N], lower is better.
      metric: float64 [N], higher is better.
      front: indices [K] of the settings that no other beats, by ascending cost.
      cost_name: what the cost is called.
      metric_name: what the metric is called.
      settings: for each name the values [N].
      chosen: index of one setting, or None.
      baseline: the metric before compression, or None.
      drawn: which settings are drawn, bool [N]: those that have lost nearly everything would fill the picture.
      left_out: which are not, in words.
    """

    cost: np.ndarray
    metric: np.ndarray
    front: np.ndarray
    cost_name: str
    metric_name: str
    settings: dict[str, np.ndarray]
    chosen: int | None
    baseline: float | None
    drawn: np.ndarray
    left_out: list[str]

    def describe(self, index: int) -> str:
        """The setting in words: ``sparsity 0.5, bits 4``."""
        if not self.settings:
            return f"setting {index}"
        return ", ".join(f"{name} {value[index]:.6g}" for name, value in self.settings.items())


def find(sweep: Any, *, cost: Any, metric: Any, settings: Any, chosen: int | None, baseline: float | None) -> Frontier:
    """Checks what :meth:`jaxprune.reports.Report.to_html` is given about a sweep, and finds the front."""
    costs, metrics = column(sweep, "cost", cost), column(sweep, "metric", metric)
    front = pareto_front(None, cost=costs, metric=metrics)
    names = cost if isinstance(cost, str) else "cost", metric if isinstance(metric, str) else "metric"
    named, finite = _named(settings, costs.size), np.isfinite(costs) & np.isfinite(metrics)
    if not finite.any():
        raise ValueError("no setting of the sweep has a finite cost and metric")
    if chosen is not None and not 0 <= operator.index(chosen) < costs.size:
        raise ValueError(f"chosen must be an index in [0, {costs.size - 1}], got {chosen}")
    # Four times as far below the best as the median is; what was chosen is always in.
    shown = metrics[finite]
    lowest = max(float(shown.min()), float(shown.max() - 4 * (shown.max() - np.median(shown))))
    if chosen is not None and finite[chosen]:
        lowest = min(lowest, float(metrics[chosen]))
    drawn = finite & (metrics >= lowest)
    said = {f"below {lowest:.4g}": finite & ~drawn, "without a finite cost and metric": ~finite}
    left_out = [f"{which.sum():,} {what}" for what, which in said.items() if which.any()]
    return Frontier(costs, metrics, front, *names, named, chosen, baseline, drawn, left_out)


def _named(settings: Any, count: int) -> dict[str, np.ndarray]:
    """The settings that are one number each, by path."""
    if settings is None:
        return {}
    held = host_settings(settings)
    parts = [{key: held[key]} for key in settings] if isinstance(settings, Mapping) else [held]  # in the order given
    keyed = [pair for part in parts for pair in jax.tree_util.tree_flatten_with_path(part)[0]]
    named = {jax.tree_util.keystr(path, simple=True, separator="/") or "setting": values for path, values in keyed}
    for name, values in named.items():
        if values.shape != (count,):
            raise ValueError(f"settings: {name!r} must have shape ({count},), as the sweep has, got {values.shape}")
    return named


def plot_leaves(report: "Report", ax: Any, most: int) -> Any:
    """Draws a bar for each leaf: what it took in grey, what it takes in blue; see ``Report.plot``."""
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most}")
    shown, rest = _largest(report, most)
    note = "sparsity {:.2f}, {:g} bits".format
    bars = [(_short(r.name), r.dense_bytes, r.coded_bytes, note(r.mask_sparsity, r.bits)) for r in shown]
    if rest:
        bars.append((f"{len(rest)} others", sum(r.dense_bytes for r in rest), sum(r.coded_bytes for r in rest), ""))
    labels, dense, coded, notes = zip(*bars, strict=True) if bars else ((), (), (), ())
    ax = _axes(ax, (8, 1.4 + 0.28 * len(bars)))
    places = np.arange(len(bars))
    ax.barh(places, dense, 0.7, color=_BEFORE, label=f"before: {report.total.dense_bytes:,} bytes")
    ax.barh(places, coded, 0.4, color=_AFTER, label=f"after: {report.total.coded_bytes:,} bytes")
    for place, note, width in zip(places, notes, map(max, dense, coded), strict=True):
        ax.annotate(note, (width, place), (5, 0), textcoords="offset points", va="center", fontsize=8)
    ax.set_yticks(places, labels, fontsize=8)
    ax.invert_yaxis()
    ax.margins(0.3, 0.01)
    ax.set(xlim=(0, None), xlabel="bytes")
    ax.locator_params(axis="x", nbins=4)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    return _calm(ax)


def plot_frontier(
    sweep: Any,
    *,
    cost: Any = "bytes",
    metric: Any = "accuracy",
    settings: Any = None,
    chosen: int | None = None,
    baseline: float | None = None,
    ax: Any = None,
) -> Any:
    """Draws what a sweep has found: cost across, metric up, the front as steps (needs matplotlib).

    Settings that have lost nearly everything are left out, as on the page of :meth:`jaxprune.reports.Report.to_html`.

    Args:
      sweep: what :func:`jaxprune.sweep` returned: a mapping, or a record with attributes, of arrays [N].
      cost: lower is better. A name in ``sweep``, or numbers [N].
      metric: higher is better. Likewise.
      settings: those of the sweep, a tree of arrays [N]; they name the chosen one.
      chosen: index of a setting to mark.
      baseline: the metric before compression.
      ax: matplotlib axes to draw on; None for a new figure.

    Returns:
      The axes; ``.figure`` is the figure.

    Raises:
      ImportError: without matplotlib.
      KeyError, ValueError: as :meth:`jaxprune.reports.Report.to_html`.

    >>> result = {"bytes": np.array([7, 10, 16]), "accuracy": np.array([0.6, 0.9, 0.91])}
    >>> plot_frontier(result, chosen=1).get_xlabel()
    'bytes'
    """
    found = find(sweep, cost=cost, metric=metric, settings=settings, chosen=chosen, baseline=baseline)
    ax = _axes(ax, (7, 4.2))
    shown = found.drawn
    front = found.front[shown[found.front]]
    ax.scatter(found.cost[shown], found.metric[shown], s=14, color=_BEFORE, lw=0, label=f"{shown.size:,} settings")
    ax.plot(found.cost[front], found.metric[front], "o-", color=_AFTER, ms=4, drawstyle="steps-post", label="front")
    if baseline is not None:
        ax.axhline(baseline, color="0.4", lw=0.8, ls="--", label="before compression")
    if chosen is not None:
        ring = {"s": 130, "facecolor": "none", "edgecolor": _CHOSEN, "lw": 2, "zorder": 4}
        ax.scatter(found.cost[chosen], found.metric[chosen], label=found.describe(chosen), **ring)
    across = around(found.cost[shown], log=True)
    scale = "log" if across.log else "linear"
    ax.set(xscale=scale, xlim=(across.low, across.high), xlabel=found.cost_name, ylabel=found.metric_name)
    ax.set_xticks(ticks := across.ticks(), map(brief, ticks))
    ax.set_xticks([], minor=True)
    return _calm(ax)


def _largest(report: "Report", most: int) -> tuple[list["Row"], list["Row"]]:
    """The largest leaves in the order of the tree, and the others."""
    ranked = sorted(report.rows, key=lambda row: -max(row.dense_bytes, row.coded_bytes))
    chosen = {id(row) for row in ranked[:most]}
    return [row for row in report.rows if id(row) in chosen], ranked[most:]


def _short(path: str) -> str:
    """The end of a long path, which tells leaves apart. A dollar sign would begin a formula."""
    path = visible(path)
    return ("…" + path[1 - _LONGEST :] if len(path) > _LONGEST else path).replace("$", r"\$")


def _axes(ax: Any, size: tuple[float, float]) -> Any:
    pyplot = library("matplotlib.pyplot", "jaxprune[plots]")
    return pyplot.subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def _calm(ax: Any) -> Any:
    """The axes, with a legend and with fewer lines."""
    ax.legend(frameon=False, loc="lower right", fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="x", alpha=0.25)
    ax.set_axisbelow(True)
    return ax
