"""What was removed, what is left and what it costs: a table for people, integers for programs.

:func:`report` counts on the host, in integers of any size; :func:`coded_bytes` is the same count inside a jitted sweep.
The formula of the bytes is in :mod:`jaxprune.sizes`.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune import sizes, tree
from jaxprune.base import Masks, Params, QArray, QuantSpec, Setting, Where
from jaxprune.quantization import dequantize
from jaxprune.sizes import coded_bytes

__all__ = ["Report", "Row", "coded_bytes", "report"]

_PLAIN = QuantSpec()

_HEADER = ("leaf", "parameters", "sparsity", "zeros", "bits", "dense bytes", "coded bytes", "rel. error", "max error")
_FOOTER = """\
coded = ceil(kept * bits / 8) + mask + 4 a scale (+ 4 a zero point if asymmetric), in bytes for each leaf; a mask takes
1 bit a parameter, 1 bit a unit where whole units are removed, nothing where nothing is. An entropy coder gets below it.
sparsity: what masks remove, of the parameters under a mask. zeros: of all parameters, whatever made them.
The bits of the total are coded bits a parameter; rel. error is |after - before| / |before| in the L2 norm."""


@dataclass(frozen=True)
class Row:
    """One leaf, or all of them.

    Attributes:
      path: of the leaf; empty for a bare array, "total" for the last row.
      parameters: entries.
      masked: entries of them under a mask; 0 of a leaf that is left alone.
      removed: entries that the mask removes.
      zeros: entries that are 0 afterwards, natural zeros included.
      bits: width of a code or of the dtype; of the total, coded bits divided by parameters.
      dense_bytes: size before, as the arrays are.
      coded_bytes: size after, by the formula of :mod:`jaxprune.sizes`.
      relative_error: L2 norm of ``after - before`` over that of ``before`` (its finite entries); inf if only that is 0.
      max_error: largest ``abs(after - before)``, in the units of the parameters.
    """

    path: str
    parameters: int
    masked: int
    removed: int
    zeros: int
    bits: float
    dense_bytes: int
    coded_bytes: int
    relative_error: float
    max_error: float

    @property
    def mask_sparsity(self) -> float:
        """Fraction that masks remove, of the parameters under a mask; as ``masks.sparsity_of``."""
        return self.removed / self.masked if self.masked else 0.0

    @property
    def zero_fraction(self) -> float:
        """Fraction of zeros, of all parameters."""
        return self.zeros / self.parameters if self.parameters else 0.0


@dataclass(frozen=True)
class Report:
    """A row for each leaf and one for all. ``print`` shows the table, :meth:`to_dict` gives what is in it."""

    rows: tuple[Row, ...]
    total: Row

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for ``json.dumps``: ``{"rows": [{...}, ...], "total": {...}}``."""

        def record(row: Row) -> dict[str, Any]:
            return asdict(row) | {"mask_sparsity": row.mask_sparsity, "zero_fraction": row.zero_fraction}

        return {"rows": [record(row) for row in self.rows], "total": record(self.total)}

    def __str__(self) -> str:
        return _table(self)


def report(
    before: Params,
    after: Params,
    *,
    masks: Masks | None = None,
    bits: Setting = None,
    spec: QuantSpec = _PLAIN,
    where: Where = None,
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
    flags, widths = sizes.mask_leaves(before, masks), sizes.widths(before, bits, spec, where, codes)
    counted = [
        _row(path, _host(was), _host(now), np.asarray(flags.get(i, True)), *widths.get(i, (None, 0)))
        for i, (path, was, now) in enumerate(zip(old.paths, old.leaves, new.leaves, strict=True))
        if sizes.holds_numbers(was)
    ]
    rows = tuple(row for row, _, _ in counted)
    return Report(rows, _total(rows, sum(error for _, error, _ in counted), sum(norm for _, _, norm in counted)))


def _matched(before: Params, after: Params) -> tuple[tree.Selection, tree.Selection, dict[int, QArray]]:
    """Both trees, leaf by leaf; ``QArray`` leaves of the second as the floats they stand for, and by position."""
    leaves, treedef = jax.tree.flatten(after, is_leaf=_is_qarray)
    for leaf in jax.tree.leaves((before, leaves)):
        if isinstance(leaf, Tracer):
            raise TypeError("report needs concrete arrays; under jit, coded_bytes counts the bytes")
    old = tree.select(before, lambda *_: False)
    new = tree.select(dequantize(treedef.unflatten(leaves)), lambda *_: False)
    tree.same_paths(old, new, "before", "after")
    for path, was, now in zip(old.paths, old.leaves, new.leaves, strict=True):
        if np.shape(was) != np.shape(now):
            raise ValueError(f"leaf {tree.show(path)} has shape {np.shape(was)} before and {np.shape(now)} after")
        if tree.is_floating(was) and not tree.is_floating(now):
            raise TypeError(f"leaf {tree.show(path)} is floating before and {getattr(now, 'dtype', now)} after")
    return old, new, {i: leaf for i, leaf in enumerate(leaves) if _is_qarray(leaf)}


def _row(
    path: str, before: np.ndarray, after: np.ndarray, mask: np.ndarray, bits: Any, scales: int
) -> tuple[Row, float, float]:
    """The row of one leaf, its squared error and the square of its norm."""
    if np.any((after != 0) & ~mask):
        raise ValueError(f"leaf {tree.show(path)} has values under its mask that are not 0; apply_masks(after, masks)")
    width = 8 * after.dtype.itemsize if bits is None else math.floor(bits + 0.5)
    kept, entries = (int(n) for n in sizes.mask_cost(mask, after.size, np, np.int64))
    squared_error, squared_norm, largest = _errors(before, after)
    row = Row(
        path=path,
        parameters=after.size,
        masked=after.size if mask.ndim or not mask else 0,
        removed=after.size - kept,
        zeros=after.size - int(np.count_nonzero(after)),
        bits=width,
        dense_bytes=before.nbytes,
        coded_bytes=sizes.leaf_bytes(kept, width, entries, scales),
        relative_error=_ratio(squared_error, squared_norm),
        max_error=largest,
    )
    return row, squared_error, squared_norm


def _errors(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """Sum of squared differences, sum of squares before, largest difference. NaN in both places is no difference."""
    wide = np.complex128 if jnp.issubdtype(before.dtype, jnp.complexfloating) else np.float64
    old, new = before.astype(wide), after.astype(wide)
    same = (old == new) | (np.isnan(old) & np.isnan(new))
    difference = np.abs(np.subtract(old, new, where=~same, out=np.zeros_like(old)))
    norm = np.abs(old[np.isfinite(old)])
    return float(np.sum(difference**2)), float(np.sum(norm**2)), float(np.max(difference, initial=0.0))


def _ratio(squared_error: float, squared_norm: float) -> float:
    if squared_error == 0:
        return 0.0
    return math.sqrt(squared_error / squared_norm) if squared_norm else math.inf


def _total(rows: Sequence[Row], squared_error: float, squared_norm: float) -> Row:
    parameters, coded = sum(row.parameters for row in rows), sum(row.coded_bytes for row in rows)
    return Row(
        path="total",
        parameters=parameters,
        masked=sum(row.masked for row in rows),
        removed=sum(row.removed for row in rows),
        zeros=sum(row.zeros for row in rows),
        bits=8 * coded / parameters if parameters else 0.0,
        dense_bytes=sum(row.dense_bytes for row in rows),
        coded_bytes=coded,
        relative_error=_ratio(squared_error, squared_norm),
        max_error=float(np.max([row.max_error for row in rows], initial=0.0)),
    )


def _is_qarray(leaf: Any) -> bool:
    return isinstance(leaf, QArray)


def _host(leaf: Any) -> np.ndarray:
    """A leaf in host memory; PRNG keys as the integers they are."""
    if tree.is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(leaf))
    return np.asarray(leaf if tree.is_array(leaf) else jnp.asarray(leaf))


def _table(report: Report) -> str:
    lines = [_HEADER, *(_cells(row, f"{row.bits:g}") for row in report.rows)]
    lines.append(_cells(report.total, f"{report.total.bits:.2f}"))
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADER))]
    body = []
    for name, *numbers in lines:
        numbers = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        body.append("  ".join([name.ljust(widths[0]), *numbers]))
    rule = "-" * len(body[0])
    total = report.total
    share = f" ({total.coded_bytes / total.dense_bytes:.1%} of dense)" if total.dense_bytes else ""
    summary = f"dense {total.dense_bytes:,} bytes, coded {total.coded_bytes:,} bytes{share}"
    return "\n".join([body[0], rule, *body[1:-1], rule, body[-1], "", summary, _FOOTER])


def _cells(row: Row, bits: str) -> tuple[str, ...]:
    return (
        row.path or "(array)",
        f"{row.parameters:,}",
        f"{row.mask_sparsity:.4f}",
        f"{row.zero_fraction:.4f}",
        bits,
        f"{row.dense_bytes:,}",
        f"{row.coded_bytes:,}",
        f"{row.relative_error:.2e}",
        f"{row.max_error:.2e}",
    )
