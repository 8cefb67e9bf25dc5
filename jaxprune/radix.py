"""Order statistics by radix selection: count one digit, most significant first, among the elements that may still win.

Keys of 32 bits take two passes over the elements, keys of 16 bits one, for one rank or for many.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.base import Array
from jaxprune.histogram import histogram
from jaxprune.keys import Cut, key_type, to_keys


def cut_at(
    leaves: Sequence[Array],
    guards: Sequence[Cut | None],
    dtype: np.dtype,
    rank: Array,
    key: Array | None = None,
) -> Cut:
    """A cut that exactly ``rank`` elements lie below; ``key`` given, that many of its equals.

    One loop finds the digits of the key and then, among its equals, those of the flat index, which most data never
    need: it ends once no equal element is left to remove. A loop rather than a sequence of passes, because each pass
    costs compile time for each leaf.
    """
    total = sum(leaf.size for leaf in leaves)
    width = _digit_width(total)
    of_key = -(-dtype.itemsize * 8 // width)
    levels = of_key + -(-total.bit_length() // width)
    lefts = jnp.asarray([*range(of_key)[::-1], *range(levels - of_key)[::-1]], jnp.uint32) * np.uint32(width)
    bases = np.cumsum([0, *(leaf.size for leaf in leaves)])

    def unfinished(state: tuple[Array, Cut, Array]) -> Array:
        level, _, rank = state
        return (level < of_key) | ((level < levels) & (rank > 0))

    def descend(state: tuple[Array, Cut, Array]) -> tuple[Array, Cut, Array]:
        level, cut, rank = state
        left, on_index = lefts[level], level >= of_key
        counts = jnp.zeros(1 << width, jnp.uint32)
        for leaf, guard, base in zip(leaves, guards, bases, strict=False):
            operands = (cut, left, on_index, jnp.asarray(base, jnp.uint32), guard)
            counts += histogram(leaf, operands, _NextDigit(dtype, width), 1 << width)
        digit, rank = _locate(counts[None], jnp.zeros(1, jnp.int32), rank[None])
        key_digit = jnp.where(on_index, 0, digit[0]).astype(key_type(dtype)) << left.astype(key_type(dtype))
        index_digit = jnp.where(on_index, digit[0], 0).astype(jnp.uint32) << left
        return level + 1, Cut(cut.key | key_digit, cut.index | index_digit), rank[0]

    start = jnp.asarray(0 if key is None else of_key, jnp.int32)
    found = jnp.zeros((), key_type(dtype)) if key is None else key
    return lax.while_loop(unfinished, descend, (start, Cut(found, jnp.zeros((), jnp.uint32)), rank))[1]


@dataclass(frozen=True)
class _NextDigit:
    """Sends an element that agrees with the digits found so far to its next digit, of its key or of its index."""

    dtype: np.dtype
    width: int

    def __call__(
        self, values: Array, index: Array, cut: Cut, left: Array, on_index: Array, base: Array, guard: Cut | None
    ) -> Array:
        keys, place = to_keys(values, self.dtype, index, guard), index + base
        shift = left.astype(keys.dtype)
        agrees = jnp.where(on_index, keys == cut.key, _same_above(keys, cut.key, shift, self.width))
        agrees &= ~on_index | _same_above(place, cut.index, left, self.width)
        digit = jnp.where(on_index, place >> left, (keys >> shift).astype(jnp.uint32)) & ((1 << self.width) - 1)
        return jnp.where(agrees, digit, np.uint32(1 << self.width))


def _same_above(a: Array, b: Array, left: Array, width: int) -> Array:
    # In two shifts: their sum may be the whole width of the type.
    return ((a ^ b) >> left) >> width == 0


def keys_at(
    leaves: Sequence[Array], guards: Sequence[Cut | None], dtype: np.dtype, ranks: Array
) -> tuple[Array, Array]:
    """For each 0-based rank (any shape): the key found there, and how many of its equals come before it.

    All ranks share the passes. Each level leaves a table from (slot, digit) to the next slot, where a slot stands for
    the distinct leading digits behind which some rank lies; the number of ranks stands for none.
    """
    rank = ranks.reshape(-1)
    slot, key = jnp.zeros(rank.size, jnp.int32), jnp.zeros(rank.size, key_type(dtype))
    tables: tuple[Array, ...] = ()
    widths = _digit_widths(dtype.itemsize * 8, sum(leaf.size for leaf in leaves), rank.size)
    for level, width in enumerate(widths):
        slots = rank.size if level else 1
        counts = jnp.zeros(slots << width, jnp.uint32)
        for leaf, guard in zip(leaves, guards, strict=True):
            binning = _SlotDigit(dtype, widths[: level + 1], rank.size)
            counts += histogram(leaf, (tables, guard), binning, slots << width)
        digit, rank = _locate(counts.reshape(slots, -1), slot, rank)
        key = (key << width) | digit.astype(key.dtype)
        bucket = (slot << width) + digit
        numbers = jnp.arange(rank.size, dtype=jnp.int32)
        table = jnp.full(slots << width, rank.size, jnp.int32).at[bucket].min(numbers)
        tables, slot = (*tables, table), table[bucket]
    return key.reshape(ranks.shape), rank.reshape(ranks.shape)


@dataclass(frozen=True)
class _SlotDigit:
    """Sends an element to (slot of its leading digits, next digit); beyond all bins if no rank lies behind those."""

    dtype: np.dtype
    widths: tuple[int, ...]
    ranks: int

    def __call__(self, values: Array, index: Array, tables: tuple[Array, ...], guard: Cut | None) -> Array:
        keys = to_keys(values, self.dtype, index, guard)
        slot = jnp.zeros(values.shape, jnp.uint32)
        left = self.dtype.itemsize * 8
        for level, width in enumerate(self.widths):
            if level:
                slot = tables[level - 1].at[slot].get(mode="fill", fill_value=self.ranks).astype(jnp.uint32)
            left -= width
            slot = (slot << width) + ((keys >> left) & ((1 << width) - 1)).astype(jnp.uint32)
        return slot


def _locate(counts: Array, slot: Array, rank: Array) -> tuple[Array, Array]:
    """In row ``slot`` of ``counts`` [slots, bins], the bin in which each rank falls, and the rank within it.

    In two steps, blocks of bins and then bins, so that nothing as long as the histogram is summed up cumulatively.
    """
    blocks = counts.reshape(counts.shape[0], 1 << (counts.shape[1].bit_length() // 2), -1)
    block, rank = _walk(blocks.sum(-1, dtype=jnp.uint32)[slot], rank)
    inner, rank = _walk(blocks[slot, block], rank)
    return block * blocks.shape[2] + inner, rank


def _walk(rows: Array, rank: Array) -> tuple[Array, Array]:
    passed = jnp.cumsum(rows, axis=1, dtype=jnp.uint32) <= rank[:, None]
    return passed.sum(1, dtype=jnp.int32), rank - jnp.where(passed, rows, 0).sum(1, dtype=jnp.uint32)


def _digit_width(total: int, ranks: int = 1) -> int:
    """Digits as wide as pays: a histogram no longer than the data, in at most 2**16 bins a slot."""
    return min(max(total // max(ranks, 1), 1 << 8), 1 << 16).bit_length() - 1


def _digit_widths(width: int, total: int, ranks: int) -> tuple[int, ...]:
    widths = [min(_digit_width(total), width)]
    while sum(widths) < width:
        widths.append(min(_digit_width(total, ranks), width - sum(widths)))
    return tuple(widths)
