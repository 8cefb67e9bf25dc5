"""Equal elements at a cut: how many each leaf has, and the flat index up to which they go."""

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
from jaxprune.kernels.float_keys import Cut, flat_index, to_keys

_BEYOND = np.uint32(2**32 - 1)  # every flat index lies before it
_SMALL = 1 << 16  # elements up to which a bisection is as fast as a histogram; it compiles sooner


@partial(jax.jit, static_argnums=3)
def count_from(leaf: Array, guard: Cut | None, key: Array, dtype: np.dtype) -> tuple[Array, Array]:
    """How many elements have a higher key, and how many have this one: uint32."""
    keys = to_keys(lax.stop_gradient(leaf), dtype, flat_index(leaf.shape), guard)
    return jnp.sum(keys > key, dtype=jnp.uint32), jnp.sum(keys == key, dtype=jnp.uint32)


def after_ties(leaves: Any, guards: Any, dtype: np.dtype, key: Array, rest: Array) -> list[Array]:
    """For each leaf, the flat index before which its elements of this key go, if ``rest`` of them go in all leaves.

    All that tells one leaf from the next is how many of these elements ``passed`` before it, a number that the sum over
    the leaf before has made: XLA compiles equal programs of leaves once, and those that hold a number of their own, or
    cut it out of an array, are not equal.
    """

    def find(leaves: Any, guards: Any, key: Array, rest: Array) -> tuple[list[Array], Array]:
        passed = [jnp.zeros((), jnp.uint32)]
        for leaf, guard in zip(leaves, guards, strict=True):
            passed.append(_pass(leaf, guard, key, passed[-1], dtype))
        here = [(before <= rest) & (rest < after) for before, after in pairwise(passed)]
        rank = rest - jnp.max(jnp.stack([jnp.where(before <= rest, before, np.uint32(0)) for before in passed]))
        return passed, index_in(leaves, guards, dtype, key, here, rank)

    def nothing(leaves: Any, *arguments: Any) -> tuple[list[Array], Array]:
        return [jnp.ones((), jnp.uint32) for _ in range(len(leaves) + 1)], jnp.zeros((), jnp.uint32)

    def needed(leaves: Any, guards: Any, key: Array, rest: Array) -> tuple[list[Array], Array]:
        return lax.cond(rest > 0, find, nothing, leaves, guards, key, rest)

    leaves = [lax.stop_gradient(leaf) for leaf in leaves]
    passed, index = one_at_a_time(needed)(leaves, list(guards), key, rest)
    partly = (jnp.where(before <= rest, index, np.uint32(0)) for before in passed[:-1])
    return [jnp.where(after <= rest, _BEYOND, some) for after, some in zip(passed[1:], partly, strict=True)]


@partial(jax.jit, static_argnums=4)
def _pass(leaf: Array, guard: Cut | None, key: Array, passed: Array, dtype: np.dtype) -> Array:
    """``passed`` and how many elements have this key; of large leaves by a histogram of one bin: no memory needed."""

    def by_sum(leaf: Array, guard: Any, key: Array, passed: Array) -> Array:
        index = flat_index(leaf.shape)
        equal = to_keys(leaf, dtype, index, guard) == key
        return jnp.sum(equal.astype(jnp.uint32) + jnp.where(index == 0, passed, np.uint32(0)), dtype=jnp.uint32)

    def by_histogram(leaf: Array, guard: Any, key: Array, passed: Array) -> Array:
        return passed + radix.count_equal(leaf, guard, key, dtype)

    if not leaf.size:
        return passed
    if leaf.size <= _SMALL:
        return by_sum(leaf, guard, key, passed)
    return lax.platform_dependent(leaf, guard, key, passed, tpu=by_sum, default=by_histogram)


def index_in(leaves: Any, guards: Any, dtype: np.dtype, key: Array, here: Sequence[Array], rank: Array) -> Array:
    """The flat index that exactly ``rank`` elements of this key lie before, in the leaf that is ``here``; 0 in none.

    Leaves of one shape share the search, which takes long to compile: it is made in the one that needs it.
    """
    found = jnp.zeros((), jnp.uint32)
    for alike in _alike(leaves):
        leaf, guard, any_here = leaves[alike[0]], guards[alike[0]], here[alike[0]]
        for i in alike[1:]:
            leaf, guard = jax.tree.map(partial(jnp.where, here[i]), (leaves[i], guards[i]), (leaf, guard))
            any_here |= here[i]
        found |= search(leaf, guard, dtype, jnp.where(any_here, rank, np.uint32(0)), key).position
    return found


def _alike(leaves: Sequence[Array]) -> list[list[int]]:
    """The leaves' numbers, by type: shape, dtype and explicit sharding."""
    groups: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        groups.setdefault(jax.typeof(leaf), []).append(i)
    return list(groups.values())


def search(leaf: Array, guard: Any, dtype: np.dtype, rank: Array, key: Array | None = None) -> Cut:
    """By bisection or by histograms, as suits the size and the platform."""

    def by_bisection(leaf: Array, guard: Any, rank: Array, key: Array | None) -> Cut:
        return bisection.cut_at(leaf, guard, dtype, rank, key)

    def by_radix(leaf: Array, guard: Any, rank: Array, key: Array | None) -> Cut:
        return radix.cut_at(leaf, guard, dtype, rank, key)

    if leaf.size <= _SMALL:
        return by_bisection(leaf, guard, rank, key)
    return lax.platform_dependent(leaf, guard, rank, key, tpu=by_bisection, default=by_radix)
