"""A decoder of random weights, and what a fresh process takes to look at data with it and to quantize it.

``python -m benchmarks._decoder NAME SIZE`` prints that as JSON.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxprune as jp

SPEC = jp.QuantSpec(axis=None, block_size=128, calibration=jp.quantization.mean_squared_error())


class Sizes(NamedTuple):
    """Of the model, and of the batches."""

    layers: int = 24
    width: int = 1024
    words: int = 8192
    batches: int = 3
    sequences: int = 4
    tokens: int = 128


SIZES = {"full": Sizes(), "small": Sizes(2, 128, 256, 2, 2, 16)}


def parameters(sizes: Sizes, stacked: bool) -> Any:
    """Of one array a matrix for all layers, or of one for each."""
    width, keys = sizes.width, iter(jax.random.split(jax.random.key(0), 6 * sizes.layers + 1))
    shapes = {name: (width, width) for name in "qkvo"} | {"up": (width, 4 * width), "down": (4 * width, width)}

    @jax.jit
    def drawn(key: jax.Array, like: jax.Array) -> jax.Array:
        return jax.random.normal(key, like.shape) / jnp.sqrt(like.shape[-2])

    def draw(*shape: int) -> jax.Array:
        return drawn(next(keys), jnp.zeros(shape))

    if stacked:
        layers: Any = {name: draw(sizes.layers, *shape) for name, shape in shapes.items()}
    else:
        layers = [{name: draw(*shape) for name, shape in shapes.items()} for _ in range(sizes.layers)]
    return {"words": draw(sizes.words, width), "layers": layers}


def decoder(params: Any, ids: jax.Array) -> jax.Array:
    """Causal attention of heads of 64 and a layer of neurons, so many times; logits of the next word."""
    x = params["words"][ids]
    if isinstance(params["layers"], dict):
        x, _ = jax.lax.scan(lambda x, own: (_layer(own, x), None), x, params["layers"])
    else:
        for own in params["layers"]:
            x = _layer(own, x)
    return _normed(x) @ params["words"].T


def _layer(own: Any, x: jax.Array) -> jax.Array:
    y = _normed(x)
    q, k, v = (jnp.reshape(y @ own[name], (*y.shape[:2], -1, 64)) for name in "qkv")
    x = x + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape) @ own["o"]
    return x + jax.nn.gelu(_normed(x) @ own["up"]) @ own["down"]


def _normed(x: jax.Array) -> jax.Array:
    return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def measured(sizes: Sizes, stacked: bool, passes: Sequence[Any]) -> dict[str, Any]:
    """Collects and quantizes, the leaves of one ``where`` after those of another."""
    compiled: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(seconds) if event.endswith("backend_compile_duration") else None
    )
    params = jax.block_until_ready(parameters(sizes, stacked))
    stages: dict[str, dict[str, float]] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        compiled.clear()
        _forget_peak()
        clock, work = time.perf_counter(), time.process_time()
        yield
        own = stages.setdefault(
            name, dict.fromkeys(("seconds", "cpu_seconds", "compilations", "compile_seconds", "peak_bytes"), 0)
        )
        own["seconds"] += time.perf_counter() - clock
        own["cpu_seconds"] += time.process_time() - work
        own["compilations"] += len(compiled)
        own["compile_seconds"] += sum(compiled)
        own["peak_bytes"] = max(own["peak_bytes"], _peak())

    statistics = 0
    for where in passes:
        stats = None
        for batch in jax.random.randint(
            jax.random.key(1), (sizes.batches, sizes.sequences, sizes.tokens), 0, sizes.words
        ):
            with stage("collect"):
                stats = jax.block_until_ready(jp.calibration.collect(decoder, params, batch, stats=stats, where=where))
        assert stats is not None
        statistics = max(statistics, _bytes(stats))
        with stage("quantize"):
            small = jp.calibration.quantize(params, stats, 4, spec=SPEC, where=where)
            jax.block_until_ready(small)
        del small, stats
    return {"model_bytes": _bytes(params), "statistics_bytes": statistics, "stages": stages}


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _peak() -> int:
    """Of this process's resident set, which Linux counts in kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _forget_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


CASES: dict[str, Callable[[Sizes], dict[str, Any]]] = {
    "scan": lambda sizes: measured(sizes, True, [None]),
    "loop": lambda sizes: measured(sizes, False, [None]),
    "scan, in two passes": lambda sizes: measured(
        sizes, True, ["layers/down", ["layers/[qkvo]", "layers/up", "words"]]
    ),
}

if __name__ == "__main__":
    print(json.dumps(CASES[sys.argv[1]](SIZES[sys.argv[2]])))
