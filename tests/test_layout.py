"""The axes of leaves: of layers as frameworks make them, of names that others use, and what follows for transforms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from flax import linen as nn
from flax import nnx

import jaxprune as jp
from jaxprune import layout, tree

slow = pytest.mark.slow


def found(params, of=None):
    """``inputs>outputs`` of each kernel that takes part by default, or of ``of``."""
    chosen = tree.select(params)
    axes = zip(chosen.names, layout.find_axes(chosen, of), strict=True)
    return {path.removeprefix("params/"): str(a) if a else "?" for path, a in axes}


def shapes(**leaves):
    return {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in leaves.items()}


def named(*pairs):
    return {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in pairs}


# ---------------------------------------------------------------------------------------------------------------------
# Layers


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(4)(nn.LayerNorm()(x)), None


def stacked(axis):
    return nn.scan(Block, variable_axes={"params": axis}, split_rngs={"params": True}, length=3)()


X = jnp.ones((2, 4))
LINEN = {
    "Dense": (nn.Dense(5), [X], {"kernel": "0>1"}),
    "DenseGeneral": (nn.DenseGeneral((3, 2)), [X], {"kernel": "0>1,2"}),
    "DenseGeneral of two axes": (nn.DenseGeneral(3, axis=(-2, -1)), [X[None]], {"kernel": "0,1>2"}),
    "Einsum": (nn.Einsum((4, 2, 3), "ab,bcd->acd"), [X], {"kernel": "0>1,2"}),
    "attention": (
        nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6),
        [X[None]],
        {f"{name}/kernel": "0>1,2" for name in ("query", "key", "value")} | {"out/kernel": "0,1>2"},
    ),
    "attention without biases": (
        nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6, use_bias=False),
        [X[None]],
        {f"{name}/kernel": "0>1,2" for name in ("query", "key", "value")} | {"out/kernel": "0,1>2"},
    ),
    "Conv of one axis": (nn.Conv(5, (3,)), [X[None]], {"kernel": "0,1>2"}),
    "Conv of two": (nn.Conv(5, (3, 3)), [X[None, None]], {"kernel": "0,1,2>3"}),
    "Conv of three": (nn.Conv(5, (3, 3, 3)), [X[None, None, None]], {"kernel": "0,1,2,3>4"}),
    "depthwise": (nn.Conv(4, (3, 3), feature_group_count=4), [X[None, None]], {"kernel": "0,1,2>3"}),
    "ConvTranspose": (nn.ConvTranspose(5, (3, 3)), [X[None, None]], {"kernel": "0,1,2>3"}),
    "ConvTranspose, transposed": (
        nn.ConvTranspose(5, (3, 3), transpose_kernel=True),
        [X[None, None]],
        {"kernel": "0,1,3>2"},
    ),
    "Embed": (nn.Embed(7, 4), [jnp.zeros(3, int)], {"embedding": "0 looks up 1"}),
    "BatchNorm": (nn.BatchNorm(use_running_average=True), [X], {}),
    "stacked at 0": (stacked(0), [jnp.ones((2, 4)), None], {"Dense_0/kernel": "0: 1>2"}),
    "stacked at 1": (stacked(1), [jnp.ones((2, 4)), None], {"Dense_0/kernel": "1: 0>2"}),
}


@pytest.mark.parametrize("name", LINEN)
def test_linen(name):
    module, inputs, expected = LINEN[name]
    assert found(jax.eval_shape(module.init, jax.random.key(0), *inputs)) == expected


NNX = {
    "Linear": (lambda r: nnx.Linear(4, 5, rngs=r), {"kernel": "0>1"}),
    "LinearGeneral": (lambda r: nnx.LinearGeneral(4, (3, 2), rngs=r), {"kernel": "0>1,2"}),
    "Conv": (lambda r: nnx.Conv(4, 5, (3, 3), rngs=r), {"kernel": "0,1,2>3"}),
    "ConvTranspose, transposed": (
        lambda r: nnx.ConvTranspose(4, 5, (3, 3), transpose_kernel=True, rngs=r),
        {"kernel": "0,1,3>2"},
    ),
    "attention": (
        lambda r: nnx.MultiHeadAttention(2, 4, 6, rngs=r),
        {f"{name}/kernel": "0>1,2" for name in ("query", "key", "value")} | {"out/kernel": "0,1>2"},
    ),
    "Embed": (lambda r: nnx.Embed(7, 4, rngs=r), {"embedding": "0 looks up 1"}),
    "LoRA": (lambda r: nnx.LoRA(4, 2, 5, rngs=r), {"lora_a": "0>1", "lora_b": "0>1"}),
    "LayerNorm": (lambda r: nnx.LayerNorm(4, rngs=r), {}),
}


@pytest.mark.parametrize("name", NNX)
def test_nnx(name):
    make, expected = NNX[name]
    assert found(nnx.state(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param)) == expected


NAMES = {
    # Haiku: a module's name holds slashes.
    "mlp/~/linear_0": ({"w": (4, 5), "b": (5,)}, {"w": "0>1"}),
    "net/~/conv2_d": ({"w": (3, 3, 4, 5), "b": (5,)}, {"w": "0,1,2>3"}),
    "net/~/conv1_d": ({"w": (3, 4, 5)}, {"w": "0,1>2"}),
    "net/~/conv2_d_transpose": ({"w": (3, 3, 5, 5), "b": (5,)}, {"w": "0,1,3>2"}),
    "embed": ({"embeddings": (7, 4)}, {"embeddings": "0 looks up 1"}),
    "net/~/batch_norm": ({"offset": (1, 1, 1, 4), "scale": (1, 1, 1, 4)}, {}),
    "layer_norm": ({"offset": (3, 4), "scale": (3, 4)}, {}),
    # Equinox, PyTorch.
    "layers/0": ({"weight": (5, 4), "bias": (5,)}, {"weight": "1>0"}),
    "layers.1": ({"weight": (5, 4, 3, 2), "bias": (5, 1, 1)}, {"weight": "2,3,1>0"}),
    "cell": ({"weight_ih": (16, 3), "weight_hh": (16, 4), "bias": (16,)}, {"weight_ih": "1>0", "weight_hh": "1>0"}),
    "embedding": ({"weight": (7, 4)}, {"weight": "0 looks up 1"}),
    "model.embed_tokens": ({"weight": (7, 4)}, {"weight": "0 looks up 1"}),
    "model.layers.0.input_layernorm": ({"weight": (3, 4)}, {}),
    "attn": ({"in_proj_weight": (12, 4), "in_proj_bias": (12,)}, {"in_proj_weight": "1>0"}),
    "up": ({"weight": (4, 5, 3, 3), "bias": (5,)}, {"weight": "?"}),  # ConvTranspose2d
    "h.0.attn.c_attn": ({"weight": (4, 12), "bias": (12,)}, {"weight": "0>1"}),  # of GPT-2
    "qkv": ({"kernel": (4, 3, 2, 6), "bias": (3, 2, 6)}, {"kernel": "0>1,2,3"}),
    "fused": ({"kernel": (4, 3, 6)}, {"kernel": "?"}),
    "stack": ({"kernel": (4, 4, 4), "bias": (4, 4)}, {"kernel": "?"}),  # which is which?
    "head": ({"kernel": (64, 1), "bias": (1,)}, {"kernel": "0>1"}),
}


@pytest.mark.parametrize("module", NAMES)
def test_names(module):
    leaves, expected = NAMES[module]
    split = "." if "." in module else "/"
    params = {f"{module}{split}{name}": jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in leaves.items()}
    assert found(params) == {f"{module}{split}{name}": axes for name, axes in expected.items()}
    assert found({module: shapes(**leaves)}) == {f"{module}/{name}": axes for name, axes in expected.items()}


def test_square_weights_beside_turned_ones_are_in_doubt():
    gpt = named(("c_attn.weight", (4, 12)), ("c_attn.bias", (12,)), ("c_proj.weight", (4, 4)), ("c_proj.bias", (4,)))
    assert found(gpt) == {"c_attn.weight": "0>1", "c_proj.weight": "?"}
    assert found(gpt, "flax") == {"c_attn.weight": "0>1", "c_proj.weight": "0>1"}
    linear = named(("c_proj.weight", (4, 4)), ("c_proj.bias", (4,)))
    assert found(linear) == {"c_proj.weight": "1>0"}


def test_a_layout_that_is_said():
    params = {"a": shapes(kernel=(3, 4, 5)), "b": shapes(kernel=(5, 4, 3))}
    assert found(params, "flax") == {"a/kernel": "0,1>2", "b/kernel": "0,1>2"}
    assert found(params, "torch") == {"a/kernel": "2,1>0", "b/kernel": "2,1>0"}
    said = {"a/*": ((0,), (1,), (-1,)), "b/kernel": ((), (0,), (1, 2))}
    assert found({"params": params}, said) == {"a/kernel": "0: 1>2", "b/kernel": "0>1,2"}
    for wrong, message in (
        ({"c*": ((), (0,), (1,))}, r"pattern 'c\*' matches none of \['a/kernel', 'b/kernel'\]"),
        ({"a/*": ((), (0,), (1,))}, r"layout of leaf 'a/kernel' is .* all 3 of its shape \(3, 4, 5\)"),
        ({"a/*": 3}, "layout of leaf 'a/kernel' is 3"),
        ("keras", "layout is 'keras'"),
    ):
        with pytest.raises(ValueError, match=message):
            found(params, wrong)


# ---------------------------------------------------------------------------------------------------------------------
# What follows


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def attention():
    return {"query": {"kernel": normal(8, 2, 4), "bias": np.zeros((2, 4), np.float32)}}


def test_two_of_four_of_attention_run_along_what_is_contracted():
    params = attention()
    kept = jp.masks.n_of_m(jp.saliency.magnitude(params), 2, 4)["query"]
    w = params["query"]["kernel"]
    np.testing.assert_array_equal(kept["kernel"], oracles.n_of_m(np.abs(w).reshape(8, 8), 2, 4).reshape(8, 2, 4))
    assert kept["bias"].ndim == 0


def test_each_head_has_units_of_its_own():
    params = attention()
    norms = jp.saliency.unit_norm(params)["query"]["kernel"]
    np.testing.assert_allclose(norms, np.abs(params["query"]["kernel"]).sum(0, keepdims=True), rtol=1e-6)
    masks = jp.prune(params, 0.5, saliency=jp.saliency.unit_norm, scope="global").masks["query"]["kernel"]
    assert masks.shape == (1, 2, 4) and int(masks.sum()) == 4


@pytest.mark.parametrize(
    "score",
    [
        jp.saliency.unit_norm,
        *(pytest.param(s, marks=slow) for s in (jp.saliency.unit_sparsity, jp.saliency.unit_entropy)),
    ],
)
def test_units_of_torch_and_of_stacked_layers(score):
    """As of the kernels that these are stacked or transposed of."""
    w, other = normal(6, 5), normal(6, 5, seed=1)
    one, two = score({"kernel": w})["kernel"], score({"kernel": other})["kernel"]
    np.testing.assert_array_equal(score({"fc.weight": w.T})["fc.weight"], one.T)
    for axis in (0, 1):
        both = {"d": {"kernel": np.stack([w, other], axis), "bias": np.zeros((2, 5) if axis == 0 else (5, 2), "f4")}}
        np.testing.assert_array_equal(score(both)["d"]["kernel"], np.stack([one, two], axis))


def test_distances_and_connections_of_torch():
    w = normal(6, 5)
    far = jp.saliency.geometric_median({"fc.weight": w.T})["fc.weight"]
    np.testing.assert_allclose(far, jp.saliency.geometric_median(w).T, rtol=1e-6)
    np.testing.assert_allclose(
        jp.saliency.connection_entropy({"weight": w.T})["weight"], jp.saliency.connection_entropy(w).T, rtol=1e-6
    )


def test_what_no_rule_knows_raises_where_axes_are_needed():
    params = {"fused": {"kernel": normal(4, 3, 4)}}
    message = r"leaf 'fused/kernel' has shape \(4, 3, 4\), and no rule knows.*layout={'fused/kernel'"
    for call in (
        jp.saliency.unit_norm,
        lambda p: jp.masks.n_of_m(p, 2, 4),
        lambda p: jp.masks.by_unit_sparsity(p, 0.5),
        lambda p: jp.fake_quant(p, 4, spec=jp.QuantSpec(block_size=2)),
        lambda p: jp.quantize(p, 4, spec=jp.QuantSpec(axis="units")),
        lambda p: jp.reports.entropy_curve(p, [0.5]),
        lambda p: jp.codebook.kmeans(p, 4, axis="units"),
        jp.training.group_lasso,
        lambda p: jp.training.soft_threshold(1.0, units=True).update(p, optax.EmptyState(), p),
    ):
        with pytest.raises(ValueError, match=message):
            call(params)
    said = {"fused/kernel": ((), (0,), (1, 2))}
    assert jp.saliency.unit_norm(params, layout=said)["fused"]["kernel"].shape == (1, 3, 4)
    assert jp.fake_quant(params, 4)["fused"]["kernel"].shape == (4, 3, 4)
    kept = jp.masks.n_of_m(params, 2, 4, axis=0)["fused"]["kernel"]
    np.testing.assert_array_equal(kept, jp.masks.n_of_m(params, 2, 4, layout=said)["fused"]["kernel"])


def test_embeddings_and_depthwise_kernels_are_left_out_of_n_of_m():
    params = {"embed": {"embedding": normal(6, 8)}, "conv": {"kernel": normal(3, 3, 1, 8)}, "w": normal(8, 3)}
    kept = jp.masks.n_of_m(params, 2, 4)
    assert kept["embed"]["embedding"].ndim == kept["conv"]["kernel"].ndim == 0 and kept["w"].shape == (8, 3)
    chosen = jp.masks.n_of_m(params, 2, 4, where="embed/*")["embed"]["embedding"]
    np.testing.assert_array_equal(chosen, oracles.n_of_m(params["embed"]["embedding"].T, 2, 4).T)
    stored = jp.quantization.to_n_of_m(params["embed"], {"embedding": chosen})["embedding"]
    np.testing.assert_array_equal(stored.dense(), np.where(chosen, params["embed"]["embedding"], 0))


@pytest.mark.slow
def test_blocks_and_scales_follow_the_layout():
    w = normal(6, 8)  # out, in
    blocks = jp.QuantSpec(block_size=4)
    expected = jp.quantize(w.T, 4, spec=blocks)
    torch = jp.quantize({"fc.weight": w}, 4, spec=blocks)["fc.weight"]
    assert torch.scale.shape == (6, 2, 1)
    np.testing.assert_array_equal(torch.dense(), expected.dense().T)
    both = jp.fake_quant({"fc.weight": w}, 4, spec=jp.QuantSpec(axis=0, block_size=4))["fc.weight"]
    np.testing.assert_array_equal(both, torch.dense())
    units = jp.QuantSpec(axis="units")
    assert jp.choose_qparams({"fc.weight": w, "embedding": w}, 4, spec=units)["embedding"].scale.shape == (6, 1)
    np.testing.assert_array_equal(
        jp.fake_quant({"fc.weight": w}, 4, spec=units)["fc.weight"], oracles.fake_quant_symmetric(w, 4, axis=0)
    )
    heads = jp.choose_qparams(attention(), 4, spec=units)["query"]["kernel"]
    assert heads.scale.shape == (1, 2, 4)
    heads = jp.quantize(attention(), 4, spec=blocks)["query"]["kernel"]
    assert heads.scale.shape == (2, 1, 2, 4)
    np.testing.assert_array_equal(
        heads.dense(),
        oracles.fake_quant_symmetric(attention()["query"]["kernel"].reshape(8, 8), 4, block_size=4).reshape(8, 2, 4),
    )


SPECS = [
    jp.QuantSpec(),
    jp.QuantSpec(axis=-1, symmetric=False),
    jp.QuantSpec(axis="units"),
    jp.QuantSpec(block_size=4),
    jp.QuantSpec(block_size=4, axis=()),
    jp.QuantSpec(block_size=3, axis=-1),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec", [pytest.param(spec, id=str(i), marks=[slow] if i in (2, 4, 5) else []) for i, spec in enumerate(SPECS)]
)
def test_stacked_layers_are_quantized_as_each_alone(spec):
    """A QArray of layers in a stack comes apart by indexing, by scan and by vmap, and is what vmap makes."""
    layers = normal(3, 8, 4)
    params = {"Dense_0": {"kernel": layers, "bias": np.zeros((3, 4), np.float32)}}
    stored = jp.quantize(params, 4, spec=spec)["Dense_0"]["kernel"]
    alone = np.stack([jp.dequantize(jp.quantize(w, 4, spec=spec)) for w in layers])
    np.testing.assert_array_equal(stored.dense(), alone)
    np.testing.assert_array_equal(jp.fake_quant(params, 4, spec=spec)["Dense_0"]["kernel"], alone)
    mapped = jax.vmap(lambda w: jp.quantize(w, 4, spec=spec))(layers)

    @jax.jit
    def apart(stored, mapped):
        """The layers of each, and the second of each."""
        scanned = jax.lax.scan(lambda _, q: (None, jp.dequantize(q)), None, stored)[1]
        second = [jp.dequantize(jax.tree.map(lambda part: part[1], q)) for q in (stored, mapped)]
        return (scanned, jax.vmap(jp.dequantize)(stored), mapped.dense()), second

    for found, expected in zip(apart(stored, mapped), (alone, alone[1]), strict=True):
        for one in found:
            np.testing.assert_array_equal(one, expected)


def test_arrays_of_unknown_axes_come_apart_too():
    """Vectors in a stack made by vmap; a bare array; one range for all of it."""
    stack = normal(3, 8, 4)
    for params in (stack, {"w": stack}):
        stored = jp.quantize(params, 4)
        rows = jax.jit(lambda q: jax.lax.scan(lambda _, q: (None, jp.dequantize(q)), None, q)[1])(stored)
        jax.tree.map(np.testing.assert_array_equal, rows, jp.fake_quant(params, 4))

    @jax.jit
    def every(stack):
        vectors, expected = (
            jax.vmap(jax.vmap(lambda v, f=f: f(v, 4, spec=jp.QuantSpec(block_size=4))))(stack)
            for f in (jp.quantize, jp.fake_quant)
        )
        return vectors.dense(), jax.tree.map(lambda part: part[2, 1], vectors).dense(), expected

    whole, one, expected = every(stack.transpose(0, 2, 1))
    np.testing.assert_array_equal(whole, expected)
    np.testing.assert_array_equal(one, expected[2, 1])


# A kernel (in, out), and how attention and PyTorch hold it; to the flat kernel, and back from it.
FORMS = {
    "flat": ({"d": {"kernel": (8, 6)}}, lambda w: w, lambda w: w),
    "attention": ({"query": {"kernel": (8, 2, 3)}}, lambda w: w.reshape(-1, 6), lambda w: w.reshape(8, 2, 3)),
    "torch": ({"fc": {"weight": (6, 8)}}, lambda w: w.T, lambda w: w.T),
    "stacked": (
        {"d": {"kernel": (2, 8, 3), "bias": (2, 3)}},
        lambda w: np.hstack([*w]),
        lambda w: np.stack(np.hsplit(w, 2)),
    ),
}
in_each_form = pytest.mark.parametrize("form", [pytest.param(f, marks=slow if f == "flat" else []) for f in FORMS])


def held(form, flat):
    """Parameters of a form that hold a flat kernel, and what gives it back."""
    ((module, leaves),) = FORMS[form][0].items()
    kernel, *biases = leaves
    params = {module: {kernel: FORMS[form][2](flat)} | {name: np.zeros(leaves[name], flat.dtype) for name in biases}}
    return params, lambda tree: np.asarray(FORMS[form][1](np.asarray(tree[module][kernel])))


@pytest.mark.slow
@pytest.mark.parametrize("form", [*(pytest.param(f, marks=slow) for f in ("flat", "attention", "torch")), "stacked"])
def test_codebooks_of_units_and_of_stacked_layers(form):
    flat = np.random.default_rng(1).integers(-3, 4, (8, 6)).astype(np.float32)
    params, back = held(form, flat)
    units = np.stack([jp.codebook.kmeans(unit, 3) for unit in flat.T], 1)
    np.testing.assert_array_equal(back(jp.codebook.kmeans(params, 3, axis="units")), units)
    np.testing.assert_array_equal(back(jp.dequantize(jp.codebook.encode(params, 3, axis="units"))), units)
    layers = np.hsplit(flat, 2) if form == "stacked" else [flat]
    np.testing.assert_array_equal(
        back(jp.codebook.kmeans(params, 3)), np.hstack([jp.codebook.kmeans(layer, 3) for layer in layers])
    )


@pytest.mark.slow
def test_codebooks_of_a_stack_come_apart_train_and_go_into_files(tmp_path):
    layers = normal(3, 8, 4)
    params = {"d": {"kernel": layers, "bias": np.zeros((3, 4), np.float32)}}
    stored = jp.codebook.encode(params, 3)["d"]["kernel"]
    alone = np.stack([jp.codebook.kmeans(w, 3) for w in layers])
    assert stored.centroids.shape == (3, 1, 1, 3)

    @jax.jit
    def apart(stored):
        scanned = jax.lax.scan(lambda _, q: (None, jp.dequantize(q)), None, stored)[1]
        return scanned, jp.dequantize(jax.tree.map(lambda part: part[1], stored))

    scanned, second = apart(stored)
    np.testing.assert_array_equal(scanned, alone)
    np.testing.assert_array_equal(second, alone[1])
    jp.save(tmp_path / "a.jp", jp.compress(params, 3, quantizer="codebook"))
    np.testing.assert_array_equal(jp.load(tmp_path / "a.jp")["d"]["kernel"], alone)
    shared = {"d": {"kernel": jnp.asarray(alone), "bias": jnp.zeros((3, 4))}}
    optimizer = jp.training.shared_weights(optax.sgd(0.5), 3)
    grads = {"d": {"kernel": normal(3, 8, 4, seed=1), "bias": jnp.zeros((3, 4))}}
    update = jax.jit(lambda g, state, p: optax.apply_updates(p, optimizer.update(g, state, p)[0]))
    moved = update(grads, optimizer.init(shared), shared)
    for before, after, grad in zip(alone, np.asarray(moved["d"]["kernel"]), grads["d"]["kernel"], strict=True):
        for value in np.unique(before):
            same = before == value
            np.testing.assert_allclose(after[same], value - 0.5 * grad[same].sum(), rtol=1e-5)
    said = {"d/kernel": ((), (0, 1), (2,))}
    assert len(np.unique(jp.codebook.kmeans(params, 3, layout=said)["d"]["kernel"])) <= 3
    with pytest.raises(ValueError, match="leaf 'd/kernel' has shape .* and no axis 3"):
        jp.codebook.kmeans(params, 3, axis=3)


@pytest.mark.slow
@in_each_form
def test_reports_count_units_of_the_layout_and_show_its_axes(form):
    flat = normal(8, 6)
    flat[:, [1, 4]] = 0
    params, _ = held(form, flat)
    masks = jax.tree.map(lambda leaf: leaf != 0 if np.any(leaf) else np.ones((), bool), params)
    report = jp.report(params, params, masks=masks)
    row = next(row for row in report.rows if row.removed)
    assert row.axes == {"flat": "0>1", "attention": "0>1,2", "torch": "1>0", "stacked": "0: 1>2"}[form]
    assert row.coded_bytes == 4 * 8 * 4 + 1  # 4 units of 8 floats, a bit for each of 6 units
    assert report.total.coded_bytes == int(jp.reports.coded_bytes(params, masks))
    assert str(report).split()[:3] == ["leaf", "axes", "parameters"] and f"  {row.axes}  " in str(report)
    assert f"<td>{row.axes.replace('>', '&gt;')}</td>" in report._repr_html_()
    spec = jp.QuantSpec(axis="units")
    row = next(row for row in jp.report(params, jp.quantize(params, 4, spec=spec)).rows if row.bits == 4)
    assert row.axes and row.coded_bytes == 24 + 4 * 6
    assert jp.report(params, jp.fake_quant(params, 4, spec=spec), bits=4, spec=spec).rows[-1].axes == row.axes
    plain = jp.report(params, params) if form == "stacked" else jp.report(params, jp.quantize(params, 4))
    assert not any(row.axes for row in plain.rows) and "axes" not in str(plain)


@pytest.mark.slow
@in_each_form
def test_penalties_of_units(form):
    """The units of all forms are the columns of the flat kernel."""
    flat = normal(8, 6)
    params, back = held(form, flat)
    norms = np.linalg.norm(np.float64(flat), axis=0)
    value, slope = jax.jit(jax.value_and_grad(jp.training.group_lasso))(params)
    np.testing.assert_allclose(value, np.sqrt(8) * norms.sum(), rtol=1e-6)
    np.testing.assert_allclose(back(slope), np.sqrt(8) * flat / norms, rtol=1e-5)
    strength = float(np.median(norms) / np.sqrt(8))
    step = jp.training.soft_threshold(strength, units=True)
    moved = optax.apply_updates(params, step.update(jax.tree.map(np.zeros_like, params), step.init(params), params)[0])
    expected = flat * np.maximum(1 - strength * np.sqrt(8) / norms, 0)
    np.testing.assert_allclose(back(moved), expected, atol=1e-6)
    assert (back(moved) == 0).all(0).sum() == 3
    gates = jp.training.init_gates(params, 0.9, units=True)
    kernel = max(jax.tree.leaves(gates), key=np.size)
    assert kernel.size == 6 and back(jp.training.gate_masks(params, gates)).shape == (1, 6)
    closed = jax.tree.map(lambda gate: jnp.where(jnp.arange(gate.size).reshape(gate.shape) == 1, -9.0, gate), gates)
    assert (back(jp.training.apply_gates(params, closed)) == 0).all(0).sum() == 1
    np.testing.assert_allclose(jp.training.expected_l0(params, gates), 0.9 * 48, rtol=1e-6)
    turned = {"w": normal(4, 3, 2)}
    said = {"w": ((), (2, 0), (1,))}
    units = jp.training.group_lasso({"w": turned["w"].transpose(2, 0, 1).reshape(8, 3)})
    np.testing.assert_allclose(jp.training.group_lasso(turned, layout=said), units, rtol=1e-6)


DEPTHWISE = {
    "conv/kernel": lambda w: w.reshape(3, 3, 1, 8),
    "features.0.weight": lambda w: w.T.reshape(8, 1, 3, 3),
    "depthwise_conv/w": lambda w: w.reshape(9, 1, 8),
}


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=[] if path.endswith("weight") else slow) for path in DEPTHWISE]
)
def test_depthwise_kernels_have_one_input_so_their_scales_are_of_units(path):
    flat = normal(9, 8)
    params = {path: DEPTHWISE[path](flat)}
    spec = jp.QuantSpec(block_size=32)
    stored = jp.quantize(params, 4, spec=spec)[path]
    assert stored.scale.size == 8
    expected = DEPTHWISE[path](oracles.fake_quant_symmetric(flat, 4, axis=1))
    np.testing.assert_array_equal(stored.dense(), expected)
    np.testing.assert_array_equal(jp.fake_quant(params, 4, spec=spec)[path], expected)
    assert jp.choose_qparams(params, 4, spec=jp.QuantSpec(block_size=32, axis=()))[path].scale.size == 1
    assert int(jp.reports.coded_bytes(params, None, 4, spec=spec)) == 36 + 32
    along = np.argmax(np.array(stored.shape) == 1)
    said = jp.QuantSpec(block_size=32, block_axis=int(along))  # taken at its word
    assert jp.choose_qparams(params, 4, spec=said)[path].scale.size == 72


def test_norms_of_any_rank_take_no_part():
    params = named(
        ("batch_norm/offset", (1, 1, 1, 4)),
        ("stack/ln_1/weight", (3, 4)),
        ("blocks.0.norm.weight", (3, 4)),
        ("cls", (1, 1, 4)),
        ("LayerNorm_0/scale", (3, 4)),
        ("norm_first/kernel", (4, 4)),
        ("normal/weight", (4, 4)),
        ("head/kernel", (64, 1)),
    )
    assert tree.select(params).names == ["head/kernel", "norm_first/kernel", "normal/weight"]


def test_scores_of_units_take_part_whatever_they_are_called():
    params = {"first": normal(3, 3, 2, 4), "cls": normal(1, 1, 4)}
    masks = jp.masks.by_sparsity(jp.saliency.unit_norm(params, layout="flax"), 0.5)
    assert masks["first"].shape == (1, 1, 1, 4) and int(masks["first"].sum()) == 2
    assert jp.prune(params, 0.5).masks["cls"].ndim == 0
