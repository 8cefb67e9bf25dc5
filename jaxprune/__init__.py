"""Pure, jitted, vmappable pruning and quantization of JAX parameter pytrees.

Start with the short verbs, ``prune``, ``threshold_prune``, ``fake_quant`` and ``fixed_point``; find a setting with
``grid``, ``sweep`` and ``pareto_front``; read the outcome with ``report``. The criteria are in ``jaxprune.saliency``,
what is made of them in ``jaxprune.masks``, and how to train with it in ``jaxprune.training``. Small files are written
and read by ``compress``, ``save`` and ``load``, checkpoints of others by ``read_checkpoint``; ``shrink`` removes whole
channels, heads and neurons. What looks at data is in ``jaxprune.calibration``, what runs on codes in
``jaxprune.integer``. The conventions of all of it are in :mod:`jaxprune.base`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxprune import files, masks, quantization, reports, saliency, schedules
from jaxprune.base import QParams, QuantSpec
from jaxprune.checkpoints import read_checkpoint
from jaxprune.files import Compressed, compress, load, save
from jaxprune.pruning import Pruned, prune, threshold_prune
from jaxprune.quantization import codebook
from jaxprune.quantization.arrays.coded import QArray
from jaxprune.quantization.arrays.protocol import dequantize
from jaxprune.quantization.integers import choose_qparams, fake_quant, fixed_point, quantize
from jaxprune.reports import report
from jaxprune.sweeps import grid, pareto_front, search, sensitivity, sweep

if TYPE_CHECKING:
    from jaxprune import calibration, integer, recovery, structure, training
    from jaxprune.structure import shrink

__version__ = "0.1.0"

__all__ = [
    "Compressed", "Pruned", "QArray", "QParams", "QuantSpec", "calibration", "choose_qparams", "codebook",
    "compress", "dequantize", "fake_quant", "files", "fixed_point", "grid", "integer", "load", "masks",
    "pareto_front", "prune", "quantization", "quantize", "read_checkpoint", "recovery", "report", "reports", "saliency",
    "save", "schedules", "search", "sensitivity", "shrink", "structure", "sweep", "threshold_prune", "training",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports what takes a while when it is asked for: ``training`` needs optax, the others a part of SciPy."""
    if name in ("calibration", "integer", "recovery", "structure", "training"):
        return importlib.import_module(f"jaxprune.{name}")
    if name == "shrink":
        return importlib.import_module("jaxprune.structure").shrink
    raise AttributeError(f"module 'jaxprune' has no attribute {name!r}")
