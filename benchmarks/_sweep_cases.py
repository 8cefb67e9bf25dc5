"""The models of the sweep benchmark, ways to sweep them, and what a fresh process measures of one way.

``python -m benchmarks._sweep_cases NAME SIZE`` prints that as JSON.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import jaxprune as jp
from benchmarks._timer import Case, measure

CHANNEL = jp.QuantSpec(axis=-1)


def cnn(params: Any, images: jax.Array) -> jax.Array:
    """Two convolutions, two dense layers: 28 x 28 images to 10 logits, 420,000 parameters."""
    x = images
    for name in ("conv1", "conv2"):
        x = jax.lax.conv_general_dilated(x, params[name], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.lax.reduce_window(jax.nn.relu(x), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return jax.nn.relu(x.reshape(len(x), -1) @ params["dense1"]) @ params["dense2"]


def mlp(params: Any, images: jax.Array) -> jax.Array:
    """One hidden layer: 100,000 parameters."""
    return jax.nn.relu(images.reshape(len(images), -1) @ params["dense1"]) @ params["dense2"]


def cnn_arguments(small: bool) -> tuple[dict[str, np.ndarray], Any, np.ndarray, np.ndarray]:
    """Settings, parameters, images and labels."""
    shapes = {"conv1": (3, 3, 1, 32), "conv2": (3, 3, 32, 64), "dense1": (7 * 7 * 64, 128), "dense2": (128, 10)}
    return settings(small), *_model_and_data(shapes, 8 if small else 256)


def mlp_arguments(small: bool) -> tuple[dict[str, np.ndarray], Any, np.ndarray, np.ndarray]:
    """Settings, parameters, images and labels."""
    return settings(small), *_model_and_data({"dense1": (784, 128), "dense2": (128, 10)}, 8 if small else 1024)


def settings(small: bool) -> dict[str, np.ndarray]:
    """64 of them, or 4."""
    return jp.grid(sparsity=np.linspace(0, 0.9, 2 if small else 16), bits=[4, 8] if small else [2, 4, 6, 8])


def evaluation(model: Callable[[Any, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """One setting to the accuracy of the pruned and quantized model."""

    def evaluate(setting: Any, params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        pruned = jp.prune(params, setting["sparsity"]).params
        logits = model(jp.fake_quant(pruned, setting["bits"], spec=CHANNEL), images)
        return jnp.mean(logits.argmax(-1) == labels)

    return evaluate


def sweep_case(small: bool) -> Case:
    """The CNN by ``jp.sweep``."""
    tried, *args = cnn_arguments(small)
    args, evaluate = jax.device_put(args), evaluation(cnn)
    return Case("jp.sweep", lambda: jp.sweep(evaluate, tried, *args))


def loop_case(small: bool) -> Case:
    """The CNN as one would by hand: nothing waits for a result before all are on their way."""
    tried, *args = cnn_arguments(small)
    args, evaluate = jax.device_put(args), jax.jit(evaluation(cnn))
    each = [{name: values[i] for name, values in tried.items()} for i in range(len(tried["bits"]))]
    return Case("hand-written loop", lambda: jax.device_get([evaluate(setting, *args) for setting in each]))


def one_case(small: bool) -> Case:
    """The CNN at one setting."""
    tried, *args = cnn_arguments(small)
    args, evaluate = jax.device_put(args), jax.jit(evaluation(cnn))
    return Case("one setting", lambda: evaluate({name: values[0] for name, values in tried.items()}, *args))


def device_rows(small: bool) -> dict[str, dict[str, list[float]]]:
    """What was measured of the MLP's sweep on two devices and on one of them."""
    tried, *args = mlp_arguments(small)
    evaluate, mesh = evaluation(mlp), jax.make_mesh((2,), ("settings",))
    on_one, on_two = jax.device_put(args), jax.device_put(args, NamedSharding(mesh, PartitionSpec()))
    rows = measure(
        Case("jp.sweep, two devices", lambda: jp.sweep(evaluate, tried, *on_two, mesh=mesh)),
        Case("jp.sweep, one device", lambda: jp.sweep(evaluate, tried, *on_one)),
        seconds=20,
    )
    return {name: {"seconds": row.seconds, "cpu_seconds": row.cpu_seconds} for name, row in rows.items()}


def first_call(case: Case) -> dict[str, float]:
    """Calls a case once, and counts what was compiled and how much memory the process took at most."""
    durations: dict[str, list[float]] = {}
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: durations.setdefault(event, []).append(seconds)
    )
    before = _memory("VmRSS")
    jax.block_until_ready(case.call())
    compiles = durations.get("/jax/core/compile/backend_compile_duration", [])
    return {
        "compilations": len(compiles),
        "compile_seconds": sum(compiles),
        "peak_bytes": _memory("VmHWM"),
        "added_bytes": _memory("VmHWM") - before,
    }


def _model_and_data(shapes: dict[str, tuple[int, ...]], images: int) -> tuple[Any, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    params = {
        name: random.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[:-1])).astype(np.float32)
        for name, shape in shapes.items()
    }
    return params, random.standard_normal((images, 28, 28, 1), np.float32), random.integers(0, 10, images)


def _memory(field: str) -> int:
    """A field of this process's status, in bytes (Linux)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field + ":")) * 1024


FRESH: dict[str, Callable[[bool], Any]] = {
    "one setting": lambda small: first_call(one_case(small)),
    "hand-written loop": lambda small: first_call(loop_case(small)),
    "jp.sweep": lambda small: first_call(sweep_case(small)),
    "devices": device_rows,
}

if __name__ == "__main__":
    print(json.dumps(FRESH[sys.argv[1]](sys.argv[2] == "small")))
