"""Pictures for notebooks and papers, by matplotlib, which is imported when it is asked for."""

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxprune.host import library
from jaxprune.reports import frontier
from jaxprune.reports.page import visible

if TYPE_CHECKING:
    from jaxprune.reports.rows import Row
    from jaxprune.reports.summary import Report

# Okabe and Ito's: told apart by all eyes, and in grey.
_BEFORE, _AFTER, _CHOSEN = "#c3c8ce", "#0072b2", "#d55e00"
_LONGEST = 44  # characters of a path


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
    ticker = library("matplotlib.ticker", "jaxprune[plots]")
    ax.xaxis.set_major_locator(ticker.MaxNLocator(4))
    ax.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
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
    found = frontier.find(sweep, cost=cost, metric=metric, settings=settings, chosen=chosen, baseline=baseline)
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
    across = frontier.around(found.cost[shown], log=True)
    scale = "log" if across.log else "linear"
    ax.set(xscale=scale, xlim=(across.low, across.high), xlabel=found.cost_name, ylabel=found.metric_name)
    ax.set_xticks(ticks := across.ticks(), map(frontier.brief, ticks))
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
    if ax is not None:
        return ax
    return library("matplotlib.pyplot", "jaxprune[plots]").subplots(figsize=size, layout="constrained")[1]


def _calm(ax: Any) -> Any:
    """The axes, with a legend and with fewer lines."""
    ax.legend(frameon=False, loc="lower right", fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="x", alpha=0.25)
    ax.set_axisbelow(True)
    return ax
