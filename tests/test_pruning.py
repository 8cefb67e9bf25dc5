"""The short verbs, on the trees that frameworks hold: what comes back is what went in, but pruned."""

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import strategies
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict
from hypothesis import given
from hypothesis import strategies as st

from jaxprune import masks, saliency
from jaxprune.base import QuantSpec
from jaxprune.pruning import Pruned, prune, threshold_prune
from jaxprune.quantization import integers

KEY = jax.random.key(0)


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def network(dtype=jnp.float32):
    return {
        "Conv_0": {"kernel": normal(3, 3, 2, 4, dtype=dtype), "bias": normal(4, dtype=dtype)},
        "Dense_0": {"kernel": normal(8, 3, seed=1, dtype=dtype), "bias": normal(3, dtype=dtype)},
    }


class Layer(NamedTuple):
    kernel: Any
    bias: Any


@partial(jax.tree_util.register_dataclass, data_fields=("weight", "bias"), meta_fields=("activation",))
@dataclass(frozen=True)
class Module:
    """A dataclass pytree as Equinox registers them."""

    weight: Any
    bias: Any
    activation: Any = jnp.tanh


def removed(tree):
    """How many entries are exactly +0.0, over the leaves of rank 2 and more."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree) if np.ndim(leaf) > 1]
    return sum(int(((leaf == 0) & ~np.signbit(leaf)).sum()) for leaf in leaves)


# ---------------------------------------------------------------------------------------------------------------------
# Values


@pytest.mark.parametrize("dtype", strategies.DTYPES, ids=str)
@given(st.data())
def test_threshold_prune(dtype, data):
    w = data.draw(strategies.float_arrays((dtype,), (3, 4)))
    threshold = data.draw(st.floats(0, 9, width=32) | st.sampled_from([0.0, 0.5, 1.0, np.inf]))
    keep = oracles.mask_by_threshold(np.abs(w.astype(np.float64)), threshold)
    result = threshold_prune(w, threshold)
    np.testing.assert_array_equal(result.masks, keep)
    assert oracles.bits_equal(np.asarray(result.params), oracles.apply_mask(w, keep))


@pytest.mark.parametrize("scope", ["leaf", "global"])
@given(st.data())
def test_prune(scope, data):
    leaves = [
        data.draw(strategies.float_arrays((strategies.DTYPES[i],), shape)) for i, shape in enumerate([(3, 4), (2, 2)])
    ]
    sparsity = data.draw(strategies.sparsities())
    result = prune(leaves, sparsity, scope=scope, min_keep=0)
    scores = [np.abs(leaf.astype(np.float64)) for leaf in leaves]
    by_leaf = [oracles.mask_by_sparsity(score, sparsity) for score in scores]
    expected = by_leaf if scope == "leaf" else oracles.masks_by_sparsity_global(scores, sparsity)
    for keep, mask, leaf, pruned in zip(expected, result.masks, leaves, result.params, strict=True):
        np.testing.assert_array_equal(mask, keep)
        assert oracles.bits_equal(np.asarray(pruned), oracles.apply_mask(leaf, keep))


def test_the_default_scope_is_each_leaf():
    tree = {"a": jnp.ones((4, 4)), "b": jnp.full((4, 4), 2.0)}
    assert [removed(leaf) for leaf in prune(tree, 0.5).params.values()] == [8, 8]
    together = {"scope": "global", "min_keep": 1}
    assert [removed(leaf) for leaf in prune(tree, 0.5, **together).params.values()] == [15, 1]
    assert [removed(leaf) for leaf in prune(tree, 0.5, scope="global", min_keep=0.25).params.values()] == [12, 4]


def test_a_global_ranking_warns_of_empty_leaves():
    tree = {"a": jnp.ones((10, 20)), "b": jnp.arange(200.0).reshape(10, 20)}
    with pytest.warns(UserWarning, match=r"keeps under 1% of a \(0 of 200\)") as caught:
        prune(tree, 0.6, scope="global")
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune(tree, 0.6)
        prune(tree, 0.6, scope="global", min_keep=2)
        prune(tree, 0.995, scope="global")
        jax.jit(lambda tree: prune(tree, 0.6, scope="global"))(tree)


def test_sparsities_of_their_own():
    result = prune(network(), {"Conv_0": 0.25, "Dense_0": 0.5}, scope="leaf")
    assert [removed(layer) for layer in result.params.values()] == [18, 12]


def test_whole_units_by_their_norm():
    tree = {"kernel": normal(4, 6), "bias": normal(6)}
    result = prune(tree, 0.5, saliency=saliency.unit_norm)
    assert result.masks["kernel"].shape == (1, 6)
    norms = np.abs(np.asarray(tree["kernel"])).sum(0)
    np.testing.assert_array_equal(result.masks["kernel"][0], norms > np.sort(norms)[2])
    np.testing.assert_array_equal(result.params["kernel"] == 0, np.broadcast_to(~result.masks["kernel"], (4, 6)))
    assert (
        prune(tree, 1.0, saliency=saliency.unit_norm, scope="global").masks["kernel"].sum()
    ) == 1  # the last unit stays
    assert not prune(tree, 1.0, saliency=saliency.unit_norm).masks["kernel"].any()


def test_criteria_are_closures():
    params, grads = network(), jax.tree.map(lambda w: w * w + 1, network())
    result = prune(params, 0.5, saliency=lambda p: saliency.gradient(p, grads), scope="global")
    kept = masks.by_sparsity(saliency.gradient(params, grads), 0.5, scope="global")
    chex.assert_trees_all_equal(result.masks, kept)
    largest_first = prune(params, 0.5, saliency=lambda p: jax.tree.map(lambda w: -jnp.abs(w), p))
    smallest = [float(jnp.abs(w[w != 0]).max()) for w in (largest_first.params["Conv_0"]["kernel"],)]
    assert smallest[0] < float(jnp.abs(params["Conv_0"]["kernel"]).max())


def test_scores_must_follow_the_parameters():
    with pytest.raises(ValueError, match=r"params and scores differ in structure.*Dense_0/bias"):
        prune(network(), 0.5, saliency=lambda p: {"Conv_0": p["Conv_0"]})
    with pytest.raises(ValueError, match="mask of 'w' has shape .3, 2., which does not broadcast"):
        prune({"w": normal(2, 3)}, 0.5, saliency=lambda p: {"w": p["w"].T})


def test_what_is_not_selected_comes_back_itself():
    params = network() | {"step": jnp.arange(3), "norm": {"scale": normal(4)}, "f": jnp.tanh}
    for result in (prune(params, 0.5), threshold_prune(params, 0.5)):
        for path in (("Conv_0", "bias"), ("Dense_0", "bias"), ("norm", "scale")):
            assert result.params[path[0]][path[1]] is params[path[0]][path[1]]
        assert result.params["step"] is params["step"] and result.params["f"] is params["f"]
    one = prune(params, 0.5, where="Dense*").params
    assert one["Conv_0"]["kernel"] is params["Conv_0"]["kernel"] and removed(one["Dense_0"]) == 12


@pytest.mark.parametrize("bad", [1.5, -0.1, np.nan])
def test_bad_settings(bad):
    with pytest.raises(ValueError, match=rf"sparsity must be in \[0, 1\], got {bad:g}"):
        prune(network(), bad)
    with pytest.raises(ValueError, match="pattern 'Dence' matches no leaf"):
        prune(network(), 0.5, where="Dence")
    with pytest.raises(ValueError, match="threshold must be in .*, got nan"):
        threshold_prune(network(), np.nan)
    with pytest.raises(TypeError, match="leaf 'a' is 'relu'"):
        threshold_prune({"a": "relu"}, 0.5)


# ---------------------------------------------------------------------------------------------------------------------
# Trees

TREES = {
    "array": lambda: normal(6, 4),
    "dict": network,
    "FrozenDict": lambda: FrozenDict(network()),
    "list": lambda: [normal(6, 4), normal(4)],
    "tuple": lambda: (normal(6, 4), [normal(4)]),
    "NamedTuple": lambda: Layer(normal(6, 4), normal(4)),
    "nested": lambda: {"layers": [Layer(normal(6, 4), normal(4)), FrozenDict(w=normal(2, 3))]},
    "dataclass": lambda: Module(normal(6, 4), normal(4)),
    "boxed": lambda: {"w": nn.Partitioned(normal(6, 4), ("in", "out")), "b": nn.Partitioned(normal(4), ("out",))},
    "empty": dict,
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in ("array", "FrozenDict", "list", "tuple") else []) for n in TREES],
)
def test_containers(name):
    params = TREES[name]()
    eager, jitted = prune(params, 0.5, scope="leaf"), jax.jit(lambda p: prune(p, 0.5, scope="leaf"))(params)
    for result in (eager, jitted, threshold_prune(params, 0.5)):
        assert isinstance(result, Pruned)
        assert type(result.params) is type(params) and type(result.masks) is type(params)
        assert jax.tree.structure(result.params) == jax.tree.structure(params) == jax.tree.structure(result.masks)
        chex.assert_trees_all_equal_shapes_and_dtypes(result.params, params)
    chex.assert_trees_all_equal(eager, jitted)
    kernels = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
    assert removed(eager.params) == kernels // 2


@pytest.mark.parametrize("freeze", [dict, FrozenDict])
def test_a_plain_dict_of_bools_chooses_in_any_mapping(freeze):
    params = freeze(network())
    result = prune(params, 0.5, where={"Dense_0": {"kernel": True}})
    assert removed(result.params["Dense_0"]) == 12 and removed(result.params["Conv_0"]) == 0
    assert type(result.params) is freeze


def test_boxes_keep_their_names():
    params = TREES["boxed"]()
    result = prune(params, 0.5)
    assert result.params["w"].names == ("in", "out") and removed(result.params["w"].unbox()) == 12
    assert nn.get_partition_spec(result.params) == nn.get_partition_spec(params)


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(3)(nn.relu(x).reshape(x.shape[0], -1))


@pytest.mark.parametrize("freeze", [dict, pytest.param(FrozenDict, marks=pytest.mark.slow)])
def test_linen_variables(freeze):
    """Only kernels change; biases, scales and batch statistics are the same bits, and the model runs on."""
    shapes = jax.eval_shape(CNN().init, KEY, jnp.ones((1, 4, 4, 1)))
    variables = freeze(jax.tree.map(lambda leaf: abs(normal(*leaf.shape)) + 0.01, shapes))
    result = prune(variables, 0.5).params
    assert jax.tree.structure(result) == jax.tree.structure(variables)
    for (path, new), old in zip(jax.tree_util.tree_leaves_with_path(result), jax.tree.leaves(variables), strict=True):
        if path[-1].key == "kernel":
            assert 0 < removed(new) < new.size
            np.testing.assert_array_equal(new, np.where(np.asarray(new) == 0, 0, old))
        else:
            assert oracles.bits_equal(np.asarray(new), np.asarray(old))
    total = sum(w.size for w in jax.tree.leaves(result["params"]) if w.ndim > 1)
    assert removed(result["params"]) == total // 2
    run = jax.jit(lambda variables, x: CNN().apply(variables, x, train=False))
    assert run(result, jnp.ones((2, 4, 4, 1))).shape == (2, 3)


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(8, 6, rngs=rngs)
        self.out = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))


def test_nnx_state():
    """A State of equal structure; the module's outputs change; the optimizer steps on."""
    model = NNXNet(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    x = normal(5, 8)
    before = model(x)
    state = nnx.state(model, nnx.Param)
    result = prune(state, 0.5)
    assert type(result.params) is type(state) and jax.tree.structure(result.params) == jax.tree.structure(state)
    assert jax.tree.structure(result.masks) == jax.tree.structure(state)
    assert removed(result.params) == (8 * 6 + 6 * 3) // 2
    nnx.update(model, result.params)
    assert not jnp.allclose(model(x), before)
    assert removed(nnx.state(model, nnx.Param)) == 33

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: jnp.mean(m(x) ** 2))(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(3)]
    assert losses[2] < losses[0]
    nnx.update(model, masks.apply_masks(nnx.state(model, nnx.Param), result.masks))
    kept = jax.tree.leaves(result.masks)
    for mask, leaf in zip(kept, jax.tree.leaves(nnx.state(model, nnx.Param)), strict=True):
        assert not np.asarray(leaf)[~np.broadcast_to(mask, leaf.shape)].any()


# ---------------------------------------------------------------------------------------------------------------------
# Programs


def test_dtypes_are_kept():
    """bfloat16 parameters, NumPy scalars as settings, a conditional update."""
    params = network(jnp.bfloat16)
    for scalar in (np.float64(0.5), np.float32(0.5), np.float16(0.5), np.int64(1), jnp.bfloat16(0.5)):
        result = prune(params, scalar)
        chex.assert_trees_all_equal_shapes_and_dtypes(result.params, params)
        assert all(mask.dtype == bool for mask in jax.tree.leaves(result.masks))
        assert not any(leaf.weak_type for leaf in jax.tree.leaves(result))

    @jax.jit
    def every_other(params, step, sparsity):
        return jax.lax.cond(step % 2 == 0, lambda p: prune(p, sparsity).params, lambda p: p, params)

    for step in (0, 1):
        updated = every_other(params, step, np.float64(0.5))
        chex.assert_trees_all_equal_shapes_and_dtypes(updated, params)
        assert removed(updated) == (0 if step else 48)


def test_one_compilation_for_all_settings():
    params = network()
    pruned = jax.jit(chex.assert_max_traces(lambda p, s: prune(p, s, scope="global"), n=1))
    thresholded = jax.jit(chex.assert_max_traces(lambda p, t: threshold_prune(p, t), n=1))
    counts = [removed(pruned(params, np.float32(s)).params) for s in (0.1, 0.5, 0.9)]
    assert counts == [oracles.count_removed(96, s) for s in (0.1, 0.5, 0.9)]
    assert [removed(thresholded(params, np.float32(t)).params) for t in (0.0, np.inf)] == [0, 96]

    @jax.jit
    @partial(chex.assert_max_traces, n=1)
    def step(params, sparsity):  # fed its own output
        return jax.tree.map(lambda w: w * 0.9, prune(params, sparsity, scope="global").params)

    for sparsity in jnp.asarray([0.1, 0.5, 0.9]):
        params = step(params, sparsity)
    assert removed(params) == oracles.count_removed(96, 0.9)


def test_pruning_twice_never_multiplies_up():
    """Fresh masks at one sparsity: always exactly that sparsity, whatever was pruned before."""
    params = network()
    for seed in range(4):
        scores = partial(saliency.random, key=jax.random.key(seed))
        result = prune(params, 0.5, saliency=scores)
        assert sum(int((~mask).sum()) for mask in jax.tree.leaves(result.masks) if mask.ndim) == 48
    again = prune(prune(params, 0.5).params, 0.5)
    chex.assert_trees_all_equal(again, prune(params, 0.5))


SPECS = {
    "tensor": QuantSpec(),
    "channel": QuantSpec(axis=-1),
    "block": QuantSpec(block_size=3),
    "asymmetric": QuantSpec(symmetric=False, axis=-1),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ("channel", "tensor") else []) for n in SPECS]
)
def test_pruned_then_quantized_zeros_stay_zero(name):
    params = jax.tree.map(lambda w: w + 0.3, network())

    @jax.jit
    def both(params, sparsity, bits):
        pruned, kept = prune(params, sparsity)
        return integers.fake_quant(pruned, bits, spec=SPECS[name]), kept

    for bits in (1.0, 2.0, 4.0, 8.0):
        quantized, kept = both(params, 0.5, bits)
        for value, mask in zip(jax.tree.leaves(quantized), jax.tree.leaves(kept), strict=True):
            gone = np.asarray(value)[~np.broadcast_to(mask, value.shape)]
            assert not gone.any() and not np.signbit(gone).any()
        assert removed(quantized) >= 48


@pytest.mark.slow
def test_any_order_composes_under_one_jit():
    params = network()
    steps = {
        "prune": lambda p, s, b: prune(p, s).params,
        "quantize": lambda p, s, b: integers.fake_quant(p, b),
        "threshold": lambda p, s, b: threshold_prune(p, s / 4).params,
        "units": lambda p, s, b: masks.apply_masks(p, masks.by_unit_sparsity(p, s)),
        "grid": lambda p, s, b: integers.fixed_point(p, -b),
    }

    def chain(names, p, s, b):
        for name in names:
            p = steps[name](p, s, b)
        return p

    orders = [list(steps), list(steps)[::-1], ["quantize", "prune", "grid", "units"]]

    @jax.jit
    @partial(chex.assert_max_traces, n=1)
    def together(p, s, b):
        return [chain(names, p, s, b) for names in orders]

    for sparsity, bits in ((0.5, 4.0), (0.75, 3.0)):
        for names, result in zip(orders, together(params, sparsity, bits), strict=True):
            chex.assert_trees_all_equal(result, chain(names, params, np.float32(sparsity), np.float32(bits)))
            chex.assert_trees_all_equal_shapes_and_dtypes(result, params)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_72_subnormals_are_no_zeros(dtype):
    """By their bits: backends take subnormals for 0 where they compare floats."""
    w = jnp.asarray(np.asarray([1e-40, -1e-40, 3e-39, 0.0, jnp.nan], dtype))
    for transform in (threshold_prune, jax.jit(threshold_prune)):
        assert transform(w, 1e-39).masks.tolist() == [False, False, True, False, True]
    column = w[:, None]
    assert saliency.unit_sparsity(column).tolist() == [[pytest.approx(1 / 5)]]
