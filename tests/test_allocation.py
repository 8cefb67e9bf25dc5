"""Allocation: one overall sparsity shared out over leaves, against rational arithmetic."""

import math
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import strategies
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune.masks import allocation

INF, NAN = math.inf, math.nan
both = pytest.mark.parametrize("allocate", [allocation.uniform, allocation.erdos_renyi_kernel])

# Layers of real networks, and shapes that strain the rule: all alike, one entry, one leaf that dwarfs the others.
NETWORKS = {
    "digits": [(3, 3, 1, 16), (3, 3, 16, 32), (512, 64), (64, 10)],
    "resnet": [(7, 7, 3, 64), (1, 1, 64, 256), (3, 3, 512, 512), (1, 1, 2048, 512), (2048, 1000)],
    "alike": [(8, 4), (4, 8), (2, 16)],
    "one": [(5, 3)],
    "ones": [(1, 1), (1, 1), (1, 2)],
    "dwarfed": [(2, 2), (30522, 384), (384, 2)],
    "empty": [(0, 3), (4, 4), (3, 0)],
}


def specs(shapes):
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def density(shapes, sparsities):
    """Exact fraction kept overall by sparsities of leaves."""
    sizes = [math.prod(shape) for shape in shapes]
    kept = sum(n * (1 - Fraction(float(s))) for n, s in zip(sizes, sparsities, strict=True))
    return kept / sum(sizes)


@pytest.mark.parametrize("network", NETWORKS)
@settings(max_examples=30, deadline=None)
@given(sparsity=strategies.sparsities())
def test_erdos_renyi_kernel_equals_the_oracle(network, sparsity):
    shapes = NETWORKS[network]
    result = np.asarray(allocation.erdos_renyi_kernel(specs(shapes), sparsity))
    np.testing.assert_allclose(result, oracles.erdos_renyi_kernel(shapes, sparsity), rtol=0, atol=5e-6)
    # What is missing overall is no more than the rounding of float32 numbers near 1.
    assert abs(density(shapes, result) - (1 - Fraction(float(np.float32(sparsity))))) < Fraction(1, 2**22)


@settings(max_examples=6, deadline=None)
@given(
    shapes=st.lists(strategies.shapes(2, 4, 1, 40), min_size=1, max_size=6),
    values=st.lists(strategies.sparsities(), min_size=4, max_size=4),
)
def test_erdos_renyi_kernel_of_any_shapes(shapes, values):
    results = jax.vmap(lambda s: jnp.stack(allocation.erdos_renyi_kernel(specs(shapes), s)))(jnp.asarray(values))
    for s, result in zip(values, results, strict=True):
        np.testing.assert_allclose(result, oracles.erdos_renyi_kernel(shapes, s), rtol=0, atol=5e-6)
        assert ((result >= 0) & (result <= 1)).all()


def test_erdos_renyi_kernel_by_hand():
    params = {"large": np.zeros((10, 10)), "small": np.zeros((2, 2)), "bias": np.zeros(7)}
    # Ratios 0.2 and 1. Of 104, 26 are kept: eps (20 + 4) = 26 makes the small one dense, and 22 of 100 are left.
    np.testing.assert_allclose(_values(allocation.erdos_renyi_kernel(params, 0.75)), [0, 0.78, 0], atol=1e-7)
    # 12 kept: eps = 1/2.
    s = np.float32(1 - 12 / 104)
    np.testing.assert_allclose(_values(allocation.erdos_renyi_kernel(params, s)), [0, 0.9, 0.5], atol=1e-6)


def _values(tree):
    return np.array(jax.tree.leaves(tree))


@both
@pytest.mark.parametrize("network", NETWORKS)
def test_the_ends_are_exact_and_all_between_is_monotone(allocate, network):
    params = specs(NETWORKS[network])
    nonempty = np.array([math.prod(p.shape) > 0 for p in params])
    assert (np.asarray(allocate(params, 0.0)) == 0).all()
    everything = np.asarray(allocate(params, 1.0))
    assert (everything[nonempty] == 1).all()
    near = [np.linspace(0, 1, 301), 0.5 + np.arange(-5, 6) * 6e-8, 1 - np.arange(5) * 6e-8]
    grid = np.sort(np.concatenate(near).astype(np.float32))
    rows = np.asarray(jax.jit(jax.vmap(lambda s: jnp.stack(allocate(params, s))))(grid))
    assert (np.diff(rows, axis=0) > -3e-7).all()


@both
def test_a_bare_array_and_a_lone_leaf_get_the_sparsity_itself(allocate):
    for s in (0.1, 0.3, 0.7, 0.9, 1e-7, 1 - 1e-7):
        result = allocate(np.zeros((5, 3), np.float32), s)
        assert result.shape == () and result.dtype == jnp.float32 and result == np.float32(s)
        lone = allocate({"w": np.zeros((5, 3), np.float32), "b": np.zeros(3, np.float32)}, s)
        assert lone["w"] == np.float32(s) and lone["b"] == 0


def test_uniform():
    params = {"a": np.zeros((3, 4)), "b": {"bias": np.zeros(4), "w": np.zeros((4, 4))}, "n": np.arange(4).reshape(2, 2)}
    result = allocation.uniform(params, 0.3)
    expected = {"a": 0.3, "b": {"bias": 0, "w": 0.3}, "n": 0}
    chex.assert_trees_all_equal(result, jax.tree.map(jnp.float32, expected))
    assert [float(v) for v in allocation.uniform(specs([(2, 2), (3, 3)]), 0.3)] == oracles.uniform(
        [(2, 2), (3, 3)], 0.3
    )


@both
def test_where_chooses_and_the_others_get_nothing(allocate):
    params = {"a": np.zeros((30, 40)), "b": np.zeros((5, 5)), "bias": np.zeros(9)}
    assert {k for k, v in allocate(params, 0.9, where="b").items() if v > 0} == {"b"}
    assert {k for k, v in allocate(params, 0.9, where="!b").items() if v > 0} == {"a"}
    chosen = allocate(params, 0.99, where=lambda path, leaf: True)
    assert all(v > 0 for v in chosen.values())
    with pytest.raises(ValueError, match="'c' matches no leaf"):
        allocate(params, 0.9, where="c")


def test_vectors_and_scalars_count_when_chosen():
    params = {"s": np.float32(1), "v": np.zeros(6), "w": np.zeros((6, 5))}
    result = allocation.erdos_renyi_kernel(params, 0.5, where=lambda path, leaf: True)
    expected = oracles.erdos_renyi_kernel([(1,), (6,), (6, 5)], 0.5)
    np.testing.assert_allclose(_values(result), expected, atol=1e-6)


@both
def test_structures(allocate):
    boxed = {"params": {"k": nn.Partitioned(jnp.zeros((3, 4)), ("a", "b")), "bias": jnp.zeros(4)}, "stats": {"m": 1.0}}
    state = nnx.state(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Param)
    mixed = [jnp.tanh, jax.random.key(0), np.zeros((2, 2)), 3]
    for params in (boxed, state, mixed, (), None, {"empty": np.zeros((0, 3))}):
        result = allocate(params, 0.5)
        assert jax.tree.structure(result) == jax.tree.structure(params)
        assert all(v.shape == () and v.dtype == jnp.float32 for v in jax.tree.leaves(result))
    assert float(allocate(state, 0.5)["kernel"][...]) == 0.5 and float(allocate(state, 0.5)["bias"][...]) == 0


@both
@pytest.mark.parametrize(
    "network", [*(pytest.param(n, marks=pytest.mark.slow) for n in ("digits", "resnet")), "dwarfed"]
)
def test_same_bits_eager_jit_vmap_and_map(allocate, network):
    params = specs(NETWORKS[network])
    grid = jnp.asarray(np.random.default_rng(0).uniform(size=32), jnp.float32)

    def row(s):
        return jnp.stack(allocate(params, s))

    eager = np.stack([row(s) for s in grid])
    for rows in (jax.vmap(row)(grid), jax.jit(jax.vmap(row))(grid), jax.lax.map(row, grid)):
        chex.assert_trees_all_equal(rows, eager)
    scaled = jax.jit(lambda s: 2 * row(s) + 1 - 1)  # fused into arithmetic that follows
    chex.assert_trees_all_close(np.stack([scaled(s) for s in grid]), 2 * eager, atol=5e-7)


@both
def test_the_sparsity_is_traced(allocate):
    params = specs(NETWORKS["digits"])
    chex.clear_trace_counter()
    traced = jax.jit(chex.assert_max_traces(lambda s: allocate(params, s), n=1))
    for s in (0.1, 0.5, 0.9):
        chex.assert_trees_all_close(traced(jnp.float32(s)), allocate(params, s), rtol=1e-6)
    chex.assert_trees_all_equal(traced(jnp.float32(1.5)), allocate(params, 1.0))
    chex.assert_trees_all_equal(traced(jnp.float32(-0.5)), allocate(params, 0.0))
    before = allocation._erdos_renyi_kernel._cache_size()
    for s in (0.2, np.float64(0.4), jnp.float32(0.6)):
        allocate(params, s, where=lambda path, leaf: True)
    assert allocation._erdos_renyi_kernel._cache_size() <= before + 1


@both
def test_errors(allocate):
    params = {"a": {"w": np.zeros((3, 4))}}
    for bad in (1.5, -0.1, NAN, INF):
        with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\], got"):
            allocate(params, bad)
    with pytest.raises(ValueError, match=r"sparsity must be a scalar, got shape \(2,\)"):
        allocate(params, jnp.zeros(2))
    for bad in ("0.5", None, True, {"a": 0.5}):
        with pytest.raises(TypeError, match="sparsity must be a real number"):
            allocate(params, bad)
    with pytest.raises(TypeError, match="'a/w' is 'text'"):
        allocate({"a": {"w": "text"}}, 0.5)
    with pytest.raises(TypeError, match="'n' has dtype int"):
        allocate({"n": np.arange(3)}, 0.5, where=lambda path, leaf: True)
