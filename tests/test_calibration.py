"""Statistics of data: what products see, against plain NumPy; and what is compressed with them."""

import pickle
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles_calibration as oracles
import pytest
from flax import nnx

import jaxprune as jp
from jaxprune.calibration import (
    coding,
    collect,
    correct_biases,
    divergence,
    encode,
    fake_quant,
    input_qparams,
    leaves,
    merge,
    obd,
    obs,
    output_error,
    prune,
    quantize,
    reading,
    refit,
    smooth,
    wanda,
)

RNG = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def moments_of(rows):
    """Everything that is summed of rows [T, K], in float64."""
    rows = np.asarray(rows, np.float64).reshape(-1, rows.shape[-1])
    return {"total": rows.sum(0), "squares": (rows**2).sum(0), "largest": abs(rows).max(0), "gram": rows.T @ rows}


def check(found, rows, matrix=0):
    """``found`` has the moments of ``rows``, for one of its matrices."""
    for name, value in moments_of(rows).items():
        np.testing.assert_allclose(getattr(found, name)[matrix], value, rtol=1e-5, atol=1e-5, err_msg=name)
    assert found.count[matrix] == rows.size // rows.shape[-1]


W, X = draw(8, 6), draw(5, 8)

with_derivative = jax.custom_jvp(jnp.matmul)
with_derivative.defjvps(lambda dx, y, x, w: dx @ w, lambda dw, y, x, w: x @ dw)

# name: (function of a parameter and data, parameter, the rows that the product sees, its matrix [K, N])
DENSE = {
    "product": (lambda w, x: x @ w, W, X, W),
    "transposed": (lambda w, x: x @ w.T, W.T, X, W),
    "first": (lambda w, x: (w.T @ x.T).T, W, X, W),
    "reshaped": (lambda w, x: jnp.einsum("td,dhk->thk", x, w.reshape(8, 2, 3)), W, X, W),
    "heads": (lambda w, x: jnp.einsum("td,dhk->htk", x, w), W.reshape(8, 2, 3), X, W),
    "two inputs": (lambda w, x: jnp.einsum("tab,abn->tn", x.reshape(5, 4, 2), w), W.reshape(4, 2, 6), X, W),
    "cast": (lambda w, x: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16), W, X.astype(jnp.bfloat16), W),
    "in jit": (lambda w, x: jax.jit(jnp.matmul)(x, w), W, X, W),
    "vmapped": (lambda w, x: jax.vmap(lambda row: w.T @ row)(x), W, X, W),
    "remat": (lambda w, x: jax.checkpoint(lambda x, w: x @ w)(x, w), W, X, W),
    "own derivative": (lambda w, x: with_derivative(x, w), W, X, W),
}


@pytest.mark.parametrize("name", DENSE)
def test_a_product_sees_rows_of_data(name):
    function, leaf, rows, matrix = DENSE[name]
    stats = collect(function, leaf, X)
    check(stats.inputs[""], rows)
    ((_, use),) = stats.uses
    np.testing.assert_array_equal(use.matrices(leaf)[0], matrix)
    np.testing.assert_array_equal(use.leaf(use.matrices(leaf), leaf), leaf)


def test_parts_of_a_leaf_are_uses_of_their_own():
    stats = collect(lambda w, x: [x @ part for part in jnp.split(w, [2], 1)], W, X)
    (one, first), (two, second) = stats.uses
    assert (one, two, stats.inputs.keys()) == ("", "#1", {""}), "both look at the same data"
    np.testing.assert_array_equal(first.leaf(first.matrices(W), W) + second.leaf(second.matrices(W), W), W)


@pytest.mark.parametrize("strides, padding, dilation, groups", [((1, 1), "SAME", 1, 1), ((2, 1), "VALID", (1, 2), 2)])
def test_convolutions_see_windows(strides, padding, dilation, groups):
    layer = nn.Conv(4, (2, 3), strides, padding, kernel_dilation=dilation, feature_group_count=groups, use_bias=False)
    x = draw(2, 5, 6, 4)
    params = layer.init(jax.random.key(0), x)
    stats = collect(layer.apply, params, x)
    ((name, use),) = stats.uses
    windows = oracles.windows(np.asarray(x), (2, 3), strides, padding, dilation, groups)  # [groups, T, K]
    kernel = params["params"]["kernel"]
    for group, rows in enumerate(windows):
        check(stats.inputs[name], rows, group)
        outputs = layer.apply(params, x)[..., group * 4 // groups : (group + 1) * 4 // groups]
        products = rows @ np.asarray(use.matrices(kernel)[group])
        np.testing.assert_allclose(products, outputs.reshape(products.shape), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(use.leaf(use.matrices(kernel), kernel), kernel)


def test_windows_of_some_images_at_once(monkeypatch):
    def network(p, x):
        return jax.lax.conv_general_dilated(jnp.tanh(x), p, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    kernel, x, kept = draw(3, 3, 2, 4), draw(6, 4, 4, 2).at[1, 0, 0, 0].set(jnp.nan), jnp.arange(6) != 2
    how = {"key": jax.random.key(0), "rows": kept, "want": ["gram", "histogram"]}
    whole = collect(network, kernel, x, **how)
    monkeypatch.setattr(reading, "_WINDOWS", 4 * 4 * 18 * 2)  # two images
    again = lambda p, x: network(p, x)  # noqa: E731  another program
    parts = collect(again, kernel, x, **how)
    assert "scan" in str(jax.make_jaxpr(lambda x: collect(again, kernel, x, **how).inputs)(x))
    for one, other in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


STACKED = {"up": draw(3, 8, 6), "down": draw(3, 6, 8), "shared": draw(8, 8)}


def scanned(p, x, remat=False):
    def layer(x, own):
        return jnp.tanh(x @ own["up"]) @ own["down"] @ p["shared"], None

    layers = {"up": p["up"], "down": p["down"]}
    return jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, layers)[0]


def unrolled(p, x):
    for up, down, shared in zip(p["up"], p["down"], p["shared"], strict=True):
        x = jnp.tanh(x @ up) @ down @ shared
    return x


@pytest.mark.parametrize("remat", [False, True])
def test_layers_of_a_scan_have_statistics_of_their_own(remat):
    apart = {name: list(one) for name, one in STACKED.items()} | {"shared": [STACKED["shared"]] * 3}
    how = {"key": jax.random.key(1)}
    stats = collect(lambda p, x: scanned(p, x, remat), STACKED, X, **how)
    want = collect(unrolled, apart, X, **how)
    for name in ("up", "down"):
        for part in ("gram", "largest", "count"):
            layers = [getattr(want.inputs[f"{name}/{i}"], part)[0] for i in range(3)]
            np.testing.assert_allclose(getattr(stats.inputs[name], part), layers, rtol=1e-5, atol=1e-5)
        for part in ("squares", "weighted"):
            layers = [getattr(want.gradients[f"{name}/{i}"], part)[0] for i in range(3)]
            np.testing.assert_allclose(getattr(stats.gradients[name], part), layers, rtol=1e-4, atol=1e-4)
    together = sum(want.inputs[f"shared/{i}"].gram for i in range(3))
    np.testing.assert_allclose(stats.inputs["shared"].gram, together, rtol=1e-5, atol=1e-5)
    together = sum(want.gradients[f"shared/{i}"].weighted for i in range(3))
    np.testing.assert_allclose(stats.gradients["shared"].weighted, together, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_random_cotangents():
    def network(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"]

    params = {"a": draw(8, 6), "b": draw(6, 4)}
    key = jax.random.key(3)
    stats = collect(network, params, X, key=key)
    out = np.asarray(jax.random.normal(jax.random.split(key, 1)[0], (5, 4)), np.float64)
    hidden = np.tanh(np.asarray(X @ params["a"], np.float64))
    before = out @ np.asarray(params["b"]).T * (1 - hidden**2)
    for name, rows, g in (("a", X, before), ("b", hidden, out)):
        rows = np.asarray(rows, np.float64)
        np.testing.assert_allclose(stats.gradients[name].squares[0], (g**2).sum(0), rtol=1e-4)
        weighted = (rows * (g**2).sum(1, keepdims=True)).T @ rows
        np.testing.assert_allclose(stats.gradients[name].weighted[0], weighted, rtol=1e-4, atol=1e-4)


def test_lookups_are_counted():
    table, ids = draw(7, 3), jnp.array([[1, 1, 6], [0, 1, 2]])
    stats = collect(lambda p, ids: p[ids] @ p.T, table, ids, key=jax.random.key(0))
    (name, table_use), (again, use) = stats.uses
    assert table_use.lookup and not use.lookup and again == "#1"
    assert stats.inputs[name].rows.tolist() == [[1, 3, 1, 0, 0, 0, 1]] and stats.inputs[name].count.tolist() == [6]
    check(stats.inputs[again], table[ids])
    assert (np.asarray(stats.gradients[name].rows[0]) > 0).tolist() == [True, True, True, False, False, False, True]
    np.testing.assert_allclose(stats.gradients[name].rows.sum(), stats.gradients[name].squares.sum(), rtol=1e-5)


def in_groups(w, x, sizes):
    numbers = jax.lax.RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), [0], [0])
    return jax.lax.ragged_dot_general(x, w, sizes, numbers)


@pytest.mark.slow
@pytest.mark.parametrize("product", [lambda w, x, sizes: jax.lax.ragged_dot(x, w, sizes), in_groups])
def test_each_expert_sees_its_rows(product):
    sizes, experts = jnp.array([2, 0, 3]), draw(3, 8, 6)
    stats = collect(product, experts, X, sizes)
    found = stats.inputs[""]
    assert found.count.tolist() == [2, 0, 3]
    check(found, X[:2], 0)
    check(found, X[2:], 2)
    small = fake_quant(experts, stats, 3)
    plain = jp.fake_quant(experts, 3, spec=jp.QuantSpec(axis=(0, 2), calibration=jp.quantization.mean_squared_error()))
    np.testing.assert_array_equal(small[1], plain[1])  # no row: as without data
    assert not np.array_equal(small[0], plain[0]) and "[1]" in repr(stats)


def test_a_branch_that_is_not_taken_has_no_rows():
    def either(p, x, first):
        return jax.lax.cond(first, lambda x: x @ p["a"], lambda x: jnp.tanh(x) @ p["b"], x)

    params = {"a": W, "b": W + 1}
    stats = collect(either, params, X, jnp.array(True))
    check(stats.inputs["a"], X)
    assert stats.inputs["b"].count.tolist() == [0] and "b" in repr(stats)
    both = merge(stats, collect(either, params, X, jnp.array(False)))
    check(both.inputs["b"], jnp.tanh(X))


def test_a_loop_adds_up():
    def loop(w, x, times):
        return jax.lax.while_loop(lambda s: s[1] < times, lambda s: (jnp.tanh(s[0] @ w), s[1] + 1), (x, 0))[0]

    square = draw(8, 8)
    first = jnp.tanh(X @ square)
    check(collect(loop, square, X, 2).inputs[""], jnp.concatenate([X, first]))


def test_modules_of_flax():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x)))

    x = draw(2, 3, 8)
    params = Block().init(jax.random.key(0), x)
    stats = collect(Block().apply, params, x)
    assert {use.path for _, use in stats.uses} == {path for path in jp.tree.select(params).names}
    assert stats.without == () and len(stats.inputs) == 3, "query, key and value share their input"
    graph, state = nnx.split(nnx.Linear(8, 4, rngs=nnx.Rngs(0)))
    check(collect(lambda s, x: nnx.merge(graph, s)(x), state, X).inputs["kernel"], X)


def test_modules_of_equinox():
    eqx = pytest.importorskip("equinox", reason="Equinox is installed in development only")
    params, rest = eqx.partition(eqx.nn.MLP(8, 4, 6, 1, key=jax.random.key(0)), eqx.is_inexact_array)
    stats = collect(lambda p, x: jax.vmap(eqx.combine(p, rest))(x), params, X)
    first, second = params.layers
    check(stats.inputs["layers/0/weight"], X)
    check(stats.inputs["layers/1/weight"], jax.nn.relu(X @ first.weight.T + first.bias))
    assert [use.shape for _, use in stats.uses] == [(1, 8, 6), (1, 6, 4)], "weights are [outputs, inputs]"


def test_what_no_product_uses_is_named_with_the_reason():
    def normed(p, x):
        return x @ (p["v"] / jnp.linalg.norm(p["v"])) + x @ p["w"]

    stats = collect(normed, {"v": W, "w": W, "unused": W}, X)
    assert dict(stats.without)["unused"] == "no operation uses it"
    assert "test_calibration.py" in dict(stats.without)["v"]
    with pytest.raises(ValueError, match="leaf 'v': its view ends in"):
        fake_quant({"v": W, "w": W, "unused": W}, stats, 4, where="v")
    with pytest.raises(ValueError, match="no product uses a chosen parameter"):
        collect(normed, {"v": W, "w": W, "unused": W}, X, where="unused")


def test_rows_with_nan_are_counted_and_left_out():
    bad = X.at[1, 3].set(jnp.nan).at[4, 0].set(jnp.inf)
    found = collect(lambda w, x: x @ w, W, bad, want=["gram", "histogram"]).inputs[""]
    check(found, X[jnp.array([0, 2, 3])])
    assert found.skipped.tolist() == [2] and found.histogram.sum() == 3 * 8


def test_histograms_do_not_depend_on_batches():
    x = jnp.concatenate([jnp.zeros((5, 8)), X, X * 1e-3, jnp.full((5, 8), 448.0)])
    whole = collect(lambda w, x: x @ w, W, x, want=["histogram"])
    parts = None
    for i in range(0, 20, 5):
        parts = collect(lambda w, x: x @ w, W, x[i : i + 5], want=["histogram"], stats=parts)
    np.testing.assert_array_equal(parts.inputs[""].histogram, whole.inputs[""].histogram)
    bits = np.abs(np.asarray(x)).view(np.uint32) >> 20
    np.testing.assert_array_equal(whole.inputs[""].histogram[0], np.bincount(bits.ravel(), minlength=2048))


def test_merging_is_associative_and_needs_one_function():
    a, b, c = (collect(DENSE["product"][0], W, X + i) for i in range(3))
    left, right = merge(merge(a, b), c), merge(a, merge(c, b))
    np.testing.assert_allclose(left.inputs[""].gram, right.inputs[""].gram, rtol=1e-6)
    check(left.inputs[""], jnp.concatenate([X, X + 1, X + 2]))
    with pytest.raises(ValueError, match="used in two ways"):
        merge(a, collect(DENSE["transposed"][0], W.T, X))
    with pytest.raises(ValueError, match="of two kinds"):
        merge(a, collect(DENSE["product"][0], W, X, want=()))


def test_statistics_can_be_kept():
    stats = collect(DENSE["product"][0], W, X, want=["gram", "histogram"], key=jax.random.key(0))
    for kept in (pickle.loads(pickle.dumps(stats)), jax.device_get(stats), jax.device_put(stats)):
        assert jax.tree.structure(kept) == jax.tree.structure(stats)
        np.testing.assert_array_equal(kept.inputs[""].gram, stats.inputs[""].gram)
        np.testing.assert_array_equal(fake_quant(W, kept, 3), fake_quant(W, stats, 3))
    both = collect(DENSE["product"][0], W, X, want=["gram", "histogram"], key=jax.random.key(1), stats=kept)
    assert both.inputs[""].count.tolist() == [10] and stats.inputs[""].count.tolist() == [5], "nothing was used up"


def test_one_program_for_batches_of_one_shape():
    traced = []

    def function(w, x):
        traced.append(x.shape)
        return x @ w

    stats = None
    for i in range(3):
        stats = collect(function, W, X + i, stats=stats)
    assert len(traced) == 1 and stats.inputs[""].count.tolist() == [15]


# What is compressed


MIXED = draw(200, 8) @ draw(8, 40) + 0.3 * draw(200, 40)
LAYER = {"kernel": draw(40, 12), "bias": draw(12)}
PLAIN = jp.QuantSpec(axis="units", calibration=jp.quantization.mean_squared_error())


def affine(p, x):
    return x @ p["kernel"] + p["bias"]


@pytest.fixture(scope="module")
def stats():
    return collect(affine, LAYER, MIXED)


def loss(p):
    return float(jnp.sum((affine(p, MIXED) - affine(LAYER, MIXED)) ** 2))


@pytest.mark.parametrize("bits", [2, 4])
def test_gptq_against_least_squares(stats, bits):
    small = fake_quant(LAYER, stats, bits)
    scale = jp.choose_qparams(LAYER, bits, spec=PLAIN)["kernel"].scale
    want = oracles.gptq(LAYER["kernel"], stats.inputs["kernel"].gram[0], np.asarray(scale), 2 ** (bits - 1) - 1)
    same = np.isclose(small["kernel"], want, rtol=1e-6)
    assert same.mean() >= 0.999
    assert loss(small) < 0.4 * loss(jp.fake_quant(LAYER, bits, spec=PLAIN))
    np.testing.assert_array_equal(small["bias"], LAYER["bias"])


def test_ranges_of_the_least_error_of_outputs(stats):
    spec = jp.QuantSpec(axis="units", calibration=output_error((1.0, 0.8, 0.6)))
    gram, weights = np.asarray(stats.inputs["kernel"].gram[0], np.float64), np.asarray(LAYER["kernel"], np.float64)
    full, tried = abs(np.asarray(weights)).max(0) / 3, []
    for ratio in (1.0, 0.8, 0.6):
        new = oracles.gptq(weights, gram, full[None] * ratio, 3)
        tried.append((np.einsum("kn,km,mn->n", new - weights, gram, new - weights), new))
    best = np.argmin([cost for cost, _ in tried], 0)
    want = np.take_along_axis(np.stack([new for _, new in tried]), best[None, None], 0)[0]
    small = quantize(LAYER, stats, 3, spec=spec)
    assert np.isclose(small["kernel"].dense(), want, rtol=1e-5).mean() >= 0.99
    np.testing.assert_array_equal(fake_quant(LAYER, stats, 3, spec=spec)["kernel"], small["kernel"].dense())
    assert len({*best}) > 1 and loss(jp.dequantize(small)) < 0.9 * loss(fake_quant(LAYER, stats, 3))


def test_percentiles_clip_weights_that_are_fitted_to_data(stats):
    spec = jp.QuantSpec(axis="units", calibration=jp.quantization.percentile(95.0))
    scale = np.percentile(abs(np.asarray(LAYER["kernel"], np.float64)), 95.0, 0) / 7
    want = oracles.gptq(LAYER["kernel"], stats.inputs["kernel"].gram[0], scale[None], 7)
    assert np.isclose(fake_quant(LAYER, stats, 4, spec=spec)["kernel"], want, rtol=1e-5).mean() >= 0.99


def outliers(rows, scale):
    """Rectified numbers, half of them 0, and a few that are far away."""
    x = np.maximum(np.random.default_rng(rows).normal(size=(rows, 8)), 0) * scale
    x[:3, 0] = 40 * scale
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def of_outliers():
    """Of two layers of a scan: the inputs of the second are larger."""
    x = outliers(4000, 1.0)
    function = lambda p, x: jax.lax.scan(lambda x, w: (x * 3, x @ w), jnp.asarray(x), p)[1]  # noqa: E731
    stats = collect(function, jnp.ones((2, 8, 1)), x, want=["histogram"])
    return stats, [abs(x).ravel(), abs(x * 3).ravel()]


@pytest.mark.parametrize("q", [100.0, 99.9, 50.0, 10.0])
def test_percentiles_of_inputs(of_outliers, q):
    stats, numbers = of_outliers
    scale, _ = input_qparams(stats, 8, spec=jp.QuantSpec(calibration=jp.quantization.percentile(q)))[""]
    for found, own, histogram in zip(np.asarray(scale) * 127, numbers, stats.inputs[""].histogram, strict=True):
        want = oracles.percentile(*oracles.magnitudes(histogram, own.max()), q)
        np.testing.assert_allclose(found, want, rtol=2e-3, atol=1e-30)
        np.testing.assert_allclose(found, np.percentile(own, q), rtol=0.05)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_ranges_of_inputs_of_least_squared_error(of_outliers, bits):
    stats, numbers = of_outliers
    ratios = tuple(i / 25 for i in range(25, 0, -1))
    spec = jp.QuantSpec(calibration=jp.quantization.mean_squared_error(ratios))
    scale, zero = input_qparams(stats, bits, spec=spec)[""]
    for found, own, histogram in zip(scale, numbers, stats.inputs[""].histogram, strict=True):
        spread = oracles.magnitudes(histogram, own.max(), 4096)
        costs = [oracles.squared_error(*spread, ratio * own.max(), bits) for ratio in ratios]
        high = ratios[int(np.argmin(costs))] * own.max()
        np.testing.assert_allclose(float(found) * (2 ** (bits - 1) - 1), high, rtol=1e-5)
        each = [oracles.squared_error(own, np.ones(own.size), ratio * own.max(), bits) for ratio in ratios]
        assert oracles.squared_error(own, np.ones(own.size), high, bits) <= 1.02 * min(each)
    assert not zero.any()


@pytest.mark.parametrize("bits", [4, 8])
def test_ranges_of_inputs_of_least_divergence(of_outliers, bits):
    stats, numbers = of_outliers
    ratios = tuple(i / 32 for i in range(32, 1, -1))
    scale, _ = input_qparams(stats, bits, spec=jp.QuantSpec(calibration=divergence(ratios)))[""]
    for found, own, histogram in zip(scale, numbers, stats.inputs[""].histogram, strict=True):
        spread, counts = oracles.magnitudes(histogram, own.max(), 4096)
        linear, _ = np.histogram(spread, 2048, (0, own.max()), weights=np.where(spread > 1e-30, counts, 0))
        levels = 2 ** (bits - 1)
        costs = [oracles.divergence(linear, round(r * 2048), levels) if r * 2048 >= levels else np.inf for r in ratios]
        np.testing.assert_allclose(float(found) * (levels - 1), ratios[int(np.argmin(costs))] * own.max(), rtol=1e-5)
    assert float(scale[1] * (levels - 1)) < 0.5 * numbers[1].max()


def test_ranges_of_inputs_are_traced_and_refuse_what_magnitudes_do_not_say(of_outliers):
    stats, numbers = of_outliers
    several = jnp.array([4, 8])
    for calibration in (None, jp.quantization.mean_squared_error(), divergence((1.0, 0.5))):
        spec = jp.QuantSpec(calibration=calibration)
        many = jax.jit(jax.vmap(lambda bits, spec=spec: input_qparams(stats, bits, spec=spec)[""].scale))(several)
        for one, bits in zip(many, several, strict=True):
            np.testing.assert_allclose(one, input_qparams(stats, bits, spec=spec)[""].scale, rtol=1e-6)
    np.testing.assert_allclose(input_qparams(stats, 8)[""].scale * 127, [own.max() for own in numbers], rtol=1e-6)
    x = jnp.asarray(outliers(4000, 1.0)[:, :1])
    clipped = jp.fake_quant(x, 8, qparams=jax.tree.map(lambda one: one[0], input_qparams(stats, 8)[""]))
    assert float(abs(clipped - x).max()) <= 20.2 / 127
    for spec in (jp.QuantSpec(symmetric=False), jp.QuantSpec(axis=0), jp.QuantSpec(calibration=lambda *_: None)):
        with pytest.raises(ValueError, match="statistics hold magnitudes"):
            input_qparams(stats, 8, spec=spec)
    with pytest.raises(ValueError, match="hold no histograms"):
        input_qparams(replace(stats, inputs={"": replace(stats.inputs[""], histogram=None)}), 8, spec=PERCENT)
    with pytest.raises(ValueError, match="bits must be in"):
        input_qparams(stats, 1)


PERCENT = jp.QuantSpec(calibration=jp.quantization.percentile(99.0))


@pytest.mark.parametrize("spec", [PLAIN, jp.QuantSpec(symmetric=False, block_size=15)])
def test_zero_points_of_ranges_by_outputs_are_codes(stats, spec):
    negative = {**LAYER, "kernel": LAYER["kernel"].at[:15, 0].set(-1 - abs(LAYER["kernel"][:15, 0]))}
    for calibration in (spec.calibration, output_error((1.0, 0.7))):
        small = quantize(negative, stats, 4, spec=replace(spec, calibration=calibration))["kernel"]
        assert (0 <= small.zero_point).all() and (small.zero_point <= (0 if spec.symmetric else 15)).all()
        assert np.isfinite(small.dense()).all() and np.isfinite(small.scale).all()


@pytest.mark.parametrize("spec", [PLAIN, jp.QuantSpec(symmetric=False, block_size=15)])
def test_codes_are_what_was_rounded_to(stats, spec):
    codes, small = quantize(LAYER, stats, 4, spec=spec), fake_quant(LAYER, stats, 4, spec=spec)
    np.testing.assert_array_equal(jp.dequantize(codes)["kernel"], small["kernel"])
    assert loss(small) < 0.5 * loss(jp.fake_quant(LAYER, 4, spec=spec))


@pytest.mark.parametrize("data, damping", [("identity", 0.01), ("mixed", np.inf)])
def test_without_feedback_it_is_rounding_and_magnitude(stats, data, damping):
    if data == "identity":
        stats = collect(affine, LAYER, 3 * jnp.eye(40))
    small = fake_quant(LAYER, stats, 3, damping=damping)
    np.testing.assert_array_equal(small["kernel"], jp.fake_quant(LAYER, 3, spec=PLAIN)["kernel"])
    pruned = prune(LAYER, stats, 0.5, damping=damping)
    blocks = [jp.prune(block, 0.5).params for block in np.split(np.asarray(LAYER["kernel"]), [32])]
    np.testing.assert_array_equal(pruned.params["kernel"], np.concatenate(blocks))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 1.0])
def test_sparsegpt_against_least_squares(stats, sparsity):
    pruned, masks = prune(LAYER, stats, sparsity)
    want = oracles.sparsegpt(LAYER["kernel"], stats.inputs["kernel"].gram[0], sparsity, 32)
    assert (np.asarray(masks["kernel"]) == (want != 0)).mean() >= 0.99
    np.testing.assert_allclose(pruned["kernel"], want, rtol=2e-3, atol=2e-3)
    assert int((~masks["kernel"]).sum()) == int(np.floor(480 * np.float32(sparsity) + 0.5))
    np.testing.assert_array_equal(pruned["kernel"] != 0, masks["kernel"])


def test_pruning_and_rounding_in_one_pass_against_least_squares(stats):
    small, masks = prune(LAYER, stats, 0.5, bits=3)
    apart = prune(LAYER, stats, 0.5).params
    scale = np.asarray(jp.choose_qparams(apart, 3, spec=PLAIN)["kernel"].scale, np.float64)[0]
    gram = stats.inputs["kernel"].gram[0]
    want = oracles.sparsegpt(LAYER["kernel"], gram, 0.5, 32, lambda row: np.clip(np.round(row / scale), -3, 3) * scale)
    assert np.isclose(small["kernel"].dense(), want, rtol=1e-6, atol=1e-6).mean() >= 0.99
    assert int((~masks["kernel"]).sum()) == 240
    assert loss(jp.dequantize(small)) < 0.95 * loss(fake_quant(apart, stats, 3))


@pytest.mark.parametrize("spec", [PLAIN, jp.QuantSpec(symmetric=False, block_size=15)])
def test_what_is_pruned_on_the_way_has_the_code_of_zero(stats, spec):
    small, masks = prune(LAYER, stats, pattern=(2, 4), bits=4, spec=spec)
    kept = np.asarray(masks["kernel"])
    assert (kept.reshape(10, 4, 12).sum(1) == 2).all()
    gone = np.asarray(small["kernel"].dense())[~kept]
    assert (gone.view(np.uint32) == 0).all()
    assert small["kernel"].codes.dtype == (jnp.int8 if spec.symmetric else jnp.uint8)


def test_n_of_m_with_feedback(stats):
    pruned, masks = prune(LAYER, stats, pattern=(2, 4))
    assert (np.asarray(masks["kernel"]).reshape(10, 4, 12).sum(1) == 2).all()
    plain = jp.masks.apply_masks(LAYER, jp.masks.n_of_m(jp.saliency.magnitude(LAYER), 2, 4))
    assert loss(pruned) < 0.5 * loss(plain)


def test_zeros_stay(stats):
    pruned, masks = prune(LAYER, stats, 0.5)
    for small in (fake_quant(pruned, stats, 4), fake_quant(LAYER, stats, 4, masks=masks)):
        gone = np.asarray(small["kernel"])[~np.asarray(masks["kernel"])]
        assert (gone.view(np.uint32) == 0).all()


def test_dead_inputs_deficient_ranks_and_weights_that_are_no_numbers():
    x = MIXED[:20].at[:, 5].set(0)  # rank 20 of 40
    stats = collect(affine, LAYER, x)
    weights = {**LAYER, "kernel": LAYER["kernel"].at[3, 1].set(jnp.nan)}
    for damping in (1e-4, 0.01, 1.0):
        small = fake_quant(weights, stats, 3, damping=damping)["kernel"]
        assert np.isnan(small).sum() == 1 and np.isnan(small[3, 1])
        np.testing.assert_array_equal(small[5], jp.fake_quant(weights, 3, spec=PLAIN)["kernel"][5])


def test_settings_are_traced(stats):
    bits = jnp.array([2, 4])
    many = jax.vmap(lambda b: fake_quant(LAYER, stats, b)["kernel"])(bits)
    for one, b in zip(many, (2, 4), strict=True):
        assert (np.asarray(one) == np.asarray(fake_quant(LAYER, stats, b)["kernel"])).mean() >= 0.999
    jitted = jax.jit(lambda p, s, d, f: prune(p, s, f, damping=d).masks["kernel"])(LAYER, stats, 0.02, 0.5)
    assert (np.asarray(jitted) == np.asarray(prune(LAYER, stats, 0.5, damping=0.02).masks["kernel"])).mean() >= 0.999


@pytest.mark.slow
def test_convolutions_and_stacked_layers_keep_their_form():
    layer = nn.Conv(4, (3, 3), feature_group_count=2, use_bias=False)
    x = jnp.cumsum(draw(8, 6, 6, 4), 1)
    params = layer.init(jax.random.key(0), x)
    small = fake_quant(params, collect(layer.apply, params, x), 3)

    def off(p):
        return float(jnp.sum((layer.apply(p, x) - layer.apply(params, x)) ** 2))

    assert off(small) < 0.8 * off(jp.fake_quant(params, 3, spec=PLAIN))
    codes = quantize(STACKED, collect(scanned, STACKED, X), 8, where=["up", "down"])
    assert codes["up"].codes.shape == (3, 8, 6) and codes["up"].scale.shape == (3, 1, 6)


def test_layers_of_a_scan_are_solved_one_after_the_other():
    layers, x = {"up": draw(2, 40, 12), "down": draw(2, 12, 40)}, MIXED[:60]

    def block(x, own):
        return x + jnp.tanh(x @ own["up"]) @ own["down"], None

    def through(p, x):
        return block(block(x, p[0])[0], p[1])[0]

    apart = [jax.tree.map(lambda leaf, i=i: leaf[i], layers) for i in range(2)]
    stats = collect(lambda p, x: jax.lax.scan(block, x, p)[0], layers, x)
    groups = jp.QuantSpec(block_size=8, symmetric=False)
    solved = (prune(layers, stats, 0.5).params, fake_quant(layers, stats, 4, spec=groups))
    of_apart = collect(through, apart, x)
    wanted = (prune(apart, of_apart, 0.5).params, fake_quant(apart, of_apart, 4, spec=groups))
    for together, alone in zip(solved, wanted, strict=True):
        for name in layers:
            for i in range(2):
                assert np.isclose(together[name][i], alone[i][name], rtol=1e-4, atol=1e-4).mean() >= 0.99
    traced = jax.jit(lambda p, s: prune(p, s, 0.5).params)(layers, stats)
    for name in layers:
        assert np.isclose(traced[name], solved[0][name], rtol=1e-4, atol=1e-4).mean() >= 0.99


def test_bars_are_drawn_where_they_are_asked_for(stats, capfd):
    fake_quant(LAYER, stats, 4)
    assert not capfd.readouterr().err
    with jp.calibration.progress():
        fake_quant(LAYER, stats, 4)
        encode(LAYER, collect(affine, LAYER, MIXED, key=jax.random.key(0)), 1.0)
    drawn = capfd.readouterr().err
    assert "layers" in drawn and "leaves" in drawn and "1/1" in drawn
    prune(LAYER, stats, 0.5)
    assert not capfd.readouterr().err


def test_statistics_that_do_not_belong(stats):
    with pytest.raises(ValueError, match="no row of data"):
        fake_quant(LAYER, collect(affine, LAYER, jnp.full((3, 40), jnp.nan)), 4)
    with pytest.raises(ValueError, match="none of which is a leaf of"):
        prune({"other": LAYER["kernel"]}, stats, 0.5)
    with pytest.raises(ValueError, match="the statistics are of shape"):
        prune({"kernel": draw(10, 10)}, stats, 0.5)
    with pytest.raises(ValueError, match="no Gram matrices"):
        prune(LAYER, collect(affine, LAYER, MIXED, want=()), 0.5)


def test_scores_of_data():
    def network(p, ids):
        return jnp.tanh(p["table"][ids] @ p["w"]) @ p["table"].T

    params, ids = {"table": draw(7, 3), "w": draw(3, 3)}, jnp.array([1, 1, 6])
    key = jax.random.key(0)
    stats = collect(network, params, ids, key=key)
    x = np.asarray(params["table"][ids], np.float64)
    hidden = np.tanh(x @ np.asarray(params["w"]))
    scores = wanda(params, stats)
    np.testing.assert_allclose(scores["w"], abs(params["w"]) * np.sqrt((x**2).sum(0))[:, None], rtol=1e-5)
    both = np.array([0, 2, 0, 0, 0, 0, 1])[:, None] + (hidden**2).sum(0)  # looked up, and a factor
    np.testing.assert_allclose(scores["table"], abs(params["table"]) * np.sqrt(both), rtol=1e-5)
    masks = jp.masks.by_sparsity(scores, 0.5)
    assert masks["w"].shape == (3, 3) and wanda(params, stats, where="w")["table"].shape == ()
    out = np.asarray(jax.random.normal(jax.random.split(key, 1)[0], (3, 7)), np.float64)
    before = out @ np.asarray(params["table"], np.float64) * (1 - hidden**2)
    want = np.asarray(params["w"]) ** 2 * (x**2).sum(0)[:, None] * (before**2).sum(0) / 3
    np.testing.assert_allclose(obd(params, stats, where="w")["w"], want, rtol=1e-4)
    assert np.isfinite(obd(params, stats)["table"]).all()
    with pytest.raises(ValueError, match="no gradients"):
        obd(params, collect(network, params, ids))


def test_scores_of_the_brain_surgeon():
    """What least squares lose when one weight of an output goes and the others are fitted again."""
    w, x = draw(5, 2), draw(30, 5) @ draw(5, 5)
    scores = obs(w, collect(lambda w, x: x @ w, w, x), damping=0.1)
    h = oracles.damped(np.asarray(x, np.float64).T @ np.asarray(x, np.float64), 0.1)
    for k in range(5):
        others = np.delete(np.arange(5), k)
        rest = np.linalg.solve(h[np.ix_(others, others)], h[others, k])
        lost = h[k, k] - h[k, others] @ rest
        np.testing.assert_allclose(scores[k], np.asarray(w[k], np.float64) ** 2 * lost, rtol=1e-4)


def test_what_is_left_makes_up_for_inputs_that_are_gone(stats):
    kept = np.ones(40, bool)
    kept[[3, 7, 20]] = False
    masks = {"kernel": jnp.asarray(kept)[:, None], "bias": jnp.ones((), bool)}
    fitted = refit(LAYER, stats, masks)
    gram, weights = oracles.damped(stats.inputs["kernel"].gram[0]), np.asarray(LAYER["kernel"], np.float64)
    want = np.zeros_like(weights)
    want[kept] = weights[kept] + np.linalg.solve(gram[np.ix_(kept, kept)], gram[np.ix_(kept, ~kept)] @ weights[~kept])
    np.testing.assert_allclose(fitted["kernel"], want, rtol=1e-3, atol=1e-3)
    assert loss(fitted) < 0.2 * loss(jp.masks.apply_masks(LAYER, masks))
    everything = jax.tree.map(lambda _: jnp.ones((), bool), LAYER)
    np.testing.assert_array_equal(refit(LAYER, stats, everything)["kernel"], LAYER["kernel"])


def test_weights_that_grow_beyond_measure_are_refused():
    x = MIXED.at[:, 0].set(1e3 * MIXED[:, 1])  # an input of massive activations, which another has in small
    masks = {"kernel": (jnp.arange(40) > 0)[:, None], "bias": jnp.ones((), bool)}
    stats = collect(affine, LAYER, x)
    with pytest.raises(ValueError, match="leaf 'kernel': the largest weight would grow .* more than max_growth=4"):
        refit(LAYER, stats, masks, damping=1e-9)
    assert jnp.isfinite(refit(LAYER, stats, masks, damping=1e-9, max_growth=np.inf)["kernel"]).all()


def test_neurons_are_cut_and_the_layer_after_refitted():
    def network(p, x):
        return jax.nn.relu(x @ p["up"]) @ p["down"]

    params = {"up": draw(40, 24), "down": draw(24, 12)}
    stats = collect(network, params, MIXED)
    shrunk = jp.shrink(network, params, MIXED[:1], sparsity=0.25, saliency=lambda p: wanda(p, stats))
    graph = jp.structure.trace(network, params, MIXED[:1])
    masks = graph.at(shrunk.plan).mask(jax.tree.map(lambda p: jnp.ones(p.shape, bool), params))
    fitted = graph.at(shrunk.plan).cut(refit(params, stats, masks))

    def off(p):
        return float(jnp.sum((network(p, MIXED) - network(params, MIXED)) ** 2))

    assert fitted["down"].shape == (18, 12) and off(fitted) < 0.5 * off(shrunk.params)


def _joined(outputs):
    return jnp.hstack(outputs) if isinstance(outputs, list) else outputs


def test_biases_make_up_for_the_mean():
    def fused(p, x):
        return [x @ k + b for k, b in zip(jnp.split(p["kernel"], 2, 1), jnp.split(p["bias"], 2), strict=True)]

    for function in (affine, fused):
        stats = collect(function, LAYER, MIXED, want=())
        small = jp.fake_quant(LAYER, 2)
        better = correct_biases(small, LAYER, stats)
        means = [_joined(function(p, MIXED)).mean(0) for p in (LAYER, small, better)]
        np.testing.assert_allclose(means[2], means[0], atol=1e-4)
        assert abs(means[1] - means[0]).max() > 1e-2
        np.testing.assert_array_equal(better["kernel"], small["kernel"])


# What is coded


VOCABULARY = {"table": draw(50, 24), "up": draw(24, 40), "down": draw(6, 40), "bias": draw(6)}  # down is transposed
IDS = jnp.asarray(RNG.zipf(1.5, 1000) % 50)


def words(p, ids):
    return jnp.tanh(p["table"][ids] @ p["up"]) @ p["down"].T + p["bias"]


@pytest.fixture(scope="module")
def of_words():
    return collect(words, VOCABULARY, IDS, key=jax.random.key(0))


def off_words(p):
    return float(jnp.mean((words(p, IDS) - words(VOCABULARY, IDS)) ** 2))


@pytest.mark.slow
def test_one_step_decides_size_and_error(of_words):
    files = {step: jp.compress(encode(VOCABULARY, of_words, step), side="int8") for step in (1.0, 4.0)}
    assert files[4.0].nbytes < 0.8 * files[1.0].nbytes
    errors = {step: off_words(jp.dequantize(file.decompress())) for step, file in files.items()}
    assert 4 < errors[4.0] / errors[1.0] < 32, "the error goes with the square of the step"


@pytest.mark.slow
def test_codes_are_of_the_least_dtype_and_survive_files(of_words, tmp_path):
    small = encode(VOCABULARY, of_words, {"table": 1.0, "up": 1.0, "down": 0.01, "bias": 1.0})
    assert [small[name].codes.dtype for name in ("table", "up", "down")] == [jnp.int8, jnp.int8, jnp.int16]
    jp.save(tmp_path / "small.jp", jp.compress(small))
    back = jp.load(tmp_path / "small.jp")
    for name in ("table", "up", "down"):
        part, form = small[name], back[name]
        assert form.shape == VOCABULARY[name].shape and form.dtype == jnp.float32
        exponents = np.asarray(part.rows, int) + np.asarray(part.columns, int)
        steps = float(part.step) * 2.0 ** (exponents / 8)
        np.testing.assert_allclose(form.dense(), np.asarray(part.codes) * steps, rtol=1e-6)
        np.testing.assert_array_equal(jp.dequantize(back)[name], jp.dequantize(small)[name])


def test_numbers_weigh_error_against_bits(of_words):
    small = encode(VOCABULARY, of_words, 2.0, damping=np.inf, where="up")["up"]  # no feedback: each entry alone
    steps = np.asarray(small.step * 2.0 ** ((small.rows.astype(int) + small.columns.astype(int)) / 8), np.float64)
    x = np.asarray(VOCABULARY["up"], np.float64) / steps
    np.testing.assert_array_equal(np.asarray(small.codes), oracles.cheapest(x, 0.1))
    assert (
        np.asarray(encode(VOCABULARY, of_words, 2.0, penalty=0.0, damping=np.inf)["up"].codes) == np.round(x)
    ).mean() > 0.99


@pytest.mark.slow
def test_it_is_better_than_what_sees_no_data():
    stats = collect(affine, LAYER, MIXED, key=jax.random.key(0))
    ours, plain = encode(LAYER, stats, 28.0), jp.quantization.rate_distortion.quantize(LAYER, 0.9, 0.1)
    assert jp.compress(ours).nbytes < jp.compress(plain).nbytes
    assert loss(jp.dequantize(ours)) < 0.5 * loss(jp.dequantize(plain))


class Tied(nn.Module):
    """Words in, scores of words out, by one table."""

    @nn.compact
    def __call__(self, ids):
        table = nn.Embed(50, 24)
        return table.attend(jnp.tanh(nn.Dense(24)(table(ids))))


def test_data_that_were_seen_twice_count_once():
    """A second pass with other keys: words that came once are still those that came once."""
    once = collect(words, VOCABULARY, IDS, key=jax.random.key(0))
    twice = merge(once, collect(words, VOCABULARY, IDS, key=jax.random.key(0)))
    codes = [encode(VOCABULARY, stats, step) for stats, step in ((once, 1.0), (twice, 2**0.5))]
    np.testing.assert_array_equal(codes[0]["table"].rows, codes[1]["table"].rows)
    np.testing.assert_array_equal(codes[0]["table"].codes, codes[1]["table"].codes)


def test_a_table_that_is_the_head_too_has_both_costs():
    params = Tied().init(jax.random.key(0), IDS)
    params["params"]["Embed_0"]["embedding"] = VOCABULARY["table"]
    stats = collect(Tied().apply, params, IDS, key=jax.random.key(0))
    path = "params/Embed_0/embedding"
    small = encode(params, stats, 0.5, damping=0.01, where=path)["params"]["Embed_0"]["embedding"]
    looked_up, head = stats.gradients[path], stats.gradients[f"{path}#1"]
    want = oracles.table_steps(
        stats.inputs[path].rows[0], looked_up.weighted[0], head.weighted[0], np.asarray(head.squares[0])
    )
    steps = np.log2(np.float64(small.step)) + (np.asarray(small.rows, int) + np.asarray(small.columns, int)) / 8
    np.testing.assert_allclose(steps + 1, want, atol=0.14)  # each exponent to half an eighth
    decoded = jp.dequantize(jp.compress({"table": small}).decompress())["table"]
    np.testing.assert_array_equal(decoded, np.asarray(small.dense()))

    def off(small):
        """The outputs' error, at equal bits: each divides it by four."""
        new = {"params": {**params["params"], "Embed_0": {"embedding": small.dense()}}}
        error = float(jnp.mean((Tied().apply(new, IDS) - Tied().apply(params, IDS)) ** 2))
        return error * 4 ** (8 * jp.compress({"table": small}).nbytes / small.codes.size)

    for lookup in (True, False):
        uses = tuple(pair for pair in stats.uses if pair[1].path == path and pair[1].lookup == lookup)
        one = encode(params, replace(stats, uses=uses), 0.3, where=path)["params"]["Embed_0"]["embedding"]
        assert off(small) < 0.75 * off(one)


def test_parts_of_a_leaf_are_coded_with_its_steps():
    def fused(p, x):
        return [x @ part for part in jnp.split(p["kernel"], 2, 1)]

    small = encode(LAYER, collect(fused, LAYER, MIXED, key=jax.random.key(0)), 28.0)
    plain = jp.quantization.rate_distortion.quantize(LAYER, 0.9, 0.1)
    assert jp.compress(small).nbytes < jp.compress(plain).nbytes
    assert loss(jp.dequantize(jp.compress(small).decompress())) < 0.5 * loss(jp.dequantize(plain))


def test_groups_of_a_convolution_share_steps():
    layer = nn.Conv(8, (3, 3), feature_group_count=2, use_bias=False)
    x = draw(2, 6, 6, 4) * jnp.array([1.0, 1.0, 1e2, 1e2])
    kernel = layer.init(jax.random.key(0), x)["params"]["kernel"]
    stats = collect(lambda w, x: layer.apply({"params": {"kernel": w}}, x), kernel, x, key=jax.random.key(0))
    small = encode(kernel, stats, 1.0, penalty=0.0, damping=np.inf)
    steps = small.step * 2.0 ** ((small.rows.astype(int) + small.columns.astype(int)) / 8)
    assert (abs(small.dense() - kernel) <= 0.51 * steps).all()


def test_what_cannot_be_coded(of_words):
    with pytest.raises(ValueError, match="in parts that overlap"):
        encode(W, collect(lambda w, x: (x @ w, x @ w[:, :2]), W, X, key=jax.random.key(0)), 1.0)
    with pytest.raises(ValueError, match="or mix its axes"):
        encode(W, collect(lambda w, x: x @ w @ w.T, W, X, key=jax.random.key(0)), 1.0)
    with pytest.raises(ValueError, match="leaf 'up' have no gradients"):
        encode(VOCABULARY, collect(words, VOCABULARY, IDS), 1.0, where="up")
    with pytest.raises(ValueError, match="leaf 'up' holds NaN"):
        encode({**VOCABULARY, "up": VOCABULARY["up"].at[0, 0].set(jnp.nan)}, of_words, 1.0)
    with pytest.raises(TypeError, match="concrete"):
        jax.jit(lambda step: encode(VOCABULARY, of_words, step))(1.0)


# What is smoothed


class Smoothable(nn.Module):
    """Norms before what takes them, as in transformers; a layer before a relu, and one before what is no relu."""

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(name="first")(x)
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(y)
        y = nn.RMSNorm(name="second")(x)
        gate, value = nn.Dense(12, name="gate")(y), nn.Dense(12, name="value")(y)
        x = x + nn.Dense(8, name="gated")(nn.silu(gate) * value)
        y = nn.relu(nn.Dense(12, name="up")(x))
        return nn.Dense(4, name="last")(nn.gelu(nn.Dense(8, name="down")(y)))


def test_factors_go_where_nothing_changes():
    x = draw(3, 5, 8)
    params = Smoothable().init(jax.random.key(0), x)["params"]

    def apply(p, x):
        return Smoothable().apply({"params": p}, x)

    smoothed, factors, into = smooth(apply, params, collect(apply, params, x, want=()), x)
    np.testing.assert_allclose(apply(smoothed, x), apply(params, x), rtol=1e-4, atol=1e-5)
    norm = ("first/scale", "first/bias")
    assert {path.removesuffix("/kernel"): {*makers} for path, makers in into.items()} == {
        **{f"attention/{name}": {*norm} for name in ("query", "key", "value")},
        **{name: {"second/scale"} for name in ("gate", "value")},
        "gated": {"value/kernel", "value/bias"},
        "down": {"up/kernel", "up/bias"},
    }
    assert {*factors} - {*into} == {"attention/out/kernel", "up/kernel", "last/kernel"}
    normed = np.asarray(nn.LayerNorm().apply({"params": params["first"]}, x)).reshape(-1, 8)
    weights = np.max([abs(params["attention"][n]["kernel"]).max((1, 2)) for n in ("query", "key", "value")], 0)
    want = np.sqrt(abs(normed).max(0) / weights)
    np.testing.assert_allclose(factors["attention/key/kernel"][0], want, rtol=1e-5)
    np.testing.assert_allclose(smoothed["first"]["scale"], params["first"]["scale"] / want, rtol=1e-5)
    wide = want[:, None, None]
    np.testing.assert_allclose(
        smoothed["attention"]["key"]["kernel"], params["attention"]["key"]["kernel"] * wide, rtol=1e-5
    )
    np.testing.assert_array_equal(smoothed["up"]["bias"] * factors["down/kernel"][0], params["up"]["bias"])


def test_what_is_used_elsewhere_is_left_alone():
    def branches(p, x):
        hidden = jax.nn.relu(x @ p["up"])
        return hidden @ p["down"], hidden.mean()

    params = {"up": draw(8, 6), "down": draw(6, 4)}
    stats = collect(branches, params, X)
    assert smooth(branches, params, stats, X).into == {}

    def vectors(p, x):
        return jax.vmap(lambda row: p["down"].T @ jax.nn.relu(p["up"].T @ row))(x)

    assert smooth(vectors, params, collect(vectors, params, X), X, where="down").into == {"down": ("up",)}
    shared = smooth(lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"] + p["up"].sum(), params, stats, X)
    assert shared.into == {}


def test_inputs_and_weights_of_zero_have_factor_one():
    def network(p, x):
        return (x * p["scale"] + p["bias"]) @ p["kernel"]

    x = (X - 3).at[:, 2].set(0)  # of negative mean, and one that is always 0
    params = {"scale": jnp.ones(8), "bias": jnp.zeros(8), "kernel": W.at[5].set(0).at[:, 1].set(0)}
    stats = collect(network, params, x)
    for alpha in (0.0, 0.5, 1.0):
        smoothed, factors, _ = smooth(network, params, stats, x, alpha=alpha)
        (factor,) = np.asarray(factors["kernel"])
        assert np.isfinite(factor).all() and (factor > 0).all() and factor[2] == factor[5] == 1
        np.testing.assert_allclose(network(smoothed, x), network(params, x), rtol=1e-5, atol=1e-5)
    traced = jax.jit(lambda alpha: smooth(network, params, stats, x, alpha=alpha).params)(0.5)
    np.testing.assert_allclose(traced["kernel"], smooth(network, params, stats, x).params["kernel"], rtol=1e-6)
    with pytest.raises(ValueError, match="alpha"):
        smooth(network, params, stats, x, alpha=1.5)


def test_outliers_cost_less():
    def network(p, x, small=lambda x: x):
        return small((x / jnp.linalg.norm(x, axis=1, keepdims=True)) * p["scale"]) @ small(p["kernel"])

    params = {"scale": jnp.ones(40).at[3].set(60.0), "kernel": draw(40, 12)}  # one channel of massive activations
    smoothed = smooth(network, params, collect(network, params, MIXED), MIXED).params
    want = network(params, MIXED)
    errors = [
        float(jnp.sum((network(p, MIXED, lambda x: jp.fake_quant(x, 8)) - want) ** 2)) for p in (params, smoothed)
    ]
    assert errors[1] < 0.3 * errors[0]


# Padding

LENGTHS = [3, 5, 1]
KEPT = jnp.arange(5) < jnp.array(LENGTHS)[:, None]


class Attending(nn.Module):
    """Tokens in, a mean over those that are there out: attention, a scan, lookups, pooling."""

    @nn.compact
    def __call__(self, ids, kept):
        x = nn.Embed(11, 8)(ids) + nn.Embed(5, 8)(jnp.arange(ids.shape[1]))
        x = x + nn.MultiHeadDotProductAttention(2)(x, mask=nn.make_attention_mask(kept, kept))
        w = self.param("layers", nn.initializers.lecun_normal(), (2, 8, 8))
        x = jax.lax.scan(lambda x, w: (x + jax.nn.gelu(x @ w), None), x, w)[0]
        x = nn.Dense(4)(x.reshape(-1, 8)).reshape(*ids.shape, 4)
        return nn.Dense(2)((x * kept[..., None]).sum(1) / kept.sum(1, keepdims=True))


@pytest.mark.slow
def test_padding_is_left_out():
    ids = jnp.asarray(RNG.integers(0, 11, (3, 5)))
    params = Attending().init(jax.random.key(0), ids, KEPT)
    padded = collect(Attending().apply, params, ids, KEPT, rows=KEPT)
    alone = None
    for row, n in zip(ids, LENGTHS, strict=True):
        alone = collect(Attending().apply, params, row[None, :n], jnp.ones((1, n), bool), stats=alone)
    for name, want in alone.inputs.items():
        if name == "params/Embed_1/embedding":  # positions have no rows of the batch
            continue
        for a, b in zip(jax.tree.leaves(padded.inputs[name]), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=name)


def test_gradients_of_rows_in_a_scan():
    kept, how = jnp.array([True, True, False, True, True]), {"key": jax.random.key(1), "want": ()}
    apart = {name: list(one) for name, one in STACKED.items()} | {"shared": [STACKED["shared"]] * 3}
    with jax.checking_leaks():
        stats = collect(scanned, STACKED, X, rows=kept, **how).gradients
    want = collect(unrolled, apart, X, rows=kept, **how).gradients
    layers = [want[f"up/{i}"].squares[0] for i in range(3)]
    np.testing.assert_allclose(stats["up"].squares, layers, rtol=1e-4, atol=1e-4)


def test_rows_that_cannot_be_followed_raise_with_the_line():
    kept = jnp.array([True, True, False, True, True])
    check(collect(lambda w, x: jnp.flip(x, 1) @ w.T, W.T, X[:, :], rows=None).inputs[""], jnp.flip(X, 1))
    with pytest.raises(ValueError, match=r"cannot be followed to the product at .*test_calibration.py"):
        collect(lambda w, x: jnp.sort(x, 0) @ w, W, X, rows=kept)
    with pytest.raises(ValueError, match="in parts"):
        collect(lambda w, x: x[1:] @ w, W, X, rows=kept)
    check(collect(lambda w, x: x @ w, W, X, rows=kept).inputs[""], X[jnp.array([0, 1, 3, 4])])


def test_rows_are_followed_into_loops():
    def loop(w, x, times):
        return jax.lax.while_loop(lambda s: s[1] < times, lambda s: (jnp.tanh(s[0] @ w), s[1] + 1), (x, 0))[0]

    square, kept = draw(8, 8), jnp.array([True, True, False, True, True])
    rows = X[jnp.array([0, 1, 3, 4])]
    check(collect(loop, square, X, 2, rows=kept).inputs[""], jnp.concatenate([rows, jnp.tanh(rows @ square)]))


def test_leaves_that_are_used_alike_share_a_program():
    names = ("one", "two", "three")
    params = {name: jax.random.normal(jax.random.key(i), (11, 11)) for i, name in enumerate(names)}

    def apply(params, x):
        for name in names:
            x = jnp.tanh(x @ params[name])
        return x

    stats = collect(apply, params, jax.random.normal(jax.random.key(3), (40, 11)), key=jax.random.key(4))
    programs = leaves._solve, coding._numbers
    before = [program._cache_size() for program in programs]
    fake_quant(params, stats, 3)
    encode(params, stats, 0.1)
    assert [program._cache_size() - size for program, size in zip(programs, before, strict=True)] == [1, 1]


def test_what_no_gradient_reaches_is_fitted_to_its_inputs():
    """No gradient goes back through a loop of unknown length: its statistics are zero, and say nothing."""

    def loop(params, x):
        def body(state):
            return state[0] + 1, jnp.tanh(state[1] @ params["w"])

        return jax.lax.while_loop(lambda state: state[0] < 2, body, (0, x))[1]

    params, x = {"w": draw(6, 6)}, draw(20, 6)
    with_key = collect(loop, params, x, key=jax.random.key(0))
    assert not float(jnp.max(jnp.abs(next(iter(with_key.gradients.values())).weighted)))
    found, want = (fake_quant(params, stats, 3) for stats in (with_key, collect(loop, params, x)))
    np.testing.assert_array_equal(found["w"], want["w"])


def test_channels_of_convolutions_are_smoothed():
    def function(p, x):
        x = jax.nn.relu(convolved(x, p["a"]) + p["b"])
        return convolved(x, p["c"])

    def convolved(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    params = {"a": draw(1, 1, 2, 3) * jnp.array([1.0, 30.0, 1.0]), "b": draw(3), "c": draw(3, 3, 3, 4)}
    x = draw(2, 5, 5, 2)
    small = smooth(function, params, collect(function, params, x), x)
    assert small.into == {"c": ("a", "b")}
    hidden = np.maximum(np.einsum("nhwi,io->nhwo", x, params["a"][0, 0]) + params["b"], 0).max((0, 1, 2))
    expected = np.sqrt(hidden / abs(np.asarray(params["c"])).max((0, 1, 3)))
    np.testing.assert_allclose(small.factors["c"][0], np.repeat(expected, 9), rtol=1e-5)
    np.testing.assert_allclose(small.params["c"], params["c"] * expected[:, None], rtol=1e-5)
    np.testing.assert_allclose(small.params["a"], params["a"] / expected, rtol=1e-5)
    np.testing.assert_allclose(function(small.params, x), function(params, x), rtol=1e-4, atol=1e-4)
