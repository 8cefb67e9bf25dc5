"""How sparse can a network be trained? Four methods at sixteen sparsities and several seeds, one program a method.

Trains a small network on scikit-learn's digits (1,797 real scans, part of the package) under optax transformations of
jaxprune. The sparsity that a run aims at is a traced value, and so is its seed: ``jax.vmap`` trains all of them
together, in a single compiled program. Draws train_sparsities.png in the current folder.

    python examples/train_sparsities.py            # --short for a quick look
"""

import argparse
import time

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxprune as jp

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--short", action="store_true", help="fewer steps, sparsities and seeds")
short = parser.parse_args().short

# ---------------------------------------------------------------------------------------------------------------------
# Data: pixels in [0, 1], split once and for all.

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images, labels = (digits.data[order] / 16).astype(np.float32), digits.target[order].astype(np.int32)
train, test = (images[:1200], labels[:1200]), (images[1200:], labels[1200:])

# ---------------------------------------------------------------------------------------------------------------------
# A network with one hidden layer more than it needs.


SIZES = (64, 64, 32, 10)


def init(key):
    layers = zip(jax.random.split(key, 3), SIZES[:-1], SIZES[1:], strict=True)
    return [{"kernel": jax.random.normal(k, (i, o)) * (2 / i) ** 0.5, "bias": jnp.zeros(o)} for k, i, o in layers]


def network(params, x):
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ params[-1]["kernel"] + params[-1]["bias"]


def accuracy(params, data):
    return jnp.mean(jnp.argmax(network(params, data[0]), axis=-1) == data[1])


# ---------------------------------------------------------------------------------------------------------------------
# Training: the usual optax loop. Each method is one line around the optimizer.

STEPS, EVERY = (120, 10) if short else (1500, 50)
adam = optax.adam(optax.cosine_decay_schedule(4e-3, STEPS))


def shares(params, sparsity):
    return jp.masks.allocation.erdos_renyi_kernel(params, sparsity)


METHODS = {
    "gradual magnitude": lambda sparsity, params, key: jp.training.gradual_pruning(
        adam, jp.schedules.cubic(0.0, sparsity, STEPS * 2 // 3, STEPS // 10), every=EVERY, scope="global"
    ),
    "one-shot, then fine-tuning": lambda sparsity, params, key: jp.training.one_shot(
        adam, sparsity, step=STEPS * 2 // 3, scope="global"
    ),
    "RigL": lambda sparsity, params, key: jp.training.rigl(
        adam, shares(params, sparsity), key=key, every=EVERY, stop_step=STEPS * 3 // 4
    ),
    "static random": lambda sparsity, params, key: jp.training.static_sparse(adam, shares(params, sparsity), key=key),
}


def fit(method, sparsity, seed, train, test):
    first, masking, batches = jax.random.split(jax.random.key(seed), 3)
    params = init(first)
    optimizer = method(sparsity, params, masking)

    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(network(params, x), y).mean()

    def step(carry, key):
        params, state = carry
        batch = jax.random.randint(key, (64,), 0, len(train[1]))
        updates, state = optimizer.update(jax.grad(loss)(params, train[0][batch], train[1][batch]), state, params)
        return (optax.apply_updates(params, updates), state), None

    state = optimizer.init(params)
    params = jp.masks.apply_masks(params, jp.training.masks_of(state))
    params, state = jax.lax.scan(step, (params, state), jax.random.split(batches, STEPS))[0]
    return accuracy(params, test), jp.masks.sparsity_of(jp.training.masks_of(state), params)


many = [0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.88, 0.9, 0.92, 0.94, 0.96, 0.97, 0.98]
sparsities = np.float32([0, 0.7, 0.9, 0.97] if short else many)
seeds = np.arange(2 if short else 5)

curves = {}
for name, method in METHODS.items():
    start = time.perf_counter()
    over_seeds = jax.vmap(lambda *args, method=method: fit(method, *args), (None, 0, None, None))
    scores, reached = jax.jit(jax.vmap(over_seeds, (0, None, None, None)))(sparsities, seeds, train, test)
    curves[name] = np.asarray(scores)
    assert np.allclose(reached, sparsities[:, None], atol=2e-3)
    runs = len(sparsities) * len(seeds)
    print(f"{name:28}{runs} runs of {STEPS} steps in {time.perf_counter() - start:5.1f} s, compilation included")

# ---------------------------------------------------------------------------------------------------------------------
# The table and the picture: every run a point, a line through the means.

print(f"\n{'test accuracy at sparsity':28}" + "".join(f"{s:8.0%}" for s in sparsities[1:]))
for name, scores in curves.items():
    print(f"{name:28}" + "".join(f"{score:8.1%}" for score in scores.mean(1)[1:]))
dense = float(np.mean([scores[0].mean() for scores in curves.values()]))

COLORS = ("#4477aa", "#ee7733", "#228833", "#aa3377")
figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
kept = 100 * (1 - sparsities)
for (name, scores), color in zip(curves.items(), COLORS, strict=True):
    axes.plot(kept, 100 * scores.mean(1), color=color, lw=2, label=name)
    axes.scatter(np.repeat(kept, len(seeds)), 100 * scores.ravel(), s=10, color=color, alpha=0.35, lw=0)
axes.axhline(100 * dense, color="0.5", lw=0.8, ls=(0, (5, 4)), zorder=0)
axes.annotate(
    f"dense {dense:.1%}", (kept[-1], 100 * dense), (0, 4), textcoords="offset points", ha="right", color="0.35"
)
axes.set_xscale("log")
axes.set_xticks(ticks := [100, 50, 30, 20, 10, 5, 3, 2], [f"{tick}%" for tick in ticks])
axes.set_xticks([], minor=True)
axes.invert_xaxis()
axes.set_ylim(max(0, 100 * min(scores.mean(1).min() for scores in curves.values()) - 3), 102)
axes.set_xlabel("weights left")
axes.set_ylabel("test accuracy, %")
axes.grid(alpha=0.25)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="lower left")
axes.set_title(
    f"{len(sparsities)} sparsities × {len(seeds)} seeds trained together, one program a method", loc="left", pad=10
)
figure.savefig("train_sparsities.png", dpi=120)
print("drew train_sparsities.png")
