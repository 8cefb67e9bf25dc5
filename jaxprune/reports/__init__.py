"""What was removed, what is left and what it costs: a table, a page and pictures for people, integers for programs.

:func:`report` counts on the host, in integers of any size; :func:`coded_bytes` is the same count inside a jitted sweep.
The formula of the bytes is in :mod:`jaxprune.reports.sizes`. A :class:`Report` is printed, drawn (``plot``), written as
a page (``to_html``) or taken apart (``to_dict``); :func:`plot_frontier` draws what a sweep has found. The curves say
what many settings do to the weights of each leaf, without a model.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune import tree
from jaxprune.base import Layout, Masks, Params, QuantSpec, Scores, Setting, Where
from jaxprune.quantization.arrays.coded import QArray
from jaxprune.quantization.arrays.protocol import dequantize
from jaxprune.reports import measures, reasons, sizes
from jaxprune.reports.curves import entropy_curve, quantization_error_curve, sparsity_curve
from jaxprune.reports.plots import plot_frontier
from jaxprune.reports.sizes import Stored, coded_bytes
from jaxprune.reports.summary import Report, Row
from jaxprune.sweeps.found import Found

__all__ = ["Report", "coded_bytes", "entropy_curve", "plot_frontier", "quantization_error_curve", "report"]
__all__ += ["sparsity_curve"]

_PLAIN = QuantSpec()


def report(
    before: Params,
    after: Params,
    *,
    masks: Masks | None = None,
    bits: Setting = None,
    spec: QuantSpec = _PLAIN,
    where: Where = None,
    layout: Layout = None,
    why: Scores | Found | bool = False,
) -> Report:
    """Says for each leaf, and in total, what is left of ``before`` in ``after``, what it costs and how far off it is.

    Args:
      before: any pytree of arrays.
      after: the same paths and shapes; ``QArray`` leaves as they come out of ``quantize``, or floating arrays.
      masks: what was removed. Without masks nothing counts as removed, however many zeros there are.
      bits: width of the codes in [1, 16] of the leaves that are quantized but held as floats (``fake_quant``); a scalar
        or a tree. None where no such leaves are. Leaves without it count with the width of their dtype.
      spec: the quantizer that goes with ``bits``; it tells the number of scales. A ``QArray`` knows its own.
      where: the leaves that ``bits`` is about; see :func:`jaxprune.tree.select`. Without ``bits`` only checked.
      layout: the axes of leaves; see :mod:`jaxprune.layout`. They tell what is a unit, or a block.
      why: True says in words what each leaf costs and saves, and what a bit more or less would, by the error of its
        weights. The scores that the masks were made from say as well which units (or weights) stayed by what score,
        how far from the line the nearest are, and how their weights are spread. What :func:`jaxprune.search` found
        says it by the loss: what each setting added, and what the next one either way would.

    Returns:
      A :class:`Report`. Counts are exact Python integers, errors are computed in float64. Leaves that are not floating
      are listed with their bytes, callables are left out.

    Raises:
      ValueError: trees of different structure or shapes; a value under a mask that is not 0 (apply the masks first);
        bits out of range, or other than a ``QArray``'s.
      TypeError: a leaf that is no array, is traced, or was floating and is not any more; a mask that is not bool.

    >>> before = {"kernel": jnp.array([[4.0, -1.0], [0.0, 2.0]])}
    >>> masks = {"kernel": jnp.array([[True, False], [True, True]])}
    >>> after = {"kernel": jnp.array([[4.0, 0.0], [0.0, 2.0]])}
    >>> row = report(before, after, masks=masks, bits=8).rows[0]
    >>> row.mask_sparsity, row.zero_fraction, row.dense_bytes, row.coded_bytes  # 3 values, a mask byte, a scale
    (0.25, 0.5, 16, 8)
    """
    old, new, codes = _matched(before, after)
    stored = sizes.describe(before, masks, bits, spec, where, layout, codes)
    after = [now for was, now in zip(old.leaves, new.leaves, strict=True) if sizes.holds_numbers(was)]
    told = [one for one, was in zip(reasons.given(why, old), old.leaves, strict=True) if sizes.holds_numbers(was)]
    hosted = ((one, _host(one.leaf), _host(now)) for one, now in zip(stored, after, strict=True))
    counted = [_row(*leaf, why=one) for leaf, one in zip(hosted, told, strict=True)]
    rows = tuple(row for row, _, _ in counted)
    error, norm = sum(error for _, error, _ in counted), sum(norm for _, _, norm in counted)
    return Report(rows, _total(rows, measures.relative(error, norm)))


def _matched(before: Params, after: Params) -> tuple[tree.Selection, tree.Selection, dict[int, QArray]]:
    """Both trees, leaf by leaf; ``QArray`` leaves of the second as the floats they stand for, and by position."""
    leaves, treedef = jax.tree.flatten(after, is_leaf=lambda leaf: isinstance(leaf, QArray))
    for leaf in jax.tree.leaves((before, leaves)):
        if isinstance(leaf, Tracer):
            raise TypeError("report needs concrete arrays; under jit, coded_bytes counts the bytes")
    old = tree.flatten(before)
    new = tree.flatten(dequantize(treedef.unflatten(leaves)))
    tree.same_paths(old, new, "before", "after")
    for path, was, now in zip(old.paths, old.leaves, new.leaves, strict=True):
        if np.shape(was) != np.shape(now):
            raise ValueError(f"leaf {tree.show(path)} has shape {np.shape(was)} before and {np.shape(now)} after")
        if tree.is_floating(was) and not tree.is_floating(now):
            raise TypeError(f"leaf {tree.show(path)} is floating before and {getattr(now, 'dtype', now)} after")
    return old, new, {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, QArray)}


def _row(stored: Stored, before: np.ndarray, after: np.ndarray, why: Any) -> tuple[Row, float, float]:
    """The row of one leaf, and what it adds to the squared error and the squared norm of all."""
    mask = np.asarray(stored.mask)
    if np.any((after != 0) & ~mask):
        path = tree.show(stored.path)
        raise ValueError(f"leaf {path} has values under its mask that are not 0; apply_masks(after, masks)")
    width = 8 * after.dtype.itemsize if stored.bits is None else math.floor(stored.bits + 0.5)
    kept, entries = sizes.mask_cost(mask, after.size, stored.within)
    found, spread = measures.compare(before, after), measures.histogram(before, after)
    counts = after.size, after.size if mask.ndim or not mask else 0, after.size - kept, found.zeros_after
    coded = sizes.leaf_bytes(kept, width, entries, stored.scales * stored.each)
    axes = str(stored.axes or "?") if 0 < entries < after.size or stored.scales > 1 else ""
    errors = found.relative_error, found.max_error
    said = reasons.reason(stored, before, coded, found.relative_error, why)
    row = Row(stored.path, *counts, width, before.nbytes, coded, *errors, histogram=spread, axes=axes, why=said)
    if not jnp.issubdtype(before.dtype, jnp.inexact):
        return row, 0.0, 0.0  # indices and keys are large numbers, next to which no weight would count
    return row, found.squared_error, found.squared_norm


def _total(rows: Sequence[Row], relative_error: float) -> Row:
    counts = ("parameters", "masked", "removed", "zeros", "dense_bytes", "coded_bytes")
    sums: dict[str, Any] = {name: sum(getattr(row, name) for row in rows) for name in counts}
    bits = 8 * sums["coded_bytes"] / sums["parameters"] if sums["parameters"] else 0.0
    largest = float(np.max([row.max_error for row in rows], initial=0.0))
    return Row("total", **sums, bits=bits, relative_error=relative_error, max_error=largest)


def _host(leaf: Any) -> np.ndarray:
    """A leaf in host memory; PRNG keys as the integers they are."""
    if tree.is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(leaf))
    return np.asarray(leaf if tree.is_array(leaf) else jnp.asarray(leaf))
