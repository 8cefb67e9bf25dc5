"""What Linear, Conv, Embedding and norms of PyTorch are called in Flax, and how their axes lie there."""

from collections.abc import Mapping

import jax
import numpy as np

from jaxprune import tree
from jaxprune.base import Layout
from jaxprune.checkpoints.leaf import CheckpointError, Leaf
from jaxprune.layout import find_axes, sure

_WEIGHT = "weight"


def as_flax(leaves: Mapping[str, Leaf], layout: Layout = None) -> dict[str, Leaf]:
    """Leaves by the names, and with the axes, of Flax; nothing is read.

    A ``weight`` of rank 2 and more is a ``kernel`` (window, inputs, outputs), or an ``embedding`` as it is; of rank 1
    it is a ``scale``. All else stays: a ``bias`` is called so in both, and other names have no rule.

    Raises:
      ValueError: no rule knows the axes of a weight, such as of a transposed convolution, and ``layout`` does not say;
        two leaves would have one name.
    """
    flat = tree.flatten({name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in leaves.items()})
    every = flat._replace(chosen=tuple(range(len(flat.paths))))
    known = dict(zip(flat.paths, find_axes(every, layout), strict=True))
    found: dict[str, Leaf] = {}
    for name, leaf in leaves.items():
        if name.endswith(_WEIGHT) and name[: -len(_WEIGHT)][-1:] in ("", ".", "/"):
            axes = sure(name, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), known[name])
            order = tuple(range(len(leaf.shape))) if axes.lookup else (*axes.batch, *axes.inputs, *axes.outputs)
            new = "scale" if len(order) < 2 else "embedding" if axes.lookup else "kernel"
            leaf = _turned(leaf, name[: -len(_WEIGHT)] + new, order)
        if leaf.name in found:
            raise CheckpointError(f"two leaves would be called {leaf.name!r}: is this a checkpoint of PyTorch?")
        found[leaf.name] = leaf
    return found


def _turned(leaf: Leaf, name: str, order: tuple[int, ...]) -> Leaf:
    """The leaf by another name, its axes in another order."""
    shape = tuple(leaf.shape[i] for i in order)
    return Leaf(name, shape, leaf.dtype, lambda: np.ascontiguousarray(leaf.read().transpose(order)).reshape(shape))
