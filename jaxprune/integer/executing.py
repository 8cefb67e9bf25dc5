"""Runs a traced program on coded weights: each product as the plan says, everything else as it was traced."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax.numpy as jnp

from jaxprune.base import Array
from jaxprune.integer import rounding
from jaxprune.integer.products import PRODUCTS
from jaxprune.integer.weights import Weight
from jaxprune.program import jaxprs
from jaxprune.program.jaxprs import Place
from jaxprune.program.primitives import RULES


class Site(jaxprs.Concrete):
    """An equation that runs; programs that it calls are entered as they were traced."""

    @property
    def children(self) -> dict[int, Any]:
        return dict.fromkeys(range(len(self.programs)))

    def inner(self, number: int, values: Sequence[Any], each: Any = None) -> tuple[list[Any], dict[str, Any]]:
        """Weights leave a call as they are, but not what runs several times, or not at all."""
        outs = self.enter(number, values)
        return outs if self.name in ("jit", "pjit") else [*map(dense, outs)], {}


@dataclass
class Running:
    """The reader of the visit.

    Attributes:
      ways: of each product, by its name: the path of the weight, and a number if there are more of it.
      ranges: of the data of some products, by the same names: the largest magnitude.
      seen: called with the name, the equation, the side of the weight, the weight and the data of each product.
      names: by place, as programs are traced more than once.
    """

    ways: Mapping[str, str]
    ranges: Mapping[str, float] = field(default_factory=dict)
    seen: Callable[..., None] | None = None
    names: dict[Place, str] = field(default_factory=dict)
    numbers: Counter[str] = field(default_factory=Counter)
    site: Any = Site

    def constant(self, variable: Any, value: Any, guide: Any) -> Any:
        return value

    def literal(self, atom: Any) -> Any:
        return atom.val

    def apply(self, site: Site, values: Sequence[Any]) -> Sequence[Any]:
        coded = [i for i, value in enumerate(values) if isinstance(value, Weight)]
        if not coded:
            return jaxprs.bind(site.equation, values)
        if site.name in RULES and RULES[site.name].calls:
            carried = _carried(site)
            run: Any = RULES[site.name].run
            return run(site, [dense(v) if i in carried else v for i, v in enumerate(values)])
        side, weight = coded[0], values[coded[0]]
        if len(values) == 1 and (moved := weight.moved(site.equation)) is not None:
            return moved
        if len(coded) == 1 and site.name in PRODUCTS:
            return [self.product(site, side, weight, values)]
        return jaxprs.bind(site.equation, [*map(dense, values)])

    def product(self, site: Site, side: int, weight: Weight, values: Sequence[Any]) -> Array:
        """The result of a product with a weight."""
        if site.place not in self.names:
            number = self.numbers[weight.path]
            self.numbers[weight.path] += 1
            self.names[site.place] = f"{weight.path}#{number}" if number else weight.path
        name, data = self.names[site.place], values[1 - side]
        if self.seen:
            self.seen(name, site, side, weight, data)
        return run(site.equation, side, weight, data, self.ways.get(name, "weights"), self.ranges.get(name))


def run(equation: Any, side: int, weight: Weight, data: Array, way: str, largest: float | None = None) -> Array:
    """One product, in one way."""
    lookup = equation.primitive.name == "gather"
    if (way == "w8a8" or lookup) and weight.scale is not None:
        rounded = rounding.dynamic if largest is None else partial(rounding.static, largest=largest)
        found = PRODUCTS[equation.primitive.name](equation, side, weight, data, rounded)
        if not isinstance(found, str):
            return found
    pair = [weight.dense(), data] if side == 0 else [data, weight.dense()]
    if way == "bfloat16" and not lookup:
        pair = [one.astype(jnp.bfloat16) for one in pair]
        (out,) = jaxprs.bind(equation, pair, preferred_element_type=jnp.dtype(jnp.float32))
        return out.astype(equation.outvars[0].aval.dtype)
    return jaxprs.bind(equation, pair)[0]


def dense(value: Any) -> Any:
    """The array that a weight stands for; other values as they are."""
    return value.dense() if isinstance(value, Weight) else value


def _carried(site: Site) -> range:
    """The operands that a loop carries."""
    params = site.params
    if site.name == "scan":
        return range(params["num_consts"], params["num_consts"] + params["num_carry"])
    if site.name == "while":
        return range(params["cond_nconsts"] + params["body_nconsts"], len(site.equation.invars))
    return range(0)
