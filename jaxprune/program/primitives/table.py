"""A rule for each operation: how labels pass through it, and how it runs when entries are gone.

An operation without a rule pins everything that it touches, so a missing rule costs opportunities, never correctness.
"""

from jaxprune.program.primitives.calls import ties as calls
from jaxprune.program.primitives.elementwise import ties as elementwise
from jaxprune.program.primitives.indexing import ties as indexing
from jaxprune.program.primitives.products import ties as products
from jaxprune.program.primitives.reductions import ties as reductions
from jaxprune.program.primitives.rules import Kept, Rule, Site
from jaxprune.program.primitives.shapes import ties as shapes

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
