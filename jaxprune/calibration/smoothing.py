"""Outliers of activations, taken into the weights that meet them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxprune import settings
from jaxprune.base import Array, Params, Setting, Where
from jaxprune.calibration import leaves, producers
from jaxprune.calibration.statistics import Statistics
from jaxprune.calibration.views import Use
from jaxprune.kernels.rounding import divide


class Smoothed(NamedTuple):
    """Parameters of the same function.

    Attributes:
      params: where inputs are smaller, and weights larger by as much.
      factors: for the path of each leaf that takes part, what its inputs would be divided by, float32 [L, K].
      into: for the paths of those that were, the parameters that make their inputs. Others are as they were: their
        inputs have to be divided in the function, and the leaf multiplied, by whoever writes it.
    """

    params: Params
    factors: dict[str, Array]
    into: dict[str, tuple[str, ...]]


def smooth(
    apply: Callable[..., Any],
    params: Params,
    stats: Statistics,
    *inputs: Any,
    alpha: Setting = 0.5,
    where: Where = None,
) -> Smoothed:
    """Makes the largest inputs of products smaller, and their weights larger: the same function, easier to quantize.

    SmoothQuant, Xiao et al. 2022 (arXiv:2211.10438), equation 4: input j of a product is divided by
    ``s_j = max(abs(x_j))**alpha / max(abs(w_j))**(1 - alpha)`` and its weights are multiplied by it; 1 where either
    largest number is 0. Leaves that take the same inputs share s; for a convolution, j is a channel. Inputs are divided
    in the parameters that make them: the scale and bias of a norm, or the layer before a relu. These are found in the
    traced program, and changed only where nothing else takes what they make, so that outputs stay as they are up to
    rounding.

    Args:
      apply: ``(params, *inputs) -> outputs``, as for :func:`collect`.
      params: any pytree.
      stats: of :func:`collect`; ``want=()`` will do.
      inputs: a batch of data, or its shapes.
      alpha: traced, in [0, 1]: how much of the outliers goes into the weights.
      where: whose leaves; by default all that the statistics know as factors of products.

    Returns:
      ``Smoothed(params, factors, into)``.

    Raises:
      ValueError: no statistics of a chosen leaf, of no data, or of other parameters; ``alpha`` out of range.

    >>> from jaxprune.calibration import collect
    >>> params, x = {"scale": jnp.ones(2), "w": jnp.ones((2, 1))}, jnp.array([[4.0, 1.0]])
    >>> def function(p, x):
    ...     return x * p["scale"] @ p["w"]
    >>> small = smooth(function, params, collect(function, params, x), x)
    >>> small.params["scale"].tolist(), small.params["w"].tolist(), small.into
    ([0.5, 1.0], [[2.0], [1.0]], {'w': ('scale',)})
    """
    alpha = settings.check_setting(alpha, "alpha", 0, 1)
    chosen = leaves.choose(params, stats, where)
    before = dict(zip(chosen.paths, chosen.leaves, strict=True))
    uses = {path: use for path in chosen.names for _, use in stats.of(path) if len(stats.of(path)) == 1}
    alike: dict[str, list[str]] = {}
    for path, use in uses.items():
        alike.setdefault(use.source, []).append(path)
    factors = {
        path: _factor(before, stats, [uses[one] for one in alike[use.source]], alpha) for path, use in uses.items()
    }
    after, into = dict(before), {}
    for takers, makers, size in producers.find(apply, params, inputs):
        if {*takers} <= uses.keys():
            each = _factor(before, stats, [uses[path] for path in takers], alpha, size)
            for path in takers:
                factor = jnp.repeat(each, uses[path].shape[1] // size, 1)  # a window has channels before places
                matrices = uses[path].matrices(after[path]) * factor[..., None]
                after[path] = uses[path].leaf(matrices, after[path]).astype(after[path].dtype)
                factors[path], into[path] = factor, tuple(maker for maker, _ in makers)
            for path, axis in makers:
                wide = jnp.expand_dims(each[0], [i for i in range(after[path].ndim) if i != axis])
                after[path] = divide(after[path].astype(jnp.float32), wide).astype(after[path].dtype)
    everything = chosen._replace(chosen=tuple(range(len(chosen.leaves))))
    return Smoothed(everything.replace(list(after.values())), factors, into)


def _factor(
    values: dict[str, Any], stats: Statistics, uses: Sequence[Use], alpha: Any, size: int | None = None
) -> Array:
    """What the inputs that these leaves share are divided by, [L, K]; or the ``size`` channels of windows."""

    def largest(rows: Array) -> Array:
        return rows.reshape(len(rows), size or rows.shape[1], -1).max(2)

    weights = jnp.stack([largest(jnp.abs(use.matrices(values[use.path])).max(2)) for use in uses]).max(0)
    data: list[Array] = [stats.inputs[use.source].largest for use in uses]  # type: ignore[union-attr]
    inputs = jnp.stack([largest(one) for one in data]).max(0)
    factor = divide(inputs**alpha, weights ** (1 - alpha))
    return jnp.where((inputs > 0) & (weights > 0) & (factor > 0) & jnp.isfinite(factor), factor, 1)
