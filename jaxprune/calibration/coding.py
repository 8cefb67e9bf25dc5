"""Rounding for small files: what an error costs at the outputs against what a number costs in bits."""

from functools import partial, reduce
from operator import add
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune import host, settings, tree
from jaxprune.base import Array, Params, Setting, Where
from jaxprune.calibration import costs, feedback, leaves, rates
from jaxprune.calibration.costs import shares
from jaxprune.calibration.statistics import Statistics
from jaxprune.calibration.views import Use
from jaxprune.kernels.sharding import everywhere
from jaxprune.quantization.arrays.coded import PARTS, ScaledArray, octaves

_FLOOR = 0.05  # of the mean, added to what each output weighs
_KEPT = 2**28  # bytes of second moments of a leaf, up to which their factors are kept, and not computed twice
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


def _encoded(stats: Statistics, path: str, leaf: Array, asked: _Asked) -> ScaledArray:
    """Small things are done in NumPy, which compiles nothing for the many shapes of leaves."""
    lying, leaf = leaf.sharding, everywhere(leaf)
    (_, inputs, outputs), matrices = costs.matrices(stats, path, leaf)
    small = sum(gram.nbytes for one in matrices for gram, _ in one.metrics) <= _KEPT
    found = [_factors(one.metrics, asked.damping, small) for one in matrices]
    wanted = [_steps(diagonal, mean, one.outputs) for (_, (diagonal, mean)), one in zip(found, matrices, strict=True)]
    uses = tuple(one.use.form for one in matrices)
    across, along = (np.round(PARTS * np.asarray(one)) for one in _means(wanted, uses, leaf.shape, inputs, outputs))
    whole = np.round(np.median(across))  # so that exponents of rows are small; the step takes it over
    rows, columns = (np.clip(one, -_WIDEST, _WIDEST).astype(np.int8) for one in (across - whole, along))
    grid = asked.step, whole.astype(np.int32), rows, columns
    factors = [one[0] if small else two.metrics for one, two in zip(found, matrices, strict=True)]
    codes, base, largest = _numbers(leaf, factors, grid, asked.penalty, asked.damping, uses)
    codes = np.asarray(codes).astype(_least(path, float(largest)))
    return ScaledArray(
        jax.device_put(codes, lying), base, jnp.asarray(rows), jnp.asarray(columns), np.dtype(leaf.dtype)
    )


@partial(jax.jit, static_argnums=2)
def _factors(metrics: Any, damping: Array, kept: bool) -> tuple[Array | None, tuple[Array, Array]]:
    """The factors [L, K, K], if they are to be kept, their diagonals and the means of those of the metrics."""

    def one(metrics: Any) -> Any:
        gram = _sum(metrics)
        factor = feedback.factor(gram[None], damping)[0]
        return factor if kept else None, (jnp.diagonal(factor), jnp.mean(jnp.diagonal(gram)))

    return lax.map(one, metrics)


def _steps(diagonal: Array, scale: Array, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log2 of the steps, for rows less for columns, with which errors of as many steps cost alike."""
    inputs = shares(np.asarray(diagonal) ** 2, np.asarray(scale)[:, None])  # factors are of metrics over their means
    weights = outputs + np.float32(_FLOOR) * outputs.mean(1, keepdims=True)
    weights = np.where(weights > 0, shares(weights, weights.sum(1, keepdims=True)), np.float32(1))
    return np.log2(inputs) / 2, np.log2(weights) / 2


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _means(
    wanted: Any, uses: tuple[Use, ...], shape: tuple[int, ...], inputs: tuple[int, ...], outputs: tuple[int, ...]
) -> tuple[Array, Array]:
    """Of what is wanted of each number of a leaf, the means over outputs, and of what is left those over inputs."""
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    pairs = zip(uses, wanted, strict=True)
    whole = reduce(add, (use.leaf(rows[..., None] - columns[:, None], leaf) for use, (rows, columns) in pairs))
    across = jnp.mean(whole, outputs, keepdims=True)
    return across, jnp.mean(whole - across, inputs, keepdims=True)


@partial(jax.jit, static_argnums=5)
def _numbers(
    leaf: Array, factors: Any, grid: Any, penalty: Array, damping: Array, uses: tuple[Use, ...]
) -> tuple[Array, Array, Array]:
    """The whole numbers of a leaf, its step, and the largest of them; from factors, or from metrics one at a time."""
    step, whole, *exponents = grid
    base = step * octaves(whole)
    steps = base * octaves(reduce(add, (one.astype(jnp.int32) for one in exponents)))

    def one(row: Any) -> Array:
        weights, steps, own = row
        operands = (steps[None], rates.spreads(weights[None] / steps), jnp.full((1, len(weights)), penalty))
        how, kept = feedback.Pass(rounded=_rounded), jnp.ones((1, *weights.shape), bool)
        own = feedback.factor(_sum(own)[None], damping) if isinstance(own, list) else own[None]
        return jnp.round(feedback.run(weights[None], own, kept, operands, (), how)[0][0] / steps)

    rows = [(use.matrices(leaf), use.matrices(steps), own) for use, own in zip(uses, factors, strict=True)]
    codes = reduce(add, (use.leaf(lax.map(one, row), leaf) for use, row in zip(uses, rows, strict=True)))
    return codes, base, jnp.max(jnp.abs(codes), initial=0)


def _sum(metrics: Any) -> Array:
    return sum(weight * gram for gram, weight in metrics)  # type: ignore[return-value]


def _rounded(row: Array, step: Array, spread: Array, penalty: Array) -> Array:
    return rates.cheapest(row / step, spread, penalty) * step


def _least(path: str, largest: float) -> Any:
    """The least integer dtype that holds them."""
    for dtype in (np.int8, np.int16, np.int32):
        if largest <= np.iinfo(dtype).max // (1 if dtype != np.int32 else 128):  # float32 counts to 2**24
            return dtype
    raise ValueError(f"leaf {tree.show(path)} needs codes up to {largest:g}: a larger step")
