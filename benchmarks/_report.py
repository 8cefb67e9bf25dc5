"""The command line of a benchmark, its table and its JSON."""

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jaxlib
import numpy as np

from benchmarks._timer import Ratio, Row, ratio


@dataclass
class Table:
    """Peers side by side, as ``measure`` returns them; every ratio is to the first row."""

    title: str
    rows: dict[str, Row]

    def as_json(self) -> dict[str, Any]:
        rows = list(self.rows.values())
        return {"title": self.title, "rows": [_row(row, rows[0]) for row in rows]}


@dataclass
class Target:
    """A ratio, and what it should be: ``relation`` is ">=" or "<=". ``ratio`` is None where a peer is not installed."""

    what: str
    ratio: Ratio | float | None
    relation: str
    limit: float


def options(description: str | None) -> argparse.Namespace:
    """``--small`` and ``--json``, as every benchmark has them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs; ratios mean nothing")
    parser.add_argument("--json", metavar="PATH", help="write the results here too")
    return parser.parse_args()


def optional(name: str) -> Any:
    """A peer's module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def report(
    options: argparse.Namespace,
    name: str,
    sizes: dict[str, Any],
    tables: Sequence[Table],
    targets: Sequence[Target],
    **more: Any,
) -> None:
    """Prints the tables and the targets, and writes the JSON, with ``more`` in it."""
    result = {
        "benchmark": name,
        "small": options.small,
        "machine": _machine(),
        "sizes": sizes,
        "tables": [table.as_json() for table in tables],
        "targets": [_target(target, options.small) for target in targets],
        **more,
    }
    print(f"{name}: {', '.join(f'{key} {value}' for key, value in sizes.items())}")
    print(", ".join(f"{key} {value}" for key, value in result["machine"].items() if value is not None))
    for table in result["tables"]:
        print(f"\n{table['title']}")
        _print_rows(table["rows"])
    if targets:
        print()
        _print_targets(result["targets"])
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=1)


def _machine() -> dict[str, Any]:
    return {
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "backend": jax.default_backend(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "numpy": np.__version__,
        "qwix": _version("qwix"),
        "keras": _version("keras"),
        "torch": _version("torch"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _row(row: Row, first: Row) -> dict[str, Any]:
    return {
        "name": row.case.name,
        "median_seconds": row.median,
        "min_seconds": min(row.seconds),
        "spread_seconds": row.spread,
        "cpu_seconds": float(np.median(row.cpu_seconds)),
        "rounds": len(row.seconds),
        "compile_seconds": row.case.compile_seconds,
        "temporaries_bytes": row.case.temporaries_bytes,
        "ratio": ratio(row, first).median,
        **row.case.facts,
    }


def _target(target: Target, small: bool) -> dict[str, Any]:
    found = target.ratio
    if isinstance(found, float):
        found = Ratio(found, found, found)
    met = None
    if found is not None and not small:
        met = found.median >= target.limit if target.relation == ">=" else found.median <= target.limit
    return {
        "what": target.what,
        "ratio": None if found is None else found.median,
        "quartiles": None if found is None else [found.low, found.high],
        "target": f"{target.relation} {target.limit:g}",
        "met": met,
    }


def _print_rows(rows: list[dict[str, Any]]) -> None:
    head = ["", "median", "min", "spread", "cpu", "rounds", "compile", "temporaries", "ratio"]
    lines = [
        [
            row["name"],
            *(_time(row[key]) for key in ("median_seconds", "min_seconds", "spread_seconds", "cpu_seconds")),
            str(row["rounds"]),
            _time(row["compile_seconds"]),
            _bytes(row["temporaries_bytes"]),
            f"{row['ratio']:.2f}",
        ]
        for row in rows
    ]
    _print_aligned([head, *lines])


def _print_targets(targets: list[dict[str, Any]]) -> None:
    lines = [["", "ratio", "quartiles", "target", "met"]]
    for target in targets:
        missing = target["ratio"] is None
        measured = ["-", "-"] if missing else [f"{target['ratio']:.2f}", "{:.2f}..{:.2f}".format(*target["quartiles"])]
        met = {None: "-", True: "yes", False: "no"}[target["met"]]
        lines.append([target["what"], *measured, target["target"], met])
    _print_aligned(lines)


def _print_aligned(lines: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *rest in lines:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        print("  ".join(cells).rstrip())


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return (
        f"{seconds:.2f} s"
        if seconds >= 1
        else f"{seconds * 1e3:.2f} ms"
        if seconds >= 1e-3
        else f"{seconds * 1e6:.1f} us"
    )


def _bytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.2f} MB"
