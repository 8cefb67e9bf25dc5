"""Every benchmark runs from the command line at small sizes and writes the JSON that its README documents."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = (
    *(
        "command_line",
        "compile_time",
        "data",
        "fake_quant",
        "global_prune",
        "large_data",
        "limits",
        "n_of_m",
        "scaling",
        "search",
        "select",
    ),
    *("shrink", "small_files", "sweep", "thresholds", "training_methods", "training_speed"),
)


def run(tmp_path, *command):
    path = tmp_path / "result.json"
    command = [sys.executable, *command, "--small", "--json", str(path)]
    subprocess.run(command, cwd=ROOT, check=True)
    return json.loads(path.read_text())


def test_every_benchmark_is_tested():
    assert {path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py")} == set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_runs_as_a_file(name, tmp_path, capfd):
    result = run(tmp_path, f"benchmarks/{name}.py")
    assert result["benchmark"] == name
    assert set(result) - {"results"} == {"benchmark", "small", "machine", "sizes", "tables", "targets"}
    assert {"cpus", "jax", "numpy", "backend"} <= set(result["machine"])
    for table in result["tables"]:
        assert table["rows"][0]["ratio"] == 1
        for row in table["rows"]:
            assert 0 < row["min_seconds"] <= row["median_seconds"]
            assert row["spread_seconds"] >= 0 and row["rounds"] >= 3 and row["ratio"] > 0
            assert {"name", "cpu_seconds", "compile_seconds", "temporaries_bytes"} <= set(row)
    for target in result["targets"]:
        assert set(target) == {"what", "ratio", "quartiles", "target", "met"}
    printed = capfd.readouterr().out
    assert all(row["name"] in printed for table in result["tables"] for row in table["rows"])


@pytest.mark.slow
def test_runs_as_a_module(tmp_path):
    assert run(tmp_path, "-m", "benchmarks.n_of_m")["small"]
