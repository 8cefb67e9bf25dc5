"""Arrays as the indices of a trellis quantizer."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.base import Array
from jaxprune.kernels import rotation, viterbi
from jaxprune.quantization.arrays.protocol import describe


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("indices", "step", "basis"),
    meta_fields=("states", "zero", "dtype"),
)
@dataclass(frozen=True, repr=False)
class TrellisArray:
    """An array as indices of a trellis quantizer.

    Entry i in C order is number i // lanes of sequence i % lanes; there are ceil(size / 512) of them.

    Attributes:
      indices: int8, int16 or int32 in the shape of the array. Index k stands for (2 k + 1/2) * step, with a sign that
        the indices before it in its sequence decide.
      step: float32 scalar.
      basis: int8 [columns, columns]: rows of numbers are to be multiplied by it, and by 2**-6 (or what
        :func:`jaxprune.kernels.rotation.exponent` says). Empty, [0, 0], if not.
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

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that was quantized."""
        return self.indices.shape

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
            numbers = rotation.back(numbers.reshape(-1, columns), self.basis).reshape(shape)
            half = half * 2.0 ** -rotation.exponent(columns)
        return (numbers * half).astype(self.dtype)

    def __repr__(self) -> str:
        return describe(self, f"states={self.states}")
