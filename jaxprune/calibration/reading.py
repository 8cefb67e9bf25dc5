"""Runs a traced program and looks at what its products multiply parameters with, on the way.

With gradients wanted, each product is followed by a tap: an identity with a further argument, which changes nothing and
whose cotangent is the statistic. So scans, conditions and rematerialization need no derivatives of their own.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Array
from jaxprune.calibration import statistics
from jaxprune.calibration.following import rows_of
from jaxprune.calibration.products import PRODUCTS, lookup
from jaxprune.calibration.views import Use, View, follow
from jaxprune.kernels.sharding import automatic
from jaxprune.program import jaxprs
from jaxprune.program.jaxprs import Site, visit


class Seen(NamedTuple):
    """A value of the program, and which part of a parameter it is."""

    value: Any
    view: View | None = None


class Wanted(NamedTuple):
    """What is collected besides the diagonals. Static."""

    gram: bool = False
    histogram: bool = False


#: Statistics by name: of inputs, and of the outputs' gradients (or their shapes).
Found = dict[str, Any]


@dataclass
class Reading:
    """The reader of a visit, at one level of scans and conditions.

    Attributes:
      wanted: what is collected.
      calls: by the name of an operation that runs other programs, how these are read.
      rows: the mask of rows, if there is one; the guide of the visit says where its axes are.
      taps: zeros in the form of what is to be found of each use's gradients; empty if nothing is.
      uses: by name; shared by all levels.
      ended: for each path, why no product is found where a view of it ends; shared by all levels.
      numbers: how many uses each path has had.
      found: the moments of inputs.
      sources: by the data and how it is looked at, the name of its moments; the data is kept, or its id would not.
      used: the names of the uses that were found.
    """

    wanted: Wanted
    calls: "Mapping[str, Call]"
    taps: Found
    rows: Array | None = None
    uses: dict[str, Use] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    numbers: Counter[str] = field(default_factory=Counter)
    found: Found = field(default_factory=dict)
    sources: dict[Any, tuple[str, Any]] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    site: Any = Site

    def constant(self, variable: Any, value: Any, guide: Any) -> Seen:
        return Seen(value)

    def literal(self, atom: Any) -> Seen:
        return Seen(atom.val)

    def apply(self, site: Site, operands: Sequence[Seen]) -> list[Seen]:
        viewed = [i for i, one in enumerate(operands) if one.view is not None]
        values = [one.value for one in operands]
        if not viewed:
            return seen(jaxprs.bind(site.equation, values))
        if site.name in self.calls:
            return self.calls[site.name](self, site, operands)
        if len(viewed) == 1:
            (side,) = viewed
            results = self.product(site, values, side, operands[side].view)  # type: ignore[arg-type]
            if results is not None:
                return results
        outs = jaxprs.bind(site.equation, values)
        views = follow(operands[0].view, site.equation) if len(operands) == 1 else None  # type: ignore[arg-type]
        if views is None:
            for i in viewed:
                self.ended.setdefault(operands[i].view.path, f"{site.name} at {site.line}")  # type: ignore[union-attr]
            return seen(outs)
        return [Seen(*pair) for pair in zip(outs, views, strict=True)]

    def product(self, site: Site, values: list[Any], side: int, view: View) -> list[Seen] | None:
        """The results, if the equation is a product with a parameter or looks up its rows; these are collected."""
        if site.name == "gather" and side == 0:
            return self.looked_up(site, values, view)
        rule = PRODUCTS.get(site.name)
        found = rule(site.equation, side, view) if rule else None
        if found is None:
            return None
        name, data = self.name(view.path), values[found.data]
        sizes = None if found.groups is None else values[found.groups]
        valid = self.valid(site, found.data, found.rows)
        same = (id(data), found.kind, id(sizes), view.scans)
        if same not in self.sources:
            self.sources[same] = (name, (data, sizes))
            self.found[name] = automatic(lambda data: self.moments(found.rows(data), sizes, valid), data)
        self.uses[name] = Use(found.view, found.shape, self.sources[same][0])
        outs = jaxprs.bind(site.equation, values)
        if name in self.taps:

            def of(data: Any, g: Array) -> Any:
                return self.gradients(found.rows(data), found.out_rows(g), sizes, valid)

            outs = [_tap(partial(automatic, of), outs[0], data, self.taps[name])]
        return seen(outs)

    def looked_up(self, site: Site, values: list[Any], view: View) -> list[Seen] | None:
        """The results, if the equation looks up rows of a table."""
        found = lookup(site.equation, view)
        if found is None:
            return None
        name, size = self.name(view.path), found.shape[1]
        places, valid = found.rows(values[1]), self.valid(site, 1, lambda mask: mask.reshape(1, -1, 1))
        if valid is not None:
            places = jnp.where(valid[0], places, size)
        rows = jnp.zeros(size, jnp.uint32).at[places].add(jnp.uint32(1), mode="drop")
        self.found[name] = statistics.Lookups(rows.sum(dtype=jnp.uint32)[None], rows[None])
        self.uses[name] = Use(found.view, found.shape, name, lookup=True)
        outs = jaxprs.bind(site.equation, values)
        if name in self.taps:

            def back(places: Any, g: Array) -> Any:
                squares = found.out_rows(g) ** 2
                rows = jnp.zeros(size).at[places].add(squares.sum(-1), mode="drop")
                return statistics.Gradients(squares.sum(0)[None], rows=rows[None])

            outs = [_tap(back, outs[0], places, self.taps[name])]
        return seen(outs)

    def valid(self, site: Site, operand: int, rows: Callable[[Array], Array]) -> Array | None:
        """Which rows [L, T] of an operand's the mask keeps, windows too that have one of them; None for all."""
        if self.rows is None:
            return None
        mark = site.guide.read(site.equation.invars[operand])  # type: ignore[union-attr]
        mask = rows_of(self.rows, mark, site.shape(operand), site.line)
        return None if mask is None else rows(mask).max(-1) > 0

    def moments(self, rows: Array, sizes: Any, valid: Array | None) -> Any:
        def of(valid: Array | None) -> Any:
            return statistics.moments(rows, *self.wanted, valid)

        return of(valid) if sizes is None else statistics.by_group(of, rows, sizes, valid)

    def gradients(self, rows: Array, out: Array, sizes: Any, valid: Array | None) -> Any:
        def of(valid: Array | None) -> Any:
            own = out if valid is None else jnp.where(valid[..., None], out, 0)
            return statistics.gradients(rows, own, self.wanted.gram)

        return of(valid) if sizes is None else statistics.by_group(of, rows, sizes, valid)

    def name(self, path: str) -> str:
        """The name of the next use of a leaf."""
        number = self.numbers[path]
        self.numbers[path] += 1
        self.used.append(name := f"{path}#{number}" if number else path)
        return name

    def within(
        self,
        program: Any,
        views: Sequence[View | None],
        values: Sequence[Any],
        site: Site,
        taps: Found,
        branch: int = 0,
    ) -> tuple[list[Seen], "Reading"]:
        """Visits a program that is traced on its own; its results, and the reader of the visit."""
        inner = replace(self, taps=taps, numbers=Counter(self.numbers), found={}, sources={}, used=[])
        return inner.enter(site, program, [Seen(*pair) for pair in zip(values, views, strict=True)], branch), inner

    def enter(self, site: Site, program: Any, operands: Sequence[Seen], branch: int = 0) -> list[Seen]:
        """Visits a program that an equation calls, along the earlier visit if there was one."""
        guide = site.children[branch] if site.guide else None
        return visit(program, operands, self, (*site.place, branch), site.line, guide).results

    def ahead(self, program: Any, views: Sequence[View | None], site: Site, branch: int = 0) -> "Ahead":
        """What a program will find."""
        known: list[Any] = []

        def run(*values: Any) -> Found:
            _, inner = self.within(program, views, values, site, {}, branch)
            known.extend([inner.numbers, inner.used])
            return inner.found

        variables = jaxprs.body(program).invars
        shapes = jax.eval_shape(run, *(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in variables))
        return Ahead(shapes, *known)

    def leave(self, ahead: "Ahead", found: Found) -> None:
        """Takes over what a program that was traced on its own has found."""
        self.numbers = ahead.numbers
        self.used += ahead.used
        self.found |= found


class Ahead(NamedTuple):
    """What a program will find: the shapes of the moments, the numbers of uses after it, the names of its uses."""

    shapes: Found
    numbers: Counter[str]
    used: list[str]


#: ``(reading, equation, operands) -> results``, of an operation that runs other programs.
Call = Callable[[Reading, Site, Sequence[Seen]], list[Seen]]


def seen(values: Sequence[Any]) -> list[Seen]:
    return [Seen(value) for value in values]


def _tap(back: Callable[[Any, Array], Any], value: Array, data: Any, zeros: Any) -> Array:
    @jax.custom_vjp
    def tap(value: Array, data: Any, zeros: Any) -> Array:
        return value

    def backward(data: Any, g: Array) -> Any:
        moving = jnp.issubdtype(data.dtype, jnp.inexact)
        nothing = jnp.zeros_like(data) if moving else np.zeros(data.shape, jax.dtypes.float0)
        return g, nothing, back(data, g)

    tap.defvjp(lambda value, data, zeros: (value, data), backward)
    return tap(value, data, zeros)
