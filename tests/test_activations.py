"""Activations: the learned clip level against the paper's equations, and observed ranges."""

import chex
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import oracles_training
import pytest
from flax import serialization
from hypothesis import given
from hypothesis import strategies as st

import jaxprune as jp
from jaxprune.training.activation_ranges import Range, clip_activations, init_range, observe, range_qparams

NAN, INF = jnp.nan, jnp.inf
ASYMMETRIC = jp.QuantSpec(symmetric=False)


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32).astype(dtype)


# ---------------------------------------------------------------------------------------------------------------------
# PACT

_clip = jax.jit(clip_activations)


@given(
    x=hnp.arrays(np.float32, (3, 4), elements=st.floats(-20, 20, width=32, allow_subnormal=False)),
    alpha=st.floats(2.0**-10, 20, width=32),
    bits=st.integers(1, 16),
)
def test_clipped_values_equal_the_formula(x, alpha, bits):
    result = _clip(x, np.float32(alpha), np.float32(bits))
    assert oracles.bits_equal(result, oracles_training.pact(x, alpha, bits) + np.float32(0))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("alpha", [2.0, 0.0, -1.0])
def test_gradients_of_equation_3(alpha, dtype):
    x = jnp.array([-3, -0.5, -0.0, 0, 0.7, 1.9, 2, 2.1, 9, INF, -INF, NAN], dtype)
    cotangent = normal(12, dtype=dtype)
    out, pull = jax.vjp(lambda x, alpha: clip_activations(x, alpha, 4), x, jnp.float32(alpha))
    by_x, by_alpha = pull(cotangent)
    wide = np.float32(x)
    level = max(alpha, float(np.finfo(np.float32).tiny))
    np.testing.assert_array_equal(np.float32(by_x), np.where((wide >= 0) & (wide < level), np.float32(cotangent), 0))
    assert by_x.dtype == dtype and by_alpha.dtype == jnp.float32
    np.testing.assert_allclose(
        by_alpha, np.float32(cotangent)[wide >= level].astype(np.float64).sum(), rtol=1e-6, atol=1e-6
    )
    expected = oracles_training.pact(np.where(np.isnan(wide), 0, wide), alpha, 4).astype(x.dtype)
    assert oracles.bits_equal(out, jnp.where(jnp.isnan(x), jnp.nan, expected + 0).astype(dtype))


def test_one_level_a_channel_and_many_widths():
    x, alpha = normal(5, 3), jnp.array([0.5, 1.0, -2.0])
    widths = np.array([2, 4, 8], np.float32)
    run = jax.jit(jax.vmap(chex.assert_max_traces(lambda b: clip_activations(x, alpha, b), n=1)))
    for out, bits in zip(run(widths), (2, 4, 8), strict=True):
        for c in range(3):
            expected = oracles_training.pact(np.asarray(x)[:, c], float(alpha[c]), bits) + np.float32(0)
            assert oracles.bits_equal(out[:, c], expected)
    by_alpha = jax.grad(lambda alpha: clip_activations(x, alpha, 4).sum())(alpha)
    np.testing.assert_array_equal(by_alpha, (np.asarray(x) >= np.maximum(alpha, 1e-37)).sum(0))


def test_a_level_grows_from_below_zero():
    x, alpha, optimizer = jnp.abs(normal(40)), jnp.float32(-0.02), optax.adam(0.02)
    state = optimizer.init(alpha)

    @jax.jit
    def train(alpha, state):
        grad = jax.grad(lambda alpha: jnp.mean((clip_activations(x, alpha, 4) - x) ** 2))(alpha)
        updates, state = optimizer.update(grad, state)
        return optax.apply_updates(alpha, updates), state

    for _ in range(100):
        alpha, state = train(alpha, state)
    assert alpha > 1


def test_errors_of_the_clip_level():
    x = normal(5, 3)
    with pytest.raises(ValueError, match=r"bits must be in \[1, 16\], got 0"):
        clip_activations(x, 1.0, 0)
    with pytest.raises(ValueError, match=r"alpha has shape \(5,\), which does not broadcast to the activations"):
        clip_activations(x, jnp.ones(5), 4)
    with pytest.raises(TypeError, match="x must hold floating-point numbers"):
        clip_activations(jnp.arange(3), 1.0, 4)
    with pytest.raises(TypeError, match="alpha must hold floating-point numbers"):
        clip_activations(x, 1, 4)
    assert jnp.isnan(clip_activations(x, NAN, 4)).all()


# ---------------------------------------------------------------------------------------------------------------------
# Ranges

batches = hnp.arrays(
    np.float32,
    (4, 6),
    elements=st.floats(-100, 100, width=32, allow_subnormal=False) | st.sampled_from([np.nan, np.inf, -np.inf]),
)
_observe_all = jax.jit(
    lambda batches, decay: jax.lax.scan(lambda s, x: (observe(s, x, decay), None), init_range(), batches)[0]
)


@given(x=batches, empty=st.sets(st.integers(0, 3)), decay=st.floats(0, 1, width=32))
def test_ranges_equal_the_formula(x, empty, decay):
    for i in empty:
        x[i] = np.nan
    scanned, looped = _observe_all(x, np.float32(decay)), init_range()
    for batch in x:
        looped = observe(looped, batch, np.float32(decay))
    chex.assert_trees_all_equal(scanned, looped)
    expected = oracles_training.running_range(x, decay)
    assert scanned.batches == np.isfinite(x).any(1).sum()
    np.testing.assert_array_equal(np.array([scanned.low, scanned.high]), [0, 0] if expected is None else expected)


def test_the_first_batch_sets_the_range():
    state = observe(init_range(), jnp.array([3.0, 5.0, NAN, INF]))
    assert (state.low, state.high, state.batches) == (3, 5, 1)
    state = observe(state, jnp.array([NAN, -INF]))
    assert (state.low, state.high, state.batches) == (3, 5, 1)
    state = observe(state, jnp.zeros((0, 4)))
    assert (state.low, state.high, state.batches) == (3, 5, 1)
    state = observe(init_range(), jnp.array([-3e38, 3e38]), 0.5)
    state = observe(state, jnp.array([3.4e38, 3.4e38]), 0.5)
    assert jnp.isfinite(state.low) and jnp.isfinite(state.high)


def test_ranges_of_channels():
    x = normal(7, 3, dtype=jnp.bfloat16).at[:, 1].set(jnp.nan)
    for shape, batch in (((3,), x), ((3, 1, 1), x.T.reshape(3, 7, 1)), ((1, 3), x)):
        state = observe(observe(init_range(shape), batch), batch * 2, 0.5)
        assert all(leaf.shape == shape for leaf in state) and state.low.dtype == jnp.float32
        wide = np.float32(x)
        expected = np.where([True, False, True], 1.5 * wide.min(0), 0)
        np.testing.assert_array_equal(np.ravel(state.low), expected)
        np.testing.assert_array_equal(np.ravel(state.batches), [2, 0, 2])


def test_ranges_are_plain_state():
    state = init_range((3,))
    assert not any(leaf.weak_type for leaf in state)
    after = jax.jit(observe)(state, normal(5, 3))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    again = serialization.msgpack_restore(serialization.msgpack_serialize(serialization.to_state_dict(after)))
    chex.assert_trees_all_equal(serialization.from_state_dict(state, again), after)
    decays = jnp.array([0.0, 0.5, 1.0])
    mapped = jax.vmap(lambda d: observe(after, normal(5, 3, seed=1), d))(decays)
    for i, decay in enumerate(decays):
        alone = observe(after, normal(5, 3, seed=1), decay)
        chex.assert_trees_all_equal(jax.tree.map(lambda leaf, i=i: leaf[i], mapped), alone)
    assert (jax.grad(lambda x: observe(after, x).high.sum())(normal(5, 3)) == 0).all()


@pytest.mark.parametrize("spec", [pytest.param(jp.QuantSpec(), marks=pytest.mark.slow), ASYMMETRIC])
def test_an_observed_range_quantizes_as_the_full_range(spec):
    x = normal(6, 3) + 0.5
    state = observe(init_range(), x)
    for bits in (2, 8):
        qparams = range_qparams(state, bits, spec=spec)
        assert oracles.bits_equal(jp.fake_quant(x, bits, qparams=qparams, spec=spec), jp.fake_quant(x, bits, spec=spec))
    channels = range_qparams(observe(init_range((3,)), x), 4, spec=spec)
    per_channel = jp.QuantSpec(symmetric=spec.symmetric, axis=-1)
    expected = jp.fake_quant(x, 4, spec=per_channel)
    assert oracles.bits_equal(jp.fake_quant(x, 4, qparams=channels, spec=per_channel), expected)
    widths = jax.vmap(lambda b: range_qparams(state, b, spec=spec))(jnp.array([2.0, 8.0]))
    np.testing.assert_array_equal(widths.scale[1], range_qparams(state, 8, spec=spec).scale)


def test_ranges_that_hold_no_zero_are_widened_and_empty_ones_give_zeros():
    state = Range(jnp.float32(1), jnp.float32(2), jnp.int32(1))
    qparams = range_qparams(state, 8, spec=ASYMMETRIC)
    assert qparams.scale == np.float32(2) / np.float32(255) and qparams.zero_point == 0
    zeros = jp.fake_quant(normal(4, 3), 8, qparams=range_qparams(init_range(), 8))
    assert oracles.bits_equal(zeros, np.zeros((4, 3), np.float32))


def test_errors_of_ranges():
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\], got 1.5"):
        observe(init_range(), jnp.ones(3), 1.5)
    with pytest.raises(ValueError, match=r"the range has shape \(2,\), which does not broadcast to the batch \(4, 3\)"):
        observe(init_range((2,)), jnp.ones((4, 3)))
    with pytest.raises(TypeError, match="x must hold floating-point numbers"):
        observe(init_range(), jnp.arange(3))
    with pytest.raises(ValueError, match="no blocks, got block_size 4"):
        range_qparams(init_range(), 8, spec=jp.QuantSpec(block_size=4))
    with pytest.raises(ValueError, match=r"bits must be in \[1, 16\], got 17"):
        range_qparams(init_range(), 17)
