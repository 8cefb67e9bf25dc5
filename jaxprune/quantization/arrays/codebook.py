"""Arrays of shared values: a table, and for each weight its place in it."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.base import Array
from jaxprune.kernels.sharding import automatic, explicit_spec
from jaxprune.quantization.arrays.protocol import describe


@partial(jax.tree_util.register_dataclass, data_fields=("codes", "centroids", "keeps_zeros"), meta_fields=("dtype",))
@dataclass(frozen=True, repr=False)
class CodebookArray:
    """An array of shared weights: ``centroids[codes]``.

    Attributes:
      codes: ``uint8`` up to 256 centroids, else ``uint16``, in the shape of the array.
      centroids: float32 ``(k,)``.
      keeps_zeros: bool scalar; whether code 0 stands for the weights that were exactly 0. It then decodes to 0 and
        takes no gradient, whatever its centroid is.
      dtype: dtype of the array, static.
    """

    codes: Array
    centroids: Array
    keeps_zeros: Array
    dtype: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.codes.shape

    def dense(self) -> Array:
        """``centroids[codes]``."""

        def table(codes: Array, centroids: Array, keeps_zeros: Array) -> Array:
            zero = keeps_zeros & (lax.iota(jnp.int32, centroids.size) == 0)
            centroids = jnp.where(zero, 0.0, centroids)
            # In float32 up to here and back: the transpose of the gather is the sum over each cluster.
            return centroids.at[codes.astype(jnp.int32)].get(mode="promise_in_bounds").astype(self.dtype)

        out = explicit_spec(self.codes)
        return automatic(table, jnp.asarray(self.codes), self.centroids, self.keeps_zeros, out=out)

    def __repr__(self) -> str:
        return describe(self, f"k={getattr(self.centroids, 'size', '?')}")
