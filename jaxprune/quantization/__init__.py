"""Fewer bits a weight: uniform, fixed-point, codebook, rate-distortion and trellis quantization."""

from jaxprune.kernels.ranges import mean_squared_error, percentile
from jaxprune.quantization.integers import (
    choose_qparams,
    dequantize,
    fake_quant,
    fixed_point,
    fixed_point_codes,
    quantize,
)

__all__ = [
    "choose_qparams",
    "dequantize",
    "fake_quant",
    "fixed_point",
    "fixed_point_codes",
    "mean_squared_error",
    "percentile",
    "quantize",
]
