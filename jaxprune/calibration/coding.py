"""Rounding for small files: what an error costs at the outputs against what a number costs in bits."""

from functools import partial, reduce
from math import prod
from operator import add
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune import host, settings, tree
from jaxprune.base import Array, Params, Setting, Where
from jaxprune.calibration import feedback, leaves, rates
from jaxprune.calibration.statistics import Lookups, Statistics
from jaxprune.calibration.views import Use
from jaxprune.kernels.sharding import everywhere
from jaxprune.quantization.arrays.coded import PARTS, ScaledArray, octaves

_FLOOR = 0.05  # of the mean, added to what each output weighs
_WIDEST = np.iinfo(np.int8).max


def encode(
    params: Params,
    stats: Statistics,
    step: Setting,
    *,
    penalty: Setting = 0.1,
    damping: Setting = 0.03,
    where: Where = None,
) -> Params:
    """Whole numbers of one global step, each leaf's rows and columns weighted by what their errors cost at the outputs.

    With gradient-weighted second moments H of the inputs, inv(H) = U'U, and mean squared gradients g of the outputs, a
    weight of row k and column n has the step ``step * U_kk * sqrt(sum g / g_n)``: so equal errors in steps cost alike
    everywhere, in all leaves, and one number decides how small the file becomes. Rows go in order, and later ones make
    up for earlier ones, as in GPTQ; ``penalty`` is what a bit is worth, in squared steps. Steps are rounded to an
    eighth of an octave.

    A table that is looked up counts as a product with gradients for inputs: its columns go in order, and its rows have
    steps by how often they are looked up, to the fourth root. If it is the head as well, costs add up, and if a leaf is
    used in parts, each is fitted to its own data.

    Args:
      params: any pytree; not under ``jit``.
      stats: of :func:`collect`, with Gram matrices and a ``key``.
      step: the error that is allowed: the outputs' squared error goes with its square.
      penalty: at least 0.
      damping: added to the diagonal of H, as a fraction of its mean: more than for widths that are fixed, as steps too
        follow H.
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
    coded: list[ScaledArray] = []
    with host.progress_bar(False, "leaves", 0, len(chosen.names)) as show:
        for path, leaf, *asked in zip(chosen.names, chosen.values, steps, penalties, dampings, strict=True):
            coded.append(_encoded(stats, path, leaf, _Asked(*asked)))
            show(len(coded))
    return chosen.replace(coded)


class _Asked(NamedTuple):
    """The settings of one leaf."""

    step: Any
    penalty: Any
    damping: Any


class _Matrices(NamedTuple):
    """Matrices [L, K, N] of a leaf, and what errors in them cost.

    Attributes:
      use: of the leaf.
      metrics: second moments of inputs, [L, K, K] each, and their weights [L]: added up one layer at a time.
      outputs: what each of them weighs, [L, N].
    """

    use: Use
    metrics: list[tuple[Array, Array]]
    outputs: Array


def _encoded(stats: Statistics, path: str, leaf: Array, asked: _Asked) -> ScaledArray:
    lying, leaf = leaf.sharding, everywhere(leaf)
    (_, inputs, outputs), matrices = _matrices(stats, path, leaf)
    wanted = (_steps(one.metrics, one.outputs, asked.damping, one.use.form, leaf.shape) for one in matrices)
    base, rows, columns, steps = _grid(reduce(add, wanted), jnp.float32(asked.step), inputs, outputs)
    how = steps, jnp.float32(asked.penalty), asked.damping
    codes = reduce(add, (_numbers(leaf, one.metrics, *how, one.use.form) for one in matrices))
    return ScaledArray(jax.device_put(_least(path, codes), lying), base, rows, columns, np.dtype(leaf.dtype))


@partial(jax.jit, static_argnums=(2, 3))
def _grid(wanted: Array, step: Array, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> tuple[Array, ...]:
    """The step of a leaf, the exponents of its rows and columns, and the steps that these give; from log2 of others."""
    across = jnp.mean(wanted, outputs, keepdims=True)
    along = jnp.mean(wanted - across, inputs, keepdims=True)
    across, along = jnp.round(PARTS * across), jnp.round(PARTS * along)
    whole = jnp.round(jnp.median(across))  # so that exponents of rows are small; the step takes it over
    rows, columns = (jnp.clip(one, -_WIDEST, _WIDEST).astype(jnp.int8) for one in (across - whole, along))
    base = step * octaves(whole.astype(jnp.int32))
    return base, rows, columns, base * octaves(rows.astype(jnp.int32) + columns.astype(jnp.int32))


def _matrices(stats: Statistics, path: str, leaf: Array) -> tuple[Any, list[_Matrices]]:
    """The batch, input and output axes of a leaf, and the matrices that it is made of.

    If a table that is looked up is the factor of a product as well, an embedding that is the head, the costs add up.
    """
    uses = stats.of(path)
    if any(name not in stats.gradients for name, _ in uses):
        raise ValueError(f"the statistics of leaf {tree.show(path)} have no gradients: collect them with key=")
    costs = [_of_product(stats, part) for part in leaves.parts(stats, path)]
    tables = [_of_lookups(stats, name, use) for name, use in uses if use.lookup]
    costs, tables = (costs, tables) if costs else (tables[:1], tables[1:])
    axes = {one.use.axes for one in (*costs, *tables)}
    if len(axes) > 1 or None in axes or not _once([one.use for one in costs], leaf):
        raise ValueError(
            f"leaf {tree.show(path)} is used in parts that overlap, leave something out, or mix its axes: give each a "
            "leaf of its own, or leave it out by where="
        )
    found = []
    for use, metric, outputs in costs:
        metrics = [(metric, _shares(outputs.sum(1), _trace(metric)))]
        for table in tables:
            own = use.matrices(table.use.leaf(jnp.broadcast_to(table.outputs[:, None], table.use.shape), leaf))[:, 0]
            metrics.append((table.metric, _shares(own.sum(1), _trace(table.metric))))
            outputs = outputs + own
        found.append(_Matrices(use, metrics, outputs))
    return axes.pop(), found


def _once(uses: list[Use], leaf: Array) -> bool:
    """Whether each number of a leaf is in one use."""
    if len(uses) == 1:  # a view moves numbers only
        return prod(uses[0].shape) == leaf.size
    return bool(jnp.all(sum(use.leaf(jnp.ones(use.shape), leaf) for use in uses) == 1))


class _Costs(NamedTuple):
    """What errors e in a matrix [L, K, N] cost: e' metric e over its trace, times the outputs' own [L, N]."""

    use: Use
    metric: Array
    outputs: Array


def _of_product(stats: Statistics, part: leaves.Part) -> _Costs:
    use, gram = part
    alike = [name for name, other in stats.of(use.path) if (other.view, other.shape) == (use.view, use.shape)]
    squares = jnp.asarray(sum(stats.gradients[name].squares for name in alike))
    return _Costs(use, gram, _shares(squares, squares.sum(1, keepdims=True)) * _trace(gram)[:, None])


def _of_lookups(stats: Statistics, name: str, use: Use) -> _Costs:
    """A row costs the root of how often it is looked up, times the mean squared gradient; its entries by these."""
    found, gradients = stats.inputs[name], stats.gradients[name]
    assert isinstance(found, Lookups)
    if gradients.weighted is None:
        raise ValueError(f"the statistics of leaf {tree.show(use.path)} hold no Gram matrices: want=['gram']")
    counts = np.asarray(found.rows)
    rows = counts / max(np.gcd.reduce(counts, axis=None), 1)  # data that were seen twice, with other keys, count once
    total, once, never = rows.sum(1, keepdims=True), (rows == 1).sum(1, keepdims=True), rows == 0
    # Good and Turing: those that came once say how often one comes that has not yet come.
    unseen = np.maximum(once, 1) / np.maximum(never.sum(1, keepdims=True), 1)
    expected = np.maximum(rows * (1 - once / np.maximum(total, 1)), unseen)
    often = np.sqrt(expected * expected.mean(1, keepdims=True)) / np.maximum(total, 1)
    many, size, width = use.shape
    turned = use.view.then("transpose", (many, width, size), permutation=(0, 2, 1))
    outputs = jnp.asarray(often, jnp.float32) * _trace(gradients.weighted)[:, None]
    return _Costs(Use(turned, (many, width, size), use.source), gradients.weighted, outputs)


def _trace(many: Array) -> Array:
    return jnp.trace(many, axis1=1, axis2=2)


def _shares(parts: Array, total: Array) -> Array:
    return parts / jnp.where(total > 0, total, 1)


@partial(jax.jit, static_argnums=(3, 4))
def _steps(metrics: Any, outputs: Array, damping: Array, use: Use, shape: tuple[int, ...]) -> Array:
    """log2 of the steps with which errors of as many steps cost alike; 0 where the use sees nothing of a leaf."""

    def one(row: Any) -> Array:
        gram, weights = _sum(row[0]), row[1]
        scale = jnp.mean(jnp.diagonal(gram))  # factor is of the gram over its mean
        inputs = jnp.diagonal(feedback.factor(gram[None], damping)[0]) ** 2 / jnp.where(scale > 0, scale, 1)
        weights = weights + _FLOOR * weights.mean()
        weights = jnp.where(weights > 0, _shares(weights, weights.sum()), 1)
        return (jnp.log2(inputs)[:, None] - jnp.log2(weights)) / 2

    return use.leaf(lax.map(one, (metrics, outputs)), jax.ShapeDtypeStruct(shape, jnp.float32))


@partial(jax.jit, static_argnums=5)
def _numbers(leaf: Array, metrics: Any, steps: Array, penalty: Array, damping: Array, use: Use) -> Array:
    """The whole numbers of what a use sees of a leaf, one layer and one factor at a time; 0 elsewhere."""

    def one(row: Any) -> Array:
        weights, steps, metrics = row
        operands = (steps[None], rates.spreads(weights[None] / steps), jnp.full((1, len(weights)), penalty))
        how, kept = feedback.Pass(rounded=_rounded), jnp.ones((1, *weights.shape), bool)
        factors = feedback.factor(_sum(metrics)[None], damping)
        return jnp.round(feedback.run(weights[None], factors, kept, operands, (), how)[0][0] / steps)

    return use.leaf(lax.map(one, (use.matrices(leaf), use.matrices(steps), metrics)), leaf)


def _sum(metrics: Any) -> Array:
    return sum(weight * gram for gram, weight in metrics)  # type: ignore[return-value]


def _rounded(row: Array, step: Array, spread: Array, penalty: Array) -> Array:
    return rates.cheapest(row / step, spread, penalty) * step


@jax.jit
def _largest(codes: Array) -> Array:
    return jnp.max(jnp.abs(codes), initial=0)


def _least(path: str, codes: Array) -> Array:
    """In the least integer dtype that holds them."""
    largest = float(_largest(codes))
    for dtype in (jnp.int8, jnp.int16, jnp.int32):
        if largest <= jnp.iinfo(dtype).max // (1 if dtype != jnp.int32 else 128):  # float32 counts to 2**24
            return codes.astype(dtype)
    raise ValueError(f"leaf {tree.show(path)} needs codes up to {largest:g}: a larger step")
