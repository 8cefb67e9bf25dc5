"""The table of the leaves, for the page and for notebooks: without a script it is a plain table."""

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from jaxprune.reports.columns import COLUMNS, Column, name
from jaxprune.reports.markup import breakable, element, number, visible
from jaxprune.reports.rows import Row


def leaves(rows: Sequence[Row], total: Row, caption: str) -> Element:
    """A row for each leaf, and the total at the foot; cells hold the number in full as ``data-value``."""
    head = [element("th", "leaf", scope="col")]
    head += [element("th", column.title, scope="col", class_="number") for column in COLUMNS]
    widest = {"bits": max((row.bits for row in rows), default=0), "bytes": max((_most(row) for row in rows), default=0)}
    body = [
        element("tr", _heading(row), *(_cell(column, row, *_bars(column, row, widest)) for column in COLUMNS))
        for row in rows
    ]
    foot = element("tr", element("th", total.path, scope="row"), *(_cell(column, total) for column in COLUMNS))
    return element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *head)),
        element("tbody", *body),
        element("tfoot", foot),
    )


def _heading(row: Row) -> Element:
    """The path, which is cut in the display but not in the title if it is very long."""
    return element("th", element("span", *breakable(name(row))), scope="row", title=visible(name(row)))


def _cell(column: Column, row: Row, *bars: Element) -> Element:
    value = column.value(row)
    if not bars:
        return element("td", column.show(row), class_="number", data_value=number(value))
    drawn = element("span", *bars, class_="bar", aria_hidden="true")
    return element("td", drawn, column.show(row), class_="number barred", data_value=number(value))


def _bars(column: Column, row: Row, widest: dict[str, float]) -> list[Element]:
    """What a bar beside the number shows: a fraction, bits of the widest, bytes of the largest leaf."""
    if column.title == "sparsity":
        return [_share("after", row.mask_sparsity)]
    if column.title == "bits":
        return [_share("after", row.bits / widest["bits"] if widest["bits"] else 0)]
    if column.title == "coded bytes":
        most = widest["bytes"] or 1
        return [_share("before", row.dense_bytes / most), _share("after", row.coded_bytes / most)]
    return []


def _share(kind: str, share: float) -> Element:
    return element("i", class_=kind, style=f"width:{100 * share:.1f}%")


def _most(row: Row) -> int:
    return max(row.dense_bytes, row.coded_bytes)
