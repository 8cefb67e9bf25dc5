"""Equal elements at a cut: how many each leaf has, and the flat index up to which they go."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.base import Array
from jaxprune.kernels import bisection, radix
from jaxprune.kernels.batching import one_at_a_time
from jaxprune.kernels.float_keys import Cut, Ranked, flat_index

_BEYOND = np.uint32(2**32 - 1)  # every flat index lies before it
_SMALL = 1 << 16  # elements up to which a bisection is as fast as a histogram; it compiles sooner


@jax.jit
def count_from(leaf: Ranked, key: Array) -> tuple[Array, Array]:
    """How many elements have a higher key, and how many have this one: uint32."""
    keys = lax.stop_gradient(leaf).keys()
    return jnp.sum(keys > key, dtype=jnp.uint32), jnp.sum(keys == key, dtype=jnp.uint32)


def after_ties(leaves: list[Ranked], key: Array, rest: Array) -> list[Array]:
    """For each leaf, the flat index before which its elements of this key go, if ``rest`` of them go in all leaves.

    All that tells one leaf from the next is how many of these elements ``passed`` before it, a number that the sum over
    the leaf before has made: XLA compiles equal programs of leaves once, and those that hold a number of their own, or
    cut it out of an array, are not equal.
    """

    def find(leaves: list[Ranked], key: Array, rest: Array) -> tuple[list[Array], Array]:
        passed = [jnp.zeros((), jnp.uint32)]
        for leaf in leaves:
            passed.append(_pass(leaf, key, passed[-1]))
        here = [(before <= rest) & (rest < after) for before, after in pairwise(passed)]
        rank = rest - jnp.max(jnp.stack([jnp.where(before <= rest, before, np.uint32(0)) for before in passed]))
        return passed, index_in(leaves, key, here, rank)

    def nothing(leaves: list[Ranked], *_: Any) -> tuple[list[Array], Array]:
        return [jnp.ones((), jnp.uint32) for _ in range(len(leaves) + 1)], jnp.zeros((), jnp.uint32)

    def needed(leaves: list[Ranked], key: Array, rest: Array) -> tuple[list[Array], Array]:
        return lax.cond(rest > 0, find, nothing, leaves, key, rest)

    passed, index = one_at_a_time(needed)(lax.stop_gradient(leaves), key, rest)
    partly = (jnp.where(before <= rest, index, np.uint32(0)) for before in passed[:-1])
    return [jnp.where(after <= rest, _BEYOND, some) for after, some in zip(passed[1:], partly, strict=True)]


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
    return lax.platform_dependent(leaf, key, passed, tpu=by_sum, default=by_histogram)


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
    return lax.platform_dependent(leaf, rank, key, tpu=bisection.cut_at, default=radix.cut_at)
