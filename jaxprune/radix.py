"""Order statistics by radix selection: count one digit, most significant first, among the elements that may still win.

Keys of 32 bits take two passes over the elements, keys of 16 bits one, for one rank or for many.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.base import Array
from jaxprune.histogram import Weigh, histogram
from jaxprune.keys import Cut, bases, key_type, to_keys


def cuts_at(
    leaves: Sequence[Array],
    guards: Sequence[Cut | None],
    dtype: np.dtype,
    rankings: tuple[int, ...],
    ranks: Array,
    keys: Array | None = None,
) -> Cut:
    """For each of R rankings, a cut that exactly ``ranks[r]`` of its elements lie below.

    One loop finds the digits of the keys and then, among equal keys, those of the flat indices, which most data never
    need: it ends once no ranking has an equal element left to remove. A loop over digits and not a sequence of passes,
    and one loop for all rankings, because each loop body costs compile time.

    Args:
      leaves: float arrays.
      guards: for each leaf, the cut above which its elements must stay, or ``None``.
      dtype: in which the leaves compare.
      rankings: for each leaf the number of its ranking, ascending.
      ranks: uint32 [R], below the number of elements in the ranking.
      keys: [R], if they are known; then ``ranks`` counts only elements of this key.
    """
    count = ranks.size
    totals = [sum(leaf.size for leaf, r in zip(leaves, rankings, strict=True) if r == group) for group in range(count)]
    width = _digit_width(max(totals))
    of_key = -(-dtype.itemsize * 8 // width)
    levels = of_key + -(-max(totals).bit_length() // width)
    lefts = jnp.asarray([*range(of_key)[::-1], *range(levels - of_key)[::-1]], jnp.uint32) * np.uint32(width)

    def unfinished(state: tuple[Array, Cut, Array]) -> Array:
        level, _, rank = state
        return (level < of_key) | ((level < levels) & jnp.any(rank > 0))

    def descend(state: tuple[Array, Cut, Array]) -> tuple[Array, Cut, Array]:
        level, cut, rank = state
        left, on_index = lefts[level], level >= of_key
        counts = [jnp.zeros(1 << width, jnp.uint32)] * count
        for leaf, guard, r, base in zip(leaves, guards, rankings, bases(leaves, rankings), strict=True):
            binning = _NextDigit(dtype, width, r, base)
            counts[r] += histogram(leaf, (cut, left, on_index, guard), binning, 1 << width)
        digit, rank = _locate(jnp.stack(counts), jnp.arange(count, dtype=jnp.int32), rank)
        key_digit = jnp.where(on_index, 0, digit).astype(key_type(dtype)) << left.astype(key_type(dtype))
        index_digit = jnp.where(on_index, digit, 0).astype(jnp.uint32) << left
        return level + 1, Cut(cut.key | key_digit, cut.position | index_digit), rank

    start = jnp.asarray(0 if keys is None else of_key, jnp.int32)
    found = jnp.zeros(count, key_type(dtype)) if keys is None else keys
    return lax.while_loop(unfinished, descend, (start, Cut(found, jnp.zeros(count, jnp.uint32)), ranks))[1]


@dataclass(frozen=True)
class _NextDigit:
    """Sends an element that agrees with the digits found so far to its next digit, of its key or of its index."""

    dtype: np.dtype
    width: int
    ranking: int
    base: int

    def __call__(self, values: Array, index: Array, cut: Cut, left: Array, on_index: Array, guard: Cut | None) -> Array:
        keys, place = to_keys(values, self.dtype, index, guard), index + np.uint32(self.base)
        shift, found = left.astype(keys.dtype), cut.of(self.ranking)
        agrees = jnp.where(on_index, keys == found.key, _same_above(keys, found.key, shift, self.width))
        agrees &= ~on_index | _same_above(place, found.position, left, self.width)
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
        counts = _count_slots(leaves, guards, _SlotDigit(dtype, widths[: level + 1], rank.size), tables)
        digit, rank = _locate(counts, slot, rank)
        key = (key << width) | digit.astype(key.dtype)
        tables, slot = _deepen(tables, slot, digit, width)
    return key.reshape(ranks.shape), rank.reshape(ranks.shape)


def weights_below(leaves: Sequence[Array], dtype: np.dtype, keys: Array, weigh: Weigh) -> Array:
    """For each of ``keys`` [K], what all elements of lower keys weigh together: float32 [K], in shared passes."""
    slot, total, left = jnp.zeros(keys.size, jnp.int32), jnp.zeros(keys.size), dtype.itemsize * 8
    tables: tuple[Array, ...] = ()
    widths = _digit_widths(left, sum(leaf.size for leaf in leaves), keys.size)
    for level, width in enumerate(widths):
        left -= width
        digit = ((keys >> left) & ((1 << width) - 1)).astype(jnp.int32)
        binning = _SlotDigit(dtype, widths[: level + 1], keys.size)
        weights = _count_slots(leaves, [None] * len(leaves), binning, tables, weigh)
        lower = jnp.arange(1 << width, dtype=jnp.int32) < digit[:, None]
        total += jnp.where(lower, weights[slot], 0.0).sum(1)
        tables, slot = _deepen(tables, slot, digit, width)
    return total


def _count_slots(
    leaves: Sequence[Array],
    guards: Sequence[Cut | None],
    binning: "_SlotDigit",
    tables: tuple[Array, ...],
    weigh: Weigh | None = None,
) -> Array:
    """The leaves' histogram, [slots, bins]."""
    slots = binning.ranks if tables else 1
    counts = jnp.zeros(slots << binning.widths[-1], jnp.uint32 if weigh is None else jnp.float32)
    for leaf, guard in zip(leaves, guards, strict=True):
        counts += histogram(leaf, (tables, guard), binning, counts.size, weigh)
    return counts.reshape(slots, -1)


def _deepen(tables: tuple[Array, ...], slot: Array, digit: Array, width: int) -> tuple[tuple[Array, ...], Array]:
    """Adds the table of one more digit: a bucket's slot is the number of the first rank in it."""
    slots = slot.size if tables else 1
    bucket = (slot << width) + digit
    table = jnp.full(slots << width, slot.size, jnp.int32).at[bucket].min(jnp.arange(slot.size, dtype=jnp.int32))
    return (*tables, table), table[bucket]


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
