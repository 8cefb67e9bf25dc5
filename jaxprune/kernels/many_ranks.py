"""Order statistics of many ranks at once: all share the passes over the elements, digit by digit."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxprune.base import Array
from jaxprune.kernels.float_keys import Cut, Ranked, key_type, to_keys
from jaxprune.kernels.histogram import histogram
from jaxprune.kernels.radix import locate


def keys_at(leaves: Sequence[Ranked], ranks: Array) -> tuple[Array, Array]:
    """For each 0-based rank (any shape): the key found there, and how many of its equals come before it.

    All ranks share the passes. Each level leaves a table from (slot, digit) to the next slot, where a slot stands for
    the distinct leading digits behind which some rank lies; the number of ranks stands for none.
    """
    rank, dtype = ranks.reshape(-1), leaves[0].dtype
    slot, key = jnp.zeros(rank.size, jnp.int32), jnp.zeros(rank.size, key_type(dtype))
    tables: tuple[Array, ...] = ()
    widths = _digit_widths(dtype.itemsize * 8, leaves, rank.size)
    for level, width in enumerate(widths):
        binning, slots = _SlotDigit(dtype, widths[: level + 1], rank.size), rank.size if tables else 1
        counts = jnp.zeros(slots << width, jnp.uint32)
        for leaf in leaves:
            counts += histogram(leaf.values, (tables, leaf.guard), binning, counts.size)
        digit, rank = locate(counts.reshape(slots, -1), slot, rank)
        key, bucket = (key << width) | digit.astype(key.dtype), (slot << width) + digit
        first = jnp.arange(slot.size, dtype=jnp.int32)  # a bucket's slot is the number of the first rank in it
        table = jnp.full(slots << width, slot.size, jnp.int32).at[bucket].min(first)
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


def _digit_widths(width: int, leaves: Sequence[Ranked], ranks: int) -> tuple[int, ...]:
    """Digits as wide as pays: a histogram no longer than the data, in at most 2**16 bins a slot."""
    total, widths = sum(leaf.values.size for leaf in leaves), []
    while sum(widths) < width:
        bins = min(max(total // (ranks if widths else 1), 1 << 8), 1 << 16)
        widths.append(min(bins.bit_length() - 1, width - sum(widths)))
    return tuple(widths)
