"""The curves of a sweep as a picture."""

from pathlib import Path
from typing import Any

from jaxprune.checkpoints.writing import replacing
from jaxprune.host import library


def pyplot() -> Any:
    """Matplotlib, without a window."""
    library("matplotlib", "jaxprune[plots]").use("Agg")
    return library("matplotlib.pyplot", "jaxprune[plots]")


def draw(path: Path, rows: list[dict[str, Any]], metric: str, force: bool) -> None:
    """A line for each width, over bytes."""
    plot = pyplot()
    figure, axes = plot.subplots(figsize=(7, 4.5), layout="constrained")
    for bits in dict.fromkeys(row["bits"] for row in rows):
        line = [row for row in rows if row["bits"] == bits]
        values = [row.get("metric", row["relative_error"]) for row in line]
        label = "not quantized" if bits is None else f"{bits:g} bits"
        axes.plot([row["bytes"] / 1e6 for row in line], values, "o-", label=label)
        for row, value in zip(line, values, strict=True):
            place = (row["bytes"] / 1e6, value)
            axes.annotate(f"{row['sparsity']:g}", place, textcoords="offset points", xytext=(4, 4), fontsize=8)
    axes.set(xscale="log", xlabel="megabytes (numbers: sparsity)", ylabel=metric)
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path, force=force) as beside:
        figure.savefig(beside, format=path.suffix[1:] or "png", dpi=150)
    plot.close(figure)
