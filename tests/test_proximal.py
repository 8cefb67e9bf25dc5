"""Proximal steps: against the NumPy operators, exact zeros in every dtype, optima, and life inside optax."""

import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles_training as oracles
import pytest
import strategies
from flax import serialization
from hypothesis import given
from hypothesis import strategies as st

from jaxprune import training

group_soft_threshold = partial(training.soft_threshold, units=True)
STEPS = {"soft_threshold": training.soft_threshold, "group_soft_threshold": group_soft_threshold}
each = pytest.mark.parametrize("name", STEPS)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def params(dtype=jnp.float32):
    return {
        "a": {"kernel": jnp.asarray(normal(6, 4), dtype), "bias": jnp.asarray(normal(4), dtype)},
        "n": jnp.arange(2),
    }


def updates_of(tree, seed=5):
    return jax.tree.map(lambda p: jnp.asarray(normal(*p.shape, seed=seed) / 8, p.dtype), tree)


def take(optimizer, grads, state, p):
    updates, state = optimizer.update(grads, state, p)
    return optax.apply_updates(p, updates), state


@jax.jit
def both(p, u, strength):
    """The weights after each of the two steps, and their updates."""
    moves = [step(strength).update(u, optax.EmptyState(), p)[0] for step in STEPS.values()]
    return [optax.apply_updates(p, move) for move in moves], moves


@given(data=st.data(), strength=st.sampled_from([0.0, 1e-3, 0.5, 2.0, 1e30]))
def test_weights_equal_the_operator(data, strength):
    p, u = (data.draw(strategies.float_arrays(shape=st.just((4, 3)), special=False)) for _ in range(2))
    wide = jnp.promote_types(p.dtype, u.dtype)
    x = np.float32(p) + np.float32(u)
    for name, new, move in zip(STEPS, *jax.tree.map(np.asarray, both(p, u, np.float32(strength))), strict=True):
        expected = getattr(oracles, name)(x, float(np.float32(strength)))
        assert new.dtype == p.dtype and move.dtype == wide
        if name == "soft_threshold":
            zero = np.asarray(new)[np.abs(x) <= np.float32(strength)]
            assert not zero.any() and not np.signbit(np.float32(zero)).any()
        # The update, and then the sum, round in their dtypes.
        eps = float(jnp.finfo(wide).eps) * (np.abs(expected) + np.abs(np.float64(p)))
        eps += float(jnp.finfo(p.dtype).eps) * np.abs(expected) + 1e-6 * np.abs(x).max()
        fits = np.abs(x) < 0.9 * float(jnp.finfo(p.dtype).max)
        assert (np.abs(np.float64(new) - expected) <= eps + 1e-12)[fits].all()


@each
@pytest.mark.parametrize(
    "dtype, narrow",
    [
        pytest.param(dtype, narrow, marks=[] if i % 2 == narrow else pytest.mark.slow)
        for i, dtype in enumerate(strategies.DTYPES)
        for narrow in (False, True)
    ],
)
def test_zeros_are_exact_in_every_dtype(name, dtype, narrow):
    p = jnp.asarray(normal(64, 8), dtype)
    u = jnp.asarray(normal(64, 8, seed=1), jnp.bfloat16 if narrow else jnp.float32)
    strength = 1.0 if name == "soft_threshold" else 1.41
    optimizer = STEPS[name](strength)
    move, _ = optimizer.update(u, optimizer.init(p), p)
    new = optax.apply_updates(p, move)
    zero = getattr(oracles, name)(np.float32(p) + np.float32(u), strength) == 0
    assert 0.1 < zero.mean() < 0.9
    assert (np.asarray(new)[zero] == 0).all() and not np.signbit(np.float32(new))[zero].any()
    assert (np.asarray(new)[~zero] != 0).mean() > 0.95  # some are lost where the update has 8 bits
    assert move.dtype == (jnp.promote_types(dtype, u.dtype))


def test_lasso_of_an_orthogonal_design():
    """ISTA ends at the closed form: the soft threshold of the least squares solution."""
    n, penalty, rate = 32, 0.3, 0.4
    x = np.linalg.qr(normal(n, 8))[0] * math.sqrt(n)  # x^T x / n is the identity
    y = normal(n, 3, seed=1) * 2

    def fit(step):
        optimizer = optax.chain(optax.sgd(rate), step(rate * penalty))

        def train(carry, _):
            w, state = carry
            grads = jax.grad(lambda w: jnp.sum((x @ w - y) ** 2) / (2 * n))(w)
            return take(optimizer, grads, state, w), None

        start = jnp.ones((8, 3))
        return jax.lax.scan(train, (start, optimizer.init(start)), length=100)[0][0]

    least_squares = np.float64(x).T @ y / n
    for name, step in STEPS.items():
        w, expected = fit(step), getattr(oracles, name)(least_squares, penalty)
        assert 0 < (expected == 0).mean() < 1, name
        np.testing.assert_array_equal(w == 0, expected == 0)
        np.testing.assert_allclose(w, expected, atol=2e-6)


@each
def test_kept_dtypes_and_leaves(name):
    tree = params()
    updates = updates_of(tree)
    optimizer = STEPS[name](0.1)
    new, state = optimizer.update(updates, optimizer.init(tree), tree)
    assert jax.tree.structure(new) == jax.tree.structure(tree) and not jax.tree.leaves(state)
    assert new["a"]["bias"] is updates["a"]["bias"] and new["n"] is updates["n"]
    chosen = STEPS[name](0.1, where=lambda path, leaf: path == "a/bias")
    new, _ = chosen.update(updates, state, tree)
    assert new["a"]["kernel"] is updates["a"]["kernel"] and new["a"]["bias"] is not updates["a"]["bias"]
    assert optimizer.update({}, state, {}) == ({}, state)
    float0 = dict(updates, n=np.zeros(2, jax.dtypes.float0))
    assert optimizer.update(float0, state, tree)[0]["n"] is float0["n"]


@each
def test_ways_to_run(name):
    """Eager, jit, scan and vmap over strengths give the same weights, by one trace for all strengths."""
    tree, strengths = params(), jnp.array([0.01, 0.1, 0.3])

    def train(strength, steps=3):
        optimizer = optax.chain(optax.sgd(0.1, momentum=0.9), STEPS[name](strength))
        p, state = tree["a"], optimizer.init(tree["a"])
        for i in range(steps):
            p, state = take(optimizer, updates_of(p, seed=i), state, p)
        return p

    eager = [train(s) for s in strengths]
    chex.clear_trace_counter()
    jitted = jax.jit(chex.assert_max_traces(lambda s: train(s), n=1))
    chex.assert_trees_all_close([jitted(s) for s in strengths], eager, rtol=1e-5, atol=1e-7)
    mapped = jax.vmap(train)(strengths)
    for i, expected in enumerate(eager):
        one = jax.tree.map(lambda x, i=i: x[i], mapped)
        chex.assert_trees_all_close(one, expected, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(one["kernel"] == 0, expected["kernel"] == 0)
    assert (eager[2]["kernel"] == 0).any()


def test_strengths():
    tree = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    zero = jax.tree.map(jnp.zeros_like, tree)

    def result(strength):
        optimizer = training.soft_threshold(strength)
        new, state = take(optimizer, zero, optimizer.init(tree), tree)
        return float(new["a"][0, 0]), float(new["b"][0, 0]), state

    assert result({"a": 0.25, "b": 2.0})[:2] == (0.75, 0)
    assert result(0.0)[:2] == (1, 1) and result(math.inf)[:2] == (0, 0)
    np.testing.assert_array_equal(jax.jit(lambda s: result_of(s))(-1.0), 1)  # traced ones below 0 count as 0
    *_, state = result(lambda count: jnp.where(count == 0, 0.25, 2.0))
    assert state.count == 1 and state.count.dtype == jnp.int32 and not state.count.weak_type
    optimizer = training.soft_threshold(lambda count: {"a": jnp.where(count == 0, 0.25, 2.0), "b": 0.5})
    once, state = take(optimizer, zero, optimizer.init(tree), tree)
    twice, state = take(optimizer, zero, state, once)
    assert (once["a"][0, 0], once["b"][0, 0]) == (0.75, 0.5) and (twice["a"][0, 0], twice["b"][0, 0]) == (0, 0)
    restored = serialization.from_bytes(optimizer.init(tree), serialization.to_bytes(state))
    chex.assert_trees_all_equal(restored, state)


def result_of(strength):
    return training.soft_threshold(strength).update(jnp.zeros(2), optax.EmptyState(), jnp.ones(2))[0] + 1


def test_units_of_any_magnitude():
    p = jnp.array([[3e30, 3e-30, 0.0, 3e-30], [-4e30, 4e-30, 0.0, 4e-30]])
    optimizer = group_soft_threshold(1e-30)
    new, _ = take(optimizer, jnp.zeros_like(p), (), p)
    expected = [3e30, 3e-30 * (1 - math.sqrt(2) / 5), 0, 3e-30 * (1 - math.sqrt(2) / 5)]
    np.testing.assert_allclose(new[0], expected, rtol=1e-6)
    new, _ = take(group_soft_threshold(5e-30), jnp.zeros_like(p), (), p)
    np.testing.assert_array_equal(new, p * jnp.array([1, 0, 0, 0]))
    new, _ = take(group_soft_threshold(0.0), jnp.zeros_like(p), (), p)
    np.testing.assert_array_equal(new, p)


def test_nan_stays():
    p = jnp.array([[math.nan, 0.1], [0.1, 0.1]])
    new, _ = take(training.soft_threshold(0.5), jnp.zeros_like(p), (), p)
    np.testing.assert_array_equal(new, [[math.nan, 0], [0, 0]])
    new, _ = take(group_soft_threshold(0.5), jnp.zeros_like(p), (), p)
    np.testing.assert_array_equal(new, [[math.nan, 0], [math.nan, 0]])


# ---------------------------------------------------------------------------------------------------------------------
# Inside optax


def zeros_of(optimizer, tree, steps, dtype=jnp.float32):
    """The kernel after some steps, each of which must keep the dtypes of parameters and state."""
    state = optimizer.init(tree)
    kinds = jax.tree.map(lambda x: (x.shape, x.dtype), (tree, state))

    @jax.jit
    def step(tree, state, i):
        grads = jax.tree.map(lambda p: jnp.sin(9 * p.astype(jnp.float32) + i).astype(dtype) / 8, tree)
        return take(optimizer, grads, state, tree)

    for i in range(steps):
        tree, state = step(tree, state, np.float32(i))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), (tree, state)) == kinds
    assert step._cache_size() == 1
    return tree, state


@each
def test_masked_and_multi_transform(name):
    tree = {"a": params()["a"], "b": params()["a"]}
    labels = {"a": "sparse", "b": {"kernel": "dense", "bias": "dense"}}
    sparse = optax.chain(optax.adam(0.1), STEPS[name]({"a": 0.3, "b": 0.1}))
    new, _ = zeros_of(optax.multi_transform({"sparse": sparse, "dense": optax.sgd(0.1)}, labels), tree, 3)
    assert (new["a"]["kernel"] == 0).any() and not (new["b"]["kernel"] == 0).any()
    mask = {"a": False, "b": True}
    new, _ = zeros_of(optax.chain(optax.sgd(0.1), optax.masked(STEPS[name](0.3), mask)), tree, 3)
    assert (new["b"]["kernel"] == 0).any() and not (new["a"]["kernel"] == 0).any()
    nothing = optax.masked(STEPS[name](0.3), jax.tree.map(lambda _: False, tree))
    zeros_of(optax.chain(optax.sgd(0.1), nothing), tree, 1)


@each
def test_multi_steps_of_bfloat16(name):
    tree = params(jnp.bfloat16)["a"]
    optimizer = optax.MultiSteps(optax.chain(optax.sgd(0.1), STEPS[name](lambda count: 0.25 * (count + 1))), 2)
    new, state = zeros_of(optimizer, tree, 4, jnp.bfloat16)
    assert (new["kernel"] == 0).any() and state.inner_opt_state[1].count == 2


@each
def test_injected_hyperparameters(name):
    tree = params()["a"]
    inject = optax.inject_hyperparams(STEPS[name], static_args=("where", "units"))
    optimizer = inject(strength=0.0)
    new, state = zeros_of(optimizer, tree, 2)
    assert not (new["kernel"] == 0).any()
    state.hyperparams["strength"] = jnp.asarray(math.inf)
    new, _ = take(optimizer, jax.tree.map(jnp.zeros_like, tree), state, tree)
    assert not new["kernel"].any() and new["bias"].all()
    new, state = zeros_of(inject(strength=optax.linear_schedule(0.0, 10.0, 2), where="kernel"), tree, 3)
    assert not new["kernel"].any() and state.hyperparams["strength"] == 10


@each
def test_extra_arguments_are_accepted(name):
    optimizer = STEPS[name](0.5)
    assert isinstance(optimizer, optax.GradientTransformationExtraArgs)
    optimizer.update(jnp.zeros((2, 2)), optimizer.init(None), jnp.ones((2, 2)), value=1.0)


@each
def test_errors(name):
    tree = params()
    optimizer = STEPS[name](0.1)
    with pytest.raises(ValueError, match="^soft_threshold needs the parameters"):
        optimizer.update(tree, optimizer.init(tree))
    with pytest.raises(ValueError, match=r"params and updates differ in structure: only in params: \['a/bias'\]"):
        optimizer.update({"a": {"kernel": tree["a"]["kernel"]}, "n": tree["n"]}, (), tree)
    with pytest.raises(ValueError, match="pattern 'Conv' matches no leaf"):
        STEPS[name](0.1, where="Conv").update(tree, (), tree)
    for strength in (-0.1, math.nan, lambda count: -0.1):
        optimizer = STEPS[name](strength)
        with pytest.raises(ValueError, match=r"strength must be in \[0, inf\]"):
            optimizer.update(tree, optimizer.init(tree), tree)
    with pytest.raises(ValueError, match="strength of 'a/kernel' must be in"):
        STEPS[name]({"a": -1.0}).update(tree, (), tree)
