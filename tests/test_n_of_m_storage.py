"""N:M arrays without their zeros: the layout by hand and by an oracle, what comes back, files, and sparse arrays."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import jaxprune as jp
from jaxprune import dequantize
from jaxprune.files import FormatError
from jaxprune.quantization import to_bcoo, to_n_of_m
from jaxprune.quantization.arrays.n_of_m import NOfMArray

draw = np.random.default_rng(0)


def setup_function():
    """Each test draws for itself, whichever ran before."""
    global draw
    draw = np.random.default_rng(0)


def weights(shape, dtype=jnp.float32):
    """With NaN, infinities and zeros of both signs."""
    w = draw.normal(size=shape)
    odd = draw.random(shape)
    for i, value in enumerate([np.nan, np.inf, -np.inf, 0.0, -0.0]):
        w[(i / 20 < odd) & (odd < (i + 1) / 20)] = value
    return jnp.asarray(w.astype(dtype))


def mask_of(w, n=2, m=4, axis=-2):
    return oracles.n_of_m(np.abs(np.float32(w)), n, m, axis)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()


# shape, dtype, n, m, axis, share of the kept entries that the mask removes as well
CASES = {
    "2:4": ((16, 6), jnp.float32, 2, 4, -2, 0.0),
    "2:4 with fewer": ((16, 6), jnp.bfloat16, 2, 4, -2, 0.5),
    "1:4 of a convolution": ((3, 3, 8, 5), jnp.float16, 1, 4, -2, 0.0),
    "3:5 along the first axis": ((15, 2, 3), jnp.float32, 3, 5, 0, 0.3),
    "2:4 along the last axis": ((3, 12), jnp.float32, 2, 4, -1, 0.0),
    "20:40": ((80, 3), jnp.float32, 20, 40, -2, 0.2),
    "no groups": ((0, 4), jnp.float32, 2, 4, -2, 0.0),
}


@pytest.mark.parametrize("name", CASES)
def test_layout_and_round_trip_equal_the_oracle(name):
    shape, dtype, n, m, axis, share = CASES[name]
    w = weights(shape, dtype)
    mask = mask_of(w, n, m, axis) & (draw.random(shape) >= share)
    params, masks = {"kernel": w, "bias": np.ones(4)}, {"kernel": mask, "bias": np.array(True)}
    small = to_n_of_m(params, masks, n, m, axis=axis)
    values, indices = oracles.n_of_m_storage(np.asarray(w), mask, n, m, axis)
    record = small["kernel"]
    assert small["bias"] is params["bias"] and (record.n, record.m, record.shape) == (n, m, shape)
    assert same_bits(record.values, values)
    assert same_bits(record.indices, indices)
    back = dequantize(small)
    assert back["bias"] is params["bias"]
    assert same_bits(back["kernel"], oracles.apply_mask(w, mask))


def test_two_of_four_by_hand():
    w = jnp.array([[1.0, 5.0], [0.0, 0.0], [0.0, 6.0], [2.0, 0.0], [0.0, 0.0], [0.0, 0.0], [3.0, 7.0], [4.0, 0.0]])
    record = to_n_of_m(w, w != 0)
    np.testing.assert_array_equal(record.values, [[1, 5], [2, 6], [3, 0], [4, 7]])
    # By column, then by group, the lower index in the lower bits: (0, 3), (2, 3); (0, 2), (0, 2) with a zero put in.
    np.testing.assert_array_equal(record.indices, [0b11_10_11_00, 0b10_00_10_00])


@pytest.mark.parametrize("dtype, n, m, bits", [(jnp.float32, 2, 4, 2), (jnp.bfloat16, 1, 4, 2), (jnp.float16, 4, 8, 3)])
def test_bytes_are_those_of_the_kept_values_and_the_bits_of_their_indices(dtype, n, m, bits):
    w, mask = jax.ShapeDtypeStruct((64, 8), dtype), jax.ShapeDtypeStruct((64, 8), bool)
    parts = jax.tree.leaves(jax.eval_shape(lambda w, mask: to_n_of_m(w, mask, n, m), w, mask))
    held = sum(part.size * part.dtype.itemsize for part in parts)
    assert held == w.size * (n / m * w.dtype.itemsize + n / m * bits / 8)


def test_jit_and_vmap_give_the_same_bits_and_values_take_gradients():
    stack = np.asarray(weights((3, 8, 6)))
    masks = mask_of(stack)
    singles = [to_n_of_m(w, mask) for w, mask in zip(stack, masks, strict=True)]
    together = jax.jit(jax.vmap(to_n_of_m))(stack, masks)
    back = jax.jit(jax.vmap(dequantize))(together)
    for i, single in enumerate(singles):
        assert same_bits(together.values[i], single.values) and same_bits(together.indices[i], single.indices)
        assert same_bits(back[i], dequantize(single))
    with pytest.raises(ValueError, match=r"leaf 'w': 2:4 of an array of shape \(8, 6\).*made under jax.vmap"):
        dequantize({"w": together})
    numbers = np.arange(48.0, dtype=np.float32).reshape(8, 6)
    (slopes,) = jax.vjp(lambda values: dequantize(replace(singles[0], values=values)), singles[0].values)[1](numbers)
    np.testing.assert_array_equal(dequantize(replace(singles[0], values=slopes)), np.where(masks[0], numbers, 0))


def test_what_masks_keep_too_much_of_is_an_error_and_nan_where_it_cannot_be_seen():
    w, mask = np.ones((8, 6), np.float32), np.tile([[True], [False]], (4, 6))
    mask[4:7, 1] = True
    message = r"leaf 'a/w': the mask keeps 3 of group 1 along axis -2, \[4:8, 1\], more than n=2"
    with pytest.raises(ValueError, match=message):
        to_n_of_m({"a": {"w": w}}, {"a": {"w": mask}})
    blind = np.asarray(dequantize(jax.jit(to_n_of_m)(w, mask)))
    assert np.isnan(blind[4:, 1]).sum() == 2 and np.isnan(blind).sum() == 2


def test_masks_that_broadcast_leaves_that_are_left_alone_and_where():
    params = {"a": jnp.ones((4, 2)), "b": jnp.ones((4, 2)), "c": jnp.ones((4, 2)), "step": 3}
    some = jnp.array([[True], [False], [False], [True]])
    small = to_n_of_m(params, {"a": some, "b": some, "c": jnp.array(True), "step": jnp.array(True)}, where="a")
    assert isinstance(small["a"], NOfMArray) and all(small[name] is params[name] for name in ("b", "c", "step"))
    np.testing.assert_array_equal(dequantize(small)["a"], some * jnp.ones((1, 2)))
    assert to_n_of_m({}, {}) == {} and dequantize({"x": None}) == {"x": None}


@pytest.mark.parametrize(
    "shape, options, error, message",
    [
        ((6, 2), {}, ValueError, "leaf 'w': axis -2 has length 6, not a multiple of m=4"),
        ((4,), {}, ValueError, r"leaf 'w' has shape \(4,\) and no axis -2"),
        ((4, 2), {"n": 0}, ValueError, "n of m must have .*got n=0, m=4"),
        ((4, 2), {"n": 5}, ValueError, "got n=5, m=4"),
        ((4, 2), {"m": 1}, ValueError, "2 <= m <= 256"),
        ((4, 2), {"m": 4.0}, TypeError, "n and m must be integers"),
    ],
)
def test_errors_name_the_leaf_or_the_number(shape, options, error, message):
    with pytest.raises(error, match=message):
        to_n_of_m({"w": jnp.ones(shape)}, {"w": jnp.zeros(shape, bool)}, **options)


def test_a_mask_that_is_one_false_is_refused():
    with pytest.raises(ValueError, match="the mask of 'w' is a 0-d False"):
        to_n_of_m({"w": jnp.ones((4, 2))}, {"w": jnp.array(False)})


# ---------------------------------------------------------------------------------------------------------------------
# Files


def small_tree():
    w = weights((64, 30), jnp.bfloat16)
    params = {"kernel": w, "bias": jnp.zeros(30)}
    return params, to_n_of_m(params, {"kernel": mask_of(w), "bias": np.array(True)})


def test_files_keep_records(tmp_path):
    params, small = small_tree()
    size = jp.save(tmp_path / "small.jp", small)
    back = jp.load(tmp_path / "small.jp")
    assert jax.tree.structure(back) == jax.tree.structure(small)
    assert all(map(same_bits, jax.tree.leaves(back), jax.tree.leaves(small)))
    assert same_bits(dequantize(back)["kernel"], dequantize(small)["kernel"])
    compressed = jp.files.read(tmp_path / "small.jp")
    row = {leaf.path: leaf for leaf in compressed.report().leaves}["kernel"]
    assert row.shape == (64, 30) and row.dense_bytes == params["kernel"].nbytes and row.fixed_bits == (16 + 2) / 2
    assert row.nbytes == row.index_bytes + row.value_bytes + row.table_bytes + row.head_bytes < size
    assert row.index_bytes > 0.95 * 64 * 30 / 4 * np.log2(6) / 8  # which two of four: one of six
    dense = jp.compress(params, bits=1, quantizer=lambda *_: small).decompress()  # a quantizer makes dense arrays
    assert same_bits(dense["kernel"], dequantize(small)["kernel"])


def forged(record, **kind):
    """A file of the arrays of a record under another description, with checksums that are right."""
    compressed = jp.compress({"w": record})
    node = compressed.root.children[0]
    changed = node._replace(kind={**node.kind, **kind})
    return type(compressed)(compressed.root._replace(children=(changed,)), compressed.stored).to_bytes()


@pytest.mark.parametrize(
    "change, fault",
    [
        ({"shape": [8, 5]}, "leaf 'w': parts of a NOfMArray that do not fit together: 2:4 of an array of shape"),
        ({"shape": [6, 4]}, r"leaf 'w': .*groups of 4 along axis -2 of an array of shape \(6, 4\)"),
        ({"shape": [2**20, 2**21]}, "leaf 'w'; the limit is"),
        ({"shape": [-8, 4]}, "unknown, or lacks a part"),
        ({"shape": [2**40, 2**40]}, "unknown, or lacks a part"),
        ({"shape": "ab"}, "unknown, or lacks a part"),
        ({"n": 3}, "leaf 'w': .*3:4 of an array"),
        ({"m": 8}, "leaf 'w': "),
        ({"m": 257}, "unknown, or lacks a part"),
        ({"n": True}, "unknown, or lacks a part"),
        ({"m": 1, "n": 1}, "leaf 'w': .*2 <= m"),
        ({"axis": -3}, "leaf 'w': .*along axis -3"),
        ({"axis": 0}, "unknown, or lacks a part"),
    ],
)
@pytest.mark.parametrize("dense", [False, True])
def test_descriptions_that_do_not_fit_are_refused(tmp_path, change, fault, dense):
    values, indices = oracles.n_of_m_storage(np.ones((8, 4)), np.tile([[True], [False]], (4, 4)), 2, 4, -2)
    record = NOfMArray(values, indices, 2, 4, -2, (8, 4))
    (tmp_path / "forged.jp").write_bytes(forged(record, dense=dense, **change))
    with pytest.raises(FormatError, match=fault):
        jp.load(tmp_path / "forged.jp")


@pytest.mark.parametrize(
    "number, dtype, fault",
    [
        (0b00_11_10_01, np.uint8, "indices that do not ascend"),
        (0b10_10_10_01, np.uint8, "indices that do not ascend"),
        (0b10_01_10_01, np.int32, "are uint8 .*, not int32"),
    ],
)
def test_indices_that_make_no_sense_are_refused(number, dtype, fault):
    record = NOfMArray(np.ones((4, 1), np.float32), np.array([number], dtype), 2, 4, -2, (8, 1))
    with pytest.raises(FormatError, match=fault):
        jp.compress({"w": record}).decompress()


def test_indices_beyond_the_group_and_spare_bits_are_refused():
    beyond = NOfMArray(np.ones((1, 1), np.float32), np.array([3], np.uint8), 1, 3, -2, (3, 1))
    with pytest.raises(FormatError, match="leaf 'w': an index of 3 in groups of 3"):
        jp.compress({"w": beyond}).decompress()
    spare = NOfMArray(np.ones((1, 1), np.float32), np.array([0b1_01], np.uint8), 1, 3, -2, (3, 1))
    with pytest.raises(FormatError, match="leaf 'w': spare bits"):
        jp.compress({"w": spare}).decompress()


# ---------------------------------------------------------------------------------------------------------------------
# Sparse arrays of JAX


def test_sparse_arrays_store_what_masks_keep():
    w = draw.normal(size=(4, 6)).astype(np.float32)
    w[0, 0], w[1, 1] = 0, np.nan
    mask = (draw.random((4, 6)) < 0.5) | (np.arange(24).reshape(4, 6) == 0)
    mask[1, 1] = False
    params = {"kernel": w, "unit": np.ones((2, 3)), "bias": np.ones(6), "step": 1}
    unit = np.array([[True, False, True]])
    masks = {"kernel": mask, "unit": unit, "bias": np.array(True), "step": np.array(True)}
    sparse = to_bcoo(params, masks)
    assert sparse["bias"] is params["bias"] and sparse["step"] == 1
    assert sparse["kernel"].nse == mask.sum() and sparse["unit"].nse == 4  # the kept zero is stored as well
    np.testing.assert_array_equal(sparse["kernel"].indices, np.argwhere(mask))
    assert same_bits(sparse["kernel"].todense(), oracles.apply_mask(w, mask))
    assert to_bcoo(params, masks, where="unit")["kernel"] is params["kernel"]


def test_sparse_arrays_of_masks_that_do_not_fit():
    with pytest.raises(TypeError, match="leaf .* is traced"):
        jax.jit(lambda mask: to_bcoo(jnp.ones((2, 2)), mask))(jnp.ones((2, 2), bool))
    with pytest.raises(ValueError, match="does not broadcast"):
        to_bcoo({"w": jnp.ones((2, 2))}, {"w": jnp.ones((3, 2), bool)})
    with pytest.raises(ValueError, match="the mask of 'w' is a 0-d False"):
        to_bcoo({"w": jnp.ones((2, 2))}, {"w": jnp.array(False)})
