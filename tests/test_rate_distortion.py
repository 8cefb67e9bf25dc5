"""Rounding by error and bits together: as an oracle does it, never worse than plain rounding, and steps found."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles_classes as oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxprune
from jaxprune.quantization import rate_distortion as rd


def laplacian(*shape, seed=0):
    return np.random.default_rng(seed).laplace(size=shape).astype(np.float32)


PARAMS = {"a": jnp.asarray(laplacian(60, 50)), "b": jnp.ones(4), "c": jnp.asarray(3 * laplacian(7, 30, seed=1))}
ARRAYS = [np.asarray(PARAMS[name], float) for name in "ac"]
rounded = jax.jit(rd.round_to, static_argnames="scope")


@pytest.mark.parametrize("scope", ["global", "leaf"])
@given(st.floats(0.2, 4), st.floats(0, 0.5))
def test_codes_are_those_of_the_oracle(scope, step, penalty):
    step, penalty = float(np.float32(step)), float(np.float32(penalty))
    found = rd.quantize(PARAMS, step, penalty, scope=scope)
    expected = oracles.rate_distortion(ARRAYS, step, penalty, scope)
    for name, codes in zip("ac", expected, strict=True):
        # A weight halfway may go either way, and with it the shares that decide others.
        assert (np.asarray(found[name].codes) != codes).mean() < 0.002


@given(st.floats(0.2, 4), st.floats(0, 2))
def test_never_worse_than_plain_rounding(step, penalty):
    plain, chosen = (
        oracles.objective(ARRAYS, [np.asarray(found[name].codes, int) for name in "ac"], step, penalty)
        for found in (rd.quantize(PARAMS, step), rd.quantize(PARAMS, step, penalty, scope="global"))
    )
    assert chosen <= plain * (1 + 1e-5)


def test_a_penalty_pays():
    step = float(rd.step_for(PARAMS, error=0.06))
    shrunk = float(rd.step_for(PARAMS, error=0.06, penalty=0.15))
    assert shrunk < step
    bits = []
    for s, penalty in ((step, 0.0), (shrunk, 0.15)):
        codes = [np.asarray(rd.quantize(PARAMS, s, penalty)[name].codes, int) for name in "ac"]
        bits.append(sum(oracles.bits_of([np.abs(c) for c in codes])[np.abs(c)].sum() for c in codes))
    assert bits[1] < 0.98 * bits[0]


@pytest.mark.parametrize("penalty", [0.0, 0.2])
def test_stored_and_rounded_agree(penalty):
    found = rd.quantize(PARAMS, 0.3, penalty)
    assert found["b"] is PARAMS["b"] and found["a"].codes.dtype == jnp.int8 and found["a"].scale.shape == (1, 1)
    back = rd.round_to(PARAMS, 0.3, penalty)
    chex.assert_trees_all_equal(jaxprune.dequantize(found), back)
    chex.assert_trees_all_equal(rounded(PARAMS, 0.3, penalty), back)
    chex.assert_trees_all_equal_shapes_and_dtypes(back, PARAMS)


def test_no_penalty_is_the_nearest_multiple():
    back = rd.round_to(PARAMS["a"], 0.25)
    np.testing.assert_array_equal(back, np.rint(np.asarray(PARAMS["a"]) / 0.25) * np.float32(0.25))
    np.testing.assert_array_equal(rd.round_to(jnp.array([0.5, -0.5, 1.5, -2.5, 0.75]), 1.0), [0, 0, 1, -2, 1])


def test_many_settings_at_once_are_as_one_by_one():
    steps, penalties = jnp.array([0.2, 0.5, 1.0]), jnp.array([0.0, 0.1, 0.3])
    together = jax.vmap(partial(rd.round_to, PARAMS))(steps, penalties)
    singles = [rd.round_to(PARAMS, step, penalty) for step, penalty in zip(steps, penalties, strict=True)]
    for name in "ac":
        np.testing.assert_array_equal(together[name], np.stack([single[name] for single in singles]))


def test_zeros_stay_and_halves_are_rounded_once(dtype=jnp.bfloat16):
    w = jnp.asarray(laplacian(20, 30) * (np.arange(30) % 3 > 0), dtype)
    back = rd.round_to({"w": w}, {"w": 0.3}, 0.1)["w"]
    assert back.dtype == dtype and not np.signbit(np.asarray(back)[np.asarray(back) == 0]).any()
    np.testing.assert_array_equal(back[:, ::3], 0)
    wide = rd.round_to(w.astype(jnp.float32), 0.3, 0.1)
    np.testing.assert_array_equal(back, wide.astype(dtype))


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_the_step_makes_the_error_wanted(penalty):
    step = rd.step_for(PARAMS, error=0.02, penalty=penalty)
    back = rd.round_to(PARAMS, step, penalty)
    error = sum(np.square(np.asarray(back[n], float) - PARAMS[n]).sum() for n in "ac")
    np.testing.assert_allclose(error / sum(np.square(a).sum() for a in ARRAYS), 0.02, rtol=5e-3)


def test_the_step_makes_the_entropy_wanted(scope="leaf"):
    step = rd.step_for(PARAMS, bits=2.5, scope=scope)
    sizes = [np.abs(np.asarray(leaf.codes, int)) for leaf in (rd.quantize(PARAMS, step)[name] for name in "ac")]
    groups = [sizes] if scope == "global" else [[s] for s in sizes]
    bits = sum(oracles.bits_of(group)[s].sum() for group in groups for s in group) / sum(s.size for s in sizes)
    # With the sign as one bit of every code that is not 0.
    np.testing.assert_allclose(bits, 2.5, rtol=5e-3)


def test_edges():
    assert rd.round_to({}, 1.0) == {} and float(rd.step_for({}, error=0.1)) == 1
    assert float(rd.step_for(jnp.zeros(5), error=0.1)) == 1
    chex.assert_shape(rd.round_to(jnp.zeros((0, 3)), 1.0, 0.1), (0, 3))
    assert rd.quantize(jnp.array([0.0, 200.0]), 1.0).codes.dtype == jnp.int16
    back = jax.jit(rd.round_to)(jnp.array([1.0, jnp.nan, 0.2]), 0.5, 0.0)
    np.testing.assert_array_equal(back, [1, np.nan, 0])


def test_one_trace():
    fn = jax.jit(chex.assert_max_traces(rd.round_to, 1))
    for step, penalty in ((0.1, 0.0), (0.2, 0.1), (0.3, 0.2)):
        fn(PARAMS, step, penalty)


def test_errors_name_the_leaf_and_the_value():
    bad = {"a": {"kernel": jnp.array([[1.0, jnp.inf]])}}
    for call in (lambda: rd.quantize(bad, 0.1), lambda: rd.round_to(bad, 0.1), lambda: rd.step_for(bad, error=0.1)):
        with pytest.raises(ValueError, match="'a/kernel' holds NaN or infinity"):
            call()
    with pytest.raises(ValueError, match="scope must be .* got 'all'"):
        rd.quantize(PARAMS, 0.1, scope="all")
    with pytest.raises(ValueError, match="penalty must be in"):
        rd.round_to(PARAMS, 0.1, -0.1)
    with pytest.raises(ValueError, match="the array itself.* codes up to 100000"):
        rd.quantize(jnp.array([1e5]), 1.0)
    with pytest.raises(TypeError, match="concrete"):
        jax.jit(rd.quantize)(PARAMS, 0.1)
    with pytest.raises(TypeError, match="either error or bits"):
        rd.step_for(PARAMS)
    with pytest.raises(ValueError, match="bits must be in"):
        rd.step_for(PARAMS, bits=11)
