"""What leaves are rounded to; ranges by what their rounding does to the outputs of products on data."""

import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import tree
from jaxprune.base import Array, Calibration, Layout, Params, QParams, QuantSpec, Setting
from jaxprune.calibration import leaves
from jaxprune.calibration.statistics import Statistics
from jaxprune.calibration.views import Use
from jaxprune.kernels import rounding, uniform
from jaxprune.quantization import integers
from jaxprune.quantization.arrays.coded import QArray
from jaxprune.quantization.leaves import Row, rows_of
from jaxprune.quantization.ranges import MeanSquaredError, mean_squared_error


def output_error(candidates: Sequence[float] = tuple(i / 20 for i in range(20, 7, -1))) -> Calibration:
    """The range, among fractions of the full one, whose rounding changes the outputs of products least: a calibration.

    For :func:`fake_quant`, :func:`quantize` and :func:`prune` of this package: each candidate takes a pass of its own,
    in which later rows make up for earlier ones, and each range (of a unit, a block) is the one of the least e'He,
    where e is what its weights change by and H the second moments of their inputs. Elsewhere it is
    :func:`jaxprune.quantization.mean_squared_error`.

    Args:
      candidates: ratios in (0, 1], static; from 1 down to 0.4 by default.

    >>> from jaxprune.calibration import collect, quantize
    >>> w, x = jnp.array([[1.0], [0.25]]), jnp.array([[0.01, 0.0], [0.0, 1.0]])  # the large weight matters little
    >>> spec = QuantSpec(axis="units", calibration=output_error((1.0, 0.25)))
    >>> quantize(w, collect(lambda w, x: x @ w, w, x), 2, spec=spec).scale.tolist()
    [[0.25]]
    """
    return OutputError(mean_squared_error(candidates).ratios)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class OutputError(MeanSquaredError):
    """What :func:`output_error` gives."""


class Grids(NamedTuple):
    """What the chosen leaves are rounded to; for each of them the operands of ``snap``, and the spec of its own."""

    chosen: tree.Selection
    qparams: Params
    each: list[tuple[tuple[Array, ...], QuantSpec]]
    rows: list[Row]
    stacked: list[tuple[int, ...]]

    def coded(self, place: int, leaf: Array) -> QArray:
        """The codes of one leaf, which is rounded already."""
        return integers.coded(self.chosen.names[place], (leaf, *self.rows[place][1:]), self.stacked[place])


#: A pass with grids: what the function makes of each new leaf and its mask, by its place among the chosen ones.
_Passed = Callable[[Grids, Callable[[int, Array, Array], Any]], list[Any]]


def find_grids(
    params: Params,
    chosen: tree.Selection,
    stats: Statistics,
    bits: Setting,
    spec: QuantSpec,
    layout: Layout,
    passed: _Passed,
) -> Grids:
    """Of ranges found from ``params``, which may be pruned already; by trial, if errors of outputs decide."""
    layout = _layout(chosen, stats) if layout is None else layout
    ratios = spec.calibration.ratios if isinstance(spec.calibration, OutputError) else None
    spec = spec if ratios is None else replace(spec, calibration=None)

    names = frozenset(chosen.names)
    where = lambda path, _: path in names  # noqa: E731

    def on(qparams: Params) -> Grids:
        _, rows, stacked = rows_of(params, bits, 1, qparams, spec, where, layout)
        fixed = [uniform.from_the_end(own, leaf.ndim) for leaf, *_, own in rows]
        operands = [
            _operands(found, width, own.symmetric) for (_, width, _, found, _), own in zip(rows, fixed, strict=True)
        ]
        return Grids(chosen, qparams, list(zip(operands, fixed, strict=True)), rows, stacked)

    def found(clip: float) -> Grids:
        return on(integers.choose_qparams(params, bits, spec=spec, clip=clip, where=where, layout=layout))

    return found(1) if ratios is None else on(_best(chosen, stats, [found(one) for one in ratios], passed))


def _layout(chosen: tree.Selection, stats: Statistics) -> Layout:
    """The axes of the chosen leaves, as products use them."""
    uses = [next(use for _, use in stats.of(path) if not use.lookup) for path in chosen.names]
    return {glob.escape(use.path): use.axes for use in uses if use.axes is not None}  # type: ignore[misc]


@partial(jax.jit, static_argnums=2)
def _operands(qparams: QParams, bits: Array, symmetric: bool) -> tuple[Array, ...]:
    """The operands of ``snap`` for each range of a leaf."""
    return rounding.grid(qparams, jnp.floor(jnp.asarray(bits) + 0.5).astype(jnp.int32), symmetric)


def _best(chosen: tree.Selection, stats: Statistics, candidates: Sequence[Grids], passed: _Passed) -> Params:
    """The scales and zero points of the least error, of all candidates."""
    best: list[Any] = [None] * len(chosen.values)
    for grids in candidates:

        def cost(place: int, leaf: Array, mask: Array, grids: Grids = grids) -> Any:
            old, (_, spec) = chosen.values[place], grids.each[place]
            parts = leaves.parts(stats, chosen.names[place])
            return sum(_costs(leaf, old, gram, use.form, spec) for use, gram in parts)

        found = [chosen.treedef.flatten_up_to(grids.qparams)[i] for i in chosen.chosen]
        tried = zip(found, passed(grids, cost), strict=True)
        best = [new if old is None else _better(new, old) for new, old in zip(tried, best, strict=True)]
    return chosen.replace([qparams for qparams, _ in best])


@partial(jax.jit, static_argnums=(3, 4))
def _costs(new: Array, old: Array, gram: Array, use: Use, spec: QuantSpec) -> Array:
    """e'He of what shares a range, in the shape of the ranges."""
    lost = use.matrices(new) - use.matrices(old)
    lost = jnp.where(jnp.isfinite(lost), lost, 0)
    each = use.leaf(lost * jnp.einsum("lkm,lmn->lkn", gram, lost), old)
    return uniform.group(each, spec).sum(uniform.layout(old.shape, spec, use.path)[1], keepdims=True)


@jax.jit
def _better(new: tuple[QParams, Array], old: tuple[QParams, Array]) -> tuple[QParams, Array]:
    wins = new[1] < old[1]
    return jax.tree.map(lambda a, b: jnp.where(wins, a, b), new[0], old[0]), jnp.where(wins, new[1], old[1])
