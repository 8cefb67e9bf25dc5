"""What a report holds: a row of counts for each leaf, and a small histogram of its weights; and what is shown of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Histogram:
    """The values of one leaf before and after, in 64 bins of equal width.

    Values that are exactly 0 are counted apart: once weights are pruned, one bin would dwarf all others. Values far out
    are counted apart as well: a single one would squeeze all others into few bins.

    Attributes:
      low: lower edge of the first bin: the smallest value, or the mean less 4 standard deviations, of the finite values
        other than 0, before and after taken together.
      high: upper edge of the last bin, which belongs to it: the largest value, or as far above the mean.
      before: entries in each bin, before; empty where no finite value other than 0 is.
      after: entries in each bin, after; likewise.
      beyond: finite entries below ``low`` or above ``high``, before and after.
      zeros: entries that are 0, before and after.
      not_finite: entries that are NaN or infinite, before and after.
    """

    low: float
    high: float
    before: tuple[int, ...]
    after: tuple[int, ...]
    beyond: tuple[int, int]
    zeros: tuple[int, int]
    not_finite: tuple[int, int]

    @property
    def edges(self) -> np.ndarray:
        """The edges of the bins, one more than bins: float64."""
        return edges(self.low, self.high, len(self.before))


def edges(low: float, high: float, bins: int) -> np.ndarray:
    """Edges of equal bins, which neither overflow nor run backwards, however large, small or near the two ends are."""
    share = np.arange(bins + 1) / max(bins, 1)
    return np.minimum(np.maximum.accumulate(low * (1 - share) + high * share), high)


@dataclass(frozen=True)
class Row:
    """One leaf, or all of them.

    Attributes:
      path: of the leaf; empty for a bare array, "total" for the last row.
      parameters: entries.
      masked: entries of them under a mask; 0 of a leaf that is left alone.
      removed: entries that the mask removes.
      zeros: entries that are 0 afterwards, natural zeros included.
      bits: width of a code or of the dtype; of the total, coded bits divided by parameters.
      dense_bytes: size before, as the arrays are.
      coded_bytes: size after, by the formula of :mod:`jaxprune.reports.sizes`.
      relative_error: L2 norm of ``after - before`` over that of ``before`` (its finite entries); inf if only that is 0.
        The total is over leaves of real and complex numbers, not of integers.
      max_error: largest ``abs(after - before)``, in the units of the parameters.
      histogram: of the weights; None of the total, and of leaves that are not floating.
    """

    path: str
    parameters: int
    masked: int
    removed: int
    zeros: int
    bits: float
    dense_bytes: int
    coded_bytes: int
    relative_error: float
    max_error: float
    histogram: Histogram | None = field(default=None, repr=False)

    @property
    def mask_sparsity(self) -> float:
        """Fraction that masks remove, of the parameters under a mask; as ``masks.sparsity_of``."""
        return self.removed / self.masked if self.masked else 0.0

    @property
    def zero_fraction(self) -> float:
        """Fraction of zeros, of all parameters."""
        return self.zeros / self.parameters if self.parameters else 0.0

    @property
    def name(self) -> str:
        """The path as tables show it."""
        return self.path or "(array)"


class Column(NamedTuple):
    """One column of numbers of the table in the terminal, on the page and in the notebook.

    Attributes:
      title: its head.
      meaning: what it says, for who reads the page.
      value: the number, of a row.
      form: how a number is written.
    """

    title: str
    meaning: str
    value: Callable[[Row], float]
    form: str = ","

    def show(self, row: Row) -> str:
        """The number as it is printed."""
        value = self.value(row)
        return f"{value:,}" if isinstance(value, int) else f"{value:{self.form}}"


COLUMNS = (
    Column("parameters", "entries of the leaf", lambda row: row.parameters),
    Column("sparsity", "fraction that masks remove, of the entries under a mask", lambda row: row.mask_sparsity, ".4f"),
    Column("zeros", "fraction of entries that are 0 after, whatever made them", lambda row: row.zero_fraction, ".4f"),
    Column("bits", "width of a code, or of the dtype; of the total: coded, a parameter", lambda row: row.bits, ".2f"),
    Column("dense bytes", "size before, as the array is", lambda row: row.dense_bytes),
    Column("coded bytes", "size after, by the formula below", lambda row: row.coded_bytes),
    Column("rel. error", "|after - before| / |before|, in the L2 norm", lambda row: row.relative_error, ".2e"),
    Column("max error", "largest |after - before|, in the units of the weights", lambda row: row.max_error, ".2e"),
)

FORMULA = """\
coded = ceil(kept * bits / 8) + mask + 4 a scale (+ 4 a zero point if asymmetric), in bytes for each leaf; a mask takes
1 bit a parameter, 1 bit a unit where whole units are removed, nothing where nothing is.
An entropy coder gets below it."""
