"""The columns of the table, said once for the terminal, the page and the notebook."""

from collections.abc import Callable
from typing import NamedTuple

from jaxprune.reports.rows import Row


class Column(NamedTuple):
    """One column of numbers.

    Attributes:
      title: its head.
      meaning: what it says, for who reads the page.
      value: the number, of a row.
      form: how a fraction is written; integers are written out.
    """

    title: str
    meaning: str
    value: Callable[[Row], float]
    form: str = ""

    def show(self, row: Row) -> str:
        """The number as it is printed."""
        value = self.value(row)
        return f"{value:,}" if isinstance(value, int) else f"{value:{self.form}}"


COLUMNS = (
    Column("parameters", "entries of the leaf", lambda row: row.parameters),
    Column("sparsity", "fraction that masks remove, of the entries under a mask", lambda row: row.mask_sparsity, ".4f"),
    Column(
        "zeros", "fraction of entries that are 0 afterwards, whatever made them", lambda row: row.zero_fraction, ".4f"
    ),
    Column(
        "bits",
        "width of a code, or of the dtype where nothing is quantized; of the total, coded bits a parameter",
        lambda row: row.bits,
        ".2f",
    ),
    Column("dense bytes", "size before, as the array is", lambda row: row.dense_bytes),
    Column("coded bytes", "size after, by the formula below", lambda row: row.coded_bytes),
    Column(
        "rel. error",
        "|after - before| / |before|, in the L2 norm of the finite entries",
        lambda row: row.relative_error,
        ".2e",
    ),
    Column("max error", "largest |after - before|, in the units of the weights", lambda row: row.max_error, ".2e"),
)

FORMULA = """\
coded = ceil(kept * bits / 8) + mask + 4 a scale (+ 4 a zero point if asymmetric), in bytes for each leaf; a mask takes
1 bit a parameter, 1 bit a unit where whole units are removed, nothing where nothing is.
An entropy coder gets below it."""


def name(row: Row) -> str:
    """The path as tables show it."""
    return row.path or "(array)"
