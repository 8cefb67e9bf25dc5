"""Weight sharing: a codebook of at most ``k`` values a leaf, found by k-means in one dimension.

A leaf is stored as a code for each weight and a table of ``k`` centroids (Han et al. 2016, arXiv:1510.00149, section
3). :mod:`jaxprune.kernels.clustering` finds them.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from jaxprune import settings, tree
from jaxprune.base import Array, Params, Setting, Where
from jaxprune.kernels import clustering
from jaxprune.kernels.sharding import automatic, explicit_spec
from jaxprune.quantization.arrays.coded import CodebookArray

__all__ = ["encode", "kmeans"]


def kmeans(params: Params, k: Setting, *, iterations: Any = 64, keep_zeros: bool = True, where: Where = None) -> Params:
    """Rounds the weights of each selected leaf to at most ``k`` shared values: ``dequantize(encode(params, k))``.

    The gradient is straight-through, 1 everywhere.

    Args:
      params, k, iterations, keep_zeros, where: as in :func:`encode`.

    Returns:
      ``params`` with the same structure, shapes and dtypes; leaves that take no part are the same objects.

    Raises:
      As :func:`encode`.

    >>> print(kmeans(jnp.array([0.0, 1.0, 1.5, -4.0, -4.5, 0.0]), 3))
    [ 0.    1.25  1.25 -4.25 -4.25  0.  ]
    """
    selection, leaves, records = _encoded(params, k, iterations, keep_zeros, where)
    return selection.replace([_shared(x, record) for x, record in zip(leaves, records, strict=True)])


def encode(params: Params, k: Setting, *, iterations: Any = 64, keep_zeros: bool = True, where: Where = None) -> Params:
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
      k: number of values a leaf, an integer in [1, 65536]; one for all leaves or a tree of them. Static, because it
        sets shapes.
      iterations: the most iterations of each run; one that has converged stops. Traced.
      keep_zeros: whether weights that are exactly 0 stay so, and other weights apart from them: pruned weights stay
        pruned. 0 is then one of the ``k`` values of a leaf that holds zeros, and ``k`` must be at least 2. Static.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      ``params`` with a ``CodebookArray`` in place of each selected leaf; other leaves are the same objects. The
      centroids ascend, but for the 0 of kept zeros, which comes first.

    Raises:
      ValueError: a leaf holds NaN or infinities (under ``jit`` all its weights but kept zeros become NaN instead), or
        2**31 weights or more; ``k`` or ``iterations`` is out of range.
      TypeError: ``k`` is no integer, or traced; a selected leaf does not hold floating-point numbers.

    >>> encoded = encode(jnp.array([0.0, 1.0, 1.5, -4.0, -4.5, 0.0]), 3)
    >>> encoded.codes, encoded.centroids.tolist()
    (Array([0, 2, 2, 1, 1, 0], dtype=uint8), [0.0, -4.25, 1.25])
    """
    selection, _, records = _encoded(params, k, iterations, keep_zeros, where)
    return selection.replace(records)


def _encoded(
    params: Params, k: Setting, iterations: Any, keep_zeros: bool, where: Where
) -> tuple[tree.Selection, list[Array], list[CodebookArray]]:
    """The leaves that take part, and the record of each."""
    selection = tree.select(params, where)
    if settings.any_traced(k):
        raise TypeError("k is static, as it sets shapes; got a traced one")
    if not all(np.issubdtype(np.asarray(size).dtype, np.integer) for size in jax.tree.leaves(k)):
        raise TypeError(f"k must be an integer or a tree of them, got {k!r}")
    sizes = settings.per_leaf(k, selection, "k", 2 if keep_zeros else 1, 2**16)
    steps = settings.check_setting(iterations, "iterations", 0, 2**24)
    names, leaves = selection.names, selection.values
    for path, leaf in zip(names, leaves, strict=True):
        if leaf.size >= 2**31:
            raise ValueError(f"leaf {tree.show(path)} has {leaf.size} weights; the most are 2**31 - 1")
    message = "holds NaN or infinities, which no codebook can share"
    settings.refuse(zip(names, leaves, strict=True), settings.not_finite, message)
    records = [_encode(x, int(size), steps, bool(keep_zeros)) for x, size in zip(leaves, sizes, strict=True)]
    return selection, leaves, records


def _encode(x: Array, k: int, iterations: Array, keep_zeros: bool) -> CodebookArray:
    wide = x if x.dtype == jnp.float32 else x.astype(jnp.float32)  # outside, so that all dtypes share a program
    codes, table, zeros = _clustered(wide, k, iterations, keep_zeros)
    return CodebookArray(codes, table, zeros, np.dtype(x.dtype))


@partial(jax.jit, static_argnums=(1, 3))
def _clustered(x: Array, k: int, iterations: Array, keep_zeros: bool) -> tuple[Array, Array, Array]:
    def coded(x: Array, iterations: Array) -> tuple[Array, Array, Array]:
        table, zeros = clustering.centroids(x, k, iterations, keep_zeros)
        return clustering.codes(x, table, zeros).astype(jnp.uint8 if k <= 256 else jnp.uint16), table, zeros

    x, iterations = lax.stop_gradient(x), iterations.astype(jnp.int32)
    return automatic(coded, x, iterations, out=(explicit_spec(x), PartitionSpec(), PartitionSpec()))


@jax.jit
def _shared(x: Array, record: CodebookArray) -> Array:
    return _straight_through(x, record.dense())


@jax.custom_jvp
def _straight_through(x: Array, value: Array) -> Array:
    return value


@_straight_through.defjvp
def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
    return primals[1], tangents[0]
