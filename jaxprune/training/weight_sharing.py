"""Fine-tuning of shared weights: gradients are summed up for each centroid (Han et al. 2016, arXiv:1510.00149, fig. 3).

:func:`shared_weights` wraps an optimizer and leaves dense parameters dense: equal weights stay equal, and zeros stay 0.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune import settings, tree
from jaxprune.base import Array, Layout, Params, Setting, Where
from jaxprune.kernels import clustering
from jaxprune.kernels.rounding import divide
from jaxprune.kernels.sharding import automatic, explicit_spec
from jaxprune.quantization import codebook
from jaxprune.quantization.arrays.coded import CodebookArray
from jaxprune.quantization.arrays.protocol import dense
from jaxprune.training.held_masks import chosen_of, need, within


class Shares(NamedTuple):
    """Which weights of a leaf are one.

    Attributes:
      codes: uint8 or uint16, the cluster of each weight, in the leaf's shape.
      member: int32 ``(tables * k,)``, a position in each cluster; that of an empty one is the leaf's size.
      keeps_zeros: bool, as of a ``CodebookArray``; whether cluster 0 of a table is that of zeros that stay.
    """

    codes: Array
    member: Array
    keeps_zeros: Array


class SharedState(NamedTuple):
    """State of :func:`shared_weights`: the clusters of each leaf that takes part, and the inner state, by centroid."""

    shares: tuple[Shares, ...]
    inner: Any


def shared_weights(
    inner: optax.GradientTransformation,
    k: Setting,
    *,
    axis: int | tuple[int, ...] | Literal["units"] | None = None,
    average: bool = False,
    keep_zeros: bool = True,
    where: Where = None,
    layout: Layout = None,
) -> optax.GradientTransformationExtraArgs:
    """Trains the values that weights share, with any optimizer: equal weights stay equal, zeros stay exactly 0.

    When it is initialized, the equal weights of each selected leaf become one cluster. From then on ``inner`` sees
    float32 vectors of ``k`` centroids in place of these leaves (of all tables of a leaf, one after the other), the
    gradient of a centroid being the sum of those of its weights, in float32, and each weight gets the update of its
    centroid. Moments are of ``k`` entries, and weight decay, norms and learning rates are those of the centroids.

    Args:
      inner: an optax transformation. What it decides by the rank of a parameter it decides for vectors.
      k: number of values a table, an integer in [1, 65536]; one for all leaves or a tree of them. Static. Weights that
        ``jaxprune.codebook.kmeans(params, k)`` has shared have no more.
      axis: the axes that keep a table of their own, as in ``jaxprune.codebook.kmeans``. Static.
      average: whether a centroid's gradient is the mean instead of the sum, which suits a learning rate of dense
        training. Static.
      keep_zeros: whether weights that are 0 when it is initialized stay 0. Static.
      where: which leaves take part; see :func:`jaxprune.tree.select`. Others are trained as they are.
      layout: the axes of leaves, static; see :mod:`jaxprune.layout`.

    Returns:
      An optax transformation; its updates have the dtypes of the parameters.

    Raises:
      ValueError: when initialized, more than ``k`` distinct values of a table (not seen under ``jit``), with the path
        of the leaf; when it updates, no ``params``.
      TypeError: ``k`` is no integer; a selected leaf does not hold floating-point numbers.

    >>> params = jnp.array([0.0, 2.0, 2.0, -1.0])
    >>> optimizer = shared_weights(optax.sgd(0.5), 3)
    >>> state = optimizer.init(params)
    >>> updates, state = optimizer.update(jnp.array([9.0, 1.0, 2.0, 1.0]), state, params)
    >>> optax.apply_updates(params, updates).tolist()
    [0.0, 0.5, 0.5, -1.5]
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> SharedState:
        selection = chosen_of(params, where)
        shares = _shares_of(selection, codebook.records_of(selection, within(k, params), axis, 0, keep_zeros, layout))
        return SharedState(shares, inner.init(_centroids(selection, shares)))

    def update(updates: Any, state: Any, params: Params | None = None, **extra: Any) -> tuple[Any, SharedState]:
        selection = chosen_of(need(params, "shared_weights"), where)
        given, shares = _like(selection, updates), state.shares
        summed = [_summed(grad, share, average) for grad, share in zip(given.values, shares, strict=True)]
        steps, after = inner.update(given.replace(summed), state.inner, _centroids(selection, shares), **extra)
        found = _like(selection, steps)
        triples = zip(found.values, shares, selection.values, strict=True)
        spread = [_spread(step, share, leaf.dtype) for step, share, leaf in triples]
        return found.replace(spread), SharedState(shares, after)

    return optax.GradientTransformationExtraArgs(init, update)


def _shares_of(selection: tree.Selection, records: list[CodebookArray]) -> tuple[Shares, ...]:
    """The clusters of equal weights of each chosen leaf, once it is sure that there are no others."""
    for path, leaf, record in zip(selection.names, selection.values, records, strict=True):
        if not settings.any_traced(leaf) and not _is_shared(leaf, record):
            size = record.centroids.shape[-1]
            advice = f"share them first, with jaxprune.codebook.kmeans(params, {size})"
            raise ValueError(f"leaf {tree.show(path)} has more than {size} distinct values; {advice}")
    return tuple(map(_shares, records))


def _is_shared(leaf: Array, record: CodebookArray) -> bool:
    with jax.ensure_compile_time_eval():
        return bool(jnp.all(dense(record) == leaf))


@jax.jit
def _shares(record: CodebookArray) -> Shares:
    def members(codes: Array) -> Array:
        first = jnp.full(record.centroids.size, codes.size, jnp.int32)
        places = clustering.places(codes, record.keeps_zeros.shape, record.centroids.shape[-1])
        return first.at[places.reshape(-1)].min(jax.lax.iota(jnp.int32, codes.size))

    return Shares(record.codes, automatic(members, record.codes), record.keeps_zeros)


def _centroids(selection: tree.Selection, shares: tuple[Shares, ...]) -> Params:
    """The parameters, with the float32 values that weights share in place of each chosen leaf."""

    def values(leaf: Array, member: Array) -> Array:
        return leaf.reshape(-1).at[member].get(mode="fill", fill_value=0).astype(jnp.float32)

    pairs = zip(selection.values, shares, strict=True)
    return selection.replace([automatic(values, leaf, share.member) for leaf, share in pairs])


def _like(selection: tree.Selection, values: Any) -> tree.Selection:
    """The same selection of ``values``, a tree like the parameters."""
    return selection._replace(leaves=selection.treedef.flatten_up_to(values))


def _summed(grad: Array, share: Shares, average: bool) -> Array:
    """The sum of the gradients of each cluster, or their mean, in float32; 0 for zeros that stay."""

    def summed(codes: Array, grad: Array) -> Array:
        empty = jnp.zeros(share.member.size, jnp.float32)
        places = _places(codes, share).reshape(-1)
        total = empty.at[places].add(grad.reshape(-1).astype(jnp.float32))
        if average:
            count = empty.astype(jnp.int32).at[places].add(1)
            total = divide(total, jnp.maximum(count, 1).astype(jnp.float32))
        return total

    return jnp.where(_kept(share), 0, automatic(summed, share.codes, grad))


def _spread(step: Array, share: Shares, dtype: Any) -> Array:
    """The update of each weight: that of its cluster."""

    def spread(codes: Array, step: Array) -> Array:
        return step.at[_places(codes, share)].get(mode="promise_in_bounds")

    step = jnp.where(_kept(share), 0, step).astype(dtype)
    return automatic(spread, share.codes, step, out=explicit_spec(share.codes))


def _places(codes: Array, share: Shares) -> Array:
    """The number of each weight's centroid."""
    return clustering.places(codes, share.keeps_zeros.shape, _table_size(share))


def _kept(share: Shares) -> Array:
    first = jax.lax.iota(jnp.int32, _table_size(share)) == 0
    return (share.keeps_zeros.reshape(-1, 1) & first[None]).reshape(-1)


def _table_size(share: Shares) -> int:
    return share.member.size // max(share.keeps_zeros.size, 1)
