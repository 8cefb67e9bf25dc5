"""The page: one HTML file that holds its style, its drawings and its short script."""

from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element

from jaxprune.reports import charts, table
from jaxprune.reports.columns import COLUMNS, FORMULA, name
from jaxprune.reports.frontier import Frontier
from jaxprune.reports.markup import asset, breakable, element, number, visible
from jaxprune.reports.markup import render as as_html
from jaxprune.reports.rows import Row

if TYPE_CHECKING:
    from jaxprune.reports.summary import Report

# Whatever a path or a title holds, nothing is ever fetched.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_BINS = """\
How many weights have which value, in 64 bins. Counted apart are zeros, and what is beyond: further than 4 standard
deviations from the mean."""


def render(report: "Report", title: str, found: Frontier | None) -> str:
    """The whole document."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="color-scheme", content="light dark"),
        element("title", visible(title)),
        element("style", asset("page.css")),
    )
    main = element("main", _totals(report.total, title))
    main.extend([*([_frontier(found)] if found else []), _leaves(report), *_weights(report)])
    body = element("body", main, element("script", asset("page.js")))
    return "<!DOCTYPE html>\n" + as_html(element("html", head, body, lang="en")) + "\n"


def _totals(total: Row, title: str) -> Element:
    """What came of it in one sentence, a bar and the numbers."""
    ratio = total.dense_bytes / total.coded_bytes if total.coded_bytes else 0.0
    gain = (
        f"{ratio:,.{0 if ratio >= 100 else 1}f} times smaller"
        if ratio >= 1.05
        else "no smaller"
        if ratio <= 1
        else "hardly smaller"
    )
    share = 100 * total.coded_bytes / max(total.dense_bytes, total.coded_bytes, 1)
    tiles = (
        ("parameters", total.parameters, f"{total.parameters:,}"),
        ("sparsity", total.mask_sparsity, f"{total.mask_sparsity:.4f}"),
        ("zeros", total.zero_fraction, f"{total.zero_fraction:.4f}"),
        ("bits a weight", total.bits, f"{total.bits:.2f}"),
        ("dense bytes", total.dense_bytes, f"{total.dense_bytes:,}"),
        ("coded bytes", total.coded_bytes, f"{total.coded_bytes:,}"),
        ("ratio", ratio, f"{ratio:.2f}" if ratio else "–"),
        ("relative error", total.relative_error, f"{total.relative_error:.3g}"),
    )
    return element(
        "header",
        element("h1", visible(title)),
        element(
            "p",
            f"From {total.dense_bytes:,} bytes to {total.coded_bytes:,}: ",
            element("strong", gain),
            ".",
            class_="lead",
        ),
        element("div", element("i", style=f"width:{share:.2f}%"), class_="size", aria_hidden="true"),
        element(
            "dl",
            *(
                element("div", element("dt", label), element("dd", shown, data_value=number(value)))
                for label, value, shown in tiles
            ),
            class_="totals",
        ),
    )


def _frontier(found: Frontier) -> Element:
    """The chart, its key, and the front as a table."""
    figure = element("figure", charts.frontier(found), element("ul", *_frontier_key(found), class_="key"))
    if said := _left_out(found):
        figure.append(element("p", said, class_="note"))
    listed = _scrolling(_front_table(found), "settings")
    return element(
        "section",
        element("h2", f"{visible(found.metric_name).capitalize()} against {visible(found.cost_name)}"),
        figure,
        element("details", element("summary", "The settings on the front"), listed),
        class_="frontier",
    )


def _frontier_key(found: Frontier) -> list[Element]:
    key = [element("li", f"{found.metric.size:,} settings tried", class_="dots")]
    key.append(element("li", f"{len(found.front):,} on the front: no other is better in both", class_="corner"))
    if found.chosen is not None:
        key.append(element("li", f"chosen: {visible(found.describe(found.chosen))}", class_="chosen"))
    if found.baseline is not None:
        key.append(element("li", f"before compression: {found.baseline:.4g}", class_="baseline"))
    return key


def _left_out(found: Frontier) -> str:
    """What the chart does not show."""
    below = int((found.metric[found.finite] < found.lowest).sum())
    without = int((~found.finite).sum())
    parts = [f"{below:,} below {found.lowest:.4g}"] if below else []
    parts += [f"{without:,} without a finite cost and metric"] if without else []
    return f"Not drawn: {', '.join(parts)}." if parts else ""


def _front_table(found: Frontier) -> Element:
    numbers = {**found.settings, found.cost_name: found.cost, found.metric_name: found.metric}
    names = [element("th", "setting", scope="col", class_="number")]
    names += [element("th", visible(n), scope="col", class_="number") for n in numbers]
    rows = []
    for i in found.front.tolist():
        cells = [
            element("td", f"{values[i]:,.6g}", class_="number", data_value=number(values[i].item()))
            for values in numbers.values()
        ]
        first = element("th", f"{i:,}", scope="row", class_="number", data_value=number(i))
        rows.append(element("tr", first, *cells, class_="chosen" if i == found.chosen else None))
    caption = element("caption", "By ascending cost")
    return element("table", caption, element("thead", element("tr", *names)), element("tbody", *rows), class_="front")


def _leaves(report: "Report") -> Element:
    meanings = [part for c in COLUMNS for part in (element("dt", c.title), element("dd", c.meaning))]
    listed = table.leaves(report.rows, report.total, f"{len(report.rows):,} leaves")
    return element(
        "section",
        element("h2", "Leaves"),
        _scrolling(listed, "leaves"),
        element("h3", "What the columns say"),
        element("dl", *meanings, class_="meanings"),
        element("p", FORMULA, class_="note"),
        class_="leaves",
    )


def _scrolling(content: Element, label: str) -> Element:
    """A box that scrolls sideways, by the keyboard as well."""
    return element("section", content, class_="scrolling", aria_label=f"table of {label}", tabindex="0")


def _weights(report: "Report") -> list[Element]:
    """Histograms: leaves that have changed in the open, the others folded away."""
    drawn = [row for row in report.rows if row.histogram and row.histogram.before]
    changed = [row for row in drawn if row.max_error != 0]
    same = [row for row in drawn if row.max_error == 0]
    if not drawn:
        return []
    key = [element("li", "before", class_="before"), element("li", "after", class_="after")]
    parts = [
        element("h2", "Weights before and after"),
        element("ul", *key, class_="key"),
        element("p", _BINS, class_="note"),
    ]
    if changed:
        parts.append(element("div", *map(_card, changed), class_="cards"))
    if same:
        folded = element("div", *map(_card, same), class_="cards")
        parts.append(element("details", element("summary", f"{len(same):,} leaves that are as before"), folded))
    return [element("section", *parts, class_="weights")]


def _card(row: Row) -> Element:
    assert row.histogram is not None
    apart = {"zeros": row.histogram.zeros, "beyond": row.histogram.beyond, "NaN or infinite": row.histogram.not_finite}
    said = ", ".join(f"{what} {was:,} → {now:,}" for what, (was, now) in apart.items() if was or now) or "no zeros"
    return element(
        "figure",
        element("figcaption", *breakable(name(row)), title=visible(name(row))),
        charts.histogram(row, row.histogram),
        element("p", said, class_="readout"),
    )
