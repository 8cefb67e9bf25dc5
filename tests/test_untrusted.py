"""Files from strangers: whatever is in them, a FormatError or the whole truth, in bounded memory."""

import json
import tracemalloc

import fuzz_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from fuzz_files import forged, leaf, mutate
from hypothesis import given
from hypothesis import strategies as st

import jaxprune as jp
from jaxprune.files import FormatError, arrays
from jaxprune.files.bytestream import signed, unsigned

pytestmark = pytest.mark.slow

slow = pytest.mark.slow


def small_tree():
    draw = np.random.default_rng(0)
    return {
        "codes": jp.quantize(jnp.asarray(draw.normal(size=(6, 5)), jnp.float32), 4),
        "shared": jp.codebook.encode(jnp.asarray(draw.normal(size=(4, 5)), jnp.float32), 3),
        "list": [np.float32(1), (jnp.zeros((3, 2)), draw.normal(size=(7, 3)))],
        "sparse": np.eye(9, dtype=np.float32),
        "key": jax.random.key(0),
    }


@pytest.fixture(scope="module")
def whole():
    return jp.compress(small_tree()).to_bytes()


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Loads bytes as a file."""
    path = tmp_path_factory.mktemp("files") / "mutant.jp"

    def loaded(data, **options):
        path.write_bytes(data)
        return jp.load(path, **options)

    return loaded


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=slow)])
def test_every_flipped_bit_is_noticed(step, whole, load):
    assert len(jax.tree.leaves(load(whole))) == len(jax.tree.leaves(small_tree()))
    draw = np.random.default_rng(1)
    for at in range(0, len(whole), step):
        mutant = bytearray(whole)
        mutant[at] ^= 1 << int(draw.integers(8))
        with pytest.raises(FormatError):
            load(mutant)


def test_every_cut_is_noticed(whole, load):
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        with pytest.raises(FormatError):
            load(whole[:length])
    with pytest.raises(FormatError):
        load(whole + b"\0")


@pytest.mark.parametrize("count", [60, pytest.param(5000, marks=slow)])
def test_forged_files_are_refused_or_read(count, tmp_path):
    outcomes = fuzz_files.run(count, 7, tmp_path)
    assert outcomes["refused"] > count / 2 and outcomes["read"] > count / 20 and outcomes["unnamed"] > 0


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=slow)])
def test_mutants_of_the_header_are_an_error_or_a_tree(count, whole, load):
    draw = np.random.default_rng(3)
    length = int.from_bytes(whole[:8], "little")
    for _ in range(count):
        header = mutate(whole[8 : 8 + length], draw)
        try:
            load(len(header).to_bytes(8, "little") + header + whole[8 + length :])
        except FormatError:
            continue
        raise AssertionError(f"a changed header went unnoticed: {header!r}")


CONSTANT = bytes([0]) + unsigned(2) + signed(3) + b"\0"  # packing: the least code, and a width of 0 bits


def kinds(kind, tree=(0, 0)):
    return {"version": 3, "tree": list(tree), "kinds": [kind]}


WEIGHT = {"version": 3, "tree": {"w": 0}}
WIDE = ("int64", "uint64", "float64", "complex128")
FORGERIES = [
    ({"version": 1, "tree": 0}, [leaf(())], "format version 1; this jaxprune reads and writes version 3 alone"),
    ({"version": "1", "tree": 0}, [leaf(())], "version"),
    ({"version": 3}, [], "no tree"),
    (WEIGHT, [leaf((2**60,), 1, body=CONSTANT)], "'w'; the limit is"),
    (WEIGHT, [leaf((0, 2**61), 1, body=CONSTANT)], "'w'; the limit is"),
    (WEIGHT, [leaf((2**62, 2**62, 0), 1, body=CONSTANT)], "leaf 'w': a shape of"),
    (WEIGHT, [leaf((1,) * 65, 1, body=CONSTANT)], "leaf 'w': .*rank 65"),
    (WEIGHT, [leaf((4,), 99)], "leaf 'w': .*dtype 99"),
    (WEIGHT, [leaf((4,), form=9)], "leaf 'w': form 9"),
    (WEIGHT, [leaf((4,), form=0, body=b"12345")], "leaf 'w': 5 bytes"),
    (WEIGHT, [leaf((4,), 1, body=b"\xfa" + unsigned(0))], "leaf 'w': coder 250"),
    (WEIGHT, [leaf((4,), 1, body=CONSTANT + b"!")], "leaf 'w': 1 bytes too many"),
    (WEIGHT, [b""], "leaf 'w'"),
    ({"version": 3, "tree": {"w": 0, "v": 0}}, [leaf((4,))], "small leaves|bytes wanted"),
    ({"version": 3, "tree": {"w": 1}}, [leaf((4,))], "differ in"),
    ({"version": 3, "tree": {"w": 2}}, [leaf((4,))], "no node"),
    ({"version": 3, "tree": [7, 0]}, [leaf((4,))], "no node"),
    ({"version": 3, "tree": {"w": True}}, [leaf((4,))], "no node"),
    (kinds({"type": "os.system"}), [leaf(())], "'os.system' is unknown"),
    (kinds({"type": "nnx.Module", "metadata": {}}), [leaf((1,), 1, body=CONSTANT)], "nnx.Module"),
    (kinds({"type": "nnx.Param", "metadata": {"value": 3, "0": []}}), [leaf((1,), 1, body=CONSTANT)], "nnx.Param"),
    (kinds({"type": "nnx.__name__", "metadata": {}}), [leaf(())], "unknown"),
    (kinds({"type": "dict", "keys": ["a"]}, (0, 0, 0)), [leaf(())] * 2, "2 children"),
    (kinds({"type": "dict", "keys": [1, 1]}, (0, 0, 0)), [leaf(())] * 2, "has keys"),
    (kinds({"type": "QArray", "bits": 99, "dtype": "float32"}), [leaf(())], "QArray"),
    ({"version": 3, "tree": [0, 0], "kinds": 3}, [leaf(())], "no tree"),
]


@pytest.mark.parametrize("tree, leaves, fault", FORGERIES)
def test_forgeries_name_their_fault(load, tree, leaves, fault):
    with pytest.raises(ValueError, match=fault):
        load(forged(tree, leaves))


def test_trees_without_bottom_are_refused(load):
    deep = 0
    for _ in range(500):
        deep = {"a": deep}
    with pytest.raises(FormatError, match="deeper than"):
        load(forged({"version": 3, "tree": deep}, [leaf(())]))
    text = '{"version":3,"tree":' + "[" * 100_000
    with pytest.raises(FormatError, match="no JSON"):
        load(safetensors.numpy.save({}, {"jaxprune": text}))


def record(kind, parts, dense=True):
    more = {"QArray": {"bits": 4}, "CodebookArray": {}, "TrellisArray": {"states": 8, "zero": 300}}[kind]
    kind = {"type": kind, "dtype": "float32", **more, "dense": dense}
    return {"version": 3, "tree": {"w": [0] + [0] * len(parts)}, "kinds": [kind]}, [
        arrays.encode(part) for part in parts
    ]


def test_records_whose_parts_do_not_fit_are_refused(load):
    codes, scale, zero = np.zeros((4, 3), np.int8), np.ones((1, 1), np.float32), np.zeros((1, 1), np.int32)
    table, flag = np.ones(3, np.float32), np.array(False)
    bad = [
        ("QArray", (codes, np.ones((5, 7), np.float32), zero)),
        ("QArray", (codes.astype(np.float32), scale, zero)),
        ("QArray", (codes, scale, np.zeros((1, 1, 9), np.int32))),
        ("CodebookArray", (codes + 3, table, flag)),
        ("CodebookArray", (codes - 1, table, flag)),
        ("CodebookArray", (codes, table[:0], flag)),
        ("CodebookArray", (codes, np.ones((2, 2), np.float32), flag)),
        ("CodebookArray", (codes.astype(np.float32), table, flag)),
        ("TrellisArray", (codes, np.float32(1), np.zeros((0, 0), np.int8))),  # a zero that no int8 is
        ("TrellisArray", (codes.astype(np.int16), np.ones(2, np.float32), np.zeros((0, 0), np.int8))),
        ("TrellisArray", (codes.astype(np.int16), np.float32(1), np.zeros((7, 7), np.int8))),
    ]
    for kind, parts in bad:
        for dense in (True, False):
            with pytest.raises(FormatError, match="leaf 'w'"):
                load(forged(*record(kind, parts, dense)))
    assert load(forged(*record("CodebookArray", (codes, table, flag))))["w"].shape == (4, 3)


def test_a_small_file_cannot_ask_for_much_memory(load):
    bomb = forged({"version": 3, "tree": {"w": 0}}, [leaf((2**11, 2**12), 1, body=CONSTANT)])
    assert len(bomb) < 300
    tracemalloc.start()
    with pytest.raises(FormatError, match="arrays take 8388608 bytes, most of them leaf 'w'; the limit is 1000000"):
        load(bomb, max_bytes=1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    assert load(bomb, max_bytes=2**26)["w"].shape == (2**11, 2**12)


def test_a_header_as_long_as_the_file_claims_is_not_allocated(load, whole):
    for length in (2**63 - 1, 2**40, len(whole) + 1):
        with pytest.raises(FormatError, match="header of"):
            load(length.to_bytes(8, "little") + whole[8:])


def test_offsets_that_overlap_leave_gaps_or_are_negative_are_refused(load, whole):
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    (first, last) = header["*"]["data_offsets"]
    for offsets in ([first + 1, last], [first, last - 1], [-1, last], [first, 2**62], [last, first]):
        changed = json.dumps(
            {**header, "*": {"dtype": "U8", "shape": [offsets[1] - offsets[0]], "data_offsets": offsets}}
        )
        with pytest.raises(FormatError, match="safetensors"):
            load(len(changed).to_bytes(8, "little") + changed.encode() + whole[8 + length :])


@given(st.binary(max_size=400))
def test_random_bytes_are_refused(data):
    with pytest.raises(FormatError):
        arrays.decode(arrays.head(data + b"\xff"))


# ---------------------------------------------------------------------------------------------------------------------
# Headers that ask for much work, or more memory than they have


def peak_of(call):
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as caught:
            call()
        return str(caught.value), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_equal_paths_are_named_in_linear_time(load):
    tree = 1
    for _ in range(15):  # 32768 leaves, all at 1/1/1/...
        tree = [0, tree, tree]
    header = {"version": 3, "kinds": [{"type": "dict", "keys": [1, "1"]}], "tree": tree}
    with pytest.raises(FormatError, match="differ in '1/1/"):
        load(forged(header, []))


def test_equal_paths_have_tensors_of_their_own(load, tmp_path):
    big = np.random.default_rng(0).normal(size=(4, 40, 50))
    tree = {"a": {"b": big[0]}, "a/b": big[1], "a/b#2": big[2], "*": big[3]}
    jp.save(tmp_path / "w.jp", tree)
    with safetensors.safe_open(tmp_path / "w.jp", "np") as file:
        assert set(file.keys()) == {"a/b", "a/b#2", "a/b#2#2", "*#2"}
    assert all(map(np.array_equal, jax.tree.leaves(jp.load(tmp_path / "w.jp")), jax.tree.leaves(tree)))


def test_paths_take_no_more_than_a_bounded_multiple_of_the_header(load):
    tree = {"x" * 500_000: [0] + [0] * 5000}
    said, peak = peak_of(lambda: load(forged({"version": 3, "kinds": [{"type": "list"}], "tree": tree}, [])))
    assert "paths are too long" in said and peak < 400e6
    assert len(said) < 1000


def test_kinds_are_looked_at_once(load):
    kind = {"type": "list"} | {str(i): 0 for i in range(20_000)}
    with pytest.raises(FormatError, match="bytes for|bytes wanted|differ"):
        load(forged({"version": 3, "kinds": [kind], "tree": [0] + [[0]] * 20_000 + [0]}, []))


@pytest.mark.parametrize("place", ["metadata", "keys", "spec", "tree", "names"])
def test_lists_in_lists_in_what_describes_a_node(load, place):
    deep = 0
    for _ in range(900):
        deep = [deep]
    kind = {
        "metadata": {"type": "nnx.Param", "metadata": {"a": deep}},
        "keys": {"type": "dict", "keys": [deep]},
        "spec": {"type": "QArray", "bits": 4, "dtype": "float32", "spec": deep},
        "names": {"type": "Partitioned", "names": deep},
        "tree": {"type": "list"},
    }[place]
    with pytest.raises(FormatError, match="deeper than 66 levels|no node|no JSON"):
        load(forged({"version": 3, "kinds": [kind], "tree": [0, deep if place == "tree" else 0]}, [leaf(())]))


def test_a_tensor_of_its_own_may_be_small(load, tmp_path):
    data = arrays.encode(np.arange(3.0))
    made = forged({"version": 3, "tree": {"w": 1}}, [data], {0: "w"})
    np.testing.assert_array_equal(load(made)["w"], np.arange(3.0))
    (tmp_path / "w.jp").write_bytes(made)
    assert "w" in repr(jp.files.read(tmp_path / "w.jp").leaves[0])


def test_what_jax_cannot_hold_comes_back_whole(load):
    for number, name in enumerate(arrays.DTYPES):
        array = np.zeros(3, jnp.dtype(name))
        found = load(forged({"version": 3, "tree": {"w": 0}}, [leaf((3,), number, 0, array.tobytes(), origin=0)]))["w"]
        assert found.dtype == array.dtype and isinstance(found, jax.Array) == (
            name not in WIDE and "float6_" not in name
        )


def test_a_report_has_the_limit_of_decoding(tmp_path):
    table = signed(0) + unsigned(2) + b"\x20\x20"  # of two values, equally frequent
    stream = bytes([1]) + unsigned(len(table)) + table
    bomb = forged({"version": 3, "tree": {"w": 0}}, [leaf((2**20, 2**20), 1, body=stream)])
    (tmp_path / "w.jp").write_bytes(bomb)
    opened = jp.files.read(tmp_path / "w.jp")
    for call in (opened.report, opened.decompress, opened.leaves[0].read):
        said, peak = peak_of(call)
        assert "the limit is 1073741824" in said and peak < 1e6
    with pytest.raises(FormatError, match="leaf 'w'.*MemoryError"):
        opened.decompress(max_bytes=2**62)


@slow
def test_large_arrays_of_one_value_are_within_the_limit(load):
    bomb = forged({"version": 3, "tree": {"w": 0}}, [leaf((280, 2**20), 1, body=CONSTANT)])
    assert load(bomb, leaf="w").nbytes == 280 * 2**20


def test_limits_count_what_arrays_take():
    made = jp.compress({"w": np.zeros((20, 30))})
    assert made.decompress()["w"].shape == (20, 30)
    with pytest.raises(FormatError, match="the limit is 20"):
        made.decompress(max_bytes=20)
