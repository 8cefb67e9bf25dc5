"""What data look like to each product: sums and maxima, which add up over batches, devices and processes."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import tree_util
from jax.core import Tracer

from jaxprune.base import Array
from jaxprune.calibration.views import Use
from jaxprune.tree import show

#: Bins of a histogram: the leading 11 bits of a float32 magnitude, an eighth of an octave each.
BINS = 2048


@tree_util.register_dataclass
@dataclass(frozen=True)
class Moments:
    """Sums over the rows x [K] of data that one or more products multiply parameters with.

    Attributes:
      count: rows, uint32 [L].
      skipped: rows with NaN or infinities, which are left out of everything else, uint32 [L].
      total: sum of x, float32 [L, K].
      squares: sum of x**2, float32 [L, K].
      largest: max of abs(x), float32 [L, K].
      histogram: of abs(x) over the bins of :data:`BINS`, uint32 [L, 2048], if asked for.
      gram: sum of x x', float32 [L, K, K], if asked for.
    """

    count: Array
    skipped: Array
    total: Array
    squares: Array
    largest: Array
    histogram: Array | None = None
    gram: Array | None = None


@tree_util.register_dataclass
@dataclass(frozen=True)
class Lookups:
    """How often each row of a table is looked up.

    Attributes:
      count: lookups, uint32 [L].
      rows: of each row, uint32 [L, K].
    """

    count: Array
    rows: Array


@tree_util.register_dataclass
@dataclass(frozen=True)
class Gradients:
    """Sums over the gradients g [N] of the outputs of one product, or of one lookup.

    Attributes:
      squares: sum of g**2, float32 [L, N].
      weighted: if Gram matrices are asked for, the sum of |g|**2 x x', float32 [L, K, K]; of a lookup that of g g',
        [L, N, N].
      rows: of a lookup, the sum of |g|**2 of each row, float32 [L, K].
    """

    squares: Array
    weighted: Array | None = None
    rows: Array | None = None


@tree_util.register_dataclass
@dataclass(frozen=True)
class Statistics:
    """What :func:`collect` has found. A pytree of sums and maxima.

    Attributes:
      inputs: the data of products, by name: the path of the first leaf that they meet.
      gradients: by name of the use; empty unless asked for.
      uses: by name, how products see leaves: a leaf's path, and for more than one use ``path#1`` and so on. Static.
      without: paths of leaves that no product was found for, and why. Static.
    """

    inputs: dict[str, Moments | Lookups]
    gradients: dict[str, Gradients]
    uses: tuple[tuple[str, Use], ...] = field(metadata={"static": True}, default=())
    without: tuple[tuple[str, str], ...] = field(metadata={"static": True}, default=())

    def of(self, path: str) -> list[tuple[str, Use]]:
        """The uses of a leaf.

        Raises:
          ValueError: there are none; with the reason.
        """
        found = [(name, use) for name, use in self.uses if use.path == path]
        if not found:
            why = dict(self.without).get(path, f"the statistics are of {sorted({use.path for _, use in self.uses})}")
            raise ValueError(f"there are no statistics of leaf {show(path)}: {why}")
        return found

    def __repr__(self) -> str:
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((self.inputs, self.gradients)))
        without = f", none of {len(self.without)} leaves" if self.without else ""
        kind = ", with gradients" if self.gradients else ""
        empty = f", no rows for {', '.join(found)}" if (found := self.empty()) else ""
        return (
            f"Statistics({len(self.uses)} uses of {len(self.inputs)} inputs, {size / 1e6:.3g} MB{kind}{without}{empty})"
        )

    def empty(self) -> list[str]:
        """The inputs that had no row of data, ``name[i]`` for one of several matrices; of concrete statistics."""
        names = []
        for name, found in self.inputs.items():
            if not isinstance(found.count, Tracer):
                counts = np.asarray(found.count)
                places = np.flatnonzero(counts == 0)
                names += [name or "the array"] if len(places) == len(counts) else [f"{name}[{i}]" for i in places]
        return names


def merge(a: Statistics, b: Statistics) -> Statistics:
    """The statistics of both: sums are added, maxima taken. Associative, and in any order equal to 1e-6.

    What only one of them has comes along: statistics of other leaves of the same function.

    Raises:
      ValueError: a leaf is used in two ways, or other things were asked for; with the leaf's path.

    >>> from jaxprune.calibration import collect
    >>> first, second = (collect(lambda w, x: x @ w, jnp.ones((1, 1)), jnp.ones((n, 1))) for n in (2, 3))
    >>> merge(first, second).inputs[""].count.tolist()
    [5]
    """
    return merged(a, b, add)


def merged(a: Statistics, b: Statistics, together: Callable[[Any, Any], Any]) -> Statistics:
    """:func:`merge`, with what two records of the same data give."""
    uses = dict(a.uses)
    for name, use in b.uses:
        if name in uses and uses[name] != use:
            raise ValueError(
                f"leaf {show(use.path)} is used in two ways, as {uses[name].shape} and {use.shape}: these are "
                "statistics of two functions"
            )
    uses |= dict(b.uses)
    without = {path: why for path, why in (*a.without, *b.without) if path not in {use.path for use in uses.values()}}
    inputs, gradients = (_both(*one, together) for one in ((a.inputs, b.inputs), (a.gradients, b.gradients)))
    return Statistics(inputs, gradients, tuple(uses.items()), tuple(without.items()))


def _both(a: dict[str, Any], b: dict[str, Any], together: Callable[[Any, Any], Any]) -> dict[str, Any]:
    for name in a.keys() & b.keys():
        if jax.tree.structure(a[name]) != jax.tree.structure(b[name]):
            raise ValueError(f"the statistics of leaf {show(name)} are of two kinds: collect both alike")
    both = a.keys() & b.keys()
    return {name: together(a[name], b[name]) if name in both else {**a, **b}[name] for name in {**a, **b}}


def add(a: Any, b: Any) -> Any:
    """Two records of the same data."""
    parts = {one.name: (getattr(a, one.name), getattr(b, one.name)) for one in fields(a)}
    together = {
        name: None if x is None else (jnp.maximum if name == "largest" else jnp.add)(x, y)
        for name, (x, y) in parts.items()
    }
    return replace(a, **together)


def nothing(shapes: Any) -> Any:
    """Records of no data: zeros."""
    return jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), shapes)


def moments(rows: Array, gram: bool, histogram: bool, valid: Array | None = None) -> Moments:
    """The moments of rows [L, T, K]; those that are not ``valid`` [L, T] count as not there."""
    finite = _finite(rows)
    good = finite if valid is None else finite & valid
    every = np.uint32(rows.shape[1]) if valid is None else valid.sum(1, dtype=jnp.uint32)
    count = good.sum(1, dtype=jnp.uint32)
    rows = jnp.where(good[..., None], rows, 0)
    squared = jnp.einsum("ltk,ltm->lkm", rows, rows) if gram else None
    return Moments(
        count,
        every - count,
        rows.sum(1),
        jnp.sum(rows * rows, 1) if squared is None else jnp.diagonal(squared, axis1=1, axis2=2),
        jnp.abs(rows).max(1, initial=0.0),
        _histograms(rows, good) if histogram else None,
        squared,
    )


def _finite(rows: Array) -> Array:
    """Which rows are: a maximum passes NaN on, and is one program where ``all`` is several."""
    return jnp.isfinite(jnp.abs(rows).max(-1, initial=0.0))


def _histograms(rows: Array, good: Array) -> Array:
    bins = jax.lax.bitcast_convert_type(jnp.abs(rows), jnp.uint32) >> np.uint32(20)
    bins = jnp.where(good[..., None], bins, BINS).reshape(len(rows), -1)
    return jax.vmap(lambda own: jnp.zeros(BINS, jnp.uint32).at[own].add(jnp.uint32(1), mode="drop"))(bins)


def gradients(rows: Array, out: Array, gram: bool) -> Gradients:
    """The sums over rows [L, T, K] and gradients [L, T, N]."""
    good = (_finite(rows) & _finite(out))[..., None]
    rows, out = jnp.where(good, rows, 0), jnp.where(good, out, 0)
    squares = out * out
    size = squares.sum(-1, keepdims=True)
    return Gradients(squares.sum(1), jnp.einsum("ltk,ltm->lkm", rows * size, rows) if gram else None)


def by_group(of: Callable[[Array], Any], rows: Array, sizes: Array, valid: Array | None) -> Any:
    """``of`` which rows [1, T] belong to each group, for all groups."""
    number = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(rows.shape[1]), side="right")
    every = jnp.ones((1, rows.shape[1]), bool) if valid is None else valid
    found = jax.lax.map(lambda group: of((number == group)[None] & every), jnp.arange(len(sizes)))
    return jax.tree.map(lambda one: one[:, 0], found)
