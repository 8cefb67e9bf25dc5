"""Uniform quantization: fake, real and fixed-point, per tensor, per channel and per block.

An array x is cut into groups (``QuantSpec``), each with a float32 ``scale`` and an integer ``zero_point``:

    code  = clip(round_half_even(x / scale) + zero_point, least, largest)      value = (code - zero_point) * scale

* symmetric: codes in [-(2**(b-1) - 1), 2**(b-1) - 1], zero point 0, scale = max abs(x) / (2**(b-1) - 1). At 1 bit the
  code is sign(x) and the scale is mean abs(x).
* asymmetric: codes in [0, 2**b - 1] over the range of x widened to hold 0, scale = (high - low) / (2**b - 1),
  zero_point = round_half_even(-low / scale).

Ranges look at finite values only. A group without width gives zeros, infinities saturate, NaN stays NaN in its place
alone, and 0.0 maps to +0.0, so pruned weights stay pruned. Everything is computed in float32 and cast back once. A
range whose scale would be subnormal counts as one without width. Eager, ``jit``, ``vmap`` and ``lax.map`` give the same
bits.

Sources: Jacob et al. 2018 (arXiv:1712.05877) and Krishnamoorthi 2018 (arXiv:1806.08342) for the scheme; Rastegari et
al. 2016 (arXiv:1603.05279) for 1 bit; Bengio et al. 2013 (arXiv:1308.3432) for the straight-through gradient.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxprune import settings, tree
from jaxprune.base import Array, Layout, Params, QParams, QuantSpec, Setting, Where
from jaxprune.kernels import by_shape, rounding, uniform
from jaxprune.kernels.sharding import automatic, explicit_spec
from jaxprune.quantization.arrays.coded import QArray
from jaxprune.quantization.leaves import Row, rows_of

_PLAIN = QuantSpec()


def choose_qparams(
    params: Params,
    bits: Setting,
    *,
    spec: QuantSpec = _PLAIN,
    clip: Setting = 1.0,
    where: Where = None,
    layout: Layout = None,
) -> Params:
    """Scale and zero point of each selected leaf, found from its values.

    Args:
      params: any pytree, or one bare array.
      bits: width of a code in [1, 16], fractional values round half up; a scalar or a tree of scalars. Traced.
      spec: symmetric or not, axis, block size, calibration. Static.
      clip: ratio in (0, 1] that multiplies the range found (and the scale at 1 bit); a scalar or a tree. Traced.
      where: which leaves take part; see :func:`jaxprune.tree.select`.
      layout: the axes of leaves, static; see :mod:`jaxprune.layout`.

    Returns:
      ``params`` with a ``QParams`` in place of each selected leaf (other leaves are the same objects). Its arrays have
      the leaf's rank with size 1 along the axes that share a range; in blocks, the contraction axis becomes two,
      ``(blocks, 1)``. Each of stacked layers has its own.

    Raises:
      ValueError: a concrete setting out of range; an axis or block size that does not fit, with the leaf's path.
      TypeError: a selected leaf does not hold floating-point numbers.

    >>> qparams = choose_qparams(jnp.array([-1.0, 0.5, 1.27]), 8)
    >>> float(qparams.scale[0] * 100), int(qparams.zero_point[0])
    (1.0, 0)
    """
    selection, rows, _ = rows_of(params, bits, clip, None, spec, where, layout)
    return selection.replace([_choose(x, width, ratio, own) for x, width, ratio, _, own in rows])


def fake_quant(
    params: Params,
    bits: Setting,
    *,
    spec: QuantSpec = _PLAIN,
    clip: Setting = 1.0,
    qparams: Any = None,
    where: Where = None,
    layout: Layout = None,
) -> Params:
    """Rounds each selected leaf to the values that ``bits``-bit codes can hold; equals
    ``dequantize(quantize(params, bits))`` bit for bit.

    The gradient is straight-through: 1 where ``round(x / scale) + zero_point`` is a code without clipping (so a group
    of zeros learns), 0 elsewhere and at NaN; none with respect to bits, clip and qparams. At 1 bit, symmetric, it is 1
    where abs(x) < 1.5 scale.

    Args:
      params: any pytree, or one bare array.
      bits: width of a code in [1, 16], fractional values round half up; a scalar or a tree of scalars. Traced: a sweep
        over widths is one program, and under ``jax.vmap`` the range is found once.
      spec: symmetric or not, axis, block size, calibration. Static.
      clip: ratio in (0, 1] that multiplies the range found (and the scale at 1 bit); a scalar or a tree. Traced.
      qparams: a fixed scale and zero point as :func:`choose_qparams` returns them (for a bare array a ``QParams``),
        instead of those found from the values. Traced.
      where: which leaves take part; see :func:`jaxprune.tree.select`.
      layout: the axes of leaves, static; see :mod:`jaxprune.layout`.

    Returns:
      ``params`` with the same structure, shapes and dtypes; leaves that take no part are the same objects.

    Raises:
      ValueError: a concrete setting out of range; an axis, block size or ``qparams`` that does not fit a leaf, with its
        path; both ``clip`` and ``qparams``.
      TypeError: a selected leaf does not hold floating-point numbers.

    >>> print(fake_quant(jnp.array([-1.0, 0.3, 0.0, 0.8]), 2))
    [-1.  0.  0.  1.]
    """
    selection, rows, _ = rows_of(params, bits, clip, qparams, spec, where, layout)
    return selection.replace([_fake_quant(*row) for row in rows])


def quantize(
    params: Params,
    bits: Setting,
    *,
    spec: QuantSpec = _PLAIN,
    clip: Setting = 1.0,
    qparams: Any = None,
    where: Where = None,
    layout: Layout = None,
) -> Params:
    """Stores each selected leaf as integer codes.

    NaN is kept, as a code that no number has: the least integer if symmetric, else the largest. Asymmetric codes of 8
    and 16 bits fill their storage and leave none, so there a NaN raises, or under ``jit`` becomes the zero point.

    Args:
      params: any pytree, or one bare array.
      bits: width of a code in [1, 16], fractional values round half up; a scalar or a tree of scalars. Static, because
        it sets the storage dtype.
      spec, clip, qparams, where, layout: as in :func:`fake_quant`.

    Returns:
      ``params`` with a ``QArray`` in place of each selected leaf: codes of its shape, ``int8`` up to 8 bits, else
      ``int16`` (``uint8`` and ``uint16`` if asymmetric). Other leaves are the same objects. Scales and zero points have
      the length of the leaf along the axes of stacked layers (where no rule knows these, along all but the last two):
      so that ``scan``, ``vmap`` and indexing take a ``QArray`` apart.

    Raises:
      TypeError: traced ``bits``; a selected leaf that does not hold floating-point numbers.
      ValueError: as in :func:`fake_quant`; NaN under asymmetric codes of 8 or 16 bits.

    >>> quantize(jnp.array([-1.0, 0.5, 1.0]), 8).codes
    Array([-127,   64,  127], dtype=int8)
    """
    selection, rows, stacked = rows_of(params, bits, clip, qparams, spec, where, layout)
    if settings.any_traced([row[1] for row in rows]):
        raise TypeError("quantize needs static bits, which set the storage dtype; fake_quant takes traced ones")
    every = zip(selection.names, rows, stacked, strict=True)
    return selection.replace([coded(*one) for one in every])


def coded(path: str, row: Row, stacked: tuple[int, ...]) -> QArray:
    """The codes of one leaf, of concrete bits; as :func:`jaxprune.quantization.leaves.rows_of` has it."""
    x, bits, clip, given, spec = row
    width = int(np.floor(bits + np.float32(0.5)))
    if not spec.symmetric and width % 8 == 0:
        reason = "holds NaN, for which asymmetric codes of 8 or 16 bits leave no room"
        settings.refuse([(path, x)], settings.has_nan, reason)
    codes, scale, zero_point = _quantize(x, bits, clip, given, spec, uniform.storage(width, spec.symmetric), stacked)
    return QArray(codes, scale, zero_point, width, np.dtype(x.dtype), spec)


def fixed_point(params: Params, exponent: Setting, *, codes: bool = False, where: Where = None) -> Params:
    """Rounds to multiples of a power of two: ``round_half_even(w / 2**exponent) * 2**exponent``.

    ``exponent = -f`` is the usual grid of ``f`` fraction bits. Exact: only the rounding rounds. NaN and infinities
    stay; zeros are +0.0; a value that would round beyond the dtype's largest number takes the multiple before it. The
    gradient is straight-through, 1 everywhere. float64 leaves are rounded as float32.

    Args:
      params: any pytree, or one bare array.
      exponent: an integer in [-126, 126] (floats round half up); a scalar or a tree of scalars. Traced.
      codes: whether to return the int32 codes ``round_half_even(w / 2**exponent)`` instead, where those beyond int32
        saturate and NaN becomes 0. Static.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      ``params`` with the same structure, shapes and (without ``codes``) dtypes; leaves that take no part are the same
      objects.

    Raises:
      ValueError: a concrete exponent out of range. TypeError: a selected leaf is not floating.

    >>> print(fixed_point(jnp.array([0.3, 0.375, -1.2]), -2))
    [ 0.25  0.5  -1.25]
    >>> print(fixed_point(jnp.array([0.3, 0.375, -1.2]), -2, codes=True))
    [ 1  2 -5]
    """
    selection = tree.select(params, where)
    exponents = settings.per_leaf(exponent, selection, "exponent", -126, 126)
    rounded = rounding.power_codes if codes else rounding.round_to_power
    return selection.replace(by_shape.each(rounded, selection.values, exponents))


# Called eagerly, each compiles one small program for every shape, dtype and sharding among the leaves.


@partial(jax.jit, static_argnums=3)
def _choose(x: Array, bits: Array, clip: Array, spec: QuantSpec) -> QParams:
    return automatic(partial(uniform.choose, spec=spec), x, uniform.width(bits), clip)


@partial(jax.jit, static_argnums=4)
def _fake_quant(x: Array, bits: Array, clip: Array, given: QParams | None, spec: QuantSpec) -> Array:
    fake = partial(uniform.fake_quant, spec=spec)
    return automatic(fake, x, uniform.width(bits), clip, given, out=explicit_spec(x))


@partial(jax.jit, static_argnums=(4, 5, 6))
def _quantize(
    x: Array,
    bits: Array,
    clip: Array,
    given: QParams | None,
    spec: QuantSpec,
    storage: uniform.Storage,
    stacked: tuple[int, ...],
) -> tuple[Array, Array, Array]:
    out = (explicit_spec(x), PartitionSpec(), PartitionSpec())
    coded = partial(uniform.quantize, spec=spec, storage=storage)
    codes, scale, zero_point = automatic(coded, x, uniform.width(bits), clip, given, out=out)
    shape = uniform.grouped_shape(x.shape, spec)
    blocked = uniform.blocked_axis(x.ndim, spec)
    long = {i if blocked is None or i < blocked else i + 1 for i in stacked if i != blocked}
    scale, zero_point = (_stretched(part, shape, long) if long else part for part in (scale, zero_point))
    return codes, scale, zero_point


def _stretched(part: Array, shape: tuple[int, ...], axes: set[int]) -> Array:
    """``part`` repeated to the length of ``shape`` along some axes."""
    own = (1,) * (len(shape) - part.ndim) + part.shape
    return jnp.broadcast_to(part, tuple(shape[i] if i in axes else n for i, n in enumerate(own)))
