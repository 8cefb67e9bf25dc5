"""What is known of each operation, from all families, by its name as it is printed in a jaxpr."""

from jaxprune.program.bounding import Bound
from jaxprune.program.evaluation import Count, Narrowing
from jaxprune.program.primitives import (
    arithmetic,
    calls,
    derivatives,
    elementwise,
    indexing,
    orders,
    products,
    reductions,
    reshape,
    shapes,
)

_FAMILIES = (elementwise, products, shapes, reshape, indexing, reductions, orders, calls, derivatives)

#: How axes are tied, and how operations run narrower. One that is missing pins everything that it touches.
NARROWINGS: dict[str, Narrowing] = {name: one for family in _FAMILIES for name, one in family.NARROWINGS.items()}

#: What is known of results. Of an operation that is missing, they may be anything.
BOUNDS: dict[str, Bound] = {name: one for family in (arithmetic, *_FAMILIES) for name, one in family.BOUNDS.items()}

#: Floating-point operations of products; others are not counted.
OPERATIONS: dict[str, Count] = products.OPERATIONS
