"""Biases that make up for what compression does to the mean of a layer's outputs."""

import jax.numpy as jnp
import numpy as np

from jaxprune import tree
from jaxprune.base import Array, Params, Where
from jaxprune.calibration import leaves
from jaxprune.calibration.statistics import Moments, Statistics
from jaxprune.kernels.rounding import divide
from jaxprune.layout import bias_beside


def correct_biases(small: Params, params: Params, stats: Statistics, *, where: Where = None) -> Params:
    """Adds to the bias beside each kernel what its outputs have lost in the mean: ``mean(x) (W - W_small)``.

    Nagel et al. 2019 (arXiv:1906.04721), section 4.2, with means of the data.

    Args:
      small: the compressed parameters, dense: as :func:`jaxprune.fake_quant` or masks leave them.
      params: the original ones.
      stats: of :func:`collect` on the original parameters; ``want=()`` will do.
      where: whose biases: kernels; by default all that the statistics know. Those without a bias are left alone.

    Returns:
      ``small`` with new biases, in its structure and dtypes.

    Raises:
      ValueError: the trees differ in structure; a bias that is not of the outputs beside it; and as :func:`prune`.

    >>> from jaxprune.calibration import collect
    >>> params = {"kernel": jnp.array([[0.5], [0.25]]), "bias": jnp.zeros(1)}
    >>> stats = collect(lambda p, x: x @ p["kernel"] + p["bias"], params, jnp.array([[1.0, 2.0], [3.0, 2.0]]))
    >>> correct_biases({**params, "kernel": jnp.array([[1.0], [0.0]])}, params, stats)["bias"].tolist()
    [-0.5]
    """
    chosen = leaves.choose(params, stats, where)
    compressed = tree.flatten(small)
    tree.same_paths(chosen, compressed, "params", "small")
    new = list(compressed.leaves)
    for path, i in zip(chosen.names, chosen.chosen, strict=True):
        beside = bias_beside(path)
        if beside in compressed.paths:
            lost = chosen.leaves[i] - compressed.leaves[i].astype(chosen.leaves[i].dtype)
            place = compressed.paths.index(beside)
            new[place] = _moved(beside, new[place], _mean_loss(stats, path, lost))
    return compressed._replace(chosen=tuple(range(len(new)))).replace(new)


def _mean_loss(stats: Statistics, path: str, lost: Array) -> Array:
    """The mean of what the outputs lose, over the axes of the leaf that are no inputs."""
    total, inputs = jnp.zeros(lost.shape), ()
    for _, use in stats.of(path):
        found = stats.inputs[use.source]
        if isinstance(found, Moments):
            mean = divide(found.total, jnp.maximum(found.count, np.uint32(1)).astype(jnp.float32)[:, None])
            total += use.leaf(mean[..., None] * use.matrices(lost), lost)
            inputs = use.axes[1] if use.axes else ()
    return total.sum(inputs)


def _moved(path: str, bias: Array, by: Array) -> Array:
    if bias.size != by.size:
        raise ValueError(f"the bias {tree.show(path)} has shape {bias.shape}, but the outputs beside it {by.shape}")
    return (bias.astype(jnp.float32) + by.reshape(bias.shape)).astype(bias.dtype)
