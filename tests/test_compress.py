"""What compress promises: no loss that was not asked for, few bytes, and a report that adds up."""

import collections
import copy
import dataclasses
import math
import pickle
import tracemalloc
from typing import NamedTuple

import chex
import flax.linen as nn
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import oracles_files as oracle
import pytest
import strategies
from flax import nnx
from flax.core import FrozenDict
from hypothesis import given
from hypothesis import strategies as st

import jaxprune as jp
from jaxprune.files import arrays, records

CHANNELS = jp.QuantSpec(axis=-1)
HEAD = 24  # bytes that a leaf of rank up to 5 may take beyond its own


def raw(leaf):
    """Type, dtype, shape and bits of a leaf."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return "key", str(jax.random.key_impl(leaf)), np.asarray(jax.random.key_data(leaf)).tobytes()
    array = np.asarray(leaf)
    kind = type(leaf) if not hasattr(leaf, "dtype") else isinstance(leaf, jax.Array)
    return kind, array.dtype, array.shape, array.tobytes()


def assert_same(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert raw(one) == raw(other)


def full_range_of(x, axes, bits, spec):
    """A calibration of one's own."""
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True)
    return -largest, largest


def lenet(seed=0):
    draw = np.random.default_rng(seed)
    sizes = (40, 40, 40, 40)  # of one shape, which is compiled once
    return {
        f"Dense_{i}": {
            "kernel": jnp.asarray(draw.normal(size=(n, m)), jnp.float32),
            "bias": jnp.asarray(draw.normal(size=m), jnp.float32),
        }
        for i, (n, m) in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
    }


def short(params, bits, **options):
    """What compress makes of kernels by default."""
    whole = jp.fake_quant(params, bits, **options)  # the same leaves
    return jax.tree.map(
        lambda old, new: new if new is old else jnp.asarray(oracles.fake_quant_short(np.asarray(old), bits)),
        params,
        whole,
    )


def named(params):
    return [("/".join(key.key for key in path), leaf) for path, leaf in jax.tree.leaves_with_path(params)]


def test_arrays_of_every_dtype_come_back_bit_for_bit():
    draw = np.random.default_rng(0)
    for name in arrays.DTYPES:
        dtype = jnp.dtype(name)
        array = (draw.normal(size=(5, 7)) * 2).astype(dtype) if name != "bool" else draw.random((5, 7)) < 0.5
        few = array[:, :1].repeat(40, axis=1)
        for leaf in (array, few, array[:0], array[0, 0].reshape(())):
            assert_same(jp.compress(leaf).decompress(), leaf)
    for name in ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4", "bool", "complex64"):
        leaf = jnp.asarray(draw.integers(0, 2, (4, 6)), name)
        assert_same(jp.compress(leaf).decompress(), leaf)


@given(
    st.one_of(
        strategies.float_arrays(),
        hnp.arrays(hnp.scalar_dtypes().filter(lambda d: d.name in arrays.DTYPES), strategies.shapes(0)),
    )
)
def test_any_array_comes_back_and_takes_no_more_than_itself(array):
    array = array.astype(array.dtype.newbyteorder("="))
    compressed = jp.compress(array)
    assert_same(compressed.decompress(), array)
    assert compressed.report().leaves[0].nbytes <= array.nbytes + HEAD


def test_arrays_of_the_other_byte_order_keep_their_values():
    leaf = np.random.default_rng(0).normal(size=(30, 40)).astype(">f4")
    np.testing.assert_array_equal(jp.compress(leaf).decompress(), leaf)


def test_payloads_of_nan_and_signs_of_zeros_survive():
    bits = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 0, 0x7F800000, 1], np.uint32)
    for leaf in (bits.view(np.float32), bits.view(np.float32).repeat(500), np.zeros(100, np.float32) * np.float32(-1)):
        assert_same(jp.compress(leaf).decompress(), leaf)


def test_forms_of_an_array():
    draw = np.random.default_rng(1)
    few = draw.choice(np.array([0.0, -0.5, 0.25], np.float32), (40, 50), p=(0.8, 0.1, 0.1))
    sparse = draw.normal(size=(400, 200)).astype(np.float32) * (draw.random((400, 200)) < 0.1)
    dense = draw.normal(size=(400, 50)).astype(np.float32)
    noise = draw.integers(0, 256, 4000, np.uint8).view(np.float64)
    expected = [
        (few, arrays.GRID),
        (few + np.float32(0.1) * (few > 0), arrays.PALETTE),
        (np.asarray(jp.fake_quant(dense, 5)), arrays.GRID),
        (np.asarray(jp.fake_quant(jnp.asarray(dense, jnp.bfloat16), 3)), arrays.GRID),
        (sparse, arrays.SPARSE),
        (dense, arrays.PLANES),
        (noise, arrays.RAW),
        (draw.integers(-3, 3, (30, 30), np.int8), arrays.INTEGERS),
    ]
    for leaf, form in expected:
        data = arrays.encode(leaf)
        assert arrays.head(data).form == form
        assert len(data) <= leaf.nbytes + HEAD
        assert_same(arrays.decode(arrays.head(data)), leaf)


class Pair(NamedTuple):
    first: jax.Array
    second: jax.Array


class Network(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.drop = nnx.Dropout(0.5, rngs=rngs)


@pytest.mark.slow
def test_trees_come_back_as_they_were():
    w = jnp.arange(6.0).reshape(2, 3)
    trees = [
        w,
        {"a": [w, (w, None)], "b": {}, "c": [], "d": 3, "e": True, "f": 2.5, "g": np.float32(1), "h": 1j},
        FrozenDict({"params": FrozenDict({"kernel": w})}),
        collections.OrderedDict(z=w, a=w),
        {1: w, 2: {"x": w}},
        {"a/b": w, "a": {"b": w + 1}, "*": w + 2, "": w + 3},
        {"w": nn.Partitioned(w, ("in", None))},
        {"key": jax.random.key(3), "rbg": jax.random.key(3, impl="rbg")},
        {'ü "quoted" \\ name': w},
        nn.Dense(4).init(jax.random.key(0), jnp.ones((1, 3))),
        nnx.state(Network(nnx.Rngs(0))),
        jp.quantize({"k": w, "b": jnp.ones(3)}, 4, spec=jp.QuantSpec(axis=(-1,), symmetric=False)),
        jp.codebook.encode({"k": w}, 3),
        {},
        [],
        None,
    ]
    for tree in trees:
        assert_same(jp.compress(tree).decompress(), tree)


def test_an_nnx_model_runs_from_what_comes_back():
    model, other = Network(nnx.Rngs(0)), Network(nnx.Rngs(1))
    nnx.update(other, jp.compress(nnx.state(model)).decompress())
    chex.assert_trees_all_equal(nnx.state(model, nnx.Param), nnx.state(other, nnx.Param))


def test_classes_that_no_file_can_name_need_a_tree_of_the_same_structure():
    tree = {"pair": Pair(jnp.ones(2), jnp.zeros((2, 2)))}
    compressed = jp.compress(tree)
    with pytest.raises(ValueError, match=r"'pair' is a .*Pair.*like="):
        compressed.decompress()
    assert_same(compressed.decompress(like=tree), tree)
    assert_same(compressed.decompress("pair/1"), tree["pair"].second)
    with pytest.raises(ValueError, match="like has the structure"):
        compressed.decompress(like={"pair": (1, 2)})


def test_one_leaf_or_a_subtree():
    params = lenet()
    compressed = jp.compress(params, bits=4)
    expected = short(params, 4)
    for path in ("Dense_1/kernel", "Dense_1/bias"):
        assert_same(compressed.decompress(path), expected["Dense_1"][path.split("/")[1]])
    assert_same(compressed.decompress("Dense_2"), expected["Dense_2"])
    state = nnx.state(Network(nnx.Rngs(0)), nnx.Param)
    assert_same(jp.compress(state).decompress("blocks/1/kernel"), state["blocks"][1]["kernel"].get_value())
    with pytest.raises(ValueError, match="no leaf 'Dense_9'.*Dense_0/bias"):
        compressed.decompress("Dense_9")


@pytest.mark.parametrize(
    "spec",
    [
        CHANNELS,
        *(pytest.param(s, marks=pytest.mark.slow) for s in (jp.QuantSpec(), jp.QuantSpec(symmetric=False))),
        jp.QuantSpec(block_size=16),
    ],
)
def test_bits_come_back_as_fake_quant_gives_them(spec):
    params = lenet()
    for bits in (4, {"Dense_0": 3, "Dense_1": 5, "Dense_2": 12}):
        assert_same(jp.compress(params, bits=bits, quantizer=spec).decompress(), jp.fake_quant(params, bits, spec=spec))


def test_a_unit_has_a_short_scale_unless_it_is_not_known():
    draw = np.random.default_rng(0)
    shapes = {"dense/kernel": (30, 20), "fc/weight": (20, 30), "conv/kernel": (3, 3, 4, 8), "fused/kernel": (8, 3, 10)}
    params = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    params |= {"emb/embedding": draw.normal(size=(40, 6)).astype(jnp.bfloat16), "bias": draw.normal(size=20)}
    params["dense/kernel"][:, 3] = 0
    axes = {"dense/kernel": -1, "fc/weight": 0, "conv/kernel": -1, "emb/embedding": 0}
    for bits in (3, 11):
        made = jp.compress(params, bits)
        for name, array in made.decompress().items():
            if name in axes:
                np.testing.assert_array_equal(array, oracles.fake_quant_short(params[name], bits, axes[name]), name)
            else:
                np.testing.assert_array_equal(
                    array, params[name] if name == "bias" else jp.fake_quant(params[name], bits)
                )
    exact = jp.compress(params, 8, quantizer=jp.QuantSpec(axis="units"), where="dense/*")
    assert exact.nbytes > 30 + jp.compress(params, 8, where="dense/*").nbytes


def test_the_size_is_known_without_the_bytes():
    params = lenet() | {"huge": jnp.ones((100, 70))}
    made = jp.compress(params, 6)
    parts = {key: made[key].without_bytes() for key in params}
    assert made.nbytes == len(made.to_bytes()) == jp.files.join(parts).nbytes
    with pytest.raises(jp.files.FormatError):
        parts["huge"].decompress()


def test_each_kind_of_loss_is_what_its_function_gives():
    params = lenet()
    masks = jp.prune(params, 0.7, scope="global").masks
    pruned = jp.masks.apply_masks(params, masks)
    assert_same(jp.compress(params, masks=masks).decompress(), pruned)
    shared = jp.compress(params, masks=masks, bits=6, quantizer="codebook", where="Dense_0/*").decompress()
    assert_same(shared, jp.codebook.kmeans(pruned, 6, where="Dense_0/*"))
    some = jp.compress(params, masks=masks, bits=3, where="Dense_0/*").decompress()
    assert_same(some, short(pruned, 3, where="Dense_0/*"))

    def to_fixed(tree, bits, where):
        return jp.quantize(tree, bits, where=where, spec=CHANNELS)

    assert_same(jp.compress(params, bits=5, quantizer=to_fixed).decompress(), jp.fake_quant(params, 5, spec=CHANNELS))


@pytest.mark.slow
def test_quantizers_of_rate_and_distortion_err_less_in_as_many_bytes():
    params = {"kernel": jax.random.normal(jax.random.key(0), (200, 150)), "bias": jnp.ones(150)}

    def made(**options):
        compressed = jp.compress(params, bits=2.5, **options)
        result = compressed.decompress()
        assert_same(result["bias"], params["bias"])
        return compressed.nbytes, float(jnp.mean((result["kernel"] - params["kernel"]) ** 2)), result

    step = jp.quantization.rate_distortion.step_for(params, bits=2.5)
    plain = jp.compress(jp.quantization.rate_distortion.round_to(params, step)).nbytes
    plain_error = float(
        jnp.mean((jp.quantization.rate_distortion.round_to(params, step)["kernel"] - params["kernel"]) ** 2)
    )
    for quantizer, least in (("rd", 0.97), ("trellis", 0.85)):
        nbytes, error, result = made(quantizer=quantizer)
        assert nbytes <= 1.01 * plain + 100 and error < least * plain_error, quantizer
        assert result["kernel"].dtype == jnp.float32
    pruned = jp.prune(params, 0.5, scope="global").params
    for quantizer in ("rd", "trellis"):
        result = jp.compress(pruned, bits=3, quantizer=quantizer).decompress()
        assert not np.any(np.asarray(result["kernel"])[np.asarray(pruned["kernel"]) == 0])
    with pytest.raises(ValueError, match="bits must be in"):
        jp.compress(params, bits=12, quantizer="rd")


def test_bfloat16_parameters_keep_their_dtype():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), lenet())
    for options in (
        {},
        {"side": "float16"},
        {"side": "int8", "bits": 4},
        {"bits": 6, "quantizer": "codebook", "where": "Dense_0/*"},
    ):
        result = jp.compress(params, **options).decompress()
        chex.assert_trees_all_equal_shapes_and_dtypes(result, params)


def test_side_information_gets_smaller_on_request():
    params = lenet()
    exact = jp.compress(params, bits=4, quantizer=CHANNELS)
    half = jp.compress(params, bits=4, quantizer=CHANNELS, side="float16")
    byte = jp.compress(params, bits=4, quantizer=CHANNELS, side="int8")
    assert byte.report().bias_bytes < half.report().bias_bytes < exact.report().bias_bytes
    assert half.nbytes < exact.nbytes
    bias = params["Dense_0"]["bias"]
    assert_same(half.decompress("Dense_0/bias"), bias.astype(jnp.float16).astype(jnp.float32))
    assert_same(byte.decompress("Dense_0/bias"), jp.fake_quant(bias, 8))
    codes = jp.quantize(params["Dense_0"]["kernel"], 4, spec=CHANNELS)
    scale = np.asarray(codes.scale).astype(np.float16).astype(np.float32)
    assert_same(half.decompress("Dense_0/kernel"), jnp.asarray(np.asarray(codes.codes) * scale))


def test_side_information_of_every_quantizer():
    params = lenet()
    bias = params["Dense_0"]["bias"].astype(jnp.float16).astype(jnp.float32)
    for options in ({"quantizer": "rd"}, {"quantizer": "trellis"}, {"quantizer": jp.QuantSpec(symmetric=False)}):
        exact, half = (jp.compress(params, bits=4, side=side, **options) for side in (None, "float16"))
        assert_same(half.decompress("Dense_0/bias"), bias)
        if options["quantizer"] in ("rd", "trellis"):  # one step a leaf, which is not worth rounding
            assert_same(half.decompress("Dense_0/kernel"), exact.decompress("Dense_0/kernel"))


@pytest.mark.parametrize(
    "calibration", [jp.quantization.percentile(99), jp.quantization.mean_squared_error((1, 0.7)), full_range_of, None]
)
def test_calibrations_and_compressed_parameters_pickle(calibration, tmp_path):
    spec = jp.QuantSpec(axis=-1, calibration=calibration)
    assert pickle.loads(pickle.dumps(spec)) == spec == copy.deepcopy(spec) and hash(spec) == hash(copy.deepcopy(spec))
    params = {"w": lenet()["Dense_2"]["kernel"]}
    codes = jp.quantize(params, 4, spec=spec)
    again = pickle.loads(pickle.dumps(codes))
    assert jax.tree.structure(again) == jax.tree.structure(codes)
    small = jp.compress(codes)
    jp.save(tmp_path / "w.jp", small)
    for made in (small, jp.files.read(tmp_path / "w.jp")):
        back = pickle.loads(pickle.dumps(made))
        assert back.to_bytes() == small.to_bytes() == copy.copy(made).to_bytes()
        found = back.decompress()
        if calibration is full_range_of:
            with pytest.raises(ValueError, match="was .*test_compress:full_range_of, of which a file holds the name"):
                jp.quantize(params["w"], 4, spec=found["w"].spec)
            found = dataclasses.replace(found["w"], spec=dataclasses.replace(found["w"].spec, calibration=calibration))
            found = {"w": found}
        assert_same(found, codes)
        assert jp.compress(back.decompress()).to_bytes() == small.to_bytes()


@pytest.mark.parametrize(
    "given",
    [3, {}, {"function": 3}, {"percentile": 0}, {"percentile": "x"}, {"eval": 1}, {"mean_squared_error": [10**400]}],
)
def test_calibrations_that_are_none_are_refused(given):
    spec = {"symmetric": True, "axis": None, "block_size": None, "calibration": given}
    assert records.from_json("QArray", {"bits": 4, "dtype": "float32", "spec": spec}) is None


def test_records_of_the_user_stay_records_beside_what_is_quantized_here():
    params = lenet()
    mixed = {**params, "Dense_1": jp.quantize(params["Dense_1"], 6)}
    masks = jp.prune(params, 0.5, scope="global").masks | {
        "Dense_1": {"kernel": jnp.array(True), "bias": jnp.array(True)}
    }
    result = jp.compress(mixed, bits=3, masks=masks).decompress()
    assert_same(result["Dense_1"], mixed["Dense_1"])
    assert_same(result["Dense_2"]["bias"], params["Dense_2"]["bias"])
    assert max(len(np.unique(column)) for column in result["Dense_0"]["kernel"].T) <= 7


def test_many_leaves_go_to_the_device_together(monkeypatch):
    params = [jnp.full((2, 3), i, ("float32", "int8")[i % 2]) for i in range(60)]
    made, put, calls = jp.compress(params), jax.device_put, []
    monkeypatch.setattr(jax, "device_put", lambda *args: calls.append(args) or put(*args))
    assert_same(made.decompress(), params)
    assert len(calls) <= 3  # for both dtypes, and for all leaves
    assert len([leaf.read() for leaf in made.leaves]) == 60 and len(calls) <= 3  # which stay on the host


def lonely(dtype, size):
    """One entry that is not 0, far from the first."""
    array = np.zeros((size // 1000, 1000), dtype)
    array[size // 3000, 7] = 3
    return array


@pytest.mark.parametrize("dtype", ["int8", "uint32", "float8_e4m3fn", "bfloat16", "float32", "float64"])
def test_large_arrays_of_hardly_anything_take_little_memory(dtype, tmp_path):
    array = lonely(jnp.dtype(dtype), 8_000_000)
    jp.compress(array[:10]).decompress()
    tracemalloc.start()

    def peak(call):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        result = call()
        return result, (tracemalloc.get_traced_memory()[1] - before - 4e6) / array.nbytes

    try:
        made, writing = peak(lambda: jp.compress(array))
        jp.save(tmp_path / "w.jp", made)
        back, reading = peak(lambda: jp.load(tmp_path / "w.jp"))
        _, reporting = peak(jp.files.read(tmp_path / "w.jp").report)
    finally:
        tracemalloc.stop()
    assert made.nbytes < 200 and raw(back) == raw(array)
    # Beside the array that is written; with the array that is read, and its codes of a byte each.
    assert writing < 1.1 and reading < 2.1 and reporting < 2.1


def test_pruned_and_low_bit_weights_are_small_without_saying_so():
    params = lenet()
    pruned = jp.prune(params, 0.9, scope="global").params
    dense = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    whole = jp.compress(params).nbytes
    assert whole < dense + 600
    assert jp.compress(pruned).nbytes < whole / 4
    # Fake-quantized weights in float arrays cost what their codes cost, and a short table of values.
    fake = jp.compress(jp.fake_quant(params, 4)).nbytes
    assert abs(fake - jp.compress(params, bits=4, quantizer=jp.QuantSpec()).nbytes) <= 3 * 15 * 4
    assert fake < dense / 6


def test_the_entropy_bounds_what_is_reached():
    draw = np.random.default_rng(2)
    for probability in (0.02, 0.3):
        codes = draw.binomial(6, probability, (300, 400)).astype(np.int8)
        leaf = jp.compress(codes).report().leaves[0]
        assert leaf.entropy_bits == pytest.approx(oracle.entropy(codes), rel=1e-9)
        assert leaf.nbytes <= 1.005 * oracle.entropy(codes) * codes.size / 8 + 100


def test_the_report_adds_up():
    params = lenet()
    masks = jp.prune(params, 0.8, scope="global").masks
    for options in (
        {},
        {"masks": masks},
        {"masks": masks, "bits": 4, "quantizer": CHANNELS},
        {"bits": 6, "quantizer": "codebook", "side": "int8", "where": "Dense_0/*"},
    ):
        compressed = jp.compress(params, **options)
        report = compressed.report()
        assert [leaf.path for leaf in report.leaves] == [f"Dense_{i}/{n}" for i in range(3) for n in ("bias", "kernel")]
        for leaf in report.leaves:
            parts = (leaf.index_bytes, leaf.value_bytes, leaf.table_bytes, leaf.head_bytes)
            assert sum(parts) == leaf.nbytes and min(parts) >= 0
            assert leaf.achieved_bits == pytest.approx(8 * leaf.nbytes / math.prod(leaf.shape))
        assert report.nbytes == compressed.nbytes == len(compressed.to_bytes())
        assert 0 < report.header_bytes < 800
        assert report.dense_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        assert f"{compressed.nbytes:,} in the file" in str(report)
    kernel = jp.compress(params, masks=masks, bits=4).report().leaves[1]
    assert kernel.fixed_bits == 4 and kernel.index_bytes > 0 and kernel.dtype == "float32"


def test_the_best_effort_loses_nothing_either_and_is_no_larger():
    params = jax.tree.map(lambda leaf: leaf * (leaf > 1), lenet())
    fast, best = (jp.compress(params, bits=3, effort=effort) for effort in ("fast", "best"))
    assert_same(best.decompress(), fast.decompress())
    assert best.nbytes < fast.nbytes
    assert "mixing" in {leaf.coder for leaf in best.report().leaves}


def test_leaves_and_subtrees_of_what_is_compressed():
    params = lenet()
    compressed = jp.compress(params, bits=4)
    expected = short(params, 4)
    for leaf, (path, array) in zip(compressed.leaves, named(expected), strict=True):
        assert (leaf.path, leaf.shape, leaf.dtype) == (path, array.shape, array.dtype)
        assert 0 < leaf.nbytes < array.nbytes + HEAD
        np.testing.assert_array_equal(leaf.read(), array)
        assert path in repr(leaf) and len(repr(leaf)) < 120
    assert_same(compressed["Dense_0"].decompress(), expected["Dense_0"])
    assert repr(compressed) == f"Compressed(6 leaves, {sum(leaf.nbytes for leaf in compressed.leaves):,} bytes)"


def test_parts_that_were_compressed_alone_are_joined():
    params = lenet()
    whole, codes = jp.compress(params, bits=4), jp.quantize(params["Dense_1"], 6)
    parts = {"a": [whole["Dense_0/kernel"], jp.compress(codes)["kernel"]], "b": whole["Dense_2"]}
    joined = jp.files.join(parts)
    expected = short(params, 4)
    result = {"a": [expected["Dense_0"]["kernel"], codes["kernel"]], "b": expected["Dense_2"]}
    assert_same(joined.decompress(), result)
    assert_same(joined.decompress("a/1"), codes["kernel"])
    assert joined.to_bytes() == jp.files.join(parts).to_bytes()
    assert [leaf.path for leaf in joined.leaves] == ["a/0", "a/1", "b/bias", "b/kernel"]


def test_a_size_is_asked_for():
    params = lenet()

    def lost(made):
        pairs = zip(jax.tree.leaves(made.decompress()), jax.tree.leaves(params), strict=True)
        return sum(float(np.square(np.asarray(a, float) - np.asarray(b, float)).sum()) for a, b in pairs)

    whole, uniform = jp.compress(params), jp.compress(params, 3)
    assert jp.compress(params, max_bytes=whole.nbytes).to_bytes() == whole.to_bytes()
    for way in (
        None,
        "trellis",
        lambda tree, step, where: jp.quantization.rate_distortion.quantize(tree, step, where=where),
    ):
        made = jp.compress(params, max_bytes=uniform.nbytes, quantizer=way, side="int8")
        assert 0.94 * uniform.nbytes < made.nbytes <= uniform.nbytes and lost(made) < 0.7 * lost(uniform)
    small = jp.compress(params, max_bytes=uniform.nbytes // 2, side="int8")
    assert small.nbytes <= uniform.nbytes // 2 and lost(small) > lost(uniform)
    with pytest.raises(ValueError, match="max_bytes 100 is too small: all zeros take"):
        jp.compress(params, max_bytes=100)
    with pytest.raises(ValueError, match="max_bytes finds the step of 'rd', 'trellis' or a function.*got 'uniform'"):
        jp.compress(params, max_bytes=100, quantizer="uniform")


def test_errors_name_what_is_wrong():
    params = lenet()
    with pytest.raises(ValueError, match="bits and max_bytes"):
        jp.compress(params, bits=4, max_bytes=4)
    with pytest.raises(ValueError, match="effort must be 'fast' or 'best', got 'slow'"):
        jp.compress(params, effort="slow")
    with pytest.raises(ValueError, match="quantizer must be one of .*'uniform'.*got 'best'"):
        jp.compress(params, bits=4, quantizer="best")
    with pytest.raises(ValueError, match="side must be None, 'float16' or 'int8', got 'tiny'"):
        jp.compress(params, side="tiny")
    with pytest.raises(ValueError, match=r"leaf 'bias' holds 1e\+06, beyond float16's range"):
        jp.compress({"kernel": jnp.ones((2, 2)), "bias": jnp.full(2, 1e6)}, side="float16")
    with pytest.raises(TypeError, match=r"leaf 'name' is 'x' \(str\)"):
        jp.compress({"name": "x"})
    with pytest.raises(TypeError, match="leaf 'o' is .*has no bytes"):
        jp.compress({"o": np.array([object()])})
    with pytest.raises(TypeError, match=r"has keys \[\(1, 2\)\]"):
        jp.compress({(1, 2): jnp.ones(2)})
    with pytest.raises(TypeError, match="leaf 'w' is traced: compress works on the host"):
        jax.jit(lambda w: jp.compress({"w": w}))(jnp.ones(2))
    with pytest.raises(TypeError, match="metadata 'hook' of 'w' is"):
        jp.compress({"w": nnx.Param(jnp.ones(2), hook=print)})
    with pytest.raises(ValueError, match="Dense_9"):
        jp.compress(params, bits={"Dense_9": 3})


def test_leaves_of_many_zeros_become_sparse_arrays():
    params = {"w": jnp.asarray(np.random.default_rng(4).normal(size=(3, 5, 6)), jnp.bfloat16), "bias": jnp.zeros(6)}
    pruned = jp.compress(jp.prune(params, 0.8, scope="global").params).decompress()
    sparse = jp.quantization.to_bcoo(pruned)
    assert sparse["bias"] is pruned["bias"]
    assert sparse["w"].nse == 18 and sparse["w"].indices.dtype == jnp.int32 and sparse["w"].dtype == jnp.bfloat16
    chex.assert_trees_all_equal(sparse["w"].todense(), pruned["w"])
    chex.assert_trees_all_equal(jax.jit(lambda a: a.todense())(jp.quantization.to_bcoo(jnp.eye(4))), jnp.eye(4))
    with pytest.raises(TypeError, match="traced"):
        jax.jit(jp.quantization.to_bcoo)(pruned)


def test_the_same_bytes_whether_or_not_jax_has_64_bits():
    """Large leaves are coded by programs of JAX."""
    codes = jp.quantize(jnp.asarray(np.random.default_rng(0).normal(size=(128, 512)).astype(np.float32)), 8)
    narrow = jp.compress(codes)
    with jax.enable_x64(True):
        wide = jp.compress(codes)
        again = wide.decompress()
    assert wide.nbytes == narrow.nbytes
    chex.assert_trees_all_equal(again.codes, codes.codes)
