"""Leaves of many zeros as JAX's sparse arrays."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune import tree
from jaxprune.base import Array, Masks, Params, Where


def to_bcoo(params: Params, masks: Masks | None = None, *, where: Where = None) -> Params:
    """Turns leaves into ``jax.experimental.sparse.BCOO`` of exactly what masks keep, or of their nonzero entries.

    On the host, where the number of them is known. ``BCOO.todense()`` gives the leaf back, masked, with +0.0 for what
    is not stored; the indices are sorted and unique, int32 [entries, rank].

    Args:
      params: any pytree of arrays, or one bare array; what :func:`jaxprune.load` returns, say.
      masks: bool, same paths; True keeps. A kept weight is stored even if it is 0, so that it can be trained. Leaves
        under a 0-d True stay as they are. None to store what is not 0.
      where: which leaves take part, see :func:`jaxprune.tree.select`; None for all that have masks, or without masks
        for the default.

    Returns:
      ``params`` with a ``BCOO`` in place of each selected leaf; other leaves are the same objects.

    Raises:
      TypeError: traced leaves or masks, or selected leaves that do not hold floating-point numbers.
      ValueError: masks that do not fit, or a 0-d False.

    >>> sparse = to_bcoo(jnp.array([[0.0, 2.0], [0.0, 0.0]]))
    >>> sparse.indices, sparse.data
    (Array([[0, 1]], dtype=int32), Array([2.], dtype=float32))
    >>> to_bcoo(jnp.array([0.0, 2.0, 3.0]), jnp.array([True, True, False])).data
    Array([0., 2.], dtype=float32)
    """
    if masks is None:
        selection = tree.select(params, where)
        kept: list[Any] = [None] * len(selection.chosen)
    else:
        selection, kept = masked(params, masks, where)
    pairs = list(zip(selection.names, selection.values, kept, strict=True))
    for path, leaf, mask in pairs:
        if isinstance(leaf, Tracer) or isinstance(mask, Tracer):
            raise TypeError(f"leaf {tree.show(path)} is traced: how many entries are stored must be known")
    return selection.replace([_leaf(np.asarray(leaf), mask) for _, leaf, mask in pairs])


def masked(params: Params, masks: Masks, where: Where) -> tuple[tree.Selection, list[Array]]:
    """The leaves that have masks, of those that ``where`` selects (None: of all), and their masks."""
    floating, kept = tree.pair(params, masks)
    mask_of = dict(zip(floating.chosen, kept, strict=True))
    selection = floating if where is None else tree.select(params, where)
    for path, i in zip(selection.names, selection.chosen, strict=True):
        mask = mask_of[i]
        if mask.ndim == 0 and not isinstance(mask, Tracer) and not bool(mask):
            raise ValueError(f"the mask of {tree.show(path)} is a 0-d False; a 0-d True leaves a leaf alone")
    chosen = tuple(i for i in selection.chosen if mask_of[i].ndim)
    return selection._replace(chosen=chosen), [mask_of[i] for i in chosen]


def _leaf(array: np.ndarray, mask: Any) -> Any:
    from jax.experimental.sparse import BCOO  # takes as long to import as all the rest

    stored = array != 0 if mask is None else np.broadcast_to(np.asarray(mask), array.shape)
    places = np.argwhere(stored).astype(np.int32)
    data = array[tuple(places.T)] if array.ndim else array[None][: len(places)]
    return BCOO((jnp.asarray(data), jnp.asarray(places)), shape=array.shape, indices_sorted=True, unique_indices=True)
