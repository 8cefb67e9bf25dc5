# pyright: strict, reportUnnecessaryTypeIgnoreComment=true, reportMissingTypeStubs=false, reportUnknownMemberType=false
"""What a type checker makes of a program that uses the library: read by pyright, never run.

A line with an ignored error is a mistake that a user's checker has to find.
"""

from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp

params = {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}

pruned = jp.prune(params, 0.5)
assert_type(pruned, jp.Pruned)
new_params, masks = jp.prune(params, jnp.float32(0.5), scope="leaf", where=["Dense_*", "!head/*"])
jp.prune(params, 0.5, scope="layer")  # pyright: ignore[reportArgumentType]
jp.prune(params, 0.5, "leaf")  # pyright: ignore[reportCallIssue]
jp.threshold_prune(params, 0.1, where=lambda path, leaf: path.endswith("kernel"))
jp.threshold_prune(params)  # pyright: ignore[reportCallIssue]

spec = jp.QuantSpec(axis=-1, calibration=jp.quantization.mean_squared_error())
codes = jp.quantize(params, 4, spec=spec)
kernel = jp.quantize(params["kernel"], 4)
if isinstance(kernel, jp.QArray):
    assert_type(kernel.codes, jax.Array)
    assert_type(kernel.bits, int)
spec.bits = 4  # pyright: ignore[reportAttributeAccessIssue]

assert_type(jp.masks.sparsity_of(masks, params), jax.Array)
assert_type(jp.report(params, codes, masks=masks), jp.reports.Report)
assert_type(jp.report(params, codes).to_dict(), dict[str, Any])

settings = jp.grid(sparsity=[0.0, 0.5], bits=range(2, 9))
assert_type(settings, dict[str, np.ndarray])
assert_type(jp.pareto_front({"bytes": [1, 2], "accuracy": [0.5, 0.6]}, cost="bytes", metric="accuracy"), np.ndarray)

compressed = jp.compress(params, masks=masks, bits=4)
assert_type(compressed, jp.Compressed)
assert_type(compressed.nbytes, int)
assert_type(jp.save("weights.jp", compressed), int)

schedule = jp.schedules.cubic(0.0, 0.9, transition_steps=1000)
optimizer = jp.training.gradual_pruning(optax.adam(1e-3), schedule, every=100)
assert_type(optimizer, optax.GradientTransformationExtraArgs)
state: Any = optimizer.init(params)
held = jp.training.masks_of(state)
jp.training.gradual_prune(optax.adam(1e-3), schedule)  # pyright: ignore[reportAttributeAccessIssue]
