"""Fine-tuning of shared weights: gradients summed by cluster, equal weights stay equal, zeros stay 0."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import oracles_training
import pytest
from flax import serialization

from jaxprune import dequantize
from jaxprune.quantization import codebook
from jaxprune.quantization.arrays.coded import CodebookArray
from jaxprune.training.weight_sharing import SharedState, shared_weights

slow = pytest.mark.slow
K = 16
SHAPE = (12, 10)


def normal(shape=SHAPE, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32).astype(dtype)


def pruned(seed=0, dtype=jnp.float32):
    """70% zeros."""
    w = np.array(normal(seed=seed)).ravel()
    w[np.argsort(np.abs(w))[: int(0.7 * w.size)]] = 0
    return jnp.asarray(w.reshape(SHAPE), dtype)


def shared(dtype=jnp.float32):
    return codebook.kmeans({"kernel": pruned(dtype=dtype), "bias": jnp.ones(10, dtype)}, K)


def loss(params, x, y):
    return jnp.mean((x @ params["kernel"].astype(jnp.float32) + params["bias"] - y) ** 2)


X, Y = normal((32, 12), 1), normal((32, 10), 2)
MOMENTUM = optax.chain(optax.add_decayed_weights(1e-2), optax.sgd(2e-3, momentum=0.9))
OPTIMIZERS = {"adamw": optax.adamw(1e-2, weight_decay=0.1), "momentum": MOMENTUM}


def train(optimizer, params, steps=50):
    """Each set of parameters on the way, from a jitted step that is traced once."""
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params, X, Y), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(steps):
        params, after = step(params, state)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
        state = after
        yield params


@pytest.mark.parametrize(
    "name, dtype",
    [
        ("adamw", jnp.bfloat16),
        pytest.param("adamw", jnp.float32, marks=slow),
        *(pytest.param("momentum", dtype, marks=slow) for dtype in (jnp.float32, jnp.bfloat16)),
    ],
)
def test_values_stay_shared_and_zeros_zero(name, dtype):
    """Case: 70% zeros, k = 16, fine-tuned for 50 steps."""
    params = shared(dtype)
    start = np.float32(params["kernel"])
    zeros = start == 0
    assert zeros.sum() == 84 and len(np.unique(start)) == K
    for after in train(shared_weights(OPTIMIZERS[name], K), params):
        kernel = np.float32(after["kernel"])
        assert after["kernel"].dtype == dtype
        assert oracles.bits_equal(kernel[zeros], np.zeros(84, np.float32))
        assert all(len(np.unique(kernel[start == value])) == 1 for value in np.unique(start))
    assert len(np.unique(kernel)) <= K and (kernel != start)[~zeros].all()
    assert loss(after, X, Y) < loss(params, X, Y)


def is_encoded(leaf):
    return isinstance(leaf, CodebookArray)


def centroids_of(encoded):
    return jax.tree.map(lambda leaf: leaf.centroids if is_encoded(leaf) else leaf, encoded, is_leaf=is_encoded)


def with_centroids(encoded, values):
    def put(leaf, value):
        return dataclasses.replace(leaf, centroids=value) if is_encoded(leaf) else value

    return jax.tree.map(put, encoded, values, is_leaf=is_encoded)


@pytest.mark.parametrize("name", ["adamw", pytest.param("momentum", marks=slow)])
def test_it_trains_as_the_centroids_themselves(name):
    """The same optimizer on the encoded tree: the loss decodes, the gradient is the sum over each cluster."""
    optimizer, params = OPTIMIZERS[name], shared()
    encoded = codebook.encode(params, K)
    trained = centroids_of(encoded)
    state = optimizer.init(trained)

    @jax.jit
    def step(trained, state):
        grads = jax.grad(lambda c: loss(dequantize(with_centroids(encoded, c)), X, Y))(trained)
        updates, state = optimizer.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state

    for after in train(shared_weights(optimizer, K), params, 10):
        trained, state = step(trained, state)
        decoded = dequantize(with_centroids(encoded, trained))
        chex.assert_trees_all_close(decoded, after, rtol=1e-4, atol=1e-6)
    assert trained["kernel"][0] == 0 and trained["bias"].shape == (10,)


@partial(jax.jit, static_argnums=0)
def once(optimizer, grads, params):
    """The first updates, in one program."""
    return optimizer.update(grads, optimizer.init(params), params)[0]


FEW = 5
PLACES = np.zeros((6, 5), int)  # which value stands where
PLACES[1, 2], PLACES[2] = 1, [0, 2, 2, 0, 2]
SMALL = {"kernel": jnp.array([0.0, -1.0, 2.0])[PLACES], "bias": jnp.ones(5)}
SMALL_GRADS = {
    "kernel": jnp.full((6, 5), 9.0).at[1, 2].set(4).at[2].set(jnp.array([9, 1, 2, 9, 0.5])),
    "bias": jnp.ones(5),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=slow)])
def test_the_gradient_of_a_centroid_is_the_sum_or_the_mean(dtype):
    params, grads = (jax.tree.map(lambda leaf: leaf.astype(dtype), leaves) for leaves in (SMALL, SMALL_GRADS))
    for average, expected in ((False, 3.5), (True, 3.5 / 3)):
        updates = once(shared_weights(optax.identity(), FEW, average=average), grads, params)
        expected = np.array([0, 4, expected], np.float32).astype(params["kernel"].dtype)
        np.testing.assert_array_equal(updates["kernel"], expected[PLACES])
        np.testing.assert_array_equal(updates["bias"], grads["bias"])
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)


def test_sums_are_float32_sums():
    grad = normal(seed=4)
    params = codebook.kmeans(normal(), K)
    optimizer = shared_weights(optax.identity(), K)
    state = jax.jit(optimizer.init)(params)
    updates, _ = jax.jit(optimizer.update)(jnp.asarray(grad, jnp.bfloat16), state, params)
    codes = np.asarray(state.shares[0].codes)
    wide = np.float32(jnp.asarray(grad, jnp.bfloat16))
    expected = oracles_training.sum_by_code(wide, codes, K)[codes]
    assert updates.dtype == jnp.float32
    np.testing.assert_allclose(updates, expected, rtol=1e-5, atol=1e-5)


def test_zeros_may_train():
    optimizer = shared_weights(optax.identity(), FEW, keep_zeros=False)
    updates = once(optimizer, SMALL_GRADS, SMALL)
    np.testing.assert_array_equal(updates["kernel"], np.array([9 * 26, 4, 3.5])[PLACES])


@pytest.mark.slow
def test_the_inner_optimizer_sees_centroids():
    """Its state is of k entries, norms count each shared value once, and extra arguments reach it."""
    seen = {}

    def inner_update(updates, state, params=None, *, value):
        seen.update(updates=updates, params=params, value=value)
        return updates, state

    optimizer = shared_weights(optax.GradientTransformationExtraArgs(optax.adam(1.0).init, inner_update), FEW)
    state = optimizer.init(SMALL)
    assert isinstance(state, SharedState) and state.inner[0].mu["kernel"].shape == (FEW,)
    assert state.inner[0].mu["kernel"].dtype == jnp.float32
    optimizer.update(SMALL_GRADS, state, SMALL, value=3.0)
    np.testing.assert_array_equal(seen["params"]["kernel"][:3], [0, -1, 2])
    np.testing.assert_array_equal(seen["updates"]["kernel"], [0, 4, 3.5, 0, 0])
    assert seen["value"] == 3 and seen["params"]["bias"] is SMALL["bias"]


def test_state_is_arrays_and_survives():
    params = shared()
    optimizer = shared_weights(optax.adam(1e-2), K)
    state = optimizer.init(params)
    assert all(isinstance(leaf, jax.Array) and not leaf.weak_type for leaf in jax.tree.leaves(state))
    packed = serialization.msgpack_serialize(serialization.to_state_dict(state))
    again = serialization.from_state_dict(optimizer.init(params), serialization.msgpack_restore(packed))
    chex.assert_trees_all_equal(again, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(optimizer.init, params), state)
    grads = jax.jit(jax.grad(loss))(params, X, Y)
    batch = jax.tree.map(lambda leaf: np.stack([leaf, -leaf]), grads)
    mapped, _ = jax.jit(jax.vmap(lambda g: optimizer.update(g, state, params)))(batch)
    alone, _ = jax.jit(optimizer.update)(grads, state, params)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[0], mapped), alone, rtol=1e-6)


def test_other_transformations_around_it():
    params = shared()
    grads = jax.jit(jax.grad(loss))(params, X, Y)
    masked = optax.masked(shared_weights(optax.sgd(0.1), K), {"kernel": True, "bias": False})
    updates = once(masked, grads, params)
    assert len(np.unique(updates["kernel"])) <= K
    np.testing.assert_array_equal(updates["bias"], grads["bias"])
    several = optax.MultiSteps(shared_weights(optax.sgd(0.1), K), 2)
    state, update = several.init(params), jax.jit(several.update)
    for _ in range(2):
        updates, state = update(grads, state, params)
    after = jax.tree.map(lambda w, u: np.asarray(w) + np.asarray(u), params, updates)
    assert len(np.unique(after["kernel"])) <= K and (after["bias"] != params["bias"]).all()
    nothing = shared_weights(optax.sgd(0.1), K)
    assert nothing.update({}, nothing.init({}), {})[0] == {}


def test_errors():
    optimizer = shared_weights(optax.sgd(0.1), K)
    with pytest.raises(ValueError, match="leaf 'kernel' has more than 16 distinct values; share them first"):
        optimizer.init({"kernel": normal(), "bias": jnp.ones(3)})
    state = optimizer.init(shared())
    with pytest.raises(ValueError, match="shared_weights needs the parameters"):
        optimizer.update(shared(), state)
