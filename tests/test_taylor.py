"""The first-order Taylor criterion of units, from activations and their gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles_training as oracles
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st

from jaxprune import saliency


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("normalize", [pytest.param(False, marks=pytest.mark.slow), True])
@given(st.data(), st.sampled_from([(4, 3), (2, 3, 5), (2, 2, 3, 2)]))
def test_scores_equal_the_oracle(normalize, data, shape):
    a, g = (data.draw(strategies.float_arrays(shape=shape, special=False)) for _ in range(2))
    scores = saliency.activation_taylor(a, g, normalize=normalize)
    expected = oracles.activation_taylor(a, g, normalize)
    largest = np.abs(np.float64(a) * np.float64(g)).max()  # what cancels within a sum limits its precision
    chex.assert_shape(scores, shape[-1:])
    assert scores.dtype == jnp.float32
    if normalize:
        norm = np.sqrt((oracles.activation_taylor(a, g) ** 2).sum())
        largest = largest / norm if norm else 0
    np.testing.assert_allclose(np.float64(scores), expected, rtol=2e-6, atol=1e-6 * largest)


def test_examples_add_up_and_positions_cancel():
    a = jnp.array([[[1.0, 1.0], [-1.0, 1.0]], [[2.0, 0.0], [-2.0, 2.0]]])  # (batch, positions, units)
    g = jnp.ones_like(a)
    np.testing.assert_array_equal(saliency.activation_taylor(a, g), [0, 1])
    np.testing.assert_array_equal(saliency.activation_taylor(a.reshape(4, 2), g.reshape(4, 2)), [1.5, 1])


def test_it_is_the_change_of_the_loss_to_first_order():
    x, w = normal(8, 5), normal(5, 4, seed=1)
    scale = np.float32([1e-3, 1, 1, 1])  # a unit so small that the loss is linear in it

    def losses(h):
        return jnp.sum(jnp.tanh(h), axis=-1)

    h = x @ w * scale
    scores = saliency.activation_taylor(h, jax.grad(lambda h: losses(h).sum())(h))
    change = np.abs(losses(jnp.asarray(h).at[:, 0].set(0)) - losses(h)).mean()
    np.testing.assert_allclose(scores[0], change, rtol=1e-3)


def test_norm_by_array():
    a = {"conv": normal(4, 3, 3, 5), "dense": normal(4, 6, seed=1) * 1e13, "idle": np.zeros((4, 2), np.float32)}
    g = jax.tree.map(lambda x: x * 1e-5, a)
    scores = saliency.activation_taylor(a, g, normalize=True)
    norms = jax.tree.map(jnp.linalg.norm, scores)
    np.testing.assert_allclose([norms["conv"], norms["dense"], norms["idle"]], [1, 1, 0], rtol=1e-6)
    plain = saliency.activation_taylor(a, g)
    for name in ("conv", "dense"):
        ratio = plain[name] / scores[name]
        np.testing.assert_allclose(ratio, np.full_like(ratio, ratio[0]), rtol=1e-6)


def test_trees_and_ways_to_run():
    a = {"a": (jnp.asarray(normal(4, 3, 5)), None), "b": jnp.asarray(normal(4, 5)), "ids": jnp.arange(4)}
    g = {"a": (jnp.ones((4, 3, 5)), None), "b": jnp.ones((4, 5)), "ids": np.zeros(4, jax.dtypes.float0)}
    scores = saliency.activation_taylor(a, g)
    assert jax.tree.structure(scores) == jax.tree.structure(a)
    assert scores["ids"].shape == () and scores["ids"] == 0
    chex.assert_trees_all_close(jax.jit(lambda a: saliency.activation_taylor(a, g))(a), scores, rtol=1e-6)
    x, y = normal(3, 4, 2, 5), normal(3, 4, 2, 5, seed=1)
    loop = jnp.stack([saliency.activation_taylor(*pair) for pair in zip(x, y, strict=True)])
    chex.assert_trees_all_close(jax.vmap(saliency.activation_taylor)(x, y), loop, rtol=1e-6)


def test_empty_arrays_score_zero():
    for shape in ((0, 3), (2, 0, 3), (0, 0, 3), (2, 0)):
        for normalize in (False, True):
            scores = saliency.activation_taylor(jnp.ones(shape), jnp.ones(shape), normalize=normalize)
            assert scores.shape == shape[-1:] and not scores.any()


def test_errors_name_the_array():
    x = normal(4, 3)
    with pytest.raises(ValueError, match=r"activations at 'a' have shape \(3,\); they need a batch"):
        saliency.activation_taylor({"a": x[0]}, {"a": x[0]})
    with pytest.raises(ValueError, match=r"grads at 'a' has shape \(3, 4\), that of activations is \(4, 3\)"):
        saliency.activation_taylor({"a": x}, {"a": x.T})
    with pytest.raises(ValueError, match=r"activations and grads differ.*only in grads: \['b'\]"):
        saliency.activation_taylor({"a": x}, {"a": x, "b": x})
    with pytest.raises(TypeError, match="'a' is 'relu'"):
        saliency.activation_taylor({"a": "relu"}, {"a": x})
