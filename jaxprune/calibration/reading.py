"""Runs a traced program and looks at what its products multiply parameters with, on the way.

With gradients wanted, each product is followed by a tap: an identity with a further argument, which changes nothing and
whose cotangent is the statistic. So scans, conditions and rematerialization need no derivatives of their own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Array
from jaxprune.calibration import statistics
from jaxprune.calibration.following import Noted, rows_of
from jaxprune.calibration.products import Lookup, Product
from jaxprune.kernels.sharding import automatic
from jaxprune.program import jaxprs
from jaxprune.program.jaxprs import Place
from jaxprune.program.primitives import RULES

_WINDOWS = 2**25  # numbers in windows at once: each number of the data is in several; more go part by part


class Wanted(NamedTuple):
    """What is collected besides the diagonals. Static."""

    gram: bool = False
    histogram: bool = False


#: Statistics by name: of inputs, and of the outputs' gradients (or their shapes).
Found = dict[str, Any]


class Site(jaxprs.Concrete):
    """An equation that runs, and the uses of parameters in the programs that it calls."""

    @property
    def inside(self) -> list[Noted]:
        """Those uses."""
        uses = self.reader.noted.items() if self.children else ()
        return [noted for place, noted in uses if place[: len(self.place)] == self.place]

    def steps(self, noted: Noted) -> tuple[bool, int]:
        """Whether each step of this scan has matrices of its own, and how many the scans below have."""
        scans = noted.use.view.scans
        below = [length for place, length in scans if len(place) > len(self.place)]
        return self.place in dict(scans), math.prod(below)

    def inner(self, number: int, values: Sequence[Any], each: Any = None) -> tuple[list[Any], Found]:
        """Collected apart; nothing goes backwards through a while loop."""
        taps = {} if self.name == "while" else self.reader.taps | (each or {})
        reader = replace(self.reader, taps=taps, found={})
        return replace(self, reader=reader).enter(number, values), reader.found

    @property
    def zeros(self) -> Found:
        """The moments of no rows."""
        shared = [one for one in self.inside if one.use.source == one.name and not self.steps(one)[0]]
        return {one.name: self.reader.nothing(one, self.steps(one)[1]) for one in shared}

    @property
    def each(self) -> Found:
        """The taps of the matrices of each step."""
        names = self.reader.taps.keys() & {one.name for one in self.inside if self.steps(one)[0]}
        taps = {name: self.reader.taps[name] for name in names}
        return jax.tree.map(lambda one: one.reshape(self.params["length"], -1, *one.shape[1:]), taps)

    def add(self, total: Any, found: Any) -> Any:
        """Sums and maxima."""
        return statistics.add(total, found)

    def leave(self, total: Found, stacked: Found | None = None) -> None:
        """Matrices of all steps are matrices side by side."""
        self.reader.found |= total | jax.tree.map(lambda one: one.reshape(-1, *one.shape[2:]), stacked or {})


@dataclass
class Reading:
    """The reader of a visit, at one level of scans and conditions.

    Attributes:
      wanted: what is collected.
      noted: by their places, the equations that use parameters.
      taps: zeros in the form of what is to be found of each use's gradients; empty if nothing is.
      rows: the mask of rows, if there is one.
      found: the moments of inputs.
    """

    wanted: Wanted
    noted: Mapping[Place, Noted]
    taps: Found
    rows: Array | None = None
    found: Found = field(default_factory=dict)
    site: Any = Site

    def constant(self, variable: Any, value: Any, guide: Any) -> Any:
        return value

    def literal(self, atom: Any) -> Any:
        return atom.val

    def apply(self, site: Any, values: Sequence[Any]) -> Sequence[Any]:
        noted = self.noted.get(site.place)
        if noted is None:
            return RULES[site.name].run(site, values) if site.inside else jaxprs.bind(site.equation, values)
        product = noted.product
        operand, groups = (1, None) if isinstance(product, Lookup) else (product.data, product.groups)
        mask = None if self.rows is None else rows_of(self.rows, noted.data, site.shape(operand), site.line)
        valid = (
            None if mask is None else (mask.reshape(1, -1, 1) if noted.use.lookup else product.rows(mask)).max(-1) > 0
        )
        given = values[operand], None if groups is None else values[groups], valid
        if noted.use.source == noted.name:
            self.found[noted.name] = self.moments(product, *given)
        outs = jaxprs.bind(site.equation, values)
        if noted.name in self.taps:
            outs = [_tap(partial(_gradients, product, self.wanted.gram), outs[0], given, self.taps[noted.name])]
        return outs

    def moments(self, product: Any, data: Array, sizes: Array | None, valid: Array | None) -> Any:
        """What is found of data, of the rows [L, T] that are valid: windows too that have one row of the mask."""
        if isinstance(product, Lookup):
            places, size = _places(product, data, valid), product.shape[1]
            rows = jnp.zeros(size, jnp.uint32).at[places].add(jnp.uint32(1), mode="drop")
            return statistics.Lookups(rows.sum(dtype=jnp.uint32)[None], rows[None])

        def of(valid: Array | None, data: Array) -> Any:
            rows = product.rows(data)
            return _by_group(lambda valid: statistics.moments(rows, *self.wanted, valid), rows, sizes, valid)

        return automatic(partial(_in_parts, product, of, valid), data)

    def nothing(self, noted: Noted, steps: int) -> Any:
        """The moments of no rows, of so many steps."""
        many, inputs = steps * noted.product.shape[0], noted.product.shape[1]
        if noted.use.lookup:
            return statistics.Lookups(jnp.zeros(many, jnp.uint32), jnp.zeros((many, inputs), jnp.uint32))
        rows = jax.ShapeDtypeStruct((many, 1, inputs), jnp.float32)
        return statistics.nothing(jax.eval_shape(lambda rows: statistics.moments(rows, *self.wanted), rows))


def _gradients(product: Any, gram: bool, given: Any, g: Array) -> statistics.Gradients:
    """What is found of the gradient of a product."""
    data, sizes, valid = given
    if isinstance(product, Lookup):
        places, out = _places(product, data, valid), product.out_rows(g)
        rows = jnp.zeros(product.shape[1]).at[places].add((out**2).sum(-1), mode="drop")
        weighted = automatic(lambda out: out.T @ out, out)[None] if gram else None
        return statistics.Gradients((out**2).sum(0)[None], weighted, rows[None])

    def of(valid: Array | None, data: Array, g: Array) -> Any:
        rows, out = product.rows(data), product.out_rows(g)

        def of_group(valid: Array | None) -> Any:
            own = out if valid is None else jnp.where(valid[..., None], out, 0)
            return statistics.gradients(rows, own, gram)

        return _by_group(of_group, rows, sizes, valid)

    return automatic(partial(_in_parts, product, of, valid), data, g)


def _places(table: Lookup, data: Array, valid: Array | None) -> Array:
    """The rows that are looked up; what is out of range is beyond the table."""
    places = table.rows(data)
    return places if valid is None else jnp.where(valid[0], places, table.shape[1])


def _by_group(of: Callable[..., Any], rows: Array, sizes: Array | None, valid: Array | None) -> Any:
    return of(valid) if sizes is None else statistics.by_group(of, rows, sizes, valid)


def _in_parts(product: Product, of: Callable[..., Any], valid: Array | None, *arrays: Array) -> Any:
    """``of(valid, data, and a gradient)``, summed over parts of the batch where windows would take much memory."""
    size = math.prod(jax.eval_shape(product.rows, arrays[0]).shape)
    if product.batch is None or size <= _WINDOWS:
        return of(valid, *arrays)
    images = arrays[0].shape[product.batch[0]]
    parts = next(n for n in range(1, images + 1) if images % n == 0 and (size <= n * _WINDOWS or n == images))

    def cut(x: Array, axis: int) -> Array:  # to every so-manieth image, so that each device keeps what it has
        x = x.reshape(*x.shape[:axis], images // parts, parts, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis + 1, 0)

    each = [cut(x, axis) for x, axis in zip(arrays, product.batch, strict=False)]
    if valid is not None:
        valid = cut(valid.reshape(len(valid), images, -1), 1).reshape(parts, len(valid), -1)

    def step(total: Any, part: Any) -> tuple[Any, None]:
        return statistics.add(total, of(*part)), None

    shapes = jax.eval_shape(of, *jax.tree.map(lambda x: x[0], (valid, *each)))
    return jax.lax.scan(step, statistics.nothing(shapes), (valid, *each))[0]


def _tap(back: Callable[[Any, Array], Any], value: Array, given: Any, zeros: Any) -> Array:
    @jax.custom_vjp
    def tap(value: Array, given: Any, zeros: Any) -> Array:
        return value

    def nothing(one: Array) -> Any:
        moving = jnp.issubdtype(one.dtype, jnp.inexact)
        return jnp.zeros_like(one) if moving else np.zeros(one.shape, jax.dtypes.float0)

    def backward(given: Any, g: Array) -> Any:
        return g, jax.tree.map(nothing, given), back(given, g)

    tap.defvjp(lambda value, given, zeros: (value, given), backward)
    return tap(value, given, zeros)
