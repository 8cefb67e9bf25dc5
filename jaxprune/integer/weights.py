"""Weights as codes on their way from a parameter to the products that use them.

Operations that only move numbers move codes, scales and zero points alike, so that a product finds the codes of the
matrix that it sees. Everything else takes the dense array.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.base import Array
from jaxprune.kernels import uniform
from jaxprune.quantization.arrays.coded import QArray

_SHIFT = 128  # from uint8 to int8: products of uint8 and int8 run many times slower
_CASTS = ("convert_element_type", "copy", "copy_p", "optimization_barrier", "stop_gradient")
_RESHAPES = ("reshape", "squeeze", "expand_dims", "broadcast_in_dim")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weight:
    """A parameter, or a view of it: ``(codes - zero) * scale``, or ``codes`` themselves.

    Attributes:
      codes: int8, or the dense array.
      scale: float32, of the rank of the codes; entry i along axis a has number ``i // blocks[a]``. None if dense.
      zero: int32 like the scale, or None for 0.
      path: of the parameter.
      dtype: of the dense array.
      largest: magnitude of a code less its zero point.
      blocks: how many entries share a scale along each axis; from the end, as scans take leading axes apart.
    """

    codes: Array
    scale: Array | None = None
    zero: Array | None = None
    path: str = field(default="", metadata={"static": True})
    dtype: Any = field(default=None, metadata={"static": True})
    largest: int = field(default=0, metadata={"static": True})
    blocks: tuple[int, ...] = field(default=(), metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def shared(self) -> tuple[int, ...]:
        """Along each axis, how many entries share a scale."""
        return self.blocks[len(self.blocks) - len(self.shape) :]

    def one_scale(self, axes: Sequence[int]) -> bool:
        """Whether all entries along these axes share it."""
        return all(self.shared[axis] >= self.shape[axis] for axis in axes)

    def spread(self, part: Array) -> Array:
        """A scale or zero point for each entry, or one where all share it."""
        for axis, (size, many) in enumerate(zip(self.shape, self.shared, strict=True)):
            if 1 < many < size:
                part = lax.slice_in_dim(jnp.repeat(part, many, axis), 0, size, axis=axis)
        return part

    def dense(self) -> Array:
        """The array, by the same roundings as ``QArray.dense``."""
        if self.scale is None:
            return self.codes.astype(self.dtype)
        codes = self.codes.astype(jnp.int32)
        codes = codes if self.zero is None else codes - self.spread(self.zero)
        return uniform.store(codes.astype(jnp.float32) * self.spread(self.scale), self.dtype)

    def moved(self, equation: Any) -> "list[Weight] | None":
        """What an operation on this operand alone makes of it; None if it does more than to move numbers."""
        name, params, results = equation.primitive.name, equation.params, [out.aval for out in equation.outvars]
        if name in _CASTS:
            same = len(results) == 1 and jnp.issubdtype(results[0].dtype, jnp.floating)
            return [replace(self, dtype=np.dtype(results[0].dtype))] if same else None
        if name == "transpose":
            return [self._transposed(params["permutation"])]
        if name in _RESHAPES and math.prod(results[0].shape) == math.prod(self.shape):
            return self._reshaped(results[0].shape)
        if name == "slice" and params["strides"] is None:
            return self._parts([(params["start_indices"], params["limit_indices"])])
        if name == "split":
            ends, axis = np.cumsum([0, *params["sizes"]]), params["axis"]
            pairs = zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
            start, limit = [0] * len(self.shape), list(self.shape)
            return self._parts([(_put(start, axis, low), _put(limit, axis, high)) for low, high in pairs])
        return None

    def _each(self, codes: Array, blocks: Sequence[int], of_scale: Any) -> "Weight":
        if self.scale is None:
            return replace(self, codes=codes, blocks=tuple(blocks))
        zero = None if self.zero is None else of_scale(self.zero)
        return replace(self, codes=codes, scale=of_scale(self.scale), zero=zero, blocks=tuple(blocks))

    def _transposed(self, order: Sequence[int]) -> "Weight":
        blocks = [self.shared[axis] for axis in order]
        return self._each(jnp.transpose(self.codes, order), blocks, lambda part: jnp.transpose(part, order))

    def _reshaped(self, shape: Sequence[int]) -> "list[Weight] | None":
        blocks = _blocks_of(self.shape, self.shared, shape)
        if blocks is None:
            return None
        own = [-(-size // many) for size, many in zip(shape, blocks, strict=True)]
        return [self._each(self.codes.reshape(shape), blocks, lambda part: part.reshape(own))]

    def _parts(self, ends: Sequence[tuple[Sequence[int], Sequence[int]]]) -> "list[Weight] | None":
        found = []
        for start, limit in ends:
            low, high, blocks = [], [], []
            for size, many, first, last in zip(self.shape, self.shared, start, limit, strict=True):
                if many < size and first % many:
                    return None
                low.append(0 if many >= size else first // many)
                high.append(1 if many >= size else -(-last // many))
                blocks.append(many)
            cut = lambda part, low=low, high=high: lax.slice(part, low, high)  # noqa: E731
            found.append(self._each(lax.slice(self.codes, start, limit), blocks, cut))
        return found


def weight_of(leaf: QArray, path: str) -> Weight:
    """The codes of a leaf, as int8."""
    codes, scale, zero = jnp.asarray(leaf.codes), leaf.scale, None if leaf.spec.symmetric else leaf.zero_point
    blocked, blocks = uniform.blocked_axis(codes.ndim, leaf.spec), []
    for axis, size in enumerate(codes.shape):
        place = axis if blocked is None or axis <= blocked else axis + 1
        at = place + scale.ndim - codes.ndim - (blocked is not None)
        alone = axis != blocked and at >= 0 and scale.shape[at] == size
        blocks.append(min(leaf.spec.block_size or size, size) if axis == blocked else 1 if alone else size)
    shape = [-(-size // many) if size else 1 for size, many in zip(codes.shape, blocks, strict=True)]
    largest = (1 << (leaf.bits - 1)) - 1 if leaf.spec.symmetric else (1 << leaf.bits) - 1
    if zero is not None:
        half = jnp.int32(1 << (leaf.bits - 1))
        codes, zero = (codes.astype(jnp.int32) - half).astype(jnp.int8), zero.reshape(shape) - half
    return Weight(codes, scale.reshape(shape), zero, path, np.dtype(leaf.dtype), max(largest, 1), tuple(blocks))


def _put(values: Sequence[int], place: int, value: int) -> list[int]:
    return [value if i == place else old for i, old in enumerate(values)]


def _blocks_of(shape: Sequence[int], blocks: Sequence[int], new: Sequence[int]) -> tuple[int, ...] | None:
    """How many entries share a scale along each axis after a reshape; None where that is not all to say.

    Row-major, an axis is a run of factors: how many scales there are, and how many entries share each. An axis of the
    result may have some of the first kind and then some of the second.
    """
    factors: list[tuple[int, bool]] = []
    for size, many in zip(shape, blocks, strict=True):
        many = min(many, size)
        if not size or size % many:
            return tuple(blocks) if tuple(shape) == tuple(new) else None
        factors += [one for one in ((size // many, True), (many, False)) if one[0] > 1]
    found = []
    for size in new:
        need, many, ended = size, 1, False
        while need > 1:
            have, own = factors.pop(0)
            took = math.gcd(have, need)
            if took == 1 or (took < have and took < need) or (own and ended):
                return None
            need, ended = need // took, ended or not own
            many *= 1 if own else took
            if took < have:
                factors.insert(0, (have // took, own))
        found.append(many)
    return tuple(found)
