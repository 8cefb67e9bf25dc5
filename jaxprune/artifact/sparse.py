"""Leaves of many zeros as JAX's sparse arrays."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune import tree
from jaxprune.base import Params, Where


def to_bcoo(params: Params, *, where: Where = None) -> Params:
    """Turns each selected leaf into a ``jax.experimental.sparse.BCOO`` of exactly its nonzero entries.

    On the host, where the number of them is known. ``BCOO.todense()`` gives the leaf back, with +0.0 for every zero;
    the indices are sorted and unique, int32 [entries, rank].

    Args:
      params: any pytree of arrays, or one bare array; what :func:`jaxprune.load` returns, say.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      ``params`` with a ``BCOO`` in place of each selected leaf; other leaves are the same objects.

    Raises:
      TypeError: traced leaves, or selected ones that do not hold floating-point numbers.

    >>> sparse = to_bcoo(jnp.array([[0.0, 2.0], [0.0, 0.0]]))
    >>> sparse.indices, sparse.data
    (Array([[0, 1]], dtype=int32), Array([2.], dtype=float32))
    """
    selection = tree.select(params, where)
    for path, leaf in zip(selection.names, selection.values, strict=True):
        if isinstance(leaf, Tracer):
            raise TypeError(f"leaf {tree.show(path)} is traced: how many entries are not 0 must be known")
    return selection.replace([_leaf(np.asarray(leaf)) for leaf in selection.values])


def _leaf(array: np.ndarray) -> Any:
    from jax.experimental.sparse import BCOO  # takes as long to import as all the rest

    places = np.argwhere(array != 0).astype(np.int32)
    data = array[tuple(places.T)] if array.ndim else array[None][: len(places)]
    return BCOO((jnp.asarray(data), jnp.asarray(places)), shape=array.shape, indices_sorted=True, unique_indices=True)
