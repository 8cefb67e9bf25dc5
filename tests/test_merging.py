"""BatchNorm folded into the layer before it: the modules with and without it give the same; containers come back."""

from collections import OrderedDict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict

from jaxprune.structure import merge_batch_norm

draw = np.random.default_rng(0)
X = jnp.asarray(draw.normal(size=(2, 5, 5, 3)), jnp.float32)
EPSILONS = (1e-5, 0.25)


class Linen(nn.Module):
    """Two layers, the first without a bias if a BatchNorm follows; the BatchNorms lack what they may lack."""

    layer: type
    size: tuple
    norm: bool
    bias: bool = False
    dtype: type = jnp.float32
    epsilons: tuple = EPSILONS

    @nn.compact
    def __call__(self, x):
        for i, epsilon in enumerate(self.epsilons):
            x = self.layer(4, *self.size, use_bias=self.bias or not self.norm or i == 1, param_dtype=self.dtype)(x)
            if self.norm:
                affine = {"use_scale": i == 0, "use_bias": i == 0, "param_dtype": self.dtype}
                x = nn.BatchNorm(use_running_average=True, epsilon=epsilon, **affine)(x)
            x = nn.relu(x) if i == 0 else x
        return x


class Nnx(nnx.Module):
    """The same in NNX."""

    def __init__(self, layer, size, norm):
        rngs = nnx.Rngs(0)
        self.first = layer(3, 4, *size, use_bias=not norm, rngs=rngs)
        self.layers = nnx.List([layer(4, 4, *size, rngs=rngs)])
        if norm:
            self.norm = nnx.BatchNorm(4, epsilon=EPSILONS[0], use_running_average=True, rngs=rngs)
            bare = partial(nnx.BatchNorm, use_scale=False, use_bias=False)
            self.layers.append(bare(4, epsilon=EPSILONS[1], use_running_average=True, rngs=rngs))

    def __call__(self, x):
        x = self.first(x)
        x = nnx.relu(self.norm(x) if hasattr(self, "norm") else x)
        for layer in self.layers:
            x = layer(x)
        return x


def random_like(tree, dyadic=False):
    """Other values: of modest size, or powers of two times small integers, whose products are exact in bfloat16."""

    def of(path, leaf):
        name = jax.tree_util.keystr(path)
        values = draw.integers(-3, 4, leaf.shape) / 4 if dyadic else draw.normal(size=leaf.shape) / 3
        if "var" in name or "scale" in name:
            values = 4.0 ** draw.integers(-1, 2, leaf.shape) if dyadic else 0.5 + np.abs(values)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(of, tree)


LAYERS = {"Dense": (), "Conv": ((3, 3),), "ConvTranspose": ((2, 2),)}


def pairs_of(name):
    return {f"{name}_0": "BatchNorm_0", f"{name}_1": "BatchNorm_1"}


SOME = [pytest.param(name, marks=() if name == "Conv" else pytest.mark.slow) for name in LAYERS]


@pytest.mark.parametrize("name", SOME)
def test_linen_modules_without_their_batch_norms_give_the_same(name):
    layer, size = getattr(nn, name), LAYERS[name]
    variables = random_like(jax.eval_shape(Linen(layer, size, True).init, jax.random.key(0), X))
    merged = merge_batch_norm(variables, pairs_of(name), epsilon=dict(BatchNorm_0=EPSILONS[0], BatchNorm_1=EPSILONS[1]))
    plain = jax.eval_shape(Linen(layer, size, False).init, jax.random.key(0), X)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), merged) == jax.tree.map(lambda a: (a.shape, a.dtype), plain)
    wanted = jnp.asarray(Linen(layer, size, True).apply(variables, X))
    np.testing.assert_allclose(jnp.asarray(Linen(layer, size, False).apply(merged, X)), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SOME)
def test_bfloat16_modules_give_the_same_where_bfloat16_holds_the_products(name):
    layer, size = getattr(nn, name), LAYERS[name]
    module, without = (Linen(layer, size, norm, True, jnp.bfloat16, (0.0, 0.0)) for norm in (True, False))
    variables = random_like(jax.eval_shape(module.init, jax.random.key(0), X), dyadic=True)
    merged = merge_batch_norm(variables, pairs_of(name), epsilon=0.0)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(merged))
    wanted = jnp.asarray(module.apply(variables, X))
    np.testing.assert_allclose(jnp.asarray(without.apply(merged, X)), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name, pure", [("Linear", False), ("Linear", True), ("Conv", False), ("ConvTranspose", True)])
def test_nnx_modules_without_their_batch_norms_give_the_same(name, pure):
    layer, size = getattr(nnx, name), LAYERS.get(name, ())
    model, plain = (nnx.eval_shape(lambda norm=norm: Nnx(layer, size, norm)) for norm in (True, False))
    state = random_like(nnx.state(model))
    nnx.update(model, state)
    epsilon = {"norm": EPSILONS[0], "layers/1": EPSILONS[1]}
    given = nnx.to_pure_dict(state) if pure else state
    merged = merge_batch_norm(given, {"first": "norm", "layers/0": "layers/1"}, epsilon=epsilon)
    target = nnx.state(plain)
    assert jax.tree.structure(merged) == jax.tree.structure(nnx.to_pure_dict(target) if pure else target)
    if pure:
        nnx.replace_by_pure_dict(target, merged)
    nnx.update(plain, target if pure else merged)
    np.testing.assert_allclose(plain(X), model(X), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("missing", [(), ("scale",), ("offset",), ("bias", "scale", "offset")])
def test_arrays_equal_the_oracle(dtype, missing):
    shapes = {"kernel": (3, 2, 6), "bias": (6,), "scale": (6,), "offset": (6,), "mean": (6,), "var": (6,)}
    a = {name: jnp.asarray(draw.normal(size=shape), dtype) for name, shape in shapes.items() if name not in missing}
    a["var"] = jnp.abs(a["var"])
    layer = {name: a[name] for name in ("kernel", "bias") if name in a}
    norm = {"bias" if name == "offset" else name: a[name] for name in ("scale", "offset", "mean", "var") if name in a}
    merged = merge_batch_norm({"layer": layer, "norm": norm, "other": 3}, {"layer": "norm"}, epsilon=1e-3)
    assert merged.keys() == {"layer", "other"} and merged["other"] == 3
    kernel, bias = oracles.merged_batch_norm(*map(a.get, shapes), epsilon=1e-3)
    half_ulp = float(jnp.finfo(dtype).eps) / 2 + 3e-7
    np.testing.assert_allclose(np.float64(merged["layer"]["kernel"]), kernel, rtol=half_ulp)
    np.testing.assert_allclose(np.float64(merged["layer"]["bias"]), bias, rtol=half_ulp, atol=1e-6)
    assert merged["layer"]["kernel"].dtype == merged["layer"]["bias"].dtype == dtype


def small():
    layer, norm = {"kernel": jnp.ones((2, 3))}, {"scale": jnp.full(3, 2.0), "bias": jnp.ones(3)}
    return {
        "params": {"block": {"Dense_0": layer, "BatchNorm_0": norm}, "Dense_1": {"kernel": jnp.ones((3, 1))}},
        "batch_stats": {"block": {"BatchNorm_0": {"mean": jnp.zeros(3), "var": jnp.ones(3)}}},
    }


PAIR = {"block/Dense_0": "block/BatchNorm_0"}


@pytest.mark.parametrize("container", [dict, OrderedDict, FrozenDict, nnx.State])
def test_containers_and_what_takes_no_part_come_back(container):
    merged = merge_batch_norm(container(small()), PAIR, epsilon=0.0)
    assert type(merged) is container and list(merged) == ["params"]
    expected = {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.ones(3)}
    assert jax.tree.structure(merged) == jax.tree.structure(
        container({"params": {"block": {"Dense_0": expected}, "Dense_1": {"kernel": 0}}})
    )
    jax.tree.map(np.testing.assert_array_equal, dict(merged["params"]["block"]["Dense_0"]), expected)


def test_boxes_come_back_and_what_takes_no_part_is_the_same_object():
    given = small()
    dense = given["params"]["block"]["Dense_0"]
    dense["kernel"] = nn.Partitioned(dense["kernel"], names=(None, "model"))
    given["params"]["block"]["BatchNorm_0"] = {"bias": nn.Partitioned(jnp.ones(3), names=("model",))}
    merged = merge_batch_norm(given, PAIR)["params"]
    assert merged["Dense_1"] is given["params"]["Dense_1"]
    kernel, bias = (merged["block"]["Dense_0"][name] for name in ("kernel", "bias"))
    assert kernel.names == (None, "model") and bias.names == ("model",) and bias.value.shape == (3,)
    assert "bias" not in dense and "batch_stats" in given  # what was given is as it was
    assert merge_batch_norm(given, {}) is given


def test_one_batch_norm_after_two_layers():
    norm = {"mean": jnp.ones(2), "var": jnp.full(2, 4.0)}
    shared = {"a": {"kernel": jnp.ones((1, 2))}, "b": {"kernel": jnp.full((3, 2), 2.0)}, "norm": norm}
    merged = merge_batch_norm(shared, {"a": "norm", "b": "norm"}, epsilon=0.0)
    assert merged.keys() == {"a", "b"} and (merged["b"]["kernel"] == 1).all() and (merged["a"]["bias"] == -0.5).all()


def test_under_jit_and_vmap_with_a_traced_epsilon():
    given, epsilons = small(), jnp.array([0.0, 3.0])
    merged = jax.jit(jax.vmap(lambda e: merge_batch_norm(given, PAIR, epsilon=e)))(epsilons)
    np.testing.assert_array_equal(merged["params"]["block"]["Dense_0"]["kernel"][:, 0, 0], [2.0, 1.0])


@pytest.mark.parametrize(
    "change, pairs, epsilon, error, message",
    [
        ({}, {"Dense_9": "block/BatchNorm_0"}, 0.1, ValueError, "no module 'Dense_9'.*at the top are.*'Dense_1'"),
        ({}, {"block": "block/BatchNorm_0"}, 0.1, ValueError, "no module 'block' with arrays"),
        ({}, {"block/BatchNorm_0": "block/BatchNorm_0"}, 0.1, ValueError, "'block/BatchNorm_0' has no kernel; it has"),
        ({}, {"block/Dense_0": "Dense_1"}, 0.1, ValueError, r"'Dense_1' is no BatchNorm.*it has \['kernel'\]"),
        ({}, {"Dense_1": "block/BatchNorm_0"}, 0.1, ValueError, r"shape \(3,\); the kernel of 'Dense_1'.*\(3, 1\)"),
        ({"bias": jnp.ones(2)}, PAIR, 0.1, ValueError, r"bias of 'block/Dense_0' has shape \(2,\), where \(3,\)"),
        ({"kernel": jnp.ones((2, 3), int)}, PAIR, 0.1, TypeError, "'params/block/Dense_0/kernel' is a .*not one float"),
        ({}, PAIR, -1.0, ValueError, "epsilon of 'block/BatchNorm_0' must be in"),
        (
            {},
            PAIR,
            {"BatchNorm_0": 0.1},
            ValueError,
            r"epsilon is given for \['BatchNorm_0'\].*\['block/BatchNorm_0'\]",
        ),
    ],
)
def test_errors_name_the_path(change, pairs, epsilon, error, message):
    given = small()
    given["params"]["block"]["Dense_0"] |= change
    with pytest.raises(error, match=message):
        merge_batch_norm(given, pairs, epsilon=epsilon)


def test_variables_must_be_a_mapping():
    with pytest.raises(TypeError, match="nested mappings, such as .*not a Nnx"):
        merge_batch_norm(nnx.eval_shape(lambda: Nnx(nnx.Linear, (), True)), {"first": "norm"})
