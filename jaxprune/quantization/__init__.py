"""Fewer bits a weight: uniform, fixed-point, codebook, rate-distortion and trellis quantization, and N:M storage."""

from jaxprune.quantization import codebook, rate_distortion, trellis
from jaxprune.quantization.arrays.bcoo import to_bcoo
from jaxprune.quantization.arrays.n_of_m import to_n_of_m
from jaxprune.quantization.arrays.packed import pack, unpack
from jaxprune.quantization.arrays.protocol import dequantize
from jaxprune.quantization.integers import (
    choose_qparams,
    fake_quant,
    fixed_point,
    fixed_point_codes,
    quantize,
)
from jaxprune.quantization.ranges import mean_squared_error, percentile

__all__ = [
    "choose_qparams",
    "codebook",
    "dequantize",
    "fake_quant",
    "fixed_point",
    "fixed_point_codes",
    "mean_squared_error",
    "pack",
    "percentile",
    "quantize",
    "rate_distortion",
    "to_bcoo",
    "to_n_of_m",
    "trellis",
    "unpack",
]
