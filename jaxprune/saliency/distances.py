"""A criterion that looks at units together: how far each is from all the others."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxprune import tree
from jaxprune.base import Array, Layout, Params, Scores
from jaxprune.kernels.rounding import divide, normalizer
from jaxprune.kernels.unit_statistics import by_units
from jaxprune.layout import Axes, axes_of
from jaxprune.saliency.weights import score

_TILE = 128  # units whose distances to as many others are computed together
_NEAR = 1 / 16  # of the sum of two squared norms: below it a squared distance is summed from differences


def geometric_median(params: Params, *, layout: Layout = None) -> Scores:
    """Scores each unit by its distances to all other units of its leaf, ``sum over j of ||w_i - w_j||_2``.

    A unit of low score is near the geometric median of the units: the others can stand in for it, however large its
    weights are.

    Args:
      params: any pytree of arrays.
      layout: the axes of leaves, static; see :mod:`jaxprune.layout`.

    Returns:
      Scores of the structure of ``params``; of a Flax kernel ``(..., C)`` they have shape ``(1, ..., 1, C)``. Float32
      and computed in float32, with a relative error near 1e-6 and no overflow or underflow on the way: distances of
      units that are near each other are summed from the differences of their weights, others from their products. Time
      grows with C times the leaf; memory is a few times the leaf. A unit with a weight that is not finite scores NaN,
      and the scores of the others leave it out. A unit without others scores 0. The derivative is 0.

    Raises:
      ValueError: a kernel whose axes no rule knows, with its path.
      TypeError: a leaf is no array, with its path.

    Source: He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration", 2019
    (arXiv:1811.00250), Eq. 4 and what follows.

    >>> geometric_median(jnp.array([[0.0, 3.0, 0.0], [0.0, 4.0, 1.0]]))
    Array([[6.       , 9.2426405, 5.2426405]], dtype=float32)
    """
    selection = tree.floating(params)
    return score(selection, _geometric_median, axes=axes_of(selection, layout))


def _geometric_median(w: Array, axes: Axes) -> Array:
    return by_units(_sums_of_distances, jax.lax.stop_gradient(w), axes)


def _sums_of_distances(w: Array) -> Array:
    """The scores, float32 (C,), of a matrix (weights, C)."""
    weights, units = w.shape
    rows = w.astype(jnp.float32).T
    finite = jnp.all(jnp.isfinite(rows), axis=1)
    rows = jnp.where(finite[:, None], rows, 0.0)
    scale = normalizer(jnp.max(jnp.abs(rows), initial=0.0))
    tile = max(min(units, _TILE), 1)
    tiles = max(-(-units // tile), 1)
    rows = jnp.pad(rows * scale, ((0, tiles * tile - units), (0, 0))).reshape(tiles, tile, weights)
    taken = jnp.pad(finite, (0, tiles * tile - units)).reshape(tiles, tile)
    sums = _sums_over_tiles(rows, taken).reshape(tiles * tile)[:units]
    return jnp.where(finite, divide(sums, scale), jnp.nan)


def _sums_over_tiles(rows: Array, taken: Array) -> Array:
    """Sums of distances (tiles, tile) of the units ``rows`` (tiles, tile, n) to those ``taken``, one pair of tiles at a
    time; each pair once, for both."""
    tiles, tile, _ = rows.shape
    # Every sum is at least as large as the largest difference of two weights that share a place, as two units are at
    # most as far apart as they are from a third. So what is too small to be squared in its units adds nothing.
    highest = jnp.max(rows, axis=(0, 1), where=taken[..., None], initial=-jnp.inf)
    lowest = jnp.min(rows, axis=(0, 1), where=taken[..., None], initial=jnp.inf)
    largest = jnp.max(jnp.where(lowest < highest, highest - lowest, 0.0), initial=0.0)
    scale = normalizer(largest)
    if tiles == 1:  # too few units for a shorter way to pay
        return jnp.sum(jnp.where(taken[0], _from_differences(rows[0], rows[0], scale), 0.0), axis=1)
    squares = jnp.sum(jnp.square(rows), axis=2)

    def add(sums: Array, pair: Array) -> tuple[Array, None]:
        i, j = pair
        other = taken[i][:, None] & taken[j][None, :] & ((i != j) | ~jnp.eye(tile, dtype=bool))
        both = squares[i][:, None] + squares[j][None, :]
        product = jax.lax.dot_general(rows[i], rows[j], (((1,), (1,)), ((), ())), precision="highest")
        near = jnp.any(other & (both - 2 * product < _NEAR * both))
        ways = partial(_from_differences, scale=scale), lambda *_: jnp.sqrt(jnp.maximum(both - 2 * product, 0.0))
        distance = jnp.where(other, jax.lax.cond(near, *ways, rows[i], rows[j]), 0.0)
        sums = sums.at[i].add(jnp.sum(distance, axis=1))
        return sums.at[j].add(jnp.where(i != j, jnp.sum(distance, axis=0), 0.0)), None

    pairs = jnp.stack(jnp.triu_indices(tiles), axis=1)
    return jax.lax.scan(add, jnp.zeros((tiles, tile), jnp.float32), pairs)[0]


def _from_differences(a: Array, b: Array, scale: Array) -> Array:
    """Distances of the rows of two matrices: (rows of a, rows of b)."""
    squares = jnp.square((a[:, None, :] - b[None, :, :]) * scale)
    return divide(jnp.sqrt(jnp.sum(squares, axis=2)), scale)
