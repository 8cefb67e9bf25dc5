"""How small can a trained network get? Every answer at once: several hundred settings in one compiled program.

Trains a small convolutional network on scikit-learn's digits (1,797 real scans, part of the package), then compresses
it in some 400 ways: global sparsity times bit width, and a row each of three more masks (by threshold, by the entropy
of a unit's weights, by the fraction of zeros in a unit). Settings are chosen on the validation images, and the
accuracies printed are those of the test images. Draws digits_pareto.png in the current folder, and writes what there
is to see about the setting it recommends to report.html.

    python examples/digits_pareto.py            # --short for a quick look
"""

import argparse
import time

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

import jaxprune as jp

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--short", action="store_true", help="fewer steps, fewer settings")
short = parser.parse_args().short

# ---------------------------------------------------------------------------------------------------------------------
# Data: 8x8 images with pixels in [0, 1], split once and for all.

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images = (digits.images[order, :, :, None] / 16).astype(np.float32)
labels = digits.target[order].astype(np.int32)
train, validation, test = ((images[part], labels[part]) for part in np.split(np.arange(len(labels)), [800, 1400]))

# ---------------------------------------------------------------------------------------------------------------------
# Network and training: nothing here knows about compression.


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        x = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))
        x = nn.relu(nn.Dense(64)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10, name="head")(x)


network = Network()
optimizer = optax.adamw(optax.cosine_decay_schedule(4e-3, steps := 60 if short else 600), weight_decay=0.1)


def accuracy(params, data):
    return jnp.mean(jnp.argmax(network.apply(params, data[0]), axis=-1) == data[1])


@jax.jit
def fit(params, data, key):
    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(network.apply(params, x), y).mean()

    def step(state, key):
        params, moments = state
        batch = jax.random.choice(key, len(data[1]), (64,), replace=False)
        updates, moments = optimizer.update(jax.grad(loss)(params, data[0][batch], data[1][batch]), moments, params)
        return (optax.apply_updates(params, updates), moments), None

    return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, steps))[0][0]


params = fit(jax.jit(network.init)(jax.random.key(0), train[0][:1]), train, jax.random.key(1))
dense_validation, dense_test = (float(jax.jit(accuracy)(params, data)) for data in (validation, test))

# ---------------------------------------------------------------------------------------------------------------------
# Compression: one pure function of a setting. Every mask has a neutral setting, at which it removes nothing, so all
# families are settings of the same program.

NEUTRAL = {"sparsity": 0.0, "threshold": 0.0, "entropy": 0.0, "zeros": 1.0, "bits": 16}
SPEC = jp.QuantSpec(calibration=jp.quantization.mean_squared_error())  # clips outliers where that rounds better


def compress(setting, params):
    steps = [
        lambda w: jp.prune(w, setting["sparsity"], scope="global").masks,  # the smallest weights of the whole network
        lambda w: jp.threshold_prune(w, setting["threshold"]).masks,  # weights below a magnitude
        lambda w: jp.masks.by_unit_entropy(w, setting["entropy"], bins=16, where="!head/*"),  # units that say little
        lambda w: jp.masks.by_unit_sparsity(w, setting["zeros"], where="!head/*"),  # units that are mostly zeros
    ]
    masks = jax.tree.map(lambda w: jnp.ones((), bool), params)
    for step in steps:
        masks = jax.tree.map(jnp.logical_and, masks, step(jp.masks.apply_masks(params, masks)))
    return jp.fake_quant(jp.masks.apply_masks(params, masks), setting["bits"], spec=SPEC), masks


def evaluate(setting, params, validation, test):
    small, masks = compress(setting, params)
    return {
        "bytes": jp.reports.coded_bytes(params, masks, setting["bits"], spec=SPEC),
        "validation": accuracy(small, validation),
        "test": accuracy(small, test),
    }


def family(**values):
    """All combinations of the values given, everything else neutral."""
    chosen = jp.grid(**values)
    rows = len(chosen["bits"])
    return {name: chosen.get(name, np.full(rows, value)).astype(np.float32) for name, value in NEUTRAL.items()}


many, row = (5, 4) if short else (39, 30)
families = {
    "sparsity": family(sparsity=np.linspace(0, 0.95, many), bits=[2, 3, 4, 8] if short else range(2, 10)),
    "threshold": family(threshold=np.linspace(0.01, 0.15, row), bits=[4]),
    "entropy": family(entropy=np.linspace(1.8, 3.0, row), bits=[4]),
    "zeros": family(sparsity=[0.6], zeros=np.linspace(0.4, 1, row), bits=[4]),
}
names = np.repeat(list(families), [len(settings["bits"]) for settings in families.values()])
settings = {name: np.concatenate([part[name] for part in families.values()]) for name in NEUTRAL}

# ---------------------------------------------------------------------------------------------------------------------
# The sweep, and how often it compiled.

compilations = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compilations.append(event) if event.endswith("backend_compile_duration") else None
)
start = time.perf_counter()
result = jp.sweep(evaluate, settings, params, validation, test)
seconds, compiled = time.perf_counter() - start, len(compilations)

# ---------------------------------------------------------------------------------------------------------------------
# The choice: no setting on the front is beaten in both size and validation accuracy. Recommended is the smallest that
# loses at most half a point. The test images have had no say.

size, scores, tests = result["bytes"], result["validation"], result["test"]
dense_bytes = int(jp.reports.coded_bytes(params))
front = jp.pareto_front(result, cost="bytes", metric="validation")
front = front[scores[front] >= dense_validation - 0.10]  # below that nobody looks
best = next(i for i in front if scores[i] >= dense_validation - 0.005)


def describe(i):
    shown = {names[i]: settings[names[i]][i]} | ({"sparsity": settings["sparsity"][i]} if names[i] == "zeros" else {})
    return {name: f"{value:.3f}" for name, value in shown.items()} | {"bits": f"{settings['bits'][i]:.0f}"}


print(f"{len(names)} settings in {seconds:.1f} s, {compiled} compilation(s) included. The Pareto front:\n")
print(f"{'setting':36}{'bytes':>9}{'of dense':>10}{'validation':>12}{'test':>8}")
print(f"{'dense float32':36}{dense_bytes:>9,}{'100.0%':>10}{dense_validation:>12.1%}{dense_test:>8.1%}")
for i in front[::-1]:
    label = ", ".join(f"{name} {value}" for name, value in describe(i).items())
    marker = "  <- recommended" if i == best else ""
    print(f"{label:36}{size[i]:>9,}{size[i] / dense_bytes:>10.1%}{scores[i]:>12.1%}{tests[i]:>8.1%}{marker}")

setting = {name: values[best] for name, values in settings.items()}
small, masks = jax.jit(compress)(setting, params)
print("\nThe recommended one, leaf by leaf:\n")
report = jp.report(params, small, masks=masks, bits=setting["bits"], spec=SPEC)
print(report, end="\n\n")
report.to_html(
    "report.html",
    title="A digits network, compressed",
    sweep=result,
    settings=settings,
    metric="validation",
    chosen=best,
    baseline=dense_validation,
)

# ---------------------------------------------------------------------------------------------------------------------
# The picture: what the choice saw, and the two test accuracies that matter.

LOOKS = {
    "sparsity": ("#4477aa", "o", "sparsity × bits"),
    "threshold": ("#ee7733", "^", "threshold, 4 bits"),
    "entropy": ("#228833", "s", "unit entropy, 4 bits"),
    "zeros": ("#aa3377", "D", "unit sparsity, 4 bits"),
}
percent = 100 * scores
lowest = max(0, 100 * dense_validation - 15)
text = {"textcoords": "offset points", "va": "center", "linespacing": 1.4}

figure, axes = plt.subplots(figsize=(9, 5.2), layout="constrained")
for name, (color, marker, label) in LOOKS.items():
    shown = (names == name) & (percent > lowest)
    strong = name != "sparsity"
    axes.scatter(
        size[shown], percent[shown], s=26, c=color, marker=marker, alpha=0.85 if strong else 0.5, lw=0, label=label
    )
axes.plot(size[front], percent[front], color="black", lw=1.5, drawstyle="steps-post", zorder=3, label="Pareto front")
axes.axhline(100 * dense_validation, color="0.55", lw=0.8, ls=(0, (5, 4)), zorder=0)
axes.scatter(dense_bytes, 100 * dense_validation, s=190, marker="*", color="black", zorder=4)
axes.annotate(
    f"dense float32\n{dense_bytes:,} bytes\ntest {dense_test:.1%}",
    (dense_bytes, 100 * dense_validation),
    (0, -38),
    ha="center",
    **text,
)
axes.scatter(size[best], percent[best], s=150, facecolor="none", edgecolor="#cc3311", lw=2.2, zorder=5)
axes.annotate(
    f"recommended: {', '.join(f'{name} {value}' for name, value in describe(best).items())}\n"
    f"{size[best]:,} bytes, {size[best] / dense_bytes:.1%} of dense\ntest {tests[best]:.1%}",
    (size[best], percent[best]),
    (75, -105),
    color="#cc3311",
    arrowprops={"arrowstyle": "-", "color": "#cc3311", "relpos": (0, 0.8), "shrinkB": 8},
    **text,
)

axes.set_xscale("log")
ticks = [5_000, 7_000, 10_000, 15_000, 20_000, 30_000, 50_000, 70_000, 100_000, 150_000]
axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
axes.set_xticks([], minor=True)
axes.set_xlim(0.95 * min(size[percent > lowest]), 1.25 * dense_bytes)
axes.set_ylim(lowest, 100)
axes.set_xlabel("size as coded, bytes")
axes.set_ylabel("validation accuracy, %")
axes.grid(alpha=0.25)
axes.spines["right"].set_visible(False)
axes.legend(frameon=False, loc="lower right")
top = axes.secondary_xaxis("top", functions=(lambda b: 100 * b / dense_bytes, lambda p: p * dense_bytes / 100))
top.set_xticks(ticks := [4, 5, 7, 10, 15, 20, 30, 50, 70, 100], [f"{tick}%" for tick in ticks])
top.set_xticks([], minor=True)
top.set_xlabel("of the dense size")
axes.set_title(f"{len(names)} ways to compress one trained network, one compiled program", loc="left", pad=12)
figure.savefig("digits_pareto.png", dpi=120)
print("drew digits_pareto.png, wrote report.html")

chosen = ",".join(f"{name}:{value}" for name, value in describe(best).items())
print(
    f"settings={len(names)} compilations={compiled} dense={dense_test:.3f} "
    f"best={chosen},bytes:{size[best]},accuracy:{tests[best]:.3f}"
)
