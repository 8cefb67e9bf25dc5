"""What is known of each value ahead of the run: of which parameter it is a view, and where its rows of data are.

So it is known how equations use parameters before any of them runs. Where an operation mixes up the axes of a mask of
rows, such as of padded tokens, what depends on it is marked so, and a product that needs it raises.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune.base import Array
from jaxprune.calibration import factors
from jaxprune.calibration.factors import Factor, Factors, fresh
from jaxprune.calibration.products import PRODUCTS, Lookup, Product, lookup
from jaxprune.calibration.views import Use, View, follow
from jaxprune.program import jaxprs
from jaxprune.program.jaxprs import Frame, Place
from jaxprune.program.primitives import RULES


class Known(NamedTuple):
    """Where the axes of the mask are in a value, None where they are mixed up, by what ``why`` says; and its view."""

    factors: Factors | None
    why: str = ""
    view: View | None = None

    @property
    def counts(self) -> bool:
        """Whether the mask has a say in it."""
        return self.factors is None or any(map(factors.marked, self.factors))


class Noted(NamedTuple):
    """How an equation uses a parameter: the name of the use, and what is known of the data."""

    name: str
    use: Use
    product: Product | Lookup
    data: Known


class Site(jaxprs.Abstract):
    """An equation ahead of the run."""

    def carried(self, value: Known) -> Known:
        """Views end here."""
        return value._replace(view=None)

    def unstacked(self, value: Known) -> Known:
        """Views go on; rows do, unless the scan is over them."""
        own = None if value.factors is None or factors.marked(value.factors[0]) else value.factors[1:]
        view = value.view and value.view.in_scan((self.place, self.params["length"]))
        return Known(own, value.why or "a scan over them", view)

    def stacked(self, value: Known) -> Known:
        """The steps are no rows."""
        steps = (Factor(None, self.params["length"]),)
        return Known(None if value.factors is None else (steps, *value.factors), value.why)

    def join(self, value: Known, other: Known, rounds: int = 0) -> Known:
        """What both have."""
        if value.factors is None or other.factors is None:
            return value if value.factors is None else self.carried(other)
        found = factors.joined([value.factors, other.factors])
        return value if found == value.factors else Known(found, "values of two branches or rounds")


@dataclass
class Ahead:
    """The reader of the visit.

    Attributes:
      noted: by their places, the equations that use parameters.
      ended: for each path, why no product is found where a view of it ends.
      numbers: how many uses each path has had.
      sources: by the data and how it is looked at, the name of its first use; the data is kept, or its id would not.
    """

    noted: dict[Place, Noted] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    numbers: Counter[str] = field(default_factory=Counter)
    sources: dict[Any, tuple[str, Any]] = field(default_factory=dict)
    site: Any = Site

    def constant(self, variable: Any, value: Any, guide: Frame | None) -> Known:
        return Known(fresh(np.shape(value), known=0))

    def literal(self, atom: Any) -> Known:
        return Known(fresh(np.shape(atom.val), known=0))

    def apply(self, site: Site, operands: Sequence[Known]) -> Sequence[Known]:
        called = RULES.get(site.name)
        if called and called.calls:
            return called.bound(site, operands)  # type: ignore[misc]
        rows = self.rows(site, operands)
        return [Known(*pair, view) for pair, view in zip(rows, self.views(site, operands), strict=True)]

    def rows(self, site: Site, operands: Sequence[Known]) -> list[tuple[Factors | None, str]]:
        """For each result, where the axes of the mask are in it, and what has mixed them up."""
        shapes = [out.aval.shape for out in site.equation.outvars]
        if mixed := [one for one in operands if one.factors is None]:
            return [mixed[0][:2]] * len(shapes)
        if not any(one.counts for one in operands):
            return [(fresh(shape, known=0), "") for shape in shapes]
        rule, given = factors.RULES.get(site.name, factors.by_entry), [one.factors for one in operands]
        return [(rule(site, given, shape), f"{site.name} at {site.line}") for shape in shapes]  # type: ignore[arg-type]

    def views(self, site: Site, operands: Sequence[Known]) -> Sequence[View | None]:
        """The results as views; equations that use one are noted."""
        viewed = [(i, one.view) for i, one in enumerate(operands) if one.view]
        nothing = [None] * len(site.equation.outvars)
        if not viewed or (len(viewed) == 1 and self.note(site, operands, *viewed[0])):
            return nothing
        views = follow(viewed[0][1], site.equation) if len(operands) == 1 else None
        if views is None:
            self.ended = {view.path: f"{site.name} at {site.line}" for _, view in viewed} | self.ended
        return views or nothing

    def note(self, site: Site, operands: Sequence[Known], side: int, view: View) -> bool:
        """Notes an equation that is a product with a parameter, or looks up its rows; whether it does."""
        rule = PRODUCTS.get(site.name)
        found = rule(site.equation, side, view) if rule else None
        if site.name == "gather" and side == 0:
            found = lookup(site.equation, view)
        if found is None:
            return False
        name, loops = f"{view.path}#{number}" if (number := self.numbers[view.path]) else view.path, view.scans
        if site.place in self.noted:
            name = self.noted[site.place].name  # one more round of a loop
        else:
            self.numbers[view.path] += 1
        data, source = operands[1 if isinstance(found, Lookup) else found.data], name
        if isinstance(found, Product):
            sizes = None if found.groups is None else operands[found.groups]
            runs = [i for i, part in enumerate(site.place) if part in ("scan", "while", "cond")]
            same = (site.place[: max(runs, default=-1) + 1], id(data), found.kind, id(sizes), loops)
            source, _ = self.sources.setdefault(same, (name, (data, sizes)))
        many, inputs, outputs = found.shape
        shape = (many * math.prod(length for _, length in loops), inputs, outputs)
        use = Use(found.view, shape, source, lookup=isinstance(found, Lookup))
        self.noted[site.place] = Noted(name, use, found, data)
        return True


def look_ahead(
    program: Any, views: Sequence[View | None], mask: tuple[int, ...], parameters: int
) -> tuple[Frame, Ahead]:
    """The program with what is known of its values, and of its products.

    Args:
      program: of parameters and data.
      views: of its inputs.
      mask: the shape of the mask of rows. Its axes are the first ones of each input, as far as their lengths agree.
      parameters: how many of the program's inputs are.
    """
    reader, ins = Ahead(), []
    for number, (variable, view) in enumerate(zip(jaxprs.body(program).invars, views, strict=True)):
        shape, agree = variable.aval.shape, 0
        while number >= parameters and agree < min(len(mask), len(shape)) and shape[agree] == mask[agree]:
            agree += 1
        ins.append(Known(fresh(shape, known=agree), view=view))
    return jaxprs.visit(program, ins, reader), reader


def rows_of(mask: Array, known: Known, shape: tuple[int, ...], line: str) -> Array | None:
    """The mask for each entry of a value of that shape, float32; ``None`` if the value has no rows of it.

    Raises:
      ValueError: the rows are mixed up, with the line of the product.
    """
    if known.factors is None:
        raise ValueError(f"rows= cannot be followed to the product at {line}: mixed up by {known.why}")
    parts = [one for axis in known.factors for one in axis]
    found = [one.origin for one in parts if one.origin is not None]
    if not found:
        return None
    for i in set(found):
        sizes = [one.size for one in parts if one.origin == i]
        if sizes != [mask.shape[i]]:
            raise ValueError(
                f"rows= cannot be followed to the product at {line}: its axis {i} is there in parts {sizes}"
            )
    missing = tuple(i for i in range(mask.ndim) if i not in found)
    kept = jnp.any(mask, axis=missing) if missing else mask
    names = [i for i in range(mask.ndim) if i in found]
    kept = jnp.transpose(kept, [names.index(i) for i in found])
    lengths = iter(kept.shape)
    kept = kept.reshape([next(lengths) if one.origin is not None else 1 for one in parts])
    return jnp.broadcast_to(kept, [one.size for one in parts]).reshape(shape).astype(jnp.float32)
