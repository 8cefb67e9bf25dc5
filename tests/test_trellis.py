"""Trellis-coded quantization: the best path, what indices stand for, zeros, rotation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles_classes as oracles
import oracles_files
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprune import dequantize
from jaxprune.kernels import viterbi
from jaxprune.quantization import trellis

slow = pytest.mark.slow
ALL = (4, *(pytest.param(states, marks=slow) for states in (8, 16)), 32)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def values_of(leaf):
    """By the oracle, in float64 but for the last step."""
    numbers = oracles.trellis_numbers(leaf.indices, leaf.states, leaf.zero)
    half = np.float32(leaf.step) / 2
    if leaf.basis.size:
        numbers = numbers @ np.asarray(leaf.basis, float)
        half = half * np.float32(2.0 ** -viterbi.basis_exponent(len(leaf.basis)))
    return (numbers.astype(np.float32) * half).astype(leaf.dtype)


@pytest.mark.parametrize("states", ALL)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_no_path_is_better(states, seed, scale):
    x = scale * normal(9, seed=seed)
    leaf = trellis.quantize(jnp.asarray(x), 1.0, states=states)
    error = np.square(x - oracles.trellis_numbers(leaf.indices, states, leaf.zero) / 2).sum()
    np.testing.assert_allclose(error, oracles.least_error(x.astype(float), states), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "states, share",
    [
        (4, 0.6),
        *(pytest.param(*rest, marks=slow) for rest in [(8, 0.0), (16, 0.0), (32, 0.6)]),
        (8, 0.0005),
    ],
)
def test_indices_stand_for_what_is_documented(states, share):
    w = normal(40, 70) * (np.random.default_rng(1).random((40, 70)) >= share)
    leaf = trellis.quantize(jnp.asarray(w), 0.1, states=states)
    assert leaf.indices.dtype == jnp.int8 and leaf.shape == w.shape and leaf.dtype == np.float32
    assert (leaf.zero is None) == (not (w == 0).any())
    back = dequantize(leaf)
    np.testing.assert_array_equal(back, values_of(leaf))
    np.testing.assert_array_equal(back == 0, w == 0)
    assert np.sqrt(np.mean((back - w)[w != 0] ** 2)) < 0.1 * 0.55  # a uniform distribution over a step of 2 has 0.577


@pytest.mark.parametrize("size", [0, pytest.param(1, marks=slow), 1025])
def test_all_sizes(size):
    w = normal(size)
    leaf = trellis.quantize(jnp.asarray(w), 0.05)
    np.testing.assert_array_equal(dequantize(leaf), values_of(leaf))
    assert np.abs(dequantize(leaf) - w).max(initial=0) < 0.05 * 2


def decibels(error, bits):
    """Above the least that any quantizer of a normal distribution can reach."""
    return 10 * np.log10(error) + 20 * np.log10(2) * bits


@pytest.mark.parametrize(
    "step, penalty, states, most",
    [(0.1, 0, 8, 0.50), pytest.param(0.1, 0, 32, 0.42, marks=slow), pytest.param(0.4, 0.45, 8, 0.55, marks=slow)],
)
def test_it_is_near_the_bound_where_rounding_is_not(step, penalty, states, most):
    w = normal(512, 64)
    leaf = trellis.quantize(jnp.asarray(w), step, penalty, states=states)
    error = np.square(dequantize(leaf) - w, dtype=float).mean()
    assert decibels(error, oracles_files.entropy(leaf.indices)) < most
    rounded = np.rint(w / (2 * step))
    assert decibels(np.square(rounded * 2 * step - w).mean(), oracles_files.entropy(rounded)) > 1.5


def test_a_penalty_saves_bits_in_rows_and_columns_of_little_variance():
    w = normal(512, 64) * np.exp2(np.arange(512) % 5)[:, None] * np.exp2(np.arange(64) % 3)
    sets = [trellis.quantize(jnp.asarray(w), 4.0, penalty) for penalty in (1e-9, 0.5, 2.0)]
    bits = [oracles_files.entropy(leaf.indices) for leaf in sets]
    errors = [np.square(dequantize(leaf) - w).sum() for leaf in sets]
    assert bits[0] > bits[1] + 0.05 > bits[2] + 0.1
    assert errors[0] < errors[1] < errors[2]


def correlated(rows=4096, columns=16):
    mixed = normal(rows, 3, seed=1) @ normal(3, columns, seed=2) + 0.1 * normal(rows, columns)
    return mixed.astype(np.float32)


@pytest.mark.slow
def test_rotation_saves_bits_at_the_same_error():
    w = correlated()
    plain, rotated = (trellis.quantize(jnp.asarray(w), 0.05, rotate=flag) for flag in (False, True))
    assert plain.basis.shape == (0, 0) and rotated.basis.shape == (16, 16)
    errors = [np.square(dequantize(leaf) - w).mean() for leaf in (plain, rotated)]
    assert errors[1] < 1.03 * errors[0]
    bits = [sum(oracles_files.entropy(column) for column in leaf.indices.T) / 16 for leaf in (plain, rotated)]
    assert bits[1] < bits[0] - 1
    np.testing.assert_array_equal(dequantize(rotated), values_of(rotated))


@slow
def test_only_what_gains_is_rotated():
    sparse = correlated() * (np.arange(16) % 2)
    params = {"a": normal(4096, 16), "c": sparse, "d": correlated() * 3e4}
    found = trellis.quantize(jax.tree.map(jnp.asarray, params), 0.2, rotate=True)
    assert not any(leaf.basis.size for leaf in found.values())
    np.testing.assert_array_equal(np.asarray(dequantize(found)["c"])[:, ::2], 0)


def test_structure_and_dtypes_are_kept():
    bias = jnp.ones(3)
    params = {"b": bias, "h": jnp.asarray(normal(8, 6), jnp.bfloat16), "w": jnp.asarray(normal(4, 5, 6))}
    found = trellis.quantize(params, {"h": 0.25, "w": 1e-5}, states=4)
    assert found["b"] is bias and found["w"].indices.dtype == jnp.int32
    back = dequantize(found)
    assert back["b"] is bias
    chex.assert_trees_all_equal_shapes_and_dtypes(back, params)
    for name in "hw":
        np.testing.assert_array_equal(back[name], values_of(found[name]))
    again = jax.tree.map(lambda x: x, found)
    assert again["h"].states == 4 and again["h"].dtype == jnp.bfloat16


def test_jit_and_eager_agree_on_values():
    found = trellis.quantize({"w": jnp.asarray(normal(30, 40)), "s": jnp.zeros((2, 3))}, 0.1)
    chex.assert_trees_all_equal(jax.jit(dequantize)(found), dequantize(found))


@slow
def test_several_blocks_are_as_one_and_leaves_do_not_touch(monkeypatch):
    w = jnp.asarray(normal(64, 70))
    alone = trellis.quantize(w, 0.1, states=4)
    together = trellis.quantize({"a": w[:3], "b": w, "c": w[:1]}, 0.1, states=4)["b"]
    chex.assert_trees_all_equal(alone, together)
    with monkeypatch.context() as patch:
        patch.setattr(viterbi, "_WIDTH", 4)
        x = w / 0.1
        lanes = viterbi.to_lanes(x)
        spare = viterbi.spare(lanes.shape[1])
        blocks = viterbi.search(jnp.pad(lanes, ((0, 0), (0, spare))), 4, False)
    assert spare > 0
    np.testing.assert_array_equal(viterbi.from_lanes(blocks[:, : lanes.shape[1]], w.shape), alone.indices)


def test_errors_name_the_leaf_and_the_value():
    bad = {"a": {"kernel": jnp.array([[1.0, jnp.nan]])}}
    with pytest.raises(ValueError, match="'a/kernel' holds NaN or infinity"):
        trellis.quantize(bad, 0.1)
    with pytest.raises(ValueError, match="states must be one of .* got 5"):
        trellis.quantize(jnp.ones(3), 0.1, states=5)
    with pytest.raises(ValueError, match="step must be in"):
        trellis.quantize(jnp.ones(3), 0.0)
    with pytest.raises(ValueError, match="penalty must be in"):
        trellis.quantize(jnp.ones(3), 1.0, -1.0)
    with pytest.raises(ValueError, match="the array itself.* 1e[+]08 steps"):
        trellis.quantize(jnp.full(3, 1e8), 1.0)
    with pytest.raises(TypeError, match="concrete"):
        jax.jit(trellis.quantize)(jnp.ones(3), 1.0)
