"""What is known of each operation, from all families, by its name as it is printed in a jaxpr."""

from jaxprune.program.bounding import Bound
from jaxprune.program.evaluation import Narrowing
from jaxprune.program.primitives.calls import bounds as calls_bounds
from jaxprune.program.primitives.calls import ties as calls
from jaxprune.program.primitives.elementwise import bounds as elementwise_bounds
from jaxprune.program.primitives.elementwise import logic
from jaxprune.program.primitives.elementwise import ties as elementwise
from jaxprune.program.primitives.indexing import bounds as indexing_bounds
from jaxprune.program.primitives.indexing import ties as indexing
from jaxprune.program.primitives.products import bounds as products_bounds
from jaxprune.program.primitives.products import ties as products
from jaxprune.program.primitives.reductions import bounds as reductions_bounds
from jaxprune.program.primitives.reductions import ties as reductions
from jaxprune.program.primitives.shapes import bounds as shapes_bounds
from jaxprune.program.primitives.shapes import ties as shapes

#: How axes are tied, and how operations run narrower. One that is missing pins everything that it touches.
NARROWINGS: dict[str, Narrowing] = {
    **elementwise.NARROWINGS,
    **products.NARROWINGS,
    **shapes.NARROWINGS,
    **indexing.NARROWINGS,
    **reductions.NARROWINGS,
    **calls.NARROWINGS,
}

#: What is known of results. Of an operation that is missing, they may be anything.
BOUNDS: dict[str, Bound] = {
    **elementwise_bounds.BOUNDS,
    **logic.BOUNDS,
    **products_bounds.BOUNDS,
    **shapes_bounds.BOUNDS,
    **indexing_bounds.BOUNDS,
    **reductions_bounds.BOUNDS,
    **calls_bounds.BOUNDS,
}
