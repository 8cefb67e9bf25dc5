"""How Qwix and Keras compress a matrix by data, on the statistics of ``jaxprune.calibration``, layer by layer."""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxprune as jp
from benchmarks._report import optional
from examples import minilm


class Inputs(NamedTuple):
    """What is known of a layer's inputs: second moments [K, K], and the mean and the largest magnitude of each, [K]."""

    gram: jax.Array
    mean: jax.Array
    largest: jax.Array


#: A matrix [K, N], what is known of its inputs, and a width, to the matrix that is multiplied with instead.
Method = Callable[[jax.Array, Inputs, int], jax.Array]


def methods() -> Iterator[tuple[str, tuple[int, ...], Method]]:
    """Those that are installed, by name, and the widths that they have. Scales are of 128 numbers."""
    if optional("qwix.contrib.gptq_core"):
        yield "Qwix's GPTQ", (4,), _qwix_gptq
        yield "Qwix's AWQ", (4, 3), _qwix_awq
    os.environ.setdefault("KERAS_BACKEND", "jax")
    if optional("keras.src.quantizers.gptq"):
        yield "Keras's GPTQ", (4, 3), _keras_gptq
        yield "Keras's AWQ", (4,), _keras_awq


def compressed(
    method: Method, bits: int, params: Any, stats: jp.calibration.Statistics, means: dict[str, jax.Array]
) -> tuple[Any, float]:
    """All products' matrices by a method, and the seconds."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    leaves = {"/".join(str(key.key) for key in path): leaf for path, leaf in paths}
    begin = time.perf_counter()
    for name, use in stats.uses:
        if not use.lookup:
            new = method(use.matrices(leaves[use.path])[0], of_layer(stats, name, use, means), bits)
            leaves[use.path] = use.leaf(new[None], leaves[use.path])
    jax.block_until_ready(leaves)
    return treedef.unflatten(leaves.values()), time.perf_counter() - begin


def changed_by_data(
    method: Method, bits: int, params: Any, stats: jp.calibration.Statistics, means: dict[str, jax.Array]
) -> float:
    """The share of the numbers of a matrix that would be others if all inputs were alike and unrelated."""
    name, use = next((name, use) for name, use in stats.uses if use.path.endswith("0/out/kernel"))
    weights = use.matrices(params["layer_0"]["out"]["kernel"])[0]
    alike = Inputs(jnp.eye(len(weights)), jnp.ones(len(weights)), jnp.ones(len(weights)))
    new, other = (method(weights, inputs, bits) for inputs in (of_layer(stats, name, use, means), alike))
    return float((~jnp.isclose(new, other, rtol=1e-4, atol=1e-6)).mean())


def of_layer(stats: jp.calibration.Statistics, name: str, use: Any, means: dict[str, jax.Array]) -> Inputs:
    """What is known of the inputs of a use."""
    gram, largest = stats.gradients[name].weighted, stats.inputs[use.source].largest  # type: ignore[union-attr]
    return Inputs(gram[0], means[use.path], largest[0])  # type: ignore[index]


def mean_magnitudes(params: Any, data: Any) -> dict[str, jax.Array]:
    """The mean magnitude of each input of each dense layer, without padding: what statistics do not hold."""
    totals: dict[str, Any] = {}

    def look(layer: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, nn.Dense | nn.DenseGeneral):
            path = "/".join((*context.module.path, "kernel"))
            totals[path] = totals.get(path, 0) + jnp.abs(args[0])[batch.kept].sum(0)
        return layer(*args, **kwargs)

    with nn.intercept_methods(look):
        for batch in data:
            minilm.apply(params, batch.ids, batch.kept)
    rows = sum(int(batch.kept.sum()) for batch in data)
    return {path: total / rows for path, total in totals.items()}


def _qwix(bits: int) -> Any:
    return optional("qwix._src.core.qarray").HowToQuantize(
        qtype=f"int{bits}", channelwise_axes=(0,), tiled_axes={1: 128}
    )


def _qwix_gptq(weights: jax.Array, inputs: Inputs, bits: int) -> jax.Array:
    codes, _ = optional("qwix.contrib.gptq_core").quantize_weight(weights.T, inputs.gram, _qwix(bits))
    return optional("qwix._src.core.qarray").dequantize(codes).T


def _qwix_awq(weights: jax.Array, inputs: Inputs, bits: int) -> jax.Array:
    codes, scales = optional("qwix.contrib.awq_core").quantize_weight(weights.T, inputs.mean, _qwix(bits))
    return (optional("qwix._src.core.qarray").dequantize(codes) / scales).T


def _keras_gptq(weights: jax.Array, inputs: Inputs, bits: int) -> jax.Array:
    keras = optional("keras")
    config = keras.quantizers.GPTQConfig(
        dataset=None, tokenizer=None, weight_bits=bits, group_size=128, activation_order=True
    )
    layer = _keras_layer(weights, "gptq", config)
    solver = optional("keras.src.quantizers.gptq").GPTQ(layer, config)
    solver.hessian = inputs.gram
    solver.quantize_and_correct_layer()
    return layer(jnp.eye(len(weights)))


def _keras_awq(weights: jax.Array, inputs: Inputs, bits: int) -> jax.Array:
    config = optional("keras").quantizers.AWQConfig(dataset=None, tokenizer=None, weight_bits=bits, group_size=128)
    layer = _keras_layer(weights, "awq", config)
    solver = optional("keras.src.quantizers.awq").AWQ(layer, config)
    solver.update_activation_magnitudes(inputs.largest[None])
    solver.quantize_layer()
    return layer(jnp.eye(len(weights)))


def _keras_layer(weights: jax.Array, mode: str, config: Any) -> Any:
    layer = optional("keras").layers.Dense(weights.shape[1], use_bias=False)
    layer.build((None, len(weights)))
    layer.kernel.assign(weights)
    layer.quantize(mode, config=config)
    return layer
