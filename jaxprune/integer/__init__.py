"""Low precision that runs: products of coded weights in integers, of any JAX function."""

from jaxprune.integer.execution import apply
from jaxprune.integer.plans import Plan, plan

__all__ = ["Plan", "apply", "plan"]
