"""The table for a terminal."""

from typing import TYPE_CHECKING

from jaxprune.reports.columns import COLUMNS, FORMULA, name

if TYPE_CHECKING:
    from jaxprune.reports.summary import Report

_NOTES = """\
sparsity: what masks remove, of the parameters under a mask. zeros: of all parameters, whatever made them.
The bits of the total are coded bits a parameter; rel. error is |after - before| / |before| in the L2 norm."""


def table(report: "Report") -> str:
    """Aligned columns, the total, and what the numbers mean."""
    lines = [("leaf", *(column.title for column in COLUMNS))]
    lines += [(name(row), *(column.show(row) for column in COLUMNS)) for row in (*report.rows, report.total)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    body = []
    for leaf, *numbers in lines:
        numbers = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        body.append("  ".join([leaf.ljust(widths[0]), *numbers]))
    rule = "-" * len(body[0])
    return "\n".join([body[0], rule, *body[1:-1], rule, body[-1], "", sizes(report), FORMULA, _NOTES])


def sizes(report: "Report") -> str:
    """The bytes before and after in one line."""
    total = report.total
    share = f" ({total.coded_bytes / total.dense_bytes:.1%} of dense)" if total.dense_bytes else ""
    return f"dense {total.dense_bytes:,} bytes, coded {total.coded_bytes:,} bytes{share}"
