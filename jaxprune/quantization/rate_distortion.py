"""Uniform quantization for files: integers whose squared error and whose bits, once they are coded, are least together.

All weights are rounded to multiples of one ``step``; files take fewer bits for integers that are frequent. A weight of
a = abs(w) / step becomes one of floor(a), ceil(a) and 0, with its sign: the n for which (a - n)**2 + penalty * bits(n)
is least. bits(n) is -log2 of the share of n among the integers chosen before, one more for the sign; it begins with
plain rounding and is estimated again a few times, and no round makes the sum larger. The most visible effect is a
wider interval for 0.

Sources: Chou, Lookabaugh and Gray 1989, "Entropy-constrained vector quantization"; Sullivan 1996, "Efficient scalar
quantization of exponential and Laplacian random variables".
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jaxprune import settings, tree
from jaxprune.base import Array, Params, QuantSpec, Setting, Where
from jaxprune.kernels import deadzone
from jaxprune.kernels.rounding import TINY
from jaxprune.quantization.arrays.uniform import QArray

__all__ = ["quantize", "round_to", "step_for"]

_LARGEST = 2**15 - 1  # code
_HALVINGS = 24  # of a bracket for the step's logarithm
_FINEST = -16  # the bracket's low end: the largest weight over 2**16
_PLAIN = QuantSpec()


def quantize(
    params: Params, step: Setting, penalty: Setting = 0.0, *, scope: str = "global", where: Where = None
) -> Params:
    """Stores each selected leaf as the integers of :func:`round_to`.

    Args:
      params: any pytree, or one bare array; not under ``jit``.
      step: distance of neighboring values, above 0; a scalar or a tree of scalars.
      penalty: what a bit is worth, in squared error over ``step**2``, at least 0; a scalar or a tree. 0.1 is about
        what it is worth at high rates.
      scope: ``"global"`` takes the bits from the integers of all leaves, ``"leaf"`` from those of each. Static.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      ``params`` with a ``QArray`` in place of each selected leaf, whose scale is ``step``: codes int8 if they fit, else
      int16. Other leaves are the same objects.

    Raises:
      TypeError: traced arguments; a selected leaf does not hold floating-point numbers.
      ValueError: a setting out of range; NaN or infinity, or codes beyond int16, with the leaf's path.

    >>> quantize(jnp.array([0.6, 0.0, -0.2, 1.1, 0.1, 0.0]), 1.0, 0.2).codes
    Array([0, 0, 0, 1, 0, 0], dtype=int8)
    """
    selection, steps, penalties = _checked(params, step, penalty, scope, where)
    if any(isinstance(value, Tracer) for value in (*selection.values, *steps, *penalties)):
        raise TypeError("rate_distortion.quantize needs concrete values, which set the storage dtype; see round_to")
    codes, largest = _code_leaves(selection.values, steps, penalties, scope)
    widths = []
    for name, s, most in zip(selection.names, steps, jax.device_get(largest), strict=True):
        if most > _LARGEST:
            raise ValueError(f"leaf {tree.show(name)} needs codes up to {most:g} at a step of {s:g}; {_LARGEST} fit")
        widths.append(max(2, int(most).bit_length() + 1))
    found, stored = [], _store(codes, tuple(jnp.int8 if bits <= 8 else jnp.int16 for bits in widths))
    for x, s, code, bits in zip(selection.values, steps, stored, widths, strict=True):
        ones = (1,) * x.ndim
        found.append(QArray(code, jnp.full(ones, s), jnp.zeros(ones, jnp.int32), bits, np.dtype(x.dtype), _PLAIN))
    return selection.replace(found)


def round_to(
    params: Params, step: Setting, penalty: Setting = 0.0, *, scope: str = "global", where: Where = None
) -> Params:
    """Rounds each selected leaf to multiples of ``step``, by squared error and bits together.

    Equals ``dequantize(quantize(params, step, penalty))``. Weights that are 0 stay 0; at a ``penalty`` of 0 it is the
    nearest multiple, halves toward 0.

    Args:
      params: any pytree, or one bare array.
      step: distance of neighboring values, above 0; a scalar or a tree of scalars. Traced.
      penalty: what a bit is worth, in squared error over ``step**2``, at least 0; a scalar or a tree. Traced: a sweep
        over penalties is one program.
      scope: ``"global"`` takes the bits from the integers of all leaves, ``"leaf"`` from those of each. Static.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      ``params`` with the same structure, shapes and dtypes; leaves that take no part are the same objects. Under
      ``jit`` NaN stays NaN.

    Raises:
      TypeError: a selected leaf does not hold floating-point numbers.
      ValueError: a concrete setting out of range; concrete NaN or infinity, with the leaf's path.

    >>> print(round_to(jnp.array([0.6, 0.0, -0.2, 1.1, 0.1, 0.0]), 1.0))
    [1. 0. 0. 1. 0. 0.]
    """
    selection, steps, penalties = _checked(params, step, penalty, scope, where)
    return selection.replace(_round_leaves(selection.values, steps, penalties, scope))


def step_for(
    params: Params,
    *,
    error: Setting | None = None,
    bits: Setting | None = None,
    penalty: Setting = 0.0,
    scope: str = "global",
    where: Where = None,
) -> Array:
    """The one step at which :func:`round_to` makes a given error, or its integers have a given entropy.

    Args:
      params: any pytree, or one bare array.
      error: sum of (w' - w)**2 over sum of w**2, of all selected leaves, in (0, 1]. Traced.
      bits: mean entropy in bits a weight, in (0, 10]: of all integers together, or leaf by leaf. Traced.
      penalty: as in :func:`round_to`, a scalar. Traced.
      scope: whose entropy is meant, as in :func:`round_to`. Static.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      float32 scalar, to about 1 part in a million. Weights that are all 0 give 1.

    Raises:
      TypeError: both or neither of ``error`` and ``bits``; a selected leaf does not hold floating-point numbers.
      ValueError: a concrete setting out of range; concrete NaN or infinity, with the leaf's path.

    >>> step = step_for(jnp.linspace(-1, 1, 1001), error=1e-3)
    >>> print(round(float(step), 3))
    0.063
    """
    if (error is None) == (bits is None):
        raise TypeError("give either error or bits")
    selection, _, penalties = _checked(params, 1.0, penalty, scope, where)
    wanted, name, high = (error, "error", 1.0) if bits is None else (bits, "bits", 10.0)
    goal = settings.check_setting(wanted, name, float(TINY), high)
    if not selection.chosen:
        return jnp.float32(1)
    return _find_step(selection.values, goal, penalties[0], bits is None, scope)


def _checked(
    params: Params, step: Setting, penalty: Setting, scope: str, where: Where
) -> tuple[tree.Selection, list[Any], list[Any]]:
    if scope not in ("global", "leaf"):
        raise ValueError(f"scope must be 'global' or 'leaf', got {scope!r}")
    selection = tree.select(params, where)
    largest = float(np.finfo(np.float32).max) / 4
    steps = settings.per_leaf(step, selection, "step", float(TINY), largest)
    penalties = settings.per_leaf(penalty, selection, "penalty", 0, largest)
    for name, leaf in zip(selection.names, selection.values, strict=True):
        with jax.ensure_compile_time_eval():
            if not isinstance(leaf, Tracer) and not bool(jnp.isfinite(leaf).all()):
                raise ValueError(f"leaf {tree.show(name)} holds NaN or infinity, which is no multiple of a step")
    return selection, steps, penalties


@partial(jax.jit, static_argnames="scope")
def _code_leaves(leaves, steps, penalties, scope):
    codes = deadzone.codes(leaves, steps, penalties, scope)
    return codes, [jnp.max(jnp.abs(code), initial=0) for code in codes]


@partial(jax.jit, static_argnames="dtypes")
def _store(codes, dtypes):
    return [code.astype(dtype) for code, dtype in zip(codes, dtypes, strict=True)]


@partial(jax.jit, static_argnames="scope")
def _round_leaves(leaves, steps, penalties, scope):
    codes = deadzone.codes(leaves, steps, penalties, scope)
    return [(code * step).astype(x.dtype) for x, code, step in zip(leaves, codes, steps, strict=True)]


@partial(jax.jit, static_argnames=("to_error", "scope"))
def _find_step(leaves, goal, penalty, to_error, scope):
    """Halves a bracket of the step's logarithm."""
    largest = jnp.stack([jnp.max(jnp.abs(x), initial=0).astype(jnp.float32) for x in leaves]).max()
    energy = sum(deadzone.squares(x) for x in leaves)

    def too_far(step):
        error, bits = deadzone.measures(leaves, step, penalty, scope)
        return error > goal * energy if to_error else bits < goal

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        far = too_far(largest * jnp.exp2(middle))
        return jnp.where(far, low, middle), jnp.where(far, middle, high)

    low, high = lax.fori_loop(0, _HALVINGS, halve, (jnp.float32(_FINEST), jnp.float32(2)))
    return jnp.where(largest > 0, largest * jnp.exp2((low + high) / 2), 1)
