"""Removal in many architectures: what belongs together, and that the smaller function equals the masked one.

Every leaf is random, biases and statistics included, so that an entry that should be 0 and is not shows.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxprune.program import labels
from jaxprune.structure import trace

pytestmark = pytest.mark.slow

# What can be removed, as "number of units: layers that make them > layers that use them". A layer that makes them loses
# entries along the last axis of all that it holds; one that uses them along the second to last axis of its kernel;
# "path:axis" stands for itself. Collections are left out. {A} is a layer's attention.
BLOCK = (
    "3: {A}/query/kernel:1 {A}/query/bias:0 {A}/key/kernel:1 {A}/key/bias:0 {A}/value/kernel:1 {A}/value/bias:0 "
    "{A}/out/kernel:0",
    "2: {A}/query {A}/key",
    "2: {A}/value > {A}/out",
    "10: Block_0/Dense_0 > Block_0/Dense_1",
    "8: Block_0/LayerNorm_0 Block_0/LayerNorm_1 LayerNorm_0 {A}/out Block_0/Dense_1 {width} "
    "{A}/query/kernel:0 {A}/key/kernel:0 {A}/value/kernel:0 > Block_0/Dense_0",
)
BOTTLENECK = (
    "4: Conv_0 BatchNorm_0 > Residual_0/Conv_0 Residual_0/Conv_3",
    "8: Residual_0/Conv_2 Residual_0/BatchNorm_2 Residual_0/Conv_3 Residual_0/BatchNorm_3 > "
    "Residual_1/Conv_0 Residual_1/Conv_3",
    "8: Residual_1/Conv_2 Residual_1/BatchNorm_2 Residual_1/Conv_3 Residual_1/BatchNorm_3 > Dense_0",
)
EXPECTED = {
    "mlp": ("6: Dense_2 > Dense_1", "5: Dense_1 > Dense_0"),
    "lenet": ("4: Conv_0 > Conv_1", "6: Conv_1 > Dense_0", "8: Dense_0 > Dense_1"),
    "vgg": (
        "4: Conv_0 BatchNorm_0 > Conv_1",
        "4: Conv_1 BatchNorm_1 > Conv_2",
        "5: Conv_2 BatchNorm_2 > Conv_3",
        "5: Conv_3 BatchNorm_3 > Dense_0",
        "6: Dense_0 > Dense_1",
    ),
    "resnet": (
        "4: Conv_0 BatchNorm_0 Residual_0/Conv_1 Residual_0/BatchNorm_1 > "
        "Residual_0/Conv_0 Residual_1/Conv_0 Residual_1/Conv_2",
        "4: Residual_0/Conv_0 Residual_0/BatchNorm_0 > Residual_0/Conv_1",
        "8: Residual_1/Conv_0 Residual_1/BatchNorm_0 > Residual_1/Conv_1",
        "8: Residual_1/Conv_1 Residual_1/BatchNorm_1 Residual_1/Conv_2 Residual_1/BatchNorm_2 > Dense_0",
    ),
    "bottleneck": (
        *BOTTLENECK,
        *(f"4: Residual_{i}/Conv_0 Residual_{i}/BatchNorm_0 > Residual_{i}/Conv_1" for i in (0, 1)),
        *(f"4: Residual_{i}/Conv_1 Residual_{i}/BatchNorm_1 > Residual_{i}/Conv_2" for i in (0, 1)),
    ),
    "resnext": (  # two groups of two channels each
        *BOTTLENECK,
        *(
            f"2: Residual_{i}/Conv_0 Residual_{i}/BatchNorm_0 Residual_{i}/Conv_1 Residual_{i}/BatchNorm_1 > "
            f"Residual_{i}/Conv_2"
            for i in (0, 1)
        ),
    ),
    "padded resnet": (
        "4: Conv_0 BatchNorm_0 Conv_2 BatchNorm_2 > Conv_1 Dense_0",
        "6: Conv_1 BatchNorm_1 > Conv_2",
        "2: Conv_2 BatchNorm_2 > Dense_0",
    ),
    "densenet": (
        "4: Conv_0 BatchNorm_0 BatchNorm_1 > Conv_1 Conv_2 Conv_3",
        "3: Conv_1 BatchNorm_1 > Conv_2 Conv_3",
        "3: Conv_2 > Conv_3",
        "5: Conv_3 BatchNorm_2 > Dense_0",
    ),
    "mobilenet": (
        "4: Conv_0 BatchNorm_0 Conv_3 BatchNorm_3 Conv_4 BatchNorm_4 > Conv_1 Dense_0",
        "8: Conv_1 BatchNorm_1 Conv_2 BatchNorm_2 > Conv_3",
    ),
    "unet": (
        "4: Conv_0 BatchNorm_0 > Conv_1 Conv_3",
        "6: Conv_1 BatchNorm_1 > ConvTranspose_0",
        "4: ConvTranspose_0 > Conv_3",
        "4: Conv_3 BatchNorm_2 > Conv_2",
    ),
    "squeeze-excite": (
        "6: Conv_0 BatchNorm_0 Dense_0 > Dense_1 Conv_1",
        "3: Dense_1 > Dense_0",
        "5: Conv_1 BatchNorm_1 > Dense_2",
    ),
    "groupnorm": ("4: Conv_0 GroupNorm_0 > Conv_1", "3: Conv_1 GroupNorm_1 > Dense_0"),
    "lstm": (
        "4: Dense_1 > LSTMCell_0/ii LSTMCell_0/if LSTMCell_0/ig LSTMCell_0/io",
        "5: " + " ".join(f"LSTMCell_0/{a}{b}" for a in "ih" for b in "ifgo") + " > "
        "LSTMCell_0/hi LSTMCell_0/hf LSTMCell_0/hg LSTMCell_0/ho Dense_0",
    ),
    "gru": (
        "4: Dense_1 > GRUCell_0/ir GRUCell_0/iz GRUCell_0/in",
        "5: " + " ".join(f"GRUCell_0/{a}{b}" for a in "ih" for b in "rzn") + " > "
        "GRUCell_0/hr GRUCell_0/hz GRUCell_0/hn Dense_0",
    ),
    "encoder": tuple(line.replace("{width}", "Embed_0 position:1 Dense_0/kernel:0") for line in BLOCK),
    "decoder": tuple(line.replace("{width}", "Embed_0") for line in BLOCK),
    "vit": tuple(line.replace("{width}", "Conv_0 class:2 position:2 Dense_0/kernel:0") for line in BLOCK),
    "fused attention": ("4: Dense_0 > Dense_1",),
    "grouped queries": (
        "2: layer/q:1 layer/k:1 layer/v:1 layer/o:0",
        "2: layer/q:2 layer/k:2",  # a rotation mixes the halves
        "4: layer/v:2 layer/o:1",
        "8: embed:1 layer/norm1:0 layer/q:0 layer/k:0 layer/v:0 layer/o:2 layer/norm2:0 layer/gate:0 layer/up:0 "
        "layer/down:1 norm:0 head:0",
        "6: layer/gate:1 layer/up:1 layer/down:0",
    ),
    "gemma": (
        "4: attend/q:0 attend/o:0",
        "3: attend/q:2 attend/kv:3 attend/o:1",  # keys and values in one array
        "8: table:1 attend/norm:0 attend/q:1 attend/kv:2 attend/o:2 mlp/norm:0 mlp/up:1 mlp/down:1 norm:0",
        "10: mlp/up:2 mlp/down:0",
    ),
    "experts": ("6: gate:2 up:2 down:1", "8: table:1 norm:0 router:0 gate:1 up:1 down:2 head:0"),
    "class attention": (
        "8: patch:1 class:2 layers/0/attend/norm:0 layers/0/attend/scale:0 layers/0/attend/qkv:0 layers/0/attend/out:1 "
        "layers/0/mlp/norm:0 layers/0/mlp/scale:0 layers/0/mlp/up:0 layers/0/mlp/down:1 last/attend/norm:0 "
        "last/attend/scale:0 last/attend/q:0 last/attend/k:0 last/attend/v:0 last/attend/out:1 last/mlp/norm:0 "
        "last/mlp/scale:0 last/mlp/up:0 last/mlp/down:1 head:0",
        "2: layers/0/attend/qkv:1 layers/0/attend/before:0",  # queries and keys; values; and what is between them
        "2: layers/0/attend/qkv:1 layers/0/attend/after:1 layers/0/attend/out:0",
        "2: layers/0/attend/before:1 layers/0/attend/after:0",
        "2: last/attend/q:1 last/attend/k:1 last/attend/v:1 last/attend/out:0",
        *(f"10: {layer}/mlp/up:1 {layer}/mlp/down:0" for layer in ("layers/0", "last")),
    ),
    "normalized apart": ("6: conv:3 scale:0 bias:0 head:0",),
    "looked up": ("5: a:1 b:0", "6: table:1 gain:0 a:0 b:1 head:0"),
    "mixer": (
        "6: Conv_0 LayerNorm_0 LayerNorm_1 Dense_2 > Dense_3 Dense_4",
        "5: Dense_1 > Dense_0",
        "7: Dense_3 > Dense_2",
    ),
    "scanned": ("4: Dense_1 stack/Dense_0 > stack/Dense_1 Dense_0", "6: stack/Dense_1 > stack/Dense_0"),
    "training": ("6: Conv_0 BatchNorm_0 > Dense_1", "5: Dense_1 > Dense_0"),
    "pure": ("6: 0:1 1:0", "5: 1:1 2:0"),
    "nnx mlp": ("6: layers/0 > layers/1",),
    "nnx cnn": ("4: conv norm > head",),
    "nnx attention": (
        "6: first attend/out attend/query/kernel:0 attend/key/kernel:0 attend/value/kernel:0 > head",
        *(line.replace("{A}", "attend") for line in BLOCK[:3]),
    ),
    "equinox": (
        "6: layers/0/weight:0 layers/0/bias:0 layers/1/weight:1",
        "6: layers/1/weight:0 layers/1/bias:0 layers/2/weight:1",
    ),
}
#: Groups whose removal differs from masking by nature: a bias of the layers that mix tokens reaches masked channels.
INEXACT = {"mixer": "6: Conv_0 LayerNorm_0 LayerNorm_1 Dense_2 > Dense_3 Dense_4"}
#: Models whose gradients are compared as well.
GRADIENTS = {"mlp", "resnet", "mobilenet", "lstm", "decoder", "scanned", "training", "pure", "nnx attention"}
#: Models where heads or groups of channels are made by splitting an axis that could be split otherwise.
AMBIGUOUS = {"groupnorm", "fused attention", "grouped queries", "class attention"}
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

#: What every run sees; the others are slow.
QUICK = {"mlp", "resnet", "fused attention", "nnx attention", "pure", "training", "gemma"}


def some(names):
    marks = {name: () if name in QUICK else pytest.mark.slow for name in names}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, mark in marks.items()])


models = some(zoo.MODELS)


@functools.cache
def traced(name):
    if name == "equinox":
        pytest.importorskip("equinox", reason="Equinox is installed in development only")
    model = zoo.MODELS[name]()
    return model, trace(model.function, model.params, *model.inputs(2), **model.options)


def bare(path):
    return path.removeprefix("params/").removeprefix("batch_stats/")


def members(line, shapes):
    """The number of units and the ``(path, axis)`` of a line of the table."""
    size, _, layers = line.replace("{A}", "Block_0/MultiHeadDotProductAttention_0").partition(": ")
    makes, _, uses = layers.partition(" > ")
    found = set()
    for token in makes.split():
        path, _, axis = token.partition(":")
        own = [p for p in shapes if (bare(p) == path if axis else bare(p).rpartition("/")[0] == path)]
        assert own, f"no parameters in {token}"
        found |= {(p, int(axis) if axis else len(shapes[p]) - 1) for p in own}
    for path in uses.split():
        (own,) = [p for p in shapes if bare(p) == f"{path}/kernel"]
        found.add((own, len(shapes[own]) - 2))
    return int(size), frozenset(found)


def random_plan(groups, seed=0):
    """Some units of each group, never all and never none."""
    random, plan = np.random.default_rng(seed), {}
    for group in groups:
        count = random.integers(1, group.size)
        plan[group.name] = np.sort(random.choice(group.size, count, replace=False))
    return plan


def close(left, right, scale=1.0):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * scale)


def exact_groups(name, graph):
    shapes = {row.path: (0,) * row.rank for row in graph._origin.traced.rows}
    wrong = {members(INEXACT[name], shapes)} if name in INEXACT else set()
    return [group for group in graph.groups if (group.size, frozenset(group.members)) not in wrong]


def answers(function, derivative):
    """What is compared: the outputs, and the gradient of a weighted sum of the first of them."""

    def loss(params, *inputs):
        out = function(params, *inputs)
        first = jax.tree.leaves(out)[0]
        return jnp.vdot(jnp.cos(jnp.arange(first.size)).reshape(first.shape), first), out

    def both(params, *inputs):
        if not derivative:
            return function(params, *inputs), None
        gradient, out = jax.grad(loss, has_aux=True)(params, *inputs)
        return out, gradient

    return both


def test_the_table_is_complete():
    assert EXPECTED.keys() == zoo.MODELS.keys()


@models
def test_what_goes_together(name):
    model, graph = traced(name)
    paths = {row.path: (0,) * row.rank for row in graph._origin.traced.rows}
    found = {(group.size, frozenset(group.members)) for group in graph.groups}
    assert found == {members(line, paths) for line in EXPECTED[name]}
    assert len({group.name for group in graph.groups}) == len(graph.groups)
    assert bool(graph.ambiguous) == (name in AMBIGUOUS)


@pytest.mark.parametrize(
    ("name", "layer", "words"),
    [
        ("mlp", "params/Dense_1/kernel:1", "features of Dense_1"),
        ("nnx attention", "attend/query/kernel:1", "heads of attend"),
        ("nnx attention", "attend/query/kernel:2", "head width of attend/query, attend/key"),
        ("nnx attention", "first/kernel:1", "residual width, made by first, attend/out"),
        ("fused attention", "params/Dense_0/kernel:1", "heads of Dense_0"),
        ("scanned", "params/stack/Dense_1/kernel:2", "features of stack/Dense_1"),
        ("scanned", "params/Dense_1/kernel:1", "residual width, made by Dense_1, stack/Dense_0"),
        ("grouped queries", "layer/q:1", "heads of layer"),
        ("grouped queries", "layer/v:2", "head width of layer"),
        ("grouped queries", "layer/gate:1", "gated product of layer"),
        ("squeeze-excite", "params/Conv_0/kernel:3", "gated product of Conv_0, Dense_0"),
        ("mobilenet", "params/Conv_1/kernel:3", "features of Conv_1, Conv_2"),
        ("groupnorm", "params/Conv_0/kernel:3", "features of Conv_0, 2 at a time"),
        ("gemma", "attend/q:0", "heads of attend"),
        ("gemma", "attend/q:2", "head width of attend"),
        ("gemma", "mlp/up:2", "gated product of mlp"),
        ("lstm", "params/LSTMCell_0/ii/kernel:1", "recurrent state of LSTMCell_0"),
        ("gru", "params/GRUCell_0/ir/kernel:1", "recurrent state of GRUCell_0"),
        ("experts", "gate:2", "gated product of gate, up"),
        ("experts", "down:2", "residual width, made by down"),
        ("looked up", "b:1", "residual width, made by b"),
    ],
)
def test_what_units_are_called(name, layer, words):
    assert {group.name: group.description for group in traced(name)[1].groups}[layer] == words


@models
def test_what_stays_has_a_reason(name):
    _, graph = traced(name)
    free = {}
    for group in graph.groups:
        for member, units in zip(group.members, group.units, strict=True):
            free[member] = free.get(member, False) | (units >= 0)
    for row in graph._origin.traced.rows:
        everything = np.all(free.get((row.path, row.axis), False))
        assert (graph.why_pinned(row.path, row.axis) == "") == everything


@models
def test_removal_equals_masking(name):
    """A random plan over all groups; models with gradients at the traced batch size, the others at another."""
    model, graph = traced(name)
    derivative = name in GRADIENTS
    plan = random_plan(exact_groups(name, graph))
    params, inputs = zoo.fill(model.params), zoo.fill(model.inputs(2 if derivative else 3), 1)
    small, dense = answers(graph.at(plan).apply, derivative), answers(model.function, derivative)
    both = jax.jit(lambda cut, masked, *inputs: (small(cut, *inputs), dense(masked, *inputs)), compiler_options=FAST)
    cut, masked = graph.at(plan).cut(params), graph.at(plan).mask(params)
    (out, gradient), (expected, expected_gradient) = both(cut, masked, *inputs)
    if name == "training":  # the statistics of removed channels are free to go
        expected = (expected[0], graph.at(plan).cut(expected[1]))
    close(out, expected)
    if derivative:
        close(gradient, graph.at(plan).cut(expected_gradient), 10)


@pytest.mark.parametrize("name", ["gemma", "experts", "looked up", "class attention", "normalized apart"])
def test_removal_is_certified(name):
    _, graph = traced(name)
    certificate = graph.at(random_plan(graph.groups)).certificate
    assert certificate.exact, certificate


@some(["mlp", "padded resnet", "fused attention", "pure", "nnx cnn"])
def test_each_group_alone(name):
    model, graph = traced(name)
    params, inputs = zoo.fill(model.params), zoo.fill(model.inputs(2), 1)
    plans = [{group: random_plan([group], i)[group.name]} for i, group in enumerate(graph.groups)]

    @functools.partial(jax.jit, compiler_options=FAST)
    def compare(cut, masked):
        small = [graph.at(plan).apply(one, *inputs) for plan, one in zip(plans, cut, strict=True)]
        return small, jax.lax.map(lambda one: model.function(one, *inputs), masked)

    masked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(graph.at(plan).mask(params) for plan in plans))
    small, dense = compare([graph.at(plan).cut(params) for plan in plans], masked)
    for i, out in enumerate(small):
        close(out, dense[i])


@some(["pure", "nnx mlp"])
def test_under_jit_and_vmap_as_outside(name):
    model, graph = traced(name)
    plan = random_plan(graph.groups)
    small, cut = graph.at(plan).apply, graph.at(plan).cut(zoo.fill(model.params))
    (x,) = zoo.fill(model.inputs(2), 1)

    @functools.partial(jax.jit, compiler_options=FAST)
    def compare(cut, x):
        return small(cut, x), jax.vmap(small, (None, 0))(cut, x[:, None]), [small(cut, row) for row in x[:, None]]

    whole, mapped, rows = compare(cut, x)
    close(whole, small(cut, x))
    close(mapped, jnp.stack(rows))


def test_the_work_of_tracing_grows_with_the_program(monkeypatch):
    """Counted in numbers looked up; twice the layers, at most 2.3 times the work."""
    work, find = [], labels.Forest.find

    def counted(forest, numbers):
        work.append(numbers.size)
        return find(forest, numbers)

    monkeypatch.setattr(labels.Forest, "find", counted)
    sums = []
    for layers in (6, 12):
        model = zoo.class_attention(layers)
        trace(model.function, model.params, *model.inputs(2))
        sums.append(sum(work))
        work.clear()
    assert sums[1] <= 2.3 * sums[0]


def test_where_removal_differs_from_masking_by_nature():
    """The mixer's channels: what is masked comes back through the biases of the layers that mix tokens."""
    model, graph = traced("mixer")
    (group,) = set(graph.groups) - set(exact_groups("mixer", graph))
    plan = random_plan([group])
    params, (x,) = zoo.fill(model.params), zoo.fill(model.inputs(2), 1)
    small, dense = (jax.jit(function, compiler_options=FAST) for function in (graph.at(plan).apply, model.function))
    assert np.abs(small(graph.at(plan).cut(params), x) - dense(graph.at(plan).mask(params), x)).max() > 1e-3


def test_statistics_of_the_batch_get_smaller_too():
    model, graph = traced("training")
    (conv, dense) = graph.groups
    plan = {conv: [0, 4], dense: [1]}
    out, state = jax.eval_shape(graph.at(plan).apply, graph.at(plan).cut(zoo.fill(model.params)), *model.inputs(2))
    assert out.shape == (2, 3)
    assert jax.tree.map(np.shape, state) == {"batch_stats": {"BatchNorm_0": {"mean": (2,), "var": (2,)}}}
    whole = trace(model.function, model.params, *model.inputs(2))
    assert [group.size for group in whole.groups] == [5]
    assert "axis 0 of the output '1/batch_stats/BatchNorm_0/mean'" in whole.why_pinned("params/Conv_0/kernel", 3)
