"""Equal elements at a cut: how many each leaf has, and the flat index up to which they go."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.base import Array
from jaxprune.kernels import bisection, radix
from jaxprune.kernels.batching import one_at_a_time
from jaxprune.kernels.float_keys import Cut, flat_index, to_keys

_SMALL = 1 << 16  # elements up to which a bisection is as fast as a histogram; it compiles sooner


@partial(jax.jit, static_argnums=3)
def count_from(leaf: Array, guard: Cut | None, key: Array, dtype: np.dtype) -> tuple[Array, Array]:
    """How many elements have a higher key, and how many have this one: uint32."""
    keys = to_keys(lax.stop_gradient(leaf), dtype, flat_index(leaf.shape), guard)
    return jnp.sum(keys > key, dtype=jnp.uint32), jnp.sum(keys == key, dtype=jnp.uint32)


def after_ties(leaves: Any, guards: Any, dtype: np.dtype, key: Array, rest: Array) -> list[Array]:
    """For each leaf, the flat index before which its elements of this key go, if ``rest`` of them go in all leaves.

    The numbers come out of the branch one by one: XLA compiles equal programs of leaves once, and those that cut a
    number of their own out of an array, or hold it as a constant, are not equal.
    """
    numbers, sizes = np.arange(len(leaves)), np.asarray([leaf.size for leaf in leaves], np.uint32)

    def find(leaves: Any, guards: Any, key: Array, rest: Array) -> list[Array]:
        counts = jnp.stack([_equal(leaf, guard, key, dtype) for leaf, guard in zip(leaves, guards, strict=True)])
        passed = jnp.cumsum(counts, dtype=jnp.uint32)
        which = jnp.sum(passed <= rest, dtype=jnp.int32)
        rank = rest - jnp.max(jnp.where(passed <= rest, passed, np.uint32(0)))
        index = index_in(leaves, guards, dtype, key, which, rank)
        return list(jnp.where(numbers < which, sizes, jnp.where(numbers == which, index, np.uint32(0))))

    def nothing(leaves: Any, *arguments: Any) -> list[Array]:
        return [jnp.zeros((), jnp.uint32) for _ in leaves]

    def needed(leaves: Any, guards: Any, key: Array, rest: Array) -> list[Array]:
        return lax.cond(rest > 0, find, nothing, leaves, guards, key, rest)

    return one_at_a_time(needed)([lax.stop_gradient(leaf) for leaf in leaves], list(guards), key, rest)


@partial(jax.jit, static_argnums=3)
def _equal(leaf: Array, guard: Cut | None, key: Array, dtype: np.dtype) -> Array:
    """How many elements have this key; of large leaves by a histogram of one bin, which needs no memory."""

    def by_sum(leaf: Array, guard: Any, key: Array) -> Array:
        return count_from(leaf, guard, key, dtype)[1]

    def by_histogram(leaf: Array, guard: Any, key: Array) -> Array:
        return radix.count_equal(leaf, guard, key, dtype)

    if leaf.size <= _SMALL:
        return by_sum(leaf, guard, key)
    return lax.platform_dependent(leaf, guard, key, tpu=by_sum, default=by_histogram)


def index_in(leaves: Any, guards: Any, dtype: np.dtype, key: Array, which: Array, rank: Array) -> Array:
    """The flat index in leaf ``which`` that exactly ``rank`` of its elements of this key lie before; 0 in no leaf.

    Leaves of one shape share the search, which takes long to compile: it is made in the one that needs it.
    """
    found = jnp.zeros((), jnp.uint32)
    for alike in _alike(leaves):
        leaf, guard, here = leaves[alike[0]], guards[alike[0]], which == alike[0]
        for i in alike[1:]:
            leaf, guard = jax.tree.map(partial(jnp.where, which == i), (leaves[i], guards[i]), (leaf, guard))
            here |= which == i
        found |= search(leaf, guard, dtype, jnp.where(here, rank, np.uint32(0)), key).position
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
