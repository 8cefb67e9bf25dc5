"""HTML: the page, one file with its style, drawings and short script, and the table of leaves that notebooks show too.

What is on the page is in ``page.html``; the table needs no library, and without a script it is a plain table.
"""

import math
import re
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxprune.host import library
from jaxprune.reports import frontier
from jaxprune.reports.frontier import Frontier
from jaxprune.reports.rows import COLUMNS, FORMULA, Column, Row

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
        loader=jinja.FunctionLoader(asset),
        autoescape=True,
        finalize=lambda value: visible(value) if type(value) is str else value,  # what is Markup is escaped already
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja.StrictUndefined,
    )
    html = {"leaf_table": leaves, "breakable": breakable}
    made.globals |= {name: lambda *args, make=make: markup(make(*args)) for name, make in html.items()}
    made.globals |= {"number": number, "brief": frontier.brief, "visible": visible}
    return made.get_template("page.html")


def _chart(found: Frontier) -> dict[str, Any]:
    """The axes, where the settings lie (shares from the left and from the top), and which are drawn."""
    shown = np.flatnonzero(found.drawn)
    levels = found.metric[shown] if found.baseline is None else np.append(found.metric[shown], found.baseline)
    x, y = frontier.around(found.cost[shown], log=True), frontier.around(levels)
    places = {i: (x.share(found.cost[i]), 1 - y.share(found.metric[i])) for i in shown.tolist()}
    fine = {i: (round(_FINE * across), round(_FINE * down)) for i, (across, down) in places.items()}
    front = [i for i in found.front.tolist() if i in places]
    return {"x": x, "y": y, "places": places, "fine": fine, "dots": list(dict.fromkeys(fine.values())), "front": front}


def leaves(rows: Sequence[Row], total: Row) -> str:
    """A row for each leaf, and the total at the foot; cells hold the number in full as ``data-value``.

    Args:
      rows: those that are shown.
      total: of all leaves.

    Returns:
      A ``table`` element. Beside some numbers is a bar: a fraction, bits of the widest, bytes of the largest leaf.
    """
    bits = max((row.bits for row in rows), default=0) or 1
    most = max((max(row.dense_bytes, row.coded_bytes) for row in rows), default=0) or 1

    def cells(row: Row) -> str:
        bars = {
            "sparsity": _bar("after", row.mask_sparsity),
            "bits": _bar("after", row.bits / bits),
            "coded bytes": _bar("before", row.dense_bytes / most) + _bar("after", row.coded_bytes / most),
        }
        path = visible(row.name)
        head = f'<th scope="row" title="{escape(path)}"><span>{breakable(path)}</span></th>'
        return f"<tr>{head}{''.join(_cell(column, row, bars.get(column.title, '')) for column in COLUMNS)}</tr>\n"

    heads = "".join(f'<th scope="col" class="number">{column.title}</th>' for column in COLUMNS)
    foot = f'<th scope="row">{total.path}</th>{"".join(_cell(column, total) for column in COLUMNS)}'
    return (
        f'<table><caption>{len(rows):,} leaves</caption><thead><tr><th scope="col">leaf</th>{heads}</tr></thead>\n'
        f"<tbody>{''.join(map(cells, rows))}</tbody>\n<tfoot><tr>{foot}</tr></tfoot></table>"
    )


def fragment(rows: Sequence[Row], total: Row, said: str, most: int = 60) -> str:
    """What a notebook shows, and keeps in its file: a line, and the table of the first ``most`` leaves.

    Its style is its own; it has no script and no ids, so that any number of reports get along in one notebook.
    """
    more = len(rows) - most
    rest = f"<p>{more:,} more leaves: print(report) and report.to_html(path) show all.</p>" if more > 0 else ""
    style = f"<style>{asset('notebook.css')}</style>"
    return f'<div class="jaxprune-report">{style}<p>{said}</p><div>{leaves(rows[:most], total)}</div>{rest}</div>'


def visible(text: str) -> str:
    """The text with what cannot be printed (controls, lone surrogates, marks that turn the direction) as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def breakable(path: str) -> str:
    """A path as HTML that may be broken after its slashes, dots and underscores."""
    return "<wbr>".join(escape(part) for part in re.split(r"(?<=[/._])", visible(path)))


def number(value: float) -> str:
    """A number in full, as both Python and JavaScript read it."""
    return repr(value) if math.isfinite(value) else "NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity"


def asset(name: str) -> str:
    """A file of this folder: the page, a style sheet or a script."""
    return resources.files(__package__ or "").joinpath(name).read_text(encoding="utf-8")


def _cell(column: Column, row: Row, bars: str = "") -> str:
    drawn = f'<span class="bar" aria-hidden="true">{bars}</span>' if bars else ""
    kind = "number barred" if bars else "number"
    return f'<td class="{kind}" data-value="{number(column.value(row))}">{drawn}{column.show(row)}</td>'


def _bar(kind: str, share: float) -> str:
    return f'<i class="{kind}" style="width:{100 * share:.1f}%"></i>'
