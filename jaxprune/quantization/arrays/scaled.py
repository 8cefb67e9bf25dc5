"""Arrays as whole numbers times steps of their rows and columns, which are powers of two to an eighth of an octave."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.base import Array
from jaxprune.kernels.rounding import power_of_two
from jaxprune.quantization.arrays.protocol import CodedArray, stored

PARTS = 8  # of an octave
_MANTISSAS = np.exp2(np.arange(PARTS) / PARTS).astype(np.float32)


@stored
class ScaledArray(CodedArray):
    """An array as ``codes * (step * 2**((rows + columns) / 8))``.

    Attributes:
      codes: int8, int16 or int32 in the shape of the array.
      step: float32 scalar.
      rows, columns: int8, each broadcasts to the codes.
      dtype: dtype of the array that was quantized, static.
    """

    codes: Array
    step: Array
    rows: Array
    columns: Array
    dtype: Any

    def dense(self) -> Array:
        """The array, with one rounding for each of the two factors and one to the dtype: alike everywhere."""
        steps = self.step * octaves(self.rows.astype(jnp.int32) + self.columns.astype(jnp.int32))
        return (self.codes.astype(jnp.float32) * steps).astype(self.dtype)


def octaves(exponents: Array) -> Array:
    """``2**(exponents / 8)``, float32, the same bits everywhere."""
    return jnp.asarray(_MANTISSAS)[exponents % PARTS] * power_of_two(exponents // PARTS)
