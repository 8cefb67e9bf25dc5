"""One-shot compression of a matrix with feedback: what each row loses, the rows after it make up for, on the data.

For a matrix W [K, N] whose inputs x have second moments H = sum x x', a change E costs tr(E'HE). Rows are taken in
order; with inv(H) = U'U (U upper triangular), the rows j > k that are still free make up best for what row k lost by
W_j -= U_kj / U_kk * (W_k - Q_k). Sources: optimal brain surgeon, Hassibi & Stork 1992; GPTQ, Frantar et al. 2022
(arXiv:2210.17323), equations 2-5; SparseGPT, Frantar & Alistarh 2023 (arXiv:2301.00774), section 3.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.base import Array
from jaxprune.kernels import order
from jaxprune.kernels.order import removed_count

_BLOCK = 32  # rows at once: what they owe to each other stays in cache, what they owe the rest is one product


class Pass(NamedTuple):
    """What is chosen on the way. Traced but for the functions.

    Attributes:
      choose: static; ``(rows of a block [B, N], their U_kk [B], first row, settings) -> kept [B, N]``, or None.
      group: static; how many rows are chosen together; None for a block.
      rounded: static; ``(row [N], *its operands) -> row``, or None.
    """

    choose: Callable[[Array, Array, Array, Any], Array] | None = None
    group: int | None = None
    rounded: Callable[..., Array] | None = None


@jax.jit
def factor(gram: Array, damping: Array) -> Array:
    """The upper triangular U with inv(H + damping * mean(diag(H)) * I) = U'U, float32 [L, K, K].

    Inputs that are always zero neither give nor take feedback; at infinite damping none does.
    """
    return lax.map(lambda one: _factor(one, damping), gram)


def _factor(gram: Array, damping: Array) -> Array:
    diagonal = jnp.diagonal(gram)
    dead, mean = diagonal <= 0, jnp.mean(diagonal)
    scaled = gram / jnp.where(mean > 0, mean, 1)
    none = jnp.isinf(damping) | ~(mean > 0)
    identity = jnp.eye(len(gram), dtype=gram.dtype)
    damped = jnp.where(
        none, identity, scaled + jnp.diag(jnp.where(dead, 1, jnp.where(none, 0, damping)).astype(gram.dtype))
    )
    lower = jnp.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    return jax.scipy.linalg.solve_triangular(lower, identity, lower=False)


@partial(jax.jit, static_argnums=5)
def run(weights: Array, factors: Array, masks: Array, operands: Any, settings: Any, how: Pass) -> tuple[Array, Array]:
    """Compresses [L, K, N], one matrix after the other: the new weights, and which of them are kept.

    Args:
      weights: float32. Those that are not finite keep their place and give no feedback.
      factors: of :func:`factor`.
      masks: bool [L, K, N]; what is False becomes 0, and the others make up for it.
      operands: arrays [L, K, ...] for ``how.rounded``, a row each.
      settings: of ``how.choose``.
      how: static.
    """

    def one(row: Any) -> tuple[Array, Array]:
        weights, factors, operands = row
        return _run(weights, factors, operands, settings, how)

    return lax.map(one, (weights, factors, (masks, operands)))


def _run(weights: Array, factors: Array, operands: Any, settings: Any, how: Pass) -> tuple[Array, Array]:
    inputs = len(weights)
    group = how.group or 1
    size = group * max(_BLOCK // group, 1)
    blocks = -(-inputs // size)
    spare = blocks * size - inputs
    if spare:
        weights, operands = jax.tree.map(
            lambda rows: jnp.pad(rows, [(0, spare)] + [(0, 0)] * (rows.ndim - 1)), (weights, operands)
        )
        factors = jnp.pad(factors, (0, spare)) + jnp.diag((jnp.arange(blocks * size) >= inputs).astype(factors.dtype))
    kept, operands = operands

    def block(number: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        start = number * size
        own = partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
        put = partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        rows = own(factors)
        free, kept = state
        given = own(free), own(kept), own(rows, axis=1), jax.tree.map(own, operands)
        new, keep, lost = _block(*given, (start, inputs, settings), how)
        later = (jnp.arange(len(free)) >= start + size)[:, None]
        free = jnp.where(later, free - rows.T @ lost, free)
        return put(free, new), put(kept, keep)

    done, kept = lax.fori_loop(0, blocks, block, (weights, kept))
    return done[:inputs], kept[:inputs]


def _block(
    free: Array, kept: Array, factors: Array, operands: Any, place: Any, how: Pass
) -> tuple[Array, Array, Array]:
    """Some rows: their new weights, which of them are kept, and what each lost, over its U_kk."""
    size, group = len(free), how.group or len(free)

    def choose(free: Array, kept: Array, row: Array) -> Array:
        own = partial(lax.dynamic_slice_in_dim, start_index=row, slice_size=group)
        chosen = how.choose(own(free), own(jnp.diagonal(factors)), row, place) & own(kept)  # type: ignore[misc]
        return lax.dynamic_update_slice_in_dim(kept, chosen, row, 0)

    def step(row: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        free, kept, lost = state
        if how.choose is not None and group < size:
            kept = lax.cond(row % group == 0, choose, lambda free, kept, row: kept, free, kept, row)
        at = partial(lax.dynamic_index_in_dim, index=row, keepdims=False)
        put = partial(lax.dynamic_update_index_in_dim, index=row, axis=0)
        old, factor = at(free), at(factors)
        now = old if how.rounded is None else how.rounded(old, *map(at, operands))
        now = jnp.where(at(kept), now, 0)
        gone = jnp.where(jnp.isfinite(old) & jnp.isfinite(now), (old - now) / at(factor), 0)
        free, lost = put(free, now), put(lost, gone)
        owed = jnp.where(jnp.arange(size) > row, factor, 0)
        return free - owed[:, None] * at(lost)[None], kept, lost  # at(lost), or each row computes it anew

    if how.choose is not None and group == size:
        kept = choose(free, kept, jnp.zeros((), jnp.int32))
    return lax.fori_loop(0, size, step, (free, kept, jnp.zeros_like(free)))


def fraction(free: Array, diagonal: Array, row: Array, place: Any) -> Array:
    """Keeps the highest abs(w) / U_kk of a block; after it, exactly the wanted fraction of all so far is gone."""
    start, inputs, (sparsity,) = place
    ends = jnp.minimum(start + jnp.array([0, len(free)]), inputs).astype(jnp.uint32) * np.uint32(free.shape[1])
    before, after = removed_count(ends, sparsity)
    real = (start + jnp.arange(len(free)) < inputs)[:, None]
    return order.keep_above(jnp.where(real, jnp.abs(free) / diagonal[:, None], jnp.inf), after - before)


def n_of_m(free: Array, diagonal: Array, row: Array, place: Any) -> Array:
    """Keeps the ``n`` highest abs(w) / U_kk of each column."""
    _, _, (n,) = place
    removed = (len(free) - jnp.clip(jnp.round(n), 0, len(free))).astype(jnp.uint32)
    return jax.vmap(order.keep_above, (0, None))((jnp.abs(free) / diagonal[:, None]).T, removed).T
