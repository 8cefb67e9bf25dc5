"""Order statistics by bisection over the bits of a key: one comparison of all elements for each bit.

For small leaves, whose programs compile soon this way, and for accelerators on which scatters are slow. It finds the
same cuts as ``jaxprune.kernels.radix``, bit for bit.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Array
from jaxprune.kernels.float_keys import Cut, Ranked, flat_index, key_type


def keys_at(leaves: Sequence[Ranked], ranks: Array) -> tuple[Array, Array]:
    """For each 0-based rank among all leaves: the key found there, and how many of its equals come before it."""
    kind = key_type(leaves[0].dtype)
    width = kind.itemsize * 8

    def below(trial: Array) -> Array:
        return sum((_count_below(leaf, trial) for leaf in leaves), jnp.zeros((), jnp.uint32))

    def one(rank: Array) -> tuple[Array, Array]:
        def step(i: Array, found: Array) -> Array:
            trial = found | (kind.type(1) << (width - 1 - i).astype(kind))
            return jnp.where(below(trial) <= rank, trial, found)

        key = jax.lax.fori_loop(0, width, step, jnp.zeros((), kind))
        return key, rank - below(key)

    return jax.tree.map(lambda found: found.reshape(ranks.shape), jax.lax.map(one, ranks.reshape(-1)))


@jax.jit
def _count_below(leaf: Ranked, trial: Array) -> Array:
    return jnp.sum(leaf.keys() < trial, dtype=jnp.uint32)


def cut_at(leaf: Ranked, rank: Array, key: Array | None = None) -> Cut:
    """A cut that exactly ``rank`` elements of the leaf lie below.

    One loop, over the bits of the key and then, among equal keys, over those of the flat index, as long as an equal
    element is left to remove.

    Args:
      leaf: what is ranked.
      rank: uint32, below the number of elements.
      key: if it is known; then ``rank`` counts only elements of this key.
    """
    index, keys = flat_index(leaf.values.shape), leaf.keys()
    kind = np.promote_types(keys.dtype, np.uint32)
    places = leaf.values.size.bit_length()

    def step(state: tuple[Array, Cut, Array, Array]) -> tuple[Array, Cut, Array, Array]:
        bit, cut, below, rank = state
        on_index = bit < places
        one = kind.type(1) << jnp.where(on_index, bit, bit - places).astype(kind)
        trial = jnp.where(on_index, cut.position.astype(kind), cut.key.astype(kind)) | one
        count = jnp.sum(cut.numbers(keys, index, on_index, kind) < trial, dtype=jnp.uint32)
        of_key, of_index = (count <= rank) & ~on_index, (count <= rank) & on_index
        cut = cut.moved(trial, of_key, of_index)
        below = jnp.where(of_key, count, below)
        return bit - 1, cut, below, jnp.where(bit == places, rank - below, rank)

    def unfinished(state: Any) -> Array:
        bit, _, _, rank = state
        return (bit >= places) | ((bit >= 0) & (rank > 0))

    none = jnp.zeros((), jnp.uint32)
    known = key is not None
    first = places - 1 + (0 if known else leaf.dtype.itemsize * 8)
    start = Cut(key if known else jnp.zeros((), keys.dtype), none)
    return jax.lax.while_loop(unfinished, step, (jnp.int32(first), start, none, rank))[1]
