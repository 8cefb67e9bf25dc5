"""Checkpoints: every format and dtype there and back, one leaf at a time, and what is said of files that are none."""

import io
import json
import os
import zipfile

import flax.serialization
import fuzz_checkpoints
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint
import pytest

import jaxprune as jp
from jaxprune import checkpoints
from jaxprune.checkpoints import CheckpointError, compressed, flax_msgpack, ranking
from jaxprune.checkpoints import leaf as names
from jaxprune.checkpoints.leaf import of_array
from jaxprune.cli import inspect as inspection
from jaxprune.reports import measures

SUFFIXES = (".safetensors", ".npz", ".msgpack", ".orbax", ".jp")
FILES = (".safetensors", ".npz", ".msgpack", ".jp")


def some(dtype):
    """Twelve numbers that the dtype holds."""
    values = np.linspace(0, 6, 12).reshape(3, 4)
    return (values > 2 if dtype is bool else np.rint(values)).astype(dtype)


DTYPES = (
    *(
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
    ),
    *("complex64", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "int4", "uint4"),
)
LEAVES = {
    f"params/layer_{i}/{name}": some(bool if name == "bool" else getattr(ml_dtypes, name, name))
    for i, name in enumerate(DTYPES)
} | {
    "params/scalar": np.float32(2.5),
    "params/special": np.array([np.nan, np.inf, -0.0, 1.0], np.float32),
    "step": np.array(7, np.int64),
}


def same(left, right):
    left, right = np.asarray(left), np.asarray(right)
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def held(suffix):
    """The leaves that a format has a dtype for: TensorStore, which Orbax writes with, lacks one."""
    return {name: leaf for name, leaf in LEAVES.items() if suffix != ".orbax" or not name.endswith("uint4")}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The leaves in every format."""
    folder = tmp_path_factory.mktemp("files")
    for suffix in SUFFIXES:
        size = checkpoints.write(folder / f"model{suffix}", held(suffix))
        assert size == checkpoints.open(folder / f"model{suffix}").file_bytes
    return folder


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_dtype_comes_back_bit_for_bit(files, suffix):
    opened = checkpoints.open(files / f"model{suffix}")
    assert set(opened.leaves) == set(held(suffix))
    for name, leaf in opened.leaves.items():
        assert leaf.name == name
        assert (leaf.shape, leaf.dtype) == (np.shape(LEAVES[name]), np.asarray(LEAVES[name]).dtype), name
        assert same(leaf.read(), LEAVES[name]), name


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_format_is_told_by_its_content(files, suffix, tmp_path):
    known = {".safetensors": "safetensors", ".npz": "npz", ".msgpack": "msgpack", ".orbax": "orbax", ".jp": "jaxprune"}
    (tmp_path / "model.bin").symlink_to(files / f"model{suffix}")
    assert checkpoints.open(tmp_path / "model.bin").format == known[suffix]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("odd", [("/m/MatMul", "/", "a//b", "c/", "x"), ("", "b"), ("",)], ids=str)
def test_names_are_data(tmp_path, suffix, odd):
    leaves = {name: np.full((2, 3), i, np.float32) for i, name in enumerate(odd)}
    checkpoints.write(tmp_path / f"m{suffix}", leaves)
    read = checkpoints.open(tmp_path / f"m{suffix}").leaves
    assert set(read) == set(odd) and all(same(read[name].read(), leaf) for name, leaf in leaves.items())


def test_other_libraries_read_what_is_written(files):
    kernel = LEAVES["params/layer_10/float32"]
    half = LEAVES["params/layer_13/bfloat16"]
    with np.load(files / "model.npz") as archive:
        assert same(archive["params/layer_10/float32"], kernel)
        assert same(archive["params/layer_13/bfloat16"]["bfloat16"].view(ml_dtypes.bfloat16), half)
    tree = flax.serialization.msgpack_restore((files / "model.msgpack").read_bytes())
    assert same(tree["params"]["layer_10"]["float32"], kernel) and same(tree["params"]["layer_13"]["bfloat16"], half)
    tree = orbax.checkpoint.PyTreeCheckpointer().restore((files / "model.orbax").absolute())
    assert same(tree["params"]["layer_13"]["bfloat16"], half)
    assert same(jp.load(files / "model.jp")["params"]["layer_13"]["bfloat16"], half)
    library = pytest.importorskip("safetensors")
    with library.safe_open(files / "model.safetensors", "np") as file:
        assert same(file.get_tensor("params/layer_10/float32"), kernel)
        assert same(file.get_tensor("params/layer_13/bfloat16"), half)
        assert json.loads(file.metadata()["jaxprune.dtypes"])["params/layer_17/int4"] == "int4"


def test_what_other_libraries_write_is_read(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    tree = {"a": {"kernel": np.arange(6.0).reshape(2, 3), "b": [np.ones(2, np.float32), 3]}, "none": None, "text": "x"}
    flat = {"a/kernel": tree["a"]["kernel"], "a/b/0": tree["a"]["b"][0], "a/b/1": np.asarray(3)}
    library.save_file({"a.kernel": flat["a/kernel"], "a.b.0": flat["a/b/0"]}, tmp_path / "m.safetensors")
    opened = checkpoints.open(tmp_path / "m.safetensors")
    assert {name: leaf.read().tolist() for name, leaf in opened.leaves.items()} == {
        "a.kernel": [[0, 1, 2], [3, 4, 5]],
        "a.b.0": [1, 1],
    }
    (tmp_path / "m.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree | {"c": 1 + 2j, "f": np.float32(2)}))
    opened = checkpoints.open(tmp_path / "m.msgpack")
    assert all(same(opened.leaves[name].read(), array) for name, array in flat.items())
    assert opened.leaves["c"].read() == 1 + 2j and opened.leaves["f"].read() == 2 and len(opened.leaves) == 5
    orbax.checkpoint.PyTreeCheckpointer().save(tmp_path / "3" / "default", tree["a"] | {"c": jnp.ones(3)})
    opened = checkpoints.open(tmp_path / "3")
    assert set(opened.leaves) == {"kernel", "b/0", "b/1", "c"} and same(opened.leaves["b/0"].read(), tree["a"]["b"][0])
    np.savez_compressed(
        tmp_path / "m.npz", half=tree["a"]["kernel"].astype(ml_dtypes.bfloat16), big=np.arange(3, dtype=">i4")
    )
    opened = checkpoints.open(tmp_path / "m.npz")
    assert same(opened.leaves["half"].read(), tree["a"]["kernel"].astype(ml_dtypes.bfloat16))
    assert same(opened.leaves["big"].read(), np.arange(3, dtype=np.int32))


@pytest.mark.parametrize("database, newer", [(True, False), (False, False), (True, True), (False, True)])
def test_what_orbax_writes(tmp_path, database, newer):
    """As a database or a folder a leaf, in both versions of Zarr; names are data, and what is no array is left out."""
    tree = {
        "a/b": {"~": jnp.ones((2, 3), jnp.bfloat16), "c.d": np.arange(4.0)},
        "list": [1, np.int8(3), (np.array([True, False]),)],
        "none": {"text": "text", "none": None, "dict": {}, "list": []},
        "zeros": np.zeros((5, 5)),
        "large": np.random.default_rng(0).normal(size=(300, 400)).astype(np.float32),
    }
    handler = orbax.checkpoint.PyTreeCheckpointHandler(use_ocdbt=database, use_zarr3=newer)
    orbax.checkpoint.Checkpointer(handler).save(tmp_path / "m", tree)
    opened = checkpoints.open(tmp_path / "m").leaves
    wanted = {"a/b/~": tree["a/b"]["~"], "a/b/c.d": tree["a/b"]["c.d"], "list/0": np.int64(1), "list/1": np.int8(3)}
    wanted |= {"list/2/0": tree["list"][2][0], "zeros": tree["zeros"], "large": tree["large"]}
    assert set(opened) == set(wanted) and all(same(opened[name].read(), leaf) for name, leaf in wanted.items())


def test_arrays_that_flax_cuts_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 16)
    array = np.arange(15, dtype=np.float32).reshape(3, 5)
    checkpoints.write(tmp_path / "m.msgpack", {"a/b": array, "c": np.ones(2)})
    assert b"__msgpack_chunked_array__" in (tmp_path / "m.msgpack").read_bytes()
    leaf = checkpoints.open(tmp_path / "m.msgpack").leaves["a/b"]
    assert leaf.shape == (3, 5) and same(leaf.read(), array)


def test_large_arrays_of_flax_are_not_read_when_a_file_is_opened(tmp_path, monkeypatch):
    arrays = {
        "a/b": np.arange(2**21, dtype=np.float32),
        "a/c": np.arange(3),
        "d": np.ones((2**10, 2**10)),
        "e": np.ones(2),
    }
    size, read = checkpoints.write(tmp_path / "m.msgpack", arrays), []

    class Counted(io.FileIO):
        def read(self, size=-1):
            read.append(super().read(size))
            return read[-1]

    monkeypatch.setattr(flax_msgpack, "open", lambda path, mode: Counted(path), raising=False)
    opened = checkpoints.open(tmp_path / "m.msgpack")
    assert 0 < sum(map(len, read)) < size / 3
    monkeypatch.undo()
    assert list(opened.leaves) == list(arrays)
    assert all(same(opened.leaves[name].read(), array) for name, array in arrays.items())
    with (tmp_path / "m.msgpack").open("rb+") as file:
        file.truncate(2**22)
    with pytest.raises(CheckpointError, match="an array ends beyond it"):
        checkpoints.open(tmp_path / "m.msgpack")


def test_records_of_an_artifact_are_the_arrays_that_they_stand_for(tmp_path):
    kernel = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    tree = {
        "q": jp.quantize(kernel, 4),
        "key": jax.random.key(3),
        "n": 5,
        "f": jp.quantize(kernel, 8, spec=jp.QuantSpec(axis=-1)),
    }
    jp.save(tmp_path / "m.jp", tree)
    leaves = checkpoints.open(tmp_path / "m.jp").leaves
    assert leaves["q"].shape == (3, 4) and leaves["q"].dtype == np.float32
    assert same(leaves["q"].read(), jp.fake_quant(kernel, 4))
    assert same(leaves["f"].read(), jp.fake_quant(kernel, 8, spec=jp.QuantSpec(axis=-1)))
    assert same(leaves["key"].read(), jax.random.key_data(tree["key"])) and leaves["n"].read() == 5
    jp.save(tmp_path / "bare.jp", kernel)
    assert same(checkpoints.open(tmp_path / "bare.jp").leaves["array"].read(), kernel)


def test_an_index_of_several_files(tmp_path):
    checkpoints.write(tmp_path / "1.safetensors", {"b": np.ones(2), "a": np.zeros(3)})
    checkpoints.write(tmp_path / "2.safetensors", {"c": np.arange(4)})
    index = tmp_path / "model.safetensors.index.json"

    def opened(**places):
        index.write_text(json.dumps({"weight_map": places}))
        return checkpoints.open(index)

    found = opened(a="1.safetensors", c="2.safetensors")
    assert found.format == "safetensors index" and list(found.leaves) == ["a", "c"]
    assert same(found.leaves["c"].read(), np.arange(4))
    assert found.file_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="there is no '3.safetensors' beside it"):
        opened(a="3.safetensors")
    with pytest.raises(CheckpointError, match="there is no '../1.safetensors' beside it"):
        opened(a="../1.safetensors")
    with pytest.raises(CheckpointError, match="leaf 'x' is not in 1.safetensors"):
        opened(x="1.safetensors")
    index.write_text('{"weight_map": 3}')
    with pytest.raises(CheckpointError, match="no index of safetensors files, or a damaged one"):
        checkpoints.open(index)


@pytest.mark.parametrize("suffix", FILES)
def test_one_leaf_is_read_without_the_others(tmp_path, suffix):
    """All of a file but its header, its end and one leaf is overwritten: that leaf still reads."""
    rng = np.random.default_rng(0)
    wanted = rng.integers(0, 256, 9000, np.uint8)
    other = rng.integers(0, 256, 90000, np.uint8)
    path = tmp_path / f"m{suffix}"
    checkpoints.write(path, {"a/wanted": wanted, "b/other": other})
    data = path.read_bytes()
    at = data.index(other[100:80000].tobytes())
    path.write_bytes(data[:at] + bytes(79900) + data[at + 79900 :])
    leaves = checkpoints.open(path).leaves
    assert same(leaves["a/wanted"].read(), wanted)
    if suffix in (".npz", ".jp"):  # these have checksums
        with pytest.raises(CheckpointError, match="b/other.*(CRC|checksum)"):
            leaves["b/other"].read()


def test_leaves_are_written_one_after_the_other(tmp_path):
    """No leaf is asked for before the one before it is on its way to the disk, nor twice."""
    for suffix in FILES:
        asked = []

        def leaf(name, asked=asked):
            def read():
                asked.append(name)
                return np.full((2, 3), len(asked), np.float32)

            return checkpoints.Leaf(name, (2, 3), np.dtype(np.float32), read)

        checkpoints.write(tmp_path / f"m{suffix}", {name: leaf(name) for name in "abc"})
        assert asked == ["a", "b", "c"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_is_left_when_writing_fails(tmp_path, suffix):
    def fail():
        raise OSError(28, "No space left on device")

    bad = checkpoints.Leaf("b", (2,), np.dtype(np.float32), fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.write(tmp_path / f"m{suffix}", {"a": np.ones(2, np.float32), "b": bad})
    assert os.listdir(tmp_path) == []


def test_what_exists_is_replaced_only_if_asked(tmp_path):
    for suffix in (".npz", ".orbax"):
        path = tmp_path / f"m{suffix}"
        checkpoints.write(path, {"a": np.ones(2)})
        with pytest.raises(CheckpointError, match="exists; choose another name, or --force"):
            checkpoints.write(path, {"a": np.zeros(2)})
        checkpoints.write(path, {"a": np.zeros(2)}, force=True)
        assert not checkpoints.open(path).leaves["a"].read().any()
    with pytest.raises(CheckpointError, match="there is no folder"):
        checkpoints.write(tmp_path / "none" / "m.npz", {})
    with pytest.raises(CheckpointError, match=r"no format has the suffix '.txt'; there are .jaxprune, .jp, .msgpack"):
        checkpoints.write(tmp_path / "m.txt", {})
    assert sorted(os.listdir(tmp_path)) == ["m.npz", "m.orbax"]


def test_what_a_format_cannot_hold(tmp_path):
    with pytest.raises(CheckpointError, match="'c': complex128 does not go into safetensors; write .npz"):
        checkpoints.write(tmp_path / "m.safetensors", {"c": np.ones(2, np.complex128)})
    with pytest.raises(CheckpointError, match="'e' has no entries, which Orbax does not store"):
        checkpoints.write(tmp_path / "m.orbax", {"e": np.ones((0, 2))})
    with pytest.raises(CheckpointError, match="'u': uint4 does not go into Orbax; write .npz"):
        checkpoints.write(tmp_path / "m.orbax", {"u": np.ones(2, ml_dtypes.uint4)})
    with pytest.raises(CheckpointError, match="'a' is a leaf, and 'a/b' goes on behind it"):
        checkpoints.write(tmp_path / "m.msgpack", {"a": np.ones(2), "a/b": np.ones(2)})
    assert os.listdir(tmp_path) == []
    for suffix in (".safetensors", ".npz", ".jp"):
        checkpoints.write(tmp_path / f"m{suffix}", {"a": np.ones(2), "a/b": np.ones((0, 3))})
        leaves = checkpoints.open(tmp_path / f"m{suffix}").leaves
        assert same(leaves["a"].read(), np.ones(2)) and same(leaves["a/b"].read(), np.ones((0, 3)))


@pytest.mark.parametrize("suffix", FILES)
def test_truncated_files(files, suffix, tmp_path):
    data = (files / f"model{suffix}").read_bytes()
    for length in {0, 1, 7, 9, 40, len(data) // 2, len(data) - 1}:
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="cut"):  # names the file
            for leaf in checkpoints.open(path).leaves.values():
                leaf.read()


def test_foreign_files(tmp_path):
    with pytest.raises(CheckpointError, match="none: no such file or folder"):
        checkpoints.open(tmp_path / "none")
    with pytest.raises(CheckpointError, match="a folder, but no Orbax checkpoint"):
        checkpoints.open(tmp_path)
    contents = {
        "empty": (b"", "an empty file"),
        "notes.txt": (b"hello", "no checkpoint that is known here"),
        "model.npz": (b"hello", "its content is not that of a .npz file"),
        "model.h5": (b"\x89HDF\r\n", "an HDF5 file"),
        "model.pkl": (b"\x80\x04\x95", "a pickle, which may run code"),
        "pointer.safetensors.txt": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        "model.msgpack": (b"\x81\xa1a\xc7\x01\x05a", "leaf|msgpack"),
    }
    for name, (data, said) in contents.items():
        (tmp_path / name).write_bytes(data)
        if name != "model.msgpack":
            with pytest.raises(CheckpointError, match=said):
                checkpoints.open(tmp_path / name)
    assert not checkpoints.open(tmp_path / "model.msgpack").leaves  # an extension that is none of Flax's
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", b"x")
    with pytest.raises(CheckpointError, match="perhaps one of PyTorch"):
        checkpoints.open(tmp_path / "model.pt")
    np.savez(tmp_path / "objects.npz", a=np.array([None], object))
    opened = checkpoints.open(tmp_path / "objects.npz")
    assert not opened.leaves and "dtype object" in opened.others["a"].kind
    for step in "12":
        (tmp_path / "run" / step / "default").mkdir(parents=True)
        (tmp_path / "run" / step / "default" / "_METADATA").write_text("{")
    with pytest.raises(CheckpointError, match=f"holds several checkpoints; name one, such as .*run{os.sep}2"):
        checkpoints.open(tmp_path / "run")
    with pytest.raises(CheckpointError, match="a damaged Orbax checkpoint"):
        checkpoints.open(tmp_path / "run" / "1")


def test_damaged_headers_of_safetensors(tmp_path):
    def said(header):
        text = json.dumps(header).encode() if isinstance(header, dict) else header
        (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
        with pytest.raises(CheckpointError) as error:
            checkpoints.open(tmp_path / "m.safetensors")
        return str(error.value)

    leaf = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    assert "has 8 bytes, not 12" in said({"a": leaf | {"shape": [3]}})
    assert "cut short" in said({"a": leaf | {"shape": [4], "data_offsets": [0, 16]}})
    for wrong in ({"shape": [-2]}, {"data_offsets": [0]}, {"data_offsets": [0, 4, 8]}, {"dtype": 3}, {"shape": "ab"}):
        assert f"leaf 'a' is {str(leaf | wrong)[:60]}" in said({"a": leaf | wrong})
    assert "leaf 'a' is 3" in said({"a": 3})
    assert "its header is no JSON" in said(b"{" + b"x" * 20)
    assert "its metadata is no JSON" in said({"__metadata__": {"jaxprune.dtypes": "{"}, "a": leaf})
    assert "its metadata make no sense" in said({"__metadata__": {"format": 3}, "a": leaf})


@pytest.mark.parametrize("count", [400, pytest.param(5000, marks=pytest.mark.slow)])
def test_forged_files_are_read_or_refused(count, tmp_path):
    found = fuzz_checkpoints.attempts(range(count), tmp_path)
    for suffix in (".safetensors", ".npz", ".msgpack", ".jp"):
        assert found[suffix, "read"] + found[suffix, "in part"] > 10 and found[suffix, "refused"] > 2
    assert found[".index.json", "refused"] > 20


def test_names_and_trees():
    assert names.paths(["a.b", "c"]) == {"a.b": "a/b", "c": "c"}
    assert names.paths(["a.b/c", "d.e"]) == {"a.b/c": "a.b/c", "d.e": "d.e"}  # a dot is a letter where slashes are
    assert names.nested({"a.b.0": 1, "a.c": 2}) == {"a": {"b": {"0": 1}, "c": 2}}
    assert names.flat({"a": [1, (2, 3)], "b": {"c": 4}}) == {"a/0": 1, "a/1/0": 2, "a/1/1": 3, "b/c": 4}
    assert names.flat(5) == {"array": 5}
    with pytest.raises(CheckpointError, match="two leaves are called 'a/b'"):
        names.flat({"a/b": 1, "a": {"b": 2}})
    assert compressed.stored_tree({"a.b": 1}) == {"a.b": 1}
    assert compressed.tree_order(["b/x", "a", "b.c"]) == ["a", "b/x", "b.c"]


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "float64", "float8_e4m3fn", "int8", "int4", "bool"]
)
def test_inspection_against_numpy(dtype):
    rng = np.random.default_rng(2)
    array = np.round(rng.normal(size=(6, 5)) * 2) / 2
    array[:, 1], array[2] = 0, 0
    array = (array > 0 if dtype == "bool" else array).astype(getattr(ml_dtypes, dtype, dtype))
    wide = array.astype(np.float64)
    facts = inspection.describe(array)
    assert facts.zeros == np.sum(wide == 0) and facts.absmax == np.abs(wide).max()
    assert (facts.nan, facts.inf, facts.constant) == (0, 0, False)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        assert facts.dead == {}
        return
    dead = {"columns": ((1,), 5, np.sum(~wide.any(0))), "rows": ((0,), 6, np.sum(~wide.any(1)))}
    assert facts.dead == dead and all(number for _, _, number in dead.values())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_wide_numbers_of_files_are_compared_exactly(tmp_path, suffix):
    """1 + 2**-40 is no float32, and 2**40 no int32; what is read is as wide as what was written."""
    leaves = {"f": np.array([[1 + 2**-40, 1]]), "i": np.array([2**40, 1])}
    checkpoints.write(tmp_path / f"m{suffix}", leaves)
    read = {name: leaf.read() for name, leaf in checkpoints.open(tmp_path / f"m{suffix}").leaves.items()}
    assert measures.compare(read["f"], np.ones((1, 2))).max_error == 2**-40
    assert measures.compare(read["i"], np.ones(2, np.int64)).max_error == 2**40 - 1
    assert inspection.describe(read["f"]).absmax == 1 + 2**-40 and inspection.describe(read["i"]).absmax == 2**40
    checkpoints.write(tmp_path / "again.npz", read)
    with np.load(tmp_path / "again.npz") as archive:
        assert archive["f"].dtype == np.float64 and archive["i"].dtype == np.int64


def test_inspection_of_odd_arrays(monkeypatch):
    monkeypatch.setattr("jaxprune.host._CHUNK", 4)
    array = np.array([[np.nan, np.inf, -2.0, 0.0, -0.0, 1.0]], np.float32)
    facts = inspection.describe(array)
    assert (facts.zeros, facts.nan, facts.inf, facts.absmax) == (2, 1, 1, 2.0)
    same_bytes = inspection.describe(array.copy())
    assert facts.digest == same_bytes.digest != inspection.describe(-array).digest
    assert inspection.describe(np.ones(9)).constant and not inspection.describe(np.array([1, 1, 1, 1, 2])).constant
    assert inspection.describe(np.zeros((0, 3), np.float32)).absmax == 0
    assert inspection.describe(np.zeros((2, 3), np.float32)).dead == {}
    assert inspection.describe(np.array([-128, 3], np.int8)).absmax == 128
    assert inspection.describe(np.array([3 + 4j])).absmax == 5


def test_comparison_against_numpy(monkeypatch):
    monkeypatch.setattr("jaxprune.host._CHUNK", 7)
    rng = np.random.default_rng(3)
    before = rng.normal(size=(5, 4)).astype(np.float32)
    before[0, 0], before[1, 1] = 0, np.nan
    after = np.where(rng.random((5, 4)) < 0.4, 0, before.astype(ml_dtypes.bfloat16).astype(np.float32))
    after[:, 2], after[1, 1] = 0, np.nan
    found = measures.compare(before, after.astype(ml_dtypes.bfloat16), (0,))
    old, new = before.astype(np.float64), after.astype(np.float64)
    assert (found.size, found.zeros_before, found.zeros_after) == (20, 1, np.sum(after == 0))
    assert found.removed == np.sum((before != 0) & (after == 0)) and found.units_removed == np.sum(~after.any(0))
    error, norm = np.nansum((old - new) ** 2), np.nansum(old**2)
    assert found.squared_error == pytest.approx(error, rel=1e-12)
    assert found.relative_error == pytest.approx(np.sqrt(error / norm), rel=1e-12)
    assert found.max_error == np.nanmax(np.abs(old - new))
    assert found.changed == np.sum((before != after) & ~(np.isnan(before) & np.isnan(after))) and not found.equal
    assert measures.compare(before, before.copy()).equal and measures.compare(before, before).relative_error == 0
    assert measures.compare(np.zeros(2), np.ones(2)).relative_error == np.inf


@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_ranking_is_that_of_prune(monkeypatch, scope):
    monkeypatch.setattr("jaxprune.host._CHUNK", 7)
    rng = np.random.default_rng(4)
    tree = {name: np.round(rng.normal(size=(6, 5)) * 4) / 4 for name in "abc"}  # many ties
    tree = {
        name: leaf.astype(dtype)
        for (name, leaf), dtype in zip(tree.items(), (np.float32, np.float16, "f4"), strict=True)
    }
    tree["a"][0, :3] = np.nan, np.inf, -0.0
    for sparsity in (0.0, 0.1, 0.5, 0.77, 0.99, 1.0):
        wanted = jp.prune(tree, sparsity, scope=scope).masks
        leaves = {name: of_array(name, leaf) for name, leaf in tree.items()}
        groups = [leaves] if scope == "global" else [{name: leaf} for name, leaf in leaves.items()]
        for group in groups:
            for name, cut in ranking.cuts(group, sparsity).items():
                np.testing.assert_array_equal(ranking.mask(tree[name], cut), wanted[name])
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\], got 1.5"):
        ranking.cuts({}, 1.5)


def test_formats_that_are_written_have_suffixes():
    for known in checkpoints.FORMATS:
        assert bool(known.suffixes) == (known.write is not None), known.name
    assert len({known.name for known in checkpoints.FORMATS}) == len(checkpoints.FORMATS)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_read_checkpoint_gives_the_tree_in_every_format(suffix, tmp_path):
    tree = {"params": {"Dense_0": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(3)}}}
    flat = names.flat(tree) | {"step": np.int64(2**40)}
    checkpoints.write(tmp_path / f"x{suffix}", flat)
    found = jp.read_checkpoint(tmp_path / f"x{suffix}")
    assert isinstance(found["params"]["Dense_0"]["kernel"], jax.Array)
    again = names.flat(found)
    assert again.keys() == flat.keys()
    for name, array in flat.items():
        assert np.array_equal(again[name], array) and again[name].dtype == np.asarray(array).dtype  # int64 too


def test_what_load_does_not_read_is_sent_to_read_checkpoint(tmp_path):
    for suffix in (".safetensors", ".npz"):
        checkpoints.write(tmp_path / f"x{suffix}", {"w": np.ones(3)})
        with pytest.raises(ValueError, match="jaxprune.read_checkpoint"):
            jp.load(tmp_path / f"x{suffix}")


def test_names_and_axes_of_torch_become_those_of_flax(tmp_path):
    """Against the modules of Flax themselves: the same shapes, and the products that PyTorch defines."""
    make = np.random.default_rng(0).normal
    torch = {
        **{"fc.weight": make(size=(5, 3)), "fc.bias": make(size=5)},
        **{"conv.weight": make(size=(6, 4, 3, 2)), "conv.bias": make(size=6)},
        **{
            "embeddings.word_embeddings.weight": make(size=(7, 3)),
            "norm.weight": make(size=3),
            "norm.bias": make(size=3),
        },
        "norm.running_mean": make(size=3),
    }
    checkpoints.write(tmp_path / "t.safetensors", {k: v.astype(np.float32) for k, v in torch.items()})
    found = jp.read_checkpoint(tmp_path / "t.safetensors", torch_to_flax=True)
    dense, conv, look = flax.linen.Dense(5), flax.linen.Conv(6, (3, 2), padding="VALID"), flax.linen.Embed(7, 3)
    x, image = make(size=(2, 3)).astype(np.float32), make(size=(1, 3, 2, 4)).astype(np.float32)
    out = dense.apply({"params": found["fc"]}, x)
    np.testing.assert_allclose(out, x @ torch["fc.weight"].T + torch["fc.bias"], rtol=1e-5, atol=1e-5)
    out = conv.apply({"params": found["conv"]}, image)  # PyTorch correlates [in, height, width] with [in, *window]
    seen = np.einsum("hwi,oihw->o", image[0], torch["conv.weight"]) + torch["conv.bias"]
    np.testing.assert_allclose(np.ravel(out), seen, rtol=1e-5, atol=1e-5)
    out = look.apply({"params": found["embeddings"]["word_embeddings"]}, np.array([6, 1]))
    assert np.array_equal(out, torch["embeddings.word_embeddings.weight"][[6, 1]].astype(np.float32))
    assert set(found["norm"]) == {"scale", "bias", "running_mean"}
    flax.linen.LayerNorm().apply({"params": {key: found["norm"][key] for key in ("scale", "bias")}}, x)


def test_what_no_rule_of_torch_knows_takes_a_layout(tmp_path):
    made = {
        "up.weight": np.ones((4, 6, 3, 3), np.float32),
        "up.bias": np.zeros(6, np.float32),
    }  # ConvTranspose: in, out
    checkpoints.write(tmp_path / "t.npz", made)
    with pytest.raises(ValueError, match="up.weight.*layout="):
        jp.read_checkpoint(tmp_path / "t.npz", torch_to_flax=True)
    layout = {"up.weight": ((), (2, 3, 0), (1,))}
    found = jp.read_checkpoint(tmp_path / "t.npz", torch_to_flax=True, layout=layout)
    assert found["up"]["kernel"].shape == (3, 3, 4, 6)
