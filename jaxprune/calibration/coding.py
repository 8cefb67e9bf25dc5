"""Rounding for small files: what an error costs at the outputs against what a number costs in bits."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import settings, tree
from jaxprune.base import Array, Params, Setting, Where
from jaxprune.calibration import feedback, leaves, rates
from jaxprune.calibration.statistics import Lookups, Statistics
from jaxprune.calibration.views import Use
from jaxprune.quantization.arrays.scaled import PARTS, ScaledArray, octaves

_FLOOR = 0.05  # of the mean, added to what each output weighs
_WIDEST = np.iinfo(np.int8).max


def encode(
    params: Params,
    stats: Statistics,
    step: Setting,
    *,
    penalty: Setting = 0.1,
    damping: Setting = 0.01,
    where: Where = None,
) -> Params:
    """Whole numbers of one global step, each leaf's rows and columns weighted by what their errors cost at the outputs.

    With gradient-weighted second moments H of the inputs, inv(H) = U'U, and mean squared gradients g of the outputs, a
    weight of row k and column n has the step ``step * U_kk * sqrt(sum g / g_n)``: so equal errors in steps cost alike
    everywhere, in all leaves, and one number decides how small the file becomes. Rows go in order, and later ones make
    up for earlier ones, as in GPTQ; ``penalty`` is what a bit is worth, in squared steps. Rows that are looked up have
    steps by how often they are, to the fourth root, and by g. Steps are rounded to an eighth of an octave.

    Args:
      params: any pytree; not under ``jit``.
      stats: of :func:`collect`, with Gram matrices and a ``key``.
      step: the error that is allowed: the outputs' squared error goes with its square.
      penalty: at least 0.
      damping: added to the diagonal of H, as a fraction of its mean.
      where: whose leaves; by default all that the statistics know.

    Returns:
      ``params`` with a stored array of integer codes in place of each such leaf, for :func:`jaxprune.compress` (with
      ``side="int8"``, say) and :func:`jaxprune.dequantize`. Codes have the least integer dtype that holds them.

    Raises:
      ValueError: no statistics of a chosen leaf, of no data, without gradients or Gram matrices; weights that are not
        finite.
      TypeError: traced arguments.

    >>> from jaxprune.calibration import collect
    >>> w, x = jnp.array([[0.9, 3.2], [0.2, 0.1]]), jnp.array([[1.0, 0.0], [0.0, 0.01]])  # the second input is small
    >>> small = encode(w, collect(lambda w, x: x @ w, w, x, key=jax.random.key(0)), 1.0)
    >>> small.codes[1].tolist()
    [0, 0]
    """
    chosen = leaves.choose(params, stats, where, lookups=True)
    if settings.any_traced(chosen.values, step, penalty, damping):
        raise TypeError("encode needs concrete values, which set the dtypes of codes")
    steps = settings.per_leaf(step, chosen, "step", float(np.finfo(np.float32).tiny), np.inf)
    penalties = settings.per_leaf(penalty, chosen, "penalty", 0.0, np.inf)
    dampings = settings.per_leaf(damping, chosen, "damping", 0.0, np.inf)
    settings.refuse(zip(chosen.names, chosen.values, strict=True), settings.not_finite, "holds NaN or infinity")
    rows = zip(chosen.names, chosen.values, steps, penalties, dampings, strict=True)
    return chosen.replace([_encoded(stats, path, leaf, _Asked(*asked)) for path, leaf, *asked in rows])


class _Asked(NamedTuple):
    """The settings of one leaf."""

    step: Any
    penalty: Any
    damping: Any


class _Costs(NamedTuple):
    """What an error costs: 1 over the root of it for rows [L, K] and columns [L, N]; and the factors of feedback."""

    rows: Array
    columns: Array
    factors: Array | None


def _encoded(stats: Statistics, path: str, leaf: Array, asked: _Asked) -> ScaledArray:
    uses = stats.of(path)
    products = [(name, use) for name, use in uses if not use.lookup]
    name, use = (products or uses)[0]
    if len(leaves.parts(stats, path)) > 1 or use.axes is None or np.prod(use.shape) != leaf.size:
        raise ValueError(f"leaf {tree.show(path)} is used as several matrices, or in parts: leave it out by where=")
    if use.lookup:
        costs = _of_lookup(stats, name)
    else:
        costs = _of_product(stats, path, use, [n for n, _ in products], asked.damping)
    exponents = [jnp.round(PARTS * jnp.log2(jnp.maximum(one, 1e-30))) for one in (costs.rows, costs.columns)]
    whole = jnp.round(jnp.median(exponents[0]))  # so that exponents of rows are small; the step takes it over
    rows, columns = (jnp.clip(one, -_WIDEST, _WIDEST).astype(jnp.int32) for one in (exponents[0] - whole, exponents[1]))
    base = jnp.float32(asked.step) * octaves(whole.astype(jnp.int32))
    codes, (across, along) = _codes(leaf, base, rows, columns, costs.factors, jnp.float32(asked.penalty), use.form)
    narrow = across.astype(jnp.int8), along.astype(jnp.int8)
    return ScaledArray(_least(path, codes), base, narrow[0], narrow[1], np.dtype(leaf.dtype))


def _of_product(stats: Statistics, path: str, use: Use, names: list[str], damping: Any) -> _Costs:
    if any(name not in stats.gradients for name in names):
        raise ValueError(f"the statistics of leaf {tree.show(path)} have no gradients: collect them with key=")
    ((_, gram),) = leaves.parts(stats, path)
    factors = feedback.factor(gram, damping)
    scale = jnp.mean(jnp.diagonal(gram, axis1=1, axis2=2), 1, keepdims=True)  # factor is of the gram over its mean
    diagonal = jnp.diagonal(factors, axis1=1, axis2=2) / jnp.sqrt(jnp.where(scale > 0, scale, 1))
    return _Costs(diagonal, _of_outputs(sum(stats.gradients[name].squares for name in names)), factors)


def _of_outputs(squares: Any) -> Array:
    """1 over the root of each output's share."""
    weights = squares + _FLOOR * squares.mean(1, keepdims=True)
    return jnp.sqrt(jnp.where(weights > 0, weights.sum(1, keepdims=True) / jnp.where(weights > 0, weights, 1), 1))


def _of_lookup(stats: Statistics, name: str) -> _Costs:
    """By the root of how often a row is looked up, and the gradient that a lookup has in the mean."""
    if name not in stats.gradients:
        raise ValueError(f"the statistics of leaf {tree.show(name)} have no gradients: collect them with key=")
    found, squares = stats.inputs[name], stats.gradients[name].squares
    assert isinstance(found, Lookups)
    rows = np.asarray(found.rows, np.float64)
    total, once, never = rows.sum(1, keepdims=True), (rows == 1).sum(1, keepdims=True), rows == 0
    # Good and Turing: those that came once say how often one comes that has not yet come.
    unseen = np.maximum(once, 1) / np.maximum(never.sum(1, keepdims=True), 1)
    expected = np.maximum(rows * (1 - once / np.maximum(total, 1)), unseen)
    often = np.sqrt(expected * expected.mean(1, keepdims=True))
    energy = np.asarray(squares.sum(1, keepdims=True), np.float64) / np.maximum(total, 1)
    cost = np.where(energy > 0, often * energy, 1)
    return _Costs(jnp.asarray(1 / np.sqrt(cost), jnp.float32), _of_outputs(squares), None)


@partial(jax.jit, static_argnums=6)
def _codes(
    leaf: Array, step: Array, rows: Array, columns: Array, factors: Array | None, penalty: Array, use: Use
) -> tuple[Array, tuple[Array, Array]]:
    """Codes in the form of the leaf, and the exponents in forms that broadcast to it."""
    weights, steps = use.matrices(leaf), step * octaves(rows[..., None] + columns[:, None])
    spread = rates.spreads(weights / steps)
    if factors is None:
        numbers = rates.cheapest(weights / steps, spread, penalty)
    else:
        operands = (steps, spread, jnp.full(rows.shape, penalty))
        kept = jnp.ones(weights.shape, bool)
        new, _ = feedback.run(weights, factors, kept, operands, (), feedback.Pass(rounded=_rounded))
        numbers = jnp.round(new / steps)
    batch, inputs, outputs = use.axes  # type: ignore[misc]
    across = [(rows[..., None], outputs), (columns[:, None], inputs)]
    forms = []
    for exponents, axes in across:
        form = use.leaf(jnp.broadcast_to(exponents, use.shape).astype(jnp.float32), leaf)
        forms.append(form[tuple(slice(0, 1) if i in axes else slice(None) for i in range(leaf.ndim))])
    return use.leaf(numbers, leaf), (forms[0], forms[1])


def _rounded(row: Array, step: Array, spread: Array, penalty: Array) -> Array:
    return rates.cheapest(row / step, spread, penalty) * step


def _least(path: str, codes: Array) -> Array:
    """In the least integer dtype that holds them."""
    largest = float(jnp.max(jnp.abs(codes), initial=0))
    for dtype in (jnp.int8, jnp.int16, jnp.int32):
        if largest <= jnp.iinfo(dtype).max // (1 if dtype != jnp.int32 else 128):  # float32 counts to 2**24
            return codes.astype(dtype)
    raise ValueError(f"leaf {tree.show(path)} needs codes up to {largest:g}: a larger step")
