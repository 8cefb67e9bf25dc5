"""Removal of channels, heads and neurons from any JAX function, by its traced program.

``trace`` finds out what can be removed together; ``graph.at(plan)`` cuts parameters and is the smaller function.
``shrink`` does it all in one call: it scores the units, removes the lowest, and reports what is left.
``merge_batch_norm`` folds a BatchNorm into the layer before it.
"""

from jaxprune.structure.graph import Graph, trace
from jaxprune.structure.groups import Group
from jaxprune.structure.merging import merge_batch_norm
from jaxprune.structure.ranking import ShrinkSpec
from jaxprune.structure.shrinking import Shrunk, shrink

__all__ = ["Graph", "Group", "ShrinkSpec", "Shrunk", "merge_batch_norm", "shrink", "trace"]
