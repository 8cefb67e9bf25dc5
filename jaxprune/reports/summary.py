"""The report itself: rows and a total, and the ways to look at them."""

import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from jaxprune import host
from jaxprune.reports import frontier, page, plots
from jaxprune.reports.rows import COLUMNS, FORMULA, Row

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

    def to_dict(self, *, histograms: bool = False) -> dict[str, Any]:
        """Plain Python values, ready for ``json.dumps``: ``{"rows": [{...}, ...], "total": {...}}``.

        Args:
          histograms: also those of the weights, 128 numbers a leaf, as ``"histogram"`` of each row.
        """

        def record(row: Row) -> dict[str, Any]:
            plain = {field.name: getattr(row, field.name) for field in fields(row) if field.name != "histogram"}
            if histograms:
                spread = row.histogram and asdict(row.histogram)
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
            found = frontier.find(sweep, cost=cost, metric=metric, settings=settings, chosen=chosen, baseline=baseline)
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
        return page.fragment(self.rows, self.total, self._sizes())

    def __str__(self) -> str:
        cells = [(row.name, *(column.show(row) for column in COLUMNS)) for row in (*self.rows, self.total)]
        table = host.table(("leaf", *(column.title for column in COLUMNS)), cells[:-1], cells[-1])
        return "\n".join([table, "", self._sizes(), FORMULA, _NOTES])

    def __repr__(self) -> str:
        return f"Report({len(self.rows):,} leaves, {self._sizes()})"

    def _sizes(self) -> str:
        """The bytes before and after in one line."""
        dense, coded = self.total.dense_bytes, self.total.coded_bytes
        return f"dense {dense:,} bytes, coded {coded:,} bytes{f' ({coded / dense:.1%} of dense)' if dense else ''}"
