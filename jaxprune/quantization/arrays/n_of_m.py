"""N:M sparse arrays without their zeros: the kept values, and where they stood in their groups, in a few bits each."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import settings, tree
from jaxprune.base import Array, Layout, Masks, Params, Where
from jaxprune.kernels import by_shape
from jaxprune.layout import check_axis, grouped_along
from jaxprune.quantization.arrays.packed import pack, packed_length, unpack
from jaxprune.quantization.arrays.protocol import FlaxState, masked, stored

_LONGEST = 256  # entries of a group, so that a byte holds an index


@stored
class NOfMArray(FlaxState):
    """An array of which ``n`` of every ``m`` consecutive entries along an axis are stored; the others are 0.

    Attributes:
      values: the stored entries in order, in the array's dtype and shape, but for the axis, which has ``n / m`` of its
        length.
      indices: uint8 vector, the place of each stored entry in its group, 0 to ``m - 1`` and ascending there, packed by
        :func:`jaxprune.quantization.pack` in ``ceil(log2 m)`` bits. Those of a group are neighbours, and groups go
        along the axis first, then along the other axes in order: for 2:4 half a byte a group, the first index lowest,
        as sparse tensor cores take them.
      n, m: stored entries of a group, and its length, static.
      axis: the axis of the groups, counted from the end, static.
      shape: shape of the array, static.
    """

    values: Array
    indices: Array
    n: int
    m: int
    axis: int
    shape: tuple[int, ...]

    @property
    def dtype(self) -> Any:
        """Dtype of the array."""
        return self.values.dtype

    def dense(self) -> Array:
        """The entries that were stored, bit for bit, and +0.0; records made under ``vmap`` need it here too."""
        n, m, shape = self.n, self.m, self.shape
        _check_numbers(n, m)
        if not -len(shape) <= self.axis < 0 or shape[self.axis] % m:
            raise ValueError(f"groups of {m} along axis {self.axis} of an array of shape {shape}")
        stored = _with_length(shape, self.axis, shape[self.axis] // m * n)
        number = packed_length(math.prod(stored), _width(m))
        if (own := (jnp.shape(self.values), jnp.shape(self.indices))) != (stored, (number,)):
            needed = f"values of shape {stored} and {number} bytes of indices, not {own[0]} and {own[1]}"
            advice = "(records made under jax.vmap need it here too)"
            raise ValueError(f"{n}:{m} of an array of shape {shape} is {needed} {advice}")
        axis, values = self.axis % len(shape), jnp.asarray(self.values)
        along = (*(length for i, length in enumerate(stored) if i != axis), stored[axis])
        indices = jnp.moveaxis(unpack(jnp.asarray(self.indices), _width(m), along), -1, axis)
        entries, indices = _groups(values, n, axis), _groups(indices, n, axis)
        found = jnp.zeros(_with_length(entries.shape, axis + 1, m), values.dtype)
        place = jax.lax.broadcasted_iota(jnp.uint8, found.shape, axis + 1)

        def step(s: Any, found: Array) -> Array:
            at = jax.lax.dynamic_index_in_dim(indices, s, axis + 1)
            return jnp.where(at == place, jax.lax.dynamic_index_in_dim(entries, s, axis + 1), found)

        return jax.lax.fori_loop(0, n, step, found).reshape(shape)


def to_n_of_m(
    params: Params,
    masks: Masks,
    n: int = 2,
    m: int = 4,
    *,
    axis: int | None = None,
    where: Where = None,
    layout: Layout = None,
) -> Params:
    """Stores each masked leaf without the entries that an N:M mask removes, in ``n / m`` of its bytes and the indices.

    Works under ``jit`` and ``vmap``.

    Args:
      params: any pytree of arrays, or one bare array.
      masks: bool, same paths, as of :func:`jaxprune.masks.n_of_m`; True keeps. Leaves under a 0-d True stay as they
        are.
      n: how many of a group are stored, 1 to ``m``. Static.
      m: the length of a group, 2 to 256. Static.
      axis: the axis of the groups; by default that of each leaf's layout, the last that its product contracts. Static.
      where: which of the masked leaves take part, see :func:`jaxprune.tree.select`; None for all of them.
      layout: the axes of leaves, static; see :mod:`jaxprune.layout`.

    Returns:
      ``params`` with an :class:`NOfMArray` in place of each masked leaf; other leaves are the same objects. Where a
      mask keeps fewer than ``n`` of a group, zeros fill it up, at the lowest places that are free.

    Raises:
      ValueError: a mask keeps more than ``n`` of a group; the message names it. (Traced masks cannot be looked at: all
        stored values of such a group become NaN.) ``n`` or ``m`` out of range, no such axis, a length that ``m`` does
        not divide, masks that do not fit, or a 0-d False.
      TypeError: n or m that are no integers, or a mask that is not bool.

    Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021 (arXiv:2104.08378), section 3.

    >>> w = jnp.array([[0.0], [4.0], [3.0], [0.0]])
    >>> small = to_n_of_m(w, w != 0)
    >>> small.values[:, 0], small.indices
    (Array([4., 3.], dtype=float32), Array([9], dtype=uint8))
    """
    _check_numbers(n, m)
    selection, kept = masked(params, masks, where)
    selection, axes = grouped_along(selection, axis, layout)
    for path, leaf, mask, axis in zip(selection.names, selection.values, kept, axes, strict=True):
        length = leaf.shape[check_axis(path, leaf.shape, axis)]
        if length % m:
            raise ValueError(f"leaf {tree.show(path)}: axis {axis} has length {length}, not a multiple of m={m}")
        _check_groups(path, leaf, mask, n, m, axis)
    return selection.replace(by_shape.each(_to_leaf, selection.values, kept, own=axes, static=(int(n), int(m))))


def fault(record: NOfMArray) -> str:
    """What is wrong with the indices of a record whose parts fit together, if anything."""
    width, number = _width(record.m), record.values.size
    packed = np.asarray(record.indices)
    if number * width % 8 and packed[-1] >> (number * width % 8):
        return "spare bits of indices that are not zeros"
    indices = unpack(packed, width, (number // record.n, record.n)).astype(np.int32)
    if number and indices.max() >= record.m:
        return f"an index of {indices.max()} in groups of {record.m}"
    return "" if (np.diff(indices, axis=1) > 0).all() else "indices that do not ascend"


def _check_numbers(n: Any, m: Any) -> None:
    if any(isinstance(number, bool) or not isinstance(number, int | np.integer) for number in (n, m)):
        raise TypeError(f"n and m must be integers, got n={n!r}, m={m!r}")
    if not 2 <= m <= _LONGEST or not 1 <= n <= m:
        raise ValueError(f"n of m must have 2 <= m <= {_LONGEST} and 1 <= n <= m, got n={n}, m={m}")


def _check_groups(path: str, leaf: Array, mask: Array, n: int, m: int, axis: int) -> None:
    """Raises ``ValueError`` with the first group of which a concrete mask keeps too many."""
    if settings.any_traced(mask) or not bool(_crowded(mask, leaf.shape, n, m, axis % leaf.ndim)):
        return
    whole = np.moveaxis(np.broadcast_to(np.asarray(mask), leaf.shape), axis, -1)
    kept = whole.reshape(*whole.shape[:-1], -1, m).sum(axis=-1)
    *others, group = (int(i) for i in np.argwhere(kept > n)[0])
    place = [str(i) for i in others]
    place.insert(axis % leaf.ndim, f"{group * m}:{group * m + m}")
    where = f"group {group} along axis {axis}, [{', '.join(place)}]"
    raise ValueError(f"leaf {tree.show(path)}: the mask keeps {kept[kept > n][0]} of {where}, more than n={n}")


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _crowded(mask: Array, shape: tuple[int, ...], n: int, m: int, axis: int) -> Array:
    return jnp.any(_groups(jnp.broadcast_to(mask, shape), m, axis).sum(axis=axis + 1, dtype=jnp.int32) > n)


def _to_leaf(x: Array, mask: Array, axis: int, n: int, m: int) -> NOfMArray:
    axis = axis % x.ndim
    entries, kept = _groups(x, m, axis), _groups(jnp.broadcast_to(mask, x.shape), m, axis)
    total = jnp.sum(kept, axis=axis + 1, keepdims=True, dtype=jnp.int16)
    place = jax.lax.broadcasted_iota(jnp.int16, _with_length(entries.shape, axis + 1, n), axis + 1)

    def step(p: Any, state: tuple[Array, ...]) -> tuple[Array, ...]:
        values, indices, taken, spare = state
        keep = jax.lax.dynamic_index_in_dim(kept, p, axis + 1)
        take = keep | (spare > 0)
        here = take & (place == taken)
        entry = jnp.where(keep, jax.lax.dynamic_index_in_dim(entries, p, axis + 1), jnp.zeros((), x.dtype))
        values, indices = jnp.where(here, entry, values), jnp.where(here, jnp.asarray(p, jnp.uint8), indices)
        return values, indices, taken + take.astype(jnp.int16), spare - (take & ~keep).astype(jnp.int16)

    zeros = jnp.zeros(place.shape, x.dtype), jnp.zeros(place.shape, jnp.uint8)
    # A loop, also where it is short: otherwise XLA computes the indices again for each byte that they are packed in.
    values, indices, _, _ = jax.lax.fori_loop(0, m, step, (*zeros, jnp.zeros_like(total), n - total))
    values = jnp.where(total > n, jnp.asarray(jnp.nan, x.dtype), values)
    stored = _with_length(x.shape, axis, x.shape[axis] // m * n)
    along = jnp.moveaxis(indices.reshape(stored), axis, -1)
    return NOfMArray(values.reshape(stored), pack(along, _width(m)), n, m, axis - x.ndim, x.shape)


def _groups(x: Array, length: int, axis: int) -> Array:
    """The axis cut in two: groups, and places in them."""
    return x.reshape(*x.shape[:axis], x.shape[axis] // length, length, *x.shape[axis + 1 :])


def _with_length(shape: tuple[int, ...], axis: int, length: int) -> tuple[int, ...]:
    at = axis % len(shape)
    return (*shape[:at], length, *shape[at + 1 :])


def _width(m: int) -> int:
    """Bits of an index."""
    return (m - 1).bit_length()
