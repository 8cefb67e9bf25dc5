"""Uniform quantization for files: integers whose squared error and whose bits, once they are coded, are least together.

All weights are rounded to multiples of one ``step``; files take fewer bits for integers that are frequent. A weight of
a = abs(w) / step becomes one of floor(a), ceil(a) and 0, with its sign: the n for which (a - n)**2 + penalty * bits(n)
is least. bits(n) is -log2 of the share of n among the integers chosen before, one more for the sign; it begins with
plain rounding and is estimated again a few times; no round makes the sum larger. Above all, the interval for 0 widens.

Sources: Chou, Lookabaugh and Gray 1989, "Entropy-constrained vector quantization"; Sullivan 1996, "Efficient scalar
quantization of exponential and Laplacian random variables".
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import settings, tree
from jaxprune.base import Array, Params, QuantSpec, Setting, Where
from jaxprune.kernels import deadzone
from jaxprune.kernels.deadzone import Cuts
from jaxprune.kernels.rounding import TINY
from jaxprune.quantization.arrays.coded import QArray

_LARGEST = 2**15 - 1  # code
_ROUNDS = 4  # after which shares hardly change any more
_HALVINGS = 24  # of a bracket for the step's logarithm
_FINEST = -16  # the bracket's low end: the largest weight over 2**16


def quantize(
    params: Params, step: Setting, penalty: Setting = 0.0, *, scope: str = "leaf", where: Where = None
) -> Params:
    """Stores each selected leaf as the integers of :func:`round_to`.

    Args:
      params: any pytree, or one bare array; not under ``jit``.
      step: distance of neighboring values, above 0; a scalar or a tree of scalars.
      penalty: what a bit is worth, in squared error over ``step**2``, at least 0; a scalar or a tree. 0.1 is about
        what it is worth at high rates.
      scope: ``"leaf"`` takes the bits from the integers of each leaf, ``"global"`` from those of all. Static.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      ``params`` with a ``QArray`` in place of each selected leaf, whose scale is ``step``: codes int8 if they fit, else
      int16. Other leaves are the same objects.

    Raises:
      TypeError: traced arguments; a selected leaf does not hold floating-point numbers.
      ValueError: a setting out of range; NaN, infinity or codes beyond int16, with the leaf's path.

    >>> quantize(jnp.array([0.6, 0.0, -0.2, 1.1, 0.1, 0.0]), 1.0, 0.2).codes
    Array([0, 0, 0, 1, 0, 0], dtype=int8)
    """
    rows = _checked(params, step, penalty, scope, where)
    if settings.any_traced(rows.leaves, rows.steps, rows.penalties):
        raise TypeError("rate_distortion.quantize needs concrete values, which set the storage dtype; see round_to")
    tables = _tables(rows, scope)
    found = list(map(_codes, rows.leaves, rows.steps, tables))
    largest, records = jax.device_get([most for _, most in found]), []
    for name, x, s, (codes, _), most in zip(rows.selection.names, rows.leaves, rows.steps, found, largest, strict=True):
        if most > _LARGEST:
            raise ValueError(f"leaf {tree.show(name)} needs codes up to {most:g} at a step of {s:g}; {_LARGEST} fit")
        bits, ones = max(2, int(most).bit_length() + 1), (1,) * x.ndim
        stored = codes.astype(jnp.int8 if bits <= 8 else jnp.int16)
        scale, zero = jax.device_put((np.full(ones, s), np.zeros(ones, np.int32)))
        records.append(QArray(stored, scale, zero, bits, np.dtype(x.dtype), QuantSpec()))
    return rows.selection.replace(records)


def round_to(
    params: Params, step: Setting, penalty: Setting = 0.0, *, scope: str = "leaf", where: Where = None
) -> Params:
    """Rounds each selected leaf to multiples of ``step``, by squared error and bits together.

    Equals ``dequantize(quantize(params, step, penalty))``. Weights that are 0 stay 0; at a ``penalty`` of 0 it is the
    nearest multiple, halves toward 0.

    Args:
      params, scope, where: as in :func:`quantize`.
      step, penalty: as in :func:`quantize`, but traced: a sweep over them is one program.

    Returns:
      ``params`` with the same structure, shapes and dtypes; leaves that take no part are the same objects. Under
      ``jit`` NaN stays NaN.

    Raises:
      TypeError: a selected leaf does not hold floating-point numbers.
      ValueError: a concrete setting out of range; concrete NaN or infinity, with the leaf's path.

    >>> print(round_to(jnp.array([0.6, 0.0, -0.2, 1.1, 0.1, 0.0]), 1.0))
    [1. 0. 0. 1. 0. 0.]
    """
    rows = _checked(params, step, penalty, scope, where)
    tables = _tables(rows, scope)
    return rows.selection.replace(list(map(_rounded, rows.leaves, rows.steps, tables)))


def step_for(
    params: Params,
    *,
    error: Setting | None = None,
    bits: Setting | None = None,
    penalty: Setting = 0.0,
    scope: str = "leaf",
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
    rows = _checked(params, 1.0, penalty, scope, where)
    wanted, name, high = (error, "error", 1.0) if bits is None else (bits, "bits", 10.0)
    goal = settings.check_setting(wanted, name, float(TINY), high)
    if not rows.leaves:
        return jnp.float32(1)
    return _find_step(rows, goal, bits is None, scope)


class _Rows(NamedTuple):
    """The leaves that take part, and the settings of each."""

    selection: tree.Selection
    leaves: list[Array]
    steps: list[Any]
    penalties: list[Any]


def _checked(params: Params, step: Setting, penalty: Setting, scope: str, where: Where) -> _Rows:
    if scope not in ("global", "leaf"):
        raise ValueError(f"scope must be 'global' or 'leaf', got {scope!r}")
    selection = tree.select(params, where)
    largest = float(np.finfo(np.float32).max) / 4
    steps = settings.per_leaf(step, selection, "step", float(TINY), largest)
    penalties = settings.per_leaf(penalty, selection, "penalty", 0, largest)
    leaves, message = selection.values, "holds NaN or infinity, which is no multiple of a step"
    settings.refuse(zip(selection.names, leaves, strict=True), settings.not_finite, message)
    return _Rows(selection, leaves, steps, penalties)


def _tables(rows: _Rows, scope: str) -> list[Cuts]:
    """The tables by which each leaf is rounded: those of its own shares, or of the shares of all."""

    def estimate(_: Any, tables: list[Cuts]) -> list[Cuts]:
        found = _counted(rows, tables, scope)
        pairs = list(zip(found, rows.penalties, strict=True))
        made = {tuple(map(id, pair)): pair for pair in pairs}  # leaves that share counts and penalty share a table
        made = {ids: _cuts(*pair) for ids, pair in made.items()}
        return [made[tuple(map(id, pair))] for pair in pairs]

    plain = [_plain()] * len(rows.leaves)
    traced = settings.any_traced(rows)
    rounds = jnp.where(jnp.any(jnp.stack(rows.penalties) > 0), _ROUNDS, 0) if traced else _ROUNDS
    return _repeat(rounds, estimate, plain, traced)


def _counted(rows: _Rows, tables: list[Cuts], scope: str) -> list[Array]:
    """How often each magnitude occurs, in each leaf or (the same for each) in all."""
    if scope == "leaf":
        return [_counts(*leaf, _nothing()) for leaf in zip(rows.leaves, rows.steps, tables, strict=True)]
    return [_over_leaves(_counts, rows, tables)] * len(rows.leaves)


def _repeat(times: Any, step: Callable[[Any, Any], Any], start: Any, traced: bool) -> Any:
    """A loop, inside a program or around small ones."""
    if traced:
        return jax.lax.fori_loop(0, times, step, start)
    return reduce(lambda state, i: step(i, state), range(times), start)


def _over_leaves(kernel: Callable[..., Array], rows: _Rows, tables: list[Cuts]) -> Array:
    """The sum over all leaves, in their order, of what a kernel finds in each."""
    leaves = zip(rows.leaves, rows.steps, tables, strict=True)
    return reduce(lambda before, leaf: kernel(*leaf, before), leaves, _nothing())


def _plain() -> Cuts:
    """The tables of plain rounding: no bit is worth anything."""
    return _cuts(_nothing(), np.float32(0))


def _nothing() -> Array:
    return jax.device_put(np.zeros(deadzone.BINS, np.float32))


def _find_step(rows: _Rows, goal: Any, to_error: bool, scope: str) -> Array:
    """Halves a bracket of the step's logarithm."""
    largest = reduce(_larger, rows.leaves, jax.device_put(np.float32(0)))
    if to_error:
        limit = goal * reduce(lambda before, x: _squares(x, before), rows.leaves, _nothing())
    else:
        limit = goal * np.float32(sum(x.size for x in rows.leaves))

    # Without a penalty no table would change.
    weighed = any(settings.any_traced(penalty) or penalty > 0 for penalty in rows.penalties)

    def halve(_: Any, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        tried = rows._replace(steps=[_step_between(largest, *bracket)] * len(rows.leaves))
        tables = _tables(tried, scope) if weighed else [_plain()] * len(rows.leaves)
        if to_error:
            return _closer(bracket, _over_leaves(_squared_errors, tried, tables), limit)
        counts = _counted(tried, tables, scope)[: 1 if scope == "global" else None]
        return _closer(bracket, limit, reduce(_add, map(_entropy, counts)))

    start = jax.device_put((np.float32(_FINEST), np.float32(2)))
    return _step_between(largest, *_repeat(_HALVINGS, halve, start, settings.any_traced(rows, goal)))


# Called eagerly, each compiles one small program for every shape, dtype and sharding among the leaves.
_counts, _squared_errors, _squares = map(jax.jit, (deadzone.counts, deadzone.squared_errors, deadzone.squares))
_cuts, _entropy, _add = map(jax.jit, (deadzone.cuts_of, deadzone.entropy, jnp.add))
_larger, _step_between, _closer = map(jax.jit, (deadzone.larger, deadzone.step_between, deadzone.closer))


@jax.jit
def _codes(x: Array, step: Array, cuts: Cuts) -> tuple[Array, Array]:
    """Whole numbers, and the largest magnitude among them."""
    codes = deadzone.codes(x, step, cuts)
    return codes, jnp.max(jnp.abs(codes), initial=0)


@jax.jit
def _rounded(x: Array, step: Array, cuts: Cuts) -> Array:
    return (deadzone.codes(x, step, cuts) * step).astype(x.dtype)
