"""Scores: how much each weight, or each unit, matters. Larger is more important.

Every function maps a pytree of parameters to scores of the same structure (containers and boxes included), so that
masks can be made of them leaf by leaf. All floating leaves get scores, whatever their rank: which of them are pruned
is decided later, by the ``where`` of the mask. Leaves that are not floating (integers, bools, PRNG keys, callables)
get a 0-d float32 zero, which only keeps the structure.

A **unit** is an index along a leaf's output axes (:mod:`jaxprune.layout`); of a vector each entry is a unit. Scores of
units broadcast against the parameter: ``(1, ..., 1, C)`` of a Flax kernel. A scalar leaf is one unit of one weight.

Nothing here is a class or a registry: a criterion is any function ``params -> scores``.
"""

from jaxprune.saliency.distances import geometric_median
from jaxprune.saliency.units import activation_entropy, activation_taylor, unit_entropy, unit_norm, unit_sparsity
from jaxprune.saliency.weights import connection_entropy, fisher, gradient, magnitude, random

__all__ = [
    "activation_entropy", "activation_taylor", "connection_entropy", "fisher", "geometric_median", "gradient",
    "magnitude", "random", "unit_entropy", "unit_norm", "unit_sparsity",
]  # fmt: skip
