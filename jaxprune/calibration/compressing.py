"""One-shot pruning and quantization with statistics of data."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import settings, tree
from jaxprune.base import Array, Layout, Masks, Params, QuantSpec, Setting, Where
from jaxprune.calibration import feedback, leaves
from jaxprune.calibration.clipping import Grids, find_grids
from jaxprune.calibration.statistics import Statistics
from jaxprune.kernels import rounding
from jaxprune.masks.application import mask_each
from jaxprune.masks.selection import as_masks
from jaxprune.pruning import Pruned
from jaxprune.quantization import mean_squared_error

_CHANNELS = QuantSpec(axis="units", calibration=mean_squared_error())
_ZEROS = 0.05  # a leaf with more of them is a pruned one


def prune(
    params: Params,
    stats: Statistics,
    sparsity: Setting = 0.0,
    *,
    pattern: tuple[int, int] | None = None,
    bits: int | None = None,
    spec: QuantSpec = _CHANNELS,
    damping: Setting = 0.01,
    where: Where = None,
) -> Pruned:
    """Zeroes the wanted fraction of each leaf where the data miss it least, and fits what is left to the data.

    SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774): rows of inputs go in order, in blocks of 32. In each block
    the weights of the lowest abs(w) / U_kk become 0, where inv(H) = U'U for the second moments H of the inputs
    (weighted by the outputs' gradients, if the statistics have these), and the rows that follow make up for the loss.
    With ``bits`` that is done twice: for the ranges of what stays, and with what stays rounded on the way, so that rows
    make up for both losses at once.

    Args:
      params: any pytree.
      stats: of :func:`collect`, with Gram matrices.
      sparsity: traced fraction to remove of each leaf; a tree of them serves too. After each block of inputs, exactly
        ``round_half_up`` of that fraction of its entries so far is gone.
      pattern: (n, m): keeps n of every m inputs of each output instead; m is static.
      bits: static width of codes in [1, 16]; ``None`` rounds nothing.
      spec: static, of the codes, see :class:`jaxprune.QuantSpec`; by default one scale a unit, of the least squared
        error.
      damping: traced; added to the diagonal of H, as a fraction of its mean. Infinite: no feedback.
      where: whose leaves; by default all that the statistics know as factors of products.

    Returns:
      ``Pruned(params, masks)``, in the structure and dtypes of ``params``; with ``bits``, ``QArray`` leaves that are 0
      where a mask is False.

    Raises:
      ValueError: no statistics of a chosen leaf, with the reason; statistics of no data, or of other parameters.

    >>> from jaxprune.calibration import collect
    >>> w, x = jnp.array([[1.0], [2.0], [3.0]]), jnp.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> pruned, _ = prune(w, collect(lambda w, x: x @ w, w, x), 1 / 3)  # the second input does what the first did
    >>> jnp.round(pruned, 1).tolist()
    [[0.0], [3.0], [3.0]]
    """
    chosen = leaves.choose(params, stats, where)
    if pattern is None:
        own, how = settings.per_leaf(sparsity, chosen, "sparsity", 0.0, 1.0), feedback.Pass(feedback.fraction)
    else:
        n, m = pattern
        own, how = settings.per_leaf(n, chosen, "n", 0, m), feedback.Pass(feedback.n_of_m, int(m))
    tasks = [leaves.Task(settings=(one,)) for one in own]
    new = leaves.each(chosen, stats, damping, tasks, how)
    if bits is None:
        return Pruned(chosen.replace([leaf for leaf, _ in new]), as_masks(chosen, [mask for _, mask in new]))

    def passed(grids: Grids, finish: Any) -> list[Any]:
        rows = zip(grids.each, own, strict=True)
        tasks = [leaves.Task(True, operands, (one,), fixed) for (operands, fixed), one in rows]
        return leaves.each(chosen, stats, damping, tasks, how._replace(rounded=rounding.snap), finish)

    grids = find_grids(chosen.replace([leaf for leaf, _ in new]), chosen, stats, bits, spec, None, passed)
    new = passed(grids, lambda place, leaf, mask: (grids.coded(place, leaf), mask))
    return Pruned(chosen.replace([leaf for leaf, _ in new]), as_masks(chosen, [mask for _, mask in new]))


def fake_quant(
    params: Params,
    stats: Statistics,
    bits: Setting,
    *,
    spec: QuantSpec = _CHANNELS,
    masks: Masks | None = None,
    damping: Setting = 0.01,
    where: Where = None,
    layout: Layout = None,
) -> Params:
    """Rounds each leaf to the values of ``bits``-bit codes, so that the products' outputs on the data change least.

    GPTQ (Frantar et al. 2022, arXiv:2210.17323), with scales that are found ahead. Infinite damping, and inputs that
    are alike and unrelated, give :func:`jaxprune.fake_quant` with the same scales, bit for bit.

    Args:
      params: any pytree.
      stats: of :func:`collect`, with Gram matrices.
      bits: traced width of a code in [1, 16]; a tree of them serves too.
      spec: static, see :class:`jaxprune.QuantSpec`; by default one scale a unit, of the least squared error. With
        ``calibration=output_error()`` ranges are of the least error of outputs: better below 5 bits, and slower.
      masks: what is ``False`` becomes and stays 0, and other weights make up for it. By default the zeros of leaves
        that have more than 5%.
      damping: traced; added to the diagonal of H, as a fraction of its mean. Infinite: no feedback.
      where: whose leaves; by default all that the statistics know as factors of products.
      layout: the axes of leaves, static, see :mod:`jaxprune.layout`; by default as the products have them.

    Returns:
      ``params`` with the same structure, shapes and dtypes.

    Raises:
      ValueError: as :func:`prune`, and as :func:`jaxprune.fake_quant`.

    >>> from jaxprune.calibration import collect
    >>> w, x = jnp.array([[1.0], [0.4], [0.4]]), jnp.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    >>> fake_quant(w, collect(lambda w, x: x @ w, w, x), 2, spec=QuantSpec())[:, 0].tolist()  # 0.4 + 0.4 is 1, not 0
    [1.0, 0.0, 1.0]
    """
    return _quantize(params, stats, bits, spec, masks, damping, where, layout, fake=True)


def quantize(
    params: Params,
    stats: Statistics,
    bits: int,
    *,
    spec: QuantSpec = _CHANNELS,
    masks: Masks | None = None,
    damping: Setting = 0.01,
    where: Where = None,
    layout: Layout = None,
) -> Params:
    """:func:`fake_quant` as integer codes: ``QArray`` leaves. ``bits`` is static; all else alike.

    Args:
      params, stats, spec, masks, damping, where, layout: as in :func:`fake_quant`.
      bits: static width of a code in [1, 16].

    Returns:
      ``params`` with a ``QArray`` in place of each leaf that takes part.

    Raises:
      ValueError: as :func:`fake_quant`.

    >>> from jaxprune.calibration import collect
    >>> quantize(jnp.eye(2), collect(lambda w, x: x @ w, jnp.eye(2), jnp.ones((3, 2))), 4).codes.tolist()
    [[7, 0], [0, 7]]
    """
    return _quantize(params, stats, bits, spec, masks, damping, where, layout)


def _quantize(
    params: Params,
    stats: Statistics,
    bits: Setting,
    spec: QuantSpec,
    masks: Any,
    damping: Setting,
    where: Where,
    layout: Layout,
    fake: bool = False,
) -> Params:
    chosen = leaves.choose(params, stats, where)
    if masks is None:
        kept: list[Any] = [_zeros_of] * len(chosen.values)
    else:
        kept = tree.leaves_like(chosen, masks, "params", "masks")
        params = chosen.replace(mask_each(chosen.values, kept))

    def passed(grids: Grids, finish: Any) -> list[Any]:
        tasks = [leaves.Task(mask, operands, (), own) for mask, (operands, own) in zip(kept, grids.each, strict=True)]
        return leaves.each(chosen, stats, damping, tasks, feedback.Pass(rounded=rounding.snap), finish)

    grids = find_grids(params, chosen, stats, bits, spec, layout, passed)
    return chosen.replace(passed(grids, lambda place, leaf, _: leaf if fake else grids.coded(place, leaf)))


@jax.jit
def _zeros_of(leaf: Array) -> Array:
    kept = leaf != 0
    return kept | (jnp.mean(~kept) <= _ZEROS)
