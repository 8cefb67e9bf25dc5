"""Fewer bits a weight: how ranges are found, other quantizers, and arrays that are stored in another form.

The verbs are at the top: ``jaxprune.fake_quant``, ``quantize``, ``dequantize``, ``fixed_point``, ``choose_qparams`` and
``codebook``.
"""

from jaxprune.quantization import rate_distortion as rate_distortion
from jaxprune.quantization import trellis as trellis
from jaxprune.quantization.arrays.n_of_m import to_n_of_m
from jaxprune.quantization.arrays.packed import pack, unpack
from jaxprune.quantization.arrays.protocol import to_bcoo
from jaxprune.quantization.ranges import mean_squared_error, percentile

__all__ = ["mean_squared_error", "pack", "percentile", "to_bcoo", "to_n_of_m", "unpack"]
