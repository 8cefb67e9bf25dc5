"""Half of the heads and half of the MLP width of a transformer encoder, gone, without touching its module.

A small encoder in Flax NNX reads scikit-learn's digits (1,797 real scans, part of the package) as eight rows of eight
pixels. The program of the model says which entries of query, key, value and output make up a head, and which rows and
columns a neuron of the MLP; ``jp.shrink`` cuts them, data says which matter, and optax tunes what is left. At last the
small state goes into a model that was built narrow.

    python examples/shrink_transformer.py            # --short for a quick look
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import jaxprune as jp

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--short", action="store_true", help="fewer steps")
STEPS, TUNING = (150, 60) if parser.parse_args().short else (800, 300)

# ---------------------------------------------------------------------------------------------------------------------
# Data: rows of pixels in [0, 1].

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images, labels = (digits.images[order] / 16).astype(np.float32), digits.target[order].astype(np.int32)
train, test = (images[:1300], labels[:1300]), (images[1300:], labels[1300:])

# ---------------------------------------------------------------------------------------------------------------------
# The model. Heads and MLP width of each layer are arguments.

WIDTH, HEAD = 48, 8


class Layer(nnx.Module):
    def __init__(self, heads, hidden, rngs):
        self.norm1, self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, WIDTH, qkv_features=heads * HEAD, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, hidden, rngs=rngs), nnx.Linear(hidden, WIDTH, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Encoder(nnx.Module):
    def __init__(self, layers, rngs):
        self.embed = nnx.Linear(8, WIDTH, rngs=rngs)
        self.position = nnx.Param(0.1 * jax.random.normal(rngs.params(), (8, WIDTH)))
        self.layers = nnx.List([Layer(heads, hidden, rngs) for heads, hidden in layers])
        self.norm, self.out = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x) + self.position[...]
        for layer in self.layers:
            x = layer(x)
        return self.out(jnp.mean(self.norm(x), axis=1))


graph, state = nnx.split(Encoder([(6, 192), (6, 192)], nnx.Rngs(0)))


def encoder(state, x):
    """The model as a pure function of its state: all that tracing needs."""
    return nnx.merge(graph, state)(x)


# ---------------------------------------------------------------------------------------------------------------------
# Training, of the encoder and of what is left of it.


def fit(function, state, steps, rate):
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def loss(state, x, y):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(function(state, x), y))

    def step(carry, chosen):
        state, moments = carry
        grads = jax.grad(loss)(state, jnp.asarray(train[0])[chosen], jnp.asarray(train[1])[chosen])
        updates, moments = optimizer.update(grads, moments)
        return (optax.apply_updates(state, updates), moments), None

    batches = np.random.default_rng(0).integers(len(train[0]), size=(steps, 64))
    return jax.jit(lambda carry: jax.lax.scan(step, carry, batches))((state, optimizer.init(state)))[0][0]


def accuracy(function, state):
    return float(jnp.mean(jnp.argmax(jax.jit(function)(state, test[0]), axis=-1) == test[1]))


dense = fit(encoder, state, STEPS, 3e-3)

# ---------------------------------------------------------------------------------------------------------------------
# Which heads and neurons matter: |w * dL/dw| on training data, over all the weights of a head or neuron.

grads = jax.grad(
    lambda state: jnp.mean(optax.softmax_cross_entropy_with_integer_labels(encoder(state, train[0]), train[1]))
)(dense)
shrunk = jp.shrink(
    encoder,
    dense,
    test[0][:16],
    sparsity=0.5,
    saliency=lambda state: jp.saliency.gradient(state, grads),
    spec=jp.structure.ShrinkSpec(groups=["heads of *", "features of *up"]),
)
print(shrunk.report, end="\n\n")
tuned = fit(shrunk.apply, shrunk.params, TUNING, 1e-3)

# ---------------------------------------------------------------------------------------------------------------------
# A model that was built narrow takes the small state as it is.

kept = {row.description: row.kept for row in shrunk.report.groups}
widths = [(kept[f"heads of layers/{i}/attention"], kept[f"features of layers/{i}/up"]) for i in (0, 1)]
narrow = Encoder(widths, nnx.Rngs(0))
nnx.update(narrow, tuned)
difference = float(jnp.max(jnp.abs(narrow(test[0]) - shrunk.apply(tuned, test[0]))))
print(f"an encoder of (heads, width) {widths} gives the same outputs, to {difference:.1e}", end="\n\n")

print("encoder     accuracy  parameters    MFLOP")
for name, function, weights, i in (
    ("dense", encoder, dense, 0),
    ("shrunk", shrunk.apply, shrunk.params, 1),
    ("fine-tuned", shrunk.apply, tuned, 1),
):
    parameters, flops = shrunk.report.parameters[i], shrunk.report.flops[i] / 1e6
    print(f"{name:<10} {100 * accuracy(function, weights):8.2f}%  {parameters:>10,}  {flops:7.1f}")
