"""What a unit's weights look like: the entropy of their histogram, their fraction of zeros. Kernels on one array.

Traced, and written for float32, into which narrower floats widen exactly. A unit is an index along the outputs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Array
from jaxprune.kernels.float_keys import is_zero
from jaxprune.kernels.histogram import histogram
from jaxprune.kernels.rounding import divide, normalizer
from jaxprune.kernels.sharding import automatic
from jaxprune.layout import Axes


def by_units(kernel: Callable[[Array], Array], w: Array, axes: Axes) -> Array:
    """``kernel``, which makes a number of each unit of a matrix (weights, units), on each batch of ``w``."""
    batch, inputs, outputs, _ = axes
    sizes = [math.prod(w.shape[i] for i in part) for part in (batch, inputs, outputs)][0 if batch else 1 :]

    def rows(w: Array) -> Array:
        found = w.transpose(*batch, *inputs, *outputs).reshape(sizes)
        found = jax.vmap(kernel)(found) if batch else kernel(found)
        kept = [w.shape[i] for i in (*batch, *outputs)]
        places = sorted(range(len(kept)), key=lambda i: (*batch, *outputs)[i])
        return found.reshape(kept).transpose(places).reshape(axes.unit_shape(w.shape))

    return automatic(rows, w)


def entropy(w: Array, axes: Axes, bins: int) -> Array:
    """Entropy in bits of each unit's histogram, over equal bins between the finite ends of ``w`` (of each batch)."""
    return by_units(partial(_entropies, bins=bins), jax.lax.stop_gradient(w), axes)


def _entropies(w: Array, bins: int) -> Array:
    counts = _histograms(w, bins)
    total = jnp.maximum(jnp.sum(counts, axis=-1, keepdims=True, dtype=jnp.uint32), 1)
    p = divide(counts.astype(jnp.float32), total.astype(jnp.float32))
    # log2 by parts, exact at powers of two: jnp.log2 alone is an ulp off at some of them.
    mantissa, exponent = jnp.frexp(jnp.where(p == 0, 1.0, p))
    return jnp.sum(0.0 - p * (jnp.log2(2 * mantissa) + (exponent - 1).astype(p.dtype)), axis=-1)


def sparsity(w: Array, axes: Axes) -> Array:
    """Fraction of zeros in each unit."""
    zeros = jnp.sum(is_zero(w), axis=axes.inputs, keepdims=True, dtype=jnp.int32)
    return divide(zeros.astype(jnp.float32), float(max(math.prod(w.shape[i] for i in axes.inputs), 1)))


def _histograms(w: Array, bins: int) -> Array:
    """Histogram of each unit over equal bins between the finite ends of ``w``: integers (C, bins)."""
    finite = jnp.isfinite(w)
    low = jnp.min(w, where=finite, initial=jnp.inf).astype(jnp.float32)
    high = jnp.max(w, where=finite, initial=-jnp.inf).astype(jnp.float32)
    low, high = jnp.where(low <= high, low, 0.0), jnp.where(low <= high, high, 0.0)
    scale = normalizer(jnp.maximum(-low, high))  # so that the width of the range cannot overflow
    ends = (low * scale, high * scale, scale)
    binning = _UnitBin(w.shape[-1], bins)
    by_scatter, by_pass = partial(_count_by_scatter, binning), partial(_count_by_pass, binning)
    return jax.lax.platform_dependent(w, ends, tpu=by_pass, default=by_scatter)


def _count_by_scatter(binning: "_UnitBin", w: Array, ends: tuple[Array, ...]) -> Array:
    return histogram(w, ends, binning, binning.units * binning.bins).reshape(binning.units, binning.bins)


def _count_by_pass(binning: "_UnitBin", w: Array, ends: tuple[Array, ...]) -> Array:
    """The same counts by a pass over ``w`` for each bin, for hardware where scatters are slow."""
    bin_, leading = binning.bin_of(w, *ends), tuple(range(w.ndim - 1))
    counts = jax.lax.map(lambda b: jnp.sum(bin_ == b, leading, dtype=jnp.uint32), jnp.arange(binning.bins))
    return counts.reshape(binning.bins, binning.units).T


@dataclass(frozen=True)
class _UnitBin:
    """Sends a weight to (its unit, its bin); beyond all bins if it is not finite."""

    units: int
    bins: int

    def bin_of(self, values: Array, low: Array, high: Array, scale: Array) -> Array:
        finite = jnp.isfinite(values)
        above = jnp.where(finite, values.astype(jnp.float32) * scale, low) - low
        steps = divide(above, jnp.where(low < high, high - low, 1.0)) * self.bins
        return jnp.where(finite, jnp.minimum(steps.astype(jnp.int32), self.bins - 1), self.bins)

    def __call__(self, values: Array, index: Array, *ends: Array) -> Array:
        bin_ = self.bin_of(values, *ends).astype(jnp.uint32)
        unit = index % np.uint32(self.units)
        return jnp.where(bin_ < self.bins, unit * np.uint32(self.bins) + bin_, np.uint32(self.units * self.bins))
