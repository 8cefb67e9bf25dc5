"""Learned step sizes against the paper's formulas, and training under bits that change and masks that hold."""

from typing import NamedTuple

import chex
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import oracles_training
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxprune as jp
from jaxprune.training.lsq import init_step_sizes, learned_step_size, step_qparams

SHAPE = (6, 4)
every_kind_and_a_narrow_float = pytest.mark.parametrize(
    ("signed", "narrow", "dtype"),
    [
        pytest.param(True, True, jnp.float32, marks=pytest.mark.slow),
        (True, False, jnp.float32),
        (False, True, jnp.float32),
        (True, True, jnp.bfloat16),
    ],
)


def normal(shape=SHAPE, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32).astype(dtype)


def at_the_ends(step, dtype=jnp.float32):
    """Weights on and next to the ends of all ranges, on halves, zeros of both signs and what is not finite."""
    multiples = [-8.5, -8, -7.5, -7, -4, -3.5, -3, -1.5, -1, -0.5, 0.5, 1.5, 3, 3.5, 7, 7.5, 15, 15.5, 16, 0.3]
    w = jnp.asarray(multiples, jnp.float32) * step
    return jnp.concatenate([w, jnp.array([0.0, -0.0, jnp.inf, -jnp.inf])]).reshape(SHAPE).astype(dtype)


def slopes(w, step, bits, cotangent, **spec):
    out, pull = jax.vjp(lambda w, step: learned_step_size(w, step, bits, **spec), w, step)
    return out, *pull(jnp.asarray(cotangent, w.dtype))


# ---------------------------------------------------------------------------------------------------------------------
# Values


@every_kind_and_a_narrow_float
def test_values_are_those_of_the_formula_and_of_the_plain_quantizers(signed, narrow, dtype):
    w = at_the_ends(0.25, dtype).at[0, 0].set(jnp.nan)
    steps = jnp.array([[0.25, 0.1, 0.3, 0.2]])
    spec = jp.QuantSpec(symmetric=signed and narrow)
    for bits in (2, 4, 8):
        result = learned_step_size(w, steps, bits, signed=signed, narrow=narrow)
        assert oracles.bits_equal(result, oracles_training.lsq(w, steps, bits, signed, narrow))
        qparams = step_qparams(w, steps, bits, signed=signed, narrow=narrow)
        assert oracles.bits_equal(result, jp.fake_quant(w, bits, qparams=qparams, spec=spec))
        if bits == 4:  # asymmetric codes of 8 bits have none for NaN
            assert oracles.bits_equal(result, jp.dequantize(jp.quantize(w, bits, qparams=qparams, spec=spec)))


weights = hnp.arrays(np.float32, SHAPE, elements=st.floats(-100, 100, width=32, allow_subnormal=False))
_learned = jax.jit(lambda w, step, bits: learned_step_size(w, step, bits))


@given(w=weights, step=st.floats(2.0**-10, 50, width=32), bits=st.integers(2, 16))
def test_any_weights(w, step, bits):
    assert oracles.bits_equal(_learned(w, step, np.float32(bits)), oracles_training.lsq(w, step, bits))
    assert oracles.bits_equal(_learned(-w, step, np.float32(bits)) + 0.0, 0.0 - _learned(w, step, np.float32(bits)))


def test_widths_are_traced_and_may_differ_by_leaf():
    params = {"a": {"kernel": normal()}, "b": {"kernel": normal(seed=1), "bias": jnp.ones(4)}}
    steps = jax.tree.map(lambda w: jnp.float32(0.1), params)
    run = jax.jit(jax.vmap(chex.assert_max_traces(lambda bits: learned_step_size(params, steps, bits), n=1)))
    widths = np.arange(2, 9, dtype=np.float32)
    swept = run({"a": widths, "b": widths[::-1]})
    for i, bits in enumerate(range(2, 9)):
        for name, width in (("a", bits), ("b", 10 - bits)):
            alone = oracles_training.lsq(params[name]["kernel"], 0.1, width)
            assert oracles.bits_equal(swept[name]["kernel"][i], alone)
    np.testing.assert_array_equal(swept["b"]["bias"], 1)
    low = jax.jit(lambda bits: learned_step_size(params["a"]["kernel"], 0.1, bits))(np.float32(0))  # clamped
    assert oracles.bits_equal(low, learned_step_size(params["a"]["kernel"], 0.1, 2))


@pytest.mark.parametrize(
    "step", [0.0, -1.0, 1e-40, *(pytest.param(s, marks=pytest.mark.slow) for s in (1e-38, 1e38, -np.inf)), np.inf]
)
def test_steps_that_are_no_steps_give_no_nan(step):
    w = at_the_ends(0.25)
    out, by_weight, by_step = slopes(w, jnp.float32(step), 4, jnp.ones(SHAPE))
    assert jnp.isfinite(out).all() and jnp.isfinite(by_step) and set(np.unique(by_weight)) <= {0, 1}
    assert not np.signbit(out[w == 0]).any()
    assert oracles.bits_equal(out, jp.fake_quant(w, 4, qparams=step_qparams(w, jnp.float32(step), 4)))


def test_a_step_grows_out_of_nothing():
    w, step, optimizer = normal(), jnp.float32(-0.01), optax.adam(0.01)
    state = optimizer.init(step)

    @jax.jit
    def train(step, state):
        grad = jax.grad(lambda step: jnp.mean((learned_step_size(w, step, 4) - w) ** 2))(step)
        updates, state = optimizer.update(grad, state)
        return optax.apply_updates(step, updates), state

    for _ in range(60):
        step, state = train(step, state)
    assert step > 0.1


def test_a_step_that_is_nan_does_not_hide():
    assert jnp.isnan(learned_step_size(normal(), jnp.float32(jnp.nan), 4)).all()


# ---------------------------------------------------------------------------------------------------------------------
# Gradients


@every_kind_and_a_narrow_float
def test_gradients_element_by_element(signed, narrow, dtype):
    w = at_the_ends(0.25, dtype).at[0, 1].set(jnp.nan)
    cotangent = normal(seed=3)
    for bits in (3, 4):
        _, by_weight, by_step = slopes(w, jnp.float32(0.25), bits, cotangent, signed=signed, narrow=narrow)
        assert by_weight.dtype == dtype and by_step.dtype == jnp.float32
        known = np.where(np.isnan(np.float32(w)), 0, np.float32(w))
        expected, terms = oracles_training.lsq_slopes(known, 0.25, bits, w.size, signed, narrow)
        seen = np.where(np.isnan(np.float32(w)), 0, np.float32(cotangent.astype(dtype)))
        np.testing.assert_array_equal(np.float32(by_weight), expected * seen)
        np.testing.assert_allclose(by_step, (terms * np.float64(seen)).sum(), rtol=2e-6)


def test_each_term_of_the_gradient_of_a_step():
    w = at_the_ends(0.25)
    _, terms = oracles_training.lsq_slopes(w, 0.25, 4, 1)
    single = jax.vmap(lambda w, step: learned_step_size(w, step, 4))  # a step for each weight: N is 1
    _, pull = jax.vjp(lambda step: single(w.ravel(), step), jnp.full(w.size, 0.25))
    np.testing.assert_allclose(pull(jnp.ones(w.size))[0], terms.ravel(), rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "batch_axes", "number"),
    [
        ((), None, 120),
        *(pytest.param(*rest, marks=pytest.mark.slow) for rest in [((6,), 0, 5), ((), (0, -2), 6)]),
        ((4, 1, 1), 0, 30),
    ],
)
def test_number_of_weights_that_share_a_step(shape, batch_axes, number):
    x, steps = normal((4, 5, 6)), jnp.full(shape, 0.25)
    _, _, by_step = slopes(x, steps, 3, jnp.ones(x.shape), batch_axes=batch_axes)
    _, terms = oracles_training.lsq_slopes(x, 0.25, 3, number)
    axes = tuple(i for i, n in enumerate((1,) * (3 - len(shape)) + shape) if n == 1)
    np.testing.assert_allclose(by_step, terms.sum(axes).reshape(shape), rtol=1e-5)


def test_a_batch_of_examples_is_as_one_array_with_a_batch_axis():
    x, step = jnp.abs(normal()), jnp.float32(0.1)
    batched = jax.grad(lambda s: learned_step_size(x, s, 4, signed=False, batch_axes=0).sum())(step)
    mapped = jax.grad(lambda s: jax.vmap(lambda x: learned_step_size(x, s, 4, signed=False))(x).sum())(step)
    np.testing.assert_allclose(batched, mapped, rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# First steps, and steps as parameters


@pytest.mark.parametrize(("axis", "shape"), [(None, ()), (-1, (1, 4)), (0, (6, 1)), ((0, 1), SHAPE)])
def test_first_steps(axis, shape):
    w = normal(dtype=jnp.bfloat16).at[0, 0].set(jnp.inf)
    steps = init_step_sizes(w, 4, axis=axis)
    wide, finite = np.abs(np.float64(w)), np.isfinite(np.float32(w))
    axes = tuple(i for i, n in enumerate((1,) * (2 - len(shape)) + shape) if n == 1)
    mean = np.where(finite, wide, 0).sum(axes) / np.maximum(finite.sum(axes), 1)
    assert steps.shape == shape and steps.dtype == jnp.float32
    np.testing.assert_allclose(steps, (2 * mean / np.sqrt(7)).reshape(shape), rtol=1e-6)
    assert init_step_sizes(jnp.zeros((0, 3)), 4, axis=axis if axis == -1 else None).sum() == 0


class Layer(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


def test_steps_are_ordinary_parameters():
    """Adam over {"params", "steps"}: other leaves have a step of 0 that stays 0, and all dtypes and shapes stay."""
    params = {"Dense": Layer(normal(), jnp.ones(4)), "step": jnp.arange(3.0)}
    steps = init_step_sizes(params, {"Dense": 3}, axis=-1)
    assert jax.tree.structure(steps) == jax.tree.structure(params)
    assert steps["Dense"].bias.shape == () and steps["Dense"].kernel.shape == (1, 4)
    trained = {"params": params, "steps": steps}
    optimizer = optax.adam(1e-2)
    state = optimizer.init(trained)
    x, y = normal((16, 6), 1), normal((16, 4), 2)

    @jax.jit
    def train(trained, state):
        def loss(trained):
            layer = learned_step_size(trained["params"], trained["steps"], 3)["Dense"]
            return jnp.mean((x @ layer.kernel + layer.bias - y) ** 2)

        value, grads = jax.value_and_grad(loss)(trained)
        updates, state = optimizer.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state, value

    before, values = trained, []
    for _ in range(30):
        trained, state, value = train(trained, state)
        values.append(float(value))
    chex.assert_trees_all_equal_shapes_and_dtypes(trained, before)
    assert values[-1] < values[0]
    assert (trained["steps"]["Dense"].kernel != steps["Dense"].kernel).all()
    assert trained["steps"]["Dense"].bias == 0 and trained["steps"]["step"] == 0
    out = learned_step_size(params, steps, 3)
    assert out["step"] is params["step"] and out["Dense"].bias is params["Dense"].bias


@pytest.mark.slow
def test_a_step_finds_the_least_squared_error():
    """Under a squared loss a learned step comes to rest near the best of a fine grid."""
    w, bits = normal((40, 50)), 3

    def error(step):
        return jnp.mean((learned_step_size(w, step, bits) - w) ** 2)

    grid = np.linspace(0.2, 1.2, 201, dtype=np.float32)
    best = grid[np.argmin(jax.vmap(error)(grid))]
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, 300))

    def train(carry, _):
        step, state = carry
        updates, state = optimizer.update(jax.grad(error)(step), state)
        return (optax.apply_updates(step, updates), state), None

    run = jax.jit(lambda first: jax.lax.scan(train, (first, optimizer.init(first)), None, 300)[0][0])
    for first in (init_step_sizes(w, bits), jnp.float32(1.2)):
        step = run(first)
        assert abs(step - best) < 0.05 * best
        assert error(step) < 1.01 * error(best)


def test_errors_name_the_leaf():
    params = {"a": {"kernel": normal(), "bias": jnp.ones(4)}}
    with pytest.raises(ValueError, match=r"bits must be in \[2, 16\], got 1"):
        learned_step_size(params, 0.1, 1)
    with pytest.raises(ValueError, match=r"bits must be in \[2, 16\], got 1"):
        init_step_sizes(params, 1)
    assert learned_step_size(params, 0.1, 1, signed=False)["a"]["kernel"].shape == SHAPE
    with pytest.raises(ValueError, match=r"step of 'a/kernel' has shape \(3,\), which does not broadcast to \(6, 4\)"):
        learned_step_size(params, {"a": jnp.ones(3)}, 4)
    with pytest.raises(ValueError, match="steps has no value for leaf 'a/kernel'"):
        learned_step_size(params, {"a": {"bias": 0.1}}, 4)
    with pytest.raises(TypeError, match="the step of 'a/kernel' is 1; steps are floating"):
        learned_step_size(params, {"a": {"kernel": 1}}, 4)
    with pytest.raises(ValueError, match=r"'a/kernel' has shape \(6, 4\) and no axis 2"):
        learned_step_size(params, 0.1, 4, batch_axes=2)
    with pytest.raises(ValueError, match=r"'a/kernel' has shape \(6, 4\) and no axis 2"):
        init_step_sizes(params, 4, axis=2)


# ---------------------------------------------------------------------------------------------------------------------
# Training with the plain quantizer


def test_bits_by_schedule_are_one_program():
    """8 bits to 2 in a scan; equal to a loop over static widths, each its own program."""
    w, x, y = normal(), normal((8, 6), 1), normal((8, 4), 2)
    schedule = optax.linear_schedule(8, 2, 3)

    def loss(w, bits):
        return jnp.mean((x @ jp.fake_quant(w, bits) - y) ** 2)

    @chex.assert_max_traces(n=1)
    def train(w, step):
        bits = schedule(step)
        return w - 0.1 * jax.grad(loss)(w, bits), jp.fake_quant(w, bits)

    _, quantized = jax.jit(lambda w: jax.lax.scan(train, w, jnp.arange(4)))(w)
    for step, bits in enumerate((8, 6, 4, 2)):
        expected = oracles.fake_quant_symmetric(np.asarray(w), bits)
        assert oracles.bits_equal(jp.fake_quant(w, bits), expected)
        np.testing.assert_allclose(quantized[step], expected, atol=1e-6)
        w = w - 0.1 * jax.grad(loss)(w, bits)


def test_pruned_and_quantized_places_stay_zero():
    """50% pruned, asymmetric 8-bit aware training, 20 steps: removed places are +0.0, latent and quantized."""
    spec = jp.QuantSpec(symmetric=False)
    x, y = normal((16, 6), 1), normal((16, 4), 2)
    params, masks = jp.prune({"kernel": normal(), "bias": jnp.ones(4)}, 0.5)
    optimizer = optax.adamw(1e-2, weight_decay=0.1)
    state = optimizer.init(params)

    @jax.jit
    def train(params, state):
        def loss(params):
            layer = jp.fake_quant(params, 8, spec=spec)
            return jnp.mean((x @ layer["kernel"] + layer["bias"] - y) ** 2)

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return jp.masks.apply_masks(optax.apply_updates(params, updates), masks), state

    removed = ~np.asarray(masks["kernel"])
    assert removed.sum() == 12 and oracles.bits_equal(
        jp.fake_quant(jnp.zeros((2, 2)), 8, spec=spec), np.zeros((2, 2), "f")
    )
    for _ in range(20):
        params, state = train(params, state)
        for kernel in (params["kernel"], jp.fake_quant(params, 8, spec=spec)["kernel"]):
            assert oracles.bits_equal(np.asarray(kernel)[removed], np.zeros(12, np.float32))
    assert (np.asarray(params["kernel"])[~removed] != 0).all()
