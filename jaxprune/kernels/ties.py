"""Equal elements at a cut: how many each leaf has, and the flat index up to which they go."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import sequential_vmap

from jaxprune.base import Array
from jaxprune.kernels import bisection, radix
from jaxprune.kernels.float_keys import Cut, Ranked, flat_index
from jaxprune.kernels.sharding import explicit_spec

BEYOND = 2**32 - 1  # every flat index lies before it
_SMALL = 1 << 16  # elements up to which a bisection is as fast as a histogram; it compiles sooner
_JOINED = 1 << 22  # elements of small leaves in one


def join(leaves: Sequence[Ranked]) -> tuple[list[Ranked], list[list[int]]]:
    """Small neighbours as one leaf, as copying takes less than compiling, and the sizes of what each is made of."""
    runs: list[list[Ranked]] = []
    room = 0
    for leaf in leaves:
        size = leaf.values.size
        small = size <= _SMALL and leaf.guard is None and not any(explicit_spec(leaf.values))
        if runs and small and size <= room:
            runs[-1].append(leaf)
            room -= size
        else:
            runs.append([leaf])
            room = _JOINED - size if small else 0
    joined = [_as_one(run) if len(run) > 1 else run[0] for run in runs]
    return joined, [[leaf.values.size for leaf in run] for run in runs]


@jax.jit
def _as_one(run: list[Ranked]) -> Ranked:
    dtype = run[0].dtype
    return Ranked(jnp.concatenate([leaf.values.astype(dtype).ravel() for leaf in run]), dtype)


def positions(leaves: list[Ranked], sizes: list[list[int]], key: Array, rest: Array) -> list[Array]:
    """For each leaf that was joined, the flat index before which its elements of this key go, ``rest`` in all.

    All that tells one leaf from the next is how many of these elements ``passed`` before it, a number that the sum over
    the leaf before has made, and which is opaque outside of the branch: XLA compiles equal programs of leaves once, and
    those that hold a number of their own, or cut it out of an array, are not equal.
    """

    def find(leaves: list[Ranked], key: Array, rest: Array) -> list[Array]:
        passed = [jnp.zeros((), jnp.uint32)]
        for leaf in leaves:
            passed.append(_pass(leaf, key, passed[-1]))
        here = [(before <= rest) & (rest < after) for before, after in pairwise(passed)]
        rank = rest - jnp.max(jnp.stack([jnp.where(before <= rest, before, np.uint32(0)) for before in passed]))
        index = index_in(leaves, key, here, rank)
        lasts = []
        for (before, after), parts in zip(pairwise(passed), sizes, strict=True):
            last = jnp.where(after <= rest, np.uint32(BEYOND), jnp.where(before <= rest, index, np.uint32(0)))
            for size in map(np.uint32, parts):
                lasts.append(last)
                last = jnp.where(last > size, last - size, np.uint32(0))
        return lasts

    def nothing(*_: Any) -> list[Array]:
        return [jnp.zeros((), jnp.uint32) for parts in sizes for _ in parts]

    def needed(leaves: list[Ranked], key: Array, rest: Array) -> list[Array]:
        return jax.lax.cond(rest > 0, find, nothing, leaves, key, rest)

    return sequential_vmap(needed)(leaves, key, rest)


@jax.jit
def _pass(leaf: Ranked, key: Array, passed: Array) -> Array:
    """``passed`` and how many elements have this key; of large leaves by a histogram of one bin: no memory needed."""

    def by_sum(leaf: Ranked, key: Array, passed: Array) -> Array:
        first = jnp.where(flat_index(leaf.values.shape) == 0, passed, np.uint32(0))
        return jnp.sum((leaf.keys() == key).astype(jnp.uint32) + first, dtype=jnp.uint32)

    def by_histogram(leaf: Ranked, key: Array, passed: Array) -> Array:
        return passed + radix.count_equal(leaf, key)

    if not leaf.values.size:
        return passed
    if leaf.values.size <= _SMALL:
        return by_sum(leaf, key, passed)
    return jax.lax.platform_dependent(leaf, key, passed, tpu=by_sum, default=by_histogram)


def index_in(leaves: Sequence[Ranked], key: Array, here: Sequence[Array], rank: Array) -> Array:
    """The flat index that exactly ``rank`` elements of this key lie before, in the leaf that is ``here``; 0 in none.

    Leaves of one shape share the search, which takes long to compile: it is made in the one that needs it.
    """
    found, groups = jnp.zeros((), jnp.uint32), defaultdict(list)
    for leaf, mine in zip(leaves, here, strict=True):
        groups[jax.typeof(leaf.values)].append((leaf, mine))  # of one shape, dtype and explicit sharding
    for (leaf, any_here), *others in groups.values():
        for other, mine in others:
            leaf = jax.tree.map(partial(jnp.where, mine), other, leaf)
            any_here |= mine
        found |= search(leaf, jnp.where(any_here, rank, np.uint32(0)), key).position
    return found


def search(leaf: Ranked, rank: Array, key: Array | None = None) -> Cut:
    """By bisection or by histograms, as suits the size and the platform."""
    if leaf.values.size <= _SMALL:
        return bisection.cut_at(leaf, rank, key)
    return jax.lax.platform_dependent(leaf, rank, key, tpu=bisection.cut_at, default=radix.cut_at)
