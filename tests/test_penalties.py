"""Penalties of the loss: values and derivatives against the NumPy formulas, finite wherever the weights are."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles_training as oracles
import pytest
import strategies
from flax.core import FrozenDict
from hypothesis import example, given
from hypothesis import strategies as st

from jaxprune.training import penalties

PENALTIES = {"l1": penalties.l1, "group_lasso": penalties.group_lasso, "hoyer": penalties.hoyer}
each = pytest.mark.parametrize("name", PENALTIES)
with_slope = {name: jax.jit(jax.value_and_grad(penalty)) for name, penalty in PENALTIES.items()}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def layer(seed=0):
    return {"kernel": jnp.asarray(normal(4, 3, seed=seed)), "bias": jnp.asarray(normal(3, seed=seed + 1))}


@each
@given(w=strategies.float_arrays(shape=st.just((3, 2, 2)), special=False))
@example(w=np.array([0] * 10 + [1, 6e4], np.float16).reshape(3, 2, 2))
def test_values_and_derivatives_equal_the_oracle(name, w):
    value, slope = with_slope[name](jnp.asarray(w))
    expected, expected_slope = getattr(oracles, name)(w)
    assert value.dtype == jnp.float32 and value.shape == () and slope.dtype == w.dtype
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    # Where two large terms cancel, what is left is as precise as they are; the dtype then rounds once.
    limit = float(jnp.finfo(w.dtype).max)
    largest = 2 * np.sqrt(w.size) / max(np.abs(np.float64(w)).max(), 1e-30) if name == "hoyer" else 1
    error = max(float(jnp.finfo(w.dtype).eps), 2e-6)
    least = float(jnp.finfo(w.dtype).smallest_subnormal)  # what is smaller has no place in the dtype
    np.testing.assert_allclose(
        np.float64(slope),
        np.clip(expected_slope, -limit, limit),
        rtol=error,
        atol=max(least, min(2e-6 * largest, limit)),
    )


def test_values_by_hand():
    w = {"kernel": jnp.array([[3.0, 0.0], [-4.0, 0.0]]), "bias": jnp.array([9.0, 9.0])}
    assert penalties.l1(w) == 7
    np.testing.assert_allclose(penalties.group_lasso(w), 5 * math.sqrt(2), rtol=1e-7)
    np.testing.assert_allclose(penalties.hoyer(w), 49 / 25, rtol=1e-7)
    assert penalties.group_lasso(jnp.array([-2.0, 1.0])) == 3  # each entry of a vector is a unit
    assert penalties.hoyer(jnp.array([0.0, -7.0, 0.0])) == 1 and penalties.hoyer(jnp.full(5, 0.3)) == 5


EXTREMES = {
    "zeros": [[0.0, 0.0], [0.0, -0.0]],
    "zero unit": [[0.0, 1.0], [0.0, 2.0]],
    "tiny": [[1.2e-38, 2.4e-38], [0.0, 3e-38]],
    "subnormal": [[1e-40, 0.0], [1e-44, 0.0]],
    "huge": [[3e38, -3e38], [3e38, 1.0]],
    "spread": [[3e38, 1e-38], [1e-38, -3e38]],
    "tiny of float16": [[6e-8, 6e-8], [1e-7, 0.0]],
}


@each
@pytest.mark.parametrize("dtype", strategies.DTYPES, ids=str)
def test_derivatives_are_finite_everywhere(name, dtype):
    largest = float(jnp.finfo(dtype).max)
    for label, values in EXTREMES.items():
        w = np.broadcast_to(np.clip(values, -largest, largest), (3, 2, 2)).astype(dtype)
        slope = np.asarray(with_slope[name](w)[1])
        assert slope.dtype == dtype and np.isfinite(np.float32(slope)).all(), label
        assert not slope[w == 0].any(), label
    assert not with_slope[name](np.zeros((3, 2, 2), dtype))[0]


def test_norms_neither_overflow_nor_underflow():
    w = jnp.array([[3e30, 3e-30, 0.0], [-4e30, 4e-30, 0.0]])
    value, slope = with_slope["group_lasso"](w)
    np.testing.assert_allclose(value, 5e30 * math.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(slope, np.sqrt(2) * np.array([[0.6, 0.6, 0], [-0.8, 0.8, 0]]), rtol=1e-6)
    np.testing.assert_allclose(penalties.hoyer(w), 49 / 25, rtol=1e-6)
    for factor in (2.0**-100, 2.0**100):  # Hoyer-Square is scale-invariant, bitwise under powers of two
        value, slope = with_slope["hoyer"](normal(3, 2, 2))
        scaled, scaled_slope = with_slope["hoyer"](normal(3, 2, 2) * np.float32(factor))
        assert scaled == value
        np.testing.assert_array_equal(scaled_slope * factor, slope)


@each
def test_constants_within_a_program(name):
    """XLA rewrites products of constants, which must not make 0 * inf of them."""
    for fill in (0.0, 1e-30, 1e30):
        w = np.full((2, 2), fill, np.float32)
        value = jax.jit(lambda fill=fill: PENALTIES[name](jnp.full((2, 2), fill)))()
        np.testing.assert_allclose(value, getattr(oracles, name)(w)[0], rtol=1e-6)
    assert PENALTIES[name](jnp.zeros((0, 3))) == 0


@each
def test_derivatives_of_second_order_and_forward(name):
    w = normal(3, 2) * np.float32([0, 1])
    penalty = PENALTIES[name]
    hessian = jax.jit(jax.hessian(penalty))
    curvature = np.asarray(hessian(w)).reshape(6, 6)
    assert np.isfinite(curvature).all() and np.isfinite(hessian(np.zeros_like(w))).all()
    step = np.float32(1e-3) * normal(3, 2, seed=1) * np.float32([0, 1])
    slope = jax.jit(jax.grad(penalty))
    change = (np.asarray(slope(w + step)) - np.asarray(slope(w - step))) / 2
    np.testing.assert_allclose(curvature @ step.ravel(), change.ravel(), atol=2e-6)
    tangent = jax.jit(lambda w, step: jax.jvp(penalty, (w,), (step,))[1])(w, step)
    np.testing.assert_allclose(tangent, np.sum(np.asarray(slope(w)) * step), rtol=1e-5)


@each
def test_leaves_that_take_part(name):
    penalty = PENALTIES[name]
    params = {"a": layer(), "b": layer(1), "step": jnp.arange(3), "nothing": {}}
    total, *parts = (penalty(params, where=where) for where in (None, "a/*", "b/*"))
    np.testing.assert_allclose(total, parts[0] + parts[1], rtol=1e-6)
    assert parts[0] == penalty(params["a"]["kernel"])
    assert penalty(params, where=lambda path, leaf: path == "b/bias") == penalty(params["b"]["bias"])
    slopes = jax.jit(jax.grad(penalty, allow_int=True))(params)
    assert not slopes["a"]["bias"].any() and slopes["a"]["kernel"].any()
    assert penalty({}) == 0 and penalty({"bias": jnp.ones(3)}) == 0
    frozen = jax.grad(penalty)(FrozenDict(layer()))
    assert isinstance(frozen, FrozenDict)


@each
def test_ways_to_run(name):
    penalty = PENALTIES[name]
    batch = normal(5, 4, 3)
    loop = [jax.value_and_grad(penalty)({"w": w}) for w in batch]
    chex.clear_trace_counter()
    jitted = jax.jit(chex.assert_max_traces(lambda p: jax.value_and_grad(penalty)(p), n=1))
    chex.assert_trees_all_close([jitted({"w": w}) for w in batch], loop, rtol=1e-6)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *loop)
    chex.assert_trees_all_close(jax.vmap(jax.value_and_grad(penalty))({"w": batch}), stacked, rtol=1e-6, atol=1e-7)


@each
def test_nan_shows(name):
    for w in (jnp.array([[math.nan, 1.0], [1.0, 1.0]]), jnp.array([[1.0, 1.0], [math.nan, 0.0]])):
        assert jnp.isnan(PENALTIES[name](w))


@each
def test_errors_name_the_leaf(name):
    with pytest.raises(ValueError, match="pattern 'Conv.*' matches no leaf"):
        PENALTIES[name](layer(), where="Conv*")
    with pytest.raises(TypeError, match="'w' is 'relu'"):
        PENALTIES[name]({"w": "relu"})
