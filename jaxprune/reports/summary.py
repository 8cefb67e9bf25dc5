"""The report itself: a row of counts for each leaf and a total, and the ways to look at them."""

import os
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from jaxprune import host
from jaxprune.reports import page, plots
from jaxprune.reports.measures import Histogram


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
      axes: inputs > outputs, as ``jaxprune inspect`` shows them, where whole units are removed or there are scales of
        units or blocks: they say what these are. ``?`` where no rule knows them.
      why: what it cost and saved, and what stood near, in words; empty unless it was asked for.
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
    axes: str = ""
    why: str = ""

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
_NOTES = """\
sparsity: what masks remove, of the parameters under a mask. zeros: of all parameters, whatever made them.
The bits of the total are coded bits a parameter; rel. error is |after - before| / |before| in the L2 norm."""


@dataclass(frozen=True)
class Report:
    """A row for each leaf and one for all.

    ``print`` shows a table, a notebook shows one with bars, :meth:`plot` draws it, :meth:`to_html` writes a page, and
    :meth:`to_dict` gives what is in it.
    """

    rows: tuple[Row, ...]
    total: Row
    columns: ClassVar = COLUMNS
    formula: ClassVar = FORMULA

    def to_dict(self, *, histograms: bool = False) -> dict[str, Any]:
        """Plain Python values, ready for ``json.dumps``: ``{"rows": [{...}, ...], "total": {...}}``.

        Args:
          histograms: also those of the weights, 128 numbers a leaf, as ``"histogram"`` of each row.
        """

        def record(row: Row) -> dict[str, Any]:
            plain = {name: value for name, value in vars(row).items() if name != "histogram"}
            if histograms:
                spread = row.histogram and vars(row.histogram)
                plain["histogram"] = spread and {k: list(v) if isinstance(v, tuple) else v for k, v in spread.items()}
            return plain | {"mask_sparsity": row.mask_sparsity, "zero_fraction": row.zero_fraction}

        return {"rows": [record(row) for row in self.rows], "total": record(self.total)}

    def to_html(
        self,
        path: str | os.PathLike[str],
        *,
        title: str = "Compression report",
        sweep: Any = None,
        settings: Any = None,
        cost: Any = "bytes",
        metric: Any = "accuracy",
        chosen: int | None = None,
        baseline: float | None = None,
    ) -> Path:
        """Writes one page that holds everything it needs: no network, no other file (needs Jinja2).

        It shows the totals, the frontier of a sweep if there is one, a table of the leaves that sorts by any column,
        and the weights of each leaf before and after. The file is written beside ``path`` and then renamed, so that
        whatever goes wrong, ``path`` holds the old file or the new one.

        Args:
          path: where; the folder must exist.
          title: the heading.
          sweep: what :func:`jaxprune.sweep` returned: a mapping, or a record with attributes, of arrays [N].
          settings: those of the sweep, as :func:`jaxprune.grid` makes them: a tree of arrays [N]; they name its points.
          cost: of the sweep, lower is better. A name in ``sweep``, or numbers [N].
          metric: of the sweep, higher is better. Likewise.
          chosen: index of the setting that this report is about.
          baseline: the metric before compression.

        Returns:
          The path.

        Raises:
          ImportError: without Jinja2. KeyError: a name that the sweep does not have.
          ValueError: arrays of different lengths, no finite value, an index out of range, or settings, a choice or a
            baseline without a sweep. OSError, if the file cannot be written.

        >>> import tempfile
        >>> import jaxprune as jp, numpy as np
        >>> weights = {"kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}
        >>> settings = jp.grid(bits=[2, 4, 8])
        >>> result = {"bytes": np.array([7, 10, 16]), "accuracy": np.array([0.6, 0.9, 0.91])}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = jp.report(weights, jp.quantize(weights, 4)).to_html(
        ...         folder + "/report.html", sweep=result, settings=settings, chosen=1
        ...     )
        ...     written.name, "chosen: bits 4" in written.read_text()
        ('report.html', True)
        """
        found = None
        if sweep is not None:
            found = plots.find(sweep, cost=cost, metric=metric, settings=settings, chosen=chosen, baseline=baseline)
        elif not (settings is None and chosen is None and baseline is None):
            raise ValueError("settings, chosen and baseline are about a sweep; give sweep= as well")
        with host.written_whole(path) as beside:
            beside.write_bytes(page.render(self, title, found).encode())
        return Path(path)

    def plot(self, ax: Any = None, *, most: int = 30) -> Any:
        """Draws the bytes of each leaf before and after, with its sparsity and bits beside them (needs matplotlib).

        Args:
          ax: matplotlib axes to draw on; None for a new figure.
          most: leaves to draw at most, the largest first; the others are summed up in one bar.

        Returns:
          The axes; ``.figure`` is the figure.

        Raises:
          ImportError: without matplotlib.
          ValueError: ``most`` below 1.
        """
        return plots.plot_leaves(self, ax, most)

    def _repr_html_(self) -> str:
        return page.fragment(self, self._sizes())

    def __str__(self) -> str:
        axes = any(row.axes for row in self.rows)
        head = ("leaf", *["axes"] * axes, *(column.title for column in COLUMNS))
        cells = [(row.name, *[row.axes] * axes, *(c.show(row) for c in COLUMNS)) for row in (*self.rows, self.total)]
        table = host.table(head, cells[:-1], cells[-1], left=1 + axes)
        said = [textwrap.fill(f"{row.name}: {row.why}", 120, subsequent_indent="  ") for row in self.rows if row.why]
        return "\n".join([table, "", self._sizes(), FORMULA, _NOTES, *["", *said] * bool(said)])

    def __repr__(self) -> str:
        return f"Report({len(self.rows):,} leaves, {self._sizes()})"

    def _sizes(self) -> str:
        """The bytes before and after in one line."""
        dense, coded = self.total.dense_bytes, self.total.coded_bytes
        return f"dense {dense:,} bytes, coded {coded:,} bytes{f' ({coded / dense:.1%} of dense)' if dense else ''}"
