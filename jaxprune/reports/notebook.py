"""What a notebook shows: the table with bars. Its style is its own; it has no script and no ids, so that any number of
reports get along in one notebook."""

from typing import TYPE_CHECKING

from jaxprune.reports import table
from jaxprune.reports.markup import asset, element
from jaxprune.reports.markup import render as as_html
from jaxprune.reports.text import sizes

if TYPE_CHECKING:
    from jaxprune.reports.summary import Report

_MOST = 60  # leaves: a notebook keeps its outputs in the file


def render(report: "Report") -> str:
    """A fragment of HTML."""
    count, more = len(report.rows), len(report.rows) - _MOST
    rest = element("p", f"{more:,} more leaves: print(report) and report.to_html(path) show all.") if more > 0 else None
    return as_html(
        element(
            "div",
            element("style", asset("notebook.css")),
            element("p", sizes(report)),
            element("div", table.leaves(report.rows[:_MOST], report.total, f"{count:,} leaves")),
            rest,
            class_="jaxprune-report",
        )
    )
