"""The page: one HTML file with its style, its drawings and its short script; what is in it is in ``page.html``."""

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxprune.host import library
from jaxprune.reports import axes, html_table
from jaxprune.reports.frontier import Frontier
from jaxprune.reports.html_table import number, visible
from jaxprune.reports.rows import COLUMNS, FORMULA

if TYPE_CHECKING:
    from jaxprune.reports.summary import Report

_FINE = 1000  # units of a drawing that is stretched to the width there is


def render(report: "Report", title: str, found: Frontier | None) -> str:
    """The whole document."""
    drawn = [row for row in report.rows if row.histogram and row.histogram.before]
    return _template().render(
        report=report,
        total=report.total,
        title=title,
        found=found,
        chart=found and _chart(found),
        changed=[row for row in drawn if row.max_error != 0],
        same=[row for row in drawn if row.max_error == 0],
        columns=COLUMNS,
        formula=FORMULA.replace("\n", " "),
        fine=_FINE,
    )


@cache
def _template() -> Any:
    jinja = library("jinja2", "jaxprune[plots]")
    markup = library("markupsafe", "jaxprune[plots]").Markup
    made = jinja.Environment(
        loader=jinja.FunctionLoader(html_table.asset),
        autoescape=True,
        finalize=lambda value: visible(value) if type(value) is str else value,  # what is Markup is escaped already
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja.StrictUndefined,
    )
    html = {"leaf_table": html_table.leaves, "breakable": html_table.breakable}
    made.globals |= {name: lambda *args, make=make: markup(make(*args)) for name, make in html.items()}
    made.globals |= {"number": number, "brief": axes.brief, "visible": visible}
    return made.get_template("page.html")


def _chart(found: Frontier) -> dict[str, Any]:
    """The axes, where the settings lie (shares from the left and from the top), and which are drawn."""
    shown = np.flatnonzero(found.drawn)
    levels = found.metric[shown] if found.baseline is None else np.append(found.metric[shown], found.baseline)
    x, y = axes.around(found.cost[shown], log=True), axes.around(levels)
    places = {i: (x.share(found.cost[i]), 1 - y.share(found.metric[i])) for i in shown.tolist()}
    fine = {i: (round(_FINE * across), round(_FINE * down)) for i, (across, down) in places.items()}
    front = [i for i in found.front.tolist() if i in places]
    return {"x": x, "y": y, "places": places, "fine": fine, "dots": list(dict.fromkeys(fine.values())), "front": front}
