"""Compression that looks at data: statistics of what products multiply parameters with, and what to make of them."""

from jaxprune.calibration.activations import divergence, input_qparams
from jaxprune.calibration.biases import correct_biases
from jaxprune.calibration.clipping import output_error
from jaxprune.calibration.coding import encode
from jaxprune.calibration.collecting import collect
from jaxprune.calibration.compressing import fake_quant, prune, quantize
from jaxprune.calibration.refitting import refit
from jaxprune.calibration.scores import obd, obs, wanda
from jaxprune.calibration.smoothing import smooth
from jaxprune.calibration.statistics import Statistics, merge
from jaxprune.host import progress

__all__ = [
    "Statistics",
    "collect",
    "correct_biases",
    "divergence",
    "encode",
    "fake_quant",
    "input_qparams",
    "merge",
    "obd",
    "obs",
    "output_error",
    "progress",
    "prune",
    "quantize",
    "refit",
    "smooth",
    "wanda",
]
