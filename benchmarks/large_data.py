"""Does calibration serve models that are large for the machine?

A decoder of 310 million random weights, 24 layers: statistics with Gram matrices of three batches, then GPTQ at 4 bits
in groups of 128. The layers are stacked under ``lax.scan``, or an array each, or stacked and in two passes: ``down``,
then the rest. Each way is a process of its own; memory is the peak of its resident set (Linux).
"""

import sys
from os.path import dirname

if not __package__:  # run as a file: its directory leads the path, and select.py would hide the standard module
    sys.path[0] = dirname(dirname(__file__))

import json
import os
import subprocess
from typing import Any

from benchmarks import _decoder
from benchmarks._report import Target, options, report

LIMIT = 8e9


def main() -> None:
    arguments = options(__doc__)
    size = "small" if arguments.small else "full"
    results = {name: _fresh(name, size) for name in _decoder.CASES}
    targets = []
    for name, found in results.items():
        stages, model, statistics = found["stages"], found["model_bytes"], found["statistics_bytes"]
        print(f"\n{name}: model {model / 1e9:.2f} GB, statistics {statistics / 1e9:.2f} GB")
        for stage, one in stages.items():
            print(f"  {stage:9s}", ", ".join(f"{key} {_shown(key, value)}" for key, value in one.items()))
        peak = max(one["peak_bytes"] for one in stages.values())
        targets.append(Target(f"{name}: peak / 8 GB", peak / LIMIT, "<=", 1))
    sizes: dict[str, Any] = {**_decoder.SIZES[size]._asdict(), "dtype": "float32"}
    report(arguments, "large_data", sizes, [], targets, results=results)


def _fresh(name: str, size: str) -> dict[str, Any]:
    """What a new process measures."""
    command = [sys.executable, "-m", "benchmarks._decoder", name, size]
    root = dirname(dirname(os.path.abspath(__file__)))
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def _shown(key: str, value: float) -> str:
    return f"{value / 1e9:.2f} GB" if key.endswith("bytes") else f"{value:.1f}" if "seconds" in key else f"{value}"


if __name__ == "__main__":
    main()
