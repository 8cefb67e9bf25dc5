"""Weight sharing: a codebook of at most ``k`` values a leaf, or a part of one, found by k-means in one dimension.

A leaf is stored as a code for each weight and a table of ``k`` centroids (Han et al. 2016, arXiv:1510.00149, section
3). :mod:`jaxprune.kernels.clustering` finds them.
"""

import math
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxprune import settings, tree
from jaxprune.base import Array, Layout, Params, Setting, Where
from jaxprune.kernels import clustering
from jaxprune.kernels.rounding import passed_through
from jaxprune.kernels.sharding import automatic, explicit_spec
from jaxprune.layout import check_axis, find_axes
from jaxprune.quantization.arrays.coded import CodebookArray
from jaxprune.quantization.leaves import kept_axes

__all__ = ["encode", "kmeans"]


def kmeans(
    params: Params,
    k: Setting,
    *,
    axis: int | tuple[int, ...] | Literal["units"] | None = None,
    iterations: Any = 64,
    keep_zeros: bool = True,
    where: Where = None,
    layout: Layout = None,
) -> Params:
    """Rounds the weights of each selected leaf to at most ``k`` shared values: ``dequantize(encode(params, k))``.

    The gradient is straight-through, 1 everywhere.

    Args:
      params, k, axis, iterations, keep_zeros, where, layout: as in :func:`encode`.

    Returns:
      ``params`` with the same structure, shapes and dtypes; leaves that take no part are the same objects.

    Raises:
      As :func:`encode`.

    >>> print(kmeans(jnp.array([0.0, 1.0, 1.5, -4.0, -4.5, 0.0]), 3))
    [ 0.    1.25  1.25 -4.25 -4.25  0.  ]
    """
    selection = tree.select(params, where)
    records = records_of(selection, k, axis, iterations, keep_zeros, layout)
    return selection.replace(list(map(_shared, selection.values, records)))


def encode(
    params: Params,
    k: Setting,
    *,
    axis: int | tuple[int, ...] | Literal["units"] | None = None,
    iterations: Any = 64,
    keep_zeros: bool = True,
    where: Where = None,
    layout: Layout = None,
) -> Params:
    """Stores each selected leaf as codes and centroids that make ``sum((w - centroids[codes])**2)`` small.

    Lloyd's algorithm from two deterministic starts: centroids at equal distances from the least to the largest weight
    (Han et al. 2016, arXiv:1510.00149, section 3.2), and centroids as dense as the cube root of the density of the
    weights, which is the best density for many of them (Panter and Dite 1951). An empty cluster keeps its centroid; if
    some are left, they are put where they cut wide clusters in two, and the algorithm runs again. The best result is
    taken, so it is never worse than that of the linear start. A weight half-way between two centroids takes the lower
    one. A leaf of at most ``k`` distinct values is reproduced exactly. Computed in float32; memory grows with the leaf,
    not with ``k`` times the leaf. The centroids take no gradient from ``params``.

    Args:
      params: any pytree, or one bare array.
      k: number of values a table, an integer in [1, 65536]; one for all leaves or a tree of them. Static, because it
        sets shapes.
      axis: the axes that keep a table of their own, static: ``None`` for one a leaf, ``"units"`` for one a unit (a row
        of an embedding), wherever the leaf's layout has them, or axes as written. Each of stacked layers has its own.
      iterations: the most iterations of each run; one that has converged stops. Traced.
      keep_zeros: whether weights that are exactly 0 stay so, and other weights apart from them: pruned weights stay
        pruned. 0 is then one of the ``k`` values of a leaf that holds zeros, and ``k`` must be at least 2. Static.
      where: which leaves take part; see :func:`jaxprune.tree.select`.
      layout: the axes of leaves, static; see :mod:`jaxprune.layout`.

    Returns:
      ``params`` with a ``CodebookArray`` in place of each selected leaf; other leaves are the same objects. The
      centroids ascend, but for the 0 of kept zeros, which comes first.

    Raises:
      ValueError: a leaf holds NaN or infinities (under ``jit`` all its weights but kept zeros become NaN instead), or
        2**31 weights or centroids or more; ``k`` or ``iterations`` is out of range; no such axis, or units of a kernel
        whose axes no rule knows.
      TypeError: ``k`` is no integer, or traced; a selected leaf does not hold floating-point numbers.

    >>> encoded = encode(jnp.array([0.0, 1.0, 1.5, -4.0, -4.5, 0.0]), 3)
    >>> encoded.codes, encoded.centroids.tolist()
    (Array([0, 2, 2, 1, 1, 0], dtype=uint8), [0.0, -4.25, 1.25])
    """
    selection = tree.select(params, where)
    return selection.replace(records_of(selection, k, axis, iterations, keep_zeros, layout))


def records_of(
    selection: tree.Selection, k: Setting, axis: Any, iterations: Any, keep_zeros: bool, layout: Layout
) -> list[CodebookArray]:
    """The record of each chosen leaf; arguments as of :func:`encode`."""
    if settings.any_traced(k):
        raise TypeError("k is static, as it sets shapes; got a traced one")
    if not all(np.issubdtype(np.asarray(size).dtype, np.integer) for size in jax.tree.leaves(k)):
        raise TypeError(f"k must be an integer or a tree of them, got {k!r}")
    sizes = settings.per_leaf(k, selection, "k", 2 if keep_zeros else 1, 2**16)
    steps = settings.check_setting(iterations, "iterations", 0, 2**24)
    names, leaves = selection.names, selection.values
    kept = []
    for path, leaf, size, own in zip(names, leaves, sizes, find_axes(selection, layout), strict=True):
        written = kept_axes(axis, path, leaf, own)
        written = (written,) if isinstance(written, int) else written or ()
        kept.append(tuple(sorted({check_axis(path, leaf.shape, i) for i in written})))
        centroids = int(size) * math.prod(leaf.shape[i] for i in kept[-1])
        if max(leaf.size, centroids) >= 2**31:
            found = f"{leaf.size} weights and {centroids} centroids"
            raise ValueError(f"leaf {tree.show(path)} has {found}; the most are 2**31 - 1")
    message = "holds NaN or infinities, which no codebook can share"
    settings.refuse(zip(names, leaves, strict=True), settings.not_finite, message)
    rows = zip(leaves, sizes, kept, strict=True)
    return [_encode(x, int(size), steps, bool(keep_zeros), own) for x, size, own in rows]


def _encode(x: Array, k: int, iterations: Array, keep_zeros: bool, kept: tuple[int, ...]) -> CodebookArray:
    wide = x if x.dtype == jnp.float32 else x.astype(jnp.float32)  # outside, so that all dtypes share a program
    codes, table, zeros = _clustered(wide, k, iterations, keep_zeros, kept)
    return CodebookArray(codes, table, zeros, np.dtype(x.dtype))


@partial(jax.jit, static_argnums=(1, 3, 4))
def _clustered(x: Array, k: int, iterations: Array, keep_zeros: bool, kept: tuple[int, ...]) -> tuple[Array, ...]:
    """Codes, centroids and whether zeros are kept, with a table for each index along the axes ``kept``."""

    def one(x: Array, iterations: Array) -> tuple[Array, Array, Array]:
        table, zeros = clustering.centroids(x, k, iterations, keep_zeros)
        return clustering.codes(x, table, zeros).astype(jnp.uint8 if k <= 256 else jnp.uint16), table, zeros

    def coded(x: Array, iterations: Array) -> tuple[Array, Array, Array]:
        if not kept:
            return one(x, iterations)
        order = (*kept, *(i for i in range(x.ndim) if i not in kept))
        parts = x.transpose(order)
        own = tuple(n if i in kept else 1 for i, n in enumerate(x.shape))
        rows = parts.reshape(math.prod(own), *parts.shape[len(kept) :])
        codes, table, zeros = jax.lax.map(lambda row: one(row, iterations), rows)
        codes = codes.reshape(parts.shape).transpose(*np.argsort(order))
        return codes, table.reshape(*own, k), zeros.reshape(own)

    x, iterations = jax.lax.stop_gradient(x), iterations.astype(jnp.int32)
    return automatic(coded, x, iterations, out=(explicit_spec(x), PartitionSpec(), PartitionSpec()))


@jax.jit
def _shared(x: Array, record: CodebookArray) -> Array:
    return passed_through(x, record.dense())
