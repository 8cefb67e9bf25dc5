"""Codebooks: k-means in one dimension against trying all distances, what is stored, and the edges."""

from typing import NamedTuple

import chex
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import oracles_training
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune import dequantize as decode
from jaxprune.kernels import clustering
from jaxprune.quantization.arrays.coded import CodebookArray
from jaxprune.quantization.codebook import encode, kmeans

K = 5
SHAPE = (6, 5)
NAN, INF = jnp.nan, jnp.inf


def normal(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pruned(seed=0):
    w = normal(seed=seed)
    return np.where(np.abs(w) < 0.7, np.float32(0), w)


def table_of(encoded):
    """The ascending centroids, without the one of kept zeros."""
    return np.asarray(encoded.centroids)[int(encoded.keeps_zeros) :]


# Eighths make many ties, and sums that are exact in any order.
eighths = hnp.arrays(np.int32, SHAPE, elements=st.integers(-24, 24)).map(lambda i: i.astype(np.float32) / 8)
floats = hnp.arrays(np.float32, SHAPE, elements=st.floats(-8, 8, width=32, allow_subnormal=False))
weights = st.one_of(eighths, floats).map(lambda w: np.where(np.abs(w) < 1e-6, np.float32(0), w))


# ---------------------------------------------------------------------------------------------------------------------
# Against trying all distances

_lloyd = jax.jit(lambda x, start, steps: clustering.lloyd(clustering.prepare(x, False), start, steps))


@settings(max_examples=60)
@given(w=weights, start=st.sets(st.integers(-60, 60), min_size=K, max_size=K), steps=st.integers(0, 6))
def test_lloyd_equals_that_of_all_distances(w, start, steps):
    start = np.array(sorted(start), np.float32) / 16
    result = _lloyd(w.ravel(), start, np.int32(steps))
    assert oracles.bits_equal(result + 0.0, oracles_training.lloyd(w, start, steps) + np.float32(0))


@pytest.mark.parametrize("scale", [1, 1e30, 1e-30])
def test_lloyd_on_large_and_small_values(scale):
    x = (np.random.default_rng(1).standard_t(2, SHAPE) * scale).astype(np.float32)
    start = np.linspace(x.min(), x.max(), K, dtype=np.float32)
    np.testing.assert_array_equal(_lloyd(x.ravel(), start, np.int32(30)), oracles_training.lloyd(x, start, 30))


_starts = jax.jit(
    lambda w: [
        start(clustering.prepare(w, False), K, jnp.int32(K))
        for start in (clustering.linear_start, clustering.density_start)
    ]
)


@pytest.mark.slow
@given(w=weights)
def test_no_worse_than_the_linear_start(w):
    encoded = encode(w, K, keep_zeros=False)
    result, table = np.asarray(decode(encoded)), np.asarray(encoded.centroids)
    np.testing.assert_array_equal(np.asarray(encoded.codes), oracles_training.nearest(w, table))
    error = oracles_training.squared_error(w, table)
    np.testing.assert_allclose(((np.float64(w) - result) ** 2).sum(), error)
    linear, dense = (np.asarray(start) for start in _starts(w.ravel()))
    np.testing.assert_allclose(linear, np.linspace(w.min(), w.max(), K, dtype=np.float32), rtol=1e-6, atol=1e-6)
    for start in (linear, dense):
        assert (np.diff(start) >= 0).all() and start.min() >= w.min() and start.max() <= w.max()
        assert error <= oracles_training.squared_error(w, oracles_training.lloyd(w, start, 64)) * (1 + 1e-5) + 1e-12


def test_centroids_rest():
    w = normal()
    table = np.asarray(encode(w, K, keep_zeros=False).centroids)
    np.testing.assert_array_equal(oracles_training.lloyd(w, table, 1), table)


def test_near_the_least_error_and_far_below_the_linear_start():
    ratios, gains = [], []
    for seed in range(40):
        w = np.random.default_rng(seed).standard_t(3, SHAPE).astype(np.float32)
        error = oracles_training.squared_error(w, encode(w, K, keep_zeros=False).centroids)
        start = np.linspace(w.min(), w.max(), K, dtype=np.float32)
        ratios.append(error / oracles_training.least_squared_error(w, K))
        gains.append(error / oracles_training.squared_error(w, oracles_training.lloyd(w, start, 64)))
    assert max(gains) <= 1 + 1e-6 and np.mean(gains) < 0.85
    assert min(ratios) >= 1 - 1e-6 and np.mean(ratios) < 1.1


def test_empty_clusters_are_put_to_use():
    """A linear start leaves nothing to the centroids between two far groups, nor would the dense one."""
    w = np.where(np.arange(30) % 2, 100, -100).reshape(SHAPE) + normal()
    table = np.asarray(encode(w, K, keep_zeros=False).centroids)
    assert set(oracles_training.nearest(w, table).ravel()) == set(range(K))


@settings(max_examples=60)
@given(
    table=st.lists(st.floats(-4, 4, width=32, allow_subnormal=False), min_size=K, max_size=K, unique=True),
    ulps=hnp.arrays(np.int32, (K - 1, 3), elements=st.integers(-2, 2)),
)
def test_half_way_goes_to_the_lower(table, ulps):
    table = np.sort(np.array(table, np.float32))
    table = np.where(np.abs(table) < 1e-20, np.float32(0), table)
    middle = (table[:-1] + table[1:]) / 2
    x = (middle[:, None] + ulps * np.spacing(np.maximum(np.abs(middle), np.float32(1e-20)))[:, None]).astype(np.float32)
    np.testing.assert_array_equal(_codes(x, table), oracles_training.nearest(x, table))


_codes = jax.jit(lambda x, table: clustering.codes(x, table, jnp.bool_(False)))


# ---------------------------------------------------------------------------------------------------------------------
# What is kept


@given(w=weights)
def test_zeros_stay_and_nothing_joins_them(w):
    encoded = encode(w, K)
    result = np.asarray(decode(encoded))
    assert len(np.unique(result)) <= K and not np.signbit(result[w == 0]).any()
    assert bool(encoded.keeps_zeros) == (w == 0).any()
    assert (result[w == 0] == 0).all()
    if encoded.keeps_zeros:
        np.testing.assert_array_equal(np.asarray(encoded.codes) == 0, w == 0)
        assert encoded.centroids[0] == 0
    others = w[w != 0]
    if others.size:
        table = table_of(encoded)
        assert (np.diff(table) >= 0).all()
        np.testing.assert_array_equal(result[w != 0], table[oracles_training.nearest(others, table)])


@given(
    values=st.lists(st.floats(width=32, allow_subnormal=False, allow_nan=False, allow_infinity=False), max_size=K),
    order=hnp.arrays(np.int32, SHAPE, elements=st.integers(0, K - 1)),
)
def test_few_values_are_reproduced(values, order):
    w = np.array([*values, 0.0], np.float32)[order % (len(values) + 1)]
    w = w[..., :] if len(np.unique(w)) <= K else np.where(w == 0, np.float32(values[0]), w)
    assert oracles.bits_equal(kmeans(w, K, iterations=0), w + np.float32(0))


def test_neighbouring_floats_stay_apart():
    w = np.full(SHAPE, 1, np.float32)
    w[1], w[2], w[3, 0] = np.nextafter(w[1], np.float32(2)), np.nextafter(w[1], np.float32(0)), -3e38
    assert oracles.bits_equal(kmeans(w, K), w)


def test_many_centroids_take_wider_codes():
    for k, dtype in ((256, jnp.uint8), (257, jnp.uint16)):
        encoded = jax.eval_shape(lambda w, k=k: encode(w, k), jnp.ones(SHAPE, jnp.bfloat16))
        assert encoded.codes.dtype == dtype and encoded.shape == SHAPE and encoded.dtype == jnp.bfloat16
        assert encoded.centroids.shape == (k,) and encoded.centroids.dtype == jnp.float32


def test_narrow_floats_are_cast_once():
    w = jnp.asarray(pruned(), jnp.bfloat16)
    encoded = encode(w, K)
    assert encoded.codes.dtype == jnp.uint8 and encoded.centroids.dtype == jnp.float32 and encoded.dtype == w.dtype
    wide = encode(w.astype(jnp.float32), K)
    chex.assert_trees_all_equal(encoded.centroids, wide.centroids)
    assert oracles.bits_equal(decode(encoded), decode(wide).astype(jnp.bfloat16))


def test_no_weights_and_zeros_alone():
    empty = encode(jnp.zeros((0, 3)), K)
    assert decode(empty).shape == (0, 3) and not empty.keeps_zeros
    zeros = encode(np.zeros(SHAPE, np.float32), K)
    assert zeros.keeps_zeros and jnp.isfinite(zeros.centroids).all()
    assert oracles.bits_equal(decode(zeros), np.zeros(SHAPE, np.float32))
    assert oracles.bits_equal(kmeans(-np.zeros(SHAPE, np.float32), K), np.zeros(SHAPE, np.float32))


def test_one_value_is_the_mean():
    w = np.round(normal() * 8)
    assert oracles.bits_equal(_lloyd(w.ravel(), w[0, :1], np.int32(2)), w.mean(keepdims=True)[0])
    assert (_codes(w, w[0, :1]) == 0).all()


# ---------------------------------------------------------------------------------------------------------------------
# Programs


@jax.jit
@chex.assert_max_traces(n=1)
def _jitted(w, steps):
    return encode(w, K, iterations=steps)


@pytest.mark.slow
def test_every_way_to_run_it_gives_the_same():
    batch = np.stack([normal(), pruned(), normal(seed=2) * 1e20, np.round(normal(seed=3))])
    eager = [encode(w, K) for w in batch]
    mapped = jax.jit(jax.vmap(lambda w: encode(w, K)))(batch)
    for i, expected in enumerate(eager):
        chex.assert_trees_all_equal(_jitted(batch[i], 64), expected)
        chex.assert_trees_all_equal(jax.tree.map(lambda leaf, i=i: leaf[i], mapped), expected)
        chex.assert_trees_all_equal(_jitted(batch[i], 3), encode(batch[i], K, iterations=3))
        assert oracles.bits_equal(kmeans(batch[i], K), decode(expected))
    np.testing.assert_array_equal(jax.vmap(decode)(mapped), np.stack([decode(e) for e in eager]))


@pytest.mark.slow
def test_memory_does_not_grow_with_k():
    w = jax.ShapeDtypeStruct((4096, 4096), jnp.float32)
    memory = jax.jit(lambda w: encode(w, 256)).lower(w).compile().memory_analysis()
    assert memory is None or memory.temp_size_in_bytes <= 8 * 4 * 4096**2


def test_gradient_of_kmeans_is_straight_through():
    w, slope = pruned(), normal(seed=5)
    value, grad = jax.value_and_grad(lambda w: jnp.sum(kmeans(w, K) * slope))(w)
    np.testing.assert_array_equal(grad, slope)
    np.testing.assert_allclose(value, (np.asarray(kmeans(w, K)) * slope).sum(), rtol=1e-5)


def test_gradient_of_decode_is_the_sum_over_each_cluster():
    encoded = encode(pruned(), K)
    slope = np.round(normal(seed=5) * 64) / 64  # sums that are exact in any order

    def total(centroids, dtype):
        leaf = CodebookArray(encoded.codes, centroids, encoded.keeps_zeros, dtype)
        return jnp.sum(decode(leaf).astype(jnp.float32) * slope)

    expected = oracles_training.sum_by_code(slope, encoded.codes, K)
    assert encoded.keeps_zeros and expected[0] != 0
    expected[0] = 0
    for dtype in (jnp.float32, jnp.bfloat16):
        grad = jax.grad(total)(encoded.centroids, np.dtype(dtype))
        assert grad.dtype == jnp.float32
        np.testing.assert_array_equal(grad, expected)
    moved = CodebookArray(encoded.codes, encoded.centroids + 1, encoded.keeps_zeros, encoded.dtype)
    np.testing.assert_array_equal(decode(moved) == 0, np.asarray(encoded.codes) == 0)


# ---------------------------------------------------------------------------------------------------------------------
# Trees and errors


class Layer(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


def test_trees_keep_their_form():
    params = {
        "a": Layer(pruned(), jnp.ones(3)),
        "b": [jnp.asarray(pruned(1)), jnp.arange(3)],
        "none": {},
    }
    shared = kmeans(params, K)
    assert jax.tree.structure(shared) == jax.tree.structure(params)
    assert shared["a"].bias is params["a"].bias and shared["b"][1] is params["b"][1]
    assert len(np.unique(shared["a"].kernel)) <= K and len(np.unique(shared["b"][0])) <= K
    each = jax.eval_shape(lambda params: encode(params, {"a": 4, "b": 7}), params)
    assert each["a"].kernel.centroids.shape == (4,) and each["b"][0].centroids.shape == (7,)
    chosen = encode(params, K, where="a/*")
    assert isinstance(chosen["a"].kernel, CodebookArray) and chosen["b"][0] is params["b"][0]
    again = decode(chosen)
    assert again["b"][0] is params["b"][0] and again["a"].kernel.shape == SHAPE
    np.testing.assert_array_equal(again["a"].kernel, shared["a"].kernel)
    assert kmeans({}, K) == {} and decode({}) == {}


@pytest.mark.parametrize(
    ("k", "spec", "error", "message"),
    [
        (1, {}, ValueError, r"k must be in \[2, 65536\], got 1"),
        (0, {"keep_zeros": False}, ValueError, r"k must be in \[1, 65536\], got 0"),
        (65537, {}, ValueError, "got 65537"),
        (4.0, {}, TypeError, "k must be an integer or a tree of them, got 4.0"),
        (True, {}, TypeError, "k must be an integer"),
        ({"b": 4}, {}, ValueError, "k names 'b', which is not in the tree"),
        (4, {"iterations": -1}, ValueError, r"iterations must be in \[0, "),
        (4, {"where": "nothing"}, ValueError, "matches no leaf"),
    ],
)
def test_errors_name_what_is_allowed(k, spec, error, message):
    with pytest.raises(error, match=message):
        kmeans({"a": normal()}, k, **spec)


def test_k_is_static():
    with pytest.raises(TypeError, match="k is static"):
        jax.jit(lambda k: kmeans(normal(), k))(4)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_weights_that_are_not_finite(value):
    w = pruned()
    w[0, 0] = value
    with pytest.raises(ValueError, match="leaf 'a/kernel' holds NaN or infinities"):
        encode({"a": {"kernel": w}}, K)
    traced = decode(_jitted(w, 64))
    np.testing.assert_array_equal(np.isnan(traced), w != 0)  # nothing looks well that is not
