"""Files: what is written, how, and that others can read it."""

import json
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import oracles_files as oracle
import pytest
import safetensors.numpy
from test_compress import assert_same, lenet

import jaxprune as jp
from jaxprune.files import FormatError, read, tree_json


def big(seed=0):
    """Leaves that have tensors of their own, and small ones that share one."""
    return lenet(seed) | {"Embed": {"embedding": jnp.asarray(np.random.default_rng(seed).normal(size=(90, 80)))}}


def test_a_file_gives_back_what_was_saved_and_has_the_size_that_was_promised(tmp_path):
    path, params = tmp_path / "weights.jp", big()
    for options in (
        {},
        {"bits": 4},
        {
            "masks": jp.prune(params, 0.8, scope="global").masks,
            "bits": 6,
            "quantizer": "codebook",
            "where": "Dense_0/*",
        },
    ):
        compressed = jp.compress(params, **options)
        assert jp.save(path, compressed) == compressed.nbytes == path.stat().st_size
        assert_same(jp.load(str(path)), compressed.decompress())
        assert_same(jp.load(path, leaf="Dense_1/kernel"), compressed.decompress()["Dense_1"]["kernel"])
    assert jp.save(path, params, bits=3) == jp.compress(params, bits=3).nbytes == path.stat().st_size
    with pytest.raises(TypeError, match=r"compressed already; \['bits'\]"):
        jp.save(path, jp.compress(params), bits=3)


def test_a_pruned_tree_takes_less_than_a_dense_one_and_holds_nothing_else(tmp_path):
    params = big()
    pruned = jp.prune(params, 0.9, scope="global")
    dense, small = (jp.save(tmp_path / name, tree) for name, tree in (("a", params), ("b", pruned.params)))
    assert small < dense < sum(leaf.nbytes for leaf in jax.tree.leaves(params)) + 800
    assert small == jp.save(tmp_path / "c", params, masks=pruned.masks)
    assert len(read(tmp_path / "b").stored) == len(jax.tree.leaves(params))


def test_any_reader_of_safetensors_can_list_it(tmp_path):
    path = tmp_path / "weights.jp"
    jp.save(path, big())
    with safetensors.safe_open(path, "np") as file:
        header = json.loads(file.metadata()["jaxprune"])
        assert set(file.keys()) == {"*", *(f"Dense_{i}/kernel" for i in range(3)), "Embed/embedding"}
        assert file.metadata().keys() == {"jaxprune"}
    assert header["version"] == 3
    assert header["tree"]["Dense_0"] == {"bias": 0, "kernel": 1}
    assert all(part.dtype == np.uint8 for part in safetensors.numpy.load_file(path).values())


def test_a_decoder_written_from_the_description_alone_reads_it():
    draw = np.random.default_rng(0)
    tree = {
        "floats": draw.normal(size=(30, 40)).astype(np.float32),
        "few": draw.choice(np.array([0, 1.5, -2], np.float32), (20, 30)),
        "grid": draw.integers(-3, 4, (20, 30)).astype(np.float32) * np.float32(0.3),
        "sparse": draw.normal(size=(60, 70)).astype(np.float32) * (draw.random((60, 70)) < 0.2),
        "codes": [draw.integers(-7, 8, (9, 10), np.int8), (draw.integers(0, 3, 5), None)],
        "half": draw.normal(size=(30, 40)).astype(np.float16),
        "brain": np.asarray(jnp.asarray(draw.normal(size=(30, 40)), jnp.bfloat16)),
        "noise": np.frombuffer(draw.bytes(4000), np.float64),
        "flag": np.array(True),
        "empty": np.zeros((0, 3)),
    }
    found = oracle.read(jp.compress(tree).to_bytes())
    leaves = {
        "/".join(str(k.key if hasattr(k, "key") else k.idx) for k in path): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
    assert set(found) == set(leaves)
    for path, leaf in leaves.items():
        assert found[path].dtype == leaf.dtype and found[path].tobytes() == leaf.tobytes(), path


def named(compressed):
    return zip((node.path for node in tree_json.leaves(compressed.root)), compressed.stored, strict=True)


def test_a_file_is_reported_on_as_what_was_written(tmp_path):
    compressed = jp.compress(big(), bits=4, quantizer=jp.QuantSpec(axis=-1))
    jp.save(tmp_path / "weights.jp", compressed)
    assert read(tmp_path / "weights.jp").report() == compressed.report()


def test_one_leaf_is_read_without_the_others(tmp_path):
    path, params = tmp_path / "weights.jp", big()
    jp.save(path, params)
    data = bytearray(path.read_bytes())
    at = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["Embed/embedding"]["data_offsets"][1]
    data[8 + int.from_bytes(data[:8], "little") + at - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"leaf 'Embed/embedding': the checksum is wrong"):
        jp.load(path)
    assert_same(jp.load(path, leaf="Dense_0"), params["Dense_0"])
    opened = read(path)
    one = [leaf if node == "Dense_0/kernel" else leaf._replace(part=None) for node, leaf in named(opened)]
    assert_same(jp.Compressed(opened.root, tuple(one)).decompress("Dense_0/kernel"), params["Dense_0"]["kernel"])
    with pytest.raises(ValueError, match="no leaf 'Dense_7'"):
        jp.load(path, leaf="Dense_7")


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch, step):
    path, old = tmp_path / "weights.jp", lenet(0)
    jp.save(path, old)

    def fail(*args, **kwargs):
        raise OSError("no space left")

    if step == "write":
        monkeypatch.setattr(jp.Compressed, "pieces", lambda self: map(fail, [b""]))
    else:
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="no space left"):
        jp.save(path, lenet(1))
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["weights.jp"]
    assert_same(jp.load(path), old)


def test_a_reader_beside_a_writer_sees_whole_files(tmp_path):
    path, trees = tmp_path / "weights.jp", [lenet(0), lenet(1)]
    jp.save(path, trees[0])
    first = {np.asarray(tree["Dense_0"]["bias"]).tobytes() for tree in trees}
    writer = threading.Thread(target=lambda: [jp.save(path, trees[i % 2]) for i in range(20)])
    writer.start()
    while writer.is_alive():
        assert np.asarray(jp.load(path)["Dense_0"]["bias"]).tobytes() in first
    writer.join()


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError):
        jp.load(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        jp.save(tmp_path / "missing" / "weights.jp", lenet())
    plain = tmp_path / "plain.safetensors"
    safetensors.numpy.save_file({"w": np.zeros(3)}, plain)
    with pytest.raises(FormatError, match=r"plain.safetensors: .*read_checkpoint\(path\) reads it"):
        jp.load(plain)
    plain.write_bytes(b"")
    with pytest.raises(FormatError, match="plain.safetensors"):
        jp.load(plain)
