"""Which setting to take: trying many of one function, or saying what is wanted and having it found.

``grid`` makes settings, ``sweep`` evaluates them in one compiled program, ``pareto_front`` picks the best. Where each
leaf has a setting of its own there are too many to try: ``sensitivity`` measures what each costs alone, and ``search``
finds the combination of the least loss, or the smallest file, within limits.
"""

from jaxprune.sweeps.searching import search
from jaxprune.sweeps.sensitivities import sensitivity
from jaxprune.sweeps.sweeping import grid, pareto_front, sweep

__all__ = ["grid", "pareto_front", "search", "sensitivity", "sweep"]
