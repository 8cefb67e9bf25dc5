"""A rule for each operation: how labels pass through it, and how it runs when entries are gone.

An operation without a rule pins everything that it touches, so a missing rule costs opportunities, never correctness.
"""

from jaxprune.structure.rules import calls, elementwise, indexing, products, reductions, shapes
from jaxprune.structure.rules.base import Kept, Rule, Site

__all__ = ["RULES", "Kept", "Rule", "Site"]

#: By the name of the operation, as it is printed in a jaxpr.
RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **products.RULES,
    **shapes.RULES,
    **indexing.RULES,
    **reductions.RULES,
    **calls.RULES,
}
