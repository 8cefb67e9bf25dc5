"""Graphs of traced functions: plans, cutting of trees of every kind, and what is refused, with its reason."""

import dataclasses
import functools
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from flax import linen as nn
from jax import lax
from jax.experimental import io_callback, pallas
from jax.sharding import PartitionSpec
from test_structure_zoo import FAST, close

from jaxprune.structure import trace


def struct(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)


def mlp(params, x):
    h = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"])
    return h @ params["second"]["kernel"]


SHAPES = {"first": {"kernel": struct(3, 6), "bias": struct(6)}, "second": {"kernel": struct(6, 2)}}
X = struct(4, 3)


@functools.cache
def graph():
    return trace(mlp, SHAPES, X)


def between(middle, **options):
    """A graph of two products with something in between, and why the units between them stay."""
    shapes = {"first": struct(3, 6), "second": struct(6, 2)}
    found = trace(lambda p, x: middle(x @ p["first"]) @ p["second"], shapes, X, **options)
    return found, found.why_pinned("first", 1)


# --- plans ----------------------------------------------------------------------------------------------------------


def test_a_plan_names_groups_in_several_ways():
    (group,) = graph().groups
    assert (group.name, group.size, group.description) == ("first/kernel:1", 6, "features of first")
    assert group.members == (("first/kernel", 1), ("second/kernel", 0), ("first/bias", 0))
    assert group.roles == ("out", "in", "")
    wanted = np.array([True, False, True, True, False, False])
    for key in (group, group.name, ("first/kernel", 1), ("first/kernel", -1), ("second/kernel", 0), ("first/bias", -1)):
        for keep in (
            [0, 2, 3],
            (3, 0, 2, 2),
            np.array([0, 2, 3], np.uint8),
            wanted,
            wanted.tolist(),
            jnp.array(wanted),
        ):
            units = graph().at({key: keep}).units
            assert list(units) == [group.name] and (units[group.name] == wanted).all()
    both = graph().at({group: [0, 2, 3, 5], ("second/kernel", 0): [0, 1, 2, 3], ("first/bias", -1): wanted}).units
    assert (both[group.name] == wanted).all()
    kept = graph().at({group: wanted}).kept
    assert kept.keys() == set(group.members) and all((flags == wanted).all() for flags in kept.values())
    assert graph().at({}).kept == graph().at({group: range(6)}).kept == {}


@pytest.mark.parametrize(
    ("plan", "error", "message"),
    [
        ({"third:0": [0]}, ValueError, "there is no group 'third:0'; there are ['first/kernel:1']"),
        ({3: [0]}, ValueError, "there is no group 3; there are ['first/kernel:1']"),
        ({("third", 0): [0]}, ValueError, "there is no parameter 'third'; there are ['first/bias', 'first/kernel', "),
        ({("first/bias", 1): [0]}, ValueError, "'first/bias' has 1 axes and no axis 1"),
        ({("first/bias", -2): [0]}, ValueError, "'first/bias' has 1 axes and no axis -2"),
        ({("first/kernel", 0): [0]}, ValueError, "cannot be cut: axis 1 of input[0]"),
        ({("second/kernel", -1): [0]}, ValueError, "cannot be cut: axis 1 of the output"),
        ({"first/kernel:1": []}, ValueError, "keeps none of the 6 units of group 'first/kernel:1'; at least 1 has to"),
        ({"first/kernel:1": [0], ("first/bias", 0): [1]}, ValueError, "keeps none of the 6 units of group"),
        ({"first/kernel:1": [0, 6]}, ValueError, "index 6 of group 'first/kernel:1' is out of range: it has 6 units"),
        ({"first/kernel:1": [-1]}, ValueError, "index -1 of group 'first/kernel:1' is out of range"),
        ({"first/kernel:1": [True] * 5}, ValueError, "has shape (5,); it needs (6,), one flag a unit"),
        ({"first/kernel:1": [0.5]}, TypeError, "must hold indices or a bool mask, got [0.5]"),
        ({"first/kernel:1": 3}, TypeError, "must hold indices or a bool mask, got 3"),
    ],
)
def test_plans_that_are_refused(plan, error, message):
    with pytest.raises(error, match=re.escape(message)):
        graph().at(plan)


def test_a_traced_plan_is_refused():
    with pytest.raises(TypeError, match="the plan for group 'first/kernel:1' is traced; shapes depend on it"):
        jax.jit(lambda keep: graph().at({"first/kernel:1": keep}).apply)(jnp.ones(6, bool))


def test_part_of_a_group_of_a_convolution_is_refused():
    def function(params, x):
        h = lax.conv_general_dilated(
            x @ params["a"], params["k"], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"), feature_group_count=2
        )
        return h.sum(1) @ params["b"]

    found = trace(function, {"a": struct(3, 4), "k": struct(3, 2, 6), "b": struct(6, 2)}, struct(1, 5, 3))
    assert [(group.size, len(group.members)) for group in found.groups] == [(2, 3)]
    with pytest.raises(ValueError, match=r"entries \[3, 4, 5\] along axis 2 of 'k' can only be removed together, as"):
        found.at({("k", 2): [0, 1, 2, 3]}).cut({})
    with pytest.raises(
        ValueError, match="axis 1 of 'k' cannot be cut: the inputs of one group of a convolution, which"
    ):
        found.at({("k", 1): [0]}).cut({})
    assert found.at({("k", 2): [3, 4, 5]}).units["a:1"].tolist() == [False, True]


def test_entries_without_their_like_have_to_stay():
    shapes = {"a": struct(3, 7), "b": struct(3, 2)}
    found = trace(lambda p, x: ((h := x @ p["a"])[:, :3] + h[:, 4:]) @ p["b"], shapes, X)
    assert [(group.name, group.size) for group in found.groups] == [("a:1", 3)]
    reason = "entries of a single unit, which has no like beside it, or that no product makes or uses"
    assert found.why_pinned("a", 1) == reason
    with pytest.raises(ValueError, match=f"entry 3 along axis 1 of 'a' has to stay: {reason}"):
        found.at({("a", 1): [0, 1, 2, 4, 5, 6]})
    assert found.why_pinned("b", 0) == ""


def test_groups_along_the_same_axis_have_names_of_their_own():
    shapes = {"a": struct(3, 7), "b": struct(4, 2), "c": struct(3, 2)}
    found = trace(lambda p, x: (h := x @ p["a"])[:, 3:] @ p["b"] + h[:, :3] @ p["c"], shapes, X)
    assert [(group.name, group.size) for group in found.groups] == [("a:1", 3), ("a:1#2", 4)]
    plan = {"a:1": [0, 2], "a:1#2": [3]}
    assert {key: flags.tolist() for key, flags in found.at(plan).kept.items()} == {
        ("a", 1): [True, False, True, False, False, False, True],
        ("b", 0): [False, False, False, True],
        ("c", 0): [True, False, True],
    }
    by_axis = found.at({("a", 1): [0, 2, 6]}).units
    assert {name: flags.tolist() for name, flags in by_axis.items()} == {
        name: flags.tolist() for name, flags in found.at(plan).units.items()
    }


def test_a_plan_from_masks():
    (group,) = graph().groups
    everything = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), SHAPES)
    assert graph().plan_from(everything) == {}
    made = {"first": {"kernel": np.ones((1, 6), bool), "bias": np.ones((), bool)}, "second": {"kernel": np.True_}}
    made["first"]["kernel"][0, [1, 4]] = False
    assert graph().plan_from(made)[group.name].tolist() == [True, False, True, True, False, True]
    used = jax.tree.map(np.copy, everything)
    used["second"]["kernel"][2] = False
    used["second"]["kernel"][3, 0] = False  # not altogether
    assert graph().plan_from(used)[group.name].tolist() == [True, True, False, True, True, True]
    with pytest.raises(TypeError, match="mask 'first/bias' must be a concrete bool array"):
        graph().plan_from(SHAPES | {"first": {"kernel": np.True_, "bias": np.ones(6)}})


def queries_that_share(batched, repeated):
    """Eight heads of queries of width 4, one key and one value for all, kernels of two axes."""

    def one(p, x):
        q = (x @ p["q"]).reshape(-1, 8, 4)
        k, v = x @ p["k"], x @ p["v"]
        if repeated:
            k, v = (jnp.broadcast_to(one.reshape(-1, 1, 4), q.shape) for one in (k, v))
            weights = jax.nn.softmax(jnp.einsum("thd,shd->hts", q, k))
            return jnp.einsum("hts,shd->thd", weights, v).reshape(-1, 32) @ p["o"]
        weights = jax.nn.softmax(jnp.einsum("thd,sd->hts", q, k))
        return jnp.einsum("hts,sd->thd", weights, v).reshape(-1, 32) @ p["o"]

    return jax.vmap(one, (None, 0)) if batched else lambda p, x: one(p, x[0])


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("repeated", [True, False])
def test_case_57_heads_of_queries_that_share_keys(batched, repeated):
    shapes = {"q": struct(16, 32), "k": struct(16, 4), "v": struct(16, 4), "o": struct(32, 16)}
    function, x = queries_that_share(batched, repeated), struct(2, 5, 16)
    (heads,) = trace(function, shapes, x).groups
    assert (heads.size, heads.members, heads.description) == (8, (("q", 1), ("o", 0)), "heads of q")
    np.testing.assert_array_equal(heads.units, np.repeat(np.arange(8), 4)[None].repeat(2, 0))
    smaller, params = trace(function, shapes, x).at({heads: [0, 3, 4]}), zoo.fill(shapes)
    assert smaller.certificate.exact
    if batched and not repeated:  # the numbers of one stand for all
        small, dense = (jax.jit(one, compiler_options=FAST) for one in (smaller.apply, function))
        close(small(smaller.cut(params), zoo.fill(x, 1)), dense(smaller.mask(params), zoo.fill(x, 1)))
    trailing = trace(function, shapes, x, split="trailing").groups
    assert [(group.size, group.members) for group in trailing] == [
        (4, (("q", 1), ("k", 1))),
        (4, (("v", 1), ("o", 0))),
    ]


STACKED = {"up": struct(2, 3, 6), "down": struct(6, 2)}
IDS = jax.ShapeDtypeStruct((4, 5), np.int32)
TABLES = {"words": struct(7, 6), "places": struct(5, 6), "scale": struct(6), "head": struct(6, 2)}
STEPS = {"in": struct(3, 6), "u": struct(6, 6), "w": struct(6, 6), "out": struct(6, 2)}


def stepped(p, xs):
    """A recurrent cell after a layer: the states of all steps."""

    def step(h, x):
        h = jnp.tanh(x @ p["u"] + h @ p["w"])
        return h, h

    return lax.scan(step, jnp.zeros((4, 6)), xs)[1]


NAMED = {
    "gate and value, one product": (
        lambda p, x: jnp.multiply(*jnp.einsum("bd,cdf->cbf", x, p["up"])) @ p["down"],
        (STACKED, X),
        "gated product of up",
    ),
    "gate and value, one kernel": (
        lambda p, x: jax.nn.silu(x @ p["up"][0]) * (x @ p["up"][1]) @ p["down"],
        (STACKED, X),
        "gated product of up",
    ),
    "gate and value, taken apart": (
        lambda p, x: jnp.multiply(*jnp.unstack(jnp.einsum("bd,cdf->bcf", x, p["up"]), axis=1)) @ p["down"],
        (STACKED, X),
        "gated product of up",
    ),
    "two parts that are added": (
        lambda p, x: jnp.add(*jnp.einsum("bd,cdf->cbf", x, p["up"])) @ p["down"],
        (STACKED, X),
        "features of up",
    ),
    "its own gate": (
        lambda p, x: jax.nn.silu(h := x @ p["up"][0]) * h @ p["down"],
        (STACKED, X),
        "features of up",
    ),
    "an embedding": (lambda p, ids: p["words"][ids] * p["scale"] @ p["head"], (TABLES, IDS), "features of words"),
    "embeddings that are added": (
        lambda p, ids: (p["words"][ids] + p["places"]) * p["scale"] @ p["head"],
        (TABLES, IDS),
        "residual width, made by words, places",
    ),
    "states": (
        lambda p, x: stepped(p, (x @ p["in"])[None]) @ p["out"],
        (STEPS, X),
        "features of in; recurrent state of u, w",
    ),
    "states that are added": (
        lambda p, x: ((y := (x @ p["in"])[None]) + stepped(p, y)) @ p["out"],
        (STEPS, X),
        "residual width, made by in, u, w",
    ),
    "layers in a loop": (
        lambda p, x: lax.fori_loop(0, 3, lambda _, h: h + jnp.sin(h @ p["u"]) @ p["w"], x @ p["in"]) @ p["out"],
        (STEPS, X),
        "residual width, made by in, w; features of u",
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_units_are_called(name):
    function, given, words = NAMED[name]
    assert "; ".join(group.description for group in trace(function, *given).groups) == words


# --- cutting --------------------------------------------------------------------------------------------------------


def test_cases_24_removal_behind_offsets():
    """Cases, row 24: nonzero biases and BatchNorm offsets; row 25's flatten, at 4x4."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(x)))
            x = nn.Dense(128)(x.reshape(x.shape[0], -1))
            return nn.Dense(5)(x)

    module, x = Net(), struct(2, 4, 4, 3)
    shapes = jax.eval_shape(module.init, zoo.KEY, x)
    found, params = trace(module.apply, shapes, x), zoo.fill(shapes)
    keep = [0, 2, 3, 4, 6, 7]
    plan = {("params/Conv_0/kernel", 3): keep}
    small = found.at(plan).cut(params)
    assert small["params"]["Dense_0"]["kernel"].shape == (96, 128)
    rows = np.asarray(params["params"]["Dense_0"]["kernel"]).reshape(16, 8, 128)[:, keep].reshape(96, 128)
    np.testing.assert_array_equal(small["params"]["Dense_0"]["kernel"], rows)
    np.testing.assert_array_equal(
        small["batch_stats"]["BatchNorm_0"]["mean"], params["batch_stats"]["BatchNorm_0"]["mean"][keep]
    )
    inputs = zoo.fill(x, 1)
    masked = found.at(plan).mask(params)
    np.testing.assert_array_equal(masked["params"]["BatchNorm_0"]["bias"][np.array([1, 5])], 0)
    cut, dense = (jax.jit(function, compiler_options=FAST) for function in (found.at(plan).apply, module.apply))
    close(cut(small, inputs), dense(masked, inputs))


def test_case_26_coupled_channels_are_cut_once_and_together():
    def function(params, x):
        h = x @ params["in"]
        for layer in params["layers"]:
            h = h + jnp.tanh(h @ layer["up"]) @ layer["down"]
        return h @ params["out"]

    layer = {"up": struct(64, 5), "down": struct(5, 64)}
    found = trace(function, {"in": struct(3, 64), "layers": [layer, layer], "out": struct(64, 2)}, X)
    (group,) = [group for group in found.groups if group.size == 64]
    members = {("in", 1), ("out", 0), *((f"layers/{i}/{n}", a) for i in (0, 1) for n, a in (("up", 0), ("down", 1)))}
    assert set(group.members) == members
    assert group.description == "residual width, made by in, layers/0, layers/1"
    kept = found.at({group: range(45)}).kept
    assert kept.keys() == members and all(flags.sum() == 45 for flags in kept.values())


def test_gradients_optimizer_states_and_masks_are_cut_alike_and_train_on():
    params, x = zoo.fill(SHAPES), zoo.fill(X, 1)
    keep = [0, 2, 5]
    plan = {graph().groups[0]: keep}

    def loss(function, params):
        return (function(params, x) ** 2).sum()

    optimizer = optax.chain(optax.clip_by_global_norm(1e6), optax.adam(1e-2), optax.trace(0.9))

    @functools.partial(jax.jit, static_argnums=0, compiler_options=FAST)
    def step(function, params, state):
        before, gradient = jax.value_and_grad(lambda params: loss(function, params))(params)
        updates, state = optimizer.update(gradient, state)
        after = optax.apply_updates(params, updates)
        return gradient, state, before, loss(function, after)

    gradient, state, *_ = step(mlp, graph().at(plan).mask(params), optimizer.init(params))
    small = graph().at(plan).cut({"state": state, "gradient": gradient, "params": params, "step": 3})
    assert small["step"] == 3 and small["state"][1][0].count.shape == ()
    for tree in (small["params"], small["gradient"], small["state"][1][0].mu, small["state"][2].trace):
        assert jax.tree.map(np.shape, tree) == {"first": {"bias": (3,), "kernel": (3, 3)}, "second": {"kernel": (3, 2)}}
    np.testing.assert_array_equal(
        small["state"][1][0].nu["first"]["kernel"], state[1][0].nu["first"]["kernel"][:, keep]
    )
    own, _, before, after = step(graph().at(plan).apply, small["params"], small["state"])
    close(own, small["gradient"])
    assert after < before
    masks = {"first": {"kernel": np.ones((1, 6), bool), "bias": np.True_}, "second": {"kernel": np.ones((6, 2), bool)}}
    cut = graph().at(plan).cut(masks)
    assert jax.tree.map(np.shape, cut) == {"first": {"bias": (), "kernel": (1, 3)}, "second": {"kernel": (3, 2)}}
    assert all(isinstance(leaf, np.ndarray | np.bool_) for leaf in jax.tree.leaves(cut))


def test_collections_are_cut_on_their_own():
    model = zoo.MODELS["nnx cnn"]()
    state = zoo.fill(model.params)
    found = trace(model.function, model.params, *model.inputs(2))
    cut = found.at({found.groups[0]: [1, 2]}).cut(state)
    assert type(cut) is type(state) and cut["norm"]["mean"].get_value().shape == (2,)

    shapes = {"params": {"a": {"kernel": struct(3, 6), "scale": struct(6)}}, "stats": {"a": {"mean": struct(6)}}}
    shapes["params"]["b"] = {"kernel": struct(6, 2)}

    def function(variables, x):
        a, b = variables["params"]["a"], variables["params"]["b"]
        return (x @ a["kernel"] * a["scale"] - variables["stats"]["a"]["mean"]) @ b["kernel"]

    found = trace(function, shapes, X)
    plan = {found.groups[0]: [4]}
    cut = found.at(plan).cut([zoo.fill(shapes["params"]), zoo.fill(shapes["stats"])])
    assert cut[0]["a"]["kernel"].shape == (3, 1) and cut[1]["a"]["mean"].shape == (1,)


def test_states_of_adafactor_are_cut_unless_they_are_factored():
    params = {"w": jnp.ones((6, 8)), "o": jnp.ones((8, 4))}
    graph = trace(lambda p, x: jax.nn.relu(x @ p["w"]) @ p["o"], params, jnp.ones((2, 6)))
    half = graph.at({"w:1": range(4)})
    plain, factored = optax.adafactor(1e-2), optax.adafactor(1e-2, min_dim_size_to_factor=2)
    small, state = half.cut(params), half.cut(plain.init(params))
    chex.assert_trees_all_equal_shapes(state, jax.eval_shape(plain.init, small))
    updates, _ = jax.eval_shape(plain.update, small, state, small)
    chex.assert_trees_all_equal_shapes(updates, small)
    with pytest.raises(ValueError, match=r"leaf 'o' has shape \(4,\).*init a new state with the cut parameters"):
        half.cut(factored.init(params))


def test_the_state_of_an_optimizer_for_a_part_of_the_parameters():
    layer = {"kernel": struct(4, 4), "bias": struct(4)}
    shapes = {"params": {"a": layer, "b": layer}, "stats": {"mean": struct(4)}}

    def function(variables, x):
        a, b = variables["params"]["a"], variables["params"]["b"]
        h = jnp.sin(x @ a["kernel"] + a["bias"] - variables["stats"]["mean"])
        return h @ b["kernel"] + b["bias"]

    found = trace(function, shapes, struct(2, 4))
    plan, params = {found.groups[0]: [0, 3]}, zoo.fill(shapes)["params"]
    for trained, expected in (("a", {"kernel": (4, 2), "bias": (2,)}), ("b", {"kernel": (2, 4), "bias": (4,)})):
        labels = {name: "train" if name == trained else "freeze" for name in params}
        optimizer = optax.multi_transform({"train": optax.adam(1e-3), "freeze": optax.set_to_zero()}, labels)
        cut = found.at(plan).cut(optimizer.init(params))
        mu = cut.inner_states["train"].inner_state[0].mu
        assert jax.tree.map(np.shape, mu[trained]) == expected and len(jax.tree.leaves(mu)) == 2


def test_trees_that_cannot_be_cut():
    plan = {graph().groups[0]: [0, 1]}
    params = zoo.fill(SHAPES)
    with pytest.raises(ValueError, match="no part of the tree is like the parameters, whose structure is PyTreeDef"):
        graph().at(plan).cut((1.0, params["first"]["kernel"]))
    narrow = params | {"second": {"kernel": np.ones((5, 2))}}
    with pytest.raises(ValueError, match=r"leaf 'second/kernel' has shape \(5, 2\), but was traced with \(6, 2\)"):
        graph().at(plan).cut(narrow)
    with pytest.raises(ValueError, match=r"leaf 'second/kernel' has shape \(5, 2\), but was traced with \(6, 2\)"):
        graph().at(plan).mask(narrow)
    layer = {"w": struct(4, 4)}
    alike = trace(lambda p, x: jnp.sin(x @ p["a"]["w"]) @ p["b"]["w"], {"a": layer, "b": layer}, struct(2, 4))
    with pytest.raises(ValueError, match="is like several parts of the parameters; give it inside a tree like all of"):
        alike.at({alike.groups[0]: [0]}).cut({"mu": {"w": np.ones((4, 4))}})


def test_the_small_function_takes_cut_parameters_alone():
    params, x = zoo.fill(SHAPES), zoo.fill(X)
    plan = {graph().groups[0]: [0, 1]}
    small = graph().at(plan).apply
    with pytest.raises(ValueError, match=r"leaf 'first/bias' has shape \(6,\); cut parameters have \(2,\)"):
        small(params, x)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), graph().at(plan).cut(params))
    with pytest.raises(
        ValueError, match="leaf 'first/bias' has dtype bfloat16, but was traced with float32; trace the"
    ):
        small(narrow, x)
    with pytest.raises(ValueError, match="the parameters have the structure .* expected PyTreeDef"):
        small({"first": params["first"]}, x)


# --- what stays -----------------------------------------------------------------------------------------------------


MESH = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
PINNED = {
    "combined in order along this axis: `cumsum`": lambda h: jnp.cumsum(h, 1),
    "sorted along this axis: `sort`": lambda h: jnp.sort(h, 1),
    "sorted along this axis: `top_k`": lambda h: lax.top_k(h, 6)[0],
    "the result is a position along this axis: `argmax`": lambda h: h * jnp.argmax(h, 1)[:, None],
    "indexed by positions known at run time: `gather`": lambda h: h[:, jnp.arange(6)[::-1]],
    "written at positions known at run time: `scatter": lambda h: h.at[:, 2].set(0),
    "sliced at a position known at run time: `dynamic_slice`": lambda h: jnp.tile(
        lax.dynamic_slice(h, (0, jnp.int32(h[0, 0])), (4, 3)), (1, 2)
    ),
    "written at a position known at run time: `dynamic_update_slice`": lambda h: lax.dynamic_update_slice(
        h, jnp.ones((4, 3)), (0, jnp.int32(h[0, 0]))
    ),
    "picks this entry alone: `slice`": lambda h: h + h[:, 2:3],
    "picks each of these entries alone: `unstack`": lambda h: jnp.stack(jnp.unstack(h, axis=1), 1),
    "the steps of a scan: `scan`": lambda h: lax.scan(lambda carry, row: (carry + row, row), jnp.zeros(4), h.T)[1].T,
    "combined in windows along this axis: `reduce_window_max`": lambda h: lax.reduce_window(
        h, -jnp.inf, lax.max, (1, 2), (1, 1), "SAME"
    ),
    "padded between entries, or by a negative width: `pad`": lambda h: lax.pad(h, 0.0, ((0, 0, 0), (0, -5, 1)))[:, :6],
    "a Fourier transform along this axis: `fft`": lambda h: jnp.abs(jnp.fft.fft(h)),
    "no rule for this operation: `cholesky`": lambda h: h @ lax.linalg.cholesky(h.T @ h + jnp.eye(6)),
    "no rule for this operation: `pure_callback`": lambda h: jax.pure_callback(np.sin, struct(4, 6), h),
    "has the effect IO: `io_callback`": lambda h: io_callback(np.sin, struct(4, 6), h),
    "has the effect Debug: `debug_print`": lambda h: (jax.debug.print("{}", h), h)[1],
    "no rule for this operation: `pallas_call`": lambda h: pallas.pallas_call(
        lambda ref, out: out.__setitem__(..., ref[...] * 2), struct(4, 6), interpret=True
    )(h),
    "no rule for this operation: `shard_map`": lambda h: jax.shard_map(
        jnp.sin, mesh=MESH, in_specs=PartitionSpec("d"), out_specs=PartitionSpec("d")
    )(h),
    "a reshape of an empty array: `reshape`": lambda h: h + h[:0].reshape(6, 0).sum(1),
}


@pytest.mark.parametrize("reason", PINNED)
def test_why_units_stay_with_the_line_of_the_source(reason):
    found, why = between(PINNED[reason])
    lines = Path(__file__).read_text().splitlines()
    (first,) = [part for part in why.split("; ") if part.startswith(reason)][:1] or [why]
    assert first.startswith(reason)
    line = re.search(r"test_structure\.py:(\d+)", first)
    assert line and "lambda" in "".join(lines[int(line[1]) - 3 : int(line[1]) + 1]), first
    assert not any(("first", 1) in group.members for group in found.groups if group.size == 6)
    with pytest.raises(ValueError, match=re.escape(reason)):
        found.at({("first", 1): [0]})


def test_operations_without_a_rule_run_on():
    """What a callback and a body for several devices need whole stays whole; the rest can be cut."""

    def function(params, x):
        h = jax.pure_callback(np.sin, struct(4, 5), x @ params["a"])
        spec = PartitionSpec("d")
        h = jax.shard_map(jnp.sin, mesh=MESH, in_specs=spec, out_specs=spec)(h)
        return jnp.tanh(h @ params["b"]) @ params["c"]

    shapes = {"a": struct(3, 5), "b": struct(5, 6), "c": struct(6, 2)}
    found, params, x = trace(function, shapes, X), zoo.fill(shapes), zoo.fill(X, 1)
    (group,) = found.groups
    plan = {group: [1, 4]}
    close(found.at(plan).apply(found.at(plan).cut(params), x), function(found.at(plan).mask(params), x))


def test_outputs_stay_unless_they_are_free():
    def function(params, x):
        h = x @ params["a"]
        return h @ params["b"], {"seen": h.mean(0), "also": h[:1]}

    shapes = {"a": struct(3, 6), "b": struct(6, 2)}
    assert trace(function, shapes, X).groups == ()
    assert "axis 0 of the output '1/seen'" in trace(function, shapes, X, free_output="1/also").why_pinned("a", 1)
    for free in ("1/*", ["1/seen", "1/also"], lambda path, output: path.startswith("1") and output.ndim > 0):
        found = trace(function, shapes, X, free_output=free)
        plan = {found.groups[0]: [2, 3]}
        out, seen = jax.eval_shape(found.at(plan).apply, found.at(plan).cut(zoo.fill(shapes)), X)
        assert out.shape == (4, 2) and jax.tree.map(np.shape, seen) == {"also": (1, 2), "seen": (2,)}
    with pytest.raises(ValueError, match=r"free_output '2/\*' matches none of \['0', '1/also', '1/seen'\]"):
        trace(function, shapes, X, free_output="2/*")


def test_shapes_that_tie_axes_otherwise_are_refused():
    def function(params, x):
        h = x @ params["a"]
        return (jnp.cumsum(h, 1) if x.shape[0] > 4 else h) @ params["b"]

    shapes = {"a": struct(3, 6), "b": struct(6, 2)}
    found = trace(function, shapes, X)
    plan = {found.groups[0]: [0, 1]}
    small, params = found.at(plan).apply, found.at(plan).cut(zoo.fill(shapes))
    assert small(params, np.ones((2, 3), np.float32)).shape == (2, 2)
    message = "at these input shapes axis 1 of 'a' cannot be cut as planned; entries are tied to combined in order"
    with pytest.raises(ValueError, match=message):
        small(params, np.ones((5, 3), np.float32))


def test_symbolic_dimensions_are_refused():
    (batch,) = jax.export.symbolic_shape("batch")
    with pytest.raises(ValueError, match=r"symbolic dimensions cannot be traced: args\[1\] has shape \(batch, 3\)"):
        trace(mlp, SHAPES, jax.ShapeDtypeStruct((batch, 3), np.float32))


def test_unknown_options_and_parameters():
    with pytest.raises(ValueError, match="split must be 'leading' or 'trailing', got 'middle'"):
        trace(mlp, SHAPES, X, split="middle")
    with pytest.raises(ValueError, match="there is no parameter 'third'; there are"):
        graph().why_pinned("third", 0)
    with pytest.raises(ValueError, match="'first/bias' has 1 axes and no axis 1"):
        graph().why_pinned("first/bias", 1)
    assert graph().why_pinned("first/bias", -1) == "" == graph().why_pinned("first/bias", 0)


def test_one_axis_of_several_is_cut_and_the_choice_is_reported():
    def function(params, x):
        h = jnp.sin((x @ params["a"]).reshape(4, 3, 2))
        return h.reshape(4, 6) @ params["b"]

    shapes = {"a": struct(3, 6), "b": struct(6, 2)}
    for split, size, units in (("leading", 3, [0, 0, 1, 1, 2, 2]), ("trailing", 2, [0, 1, 0, 1, 0, 1])):
        found = trace(function, shapes, X, split=split)
        (group,) = found.groups
        assert (group.size, group.units[0].tolist()) == (size, units)
        assert [words.partition(": `reshape` at ")[0] for words in found.ambiguous] == [
            "splits an axis into (3, 2)",
            "merges axes that could each be cut",
        ]
        assert all("test_structure.py:" in words for words in found.ambiguous)
    assert not graph().ambiguous


def test_weights_are_not_needed_and_scalars_will_do():
    def function(params, x, scale):
        return mlp(params, x) * scale

    one, other = trace(function, SHAPES, X, struct()), trace(function, zoo.fill(SHAPES), zoo.fill(X), 2.0)
    assert one.groups == other.groups == graph().groups
    plan = {one.groups[0]: [0, 3]}
    small = one.at(plan).cut(zoo.fill(SHAPES))
    close(one.at(plan).apply(small, zoo.fill(X), 2.0), other.at(plan).apply(small, zoo.fill(X), 2.0))


def test_numpy_arrays_of_wide_types_are_taken_as_jax_takes_them(recwarn):
    params, x = jax.tree.map(lambda leaf: np.ones(leaf.shape), SHAPES), np.ones((4, 3))
    found = trace(mlp, params, x)
    plan = {found.groups[0]: [0, 3]}
    out = found.at(plan).apply(found.at(plan).cut(params), x)
    assert out.dtype == jnp.float32 and not recwarn.list


def test_what_is_shown_fits_a_screen():
    found = trace(mlp, {name: dict(leaves) for name, leaves in SHAPES.items()}, X)
    assert repr(found) == "Graph(1 groups of 6 units, in 3 parameters)"
    assert repr(found.groups[0]).startswith(
        "Group('first/kernel:1', 6 units: features of first; axis 1 of 'first/kernel'"
    )
    assert repr(found.at({found.groups[0]: [0, 1]})) == "Resolved(2 of 6 units of 1 groups stay)"
    many = [found.groups[0].members[0]] * 100
    assert len(repr(dataclasses.replace(found.groups[0], members=tuple(many)))) < 300


def test_arrays_on_the_host_and_on_a_device_are_cut_alike():
    plan = {graph().groups[0]: [0, 3, 4]}
    params = jax.device_put(zoo.fill(SHAPES), jax.devices()[0])
    there, here = graph().at(plan).cut(params), graph().at(plan).cut(jax.tree.map(np.asarray, params))
    traced = jax.jit(graph().at(plan).cut)(params)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(here))
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(there), strict=True):
        assert after.sharding == before.sharding
    jax.tree.map(np.testing.assert_array_equal, there, here)
    jax.tree.map(np.testing.assert_array_equal, traced, here)
