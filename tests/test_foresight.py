"""Criteria that look ahead, and pruning before training: against explicit derivatives and the NumPy loop."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import oracles_training
import pytest
from flax import linen as nn

import jaxprune as jp
from jaxprune import training

KEY = jax.random.key(0)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def chain(*widths, seed=0):
    """Kernels of a multi-layer perceptron, larger in deeper layers."""
    pairs = enumerate(zip(widths[:-1], widths[1:], strict=True))
    return [jnp.asarray(normal(a, b, seed=seed + i) * (1 + i) / math.sqrt(a)) for i, (a, b) in pairs]


def linear(kernels, x):
    for w in kernels:
        x = x @ w
    return x


def relu(kernels, x):
    for w in kernels[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ kernels[-1]


def loss(kernels, x, y):
    return jnp.mean((jnp.tanh(x @ kernels[0]) @ kernels[1] - y) ** 2)


X, Y = normal(8, 3, seed=8), normal(8, 2, seed=9)


# ---------------------------------------------------------------------------------------------------------------------
# Criteria


def test_snip_is_the_weight_times_its_gradient():
    kernels = chain(3, 4, 2)
    scores, grads = jax.jit(lambda p: (training.snip(loss, p, X, Y), jax.grad(loss)(p, X, Y)))(kernels)
    for score, w, g in zip(scores, kernels, grads, strict=True):
        np.testing.assert_allclose(score, np.abs(np.float64(w) * np.float64(g)), rtol=1e-6)
    w = normal(3, 2)  # by hand: of a mean square, dL/dw = x^T (x w - y) / 8
    by_hand = np.abs(w * (X.T @ (X @ w - Y)) / 8)
    np.testing.assert_allclose(training.snip(lambda w: jnp.mean((X @ w - Y) ** 2), w), by_hand, rtol=1e-5)


def test_grasp_equals_the_explicit_hessian():
    flat = np.concatenate([np.ravel(w) for w in chain(3, 4, 2)])

    def of_flat(v):
        return loss([v[:12].reshape(3, 4), v[12:].reshape(4, 2)], X, Y)

    gradient, hessian = jax.jit(jax.grad(of_flat)), jax.jit(jax.hessian(of_flat))
    product = np.float64(hessian(flat)) @ np.float64(gradient(flat))
    expected = np.float64(flat) * product
    result = np.asarray(jax.jit(lambda v: training.grasp(of_flat, v))(flat))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
    assert (expected < 0).any() and (expected > 0).any()
    # Larger is more important: less of the best weight makes the gradient smaller, by as much as predicted.
    best, step = np.eye(flat.size, dtype=np.float32)[np.argmax(result)], 1e-2
    before, after = (np.sum(np.float64(gradient(flat * (1 + sign * step * best))) ** 2) for sign in (1, -1))
    np.testing.assert_allclose((after - before) / (2 * step), -2 * result.max(), rtol=1e-3)


@pytest.mark.parametrize("apply", [linear, relu])
def test_synflow_equals_the_oracle_and_is_conserved(apply):
    kernels = chain(5, 7, 4, 3)
    scores = jax.jit(lambda p: training.synflow(apply, p, normal(1, 5)))(kernels)
    scores = [np.asarray(score) for score in scores]
    for score, expected in zip(scores, oracles_training.synflow(kernels), strict=True):
        np.testing.assert_allclose(score, expected, rtol=1e-5)
    through = [score.sum() for score in scores]
    np.testing.assert_allclose(through, through[0], rtol=1e-5)
    # And at each hidden neuron, what comes in goes out.
    for before, after in zip(scores[:-1], scores[1:], strict=True):
        np.testing.assert_allclose(before.sum(axis=0), after.sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("factor, residual", [(2.0**17, True), (2.0**-18, False)], ids=["overflow", "underflow"])
def test_synflow_of_deep_networks(factor, residual):
    """Where the flow leaves float32, scores are those of float64 but for one power of two."""
    kernels = [np.abs(normal(4, 4, seed=i)) / 2 * np.float32(factor) for i in range(8)]

    def apply(kernels, x):
        for w in kernels:
            x = jax.nn.relu(x @ w) + (factor * x if residual else 0)
        return x

    scores = jax.jit(lambda p: training.synflow(apply, p, jnp.zeros((1, 4))))(kernels)
    kept = [np.float64(w) + (factor * np.eye(4) if residual else 0) for w in kernels]
    flows = oracles_training.synflow(kept)
    expected = [flow * w / whole for flow, w, whole in zip(flows, np.float64(kernels), kept, strict=True)]
    assert not 2.0**-126 < np.sum(flows[0]) < 2.0**127
    ratio = np.concatenate([(np.float64(s) / e).ravel() for s, e in zip(scores, expected, strict=True)])
    exponent = np.round(np.log2(ratio[0]))
    np.testing.assert_allclose(ratio, 2.0**exponent, rtol=1e-5)
    assert 2.0**-30 < np.sum(scores[0]) < 2.0**30


def test_synflow_of_a_module_with_other_leaves():
    model = nn.Sequential([nn.Conv(4, (2, 2)), nn.BatchNorm(use_running_average=True), nn.relu, nn.Dense(2)])
    image = jax.ShapeDtypeStruct((1, 3, 3, 1), jnp.bfloat16)
    variables = jax.jit(model.init)(KEY, jnp.ones(image.shape))
    score = jax.jit(lambda v: training.synflow(lambda v, x: (model.apply(v, x), jnp.arange(3)), v, image))
    scores = score(variables)
    assert jax.tree.structure(scores) == jax.tree.structure(variables)
    assert all(
        s.dtype == jnp.float32 and s.shape == w.shape
        for s, w in zip(*map(jax.tree.leaves, (scores, variables)), strict=True)
    )
    conv, dense = (np.asarray(scores["params"][layer]["kernel"]) for layer in ("layers_0", "layers_3"))
    np.testing.assert_allclose(conv.sum(), dense.sum(), rtol=1e-5)
    assert (conv >= 0).all()


def test_synflow_is_computed_in_float32():
    narrow = [w.astype(jnp.float16) for w in chain(5, 7, 4)]
    scores = jax.jit(lambda p: training.synflow(linear, p, jax.ShapeDtypeStruct((1, 5), jnp.float16)))(narrow)
    for score, expected in zip(scores, oracles_training.synflow(narrow), strict=True):
        np.testing.assert_allclose(score, expected, rtol=1e-6)


def test_synflow_passes_token_ids_on():
    table, ids = jnp.asarray(normal(5, 3)), np.array([[1, 4]])
    scores = jax.jit(lambda p: training.synflow(lambda p, i, flag: p[i].sum() if flag else None, p, ids, True))(table)
    np.testing.assert_array_equal(scores, np.abs(table) * np.isin(np.arange(5), ids)[:, None])
    with pytest.raises(TypeError, match="an input of dtype int32 must be an array"):
        training.synflow(lambda p, ids: p[ids], table, jax.ShapeDtypeStruct((2,), jnp.int32))


CRITERIA = {
    "snip": lambda p: training.snip(of_tree, p, X),
    "grasp": lambda p: training.grasp(of_tree, p, X),
    "synflow": lambda p: training.synflow(lambda p, x: x @ p["w"].astype(jnp.float32) + p["b"], p, X),
}
each = pytest.mark.parametrize("name", CRITERIA)


def of_tree(p, x):
    noise = jax.random.normal(p["key"], (2,)) * p["n"][0]
    return jnp.mean(p["f"](x @ p["w"].astype(jnp.float32) + p["b"] + noise) ** 2)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n == "snip" else []) for n in CRITERIA])
def test_leaves_that_have_no_derivative(name):
    tree = {"w": jnp.asarray(normal(3, 2), jnp.bfloat16), "b": jnp.ones(2), "n": np.arange(1, 3), "key": KEY}
    tree["f"] = jnp.tanh
    scores = CRITERIA[name](tree)
    assert jax.tree.structure(scores) == jax.tree.structure(tree)
    for other in ("n", "key", "f"):
        assert scores[other].shape == () and scores[other].dtype == jnp.float32 and scores[other] == 0
    assert scores["w"].dtype == scores["b"].dtype == jnp.float32 and scores["w"].all() and scores["b"].all()
    with pytest.raises(TypeError, match="'w' is 'relu'"):
        CRITERIA[name](tree | {"w": "relu"})


def test_losses_that_are_no_scalars():
    for criterion in (training.snip, training.grasp):
        with pytest.raises(TypeError, match="scalar"):
            criterion(lambda w: w, jnp.ones(3))


@each
def test_vmap_over_weights_equals_a_loop(name):
    rest = {"b": jnp.ones(2), "n": np.arange(1, 3), "key": KEY, "f": jnp.tanh}
    batch = normal(3, 3, 2)
    run = jax.jit(lambda w: CRITERIA[name](rest | {"w": w})["w"])
    np.testing.assert_allclose(jax.vmap(run)(batch), [run(w) for w in batch], rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------------------------------------------------------
# Rounds


def flow_of(kernels):
    return training.synflow(linear, kernels, jnp.ones((1, kernels[0].shape[0])))


def all_together(*args, **kwargs):
    return training.prune_at_start(*args, scope="global", **kwargs)


prune = jax.jit(all_together, static_argnums=2, static_argnames="rounds")


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.46022728, 0.9, 1.0])  # the third as 1 - (1 - s) counts one less
@pytest.mark.parametrize("rounds", [1, 7])
def test_rounds_equal_the_oracle(rounds, sparsity):
    kernels = chain(6, 8, 5)
    masks = prune(kernels, np.float32(sparsity), flow_of, rounds=rounds)
    expected = oracles_training.masks_in_rounds(
        [np.asarray(w) for w in kernels], float(np.float32(sparsity)), oracles_training.synflow, rounds
    )
    for mask, wanted in zip(masks, expected, strict=True):
        np.testing.assert_array_equal(mask, wanted)
    assert sum(int((~mask).sum()) for mask in masks) == oracles.count_removed(88, sparsity)


def test_synflow_in_rounds_empties_no_layer():
    kernels = chain(6, 8, 5)
    kernels[0] = kernels[0] * 1e-3
    single = oracles.masks_by_sparsity_global([abs(np.asarray(w)) for w in kernels], 0.9)
    masks = [np.asarray(mask) for mask in prune(kernels, np.float32(0.9), flow_of, rounds=7)]
    assert single[0].sum() == 0 and min(mask.sum() for mask in masks) >= 2
    flow = oracles_training.synflow([w * mask for w, mask in zip(kernels, masks, strict=True)])
    assert flow[0].sum() > 0  # something still comes through


ODD_CRITERIA = {
    "zeros above all else": (lambda p: jax.tree.map(lambda w: -jnp.abs(w), p), lambda p: [-abs(w) for w in p]),
    "nothing can be lower": (  # from the second round on, when ties would go by the index
        lambda p: jax.tree.map(lambda w: jnp.where((w == 0).any(), -jnp.inf, jnp.abs(w)), p),
        lambda p: [np.where((w == 0).any(), -math.inf, abs(w)) for w in p],
    ),
}


@pytest.mark.parametrize("name", ODD_CRITERIA)
def test_what_is_removed_stays_removed(name):
    """Even if the criterion ranks it, a zero now, above what is left."""
    saliency, oracle = ODD_CRITERIA[name]
    kernels = chain(6, 8, 5)
    masks = prune(kernels, np.float32(0.8), saliency, rounds=4)
    expected = oracles_training.masks_in_rounds([np.asarray(w) for w in kernels], float(np.float32(0.8)), oracle, 4)
    chex.assert_trees_all_equal(masks, [jnp.asarray(mask) for mask in expected])


def test_each_round_removes_the_same_fraction():
    seen = []

    def saliency(kernels):
        zeros = sum(jnp.sum(w == 0) for w in kernels)
        jax.debug.callback(lambda count: seen.append(int(count)), zeros, ordered=True)
        return jp.saliency.magnitude(kernels)

    jax.block_until_ready(all_together(chain(6, 8, 5), 0.9, saliency, rounds=4))
    jax.effects_barrier()
    assert seen == [oracles.count_removed(88, 1 - 0.1 ** (k / 4)) for k in range(4)]


@pytest.mark.slow
def test_scopes_units_and_selection():
    tree = {"a": {"kernel": jnp.asarray(normal(6, 8)), "bias": jnp.ones(8)}, "b": jnp.asarray(normal(5, 4, seed=1))}
    tree |= {"n": np.arange(3), "key": KEY, "f": jnp.tanh}
    magnitude = jp.saliency.magnitude
    masks = training.prune_at_start(tree, {"a": 0.5, "b": 0.25}, magnitude, rounds=3)
    assert jax.tree.structure(masks) == jax.tree.structure(tree)
    assert (~masks["a"]["kernel"]).sum() == 24 and (~masks["b"]).sum() == 5
    assert all(m.shape == () and m.dtype == bool and m for m in (masks["a"]["bias"], masks["n"], masks["f"]))
    units = all_together(tree, 0.9, jp.saliency.unit_norm, rounds=3)
    assert units["a"]["kernel"].shape == (1, 8) and units["b"].shape == (1, 4)
    assert units["a"]["kernel"].any() and units["b"].any()  # by default a unit of each leaf stays
    kept = all_together(tree, 1.0, magnitude, rounds=2, min_keep=3, where="b")
    assert kept["a"]["kernel"].shape == () and kept["b"].sum() == 3
    assert training.prune_at_start({}, 0.5, magnitude) == {}


@pytest.mark.slow
def test_ways_to_run():
    """Eager, jit and vmap give the same bits; the criterion is traced as often for many rounds as for one."""
    kernels, sparsities = chain(6, 8, 5), np.float32([0.0, 0.3, 0.8])
    jitted = [prune(kernels, s, flow_of, rounds=7) for s in sparsities]
    chex.assert_trees_all_equal(all_together(kernels, sparsities[1], flow_of, rounds=7), jitted[1])
    mapped = jax.jit(jax.vmap(lambda s: all_together(kernels, s, flow_of, rounds=7)))(sparsities)
    for i, masks in enumerate(jitted):
        chex.assert_trees_all_equal([mask[i] for mask in mapped], masks)
    counts = []
    for rounds in (1, 9):
        calls = []

        def saliency(p, calls=calls):
            calls.append(0)
            return jp.saliency.magnitude(p)

        run = jax.jit(lambda s, rounds=rounds, f=saliency: training.prune_at_start(kernels, s, f, rounds=rounds))
        for s in sparsities:
            jax.eval_shape(run, s)
        counts.append(len(calls))
    assert counts[0] == counts[1] <= 3


def test_errors():
    kernels, magnitude = {"w": jnp.ones((2, 3))}, jp.saliency.magnitude
    for rounds in (0, -1, 1.5, True, None):
        with pytest.raises(ValueError, match="rounds must be an integer of at least 1"):
            training.prune_at_start(kernels, 0.5, magnitude, rounds=rounds)
    for scope in ("leaf", "global"):
        for sparsity in (-0.1, 1.1, math.nan):
            with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\]"):
                training.prune_at_start(kernels, sparsity, magnitude, scope=scope)
    with pytest.raises(TypeError, match="sparsity must be a real number for scope='global'"):
        all_together(kernels, {"w": 0.5}, magnitude)
    with pytest.raises(ValueError, match="scope must be 'leaf' or 'global'"):
        training.prune_at_start(kernels, 0.5, magnitude, scope="layer")
    with pytest.raises(ValueError, match="pattern 'Conv' matches no leaf"):
        training.prune_at_start(kernels, 0.5, magnitude, where="Conv")
    with pytest.raises(ValueError, match="params and scores differ"):
        training.prune_at_start(kernels, 0.5, lambda p: p["w"])
    with pytest.raises(TypeError, match="scores of leaf 'w' have dtype int32"):
        training.prune_at_start(kernels, 0.5, lambda p: {"w": jnp.ones((2, 3), jnp.int32)})
