"""What data say of the leaves: ``--calibrate`` names a function that knows the network and some batches."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import calibration
from jaxprune.calibration import Statistics
from jaxprune.checkpoints import nested
from jaxprune.checkpoints.leaf import flat, paths
from jaxprune.cli import shared
from jaxprune.cli.recipe import Recipe

ABOUT = "function(params) -> (apply, batches), apply(params, *batch): codes are fitted to what the products see"


def params_of(wanted: Recipe) -> dict[str, Any]:
    """All leaves as a tree of dicts."""
    return nested({name: jnp.asarray(leaf.read()) for name, leaf in wanted.leaves.items()})


def statistics(text: str, params: Mapping[str, Any]) -> Statistics:
    """What the products of the network multiply the parameters with, on all batches.

    Raises:
      ValueError: the function gives something else.
    """
    made = shared.function(text)(params)
    try:
        apply, batches = made
        inputs = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{text} must return (apply, batches), got {str(made)[:60]}: {error}") from error
    if not callable(apply) or not inputs:
        raise ValueError(f"{text} must return a function and at least one batch, a tuple of its inputs after params")
    stats = None
    for number, batch in enumerate(inputs):
        stats = calibration.collect(apply, params, *batch, stats=stats, key=jax.random.key(number))
    assert stats is not None
    return stats


def fitted(wanted: Recipe, params: Mapping[str, Any], stats: Statistics, step: float | None) -> dict[str, Any]:
    """What stands for each chosen leaf, by name: codes of a step, else of the width and the sparsity of the recipe."""
    seen = {use.path for _, use in stats.uses if step is not None or not use.lookup}
    chosen = {path: name for name, path in paths(wanted.leaves).items() if name in wanted.treatments and path in seen}
    asked = {(said.get("bits"), said.get("sparsity"), said.get("n_of_m")) for said in wanted.treatments.values()}
    if len(asked) > 1 or any(said.keys() & {"codebook", "block_size"} for said in wanted.treatments.values()):
        raise ValueError("--calibrate fits all chosen leaves alike, to one --bits and one --sparsity or --n-of-m")
    ((bits, sparsity, pattern),) = asked
    where = lambda path, _: path in chosen  # noqa: E731
    if step is not None:
        if sparsity or pattern:
            raise ValueError("--calibrate with a goal finds the step of codes: leave --sparsity and --n-of-m out")
        new = calibration.encode(params, stats, step, where=where)
    elif sparsity or pattern:
        width = None if bits is None else round(bits)
        new, _ = calibration.prune(params, stats, sparsity or 0.0, pattern=pattern, bits=width, where=where)
    elif bits is not None:
        new = calibration.quantize(params, stats, round(bits), where=where)
    else:
        raise ValueError("--calibrate fits codes or masks: say --bits, --sparsity, --n-of-m or a goal")
    return {chosen[path]: leaf for path, leaf in flat(new).items() if path in chosen}
