"""One overall sparsity, shared out: a sparsity for each leaf, ready for ``masks.by_sparsity``.

The functions look at nothing but the shapes of the selected leaves. They return a tree of float32 scalars in the
structure of the parameters; leaves that are not selected get 0.0. The overall sparsity is traced, so that one compiled
program sweeps it.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import settings, tree
from jaxprune.base import Array, Params, Setting, Where

__all__ = ["erdos_renyi_kernel", "uniform"]


def uniform(params: Params, sparsity: Setting, *, where: Where = None) -> Setting:
    """Gives every selected leaf the same sparsity.

    Args:
      params: any pytree of arrays, or one array.
      sparsity: fraction to remove, a scalar in [0, 1]. Traced; a traced value outside is clamped.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      Float32 scalars in the structure of ``params``: the sparsity, and 0.0 for leaves that are not selected. Of a bare
      array: the scalar.

    Raises:
      ValueError: a concrete sparsity is outside [0, 1] or NaN, or is no scalar; or ``where`` matches nothing.
      TypeError: a leaf is no array, or a selected leaf is not floating, with its path.

    >>> uniform({"bias": jnp.zeros(3), "kernel": jnp.zeros((4, 3))}, 0.5)
    {'bias': Array(0., dtype=float32), 'kernel': Array(0.5, dtype=float32)}
    """
    selection = tree.select(params, where)
    return selection.replace([_overall(sparsity)] * len(selection.chosen), tree.no_score)


def erdos_renyi_kernel(params: Params, sparsity: Setting, *, where: Where = None) -> Setting:
    """Gives each leaf a density in proportion to ``sum(shape) / prod(shape)``: small leaves stay denser than large.

    The ERK distribution of Evci et al., "Rigging the Lottery" (2020), after Mocanu et al. (2018): leaf l keeps
    ``min(1, eps * sum(shape_l) / prod(shape_l))`` of its entries, with the one ``eps`` at which the leaves together
    keep ``(1 - sparsity)`` of all their entries. A leaf whose share would exceed 1 is dense; the others make up for it.

    Args:
      params: any pytree of arrays, or one array. Shapes are taken as they are: of a kernel ``(height, width, in, out)``
        all four sizes count.
      sparsity: fraction to remove of all entries of the selected leaves, a scalar in [0, 1]. Traced; a traced value
        outside is clamped. The shapes are static.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      Float32 scalars in the structure of ``params``; 0.0 for leaves that are not selected and leaves without entries.
      Of a bare array: the scalar, which is ``sparsity`` itself. Overall sparsity 0 and 1 give exactly 0 and 1
      everywhere; between them the counts add up to the overall one but for the rounding of the float32 sparsities.
      The bits do not depend on jit or vmap.

    Raises:
      ValueError: a concrete sparsity is outside [0, 1] or NaN, or is no scalar; or ``where`` matches nothing.
      TypeError: a leaf is no array, or a selected leaf is not floating, with its path.

    >>> params = {"large": jnp.zeros((64, 64)), "small": jnp.zeros((8, 8))}
    >>> {name: round(float(s), 4) for name, s in erdos_renyi_kernel(params, 0.9).items()}
    {'large': 0.9097, 'small': 0.2778}
    """
    selection = tree.select(params, where)
    shapes = tuple(map(np.shape, selection.taken))
    return selection.replace(_erdos_renyi_kernel(_overall(sparsity), shapes), tree.no_score)


def _overall(sparsity: Setting) -> Array:
    return jnp.clip(settings.check_setting(sparsity, "sparsity", 0.0, 1.0), 0.0, 1.0)


@partial(jax.jit, static_argnums=1)
def _erdos_renyi_kernel(sparsity: Array, shapes: tuple[tuple[int, ...], ...]) -> list[Array]:
    if not any(math.prod(shape) for shape in shapes):
        return [jnp.zeros((), jnp.float32) for _ in shapes]
    kept, density = _breakpoints(shapes)
    # Read off on the side where float32 is fine: by what is removed below one half, by what is kept above.
    low = _piecewise_linear(sparsity, 1 - kept[::-1], 1 - density[::-1])
    high = 1 - _piecewise_linear(1 - sparsity, kept, density)
    nonempty = np.array([math.prod(shape) > 0 for shape in shapes])
    return list(jnp.where(nonempty, jnp.where(sparsity < 0.5, low, high), 0.0))


def _breakpoints(shapes: Sequence[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """The fraction kept overall (knots,) and by each leaf (knots, leaves) wherever another leaf becomes dense.

    As ``eps`` grows, both are piecewise linear in it, so the one is piecewise linear in the other between the knots.
    All static: float64, exact to that precision for any size.
    """
    size = np.array([math.prod(shape) for shape in shapes], np.float64)
    ratio = np.array([sum(shape or (1,)) for shape in shapes], np.float64) / np.maximum(size, 1)
    knots = 1 / np.unique(ratio[size > 0])[::-1]  # ascending
    density = np.minimum(1, np.concatenate([[0], knots])[:, None] * ratio)
    density[1:][knots[:, None] * ratio >= 1 - 1e-12] = 1  # what is dense at its own knot, whatever the rounding
    return density @ size / size.sum(), density


def _piecewise_linear(x: Array, knots: np.ndarray, values: np.ndarray) -> Array:
    """Interpolates the rows of ``values`` (knots, leaves) at ``x`` in [0, 1]; exact at the first knot.

    Knots and values are float64 and static. The minimum does nothing but keep the product within its interval, and so
    also keeps compilers from fusing it with the sum, whose bits would then depend on the surrounding program.
    """
    rise, width = np.diff(values, axis=0), np.diff(knots)
    slope = rise / np.maximum(width, np.finfo(np.float32).tiny)[:, None]
    at = jnp.sum(x >= knots[1:-1].astype(np.float32), dtype=jnp.int32)
    start, low, rise, slope = (jnp.asarray(c, jnp.float32)[at] for c in (knots[:-1], values[:-1], rise, slope))
    return low + jnp.minimum((x - start) * slope, rise)
