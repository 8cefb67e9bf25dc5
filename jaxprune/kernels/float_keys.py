"""Floats as unsigned integers in the order that selection uses, and flat positions.

The total order: ascending, -0.0 equal to 0.0, NaN above +inf (all NaNs equal).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Array


class Cut(NamedTuple):
    """Where a selection ends: elements of a lower key, or of this key and a lower flat index, are removed."""

    key: Array
    position: Array

    def keeps(self, keys: Array, index: Array) -> Array:
        """Which elements stay."""
        return (keys > self.key) | ((keys == self.key) & (index >= self.position))

    def moved(self, to: Array, of_key: Array, of_index: Array) -> "Cut":
        """The cut with its key, or its position, at another number."""
        key = jnp.where(of_key, to.astype(self.key.dtype), self.key)
        return Cut(key, jnp.where(of_index, to.astype(jnp.uint32), self.position))

    def numbers(self, keys: Array, index: Array, on_index: Array, kind: Any) -> Array:
        """The keys; or the indices of what has this key, of all else the highest there is."""
        place = jnp.where(keys == self.key, index, np.uint32(2**32 - 1))
        return jnp.where(on_index, place.astype(kind), keys.astype(kind))


def key_type(dtype: np.dtype) -> np.dtype:
    """The unsigned integer type as wide as a float type."""
    return np.dtype(f"uint{dtype.itemsize * 8}")


def highest_key(dtype: np.dtype) -> Any:
    """A key above every float's; elements that must never be removed are given it."""
    return key_type(dtype).type(np.iinfo(key_type(dtype)).max)


def common_dtype(leaves: Sequence[Array]) -> np.dtype:
    """The float dtype in which all leaves compare exactly: their own if they share it, float32 or float64 if not."""
    kinds = {np.dtype(leaf.dtype) for leaf in leaves}
    if len(kinds) == 1 and (only := next(iter(kinds))).itemsize > 1:
        return only
    return np.dtype(np.float64 if np.dtype(np.float64) in kinds else np.float32)


def to_keys(values: Array, dtype: np.dtype, index: Array | None = None, guard: Cut | None = None) -> Array:
    """The keys of ``values`` as ``dtype``: the sign bit folded in, zeros made one, NaNs moved to the second highest.

    With a ``guard``, the elements that it keeps get the highest key.
    """
    unsigned = key_type(dtype).type
    sign = unsigned(1 << (dtype.itemsize * 8 - 1))
    infinity = np.asarray(np.inf, dtype).view(unsigned)[()]
    bits = jax.lax.bitcast_convert_type(values.astype(dtype), unsigned)
    size = bits & ~sign
    keys = jnp.where((bits >= sign) & (size > 0), ~bits, size | sign)
    keys = jnp.where(size > infinity, highest_key(dtype) - unsigned(1), keys)
    if guard is None or index is None:
        return keys
    return jnp.where(guard.keeps(keys, index), highest_key(dtype), keys)


def below(values: Array, limit: Array) -> Array:
    """``values < limit`` in the wider of their types, by their bits: where backends take subnormals for 0 too."""
    dtype = np.promote_types(values.dtype, limit.dtype)
    return (to_keys(values, dtype) < to_keys(limit, dtype)) & ~jnp.isnan(limit)


def is_zero(values: Array) -> Array:
    """``values == 0`` by their bits: a subnormal is none."""
    return jax.lax.bitcast_convert_type(values, key_type(values.dtype)) << 1 == 0


def from_keys(keys: Array, dtype: np.dtype) -> Array:
    """The float of each key."""
    sign = key_type(dtype).type(1 << (dtype.itemsize * 8 - 1))
    return jax.lax.bitcast_convert_type(jnp.where(keys >= sign, keys ^ sign, ~keys), dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Ranked:
    """A leaf whose elements are ranked, alone or among others.

    Attributes:
      values: float array.
      dtype: in which the leaves of one ranking compare, static.
      guard: the cut above which elements must stay, or ``None``.
    """

    values: Array
    dtype: np.dtype = field(metadata={"static": True})
    guard: Cut | None = None

    def keys(self) -> Array:
        """The keys of its elements."""
        return to_keys(self.values, self.dtype, flat_index(self.values.shape), self.guard)


def flat_index(shape: tuple[int, ...]) -> Array:
    """Row-major positions (uint32), as a sum over axes: it fuses, and needs no reshape of a sharded array."""
    index = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(math.prod(shape[axis + 1 :]))
    return index
