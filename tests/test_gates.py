"""Hard-concrete gates: distribution, expected number, masks, and learning with them."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles_training as oracles
import pytest
from flax.core import FrozenDict

import jaxprune as jp
from jaxprune.training import l0_gates

KEY = jax.random.key(0)
LOGITS = np.float32([-12.0, -4.0, -2.4, -1.5, -0.5, 0.0, 0.7, 2.0, 2.5, 4.0, 12.0])


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def params(dtype=jnp.float32):
    return {
        "a": {"kernel": jnp.asarray(normal(6, 4), dtype), "bias": jnp.asarray(normal(4), dtype)},
        "conv": jnp.asarray(normal(2, 2, 3, 4, seed=1), dtype),
        "key": KEY,
        "n": jnp.arange(2),
    }


def test_final_gates_equal_the_oracle():
    z = l0_gates.apply_gates(jnp.ones(LOGITS.shape), LOGITS)
    np.testing.assert_allclose(z, oracles.final_gate(LOGITS), atol=2e-7)
    np.testing.assert_array_equal(z == 0, oracles.final_gate(LOGITS) == 0)
    masks = l0_gates.gate_masks(jnp.ones(LOGITS.shape), LOGITS)
    np.testing.assert_array_equal(masks, oracles.final_gate(LOGITS) > 0)
    np.testing.assert_array_equal(masks, LOGITS > -math.log(11))


def test_random_gates_have_the_distribution():
    n = 20000
    z = l0_gates.apply_gates(jnp.ones((n, LOGITS.size)), jnp.broadcast_to(LOGITS, (n, LOGITS.size)), KEY)
    assert z.min() == 0 and z.max() == 1
    for value in (0.0, 0.1, 0.5, 0.9, 0.999):
        expected = oracles.gate_below(LOGITS, value)
        error = 5 * np.sqrt(expected * (1 - expected) / n) + 1e-4
        np.testing.assert_array_less(np.abs(np.mean(np.asarray(z) <= value, axis=0) - expected), error)
    columns = np.asarray(z)[:, 4:6]
    assert abs(np.corrcoef(columns[:, 0], columns[:, 1])[0, 1]) < 0.03


@pytest.mark.parametrize("units", [False, True])
def test_expected_number_is_the_mean_count(units):
    tree = {"conv": np.ones((2, 3, 4), np.float32), "bias": np.ones(4, np.float32)}
    log_alpha = l0_gates.init_gates(tree, 0.5, units=units)
    log_alpha["conv"] += normal(*log_alpha["conv"].shape, seed=3) * 2
    expected = l0_gates.expected_l0(tree, log_alpha)
    formula = 24 * np.mean(oracles.gate_open(log_alpha["conv"]))
    np.testing.assert_allclose(expected, formula, rtol=1e-6)

    def count(key):
        return jnp.sum(l0_gates.apply_gates(tree, log_alpha, key)["conv"] != 0)

    counts = np.asarray(jax.jit(jax.vmap(count))(jax.random.split(KEY, 1000)))
    assert abs(counts.mean() - formula) < 5 * counts.std() / math.sqrt(len(counts))


@pytest.mark.parametrize("units", [False, True])
def test_gates_at_the_start(units):
    tree = params()
    for keep in (0.2, 0.9, {"a": 0.3, "conv": 0.9}):
        log_alpha = l0_gates.init_gates(tree, keep, units=units)
        assert jax.tree.structure(log_alpha) == jax.tree.structure(tree)
        chex.assert_tree_all_finite(log_alpha)
        assert {leaf.dtype for leaf in jax.tree.leaves(log_alpha)} == {np.dtype(np.float32)}
        shapes = jax.tree.map(jnp.shape, log_alpha, is_leaf=lambda x: not isinstance(x, dict))
        kernel, conv = ((1, 4), (1, 1, 1, 4)) if units else ((6, 4), (2, 2, 3, 4))
        assert shapes == {"a": {"kernel": kernel, "bias": ()}, "conv": conv, "key": (), "n": ()}
        a, b = (keep["a"], keep["conv"]) if isinstance(keep, dict) else (keep, keep)
        np.testing.assert_allclose(l0_gates.expected_l0(tree, log_alpha), 24 * a + 48 * b, rtol=1e-6)
    chances = [
        l0_gates.expected_l0(jnp.ones((5, 5)), l0_gates.init_gates(jnp.ones((5, 5)), k)) for k in (2e-6, 0.999998)
    ]
    np.testing.assert_allclose(chances, [25 * 2e-6, 25], rtol=2e-2)
    for keep in (-1.0, 0.0, 1.0, 2.0):  # traced ones are clamped
        assert jnp.isfinite(jax.jit(lambda k: l0_gates.init_gates(jnp.ones((2, 2)), k))(keep)).all()


@pytest.mark.parametrize("dtype, key", [(jnp.float32, KEY), (jnp.bfloat16, KEY), (jnp.float16, None)])
def test_what_comes_back(dtype, key):
    tree = params(dtype)
    log_alpha = l0_gates.init_gates(tree, 0.5, where="a/*")
    log_alpha["a"]["kernel"] = jnp.asarray(normal(6, 4) * 5)
    gated = l0_gates.apply_gates(tree, log_alpha, key)
    assert gated["conv"] is tree["conv"] and gated["key"] is tree["key"] and gated["n"] is tree["n"]
    assert gated["a"]["bias"] is tree["a"]["bias"] and gated["a"]["kernel"].dtype == dtype
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == dtype else x, tree)
    np.testing.assert_array_equal(
        gated["a"]["kernel"], l0_gates.apply_gates(wide, log_alpha, key)["a"]["kernel"].astype(dtype)
    )
    masks = l0_gates.gate_masks(tree, log_alpha)
    assert masks["conv"].shape == () and masks["conv"] and masks["a"]["kernel"].dtype == bool
    if key is None:
        masked = jp.masks.apply_masks(gated, masks)
        chex.assert_trees_all_equal(masked["a"], gated["a"])
        np.testing.assert_array_equal(gated["a"]["kernel"] == 0, ~masks["a"]["kernel"])


def test_closed_gates_hide_everything():
    w = jnp.array([math.inf, -math.inf, math.nan, -1.0])
    closed = l0_gates.apply_gates(w, jnp.full(4, -20.0))
    assert not closed.any() and not jnp.signbit(closed).any()
    slopes = jax.grad(lambda w, a: l0_gates.apply_gates(w, a).sum(), (0, 1))(w, jnp.full(4, -20.0))
    assert not slopes[0].any() and not slopes[1].any()
    np.testing.assert_array_equal(l0_gates.apply_gates(w, jnp.full(4, 20.0)), w)
    nan = jnp.array([math.nan, -20.0])  # a gate that is not a number is not silently closed
    np.testing.assert_array_equal(l0_gates.apply_gates(jnp.ones(2), nan), [math.nan, 0])
    np.testing.assert_array_equal(l0_gates.gate_masks(jnp.ones(2), nan), [True, False])


def test_derivatives():
    w, a = normal(6, 4), normal(6, 4, seed=1)
    for key in (None, KEY):
        one = jax.jit(lambda a, key=key: l0_gates.apply_gates(jnp.ones((6, 4)), a, key))
        z = np.asarray(one(a))
        slope_w, slope_a = jax.jit(jax.grad(lambda w, a, key=key: l0_gates.apply_gates(w, a, key).sum(), (0, 1)))(w, a)
        np.testing.assert_allclose(slope_w, z, rtol=1e-6)
        h = 1e-2
        change = w * np.asarray(one(a + h) - one(a - h))
        slope_a = np.asarray(slope_a)
        inside = (z > 0.02) & (z < 0.98)
        assert inside.sum() > 4
        np.testing.assert_allclose(slope_a[inside], change[inside] / (2 * h), rtol=1e-2, atol=1e-4)
        assert not slope_a[(z == 0) | (z == 1)].any()
    slope = jax.jit(jax.grad(lambda a: l0_gates.expected_l0(w, a)))(a)
    p = oracles.gate_open(a)
    np.testing.assert_allclose(slope, p * (1 - p), rtol=2e-6)


def test_optimizers_leave_leaves_without_gates_alone():
    tree = {"kernel": jnp.asarray(normal(6, 4)), "bias": jnp.ones(4)}
    log_alpha = l0_gates.init_gates(tree)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.1))
    state = optimizer.init(log_alpha)

    @jax.jit
    def step(log_alpha, state):
        total = lambda a: l0_gates.expected_l0(tree, a) + l0_gates.apply_gates(tree, a, KEY)["kernel"].sum()  # noqa: E731
        slopes = jax.grad(total)(log_alpha)
        updates, state = optimizer.update(slopes, state, log_alpha)
        return optax.apply_updates(log_alpha, updates), state, slopes

    for _ in range(3):
        log_alpha, state, slopes = step(log_alpha, state)
    assert log_alpha["bias"] == 0 and not slopes["bias"]
    moved = dict(log_alpha, bias=jnp.float32(-50.0))  # even if one did move it
    assert l0_gates.apply_gates(tree, moved)["bias"] is tree["bias"] and l0_gates.gate_masks(tree, moved)["bias"]
    assert l0_gates.expected_l0(tree, moved) == l0_gates.expected_l0(tree, log_alpha)


def test_learning_which_inputs_matter():
    x = normal(64, 6)
    y = x[:, :2] @ np.float32([[1.5, -2.0, 1.0], [-1.0, 1.0, 2.0]])
    optimizer = optax.adam(0.05)

    def loss(trained, key):
        w, log_alpha = trained
        error = x @ l0_gates.apply_gates(w, log_alpha, key) - y
        return jnp.mean(error**2) + 0.01 * l0_gates.expected_l0(w, log_alpha)

    def step(carry, key):
        trained, state = carry
        updates, state = optimizer.update(jax.grad(loss)(trained, key), state)
        return (optax.apply_updates(trained, updates), state), None

    w = jnp.asarray(normal(6, 3, seed=1)) * 0.3
    start = (w, l0_gates.init_gates(w))
    (w, log_alpha), _ = jax.jit(lambda c: jax.lax.scan(step, c, jax.random.split(KEY, 500)))(
        (start, optimizer.init(start))
    )[0]
    masks = l0_gates.gate_masks(w, log_alpha)
    np.testing.assert_array_equal(masks, np.arange(6)[:, None] < np.array([2, 2, 2]))
    assert jnp.mean((x @ l0_gates.apply_gates(w, log_alpha) - y) ** 2) < 0.02


def test_ways_to_run():
    tree = FrozenDict({"a": normal(6, 4), "b": [normal(6, 4, seed=1)]})
    keys = jax.random.split(KEY, 2)
    log_alpha = l0_gates.init_gates(tree, 0.5, units=True)

    def run(tree, log_alpha, key):
        gated = l0_gates.apply_gates(tree, log_alpha, key)
        return gated, l0_gates.apply_gates(tree, log_alpha), l0_gates.expected_l0(tree, log_alpha)

    eager = [jax.tree.map(np.asarray, run(tree, log_alpha, key)) for key in keys]
    chex.clear_trace_counter()
    jitted = jax.jit(chex.assert_max_traces(run, n=1))
    chex.assert_trees_all_close([jitted(tree, log_alpha, key) for key in keys], eager, rtol=1e-5, atol=1e-6)
    mapped = jax.jit(jax.vmap(run, (None, None, 0)))(tree, log_alpha, keys)
    chex.assert_trees_all_close(mapped, jax.tree.map(lambda *x: np.stack(x), *eager), rtol=1e-5, atol=1e-6)
    assert isinstance(eager[0][0], FrozenDict)
    assert (eager[0][0]["a"] != eager[1][0]["a"]).any()
    gated = jax.tree.map(np.asarray, l0_gates.apply_gates(jax.tree.map(np.ones_like, tree), log_alpha, KEY))
    assert (gated["a"] == gated["a"][:1]).all() and (gated["a"][0] != gated["b"][0][0]).any()  # leaves draw apart
    open_half = jax.jit(jax.vmap(lambda k: l0_gates.init_gates(tree, k)["a"][0, 0]))(jnp.array([0.5, 0.9]))
    np.testing.assert_allclose(open_half, [l0_gates.init_gates(tree, k)["a"][0, 0] for k in (0.5, 0.9)], rtol=1e-6)
    assert l0_gates.init_gates({}) == l0_gates.apply_gates({}, {}) == l0_gates.gate_masks({}, {}) == {}
    assert l0_gates.expected_l0({}, {}) == 0


def test_errors():
    tree = params()
    for keep in (0.0, 1.0, -0.5, math.nan):
        with pytest.raises(ValueError, match="keep must be in"):
            l0_gates.init_gates(tree, keep)
    with pytest.raises(ValueError, match=r"leaf 's' is a scalar; gates need an axis"):
        l0_gates.init_gates({"s": jnp.ones(())}, where=lambda path, leaf: True)
    with pytest.raises(ValueError, match="pattern 'Conv' matches no leaf"):
        l0_gates.init_gates(tree, where="Conv")
    log_alpha = l0_gates.init_gates(tree)
    for function in (l0_gates.apply_gates, l0_gates.expected_l0, l0_gates.gate_masks):
        with pytest.raises(ValueError, match=r"params and log_alpha differ in structure: only in params: \['conv'\]"):
            function(tree, {k: v for k, v in log_alpha.items() if k != "conv"})
        with pytest.raises(ValueError, match=r"the gates of 'conv' have shape \(3, 4\); they need its shape"):
            function(tree, log_alpha | {"conv": jnp.zeros((3, 4))})
        with pytest.raises(TypeError, match="leaf 'n' has dtype int32 and gates of float32"):
            function(tree, log_alpha | {"n": jnp.zeros(2)})
