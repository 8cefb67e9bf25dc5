"""Trellis-coded quantization: fewer bits than rounding weight by weight can have at such an error.

Weights are rounded to odd multiples of step / 2, where each depends on those before: of the numbers within reach, half
are allowed (:mod:`jaxprune.kernels.viterbi`), and a Viterbi search finds the sequence of least squared error. At the
entropy of a uniform quantizer the error is about 1 dB less with 8 states, of the 1.53 dB that are possible; at
1 to 3 bits a weight, where the numbers near 0 waste less as well, up to 1.5 dB less.

Sources: Marcellin and Fischer 1990, "Trellis coded quantization of memoryless and Gauss-Markov sources"; with entropy
coding Fischer and Wang 1992, "Entropy-constrained trellis-coded quantization", and Marcellin 1994.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import settings, tree
from jaxprune.base import Array, Params, Setting, Where
from jaxprune.kernels import viterbi
from jaxprune.kernels.rounding import TINY
from jaxprune.quantization.arrays.coded import TrellisArray

_LARGEST = 2.0**22  # number of steps, so that whole numbers are exact in float32
_RARE = 2**16  # a rotated leaf has at most one zero in so many
_SMALL = np.float32(1e-6)  # steps


def quantize(
    params: Params, step: Setting, penalty: Setting = 0.0, *, states: int = 8, rotate: bool = False, where: Where = None
) -> Params:
    """Stores each selected leaf as indices of a trellis quantizer.

    Minimizes the sum of (w' - w)**2 over sequences of at most 512 weights, where w' is what is stored. A positive
    ``penalty`` first shrinks w to w / (1 + penalty * step**2 / (2 ln(2) v)), with v the variance of its row and column
    (the mean square of its row times that of its column in rows of equal norm): so the squared error and the bits of a
    normal distribution together are least. Weights that are 0 stay 0.

    Args:
      params: any pytree, or one bare array; not under ``jit``.
      step: distance of neighboring numbers, above 0; a scalar or a tree of scalars. At the same error it is about 0.56
        of a uniform quantizer's.
      penalty: what a bit is worth, in squared error over ``step**2``, at least 0; a scalar or a tree. 0.45 is what a
        bit is worth at the error that ``step`` makes; it pays at less than 4 bits a weight.
      states: of the trellis: 4, 8, 16 or 32. Twice as many take twice the time, and save about 0.01 bits a weight.
        Static.
      rotate: whether to rotate the rows of leaves that have at least 8 times as many rows as columns, such as
        embeddings, if that saves bits (:mod:`jaxprune.kernels.viterbi`). In these fewer than 1 weight in 65536
        may be 0, and
        does not stay 0. Static.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      ``params`` with a ``TrellisArray`` in place of each selected leaf; other leaves are the same objects.

    Raises:
      TypeError: traced arguments; a selected leaf does not hold floating-point numbers.
      ValueError: a setting out of range; NaN or infinity, or more than 2**22 steps, with the leaf's path.

    >>> stored = quantize(jnp.array([-0.5, 0.0, 0.3, 0.8]), 0.1)
    >>> print(stored.indices, stored.dense())
    [-3  0 -2 -4] [-0.55  0.    0.35  0.75]
    """
    if states not in viterbi.TAPS:
        raise ValueError(f"states must be one of {sorted(viterbi.TAPS)}, got {states!r}")
    selection = tree.select(params, where)
    steps = settings.per_leaf(step, selection, "step", float(TINY), float(np.finfo(np.float32).max) / 4)
    penalties = settings.per_leaf(penalty, selection, "penalty", 0, float(np.finfo(np.float32).max))
    leaves = selection.values
    if settings.any_traced(leaves, steps, penalties):
        raise TypeError("trellis.quantize needs concrete values, which decide how the indices are stored")
    plans = _plans(selection.names, leaves, steps, rotate)
    indices = _search(leaves, steps, penalties, plans, states)
    bases = [np.zeros((0, 0), np.int8) if plan.basis is None else plan.basis[0] for plan in plans]
    small = jax.device_put((steps, bases))  # all at once: one by one takes as long as a search
    found = zip(indices, *small, plans, leaves, strict=True)
    return selection.replace([TrellisArray(i, s, basis, states, p.zero, x.dtype) for i, s, basis, p, x in found])


class _Plan(NamedTuple):
    basis: tuple[np.ndarray, Array] | None  # and its inverse
    zero: int | None
    dtype: np.dtype


def _plans(names: list[str], leaves: list[Array], steps: list[Any], rotate: bool) -> list[_Plan]:
    """How each leaf is stored."""
    plans = []
    for name, x, step, seen in zip(names, leaves, steps, jax.device_get([_extremes(x) for x in leaves]), strict=True):
        most = float(seen[0]) / float(step)
        if not np.isfinite(seen[0]):
            raise ValueError(f"leaf {tree.show(name)} holds NaN or infinity, for which there are no indices")
        if most > _LARGEST:
            raise ValueError(f"leaf {tree.show(name)} reaches {seen[0]:g}: {most:g} steps, of at most {_LARGEST:g}")
        zeros = int(_zeros(x)) if seen[1] == 0 else 0
        basis = None
        if rotate and x.ndim > 1 and zeros <= x.size // _RARE:
            basis = viterbi.basis_of(x.reshape(-1, x.shape[-1]), float(step) / 2)
        if basis is not None:
            most, zeros = 2 * most * len(basis[0]) ** 0.5, 0
        largest = int(most / 2) + 4
        dtype = np.dtype(np.int8 if largest <= 127 else np.int16 if largest <= 2**15 - 1 else np.int32)
        # Many zeros get the index in the middle, so that indices remain bell-shaped; few stay out of the others' way.
        zero = None if not zeros else 0 if zeros > x.size // 256 else -largest
        plans.append(_Plan(basis, zero, dtype))
    return plans


def _search(
    leaves: list[Array], steps: list[Any], penalties: list[Any], plans: list[_Plan], states: int
) -> list[Array]:
    """The indices of each leaf: all sequences are searched at once, and one program a distinct shape is around that."""
    sizes = [viterbi.layout(x.size) for x in leaves]
    longest, lanes = max((n for n, _ in sizes), default=0), sum(n for _, n in sizes)
    if not longest:
        return [jnp.zeros(x.shape, plan.dtype) for x, plan in zip(leaves, plans, strict=True)]
    starts = np.cumsum([0, *(n for _, n in sizes)])[:-1].astype(np.int32)
    together = jnp.zeros((longest, lanes + viterbi.spare(lanes)), jnp.float32)
    for x, step, penalty, plan, at in zip(leaves, steps, penalties, plans, starts, strict=True):
        inverse = None if plan.basis is None else plan.basis[1]
        together = _put(together, at, x, step, penalty if penalty > 0 else None, inverse, plan.zero is not None)
    widest = max((plan.dtype for plan in plans), key=lambda dtype: dtype.itemsize)
    found = _best_paths(together, states, any(plan.zero is not None for plan in plans), widest)
    rows = zip(starts, leaves, plans, strict=True)
    return [_take(found, at, x, plan.zero, plan.dtype) for at, x, plan in rows]


@partial(jax.jit, static_argnums=6, donate_argnums=0)
def _put(together, at, x, step, penalty, inverse, zeros):
    lanes = viterbi.to_lanes(_prepare(x.astype(jnp.float32), step, penalty, inverse, zeros))
    return jax.lax.dynamic_update_slice(together, lanes, (0, at))


_best_paths = jax.jit(viterbi.search, static_argnums=(1, 2, 3))


@partial(jax.jit, static_argnums=(3, 4))
def _take(found, at, x, zero, dtype):
    index = viterbi.from_lanes(jax.lax.dynamic_slice(found, (0, at), viterbi.layout(x.size)), x.shape)
    if zero == 0:
        index = index + (index >= 0).astype(index.dtype)
    return (index if zero is None else jnp.where(x == 0, zero, index)).astype(dtype)


@jax.jit
def _extremes(x):
    """The largest and the least magnitude."""
    # Each is one pass of floating-point numbers, and nothing is stored; counting takes as long as all of them.
    largest = jnp.maximum(jnp.max(x, initial=0), -jnp.min(x, initial=0))
    return largest.astype(jnp.float32), -jnp.max(-jnp.abs(x), initial=-jnp.inf)


@jax.jit
def _zeros(x):
    return jnp.sum(x == 0, dtype=jnp.int32)


def _prepare(x, step, penalty, inverse, zeros):
    """What is searched for, in steps. With zeros, only weights that are 0 are 0 in it."""
    matrix = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) if x.ndim else x.reshape(1, 1)
    y = (matrix if inverse is None else viterbi.rotated(matrix, inverse)) / step
    if penalty is not None:
        square = y * y
        down = jnp.mean(square, axis=1, keepdims=True)
        across = jnp.mean(square / jnp.maximum(down, TINY), axis=0, keepdims=True)
        variance = jnp.maximum(down * across, TINY)
        y = y * (variance / (variance + penalty * (0.5 / math.log(2))))
    y = y.reshape(x.shape)
    return jnp.where(x == 0, 0, jnp.where(jnp.abs(y) < _SMALL, jnp.copysign(_SMALL, x), y)) if zeros else y
