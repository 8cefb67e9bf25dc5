"""What errors in a leaf cost at the outputs: second moments of inputs, and weights of outputs, for each matrix."""

from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import tree
from jaxprune.base import Array
from jaxprune.calibration import leaves
from jaxprune.calibration.statistics import Lookups, Statistics
from jaxprune.calibration.views import Use


class Matrices(NamedTuple):
    """Matrices [L, K, N] of a leaf, and what errors in them cost.

    Attributes:
      use: of the leaf.
      metrics: second moments of inputs, [L, K, K] each, and their weights [L]: added up one layer at a time.
      outputs: what each of them weighs, [L, N].
    """

    use: Use
    metrics: list[tuple[Array, np.ndarray]]
    outputs: np.ndarray


def matrices(stats: Statistics, path: str, leaf: Array) -> tuple[Any, list[Matrices]]:
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
        metrics = [(metric, shares(outputs.sum(1), np.asarray(leaves.trace(metric))))]
        for table in tables:
            own = np.asarray(_seen(table.outputs, table.use.form, use.form, leaf.shape))
            metrics.append((table.metric, shares(own.sum(1), np.asarray(leaves.trace(table.metric)))))
            outputs = outputs + own
        found.append(Matrices(use, metrics, outputs))
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
    outputs: np.ndarray


def _of_product(stats: Statistics, part: leaves.Part) -> _Costs:
    use, gram = part
    alike = [name for name, other in stats.of(use.path) if (other.view, other.shape) == (use.view, use.shape)]
    squares = np.sum([stats.gradients[name].squares for name in alike], 0)
    return _Costs(use, gram, shares(squares, squares.sum(1, keepdims=True)) * np.asarray(leaves.trace(gram))[:, None])


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
    outputs = often.astype(np.float32) * np.asarray(leaves.trace(gradients.weighted))[:, None]
    return _Costs(Use(turned, (many, width, size), use.source), gradients.weighted, outputs)


def shares(parts: np.ndarray, total: np.ndarray) -> np.ndarray:
    return parts / np.where(total > 0, total, np.float32(1))


@partial(jax.jit, static_argnums=(1, 2, 3))
def _seen(outputs: Array, table: Use, use: Use, shape: tuple[int, ...]) -> Array:
    """What each output of a use weighs, of what each number of a table does: [L, N]."""
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    return use.matrices(table.leaf(jnp.broadcast_to(outputs[:, None], table.shape), leaf))[:, 0]
