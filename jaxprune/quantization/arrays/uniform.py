"""Arrays as integer codes on a uniform grid."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from jaxprune.base import Array, QuantSpec
from jaxprune.kernels import uniform
from jaxprune.quantization.arrays.protocol import describe


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("codes", "scale", "zero_point"),
    meta_fields=("bits", "dtype", "spec"),
)
@dataclass(frozen=True, repr=False)
class QArray:
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

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that was quantized."""
        return self.codes.shape

    def dense(self) -> Array:
        """``(codes - zero_point) * scale``, with one rounding to float32 and one to the dtype."""
        return uniform.dequantize(self.codes, self.scale, self.zero_point, self.bits, self.dtype, self.spec)

    def __repr__(self) -> str:
        return describe(self, f"bits={self.bits}")
