"""The certificate that removal equals masking, beside the numbers of both functions."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import event, given, settings
from hypothesis import strategies as st
from jax import lax

from jaxprune.masks import apply_masks
from jaxprune.program import range_arithmetic as on
from jaxprune.program.primitives import RULES
from jaxprune.program.ranges import Range, between, settle
from jaxprune.structure import trace

WIDTH = 4
X = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
TOKENS = np.random.default_rng(1).normal(size=(2, 3, 3)).astype(np.float32)


def numbers(shapes, seed=0):
    """Random parameters; statistics called ``var`` are positive."""
    rng = np.random.default_rng(seed)
    positive = [path[-1] == jax.tree_util.DictKey("var") for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    leaves, structure = jax.tree.flatten(shapes)
    drawn = [rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(structure, [abs(x) if p else x for p, x in zip(positive, drawn, strict=True)])


def verdict(function, params, plan, *inputs, masked=None, jit=True, **options):
    """The certificate, and the numeric difference. The one may never say more than the other."""
    graph = trace(function, params, *inputs, **options)
    certificate = graph.at(plan).certify(masked)
    assert certificate.exact == (not certificate.faults)
    full = graph.at(plan).mask(params) if masked is None else apply_masks(params, masked)
    small = graph.at(plan).apply
    both = lambda p, cut, *x: (function(p, *x), small(cut, *x))  # noqa: E731
    outputs, others = (jax.jit(both) if jit else both)(full, graph.at(plan).cut(full), *inputs)
    difference = graph._origin.traced.difference(outputs, others)
    if certificate.exact:
        assert difference <= 1e-5, f"certified, but the outputs differ by {difference}"
    return certificate, difference


def differences(table, wrap, params, plan, x):
    """How far masked and small outputs are apart, for each function of a table, in one compilation."""

    def function(p, x):
        return {name: wrap(one)(p, x) for name, one in table.items()}

    graph = trace(function, params, x)

    @jax.jit
    def apart(p, x):
        pairs = function(graph.at(plan).mask(p), x), graph.at(plan).apply(graph.at(plan).cut(p), x)
        return jax.tree.map(lambda a, b: jnp.max(abs(a - b)), *pairs)

    return {name: np.inf if np.isnan(worst) else float(worst) for name, worst in apart(params, x).items()}


def hidden(middle):
    """Two dense layers with something in between, and what masks leave of the units that go: 0 before it."""

    def function(p, x):
        return middle(x @ p["first"] + p["bias"]) @ p["second"]

    return function


DENSE = numbers({"first": jnp.ones((3, WIDTH)), "bias": jnp.ones(WIDTH), "second": jnp.ones((WIDTH, 2))})
PLAN = {"first:1": [0, 2]}


def fast_norm(h):
    mean = h.mean(-1, keepdims=True)
    return (h - mean) * lax.rsqrt(jnp.maximum((h * h).mean(-1, keepdims=True) - mean * mean, 0) + 1e-5)


def slow_norm(h):
    mean = h.mean(-1, keepdims=True)
    spread = jnp.square(h - mean)
    return (h - mean) * lax.rsqrt(spread.mean(-1, keepdims=True) + 1e-5)


def rms_norm(h):
    return h / jnp.sqrt(jnp.square(h).mean(-1, keepdims=True) + 1e-5)


EXACT = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "gelu by erf": lambda h: jax.nn.gelu(h, approximate=False),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "elu": jax.nn.elu,
    "leaky relu": jax.nn.leaky_relu,
    "softplus": jax.nn.softplus,
    "sigmoid": jax.nn.sigmoid,
    "normalized fast": fast_norm,
    "normalized by the root mean square": rms_norm,
    "concatenated, sliced": lambda h: jnp.concatenate([jnp.cos(h), h, h], -1)[:, WIDTH : 2 * WIDTH],
    "padded and cut": lambda h: jnp.pad(h, ((0, 0), (1, 2)), constant_values=3.0)[:, 1:-2],
    "halves of both": lambda h: jnp.split(jnp.concatenate([h, jnp.exp(h)], -1), 2, -1)[0] * 2,
    "maximum of squares": lambda h: h + jnp.square(h).max(-1, keepdims=True),
    "minimum of negatives": lambda h: h + (-abs(h)).min(-1, keepdims=True),
    "any nonzero": lambda h: jnp.where((h != 0).any(-1, keepdims=True), h, 1 + h),
    "all zero or more": lambda h: jnp.where((jax.nn.relu(h) >= 0).all(-1, keepdims=True), h, 1 + h),
    "product of exponentials": lambda h: h * jnp.exp(jnp.where(h == 0, 0, -abs(h))).sum(where=h != 0, axis=-1)[:, None],
    "divided by one more": lambda h: h / (1 + abs(h)),
    "divided by their sum": lambda h: h / h.sum(-1, keepdims=True),
    "divided by their sum, repeated": lambda h: h / jnp.broadcast_to(h.sum(-1, keepdims=True), h.shape),
    "divided by a power": lambda h: h / 10.0 ** (jnp.arange(WIDTH) / WIDTH),
    "divided by a table": lambda h: h / (jnp.arange(WIDTH) - 0.5),
    "raised": lambda h: h * (1 + abs(h)) ** jnp.sin(h),
    "powers": lambda h: h**3 + abs(h) ** 1.5 + h**2,
    "clipped": lambda h: jnp.clip(h, -1, 1),
    "twice a loop": lambda h: lax.fori_loop(0, 2, lambda _, c: c + jnp.tanh(c), h),
    "a branch": lambda h: lax.cond(h[0].sum() > 0, jnp.sin, jnp.tanh, h),
    "checkpointed": jax.checkpoint(lambda h: jnp.sin(h) * jnp.exp(h)),
    "written over": lambda h: jnp.zeros((3, WIDTH)).at[jnp.array([0, 2])].add(h)[jnp.array([2, 0])],
    "half precision": lambda h: jax.nn.gelu(h.astype(jnp.bfloat16)).astype(jnp.float32) * (h != 0),
    "complex": lambda h: (h * jnp.exp(1j)).real,
    "a Fourier transform of the batch": lambda h: jnp.fft.fft(h, axis=0).real,
    "whole numbers": lambda h: (h * 10).astype(jnp.int32).astype(jnp.float32),
}


def test_what_contributes_nothing_is_certified():
    apart = differences(EXACT, hidden, DENSE, PLAN, X)
    for name, function in EXACT.items():
        certificate = trace(hidden(function), DENSE, X).at(PLAN).certificate
        assert certificate.exact, (name, certificate)
        assert str(certificate) == "exact: what is removed contributes nothing"
        assert apart[name] <= 1e-5, name


# What is done, and the operation that must be named. Each of them really differs, by numbers.
FAULTY = {
    "softmax": (jax.nn.softmax, "reduce_max"),
    "normalized slowly": (slow_norm, "reduce_sum"),
    "maximum": (lambda h: h + jnp.min(abs(h) + 1, -1, keepdims=True) + h.max(-1, keepdims=True), "reduce_max"),
    "minimum": (lambda h: h + abs(h).min(-1, keepdims=True), "reduce_min"),
    "sum of sigmoids": (lambda h: h * jax.nn.sigmoid(h).sum(-1, keepdims=True), "reduce_sum"),
    "product": (lambda h: h + h.prod(-1, keepdims=True), "reduce_prod"),
    "all": (lambda h: jnp.where((h != 0).all(-1, keepdims=True), h, 1 + h), "reduce_and"),
    "divided by itself": (lambda h: h / abs(h), "dot_general"),
    "divided by a table with zeros": (lambda h: h / (jnp.arange(WIDTH) - 1.0), "dot_general"),
    "logarithm": (lambda h: h * jnp.log(h * h), "dot_general"),
    "root": (lambda h: h * lax.rsqrt(h * h), "dot_general"),
    "negative power": (lambda h: h * (h * h) ** -0.5, "dot_general"),
    "count": (lambda h: h * (h == h).sum(-1, keepdims=True), "reduce_sum"),
    "as often as asked": (lambda h: lax.while_loop(lambda c: jnp.exp(c).sum() < 41, lambda c: c + 1, h), "reduce_sum"),
    "either of two": (lambda h: lax.cond(jnp.cos(h).sum() > 5.5, jnp.sin, lambda h: 2 * h, h), "reduce_sum"),
    "a product with itself": (lambda h: h * jnp.einsum("ij,kj->ik", jnp.cos(h), jnp.cos(h))[:, :1], "dot_general"),
}


def test_what_contributes_is_a_fault_with_its_line():
    apart = differences({name: function for name, (function, _) in FAULTY.items()}, hidden, DENSE, PLAN, X)
    for name, (function, operation) in FAULTY.items():
        certificate = trace(hidden(function), DENSE, X).at(PLAN).certificate
        assert operation in [fault.operation for fault in certificate.faults], (name, certificate)
        assert all("test_structure_certify.py" in fault.line for fault in certificate.faults)
        assert str(certificate).startswith("not exact: removal differs from masking\n  ")
        assert apart[name] > 1e-4, name


def test_divisors_that_lose_entries_themselves():
    """What all units share is not 0, as the quotients that stay are finite; what goes with other units may be."""

    def function(p, x):
        ratio = (x @ p["first"])[:, :, None] / (x @ p["other"])[:, None, :]
        return jnp.einsum("bij,ij->b", ratio, p["table"])

    shapes = {"first": jnp.ones((3, WIDTH)), "other": jnp.ones((3, 5)), "table": jnp.ones((WIDTH, 5))}
    graph = trace(function, numbers(shapes), X)
    assert graph.at({"first:1": [0, 2]}).certificate.exact
    assert not graph.at({"other:1": [0, 2]}).certificate.exact
    assert not graph.at({"first:1": [0, 2], "other:1": [0, 2]}).certificate.exact
    assert graph.at({"other:1": [0, 2]}).check(numbers(shapes), X) == np.inf


def test_a_fault_names_the_line_and_the_reason():
    certificate, _ = verdict(hidden(slow_norm), DENSE, PLAN, X)
    lines, first = inspect.getsourcelines(slow_norm)
    line = first + next(i for i, text in enumerate(lines) if "spread.mean" in text)
    (fault,) = certificate.faults
    assert f"test_structure_certify.py:{line}:" in fault.line and "(slow_norm)" in fault.line
    assert fault.reason == "adds up what is removed; its entries are not 0 for sure there, but in [0, inf]"

    def weight_norm(p, x):
        kernel = p["first"] / jnp.linalg.norm(p["first"], axis=0)
        return jax.nn.relu(x @ kernel + p["bias"]) @ p["second"]

    certificate, difference = verdict(weight_norm, DENSE, PLAN, X)
    lines, first = inspect.getsourcelines(weight_norm)
    (fault,) = certificate.faults
    assert f"test_structure_certify.py:{first + 2}:" in fault.line and difference == np.inf
    assert "may be infinite or NaN there, from `div` at" in fault.reason and f":{first + 1}:" in fault.reason


def test_careful_where_nothing_rules_a_difference_out():
    certificate, difference = verdict(hidden(lambda h: jax.nn.softplus(h) - jax.nn.softplus(0 * h)), DENSE, PLAN, X)
    assert certificate.exact and difference < 1e-5  # the next layer's rows are 0
    certificate, difference = verdict(
        lambda p, x: (jnp.sin(h := x @ p["first"]) - jnp.cos(h + np.pi / 2) * -1).sum(-1), DENSE, PLAN, X
    )
    assert not certificate.exact and difference < 1e-5


def test_masks_say_what_is_zero():
    function = hidden(jax.nn.relu)
    keep = np.array([True, False, True, False])
    kernel = {"first": keep[None], "bias": np.True_, "second": np.True_}
    certificate, difference = verdict(function, DENSE, PLAN, X, masked=kernel)
    (fault,) = certificate.faults
    assert fault.operation == "dot_general" and difference > 1e-4
    for masked in (kernel | {"bias": keep}, kernel | {"first": np.True_, "second": np.repeat(keep[:, None], 2, 1)}):
        assert verdict(function, DENSE, PLAN, X, masked=masked)[0].exact
    partly = kernel | {"bias": keep, "first": np.array([[True, True, True, False]] + [list(keep)] * 2)}
    assert not verdict(function, DENSE, PLAN, X, masked=partly)[0].exact
    with pytest.raises(TypeError, match="mask 'bias' must be a concrete bool array"):
        trace(function, DENSE, X).at(PLAN).certify(DENSE)


def test_what_no_unit_loses_and_what_is_not_compared():
    graph = trace(hidden(jax.nn.softmax), DENSE, X)
    assert graph.at({}).certificate.exact and graph.at({"first:1": np.ones(WIDTH, bool)}).certificate.exact

    def two(p, x):
        h = x @ p["first"]
        return {"out": h @ p["second"], "largest": h.max(-1), "all": h}

    free = ["all", "largest"]
    assert verdict(two, DENSE, PLAN, X, free_output=free)[0].exact
    assert not verdict(two, DENSE, PLAN, X, free_output="all")[0].exact


# Heads of attention: removed ones have logits 0, of which a mask makes others.
QUERY = numbers({n: jnp.ones((3, 4, 2)) for n in "qkv"} | {"o": jnp.ones((4, 2, 3)), "bias": jnp.ones((4, 3, 3))})


def attention(weigh):
    def function(p, x):
        q, k, v = (jnp.einsum("btd,dhk->bhtk", x, p[n]) for n in "qkv")
        return jnp.einsum("bhtk,hkd->btd", weigh(q @ k.swapaxes(-1, -2) / np.sqrt(2), p) @ v, p["o"])

    return function


def causal(logits, other):
    return jnp.where(jnp.tril(jnp.ones(logits.shape[-2:], bool)), logits, other)


def by_hand(logits, p):
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


WEIGHTS = {
    "softmax": lambda logits, p: jax.nn.softmax(logits),
    "by hand": by_hand,
    "by its logarithm": lambda logits, p: jnp.exp(logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)),
    "causal, large negative": lambda logits, p: jax.nn.softmax(causal(logits, -1e9)),
    "causal, least": lambda logits, p: jax.nn.softmax(causal(logits, jnp.finfo(jnp.float32).min)),
    "causal, -inf": lambda logits, p: jax.nn.softmax(causal(logits, -jnp.inf)),
    "causal, -inf added": lambda logits, p: jax.nn.softmax(logits + causal(jnp.zeros_like(logits), -jnp.inf)),
    "biased": lambda logits, p: jax.nn.softmax(logits + p["bias"]),
    "in half precision": lambda logits, p: jax.nn.softmax(causal(logits.astype(jnp.bfloat16), -1e9)).astype("float32"),
}


def test_heads_are_certified():
    plan = {"q:1": [1, 2]}
    apart = differences(WEIGHTS, attention, QUERY, plan, TOKENS)
    for name, function in WEIGHTS.items():
        certificate = trace(attention(function), QUERY, TOKENS).at(plan).certificate
        assert certificate.exact, (name, certificate)
        assert apart[name] <= 1e-5, name


def test_heads_with_rows_that_are_masked_altogether():
    def all_masked(logits, p):
        return jax.nn.softmax(jnp.where(jnp.arange(3)[:, None] > 0, logits, -jnp.inf))

    certificate, _ = verdict(attention(all_masked), QUERY, {"q:1": [1, 2]}, TOKENS)
    assert not certificate.exact
    given_mask = lambda p, x, m: attention(lambda logits, p: jax.nn.softmax(jnp.where(m, logits, -jnp.inf)))(p, x)  # noqa: E731
    assert not verdict(given_mask, QUERY, {"q:1": [1, 2]}, TOKENS, np.ones((3, 3), bool))[0].exact
    over_heads = attention(lambda logits, p: jax.nn.softmax(logits, axis=1))
    certificate, difference = verdict(over_heads, QUERY, {"q:1": [1, 2]}, TOKENS)
    assert {fault.operation for fault in certificate.faults} == {"reduce_max", "reduce_sum"} and difference > 1e-4


def test_the_width_of_heads_and_other_layers_in_one_plan():
    function = attention(WEIGHTS["causal, -inf"])
    graph = trace(function, QUERY, TOKENS)
    assert all(graph.at({group: [1]}).certificate.exact for group in graph.groups)
    assert verdict(function, QUERY, {group: [1] for group in graph.groups}, TOKENS)[0].exact


def recurrent():
    params = numbers(
        {
            "kernel": jnp.ones((3, 4, WIDTH)),
            "again": jnp.ones((WIDTH, 4, WIDTH)),
            "bias": jnp.ones((4, WIDTH)),
            "out": jnp.ones((WIDTH, 2)),
        }
    )

    def lstm(p, x, start=0.0):
        def step(carry, x):
            h, c = carry
            gates = [x @ p["kernel"][:, i] + h @ p["again"][:, i] + p["bias"][i] for i in range(4)]
            c = jax.nn.sigmoid(gates[0]) * c + jax.nn.sigmoid(gates[1]) * jnp.tanh(gates[2])
            h = jax.nn.sigmoid(gates[3]) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.full((x.shape[0], WIDTH), start)
        (h, _), every = lax.scan(step, (zeros, zeros), x.swapaxes(0, 1))
        return h @ p["out"], every.sum(0) @ p["out"]

    return lstm, params, {("out", 0): [0, 3]}


def test_loops_settle():
    lstm, params, plan = recurrent()
    # A start that is not 0 reaches the next step's product only where its rows are not masked.
    assert verdict(lambda p, x: lstm(p, x, 1.0), params, plan, TOKENS)[0].exact

    def turned(p, x):
        h = x @ p["first"]
        (first, _), _ = lax.scan(lambda c, _: ((c[1], c[0] + 1.0), None), (h, h), None, 3)
        return first.sum(-1)

    certificate, difference = verdict(turned, DENSE, PLAN, X)
    assert not certificate.exact and difference > 1e-4


@pytest.mark.slow
def test_loops_whose_rows_are_not_masked():
    lstm, params, plan = recurrent()
    assert verdict(lstm, params, plan, TOKENS)[0].exact
    keep = np.isin(np.arange(WIDTH), [0, 3])
    columns = {"kernel": keep[None, None], "again": keep[None, None], "bias": keep[None], "out": np.True_}
    assert verdict(lstm, params, plan, TOKENS, masked=columns)[0].exact
    certificate, difference = verdict(lambda p, x: lstm(p, x, 1.0), params, plan, TOKENS, masked=columns)
    assert not certificate.exact and difference > 1e-4


class Net(nn.Module):
    """Convolutions, batch and group normalization, pooling, squeeze and excitation, concatenation, dropout."""

    train: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=not self.train)(nn.Conv(4, (3, 3))(x)))
        y = nn.relu(nn.Conv(4, (3, 3), feature_group_count=4)(nn.max_pool(x, (2, 2), (1, 1), "SAME")))
        gate = nn.sigmoid(nn.Dense(4)(nn.silu(nn.Dense(3)(y.mean((1, 2))))))
        x = x + y * gate[:, None, None]
        x = jnp.concatenate([nn.sigmoid(nn.Conv(4, (1, 1))(x)), x], -1)
        x = nn.GroupNorm(num_groups=4)(nn.ConvTranspose(8, (2, 2))(nn.avg_pool(x, (2, 2), (2, 2))))
        x = nn.Dropout(0.5, deterministic=not self.train)(nn.gelu(x))
        return nn.Dense(2)(x.reshape(x.shape[0], -1))


def test_convolutions_and_what_goes_with_them():
    image = np.random.default_rng(2).normal(size=(2, 4, 4, 3)).astype(np.float32)
    params = numbers(jax.eval_shape(Net().init, jax.random.key(0), image))
    graph = trace(Net().apply, params, image)
    assert [group.size for group in graph.groups] == [4, 3, 4, 4]
    assert graph.at(halves(graph)).certificate.exact
    plan, key = halves(graph), jax.random.key(1)

    def train(p, x):
        return Net(True).apply(p, x, rngs={"dropout": key}, mutable=["batch_stats"])

    certificate = trace(train, params, image, free_output="1/*").at(plan).certificate
    assert certificate.exact, certificate


class Encoder(nn.Module):
    """Embedding, attention, gated units, normalization over the width that is cut, tied embedding."""

    fast: bool = True

    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(5, 8)
        x = embed(ids)
        h = nn.LayerNorm(use_fast_variance=self.fast)(x)
        mask = nn.make_causal_mask(ids)
        x = x + nn.MultiHeadDotProductAttention(2)(h, mask=mask)
        h = nn.LayerNorm(use_fast_variance=self.fast)(x)
        x = x + nn.Dense(8)(nn.silu(nn.Dense(6)(h)) * nn.Dense(6)(h))
        return embed.attend(nn.RMSNorm()(x))


def test_an_encoder_in_both_forms_of_its_normalization():
    ids = np.array([[0, 3, 1], [4, 2, 2]])
    params = numbers(jax.eval_shape(Encoder().init, jax.random.key(0), ids))
    graph = trace(Encoder().apply, params, ids)
    plan = halves(graph)
    assert graph.at(plan).certificate.exact
    slow = trace(Encoder(False).apply, params, ids)
    faults = slow.at(plan).certificate.faults
    assert faults and {fault.operation for fault in faults} == {"reduce_sum"}
    width = next(group for group in slow.groups if ("params/Embed_0/embedding", 1) in group.members)
    assert slow.at({group: keep for group, keep in plan.items() if group.name != width.name}).certificate.exact


def halves(graph):
    return {group: np.arange(group.size) % 2 == 0 for group in graph.groups}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "x"),
    [
        (Net(), np.random.default_rng(2).normal(size=(2, 4, 4, 3)).astype(np.float32)),
        (Encoder(), np.array([[0, 3, 1], [4, 2, 2]])),
    ],
)
def test_the_numbers_of_whole_networks_agree(module, x):
    params = numbers(jax.eval_shape(module.init, jax.random.key(0), x))
    assert verdict(module.apply, params, halves(trace(module.apply, params, x)), x)[0].exact


def test_constants_are_not_masked():
    scale = jnp.array([1.0, 2.0, 0.0, 4.0])

    def function(p, x, *, by=scale):
        return ((x @ p["first"] + by) * p["bias"]).sum(-1)

    assert verdict(function, DENSE, PLAN, X)[0].exact
    assert not verdict(lambda p, x: (x @ p["first"] + scale).sum(-1), DENSE, PLAN, X)[0].exact
    assert verdict(lambda p, x: (x @ p["first"] + scale).sum(-1), DENSE, {"first:1": [0, 1, 3]}, X)[0].exact
    infinite = jnp.array([1.0, np.inf, 0.0, 4.0])
    assert not verdict(lambda p, x: (x @ p["first"] * infinite).sum(-1), DENSE, PLAN, X)[0].exact
    # Infinity that is written in places that stay reaches units that go: 0 * inf.
    written = lambda p, x: jax.nn.relu(jnp.where(x > 0, x, -jnp.inf) @ abs(p["first"])) @ p["second"]  # noqa: E731
    assert not verdict(written, DENSE, PLAN, X)[0].exact


def test_the_check_counts_what_only_one_of_both_computes():
    function = hidden(lambda h: h / abs(h))
    graph = trace(function, DENSE, X)
    assert graph.at(PLAN).check(DENSE, X) == np.inf
    plain = trace(hidden(jnp.tanh), DENSE, X)
    assert plain.at(PLAN).check(DENSE, X[:1]) <= 1e-6  # other shapes than traced
    shifted = DENSE | {"bias": DENSE["bias"] * np.nan}
    assert plain.at(PLAN).check(shifted, X) == 0.0  # neither is a number
    expected = np.abs(np.tanh(X @ DENSE["first"] + DENSE["bias"])[:, [1, 3]] @ DENSE["second"][[1, 3]]).max()
    everything = {name: np.True_ for name in DENSE}
    np.testing.assert_allclose(plain.at(PLAN).check(DENSE, X, masked=everything), expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "function",
    [
        lambda h: jnp.stack([h, 2 * h], axis=0).sum(0),
        lambda h: sum(lax.split(jnp.stack([h, h], 1), [1, 1], 1))[:, 0],
        lambda h: jnp.tile(h, (2, 3))[:4, :6],
        lambda h: jnp.concatenate([jnp.tile(h, (1, 1)), jnp.zeros_like(h)], axis=1)[:, :6],
        lambda h: jnp.ones((4, 6)).at[jnp.array([0, 2])].subtract(h[:2]),
    ],
)
def test_operations_that_move_entries_are_exact_where_numbers_are(function):
    random = np.random.default_rng(3)
    params = {name: jnp.asarray(random.normal(size=size), jnp.float32) for name, size in (("a", (3, 6)), ("b", (6, 2)))}
    x = jnp.asarray(random.normal(size=(4, 3)), jnp.float32)
    graph = trace(lambda p, x: function(jnp.tanh(x @ p["a"])) @ p["b"], params, x)
    plan = {group: np.arange(group.size // 2) for group in graph.groups}
    assert graph.at(plan).check(params, x) <= 1e-5
    assert graph.groups and graph.at(plan).certificate.exact


def test_every_operation_that_may_mix_entries_has_a_rule():
    assert not [name for name, rule in RULES.items() if not (rule.bound or rule.entrywise)]


# Ranges of functions, against the functions on many numbers of these ranges.
ENDS = np.array([-1e30, -7.5, -2.0, -1.0, -0.3, -1e-20, 0.0, 1e-20, 0.3, 0.9, 1.0, 2.0, 7.5, 1e30], np.float32).astype(
    np.float64
)
ONE = {name: (rule, getattr(lax, name)) for name, rule in on.MONOTONE.items()} | {
    "neg": (on.negative, lax.neg),
    "abs": (on.absolute, lax.abs),
    "square": (on.square, lax.square),
    "sign": (on.sign, lax.sign),
    "sin": (on.wave(np.sin), lax.sin),
    "cos": (on.wave(np.cos), lax.cos),
    "floor": (on.step(np.floor), lax.floor),
    "is_finite": (on.finite, lax.is_finite),
    **{f"power {n}": (lambda a, n=n: on.power(a, n), lambda x, n=n: x**n) for n in (2, 3, -1, -2, 0.5, -0.5, 1.5)},
}
TWO = {
    "add": (on.add, lax.add),
    "sub": (on.sub, lax.sub),
    "mul": (on.mul, lax.mul),
    "div": (on.div, lax.div),
    "max": (on.maximum, lax.max),
    "min": (on.minimum, lax.min),
    "lt": (on.less, lax.lt),
    "le": (on.less_equal, lax.le),
    "eq": (on.equal, lax.eq),
}


def intervals():
    """Every pair of ends, and for each of them the ends, their middle, and 0 and 1 if these lie between."""
    low, high = (ends.ravel() for ends in np.meshgrid(ENDS, ENDS))
    low, high = low[low <= high], high[low <= high]
    middle = low / 2 + high / 2
    inside = [np.clip(x, low, high) for x in (low, high, middle, np.zeros_like(low), np.ones_like(low))]
    return low, high, np.stack(inside).astype(np.float32)


def assert_holds(range_, values):
    """That a range, as it is settled for float32, says nothing wrong of values, along the first axis."""
    found = settle(Range(*range_), values.dtype)
    values = np.asarray(values)
    nan = np.isnan(values) if np.issubdtype(values.dtype, np.floating) else np.zeros(values.shape, bool)
    inf = np.isinf(values)
    assert not np.any(nan & ~found.nan), np.argwhere(nan & ~found.nan)
    assert not np.any(inf & ~found.infinite), np.argwhere(inf & ~found.infinite)
    assert np.all(nan | ((values >= found.low) & (values <= found.high)))


@pytest.mark.parametrize("name", ONE)
def test_ranges_of_functions_hold(name):
    low, high, inside = intervals()
    rule, function = ONE[name]
    with np.errstate(all="ignore"):
        assert_holds(rule(between(low, high)), function(jnp.asarray(inside)))


@pytest.mark.parametrize("name", TWO)
def test_ranges_of_two_operands_hold(name):
    low, high, inside = intervals()
    rule, function = TWO[name]
    some = np.random.default_rng(0).integers(low.size, size=(2, 3000))
    some[:, : low.size] = np.arange(low.size)
    a, b = (between(low[i], high[i]) for i in some)
    x, y = inside[:, None, some[0]], inside[None, :, some[1]]
    with np.errstate(all="ignore"):
        values = function(*jnp.broadcast_arrays(x, y))
        assert_holds(rule(a, b), values.reshape(-1, some.shape[1]))


# Random layers in a row on (2, WIDTH), each with a kernel of its own; the width that they share is cut, or their own.
LAYERS = {
    "dense": lambda h, w: h @ w["kernel"] + w["bias"],
    "inner": lambda h, w: jnp.tanh(h @ w["kernel"] + w["bias"]) @ w["back"],
    "inner sigmoid": lambda h, w: jax.nn.sigmoid(h @ w["kernel"]) @ w["back"],
    "inner maximum": lambda h, w: h + (h @ w["kernel"]).max(-1, keepdims=True),
    "inner largest": lambda h, w: h + jax.nn.relu(h @ w["kernel"]).max(-1, keepdims=True),
    "inner softmax": lambda h, w: jax.nn.softmax(h @ w["kernel"]) @ w["back"],
    "inner norm": lambda h, w: fast_norm(jax.nn.silu(h @ w["kernel"])) @ w["back"],
    "inner slow": lambda h, w: slow_norm(h @ w["kernel"]) @ w["back"],
    "residual": lambda h, w: h + jnp.tanh(h @ w["kernel"]) @ w["back"],
    "gate": lambda h, w: h * jax.nn.sigmoid(h @ w["kernel"] + w["bias"]),
    "scale": lambda h, w: h * w["bias"],
    "shift": lambda h, w: h + w["bias"],
    "relu": lambda h, w: jax.nn.relu(h),
    "cosine": lambda h, w: jnp.cos(h),
    "exponential": lambda h, w: jnp.exp(-abs(h)),
    "fast": lambda h, w: fast_norm(h) * w["bias"],
    "slow": lambda h, w: slow_norm(h) * w["bias"],
    "rms": lambda h, w: rms_norm(h),
    "unit": lambda h, w: h / jnp.linalg.norm(w["bias"]),
    "ratio": lambda h, w: h / (1e-3 + abs(w["bias"])),
    "ratio of itself": lambda h, w: jnp.where(h > 0, h / h, 0.0),
    "both": lambda h, w: jnp.split(jnp.concatenate([h, jnp.cos(h)], -1), [1, WIDTH + 1], -1)[1],
    "mean": lambda h, w: h + h.mean(-1, keepdims=True),
    "twice": lambda h, w: lax.fori_loop(0, 2, lambda _, c: jnp.tanh(c) + c * c, h),
}
KERNELS = {"kernel": jnp.ones((WIDTH, WIDTH)), "bias": jnp.ones(WIDTH), "back": jnp.ones((WIDTH, WIDTH))}


NETWORKS = given(
    layers=st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=4),
    data=st.data(),
    seed=st.integers(0, 3),
)


@settings(max_examples=4)
@NETWORKS
def test_a_certificate_never_disagrees_with_numbers(layers, data, seed):
    agrees(layers, data, seed)


@pytest.mark.slow
@settings(max_examples=40)
@NETWORKS
def test_no_certificate_of_many_disagrees_with_numbers(layers, data, seed):
    agrees(layers, data, seed)


def agrees(layers, data, seed):
    shapes = {"first": jnp.ones((3, WIDTH)), "last": jnp.ones((WIDTH, 2)), "layers": [KERNELS for _ in layers]}
    params = numbers(shapes, seed)

    def function(p, x):
        h = x @ p["first"]
        for name, weights in zip(layers, p["layers"], strict=True):
            h = LAYERS[name](h, weights)
        return h @ p["last"]

    graph = trace(function, params, X)
    groups = [group for group in graph.groups if group.size == WIDTH]
    chosen = data.draw(st.lists(st.sampled_from(groups), min_size=1, unique_by=lambda g: g.name)) if groups else []
    plan = {group: [1, 2] for group in chosen}
    masked = None
    if data.draw(st.booleans()):
        whole = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), params)
        gone = jax.tree.map(lambda leaf: np.asarray(leaf) != 0, graph.at(plan).mask(params))
        free = data.draw(st.lists(st.booleans(), min_size=32, max_size=32))
        picks = iter(free * 4)
        masked = jax.tree.map(lambda a, b: b if next(picks) else a, whole, gone)
    certificate, difference = verdict(function, params, plan, X, masked=masked, jit=False)
    event(f"exact: {certificate.exact}, numbers agree: {difference <= 1e-5}")
