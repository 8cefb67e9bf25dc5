"""What does a sweep add to the evaluations themselves?

A CNN pruned and quantized at 64 settings: against a loop over one jitted function, written by hand. Compilations and
peak memory are those of fresh processes, which evaluate one setting, all in the loop, or all in the sweep. Then an MLP
on two virtual devices of one CPU, against one of them.
"""

import sys
from os.path import dirname

if not __package__:  # run as a file: its directory leads the path, and select.py would hide the standard module
    sys.path[0] = dirname(dirname(__file__))

import json
import os
import subprocess
from typing import Any

import numpy as np

from benchmarks import _sweep_cases
from benchmarks._report import Table, Target, options, report
from benchmarks._timer import Case, Row, measure, ratio


def main() -> None:
    arguments = options(__doc__)
    small = arguments.small
    ours, loop, one = (_fresh(name, small) for name in ("jp.sweep", "hand-written loop", "one setting"))
    cases = [_sweep_cases.sweep_case(small), _sweep_cases.loop_case(small)]
    np.testing.assert_allclose(cases[0].call(), cases[1].call(), atol=0.01)
    for case, facts in zip(cases, (ours, loop), strict=True):
        case.compile_seconds, case.facts = facts.pop("compile_seconds"), facts
    cnn = measure(*cases, seconds=20)
    mlp = {name: Row(Case(name, lambda: None), **times) for name, times in _fresh("devices", small).items()}
    targets = [
        Target("jp.sweep / hand-written loop", ratio(cnn["jp.sweep"], cnn["hand-written loop"]), "<=", 1.05),
        Target("compilations", float(ours["compilations"]), "<=", 1),
        Target("peak memory / that of one setting", ours["peak_bytes"] / one["peak_bytes"], "<=", 1.3),
        Target("the same without what lay there before", ours["added_bytes"] / one["added_bytes"], "<=", 1.3),
        Target("two devices / one", ratio(mlp["jp.sweep, two devices"], mlp["jp.sweep, one device"]), "<=", 1),
    ]
    sizes = {"settings": len(_sweep_cases.settings(small)["bits"]), "dtype": "float32"}
    tables = [Table("CNN, warm; compile time of a fresh process", cnn), Table("MLP", mlp)]
    report(arguments, "sweep", sizes, tables, targets)


def _fresh(name: str, small: bool) -> dict[str, Any]:
    """What a new process measures."""
    environment = dict(os.environ)
    if name == "devices":
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2".strip()
    command = [sys.executable, "-m", "benchmarks._sweep_cases", name, "small" if small else "full"]
    root = dirname(dirname(os.path.abspath(__file__)))
    done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
