"""``jp.shrink``: scores of units, budgets, reports. Plain NumPy says which units have to go."""

import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxprune as jp
from jaxprune.structure import ShrinkSpec, trace

SIZES = (6, 16, 12, 3)
X = jnp.asarray(np.random.default_rng(1).normal(size=(5, SIZES[0])), jnp.float32)


def mlp(params, x):
    for name in sorted(params)[:-1]:
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    last = params[sorted(params)[-1]]
    return x @ last["kernel"] + last["bias"]


def weights(seed=0, dtype=jnp.float32):
    random = np.random.default_rng(seed)
    return {
        f"layer{i}": {
            "kernel": jnp.asarray(random.normal(size=SIZES[i : i + 2]), dtype),
            "bias": jnp.asarray(random.normal(size=SIZES[i + 1]), dtype),
        }
        for i in range(3)
    }


def hidden_scores(params, criterion=np.abs):
    """Of both hidden layers: the mean over kernel columns and the next kernel's rows of s / mean(s)."""
    scores = []
    for i in (0, 1):
        made = criterion(np.asarray(params[f"layer{i}"]["kernel"], np.float64)).mean(axis=0)
        used = criterion(np.asarray(params[f"layer{i + 1}"]["kernel"], np.float64)).mean(axis=1)
        scores.append((made / made.mean() + used / used.mean()) / 2)
    return scores


def kept_by(shrunk):
    return [np.flatnonzero(flags) for flags in shrunk.plan.values()]


def highest(scores, keep):
    return np.sort(np.argsort(scores, kind="stable")[scores.size - keep :])


def test_the_same_fraction_of_each_group():
    params = weights()
    shrunk = jp.shrink(mlp, params, X, sparsity=0.3)
    expected = [highest(scores, keep) for scores, keep in zip(hidden_scores(params), (11, 8), strict=True)]
    assert [k.tolist() for k in kept_by(shrunk)] == [e.tolist() for e in expected]
    for i, axis, kept in ((0, 1, expected[0]), (1, 0, expected[0]), (1, 1, expected[1]), (2, 0, expected[1])):
        assert shrunk.params[f"layer{i}"]["kernel"].shape[axis] == kept.size
    np.testing.assert_array_equal(
        shrunk.params["layer1"]["kernel"], np.asarray(params["layer1"]["kernel"])[np.ix_(*expected)]
    )
    np.testing.assert_array_equal(shrunk.params["layer0"]["bias"], np.asarray(params["layer0"]["bias"])[expected[0]])


def test_one_ranking_over_all_groups():
    params = weights(2)
    scores = hidden_scores(params)
    order = np.argsort(np.concatenate(scores), kind="stable")[: math.floor(28 * 0.4 + 0.5)]
    gone = [order[order < 16], order[order >= 16] - 16]
    kept = kept_by(jp.shrink(mlp, params, X, sparsity=0.4, scope="global"))
    assert [k.tolist() for k in kept] == [
        np.delete(np.arange(s.size), g).tolist() for s, g in zip(scores, gone, strict=True)
    ]


def test_the_small_function_is_the_masked_one():
    params = weights(3)
    shrunk = jp.shrink(mlp, params, X, sparsity=0.5, scope="global")
    masked = trace(mlp, params, X).at(shrunk.plan).mask(params)
    expected = jax.jit(mlp)(masked, X)
    chex.assert_trees_all_close(shrunk.apply(shrunk.params, X), expected, atol=1e-5)
    chex.assert_trees_all_close(jax.jit(shrunk.apply)(shrunk.params, X[:2]), expected[:2], atol=1e-5)
    assert shrunk.report.certificate.exact


@pytest.mark.parametrize(
    ("size", "sparsity", "round_to", "keep"),
    [(16, 1 / 16, 16, 16), (16, 0.5, 1, 8), (16, 0.6, 4, 8), (12, 0.5, 8, 8), (12, 0.9, 16, 12), (64, 0.3, 1, 45)],
)
def test_counts_round_up(size, sparsity, round_to, keep):
    """Case 26: 16 channels of which one goes stay 16 in multiples of 16; 64 at 0.3 are 45."""
    params = {"a": jnp.ones((2, size)), "b": jnp.ones((size, 2))}
    small = jp.shrink(
        lambda p, x: x @ p["a"] @ p["b"],
        params,
        jnp.ones((1, 2)),
        sparsity=sparsity,
        scope="global",
        spec=ShrinkSpec(round_to=round_to),
    ).params
    assert small["a"].shape == (2, keep) and small["b"].shape == (keep, 2)


def test_coupled_channels_are_cut_once():
    """Case 26: 64 channels that a residual path shares lose 19 at 0.3, in all layers together."""
    params = {
        name: jnp.asarray(np.random.default_rng(i).normal(size=s), jnp.float32)
        for i, (name, s) in enumerate(
            {"stem": (4, 64), "block1": (64, 64), "block2": (64, 64), "head": (64, 2)}.items()
        )
    }

    def residual(p, x):
        x = x @ p["stem"]
        x = x + jax.nn.relu(x @ p["block1"])
        return (x + jax.nn.relu(x @ p["block2"])) @ p["head"]

    small = jp.shrink(residual, params, jnp.ones((1, 4)), sparsity=0.3, scope="global").params
    assert [small[name].shape for name in params] == [(4, 45), (45, 45), (45, 45), (45, 2)]


def test_every_group_keeps_its_minimum():
    params = weights(4)
    params["layer0"]["kernel"] = params["layer0"]["kernel"] * 1e-3  # a scale of its own means nothing
    params["layer1"] = jax.tree.map(lambda w: w, params["layer1"])
    assert [k.size for k in kept_by(jp.shrink(mlp, params, X, sparsity=1.0, scope="global"))] == [1, 1]
    assert [
        k.size for k in kept_by(jp.shrink(mlp, params, X, sparsity=1.0, scope="global", spec=ShrinkSpec(min_keep=5)))
    ] == [5, 5]
    fraction = jp.shrink(mlp, params, X, sparsity=1.0, spec=ShrinkSpec(min_keep=0.3))
    assert [k.size for k in kept_by(fraction)] == [5, 4]
    assert [k.size for k in kept_by(jp.shrink(mlp, params, X, sparsity=0.0))] == [16, 12]


def entries(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_a_budget_of_parameters_is_met_with_the_most_units():
    params = weights(5)
    shrunk = jp.shrink(mlp, params, X, sparsity=0.6, scope="parameters")
    assert shrunk.report.parameters == (entries(params), entries(shrunk.params))
    assert entries(shrunk.params) <= 0.4 * entries(params)
    removed = sum(int((~flags).sum()) for flags in shrunk.plan.values())
    one_less = jp.shrink(mlp, params, X, sparsity=(removed - 1) / 28, scope="global")
    assert entries(one_less.params) > 0.4 * entries(params)


def test_operations_are_those_of_the_products():
    params = weights(6)
    shrunk = jp.shrink(mlp, params, X, sparsity=0.5, scope="flops")
    a, b = (k.size for k in kept_by(shrunk))
    assert shrunk.report.flops == (2 * 5 * (6 * 16 + 16 * 12 + 12 * 3), 2 * 5 * (6 * a + a * b + b * 3))
    assert shrunk.report.flops[1] <= 0.5 * shrunk.report.flops[0]


def test_operations_of_convolutions_scans_and_branches():
    kernel = jnp.ones((3, 3, 2, 8))
    graph = trace(
        lambda p, x: jax.lax.conv_general_dilated(x, p, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
        kernel,
        jnp.ones((4, 5, 5, 2)),
    )
    assert graph.at({}).flops == 2 * 4 * 5 * 5 * 8 * 9 * 2

    def loops(p, x):
        x, _ = jax.lax.scan(lambda c, _: (c @ p, None), x, None, length=7)
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ p @ p, lambda x: x @ p, x)

    assert trace(loops, jnp.ones((4, 4)), jnp.ones((2, 4))).at({}).flops == 2 * 2 * 4 * 4 * (7 + 2)


def test_latency_is_measured(monkeypatch):
    from jaxprune.structure import shrinking

    monkeypatch.setattr(shrinking, "_seconds", lambda fn, small, *inputs: float(entries(small)))
    params = weights(7)
    shrunk = jp.shrink(mlp, params, X, sparsity=0.6, scope="latency")
    assert entries(shrunk.params) == entries(jp.shrink(mlp, params, X, sparsity=0.6, scope="parameters").params)


def test_seconds_times_compiled_calls():
    from jaxprune.structure import shrinking

    calls = []
    assert shrinking._seconds(lambda x: calls.append(1) or x + 1, X, repeats=3) > 0
    assert len(calls) == 1


def test_scores_of_units_and_of_chosen_leaves():
    params = weights(8)
    by_norm = jp.shrink(mlp, params, X, sparsity=0.5, saliency=lambda p: jp.saliency.unit_norm(p, ord=2))
    norms = [np.linalg.norm(np.asarray(params[f"layer{i}"]["kernel"]), axis=0) for i in (0, 1)]
    assert [k.tolist() for k in kept_by(by_norm)] == [highest(n, n.size // 2).tolist() for n in norms]
    by_bias = jp.shrink(mlp, params, X, sparsity=0.5, where=lambda path, leaf: path.endswith("bias"))
    biases = [np.abs(np.asarray(params[f"layer{i}"]["bias"])) for i in (0, 1)]
    assert [k.tolist() for k in kept_by(by_bias)] == [highest(b, b.size // 2).tolist() for b in biases]


def test_scores_of_some_leaves_that_data_give():
    params = weights(9)
    activations = jax.nn.relu(X @ params["layer0"]["kernel"] + params["layer0"]["bias"])
    entropy = jp.saliency.activation_entropy(activations)
    shrunk = jp.shrink(
        mlp,
        params,
        X,
        sparsity=0.5,
        saliency=lambda p: {"layer0": {"bias": entropy}},
        spec=ShrinkSpec(groups="layer0/*"),
    )
    assert kept_by(shrunk)[0].tolist() == highest(np.asarray(entropy), 8).tolist()
    assert list(shrunk.plan) == ["layer0/kernel:1"]


def test_nan_is_kept_and_a_constant_group_goes_by_index():
    params = weights(10)
    params["layer0"]["kernel"] = params["layer0"]["kernel"].at[2, 3].set(jnp.nan)
    assert 3 in kept_by(jp.shrink(mlp, params, X, sparsity=0.9))[0]
    alike = jax.tree.map(jnp.ones_like, weights())
    assert kept_by(jp.shrink(mlp, alike, X, sparsity=0.5))[0].tolist() == list(range(8, 16))
    zeros = jax.tree.map(jnp.zeros_like, weights())
    assert kept_by(jp.shrink(mlp, zeros, X, sparsity=0.5))[1].tolist() == list(range(6, 12))


@pytest.mark.slow
def test_shrink_and_train_and_shrink_again():
    params = weights(11, jnp.bfloat16)
    first = jp.shrink(mlp, params, X.astype(jnp.bfloat16), sparsity=0.25, scope="global")
    optimizer = optax.adam(0.05)
    loss = lambda p: jnp.mean(jnp.square(first.apply(p, X.astype(jnp.bfloat16))).astype(jnp.float32))  # noqa: E731

    @jax.jit
    def step(trained, state):
        value, gradient = jax.value_and_grad(loss)(trained)
        updates, state = optimizer.update(gradient, state, trained)
        return value, optax.apply_updates(trained, updates), state

    state, trained, losses = optimizer.init(first.params), first.params, []
    for _ in range(6):
        value, trained, state = step(trained, state)
        losses.append(value)
    assert losses[-1] < losses[0]
    second = jp.shrink(first.apply, trained, X.astype(jnp.bfloat16), sparsity=0.5)
    width = first.params["layer0"]["kernel"].shape[1]
    assert second.params["layer0"]["kernel"].shape[1] == width - math.floor(width / 2 + 0.5)
    assert {leaf.dtype for leaf in jax.tree.leaves(second.params)} == {jnp.dtype(jnp.bfloat16)}
    masked = trace(first.apply, trained, X).at(second.plan).mask(trained)
    small, full = jax.jit(second.apply)(second.params, X), jax.jit(first.apply)(masked, X)
    chex.assert_trees_all_close(small, full, atol=1e-5)


def test_the_report_counts():
    params = weights(12)
    report = jp.shrink(mlp, params, X, sparsity=0.5).report
    assert [(row.size, row.kept) for row in report.groups] == [(16, 8), (12, 6)]
    assert report.nbytes == (4 * report.parameters[0], 4 * report.parameters[1])
    assert report.groups[0].widths == {"layer0/kernel:1": 8, "layer1/kernel:0": 8, "layer0/bias:0": 8}
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["groups"][1]["widths"]["layer1/kernel:1"] == 6
    assert plain["parameters"] == {"before": report.parameters[0], "after": report.parameters[1]} and plain["exact"]
    for text in ("features of layer0", "16", "8", f"{report.parameters[1]:,}"):
        assert text in str(report)


def test_groups_are_chosen_by_name_or_description():
    params = weights(13)
    for pattern, sizes in (
        ("layer1/*", [16, 6]),
        ("!features of layer0", [16, 6]),
        (["*", "!layer1/kernel:1"], [8, 12]),
    ):
        small = jp.shrink(mlp, params, X, sparsity=0.5, scope="global", spec=ShrinkSpec(groups=pattern)).params
        assert [small["layer0"]["kernel"].shape[1], small["layer1"]["kernel"].shape[1]] == sizes


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sparsity": 1.5}, ValueError, r"sparsity must be in \[0, 1\], got 1.5"),
        ({"sparsity": float("nan")}, ValueError, "sparsity must be in"),
        ({"round_to": 0}, ValueError, "round_to must be at least 1, got 0"),
        (
            {"min_keep": 0},
            ValueError,
            r"min_keep must be a number of units, 1 or more, or a fraction in \[0, 1\], got 0",
        ),
        ({"min_keep": 1.5}, ValueError, r"fraction in \[0, 1\], got 1.5"),
        ({"scope": "layer"}, ValueError, "scope must be .*, got 'layer'"),
        ({"groups": "conv*"}, ValueError, r"groups 'conv\*' matches none of \['layer0/kernel:1"),
        ({"groups": ["*", "!conv*"]}, ValueError, r"groups '!conv\*' matches none"),
        ({"scope": "flops", "sparsity": 0.999}, ValueError, "the flops cannot be cut by 0.999: with the fewest units"),
        ({"split": "middle"}, ValueError, "split must be 'leading' or 'trailing', got 'middle'"),
        (
            {"saliency": lambda p: {"layer0": {"kernel": jnp.ones((3, 3))}}},
            ValueError,
            "scores of 'layer0/kernel' have",
        ),
        ({"saliency": lambda p: {"layer7": jnp.ones(3)}}, ValueError, "scores of 'layer7' have shape"),
    ],
)
def test_bad_input_is_named(change, error, message):
    with pytest.raises(error, match=message):
        spec = {name: value for name, value in change.items() if name in ShrinkSpec.__dataclass_fields__}
        others = {name: value for name, value in change.items() if name not in spec}
        jp.shrink(mlp, weights(), X, **({"sparsity": 0.5} | others), spec=ShrinkSpec(**spec))


def test_shapes_cannot_depend_on_traced_weights():
    with pytest.raises(TypeError, match="concrete parameters"):
        jax.jit(lambda p: jp.shrink(mlp, p, X, sparsity=0.5, scope="global").params)(weights())


def test_what_the_function_does_not_read_stays():
    params = weights() | {"step": jnp.arange(5), "unused": jnp.ones((4, 6))}
    used = lambda p, x: mlp({name: p[name] for name in ("layer0", "layer1", "layer2")}, x)  # noqa: E731
    shrunk = jp.shrink(used, params, X, sparsity=0.5, scope="global")
    assert len(shrunk.plan) == 2 and shrunk.params["unused"].shape == (4, 6) and shrunk.params["step"].shape == (5,)
    assert "no product" in trace(used, params, X).why_pinned("unused", 0)


def test_nothing_to_remove():
    with pytest.raises(ValueError, match="nothing can be removed"):
        jp.shrink(lambda p, x: x @ p, jnp.ones((3, 2)), jnp.ones((1, 3)), sparsity=0.5, scope="global")


def gated(params, ids):
    """A looked-up table, a gated layer from one product, a residual path."""
    x = params["table"][ids]
    gate, up = jnp.split(x @ params["up"], 2, -1)
    return (x + (jax.nn.silu(gate) * up) @ params["down"]) @ params["out"]


GATED = {"table": np.ones((7, 8)), "up": np.ones((8, 24)), "down": np.ones((12, 8)), "out": np.ones((8, 3))}


def test_case_58_gated_units_go_and_the_residual_width_stays():
    spec = ShrinkSpec(groups=["*", "!residual*"])
    shrunk = jp.shrink(gated, GATED, np.array([1, 2]), sparsity=0.5, spec=spec)
    assert jax.tree.map(np.shape, shrunk.params) == {"table": (7, 8), "up": (8, 12), "down": (6, 8), "out": (8, 3)}
    names = {row.name: row.description for row in shrunk.report.groups}
    assert names == {"up:1": "gated product of up", "down:1": "residual width, made by down"}


@pytest.mark.parametrize("scope", ["leaf", "global", "parameters", "flops", "latency"])
@pytest.mark.parametrize("groups", [[], ["!*"], ["*", "!*:1"]])
def test_a_choice_of_no_group_is_an_error(scope, groups):
    with pytest.raises(ValueError, match=r"groups \[.*\] chooses none of \['up:1 or gated product of up', 'down:1 or"):
        jp.shrink(gated, GATED, np.array([1, 2]), sparsity=0.5, scope=scope, spec=ShrinkSpec(groups=groups))


def test_a_module_that_holds_its_arrays_is_told_how_to_be_split():
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    for call in (jp.structure.trace, lambda *given: jp.shrink(*given, sparsity=0.5)):
        with pytest.raises(TypeError, match=r"Linear, which holds arrays[\s\S]*nnx.split[\s\S]*eqx.partition"):
            call(model, jnp.ones((2, 3)))


def test_nnx_goes_on_after_shrinking():
    """Rebuilt with the widths of the small parameters it is the small function, and its moments are those that stay."""

    class Block(nnx.Module):
        def __init__(self, width, heads, head_width, rngs):
            self.inside = nnx.Linear(8, width, rngs=rngs)
            self.attend = nnx.MultiHeadAttention(heads, width, heads * head_width, decode=False, rngs=rngs)
            self.out = nnx.Linear(width, 4, rngs=rngs)

        def __call__(self, x):
            hidden = nnx.relu(self.inside(x))
            return self.out(hidden + self.attend(hidden))

    block, x = Block(8, 4, 2, nnx.Rngs(0)), jax.random.normal(jax.random.key(0), (2, 3, 8))
    optimizer = nnx.Optimizer(block, optax.adam(1e-3), wrt=nnx.Param)
    optimizer.update(block, nnx.grad(lambda model: jnp.sum(model(x) ** 2))(block))
    graphdef, state, rest = nnx.split(block, nnx.Param, ...)
    dense, function = nnx.to_pure_dict(state), lambda params, x: nnx.merge(graphdef, params, rest)(x)
    cut = jp.shrink(function, dense, x, sparsity=0.5, spec=ShrinkSpec(groups=["*", "!head width*"]))
    heads, head_width = cut.params["attend"]["query"]["kernel"].shape[1:]
    assert (heads, head_width) == (2, 2)
    rebuilt = Block(cut.params["inside"]["kernel"].shape[1], heads, head_width, nnx.Rngs(1))
    nnx.update(rebuilt, cut.params)
    np.testing.assert_allclose(rebuilt(x), cut.apply(cut.params, x), rtol=1e-5, atol=1e-6)
    onward = nnx.Optimizer(rebuilt, optax.adam(1e-3), wrt=nnx.Param)
    moments, before = nnx.state(onward), nnx.to_pure_dict(nnx.state(optimizer))
    small = jp.structure.trace(function, dense, x).at(cut.plan)
    nnx.replace_by_pure_dict(moments, small.cut(before))
    nnx.update(onward, moments)
    kept = np.asarray(cut.plan["inside/kernel:1"])
    kept = np.flatnonzero(kept) if kept.dtype == bool else kept
    wanted = before["opt_state"][0]["mu"]["inside"]["kernel"][:, kept]
    assert np.array_equal(onward.opt_state[0].mu["inside"]["kernel"][...], wanted) and onward.step[...] == 1
    onward.update(rebuilt, nnx.grad(lambda model: jnp.sum(model(x) ** 2))(rebuilt))
