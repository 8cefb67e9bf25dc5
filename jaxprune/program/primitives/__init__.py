"""What is known of each operation, from all families, by its name as it is printed in a jaxpr."""

from jaxprune.program.narrowing import Rule
from jaxprune.program.primitives import calls, derivatives, elementwise, indexing, products, reductions, shapes

_FAMILIES = (elementwise, products, shapes, indexing, reductions, calls, derivatives)

#: An operation that is missing pins everything that it touches, and its results may be anything.
RULES: dict[str, Rule] = {name: rule for family in _FAMILIES for name, rule in family.RULES.items()}
