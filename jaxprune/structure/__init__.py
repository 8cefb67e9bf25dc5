"""Removal of channels, heads and neurons from any JAX function, by its traced program.

``trace`` finds out what can be removed together, ``Graph`` cuts it.
"""

from jaxprune.structure.graph import Graph, trace
from jaxprune.structure.groups import Group
from jaxprune.structure.merging import merge_batch_norm

__all__ = ["Graph", "Group", "merge_batch_norm", "trace"]
