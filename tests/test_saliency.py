"""Saliency: scores against the NumPy oracles, their structure, and the edges of float arithmetic."""

import math
from typing import NamedTuple

import chex
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import strategies
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune import saliency
from jaxprune.kernels import by_shape, unit_statistics

INF, NAN = math.inf, math.nan
KEY = jax.random.key(0)
slow = pytest.mark.slow

# name -> (scores of a tree, oracle of a leaf, tolerance relative to each value, absolute)
ORACLES = {
    "magnitude": (saliency.magnitude, oracles.magnitude, 0, 0),
    "connection_entropy": (saliency.connection_entropy, oracles.connection_entropy, 1e-6, 3e-7),
    "norm_1": (saliency.unit_norm, oracles.unit_norm, 1e-6, 0),
    "norm_2": (lambda p: saliency.unit_norm(p, ord=2), lambda w: oracles.unit_norm(w, 2), 2e-6, 0),
    "norm_half": (lambda p: saliency.unit_norm(p, ord=0.5), lambda w: oracles.unit_norm(w, 0.5), 1e-5, 0),
    "entropy_64": (saliency.unit_entropy, lambda w: oracles.unit_entropy(w, 64), 0, 2e-6),
    "entropy_3": (lambda p: saliency.unit_entropy(p, bins=3), lambda w: oracles.unit_entropy(w, 3), 0, 2e-6),
    "unit_sparsity": (saliency.unit_sparsity, oracles.unit_sparsity, 0, 0),
    "activations": (
        lambda p: saliency.activation_entropy(p, bins=7),
        lambda w: oracles.activation_entropy(w, 7),
        0,
        2e-6,
    ),
}
PER_WEIGHT = {
    "magnitude": saliency.magnitude,
    "gradient": lambda p: saliency.gradient(p, p),
    "fisher": lambda p: saliency.fisher(p, p),
    "random": lambda p: saliency.random(p, KEY),
    "connection_entropy": saliency.connection_entropy,
}
PER_UNIT = {
    "unit_norm": saliency.unit_norm,
    "unit_norm_2": lambda p: saliency.unit_norm(p, ord=2),
    "unit_entropy": lambda p: saliency.unit_entropy(p, bins=8),
    "unit_sparsity": saliency.unit_sparsity,
}
ALL = PER_WEIGHT | PER_UNIT
RELATIVES = {"fisher", "unit_norm_2", "unit_sparsity"}
each = pytest.mark.parametrize("name", ALL)
# Where programs are large: all but near relatives.
each_kind = pytest.mark.parametrize("name", [pytest.param(n, marks=[slow] if n in RELATIVES else []) for n in ALL])


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[slow] if n == "entropy_64" else []) for n in ORACLES])
@given(w=strategies.float_arrays(shape=st.sampled_from([(4, 3), (2, 3, 5)]), special=False))
def test_scores_equal_the_oracle(name, w):
    score, oracle, rtol, atol = ORACLES[name]
    result, expected = np.asarray(score(w)), oracle(w)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result.astype(np.float64), expected, rtol, atol)


@pytest.mark.parametrize(
    "name", ["magnitude", "connection_entropy", "norm_1", "entropy_3", "unit_sparsity", "activations"]
)
@given(w=strategies.float_arrays((np.dtype(np.float32),), st.just((4, 3))))
def test_nan_and_infinities_as_in_the_oracle(name, w):
    score, oracle, rtol, atol = ORACLES[name]
    np.testing.assert_allclose(np.asarray(score(w)), oracle(w), rtol, atol)


@given(st.data(), st.sampled_from([(7,), (4, 3)]))
def test_gradient_and_fisher_equal_the_oracle(data, shape):
    w, g = (data.draw(strategies.float_arrays(shape=shape, special=False)) for _ in range(2))
    assert oracles.bits_equal(saliency.gradient(w, g), oracles.gradient(w, g))
    squares = np.abs(g)
    expected = oracles.fisher(w, squares)
    representable = (expected == 0) | ((expected > 1e-37) & (expected < 1e38))
    result = np.asarray(saliency.fisher(w, squares))
    np.testing.assert_allclose(result[representable], expected[representable], 2e-7)


@pytest.mark.parametrize("bins", [pytest.param(7, marks=slow), 10, pytest.param(64, marks=slow)])
@settings(max_examples=20, deadline=None)
@given(
    w=hnp.arrays(np.int32, st.just((2, 6, 3)), elements=st.integers(-30, 30)),
    step=st.sampled_from([0.05, 1 / 3, 1e-30, 7e30]),
)
def test_values_on_bin_edges_fall_where_float32_puts_them(bins, w, step):
    w = w.astype(np.float32) * np.float32(step)
    result = np.asarray(saliency.unit_entropy(w, bins=bins))
    np.testing.assert_allclose(result, oracles.unit_entropy(w, bins), rtol=0, atol=2e-6)
    batched = np.asarray(_entropies(np.stack([w, 2 * w]), bins))
    np.testing.assert_allclose(batched, np.stack([result, result]), rtol=0, atol=1e-6)


_entropies = jax.jit(lambda w, bins: jax.vmap(lambda w: saliency.unit_entropy(w, bins=bins))(w), static_argnums=1)


def test_values_by_hand():
    w = jnp.array([[1.0, 0.0, 2.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [4.0, 0.0, 0.0]])
    entropy = saliency.connection_entropy(w)
    np.testing.assert_array_equal(entropy[:, 0], np.array([0.375, 0.375, 0.5, 0.5], np.float32))
    np.testing.assert_array_equal(np.signbit(entropy), False)
    np.testing.assert_array_equal(entropy[:, 1:], 0)  # neither an empty unit nor a single input is uncertain
    np.testing.assert_array_equal(saliency.unit_sparsity(w), [[0, 1, 0.75]])
    np.testing.assert_array_equal(saliency.unit_norm(w), [[8, 0, 2]])
    np.testing.assert_array_equal(saliency.unit_norm(-w, ord=INF), [[4, 0, 2]])
    np.testing.assert_array_equal(
        saliency.unit_entropy(w, bins=4), [[1.5, 0, np.float32(oracles.entropy_of_counts([3, 1]))]]
    )


@pytest.mark.parametrize("k", [0, pytest.param(1, marks=slow), 3, pytest.param(7, marks=slow)])
def test_even_histograms_have_whole_bits(k):
    w = np.repeat(np.arange(2**k, dtype=np.float32), 3)[:, None]
    assert saliency.unit_entropy(w, bins=2**k).item() == k
    assert saliency.activation_entropy(w, bins=2**k).item() == k


@pytest.mark.parametrize("n", [1, *(pytest.param(n, marks=slow) for n in (3, 7, 10, 41, 100)), 49, 127])
def test_unit_sparsity_is_the_nearest_float_to_the_fraction(n):
    w = (np.arange(n)[:, None] >= np.arange(n + 1)).astype(np.float32)
    expected = np.arange(n + 1).astype(np.float32) / np.float32(n)
    np.testing.assert_array_equal(saliency.unit_sparsity(w)[0], expected)


def test_zeros_of_both_signs_are_counted():
    np.testing.assert_array_equal(saliency.unit_sparsity(jnp.array([[-0.0], [NAN], [0.0], [INF]])), [[0.5]])


def test_every_entry_of_a_vector_and_a_scalar_is_a_unit():
    vector = jnp.array([2.0, 0.0, -3.0])
    np.testing.assert_array_equal(saliency.unit_norm(vector), [2, 0, 3])
    np.testing.assert_array_equal(saliency.unit_sparsity(vector), [0, 1, 0])
    np.testing.assert_array_equal(saliency.unit_entropy(vector), [0, 0, 0])
    np.testing.assert_array_equal(saliency.connection_entropy(vector), [0, 0, 0])
    for value, expected in ((saliency.unit_norm, 2), (saliency.unit_entropy, 0), (saliency.connection_entropy, 0)):
        assert value(jnp.float32(-2.0)) == expected and value(-2.0).shape == ()


def test_ranges_that_overflow_or_underflow_a_float():
    spread = jnp.array([[3e38, -3e38, 1.0], [-3e38, -3e38, 1.0]])
    np.testing.assert_array_equal(saliency.unit_entropy(spread, bins=4), [[1, 0, 0]])
    tiny = jnp.array([[1.2e-38, 1.2e-38], [1.21e-38, 1.2e-38]])  # hi - lo is subnormal
    np.testing.assert_array_equal(saliency.unit_entropy(tiny, bins=4), [[1, 0]])
    np.testing.assert_array_equal(saliency.connection_entropy(jnp.array([[3e38], [-3e38]])), [[0.5], [0.5]])
    np.testing.assert_allclose(
        saliency.unit_norm(jnp.array([[2e38, 3e-30], [1e38, 4e-30]]), ord=2), [[2.236068e38, 5e-30]]
    )
    np.testing.assert_allclose(saliency.unit_norm(jnp.array([[2.0], [1.0]]), ord=1000), [[2]])
    np.testing.assert_allclose(saliency.fisher(jnp.array([1e-30, 1e30]), jnp.array([1e35, 1e-35])), [5e-26, 5e24], 1e-6)


def test_values_that_are_not_finite():
    w = jnp.array([[NAN, 1.0, INF], [-INF, 2.0, INF], [1.0, 2.0, INF], [2.0, 1.0, NAN]])
    np.testing.assert_array_equal(saliency.unit_entropy(w, bins=2), [[1, 1, 0]])  # not counted; range 1 to 2
    np.testing.assert_array_equal(saliency.magnitude(w)[:2, 0], [NAN, INF])
    np.testing.assert_array_equal(saliency.unit_norm(w, ord=2), [[NAN, np.float32(math.sqrt(10)), NAN]])
    entropy = saliency.connection_entropy(jnp.array([[INF, 1.0], [1.0, NAN]]))
    np.testing.assert_array_equal(entropy, [[NAN, NAN], [0, NAN]])
    np.testing.assert_array_equal(saliency.unit_entropy(jnp.full((3, 2), NAN)), [[0, 0]])
    np.testing.assert_array_equal(saliency.gradient(jnp.array([0.0, 2.0]), jnp.array([INF, -INF])), [NAN, INF])


def test_histograms_by_passes_equal_those_by_scatter():
    w = jnp.asarray(np.random.default_rng(0).standard_normal((5, 10, 6)), jnp.float32).at[0, 0].set(jnp.nan)
    binning = unit_statistics._UnitBin(units=6, bins=9)
    ends = (jnp.float32(-2.5), jnp.float32(2.5), jnp.float32(1))
    ways = (unit_statistics._count_by_scatter, unit_statistics._count_by_pass)
    by_scatter, by_pass = jax.jit(lambda w: [count(binning, w, ends) for count in ways])(w.clip(-2.5, 2.5))
    chex.assert_trees_all_equal(by_scatter, by_pass)
    np.testing.assert_array_equal(by_scatter.sum(1), 49)


def test_histograms_take_no_one_hot():
    w = jax.ShapeDtypeStruct((2048, 512), jnp.float32)
    memory = jax.jit(saliency.unit_entropy).lower(w).compile().memory_analysis()
    assert memory is None or memory.temp_size_in_bytes < 5 * 4 * 2048 * 512


def test_random_scores():
    params = {"a": normal(64, 32), "b": normal(64, 32), "n": np.arange(3)}
    scores = saliency.random(params, KEY)
    values = np.stack([scores["a"], scores["b"]])
    assert values.dtype == np.float32 and values.min() >= 0 and values.max() < 1 and abs(values.mean() - 0.5) < 0.02
    assert len(np.unique(values)) > 4000  # leaves of equal shape differ
    chex.assert_trees_all_equal(scores, saliency.random(params, KEY))
    assert (saliency.random(params, jax.random.key(1))["a"] != scores["a"]).any()
    batch = jax.vmap(lambda key: saliency.random(params, key))(jax.random.split(KEY, 2))
    chex.assert_trees_all_equal(
        jax.tree.map(lambda x: x[1], batch), saliency.random(params, jax.random.split(KEY, 2)[1])
    )


class Layer(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


def trees():
    layer = {"kernel": normal(4, 3), "bias": normal(3, seed=1)}
    return {
        "dict": {"a": layer, "b": [layer]},
        "frozen": FrozenDict({"params": layer}),
        "tuple": (layer, ()),
        "named": Layer(jnp.asarray(layer["kernel"]), jnp.asarray(layer["bias"])),
        "boxed": {"params": {"kernel": nn.Partitioned(jnp.asarray(layer["kernel"]), ("in", "out"))}},
        "nnx": nnx.state(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Param),
        "bare": layer["kernel"],
        "none": None,
    }


@pytest.mark.slow
@each_kind
def test_structure_shapes_and_jit(name):
    params = trees()  # every kind at once, and a bare array apart; jit of a part: the others have the same leaves
    scores = ALL[name](params)
    for one, other in ((params, scores), (params["bare"], ALL[name](params["bare"]))):
        assert jax.tree.structure(one) == jax.tree.structure(other)
    for w, s in zip(jax.tree.leaves(params), jax.tree.leaves(scores), strict=True):
        assert s.dtype == jnp.float32
        assert s.shape == (w.shape if name in PER_WEIGHT else (1,) * (w.ndim - 1) + w.shape[-1:])
    some = {kind: params[kind] for kind in ("boxed", "nnx", "tuple")}
    some_scores = {kind: scores[kind] for kind in some} if name != "random" else ALL[name](some)
    chex.assert_trees_all_close(jax.jit(ALL[name])(some), some_scores, rtol=1e-6, atol=1e-6)


@each
@pytest.mark.parametrize("empty", [{}, (), None, {"a": []}], ids=str)
def test_empty_trees(name, empty):
    assert ALL[name](empty) == empty


@each
def test_leaves_that_are_not_floating_score_zero(name):
    params = {"f": jnp.tanh, "i": np.arange(3), "key": KEY, "n": 3, "flag": True, "w": normal(4, 3)}
    scores = ALL[name](params)
    for other in ("f", "i", "key", "n", "flag"):
        assert scores[other].shape == () and scores[other].dtype == jnp.float32 and scores[other] == 0
    assert scores["w"].shape[-1] == 3


@each_kind
@pytest.mark.parametrize("dtype", strategies.DTYPES, ids=str)
def test_dtypes(name, dtype):
    w = normal(40, 3).astype(dtype)
    scores = ALL[name](w)
    assert scores.dtype == (dtype if name == "magnitude" else jnp.float32)
    if name not in ("magnitude", "random"):  # computed in float32, so equal to the scores of the widened leaf
        chex.assert_trees_all_equal(scores, ALL[name](w.astype(np.float32)))


@each_kind
def test_vmap_over_params_equals_a_loop(name):
    w = normal(3, 20, 5)
    loop = jnp.stack([ALL[name](leaf) for leaf in w])
    chex.assert_trees_all_close(jax.vmap(ALL[name])(w), loop, rtol=1e-6, atol=1e-6)


@each_kind
def test_zero_size_leaves(name):
    for shape in ((0,), (0, 3), (3, 0), (2, 0, 3)):
        expected = shape if name in PER_WEIGHT else (1,) * (len(shape) - 1) + shape[-1:]
        assert jax.eval_shape(ALL[name], jnp.zeros(shape)).shape == expected
        if shape[-1]:
            scores = np.asarray(ALL[name](np.zeros(shape, np.float32)))
            assert scores.shape == expected and not scores.any()


def test_compiled_once_for_equal_structures():
    calls = by_shape._some._cache_size
    saliency.unit_entropy({"w": jnp.ones((6, 5))}, bins=11)
    before = calls()
    for i in range(4):
        saliency.unit_entropy({"w": np.full((6, 5), i, np.float32)}, bins=11)
        saliency.unit_entropy([np.full((6, 5), -i, np.float32)], bins=np.int64(11))
    assert calls() == before


def numeric(f, w, h=1e-3):
    steps = np.eye(w.size).reshape(w.size, *w.shape) * h
    return np.array([(f(w + s) - f(w - s)) / (2 * h) for s in steps]).reshape(w.shape)


@pytest.mark.parametrize("name", ["connection_entropy", "norm_1", "norm_2", "norm_half"])
def test_derivatives_equal_finite_differences(name):
    score, oracle, _, _ = ORACLES[name]
    w, weights = normal(4, 3) + np.float32(3) * np.sign(normal(4, 3)), normal(4, 3, seed=2)
    derivative = jax.grad(lambda w: (score(w) * weights).sum())(w)
    expected = numeric(lambda w: (oracle(w) * weights).sum(), w.astype(np.float64))
    # The oracle works on float32, which the step must clear: hence no tighter than this.
    np.testing.assert_allclose(derivative, expected, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[slow] if n == "entropy_64" else []) for n in ORACLES])
def test_derivatives_stay_finite_at_zero(name):
    score = ORACLES[name][0]
    derivative = jax.grad(lambda w: score(w).sum())(jnp.array([[0.0, 1.0, 0.0], [0.0, -2.0, 3.0]]))
    assert jnp.isfinite(derivative).all()
    if "entropy" in name and "connection" not in name:
        assert not derivative.any()


def test_gradients_of_other_leaves_are_not_looked_at():
    params = {"n": np.arange(3), "w": normal(2, 2), "f": jnp.tanh}
    grads = {"n": np.zeros(3, jax.dtypes.float0), "w": np.ones((2, 2)), "f": None}
    scores = saliency.gradient(params, grads)
    assert jax.tree.structure(scores) == jax.tree.structure(params)
    np.testing.assert_array_equal(scores["w"], np.abs(params["w"]))


@pytest.mark.parametrize("score, name", [(saliency.gradient, "grads"), (saliency.fisher, "squared_grads")])
def test_gradients_that_do_not_fit_the_parameters(score, name):
    params = {"a": {"kernel": normal(4, 3)}, "b": normal(2, 2)}
    with pytest.raises(ValueError, match=f"{name}.*a/bias"):
        score(params, {"a": {"kernel": normal(4, 3), "bias": normal(3)}, "b": normal(2, 2)})
    with pytest.raises(ValueError, match=r"only in params: \['a/kernel'\]"):
        score(params, {"b": normal(2, 2)})
    with pytest.raises(ValueError, match=rf"{name} at 'a/kernel' has shape \(3, 4\).*\(4, 3\)"):
        score(params, {"a": {"kernel": normal(3, 4)}, "b": normal(2, 2)})
    with pytest.raises(ValueError, match="structure"):
        score(params, None)


@pytest.mark.parametrize("bins", [0, -1, 2.0, "8", True, None, NAN])
def test_bins_that_are_no_count(bins):
    for score in (saliency.unit_entropy, saliency.activation_entropy):
        with pytest.raises(ValueError, match="bins must be an integer of at least 1"):
            score(normal(4, 3), bins=bins)


@pytest.mark.parametrize("ord", [0, -1, NAN, "2", None, True])
def test_orders_that_make_no_norm(ord):
    with pytest.raises(ValueError, match="ord must be a number above 0"):
        saliency.unit_norm(normal(4, 3), ord=ord)


def test_errors_name_the_leaf():
    with pytest.raises(TypeError, match="'a/w' is 'relu'"):
        saliency.magnitude({"a": {"w": "relu"}})
    with pytest.raises(ValueError, match="'layer' are a scalar"):
        saliency.activation_entropy({"layer": jnp.float32(1)})
    large = {"w": jax.ShapeDtypeStruct((2**31, 1), jnp.float32)}
    with pytest.raises(ValueError, match="'w'.*2147483648 values a unit"):
        jax.eval_shape(saliency.unit_sparsity, large)
    wide = {"w": jax.ShapeDtypeStruct((4, 2**26), jnp.float32)}
    with pytest.raises(ValueError, match="'w'.*67108864 units"):
        jax.eval_shape(lambda p: saliency.unit_entropy(p, bins=32), wide)


def test_activations_of_every_leading_axis_are_samples():
    x = normal(5, 4, 4, 3)
    result = saliency.activation_entropy({"conv": x, "dense": x.reshape(-1, 3), "idle": np.zeros((9, 2))}, bins=16)
    assert result["conv"].shape == (3,)
    chex.assert_trees_all_equal(result["conv"], result["dense"])
    np.testing.assert_array_equal(result["idle"], [0, 0])
