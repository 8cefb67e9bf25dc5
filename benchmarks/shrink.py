"""How much faster is a network whose channels are really gone, and what does it take to find them?

A CNN and a ResNet lose half of the channels of every group, and 64 images go through: the dense network, the shrunk
function, and a module that was built with the narrow widths. A transformer encoder of 12 layers, 768 wide, is traced
and analysed from its shapes, against ``jax.make_jaxpr`` alone. And one of 24 layers, 192 wide, is shrunk: the first
time, which stands where others have their compilation, and at sparsity after sparsity.
"""

import itertools
import sys
import time
from os.path import dirname

if not __package__:  # run as a file: its directory leads the path, and select.py would hide the standard module
    sys.path[0] = dirname(dirname(__file__))

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from benchmarks._report import Table, Target, options, report
from benchmarks._timer import Case, compiled, measure, ratio


class CNN(nn.Module):
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for i, width in enumerate(self.widths):
            x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(width, (3, 3), use_bias=False)(x)))
            x = nn.max_pool(x, (2, 2), (2, 2)) if i % 2 else x
        return nn.Dense(10)(jnp.mean(x, (1, 2)))


class ResNet(nn.Module):
    """A stem and stages of two basic blocks; the inside of a block has a width of its own."""

    widths: tuple[int, ...]
    inside: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        def normed(x, width, stride=1, size=3):
            x = nn.Conv(width, (size, size), strides=stride, use_bias=False)(x)
            return nn.BatchNorm(use_running_average=True)(x)

        x = nn.relu(normed(x, self.widths[0]))
        for stage, width in enumerate(self.widths):
            for block in range(2):
                stride = 2 if stage and not block else 1
                y = nn.relu(normed(x, self.inside[2 * stage + block], stride))
                x = normed(x, width, stride, 1) if stride == 2 else x
                x = nn.relu(x + normed(y, width))
        return nn.Dense(10)(jnp.mean(x, (1, 2)))


class Encoder(nn.Module):
    layers: int
    width: int
    words: int = 30522

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(self.words, self.width)(tokens) + nn.Embed(512, self.width)(jnp.arange(tokens.shape[1]))
        for _ in range(self.layers):
            x = nn.LayerNorm()(x + nn.MultiHeadDotProductAttention(12)(x))
            x = nn.LayerNorm()(x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(x))))
        return nn.Dense(2)(x[:, 0])


def main() -> None:
    arguments = options(__doc__)
    scale, side, layers = (8, 8, 2) if arguments.small else (64, 32, 12)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(64, side, side, 3)), jnp.float32)
    widths = (scale, scale, 2 * scale, 2 * scale, 4 * scale, 4 * scale)
    networks = {
        "CNN": (CNN(widths), CNN(tuple(w // 2 for w in widths))),
        "ResNet": (
            ResNet(widths[::2], widths),
            ResNet(tuple(w // 2 for w in widths[::2]), tuple(w // 2 for w in widths)),
        ),
    }
    tables, targets = [], []
    for name, (wide, narrow) in networks.items():
        rows = _networks(wide, narrow, images)
        tables.append(Table(f"{name}, {len(images)} images of {side} x {side}", rows))
        targets += [
            Target(f"{name}: shrunk / dense", ratio(rows["shrunk"], rows["dense"]), "<=", 0.4),
            Target(f"{name}: shrunk / narrow module", ratio(rows["shrunk"], rows["narrow module"]), "<=", 1.05),
        ]
    tables.append(Table(f"analysis of {layers} layers, 768 wide, from shapes", _analysis(Encoder(layers, 768))))
    deep = _shrinking(Encoder(2 * layers, 192, 1000))
    tables.append(Table(f"shrink, {2 * layers} layers, 192 wide", deep))
    again = deep["another sparsity"]
    targets += [
        Target("shrink: seconds, the first time", again.case.compile_seconds, "<=", 3),
        Target("shrink: seconds, another sparsity", again.median, "<=", 2),
    ]
    sizes = {"images": images.shape, "widths": widths, "sparsity": 0.5, "layers": layers}
    report(arguments, "shrink", sizes, tables, targets)


def _networks(wide: nn.Module, narrow: nn.Module, images: jax.Array):
    params = wide.init(jax.random.key(0), images)
    shrunk = jp.shrink(wide.apply, params, images, sparsity=0.5)
    assert jax.tree.map(np.shape, shrunk.params) == jax.tree.map(np.shape, narrow.init(jax.random.key(0), images))
    np.testing.assert_allclose(
        shrunk.apply(shrunk.params, images), narrow.apply(shrunk.params, images), rtol=1e-4, atol=1e-5
    )
    count = {"parameters": shrunk.report.parameters[1], "flops": shrunk.report.flops[1]}
    return measure(
        compiled("dense", wide.apply, params, images),
        compiled("shrunk", shrunk.apply, shrunk.params, images, **count),
        compiled("narrow module", narrow.apply, shrunk.params, images),
    )


def _analysis(encoder: nn.Module):
    tokens = jax.ShapeDtypeStruct((8, 128), jnp.int32)
    params = jax.eval_shape(encoder.init, jax.random.key(0), tokens)
    return measure(
        Case("make_jaxpr", lambda: jax.make_jaxpr(lambda *args: encoder.apply(*args))(params, tokens)),
        Case("trace", lambda: jp.structure.trace(lambda *args: encoder.apply(*args), params, tokens)),
    )


def _shrinking(encoder: nn.Module):
    tokens = jnp.zeros((4, 32), jnp.int32)
    params = jax.jit(encoder.init)(jax.random.key(0), tokens)
    sparsities = itertools.cycle(np.linspace(0.2, 0.8, 13))

    def again():
        return jp.shrink(encoder.apply, params, tokens, sparsity=next(sparsities)).params

    start = time.perf_counter()
    again()
    first = time.perf_counter() - start
    dense = Case("make_jaxpr", lambda: jax.make_jaxpr(lambda *args: encoder.apply(*args))(params, tokens))
    return measure(dense, Case("another sparsity", again, first))


if __name__ == "__main__":
    main()
