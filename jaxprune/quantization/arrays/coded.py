"""Arrays as codes: integers on a uniform grid, places in a table of shared values, indices of a trellis quantizer.

And whole numbers times steps of their rows and columns, which are powers of two to an eighth of an octave.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.base import Array, QuantSpec
from jaxprune.kernels import clustering, uniform, viterbi
from jaxprune.kernels.rounding import power_of_two
from jaxprune.kernels.sharding import automatic, explicit_spec
from jaxprune.quantization.arrays.protocol import CodedArray, stored

PARTS = 8  # of an octave
_MANTISSAS = np.exp2(np.arange(PARTS) / PARTS).astype(np.float32)


@stored
class QArray(CodedArray):
    """A quantized array: ``(codes - zero_point) * scale``.

    Attributes:
      codes: integers in the shape of the array; ``int8`` (``uint8`` if asymmetric) up to 8 bits, 16-bit above.
      scale: float32 step, as ``QParams.scale``.
      zero_point: int32, the code of 0.0; zeros when symmetric.
      bits: width of a code, static.
      dtype: dtype of the array that was quantized, static.
      spec: the quantizer's spec, static.
    """

    codes: Array
    scale: Array
    zero_point: Array
    bits: int
    dtype: Any
    spec: QuantSpec

    def dense(self) -> Array:
        """``(codes - zero_point) * scale``, with one rounding to float32 and one to the dtype."""
        return uniform.dequantize(self.codes, self.scale, self.zero_point, self.bits, self.dtype, self.spec)


@stored
class CodebookArray(CodedArray):
    """An array of shared weights: ``centroids[codes]``.

    Attributes:
      codes: ``uint8`` up to 256 centroids, else ``uint16``, in the shape of the array.
      centroids: float32 ``(k,)``; or ``(..., k)``, with the rank of the array and one more, and its length along the
        axes that keep tables of their own, 1 along others.
      keeps_zeros: bool ``()``, or ``(...)`` as of the centroids; whether code 0 stands for the weights that were
        exactly 0. It then decodes to 0 and takes no gradient, whatever its centroid is.
      dtype: dtype of the array, static.
    """

    codes: Array
    centroids: Array
    keeps_zeros: Array
    dtype: Any

    def dense(self) -> Array:
        """``centroids[codes]``."""

        def table(codes: Array, centroids: Array, keeps_zeros: Array) -> Array:
            k = centroids.shape[-1]
            first = jnp.where(keeps_zeros, 0.0, centroids[..., 0])
            centroids = centroids.at[..., 0].set(first).reshape(-1)
            # In float32 up to here and back: the transpose of the gather is the sum over each cluster.
            places = clustering.places(codes, keeps_zeros.shape, k)
            return centroids.at[places].get(mode="promise_in_bounds").astype(self.dtype)

        parts = map(jnp.asarray, (self.codes, self.centroids, self.keeps_zeros))
        return automatic(table, *parts, out=explicit_spec(self.codes))


@stored
class TrellisArray(CodedArray):
    """An array as indices of a trellis quantizer.

    Entry i in C order is number i // lanes of sequence i % lanes; there are ceil(size / 512) of them.

    Attributes:
      indices: int8, int16 or int32 in the shape of the array. Index k stands for (2 k + 1/2) * step, with a sign that
        the indices before it in its sequence decide.
      step: float32 scalar.
      basis: int8 [columns, columns]: rows of numbers are to be multiplied by it, and by 2**-6 (or what
        :func:`jaxprune.kernels.viterbi.basis_exponent` says). Empty, [0, 0], if not.
      states: of the trellis, static.
      zero: the index that stands for 0.0, static; ``None`` if none does. If it is 0, k stands for what k - 1 would
        otherwise, for all k above it.
      dtype: dtype of the array that was quantized, static.
    """

    indices: Array
    step: Array
    basis: Array
    states: int
    zero: int | None
    dtype: Any

    def dense(self) -> Array:
        """Whole numbers times half of ``step``, rounded once to float32 and once to the dtype: alike everywhere."""
        shape, index = self.shape, viterbi.to_lanes(jnp.asarray(self.indices))
        kept = None if self.zero is None else index != self.zero
        if self.zero == 0:
            index = index - (index > 0).astype(index.dtype)
        numbers = viterbi.from_lanes(viterbi.numbers(index, self.states, kept), shape)
        half = self.step * 0.5
        if self.basis.size:
            columns = len(self.basis)
            numbers = viterbi.rotated_back(numbers.reshape(-1, columns), self.basis).reshape(shape)
            half = half * 2.0 ** -viterbi.basis_exponent(columns)
        return (numbers * half).astype(self.dtype)


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
