"""Small models of many architectures: what each computes, the shapes of its parameters and inputs, and values for them.

Nothing here runs: parameters are traced for their shapes, so that the analysis is tested on shapes alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

KEY = jax.eval_shape(lambda: jax.random.key(0))


class Model(NamedTuple):
    """A function of parameters and inputs; ``inputs`` gives their shapes for a batch size."""

    function: Callable[..., Any]
    params: Any
    inputs: Callable[[int], tuple[Any, ...]]
    options: dict[str, Any] = {}


def struct(*shape, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def images(batch):
    return (struct(batch, 8, 8, 2),)


def vectors(batch):
    return (struct(batch, 3),)


def sequences(batch):
    return (struct(batch, 5, 3),)


def tokens(batch):
    return (struct(batch, 6, dtype=np.int32),)


def fill(shapes, seed=0):
    """Random values in every leaf: biases, offsets and means too; variances and scales around 1; small integers."""
    random = np.random.default_rng(seed)

    def leaf(path, one):
        if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            return jax.random.key(seed)
        if jnp.issubdtype(one.dtype, np.integer):
            return random.integers(0, 7, one.shape).astype(one.dtype)
        name = jax.tree_util.keystr(path)
        if "var" in name or "scale" in name:
            return random.uniform(0.5, 1.5, one.shape).astype(one.dtype)
        width = np.prod(one.shape[:-1]) if len(one.shape) > 1 else 1
        return (random.normal(size=one.shape) / np.sqrt(width)).astype(one.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def linen(module, inputs):
    """A Linen module, with all of its collections as parameters."""
    return Model(module.apply, jax.eval_shape(module.init, KEY, *inputs(2)), inputs)


# --- layers of convolutions -----------------------------------------------------------------------------------------


def conv(x, features, window=3, norm=True, act=nn.relu, **how):
    x = nn.Conv(features, (window, window), **how)(x)
    x = nn.BatchNorm(use_running_average=True)(x) if norm else x
    return act(x)


def same(x):
    return x


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.tanh(nn.Dense(5)(nn.gelu(nn.Dense(6)(x)))))


class LeNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        for features in (4, 6):
            x = nn.avg_pool(nn.tanh(nn.Conv(features, (3, 3), padding="SAME")(x)), (2, 2), (2, 2))
        x = nn.tanh(nn.Dense(8)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(x)


class VGG(nn.Module):
    @nn.compact
    def __call__(self, x):
        for features in (4, 5):
            x = conv(conv(x, features), features)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(6)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(x)


class Residual(nn.Module):
    """A block of ResNet: basic or bottleneck, plain or with groups, with a projection where the width changes."""

    features: int
    bottleneck: bool = False
    strides: int = 1
    groups: int = 1

    @nn.compact
    def __call__(self, x):
        width = self.features // 2 if self.bottleneck else self.features
        if self.bottleneck:
            y = conv(x, width, 1)
            y = conv(y, width, strides=self.strides, feature_group_count=self.groups)
            y = conv(y, self.features, 1, act=same)
        else:
            y = conv(conv(x, width, strides=self.strides), width, act=same)
        if x.shape != y.shape:
            x = conv(x, self.features, 1, act=same, strides=self.strides)
        return nn.relu(x + y)


class ResNet(nn.Module):
    bottleneck: bool = False
    groups: int = 1

    @nn.compact
    def __call__(self, x):
        x = conv(x, 4)
        for features, strides in ((4 if not self.bottleneck else 8, 1), (8, 2)):
            x = Residual(features, self.bottleneck, strides, self.groups)(x)
        return nn.Dense(3)(x.mean((1, 2)))


class PaddedResNet(nn.Module):
    """Shortcuts without parameters: every second pixel, and channels of zeros."""

    @nn.compact
    def __call__(self, x):
        x = conv(x, 4)
        y = conv(conv(x, 6, strides=2), 6, act=same)
        x = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (1, 1)))
        return nn.Dense(3)(nn.relu(x + y).mean((1, 2)))


class DenseNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = conv(x, 4, norm=False, act=same)
        for _ in range(2):
            y = nn.relu(nn.BatchNorm(use_running_average=True)(x))
            x = jnp.concatenate([x, nn.Conv(3, (3, 3))(y)], -1)
        x = nn.avg_pool(conv(x, 5, 1), (2, 2), (2, 2))
        return nn.Dense(3)(x.mean((1, 2)))


class MobileNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = conv(x, 4, act=nn.relu6, strides=2)
        y = conv(x, 8, 1, act=nn.relu6)
        y = conv(y, 8, act=nn.hard_swish, feature_group_count=8)
        x = x + conv(y, 4, 1, act=same)
        x = conv(x, 8, act=nn.relu6, feature_group_count=4)  # two outputs for each input
        return nn.Dense(3)(x.mean((1, 2)))


class UNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        down = conv(x, 4)
        deep = conv(nn.max_pool(down, (2, 2), (2, 2)), 6)
        up = nn.ConvTranspose(4, (2, 2), strides=(2, 2))(deep)
        return nn.Conv(2, (1, 1))(conv(jnp.concatenate([up, down], -1), 4))


class SqueezeExcite(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = conv(x, 6)
        weights = nn.sigmoid(nn.Dense(6)(nn.relu(nn.Dense(3)(x.mean((1, 2))))))
        return nn.Dense(3)(conv(x * weights[:, None, None, :], 5).max((1, 2)))


class GroupNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.silu(nn.GroupNorm(num_groups=4)(nn.Conv(8, (3, 3))(x)))
        x = nn.silu(nn.GroupNorm(num_groups=3)(nn.Conv(6, (3, 3))(x)))
        return nn.Dense(3)(x.mean((1, 2)))


# --- recurrent, attention, mixing -----------------------------------------------------------------------------------


class Recurrent(nn.Module):
    cell: Any

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.RNN(self.cell(5))(nn.Dense(4)(x)))


class Block(nn.Module):
    """A layer of a transformer, its norms before its branches."""

    heads: int = 3

    @nn.compact
    def __call__(self, x, mask=None):
        attention = nn.MultiHeadDotProductAttention(self.heads, qkv_features=self.heads * 2)
        x = x + attention(nn.LayerNorm()(x), mask=mask)
        y = nn.gelu(nn.Dense(10)(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1])(y)


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(7, 8)(ids) + self.param("position", nn.initializers.normal(), (6, 8))
        return nn.Dense(3)(nn.LayerNorm()(Block()(x)).mean(1))


class Decoder(nn.Module):
    """Tied embeddings, a causal mask."""

    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(7, 8)
        x = Block()(embed(ids), nn.make_causal_mask(ids))
        return embed.attend(nn.LayerNorm()(x))


class FusedAttention(nn.Module):
    """Queries, keys and values by one product and a reshape."""

    @nn.compact
    def __call__(self, x):
        (batch, length, _), heads = x.shape, 4
        q, k, v = jnp.moveaxis(nn.Dense(3 * heads * 2)(x).reshape(batch, length, 3, heads, 2), 2, 0)
        weights = nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(2))
        return nn.Dense(3)(jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, length, heads * 2))


class Mixer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (4, 4), strides=(4, 4))(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        y = nn.LayerNorm()(x).swapaxes(1, 2)
        x = x + nn.Dense(4)(nn.gelu(nn.Dense(5)(y))).swapaxes(1, 2)
        x = x + nn.Dense(6)(nn.gelu(nn.Dense(7)(nn.LayerNorm()(x))))
        return nn.Dense(3)(x.mean(1))


class ViT(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (4, 4), strides=(4, 4))(x).reshape(x.shape[0], -1, 8)
        first = self.param("class", nn.initializers.normal(), (1, 1, 8))
        x = jnp.concatenate([jnp.tile(first, (x.shape[0], 1, 1)), x], 1)
        x = Block()(x + self.param("position", nn.initializers.normal(), (1, 5, 8)))
        return nn.Dense(3)(nn.LayerNorm()(x)[:, 0])


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(4)(nn.relu(nn.Dense(6)(x))), None


class Scanned(nn.Module):
    """Layers in a scan, each rematerialized."""

    @nn.compact
    def __call__(self, x):
        stack = nn.scan(nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return nn.Dense(2)(stack(name="stack")(nn.Dense(4)(x), None)[0])


class Training(nn.Module):
    """Statistics of the batch, updated; dropout with a key that is an input."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Conv(6, (3, 3))(x)))
        x = nn.Dropout(0.5, deterministic=False)(x)
        return nn.Dense(3)(nn.relu(nn.Dense(5)(x.mean((1, 2)))))


def training():
    module = Training()
    params = jax.eval_shape(lambda key, *x: module.init({"params": key, "dropout": key}, *x), KEY, *images(2))

    def function(params, x, key):
        return module.apply(params, x, rngs={"dropout": key}, mutable=["batch_stats"])

    return Model(function, params, lambda batch: (*images(batch), KEY), {"free_output": "1/batch_stats/*"})


# --- without Linen --------------------------------------------------------------------------------------------------


def grouped_query_decoder():
    """Grouped queries, rotary positions, root-mean-square norms, gated units: as plain functions."""
    width, heads, shared, depth = 8, 4, 2, 4
    layer = {
        "norm1": struct(width),
        "q": struct(width, heads, depth),
        "k": struct(width, shared, depth),
        "v": struct(width, shared, depth),
        "o": struct(heads, depth, width),
        "norm2": struct(width),
        "gate": struct(width, 6),
        "up": struct(width, 6),
        "down": struct(6, width),
    }
    params = {"embed": struct(7, width), "layer": layer, "norm": struct(width), "head": struct(width, 7)}

    def norm(scale, x):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale

    def rotate(x):
        angles = jnp.arange(x.shape[1])[:, None] / 10.0 ** jnp.arange(depth // 2)
        sin, cos = (fn(angles)[None, :, None, :] for fn in (jnp.sin, jnp.cos))
        one, two = jnp.split(x, 2, -1)
        return jnp.concatenate([one * cos - two * sin, two * cos + one * sin], -1)

    def attend(p, x):
        q, k, v = (jnp.einsum("blw,whd->blhd", x, p[name]) for name in "qkv")
        q = rotate(q).reshape(*x.shape[:2], shared, heads // shared, depth)
        scores = jnp.einsum("bqgnd,bkgd->bgnqk", q, rotate(k))
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -1e9)
        mixed = jnp.einsum("bgnqk,bkgd->bqgnd", jax.nn.softmax(scores, -1), v)
        return jnp.einsum("blhd,hdw->blw", mixed.reshape(*x.shape[:2], heads, depth), p["o"])

    def function(params, ids):
        p, x = params["layer"], params["embed"][ids]
        x = x + attend(p, norm(p["norm1"], x))
        y = norm(p["norm2"], x)
        x = x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]
        return norm(params["norm"], x) @ params["head"]

    return Model(function, params, tokens)


def rms_norm(scale, x):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * (1 + scale)


def gemma():
    """One key and value for all queries, rotary positions that are given, gated units, capped logits, a tied table."""
    width, heads, depth = 8, 4, 6
    params = {
        "table": struct(7, width),
        "attend": {
            "norm": struct(width),
            "q": struct(heads, width, depth),
            "kv": struct(2, 1, width, depth),
            "o": struct(heads, depth, width),
        },
        "mlp": {"norm": struct(width), "up": struct(2, width, 10), "down": struct(10, width)},
        "norm": struct(width),
    }

    def rotate(x, positions):
        timescale = 10_000 ** (2 * jnp.arange(depth // 2) / depth)
        radians = (positions[..., None] / timescale)[..., None, :]
        one, two = jnp.split(x, 2, -1)
        sin, cos = jnp.sin(radians), jnp.cos(radians)
        return jnp.concatenate([one * cos - two * sin, two * cos + one * sin], -1)

    def attend(p, x, positions):
        q = jnp.einsum("btd,ndh->btnh", x, p["q"])
        k, v = jnp.einsum("bsd,ckdh->cbskh", x, p["kv"])
        q, k = rotate(q, positions) * depth**-0.5, rotate(k, positions)
        logits = jnp.einsum("btnh,bskh->btnks", q, k)[..., 0, :]
        logits = jnp.tanh(logits / 50) * 50
        causal = (positions[:, :, None] >= positions[:, None, :])[:, :, None]
        weights = jax.nn.softmax(jnp.where(causal, logits, -2.4e38), -1)
        return jnp.einsum("btnh,nhd->btd", jnp.einsum("btns,bskh->btnh", weights, v), p["o"])

    def function(params, ids, positions):
        x = params["table"][ids] * jnp.sqrt(width).astype(jnp.float32)
        p = params["attend"]
        x = x + attend(p, rms_norm(p["norm"], x), positions)
        p = params["mlp"]
        gate, up = jnp.einsum("btd,cdf->cbtf", rms_norm(p["norm"], x), p["up"])
        x = rms_norm(params["norm"], x + (jax.nn.gelu(gate) * up) @ p["down"])
        return jnp.tanh(x @ params["table"].T / 30) * 30

    return Model(function, params, lambda batch: (*tokens(batch), struct(batch, 6, dtype=np.int32)))


def experts():
    """A mixture of experts without padding: tokens sorted by their experts, one product for all."""
    width, hidden, count, each = 8, 6, 4, 2
    params = {
        "table": struct(7, width),
        "norm": struct(width),
        "router": struct(width, count),
        "gate": struct(count, width, hidden),
        "up": struct(count, width, hidden),
        "down": struct(count, hidden, width),
        "head": struct(width, 3),
    }

    def mixed(p, x):
        weights, chosen = jax.lax.top_k(jax.nn.softmax(x @ p["router"]), each)
        order = jnp.argsort(chosen.ravel())
        rows, sizes = x[order // each], jnp.bincount(chosen.ravel(), length=count)
        gate, up = (jax.lax.ragged_dot(rows, p[name], sizes) for name in ("gate", "up"))
        out = jax.lax.ragged_dot(jax.nn.silu(gate) * up, p["down"], sizes)
        out = jnp.zeros_like(out).at[order].set(out).reshape(-1, each, width)
        return jnp.einsum("nkw,nk->nw", out, weights / weights.sum(-1, keepdims=True))

    def function(p, ids):
        x = p["table"][ids]
        x = x + mixed(p, rms_norm(p["norm"], x).reshape(-1, width)).reshape(x.shape)
        return x.mean(1) @ p["head"]

    return Model(function, params, tokens)


def class_attention(layers=1):
    """Heads that talk to each other, branches that are scaled, a class that alone attends to all in the end."""
    width, heads, count = 8, 2, 4
    branch = {"norm": struct(width), "scale": struct(width), "out": struct(width, width)}
    mlp = {"norm": struct(width), "scale": struct(width), "up": struct(width, 10), "down": struct(10, width)}
    talk = {"qkv": struct(width, 3 * width), "before": struct(heads, heads), "after": struct(heads, heads)}
    layer = {"attend": branch | talk, "mlp": mlp}
    last = {"attend": branch | {name: struct(width, width) for name in "qkv"}, "mlp": mlp}
    params = {"patch": struct(3, width), "class": struct(1, 1, width), "layers": [layer] * layers, "last": last}
    params |= {"head": struct(width, 3)}

    def split(x):
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    def joined(x):
        return x.transpose(0, 2, 1, 3).reshape(x.shape[0], -1, width)

    def attend(p, x):
        q, k, v = (split(part) for part in jnp.split(rms_norm(p["norm"], x) @ p["qkv"], 3, -1))
        logits = jnp.einsum("bhqk,hg->bgqk", q @ k.swapaxes(-1, -2), p["before"])
        weights = jnp.einsum("bhqk,hg->bgqk", jax.nn.softmax(logits, -1), p["after"])
        return x + p["scale"] * (joined(weights @ v) @ p["out"])

    def attend_last(p, first, x):
        both = rms_norm(p["norm"], jnp.concatenate([first, x], 1))
        q, k, v = split(both[:, :1] @ p["q"]), split(both @ p["k"]), split(both @ p["v"])
        mixed = jax.nn.softmax(q @ k.swapaxes(-1, -2), -1) @ v
        return first + p["scale"] * (joined(mixed) @ p["out"])

    def feed(p, x):
        return x + p["scale"] * (jax.nn.gelu(rms_norm(p["norm"], x) @ p["up"]) @ p["down"])

    def function(params, x):
        x = x[:, :count] @ params["patch"]
        for layer in params["layers"]:
            x = feed(layer["mlp"], attend(layer["attend"], x))
        first = jnp.broadcast_to(params["class"], (x.shape[0], 1, width))
        first = feed(params["last"]["mlp"], attend_last(params["last"]["attend"], first, x))
        return first[:, 0] @ params["head"]

    return Model(function, params, sequences)


def normalized_apart():
    """One image at a time under vmap, normalized with statistics of the batch; a scale that all channels share."""
    params = {
        "conv": struct(3, 3, 2, 6),
        "scale": struct(6),
        "bias": struct(6),
        "shared": struct(),
        "head": struct(6, 3),
    }

    def one(p, x):
        h = jax.lax.conv_general_dilated(x[None], p["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        mean, square = jax.lax.pmean((h.mean((0, 1, 2)), jnp.square(h).mean((0, 1, 2))), "batch")
        spread = jnp.sqrt(jnp.maximum(square - mean * mean, 0) + 1e-5)
        h = (h - mean) / spread * p["scale"] + p["bias"]
        return jax.nn.relu(h / p["shared"]).mean((0, 1, 2)) @ p["head"]

    return Model(lambda p, x: jax.vmap(one, (None, 0), axis_name="batch")(p, x), params, images)


def looked_up():
    """An embedding looked up entry by entry, as Equinox does, two layers of normalization and a gated unit."""
    params = {"table": struct(7, 6), "gain": struct(6), "a": struct(6, 5), "b": struct(5, 6), "head": struct(6, 3)}

    def one(p, id):
        x = jnp.asarray(p["table"])[id]
        return x + jnp.tanh(rms_norm(p["gain"], x) @ p["a"]) @ p["b"]

    def function(p, ids):
        return jax.vmap(lambda row: jax.vmap(lambda id: one(p, id))(row).mean(0) @ p["head"])(ids)

    return Model(function, params, tokens)


def pure():
    """A tuple of arrays, a table of the program's own, a loop, a branch and a polynomial."""
    table = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)

    def function(params, x):
        first, second, third = params
        h = jnp.sin(x @ first) + jnp.asarray(table)[0]
        h = jax.lax.fori_loop(0, 2, lambda _, h: 0.5 * h * h + h, h)
        h = jax.lax.cond(x[0, 0] > 0, lambda h: h * table[1], lambda h: -h, h)
        return jax.lax.top_k(jnp.polyval(jnp.array([1.0, 3.0, 0.0]), h @ second) @ third, 2)[0]

    return Model(function, (struct(3, 6), struct(6, 5), struct(5, 4)), vectors)


class NNXMLP(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)])

    def __call__(self, x):
        return self.layers[1](nnx.relu(self.layers[0](x)))


class NNXCNN(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.head = nnx.Linear(4 * 16, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.norm(self.conv(x))), (2, 2), (2, 2))
        return self.head(x.reshape(x.shape[0], -1))


class NNXAttention(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 6, rngs=rngs)
        self.attend = nnx.MultiHeadAttention(3, 6, decode=False, rngs=rngs)
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        x = self.first(x)
        return self.head(x + self.attend(x))


def nnx_model(kind, inputs):
    graph, state = nnx.split(nnx.eval_shape(lambda: kind(nnx.Rngs(0))))
    return Model(lambda state, *args: nnx.merge(graph, state)(*args), state, inputs)


def equinox():
    import equinox as eqx

    def build(key):
        return eqx.nn.MLP(3, 2, 6, 2, key=key)

    arrays, static = eqx.partition(eqx.filter_eval_shape(build, KEY), lambda leaf: hasattr(leaf, "shape"))
    return Model(lambda arrays, x: jax.vmap(eqx.combine(arrays, static))(x), arrays, vectors)


MODELS = {
    "mlp": lambda: linen(MLP(), vectors),
    "lenet": lambda: linen(LeNet(), images),
    "vgg": lambda: linen(VGG(), images),
    "resnet": lambda: linen(ResNet(), images),
    "bottleneck": lambda: linen(ResNet(bottleneck=True), images),
    "resnext": lambda: linen(ResNet(bottleneck=True, groups=2), images),
    "padded resnet": lambda: linen(PaddedResNet(), images),
    "densenet": lambda: linen(DenseNet(), images),
    "mobilenet": lambda: linen(MobileNet(), images),
    "unet": lambda: linen(UNet(), images),
    "squeeze-excite": lambda: linen(SqueezeExcite(), images),
    "groupnorm": lambda: linen(GroupNet(), images),
    "lstm": lambda: linen(Recurrent(nn.LSTMCell), sequences),
    "gru": lambda: linen(Recurrent(nn.GRUCell), sequences),
    "encoder": lambda: linen(Encoder(), tokens),
    "decoder": lambda: linen(Decoder(), tokens),
    "fused attention": lambda: linen(FusedAttention(), sequences),
    "grouped queries": grouped_query_decoder,
    "gemma": gemma,
    "experts": experts,
    "looked up": looked_up,
    "normalized apart": normalized_apart,
    "class attention": class_attention,
    "mixer": lambda: linen(Mixer(), images),
    "vit": lambda: linen(ViT(), images),
    "scanned": lambda: linen(Scanned(), sequences),
    "training": training,
    "pure": pure,
    "nnx mlp": lambda: nnx_model(NNXMLP, vectors),
    "nnx cnn": lambda: nnx_model(NNXCNN, images),
    "nnx attention": lambda: nnx_model(NNXAttention, sequences),
    "equinox": equinox,
}
