"""HTML: the page, one file with its style, drawings and short script, and the table of leaves that notebooks show too.

What is on the page is in ``page.html``; the table needs no library, and without a script it is a plain table.
"""

import math
import re
from functools import cache
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxprune.host import library

if TYPE_CHECKING:
    from jaxprune.reports.plots import Frontier
    from jaxprune.reports.summary import Column, Report, Row

_FINE = 1000  # units of a drawing that is stretched to the width there is


def render(report: "Report", title: str, found: "Frontier | None") -> str:
    """The whole document."""
    drawn = [row for row in report.rows if row.histogram and row.histogram.before]
    changed, same = ([row for row in drawn if (row.max_error == 0) == alike] for alike in (False, True))
    counted = {"report": report, "total": report.total, "changed": changed, "same": same}
    return _template().render(**counted, title=title, found=found, chart=found and _chart(found), fine=_FINE)


@cache
def _template() -> Any:
    jinja = library("jinja2", "jaxprune[plots]")
    markup = library("markupsafe", "jaxprune[plots]").Markup
    blocks = {"trim_blocks": True, "lstrip_blocks": True, "undefined": jinja.StrictUndefined}
    made = jinja.Environment(loader=jinja.FunctionLoader(asset), autoescape=True, **blocks)
    made.finalize = lambda value: visible(value) if type(value) is str else value  # what is Markup is escaped already
    html = {"leaf_table": leaves, "breakable": breakable}
    made.globals |= {name: lambda *args, make=make: markup(make(*args)) for name, make in html.items()}
    made.globals |= {"number": number, "brief": brief, "visible": visible}
    return made.get_template("page.html")


def _chart(found: "Frontier") -> dict[str, Any]:
    """The axes, where the settings lie (shares from the left and from the top), and which are drawn."""
    shown = np.flatnonzero(found.drawn)
    levels = found.metric[shown] if found.baseline is None else np.append(found.metric[shown], found.baseline)
    x, y = around(found.cost[shown], log=True), around(levels)
    places = {i: (x.share(found.cost[i]), 1 - y.share(found.metric[i])) for i in shown.tolist()}
    fine = {i: (round(_FINE * across), round(_FINE * down)) for i, (across, down) in places.items()}
    front = [i for i in found.front.tolist() if i in places]
    columns = {**found.settings, found.cost_name: found.cost, found.metric_name: found.metric}
    drawn = {"places": places, "fine": fine, "dots": list(dict.fromkeys(fine.values())), "front": front}
    return {"x": x, "y": y, "columns": columns, **drawn}


def leaves(report: "Report", most: int | None = None) -> str:
    """A ``table`` element: a row for each of the first ``most`` leaves, and the total at the foot.

    Cells hold the number in full as ``data-value``. Beside some numbers is a bar: a fraction, bits of the widest leaf
    that is shown, bytes of the largest.
    """
    rows, total, axes = report.rows[:most], report.total, any(row.axes for row in report.rows)
    bits = max((row.bits for row in rows), default=0) or 1
    largest = max((max(row.dense_bytes, row.coded_bytes) for row in rows), default=0) or 1

    def cells(row: "Row") -> str:
        bars = {"sparsity": _bar("after", row.mask_sparsity), "bits": _bar("after", row.bits / bits)}
        bars["coded bytes"] = _bar("before", row.dense_bytes / largest) + _bar("after", row.coded_bytes / largest)
        path = visible(row.name)
        head = f'<th scope="row" title="{escape(path)}"><span>{breakable(path)}</span></th>'
        head += f"<td>{escape(row.axes)}</td>" * axes
        numbers = "".join(_cell(column, row, bars.get(column.title, "")) for column in report.columns)
        return f"<tr>{head}{numbers}</tr>\n"

    heads = '<th scope="col">leaf</th>' + '<th scope="col">axes</th>' * axes
    heads += "".join(f'<th scope="col" class="number">{column.title}</th>' for column in report.columns)
    foot = f'<th scope="row">{total.path}</th>' + "<td></td>" * axes
    foot += "".join(_cell(column, total) for column in report.columns)
    body = f"<tbody>{''.join(map(cells, rows))}</tbody>\n<tfoot><tr>{foot}</tr></tfoot>"
    return f"<table><caption>{len(rows):,} leaves</caption><thead><tr>{heads}</tr></thead>\n{body}</table>"


def fragment(report: "Report", said: str, most: int = 60) -> str:
    """What a notebook shows, and keeps in its file: a line, and the table of the first ``most`` leaves.

    Its style is its own; it has no script and no ids, so that any number of reports get along in one notebook.
    """
    more = len(report.rows) - most
    rest = f"<p>{more:,} more leaves: print(report) and report.to_html(path) show all.</p>" if more > 0 else ""
    style = f"<style>{asset('notebook.css')}</style>"
    return f'<div class="jaxprune-report">{style}<p>{said}</p><div>{leaves(report, most)}</div>{rest}</div>'


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


def _cell(column: "Column", row: "Row", bars: str = "") -> str:
    drawn = f'<span class="bar" aria-hidden="true">{bars}</span>' if bars else ""
    kind = "number barred" if bars else "number"
    return f'<td class="{kind}" data-value="{number(column.value(row))}">{drawn}{column.show(row)}</td>'


def _bar(kind: str, share: float) -> str:
    return f'<i class="{kind}" style="width:{100 * share:.1f}%"></i>'


class Axis(NamedTuple):
    """From ``low`` to ``high``, by equal steps or, if ``log``, by equal factors."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Where the value lies, from 0 at ``low`` to 1 at ``high``."""
        low, high, value = (math.log(v) for v in (self.low, self.high, value)) if self.log else (*self[:2], value)
        return (value - low) / (high - low)

    def ticks(self, most: int = 7) -> list[float]:
        """Round numbers along the axis: at most so many, or nearly."""
        if not self.log:
            return _steps(self.low, self.high, most)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for digits in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            found = [d * 10.0**power for power in decades for d in digits if self.low <= d * 10.0**power <= self.high]
            if len(found) <= most:
                break
        return found if len(found) >= 3 else _steps(self.low, self.high, most)


def around(values: np.ndarray, log: bool = False) -> Axis:
    """An axis that holds the values, with some room at both ends; ``log`` is for positive ones that differ much."""
    low, high = float(values.min()), float(values.max())
    if log and low > 0 and high >= 3 * low:
        room = (high / low) ** 0.03
        return Axis(low / room, high * room, True)
    room = 0.04 * (high - low) or abs(high) or 1.0
    return Axis(low - room, high + room)


def brief(value: float) -> str:
    """A number as ticks show it: 20k, 1.5M, 0.85."""
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.6g}{name}"
    return f"{value:.6g}"


def _steps(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(i * step / power, 6) * power for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
