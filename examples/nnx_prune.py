"""Prune a Flax NNX model in place, then fine-tune it with the optimizer that it already has; zeros stay zeros."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import jaxprune as jp

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--short", action="store_true", help="fewer steps")
steps = 50 if parser.parse_args().short else 400

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images, labels = jnp.asarray(digits.data[order] / 16, jnp.float32), jnp.asarray(digits.target[order])
train, test = (images[:1300], labels[:1300]), (images[1300:], labels[1300:])


class Network(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 128, rngs=rngs)
        self.head = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))


def loss(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


@nnx.jit
def step(model, optimizer, masks, x, y):
    optimizer.update(model, nnx.grad(loss)(model, x, y))
    if masks is not None:  # momentum and weight decay move removed weights too: put them back
        nnx.update(model, jp.masks.apply_masks(nnx.state(model, nnx.Param), masks))


@nnx.jit
def accuracy(model, x, y):
    return jnp.mean(jnp.argmax(model(x), axis=-1) == y)


def fit(model, optimizer, masks=None):
    for i in range(steps):
        batch = np.random.default_rng(i).choice(1300, 128, replace=False)
        step(model, optimizer, masks, train[0][batch], train[1][batch])
    return f"{accuracy(model, *test):.1%}"


model = Network(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adamw(3e-3), wrt=nnx.Param)
print("dense           ", fit(model, optimizer))
dense = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))  # a state refers to the live model: keep a copy

pruned = jp.prune(dense, 0.9)
nnx.update(model, pruned.params)
print("90% removed     ", f"{accuracy(model, *test):.1%}")
print("and fine-tuned  ", fit(model, optimizer, pruned.masks))

print("\nDense, against pruned and fine-tuned with the kernels in 8 bits:\n")
print(jp.report(dense, jp.quantize(nnx.state(model, nnx.Param), 8), masks=pruned.masks))
