"""The drawings of the page, as SVG that fills whatever width there is: positions in percent, text in its own size."""

from xml.etree.ElementTree import Element

import numpy as np

from jaxprune.reports.axes import Axis, around, brief
from jaxprune.reports.columns import name
from jaxprune.reports.frontier import Frontier
from jaxprune.reports.markup import element, number, visible
from jaxprune.reports.rows import Histogram, Row

_FINE = 1000  # units of a stretched drawing


def frontier(found: Frontier) -> Element:
    """All settings as dots, the front as steps, and rings around its corners."""
    drawn = found.finite & (found.metric >= found.lowest)
    shown = np.flatnonzero(drawn)
    levels = found.metric[shown] if found.baseline is None else np.append(found.metric[shown], found.baseline)
    x, y = around(found.cost[shown], log=True), around(levels)
    front = found.front[drawn[found.front]].tolist()
    label = (
        f"{len(shown)} settings by {visible(found.cost_name)} and {visible(found.metric_name)}; "
        f"{len(front)} of them are on the front, which the table below lists"
    )
    drawing = element("svg", role="img", aria_label=label)
    drawing.extend([*_grid(x, y), *_baseline(found, y), _dots(found, shown, x, y), _steps(found, front, x, y)])
    drawing.extend([_point(found, i, x, y, "corner", 3.5) for i in front])
    if found.chosen is not None and found.finite[found.chosen]:
        drawing.append(_point(found, found.chosen, x, y, "chosen", 8))
    return element(
        "div",
        element("span", visible(found.metric_name), class_="y name"),
        drawing,
        element("span", visible(found.cost_name), class_="x name"),
        class_="plot",
    )


def histogram(row: Row, spread: Histogram) -> Element:
    """The weights before as a shape and after as bars over it, in the same scale."""
    bins, tallest = len(spread.before), max(*spread.before, *spread.after, 1)
    drawing = element(
        "svg",
        element("path", class_="before", d=_outline(spread.before, tallest)),
        element("path", class_="after", d=_outline(spread.after, tallest)),
        role="img",
        aria_label=_in_words(row, spread),
        viewBox=f"0 0 {bins} {_FINE}",
        preserveAspectRatio="none",
        data_low=number(spread.low),
        data_high=number(spread.high),
        data_before=" ".join(map(str, spread.before)),
        data_after=" ".join(map(str, spread.after)),
    )
    marks = [element("span", f"{spread.low:.3g}"), element("span", f"{spread.high:.3g}")]
    if spread.low < 0 < spread.high:
        share = -spread.low / (spread.high - spread.low)
        if 0.15 < share < 0.85:  # where the label has room
            marks.insert(1, element("span", "0", class_="origin", style=f"left:{100 * share:.1f}%"))
    return element("div", drawing, element("p", *marks, class_="marks", aria_hidden="true"), class_="histogram")


def _in_words(row: Row, spread: Histogram) -> str:
    counts = f"{sum(spread.before):,} values other than 0 before, {sum(spread.after):,} after"
    return f"{visible(name(row))}: {counts}, from {spread.low:.3g} to {spread.high:.3g}"


def _outline(counts: tuple[int, ...], tallest: int) -> str:
    """A path over bars of width 1, from the left bottom to the right bottom."""
    heights = [_FINE - round(_FINE * count / tallest) for count in counts]
    return f"M0 {_FINE}" + "".join(f"V{height}h1" for height in heights) + f"V{_FINE}z"


def _grid(x: Axis, y: Axis) -> list[Element]:
    lines = []
    for value in y.ticks(6):
        at = _percent(1 - y.share(value))
        lines.append(element("line", x1="0", x2="100%", y1=at, y2=at, class_="grid"))
        lines.append(element("text", brief(value), x="0", y=at, dx="-8", dy="0.32em", text_anchor="end"))
    for value in x.ticks():
        at = _percent(x.share(value))
        lines.append(element("line", x1=at, x2=at, y1="0", y2="100%", class_="grid"))
        lines.append(element("text", brief(value), x=at, y="100%", dy="1.5em", text_anchor="middle"))
    return lines


def _baseline(found: Frontier, y: Axis) -> list[Element]:
    if found.baseline is None:
        return []
    at = _percent(1 - y.share(found.baseline))
    return [element("line", x1="0", x2="100%", y1=at, y2=at, class_="baseline")]


def _dots(found: Frontier, shown: np.ndarray, x: Axis, y: Axis) -> Element:
    """One path for all, its segments of length 0 drawn as dots by their round ends; equal ones once."""
    places = dict.fromkeys(_place(found, i, x, y) for i in shown)
    return _stretched("".join(f"M{across} {down}h0" for across, down in places), "dots")


def _steps(found: Frontier, front: list[int], x: Axis, y: Axis) -> Element:
    """From each setting on the front to the right, until a better one begins."""
    corners = [_place(found, i, x, y) for i in front]
    path = "".join(f"{'H' if i else 'M'}{across}{'V' if i else ' '}{down}" for i, (across, down) in enumerate(corners))
    return _stretched(path + f"H{_FINE}" if path else "", "steps")


def _stretched(path: str, kind: str) -> Element:
    drawn = element("path", d=path, class_=kind, vector_effect="non-scaling-stroke")
    return element("svg", drawn, viewBox=f"0 0 {_FINE} {_FINE}", preserveAspectRatio="none")


def _point(found: Frontier, index: int, x: Axis, y: Axis, kind: str, radius: float) -> Element:
    what = f"{found.describe(index)}: {found.cost_name} {found.cost[index]:,.6g}, "
    told = element("title", visible(what + f"{found.metric_name} {found.metric[index]:.6g}"))
    across, down = x.share(found.cost[index]), 1 - y.share(found.metric[index])
    return element("circle", told, cx=_percent(across), cy=_percent(down), r=radius, class_=kind)


def _place(found: Frontier, index: int, x: Axis, y: Axis) -> tuple[int, int]:
    return round(_FINE * x.share(found.cost[index])), round(_FINE * (1 - y.share(found.metric[index])))


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
