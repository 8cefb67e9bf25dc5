"""k-means in one dimension: Lloyd's algorithm on sorted values. Kernels on one array, called under ``jit``.

A cluster is an interval of the sorted values, so an iteration is k binary searches and k differences of prefix sums,
whatever the number of values; nothing of size n times k ever exists. Prefix sums are float32 pairs, a value and what
its rounding left out, and they are kept for blocks of values only: a difference is good to a float32's last bit.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.base import Array
from jaxprune.kernels import float_keys
from jaxprune.kernels.reductions import Pair, add_pairs, product, running, streamed, total, two_sum
from jaxprune.kernels.rounding import divide, normalizer

_BLOCK = 16  # sorted values that share an entry of the prefix sums
_QUANTILES = 4096  # gaps between order statistics that the density is known by
_RUNS = 5  # two starts, and up to three runs that put empty clusters to use
_FLOAT32 = np.dtype(np.float32)


class Sorted(NamedTuple):
    """The values to be clustered.

    Attributes:
      values: float32 [n], ascending; those from ``number`` on repeat the last one and are not looked at.
      number: int32, how many there are.
      shift: float32, a power of two that takes the largest magnitude near 1.
      before: the sum of ``values * shift`` in all earlier blocks, for each block, a float32 pair.
    """

    values: Array
    number: Array
    shift: Array
    before: Pair


def centroids(x: Array, k: int, iterations: Array, keep_zeros: bool) -> tuple[Array, Array]:
    """``(centroids, whether the first is the 0 of kept zeros)`` of k-means on float32 ``x``; float32 [k], bool.

    The others ascend. NaN throughout if ``x`` is not finite.
    """
    x = x.reshape(-1)
    if not x.size:
        return jnp.zeros(k, jnp.float32), jnp.zeros((), bool)
    zeros = jnp.any(x == 0) if keep_zeros else jnp.zeros((), bool)
    data = prepare(x, keep_zeros)
    free = k - zeros.astype(jnp.int32)
    few, distinct = _distinct(data, k)
    found = _search(x, data, free, few > free, k, iterations, keep_zeros)
    table = jnp.where(few > free, found, distinct)
    table = jnp.where(zeros, jnp.concatenate([jnp.zeros(1), table[:-1]]), table)
    return jnp.where(jnp.all(jnp.isfinite(x)), table, jnp.nan), zeros


def _search(x: Array, data: Sorted, free: Array, needed: Array, k: int, iterations: Array, keep_zeros: bool) -> Array:
    """The best of several runs of Lloyd's algorithm: from two starts, then while that helps with no cluster empty."""
    linear, dense = linear_start(data, k, free), density_start(data, k, free)

    def unfinished(state: tuple[Array, Array, Array, Array]) -> Array:
        run, _, _, helped = state
        return needed & (run < _RUNS) & (helped | (run <= 2))

    def attempt(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        run, best, least, _ = state
        start = jnp.where(run == 0, linear, jnp.where(run == 1, dense, filled(data, best, free)))
        result = lloyd(data, start, iterations)
        error = _squared_error(x, result, data.shift, keep_zeros)
        better = error < least
        return run + 1, jnp.where(better, result, best), jnp.where(better, error, least), better

    return lax.while_loop(unfinished, attempt, (jnp.int32(0), linear, jnp.float32(jnp.inf), jnp.bool_(True)))[1]


def codes(x: Array, table: Array, zeros: Array) -> Array:
    """The position of each value's nearest centroid, of equal distances the lower; int32. Kept zeros are apart."""
    first = jnp.where(zeros, -jnp.inf, table[0])
    code = position(x, midpoints(table.at[0].set(first)))
    return jnp.where(zeros, jnp.where(x == 0, 0, jnp.maximum(code, 1)), code)


def places(codes: Array, tables: tuple[int, ...], k: int) -> Array:
    """Where the codes point to in tables [*tables, k], as one row; int32."""
    first = np.arange(math.prod(tables), dtype=np.int32).reshape(tables) * np.int32(k)
    return codes.astype(jnp.int32) + first


def prepare(x: Array, leave_zeros: bool) -> Sorted:
    """Sorts ``x``, without what is not finite, and if asked without zeros."""
    taken = jnp.isfinite(x) & (x != 0) if leave_zeros else jnp.isfinite(x)
    number = jnp.sum(taken, dtype=jnp.int32)
    key = jnp.where(taken, float_keys.to_keys(x, _FLOAT32), float_keys.highest_key(_FLOAT32))
    values = float_keys.from_keys(jnp.sort(key), _FLOAT32)
    last = jnp.where(number > 0, values[jnp.maximum(number - 1, 0)], 0.0)
    values = jnp.where(lax.iota(jnp.int32, x.size) < number, values, last)
    shift = normalizer(jnp.maximum(jnp.abs(values[0]), jnp.abs(last)))
    blocks = jnp.pad(values, (0, -x.size % _BLOCK)).reshape(-1, _BLOCK)
    return Sorted(values, number, shift, running(total(blocks * shift)))


def lloyd(data: Sorted, start: Array, iterations: Array) -> Array:
    """Moves ascending centroids, +inf for those out of use, to the means of their clusters until none moves."""

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        step, _, moved = state
        return moved & (step < iterations)

    def iterate(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        step, old, _ = state
        first, last = _clusters(data, old)
        new = jnp.where(last > first, _means(data, first, last), old)
        return step + 1, new, jnp.any(new != old)

    return lax.while_loop(unfinished, iterate, (jnp.int32(0), start, jnp.bool_(True)))[1]


def filled(data: Sorted, table: Array, free: Array) -> Array:
    """The centroids with each empty cluster put to use: the widest of the others, by size and range, are cut in two."""
    first, last = _clusters(data, table)
    size = last - first
    span = (data.values[jnp.maximum(last - 1, 0)] - data.values[first]) * data.shift
    width = jnp.where(size > 1, size.astype(jnp.float32) * span * span, 0)
    empty = (size == 0) & (lax.iota(jnp.int32, table.size) < free)
    slot, wide = jnp.argsort(~empty, stable=True), jnp.argsort(-width, stable=True)  # the first for the widest, ...
    used = empty[slot] & (width[wide] > 0)
    first, last = first[wide], last[wide]
    middle = first + (last - first) // 2
    halves = _means(data, jnp.stack([first, middle]), jnp.stack([middle, last]))
    places = jnp.where(used, jnp.stack([wide, slot]), table.size)
    return jnp.sort(table.at[places].set(halves, mode="drop"))


def _clusters(data: Sorted, table: Array) -> tuple[Array, Array]:
    """Where in the sorted values each cluster begins and ends, int32 [k] each."""
    inner = jnp.searchsorted(data.values, midpoints(table), side="right").astype(jnp.int32)
    ends = jnp.minimum(inner, data.number)
    return jnp.pad(ends, (1, 0)), jnp.concatenate([ends, data.number[None]])


def _means(data: Sorted, first: Array, last: Array) -> Array:
    """The mean of the values in each stretch; some number for an empty one."""
    high, low = _prefix(data, jnp.stack([first, last]))
    gathered, _ = add_pairs((high[1], low[1]), (-high[0], -low[0]))
    mean = divide(gathered, jnp.maximum(last - first, 1).astype(jnp.float32)) / data.shift
    # Rounding must not carry a mean out of its stretch: that keeps the order, and equal values as they are.
    return jnp.clip(mean, data.values[first], data.values[jnp.maximum(last - 1, 0)])


def linear_start(data: Sorted, k: int, free: Array) -> Array:
    """``free`` centroids at equal distances from the least to the largest value."""
    low, high = data.values[0], data.values[-1]
    part = divide(lax.iota(jnp.float32, k), jnp.maximum(free - 1, 1).astype(jnp.float32))
    between = jnp.clip(product(low, 1 - part) + product(high, part), low, high)
    return _ascending(between, free)


def density_start(data: Sorted, k: int, free: Array) -> Array:
    """``free`` centroids as dense as about the cube root of the density of the values.

    The density is known by the gaps between order statistics, each of which gets centroids in proportion to its
    length to the power of 5/8: near the 2/3 of the theory, and made of square roots, which round alike everywhere.
    """
    gaps = min(data.values.size, _QUANTILES)
    last = jnp.maximum(data.number - 1, 0)
    place = divide(lax.iota(jnp.float32, gaps + 1), np.float32(gaps)) * last.astype(jnp.float32)
    edges = data.values[jnp.minimum(jnp.round(place).astype(jnp.int32), last)] * data.shift
    root = jnp.sqrt(jnp.maximum(edges[1:] - edges[:-1], 0))
    weight = product(root, jnp.sqrt(jnp.sqrt(root)))
    mass = running((weight, jnp.zeros_like(weight)))[0]
    wanted = product(divide(lax.iota(jnp.float32, k) + 0.5, free.astype(jnp.float32)), mass[-1])
    gap = jnp.clip(jnp.searchsorted(mass, wanted, side="right") - 1, 0, gaps - 1)
    part = divide(wanted - mass[gap], jnp.maximum(mass[gap + 1] - mass[gap], jnp.finfo(jnp.float32).tiny))
    between = edges[gap] + product(jnp.clip(part, 0, 1), edges[gap + 1] - edges[gap])
    return _ascending(jnp.clip(between / data.shift, data.values[0], data.values[-1]), free)


def _ascending(centroids: Array, free: Array) -> Array:
    return jnp.sort(jnp.where(lax.iota(jnp.int32, centroids.size) < free, centroids, jnp.inf))


def midpoints(table: Array) -> Array:
    """[k - 1], half-way between neighbours, rounded down: ``x <= midpoint`` for the same floats as without rounding."""
    left, right = table[:-1] * 0.5, table[1:] * 0.5
    middle, rest = two_sum(left, right)
    return jnp.where(rest < 0, jnp.nextafter(middle, -jnp.inf), middle)


def position(x: Array, bounds: Array) -> Array:
    """How many of the ascending bounds each value exceeds, int32: a binary search without branches."""
    steps = bounds.size.bit_length()
    bounds = jnp.pad(bounds, (0, 2**steps - 1 - bounds.size), constant_values=jnp.inf)
    found = jnp.zeros(x.shape, jnp.int32)
    for step in reversed(range(steps)):
        middle = bounds.at[found + (2**step - 1)].get(mode="promise_in_bounds")
        found = jnp.where(x > middle, found + 2**step, found)
    return found


def _distinct(data: Sorted, k: int) -> tuple[Array, Array]:
    """How many distinct values there are, and the first k of them, ascending; the last one fills up."""
    new = (data.values[1:] > data.values[:-1]).astype(jnp.int32)
    smaller = jnp.pad(jnp.cumsum(new), (1, 0))
    where = jnp.searchsorted(smaller, lax.iota(jnp.int32, k), side="left")
    some = (data.number > 0).astype(jnp.int32)
    return smaller[-1] + some, data.values[jnp.minimum(where, data.values.size - 1)]


def _squared_error(x: Array, table: Array, shift: Array, leave_zeros: bool) -> Array:
    """The sum of squared distances to the nearest centroid, in units of the shift."""
    bounds = midpoints(table)

    def squared(values: Array) -> Array:
        error = (values - table[position(values, bounds)]) * shift
        return jnp.where(jnp.isnan(values) | (leave_zeros & (values == 0)), 0, error * error)

    return streamed(x, (0,), squared)[0]


def _prefix(data: Sorted, ends: Array) -> Pair:
    """The sum of ``values * shift`` before each of ``ends``."""
    block, rest = ends // _BLOCK, ends % _BLOCK
    lane = lax.broadcasted_iota(jnp.int32, (*(1 for _ in block.shape), _BLOCK), block.ndim)
    values = data.values[jnp.minimum(block[..., None] * _BLOCK + lane, data.values.size - 1)] * data.shift
    inside = total(jnp.where(lane < rest[..., None], values, 0))
    return add_pairs((data.before[0][block], data.before[1][block]), inside)
