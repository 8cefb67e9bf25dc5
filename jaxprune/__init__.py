"""Pure, jitted, vmappable pruning and quantization of JAX parameter pytrees.

Start with the short verbs, ``prune``, ``threshold_prune``, ``fake_quant`` and ``fixed_point``; find a setting with
``grid``, ``sweep`` and ``pareto_front``; read the outcome with ``report``. The criteria are in ``jaxprune.saliency``,
what is made of them in ``jaxprune.masks``. The conventions of all of it are in :mod:`jaxprune.base`.
"""

from jaxprune import allocation, masks, quantization, reports, saliency
from jaxprune.base import QArray, QParams, QuantSpec
from jaxprune.curves import entropy_curve, quantization_error_curve, sparsity_curve
from jaxprune.pruning import Pruned, prune, threshold_prune
from jaxprune.quantization import (
    choose_qparams,
    dequantize,
    fake_quant,
    fixed_point,
    fixed_point_codes,
    quantize,
)
from jaxprune.reports import Report, report
from jaxprune.sweeps import grid, pareto_front, sweep

__version__ = "0.1.0"

__all__ = [
    "Pruned",
    "QArray",
    "QParams",
    "QuantSpec",
    "Report",
    "allocation",
    "choose_qparams",
    "dequantize",
    "entropy_curve",
    "fake_quant",
    "fixed_point",
    "fixed_point_codes",
    "grid",
    "masks",
    "pareto_front",
    "prune",
    "quantization",
    "quantization_error_curve",
    "quantize",
    "report",
    "reports",
    "saliency",
    "sparsity_curve",
    "sweep",
    "threshold_prune",
]
