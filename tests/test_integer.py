"""Integer execution: every output of an oracle in int64, the plan, and whatever a weight goes through on its way."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles_integer as oracle
import pytest
from flax import nnx
from jax import lax

import jaxprune as jp
from jaxprune.integer.weights import weight_of

UNITS = jp.QuantSpec(axis="units")
slow = pytest.mark.slow


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def run(function, codes, *inputs, compute: Any = "w8a8", **how):
    """The function on codes, compiled, and its plan."""
    plan = jp.integer.plan(function, codes, *inputs, compute=compute, **how)
    fn, weights = jp.integer.apply(function, codes, plan)
    return jax.jit(fn)(weights, *inputs), plan


SPECS = {
    "tensor": (8, jp.QuantSpec()),
    "units": (8, UNITS),
    "inputs": (8, jp.QuantSpec(axis=0)),  # has no integer form
    "asymmetric": (8, jp.QuantSpec(symmetric=False, axis="units")),
    "asymmetric_4": (4, jp.QuantSpec(symmetric=False)),
    "one_bit": (1, UNITS),
    "blocks": (4, jp.QuantSpec(block_size=64)),
    "short_block": (8, jp.QuantSpec(symmetric=False, block_size=96)),
    "small_blocks": (8, jp.QuantSpec(block_size=16)),
}


@pytest.mark.parametrize("name", SPECS)
def test_dot(name):
    bits, spec = SPECS[name]
    w, x = normal(200, 6), normal(5, 200, seed=1)
    codes = jp.quantize(w, bits, spec=spec)
    y, plan = run(lambda w, x: x @ w, codes, x)
    (choice,) = plan.choices
    if name in ("inputs", "small_blocks"):
        assert choice.way == "float32" and "scale" in choice.why
        chex.assert_trees_all_close(y, x @ jp.dequantize(codes), rtol=1e-5, atol=1e-5)
    else:
        assert choice.way == "w8a8"
        np.testing.assert_allclose(y, oracle.dot(x, codes), rtol=2e-6, atol=2e-5)
        fn, weights = jp.integer.apply(lambda w, x: x @ w, codes, plan)
        chex.assert_trees_all_close(fn(weights, x), y, rtol=1e-5, atol=1e-5)  # eagerly


@pytest.mark.parametrize("equation", ["bik,kn->bin", "bik,bkn->bin", "nk,bik->bni", "bik,nhk->binh"])
def test_einsum(equation):
    """Batches, and the weight on either side."""
    sizes, (ins, _) = dict(b=2, i=3, k=8, n=4, h=2, d=4), equation.split("->")
    left, right = (normal(*(sizes[c] for c in term), seed=i) for i, term in enumerate(ins.split(",")))
    side = 0 if equation.startswith("nk") else 1
    codes = jp.quantize((left, right)[side], 8)
    data = (left, right)[1 - side]

    def product(w, x):
        return jnp.einsum(equation, *((w, x) if side == 0 else (x, w)))

    y, plan = run(product, codes, data)
    assert plan.choices[0].way == "w8a8"
    term = ins.split(",")[1 - side]
    inner = [i for i, letter in enumerate(term) if letter not in equation.split("->")[1]]
    rounded = oracle.rounded(data, tuple(inner))
    pair = (codes.dense(), rounded) if side == 0 else (rounded, codes.dense())
    np.testing.assert_allclose(y, np.einsum(equation, *map(np.float64, pair)), rtol=1e-5, atol=1e-5)


CONVOLUTIONS = {
    "same": dict(window_strides=(1, 1), padding="SAME"),
    "strides": dict(window_strides=(2, 1), padding="VALID"),
    "dilated": dict(window_strides=(1, 1), padding=((1, 2), (0, 1)), rhs_dilation=(2, 1)),
    "transposed": dict(window_strides=(1, 1), padding=((1, 1), (1, 1)), lhs_dilation=(2, 2)),
    "groups": dict(window_strides=(1, 1), padding="SAME", feature_group_count=2),
}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name, symmetric):
    how = CONVOLUTIONS[name]
    x, w = normal(2, 7, 6, 4), normal(3, 3, 4 // how.get("feature_group_count", 1), 6, seed=1)
    codes = jp.quantize({"conv": {"kernel": w}}, 8, spec=jp.QuantSpec(symmetric=symmetric, axis="units"))

    def convolved(x, w):
        return lax.conv_general_dilated(x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **how)

    y, plan = run(lambda p, x: convolved(x, p["conv"]["kernel"]), codes, x)
    assert plan.choices[0].way == "w8a8"
    rounded = oracle.rounded(x, (1, 2, 3)).astype(np.float32)
    wanted = convolved(jnp.asarray(rounded), codes["conv"]["kernel"].dense())
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)


def test_sums_beyond_int32_are_cut():
    x, codes = jnp.full((1, 200_000), 127.0), jp.quantize(jnp.full((200_000, 1), 127.0), 8)
    y, _ = run(lambda w, x: x @ w, codes, x)
    np.testing.assert_allclose(y[0, 0], 200_000 * 127**2, rtol=2e-7)
    largest = jp.QArray(jnp.full((131_072, 1), 255, jnp.uint8), jnp.ones((1, 1)), jnp.zeros((1, 1), jnp.int32), 8,
                        np.dtype("float32"), jp.QuantSpec(symmetric=False))  # fmt: skip
    y, _ = run(lambda w, x: x @ w, largest, x[:, :131_072])
    np.testing.assert_allclose(y[0, 0], 131_072 * 127 * 255, rtol=2e-7)


def test_rows_that_are_not_finite():
    x = jnp.array([[0.0, 0.0], [jnp.nan, 1.0], [jnp.inf, 2.0], [1.0, -1.0]])
    codes = jp.quantize(jnp.array([[1.0], [0.5]]), 8)
    for ranges in (None, {"": 2.0}):
        y = np.asarray(run(lambda w, x: x @ w, codes, x, ranges=ranges)[0])[:, 0]
        assert y[0] == 0 and np.isnan(y[1]) and abs(y[2] - 3) < 0.02 and abs(y[3] - 0.5) < 0.02


def test_a_known_range():
    x, w = normal(4, 30), normal(30, 3, seed=1)
    codes = jp.quantize(w, 8)
    y, plan = run(lambda w, x: x @ w, codes, x, ranges={"": 1.5})
    wanted = np.clip(np.round(np.asarray(x) / np.float32(1.5 / 127)), -127, 127) * np.float32(1.5 / 127)
    np.testing.assert_allclose(y, wanted @ np.asarray(codes.dense()), rtol=1e-5, atol=1e-5)
    assert plan.choices[0].largest == 1.5


class Model(nn.Module):
    @nn.compact
    def __call__(self, ids):
        table = nn.Embed(11, 8)
        x = table(ids)
        x = nn.LayerNorm()(x + nn.MultiHeadDotProductAttention(2)(x, x))
        return table.attend(nn.gelu(nn.Dense(8)(x)))


def test_a_model():
    """Lookups, heads, a tied head; the same under vmap, and for another batch."""
    model, ids = Model(), jnp.array([[1, 4, 10, 0], [3, 3, 2, 1]])
    params = model.init(jax.random.key(0), ids)
    codes = jp.quantize(params, 8, spec=UNITS)
    y, plan = run(model.apply, codes, ids)
    ways = {one.name: one.way for one in plan.choices}
    table = "params/Embed_0/embedding"
    assert ways.pop(table) == "weights" and len(ways) == 6 and set(ways.values()) == {"w8a8"} and table + "#1" in ways
    dense = np.asarray(model.apply(params, ids))
    assert np.linalg.norm(y - dense) < 0.03 * np.linalg.norm(dense)
    fn, weights = jp.integer.apply(model.apply, codes, plan)
    mapped = jax.jit(jax.vmap(lambda row: fn(weights, row[None])[0]))(ids)
    chex.assert_trees_all_close(mapped, y, rtol=1e-5, atol=1e-6)
    assert jax.jit(fn)(weights, ids[:1]).shape == (1, 4, 11)
    assert all(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(weights) if leaf.ndim > 1 and leaf.size > 16)


def test_an_nnx_model_and_a_shrunk_one():
    x = normal(2, 6, 6, 3)
    model = nnx.Sequential(nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0)), nnx.relu, nnx.Conv(8, 4, (3, 3), rngs=nnx.Rngs(1)))
    graph, params = nnx.split(model)
    shrunk = jp.shrink(lambda p, x: nnx.merge(graph, p)(x), params, x, sparsity=0.5)
    y, plan = run(shrunk.apply, jp.quantize(shrunk.params, 8, spec=UNITS), x)
    wanted = np.asarray(shrunk.apply(shrunk.params, x))
    assert [one.name for one in plan.choices] == ["layers/0/kernel", "layers/2/kernel"]
    assert plan.choices[1].shapes == "(2, 6, 6, 4) x (3, 3, 4, 4)"
    assert np.linalg.norm(y - wanted) < 0.02 * np.linalg.norm(wanted)


def test_rows_beyond_the_table():
    codes, places = jp.quantize({"embedding": normal(5, 3)}, 8), jnp.array([1, 7])
    y, plan = run(lambda p, i: p["embedding"].at[i].get(mode="fill"), codes, places)
    chex.assert_trees_all_equal(y[0], jp.dequantize(codes)["embedding"][1])
    assert np.isnan(y[1]).all() and plan.choices[0].operation == "gather"


@pytest.mark.parametrize("around", ["scan", "remat", "cond", "while", "fori", "custom_vjp"])
def test_weights_inside_of(around):
    stack, x = normal(3, 8, 8) / 3, normal(2, 8, seed=1)
    codes = jp.quantize({"layers": {"kernel": stack}}, 8, layout={"*": ((0,), (1,), (2,))}, spec=UNITS)

    def layer(w, x):
        return jnp.tanh(x @ w)

    def function(p, x):
        w = p["layers"]["kernel"]
        if around == "scan":
            return lax.scan(lambda x, w: (layer(w, x), None), x, w)[0]
        if around == "while":
            return lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, layer(w[0], s[1])), (0, x))[1]
        if around == "fori":
            return lax.fori_loop(0, 3, lambda i, x: layer(w[1], x), x)
        if around == "cond":
            return lax.cond(x[0, 0] > 0, lambda w, x: layer(w, x), lambda w, x: x, w[0], x)
        inner = {"remat": jax.checkpoint, "custom_vjp": jax.custom_vjp}[around](layer)
        if around == "custom_vjp":
            inner.defvjp(lambda w, x: (layer(w, x), None), lambda _, g: (w[0] * 0, g))
        return inner(w[0], x)

    y, plan = run(function, codes, x)
    assert {one.way for one in plan.choices} == {"w8a8"} and len(plan.choices) == 1
    chex.assert_trees_all_close(y, function(jp.dequantize(codes), x), atol=0.03)


def test_moves():
    """Codes go through whatever moves numbers alone, and stand for the same array after it."""
    codes = jp.quantize(normal(8, 6), 8, spec=jp.QuantSpec(axis=1))
    weight, array = weight_of(codes, ""), codes.dense()
    moves = [lambda w: w.T, lambda w: w.reshape(2, 4, 6), lambda w: w.reshape(8, 3, 2), lambda w: w[2:6, 1:3],
             lambda w: w[None], lambda w: jnp.split(w, 2)[1], lambda w: w.reshape(8, 2, 3).mT]  # fmt: skip
    for move in moves:
        program = jax.make_jaxpr(move)(array).jaxpr
        assert all(one.primitive.name not in ("dot_general", "mul") for one in program.eqns)
        values = {program.invars[0]: weight}
        for equation in program.eqns:
            outs = values[equation.invars[0]].moved(equation)
            assert outs is not None, equation
            values.update(zip(equation.outvars, outs, strict=True))
        chex.assert_trees_all_equal(values[program.outvars[0]].dense(), move(array))
    merged = jax.make_jaxpr(lambda w: w.reshape(48))(array).jaxpr.eqns[0]
    assert weight.moved(merged) is None  # inputs outside of units: no run of entries shares a scale


def test_plans():
    x, codes = normal(3, 8), {"a": jp.quantize(normal(8, 8), 8), "b": jp.quantize(normal(8, 8), 16), "c": normal(8, 8)}

    def function(p, x):
        return x @ p["a"] @ p["b"] @ p["c"]

    y, plan = run(function, codes, x, compute={"a": "bfloat16"})
    assert [(one.name, one.way) for one in plan.choices] == [("a", "bfloat16")] and hash(plan) is not None
    assert jp.integer.Plan.from_json(plan.to_json()) == plan and "bfloat16" in repr(plan)
    _, weights = jp.integer.apply(function, codes, plan)
    assert weights[0][0].dtype == jnp.bfloat16 and weights[1].dtype == jnp.float32
    dense = function(jp.dequantize(codes), x)
    assert np.linalg.norm(y - dense) < 0.02 * np.linalg.norm(dense)
    for compute in ("float32", "weights"):
        chex.assert_trees_all_close(run(function, codes, x, compute=compute)[0], dense, rtol=1e-5)
    auto = jp.integer.plan(function, codes, x)
    assert auto.choices[0].way in ("w8a8", "weights", "bfloat16", "float32") and "ms" in auto.choices[0].why
    _, weights = jp.integer.apply(
        function, codes, jp.integer.plan(function, codes, x, compute="float32", keep_codes=True)
    )
    assert weights[0][0].dtype == jnp.int8


def test_what_cannot_be_planned():
    x, codes = normal(3, 8), {"a": jp.quantize(normal(8, 8), 8)}
    product = lambda p, x: x @ p["a"]  # noqa: E731
    with pytest.raises(ValueError, match="compute is 'int7'; it may be 'auto'"):
        jp.integer.plan(product, codes, x, compute="int7")
    with pytest.raises(ValueError, match="no product uses codes: no leaf"):
        jp.integer.plan(product, jp.dequantize(codes), x)
    with pytest.raises(ValueError, match="codes of 16 bits"):
        jp.integer.plan(product, {"a": jp.quantize(normal(8, 8), 16)}, x)
    with pytest.raises(ValueError, match="codes that stand for NaN"):
        jp.integer.plan(product, {"a": jp.quantize(normal(8, 8).at[0, 0].set(jnp.nan), 8)}, x)
    with pytest.raises(ValueError, match="'b', which is no product; these are a"):
        jp.integer.plan(product, codes, x, compute="w8a8", ranges={"b": 1.0})
    with pytest.raises(ValueError, match="the range of 'a' is -1"):
        jp.integer.plan(product, codes, x, compute="w8a8", ranges={"a": -1})
    plan = jp.integer.plan(product, codes, x, compute="w8a8")
    with pytest.raises(ValueError, match="names products of \\['a'\\], which hold no codes here"):
        jp.integer.apply(product, jp.dequantize(codes), plan)
