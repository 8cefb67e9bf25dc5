"""Trees: which leaves are selected, what comes back, settings per leaf, and errors that name the path."""

import math
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict

from jaxprune import settings, tree

KEY = jax.random.key(0)
containers = pytest.mark.parametrize("freeze", [dict, FrozenDict], ids=["dict", "FrozenDict"])


def ones(*shape, dtype=jnp.float32):
    return jnp.ones(shape, dtype)


def network():
    return {
        "Conv_0": {"kernel": ones(3, 3, 2, 4), "bias": ones(4)},
        "Dense_0": {"kernel": ones(4, 3), "bias": ones(3)},
        "Dense_1": {"kernel": ones(3, 2), "bias": ones(2)},
        "Embed_0": {"embedding": ones(9, 4)},
        "Norm_0": {"scale": ones(4)},
    }


KERNELS = ["Conv_0/kernel", "Dense_0/kernel", "Dense_1/kernel", "Embed_0/embedding"]


class Layer(NamedTuple):
    kernel: Any
    bias: Any


@partial(jax.tree_util.register_dataclass, data_fields=("weight", "bias", "activation"), meta_fields=("size",))
@dataclass
class Module:
    """A dataclass pytree as Equinox registers them; the activation, a callable, is a leaf."""

    weight: Any
    bias: Any
    activation: Any
    size: int = 3


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False)(nn.Conv(4, (3, 3))(x))
        dense = nn.Dense(3, kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out")))
        return dense(x.reshape(x.shape[0], -1))


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 4, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs)])
        self.lora = nnx.LoRAParam(jnp.ones((3, 2)))
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.cache = nnx.Variable(jnp.ones((4, 4)))
        self.dropout = nnx.Dropout(0.1, rngs=rngs)


def names(params, where=None):
    return tree.select(params, where).names


# ---------------------------------------------------------------------------------------------------------------------
# The default


@containers
def test_kernels_and_embeddings_are_selected(freeze):
    assert names(freeze(network())) == KERNELS
    assert names(freeze({"params": network()})) == [f"params/{path}" for path in KERNELS]


def test_vectors_reshaped_to_matrices_are_no_kernels():
    params = {"attention": {"kernel": ones(4, 2, 2), "bias": ones(2, 2)}, "norm": {"scale": ones(5, 4)}}
    assert names(params) == ["attention/kernel"]


def test_only_floating_leaves_are_selected():
    params = {
        "bf16": ones(2, 2, dtype=jnp.bfloat16),
        "bool": ones(2, 2, dtype=bool),
        "f16": np.ones((2, 2), np.float16),
        "f64": np.ones((2, 2)),
        "function": jnp.tanh,
        "int": ones(2, 2, dtype=jnp.int32),
        "keys": jax.random.split(KEY, 4).reshape(2, 2),
        "number": 3.0,
        "spec": jax.ShapeDtypeStruct((2, 2), jnp.float32),
    }
    assert names(params) == ["bf16", "f16", "f64", "spec"]
    assert names(params, lambda path, leaf: tree.is_floating(leaf)) == ["bf16", "f16", "f64", "number", "spec"]


@pytest.mark.parametrize("leaf", [ones(3), ones(2, 2), ones(), np.zeros(0), 2.0], ids=lambda leaf: str(np.shape(leaf)))
def test_a_bare_array_is_always_selected(leaf):
    selection = tree.select(leaf)
    assert selection.names == [""] and selection.chosen == (0,)
    assert selection.replace([7]) == 7


def test_empty_trees():
    for params in ({}, (), [], None, {"a": {}, "b": None}, FrozenDict({})):
        selection = tree.select(params)
        assert selection.chosen == () and selection.values == [] and selection.names == []
        assert selection.replace([]) == params


@containers
def test_linen_variables_only_the_params_collection(freeze):
    variables = CNN().init(KEY, ones(1, 4, 4, 1))
    variables = freeze({**variables, "cache": {"old": ones(4, 4)}})
    assert names(variables) == ["params/Conv_0/kernel", "params/Dense_0/kernel"]
    assert "batch_stats/BatchNorm_0/mean" in tree.select(variables).paths


@pytest.mark.parametrize("form", ["state", "params", "module", "pure"])
def test_nnx_only_param_variables(form):
    module = NNXNet(nnx.Rngs(0))
    state = {
        "state": nnx.state(module),
        "params": nnx.state(module, nnx.Param),
        "module": module,
        "pure": nnx.to_pure_dict(nnx.state(module, nnx.Param)),
    }[form]
    assert names(state) == ["layers/0/kernel", "linear/kernel", "lora"]
    assert names(state, "lin*") == ["linear/kernel"]


def test_nnx_state_comes_back_and_updates_the_module():
    module = NNXNet(nnx.Rngs(0))
    state = nnx.state(module, nnx.Param)
    selection = tree.select(state)
    doubled = selection.replace([2 * w for w in selection.values])
    assert isinstance(doubled, type(state)) and jax.tree.structure(doubled) == jax.tree.structure(state)
    kernel = np.asarray(module.linear.kernel[...])
    nnx.update(module, doubled)
    np.testing.assert_array_equal(module.linear.kernel[...], 2 * kernel)


@pytest.mark.parametrize(
    "params, expected",
    [
        ([ones(2, 2), ones(2)], ["0"]),
        ((ones(2, 2), [ones(2), ones(3, 2)]), ["0", "1/1"]),
        (Layer(ones(2, 2), ones(2)), ["kernel"]),
        ({"layers": [Layer(ones(2, 2), ones(2))]}, ["layers/0/kernel"]),
        (OrderedDict(b=ones(2, 2), a=ones(2, 2)), ["b", "a"]),
        (Module(ones(2, 2), ones(2), jnp.tanh), ["weight"]),
        ({"m": Module(ones(2, 2), None, None)}, ["m/weight"]),
        ({3: ones(2, 2), 10: ones(2)}, ["3"]),
        ({"w": nn.Partitioned(ones(2, 2), ("a", None)), "bias": nn.Partitioned(ones(2), ("a",))}, ["w"]),
        (nn.Partitioned(ones(2), ("a",)), [""]),
    ],
    ids=lambda value: str(value) if isinstance(value, list) and isinstance(value[0], str) else "",
)
def test_paths_and_structures(params, expected):
    selection = tree.select(params)
    assert selection.names == expected
    same = selection.replace(selection.values)
    assert jax.tree.structure(same) == jax.tree.structure(params) and type(same) is type(params)
    for new, old in zip(jax.tree.leaves(same), jax.tree.leaves(params), strict=True):
        assert new is old or np.array_equal(new, old)


def test_replace_changes_the_chosen_leaves_and_hands_back_the_others_themselves():
    params = network()
    selection = tree.select(params, "Dense_0*")
    new = selection.replace([5 * w for w in selection.values])
    assert new["Dense_0"]["kernel"][0, 0] == 5
    assert new["Conv_0"]["kernel"] is params["Conv_0"]["kernel"] and new["Dense_0"]["bias"] is params["Dense_0"]["bias"]
    rest = selection.replace([0], rest=np.shape)
    assert rest["Dense_0"] == {"kernel": 0, "bias": (3,)} and rest["Norm_0"]["scale"] == (4,)
    with pytest.raises(ValueError):
        selection.replace([])


def test_selection_works_on_tracers():
    @jax.jit
    def zeroed(params):
        selection = tree.select(params)
        return selection.replace([w * 0 for w in selection.values])

    assert not zeroed(network())["Dense_0"]["kernel"].any()
    assert zeroed(network())["Dense_0"]["bias"].all()


# ---------------------------------------------------------------------------------------------------------------------
# where


@containers
@pytest.mark.parametrize(
    "where, expected",
    [
        ("Dense_0/kernel", ["Dense_0/kernel"]),
        ("Dense_?/*", ["Dense_0/kernel", "Dense_1/kernel"]),
        ("*kernel", KERNELS[:3]),
        (["Conv*", "Embed*"], ["Conv_0/kernel", "Embed_0/embedding"]),
        (("Embed*", "Conv*", "C*"), ["Conv_0/kernel", "Embed_0/embedding"]),
        ("!Embed*", KERNELS[:3]),
        (["*kernel", "!Dense_*"], ["Conv_0/kernel"]),
        (["!Dense_*", "!Conv*"], ["Embed_0/embedding"]),
        (["!*"], []),
    ],
    ids=str,
)
def test_patterns_choose_among_the_default_leaves(freeze, where, expected):
    assert names(freeze(network()), where) == expected
    assert names(freeze({"params": network()}), where) == [f"params/{path}" for path in expected]


def test_patterns_may_name_the_params_collection():
    assert names({"params": network()}, "params/Dense_1/*") == ["params/Dense_1/kernel"]


def test_patterns_are_case_sensitive_and_match_the_whole_path():
    for pattern in ("dense_0/kernel", "Dense_0", "kernel"):
        with pytest.raises(ValueError, match="matches no leaf"):
            names(network(), pattern)


@pytest.mark.parametrize("where", ["Dence*", "*bias", ["*kernel", "Dence*"], "!Dence*"], ids=str)
def test_a_pattern_that_matches_nothing(where):
    with pytest.raises(ValueError, match=r"matches no leaf.*Dense_0/kernel.*Norm_0/scale") as error:
        names(network(), where)
    assert repr("*bias" if where == "*bias" else "Dence*") in str(error.value)


def test_predicates_are_taken_at_their_word():
    assert names(network(), lambda path, leaf: path.endswith("bias")) == ["Conv_0/bias", "Dense_0/bias", "Dense_1/bias"]
    assert names(network(), lambda path, leaf: leaf.ndim == 4) == ["Conv_0/kernel"]
    assert names({"batch_stats": {"m": ones(2)}, "params": {}}, lambda p, leaf: True) == ["batch_stats/m"]
    assert names(ones(3), lambda path, leaf: path == "") == [""]
    assert names(network(), lambda path, leaf: False) == []


@containers
def test_trees_of_bools(freeze):
    params = freeze(network())
    assert names(params, {"Dense_0": True}) == ["Dense_0/kernel"]  # of a subtree: its default leaves
    assert names(params, {"Dense_0": {"bias": True}}) == ["Dense_0/bias"]  # of a leaf: at its word
    assert names(params, {"Dense_0": True, "Conv_0": False, "Norm_0": {"scale": True}}) == [
        "Dense_0/kernel",
        "Norm_0/scale",
    ]
    full = jax.tree.map(lambda leaf: leaf.ndim == 1, network())
    assert names(params, full) == ["Conv_0/bias", "Dense_0/bias", "Dense_1/bias", "Norm_0/scale"]
    assert names(params, FrozenDict({"Dense_0": {"kernel": np.bool_(True)}})) == ["Dense_0/kernel"]
    assert names([ones(2, 2), ones(2)], [False, True]) == ["1"]


def test_a_tree_of_bools_in_the_boxes_of_the_parameters():
    boxed = {"w": nn.Partitioned(ones(2, 2), ("a", None)), "b": nn.Partitioned(ones(2), ("a",))}
    assert names(boxed, jax.tree.map(lambda leaf: leaf.ndim == 1, boxed)) == ["b"]
    assert names(boxed, {"b": True}) == ["b"]
    state = nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Param)
    assert names(state, jax.tree.map(lambda leaf: leaf.ndim == 1, state)) == ["bias"]


def test_a_where_that_is_none_of_these():
    with pytest.raises(ValueError, match=r"where names 'Dense_9'.*Dense_0/kernel"):
        names(network(), {"Dense_9": True})
    with pytest.raises(TypeError, match="must hold bools"):
        names(network(), {"Dense_0": 1})
    for where in ([], {}, b"*", ()):
        with pytest.raises(ValueError, match="give None, glob patterns, a predicate or a tree of bools"):
            names(network(), where)


def test_leaves_that_cannot_be_selected_are_named():
    with pytest.raises(TypeError, match="leaf 'a/name' is 'relu' .str."):
        names({"a": {"name": "relu", "w": ones(2, 2)}})
    with pytest.raises(TypeError, match="leaf 'n/0' has dtype int32; only floating"):
        names({"n": [ones(2, 2, dtype=jnp.int32)]}, lambda path, leaf: True)
    with pytest.raises(TypeError, match="leaf 'k' has dtype key"):
        names({"k": KEY}, {"k": True})
    with pytest.raises(TypeError, match="leaf .the array itself. has dtype int"):
        names(np.arange(3))


# ---------------------------------------------------------------------------------------------------------------------
# Settings


def settings_of(setting, params=None, where=None, low=0.0, high=1.0):
    selection = tree.select(network() if params is None else params, where)
    return settings.per_leaf(setting, selection, "sparsity", low, high)


@pytest.mark.parametrize(
    "value", [0, 1, 0.3, np.float64(0.3), np.float16(0.5), jnp.float32(0.3), jnp.int32(1)], ids=repr
)
def test_one_setting_serves_every_leaf(value):
    result = settings_of(value)
    assert len(result) == len(KERNELS)
    assert all(v.dtype == np.float32 and v.shape == () and v == np.float32(value) for v in result)


@containers
def test_settings_follow_the_paths(freeze):
    params = freeze(network())
    setting = {"Conv_0": 0.1, "Dense_0": {"kernel": 0.2}, "Dense_1": {"kernel": 0.3}, "Embed_0": 0.4}
    np.testing.assert_array_equal(settings_of(setting, params), np.float32([0.1, 0.2, 0.3, 0.4]))
    np.testing.assert_array_equal(settings_of(FrozenDict(setting), params), np.float32([0.1, 0.2, 0.3, 0.4]))
    assert settings_of({"Dense_1": 0.5, "Dense_0": 0.25}, params, "Dense_*") == [0.25, 0.5]
    full = jax.tree.map(lambda leaf: leaf.ndim / 4, network())
    assert settings_of(full, params) == [1, 0.5, 0.5, 0.5]
    assert settings_of([0.5, 0.25], [ones(2, 2), ones(2, 2)]) == [0.5, 0.25]


def test_names_that_begin_alike_or_hold_slashes():
    params = {"Dense_1": {"w": ones(2, 2)}, "Dense_10": {"w": ones(2, 2)}, "mlp/~/linear": {"w": ones(2, 2)}}
    assert settings_of({"Dense_1": 0.25, "Dense_10": 0.5, "mlp/~": 0.75}, params) == [0.25, 0.5, 0.75]
    assert settings_of({"mlp": 0.25, "mlp/~/linear": 0.5}, params, "mlp/*") == [0.5]  # the longest prefix speaks
    assert names(params, {"Dense_1": True}) == ["Dense_1/w"]
    with pytest.raises(ValueError, match="no value for leaf 'Dense_10/w'"):
        settings_of({"Dense_1": 0.25, "mlp/~": 0.75}, params)


def test_settings_in_the_boxes_of_the_parameters():
    boxed = {"w": nn.Partitioned(ones(2, 2), ("a", None)), "v": nn.Partitioned(ones(2, 2), (None, "a"))}
    assert settings_of(jax.tree.map(lambda leaf: 0.5, boxed), boxed) == [0.5, 0.5]
    state = nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Param)
    assert settings_of(jax.tree.map(lambda leaf: 0.5, state), state) == [0.5]
    assert settings_of({"kernel": 0.5}, state) == [0.5]


def test_settings_may_be_traced():
    @jax.jit
    def of(s):
        return settings_of(s), settings_of({"Dense_0": s, "Dense_1": 0.5}, where="Dense_*")

    one, several = of(jnp.float16(3.0))  # out of range: left for the transform to clamp
    assert [float(v) for v in one] == [3.0] * 4 and all(v.dtype == jnp.float32 for v in one)
    assert [float(v) for v in several] == [3.0, 0.5]


def test_settings_out_of_range_are_named():
    for bad in (1.5, -0.1, math.nan, math.inf, jnp.float32(2)):
        with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\], got (1.5|-0.1|nan|inf|2)$"):
            settings_of(bad)
    with pytest.raises(ValueError, match=r"sparsity of 'Dense_1/kernel' must be in \[0, 1\], got 7"):
        settings_of({"Dense_0": 0.5, "Dense_1": 7}, where="Dense_*")
    with pytest.raises(ValueError, match=r"must be a scalar, got shape \(3,\); use jax.vmap or jaxprune.sweep"):
        settings_of(jnp.zeros(3))
    assert settings_of(-3.0, low=-math.inf, high=math.inf) == [-3] * 4


@pytest.mark.parametrize("bad", ["0.5", None, True, 1j], ids=repr)
def test_settings_that_are_no_numbers(bad):
    with pytest.raises(TypeError, match="sparsity.* must be a real number"):
        settings_of(bad)


def test_settings_for_other_leaves_than_there_are():
    with pytest.raises(ValueError, match=r"sparsity names 'Dense_9/kernel', which is not in the tree.*Conv_0/kernel"):
        settings_of({"Dense_9": {"kernel": 0.5}})
    with pytest.raises(ValueError, match=r"sparsity has no value for leaf 'Conv_0/kernel'; it has \['Dense_0'\]"):
        settings_of({"Dense_0": 0.5})
    with pytest.raises(ValueError, match="no value for leaf 'Conv_0/kernel'"):
        settings_of({})


def test_trees_with_the_same_paths():
    one, other = tree.select(network()), tree.select(FrozenDict(network()))
    tree.same_paths(one, other, "params", "masks")
    less = network()
    del less["Dense_0"]["bias"]
    less["extra"] = ones(2)
    with pytest.raises(ValueError, match=r"params and masks differ.*'Dense_0/bias'.*only in masks: \['extra'\]"):
        tree.same_paths(one, tree.select(less), "params", "masks")
