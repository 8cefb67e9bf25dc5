"""What a recipe does to leaves, one at a time: masks first, then codes."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune import masks
from jaxprune.base import QuantSpec
from jaxprune.checkpoints import Leaf, compressed, ranking
from jaxprune.cli.recipe import Recipe, Treatment
from jaxprune.files import Compressed, compress
from jaxprune.host import in_parallel

_TOGETHER = ("rd", "trellis")  # quantizers that choose one step for all their leaves


def pruning(leaves: Mapping[str, Leaf], recipe: Recipe) -> dict[str, ranking.Cut]:
    """Where each leaf is cut that has a sparsity; leaves of one section are ranked together if the scope is global."""
    groups: dict[tuple[Any, float], dict[str, Leaf]] = {}
    for name in compressed.tree_order(recipe.treatments):
        treatment = recipe.treatments[name]
        if treatment.sparsity is not None:
            key = treatment.section if recipe.scope == "global" else name
            groups.setdefault((key, treatment.sparsity), {})[name] = leaves[name]
    found: dict[str, ranking.Cut] = {}
    for (_, sparsity), group in groups.items():
        found |= ranking.cuts(group, sparsity)
    return found


def masked(array: np.ndarray, name: str, treatment: Treatment, cut: ranking.Cut | None) -> np.ndarray:
    """The array with 0 where the treatment removes weights."""
    if cut is not None:
        return np.where(ranking.mask(array, cut), array, np.zeros((), array.dtype))
    if treatment.n_of_m is not None:
        scores = {name: np.abs(array.astype(np.float32))}
        kept = masks.n_of_m(scores, *treatment.n_of_m, axis=treatment.n_of_m_axis, where=lambda *_: True)
        return np.where(np.asarray(kept[name]), array, np.zeros((), array.dtype))
    return array


def coded(leaves: Mapping[str, Leaf], recipe: Recipe, progress: bool) -> Compressed:
    """All leaves, those of the recipe with its losses, coded one by one; their arrays are never in memory together."""
    cuts = pruning(leaves, recipe)
    order = compressed.tree_order(leaves)

    def array_of(name: str) -> np.ndarray:
        treatment = recipe.treatments.get(name)
        array = leaves[name].read()
        return array if treatment is None else masked(array, name, treatment, cuts.get(name))

    def alone(name: str) -> tuple[str, Compressed]:
        return name, compressed.code(array_of(name), name, **_options(recipe.treatments.get(name), recipe.side))

    together: dict[Treatment, list[str]] = {}
    for name in order:
        treatment = recipe.treatments.get(name)
        if treatment is not None and treatment.bits is not None and treatment.quantizer in _TOGETHER:
            together.setdefault(Treatment(bits=treatment.bits, quantizer=treatment.quantizer), []).append(name)
    parts: list[tuple[str, Compressed]] = []
    for treatment, some in together.items():
        tree = compressed.nested_paths({name: array_of(name) for name in some})
        group = compress(tree, **_options(treatment, recipe.side))
        parts += [(name, group) for name in some]
    rest = [name for name in order if name not in dict(parts)]
    return compressed.assemble(order, parts + in_parallel(alone, rest, "leaves", progress))


def _options(treatment: Treatment | None, side: str | None) -> dict[str, Any]:
    """What :func:`jaxprune.compress` is told; every leaf that it is given is meant, or none."""
    options: dict[str, Any] = {"side": side, "where": lambda *_: treatment is not None}
    if treatment is None or (treatment.codebook is None and treatment.bits is None):
        return options
    if treatment.codebook is not None:
        return options | {"codebook": treatment.codebook}
    spec = QuantSpec(axis=treatment.axis, block_size=treatment.block_size)
    quantizer = spec if treatment.quantizer == "uniform" else treatment.quantizer
    return options | {"bits": treatment.bits, "quantizer": quantizer}


def as_jax(array: np.ndarray) -> Any:
    """In a dtype that masks and quantizers take: floats of 16 or 32 bits."""
    wide = array.dtype.name not in ("float16", "bfloat16", "float32")
    return jnp.asarray(array.astype(np.float32) if wide else array)
