"""Qwix's GPTQ on the statistics of ``jaxprune.calibration``, layer by layer."""

import time
from typing import Any

import jax
import jax.numpy as jnp

import jaxprune as jp
from benchmarks._report import optional


def gptq(params: Any, stats: jp.calibration.Statistics) -> tuple[Any, float] | None:
    """All products at 4 bits, a scale a channel, and the seconds; None where Qwix is not installed."""
    core, arrays = optional("qwix.contrib.gptq_core"), optional("qwix._src.core.qarray")
    if core is None or arrays is None:
        return None
    how = arrays.HowToQuantize(qtype=jnp.int4, channelwise_axes=(0,))
    paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    leaves = {"/".join(str(key.key) for key in path): leaf for path, leaf in paths}
    begin = time.perf_counter()
    for name, use in stats.uses:
        if not use.lookup:
            weights = use.matrices(leaves[use.path])[0]
            codes, _ = core.quantize_weight(weights.T, stats.gradients[name].weighted[0], how)  # type: ignore[index]
            leaves[use.path] = use.leaf(arrays.dequantize(codes).T[None], leaves[use.path])
    jax.block_until_ready(leaves)
    return treedef.unflatten(leaves.values()), time.perf_counter() - begin
