"""Many settings of one function: ``grid`` makes them, ``sweep`` evaluates them, ``pareto_front`` picks the best."""

from jaxprune.sweeps.evaluation import grid, pareto_front, sweep

__all__ = ["grid", "pareto_front", "sweep"]
