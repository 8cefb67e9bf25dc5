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
from jax.core import Tracer

from jaxprune import settings, tree
from jaxprune.base import Array, Params, QParams, QuantSpec, Setting, Where
from jaxprune.kernels import rounding, uniform
from jaxprune.kernels.sharding import automatic, explicit_spec
from jaxprune.quantization.arrays.uniform import QArray

_PLAIN = QuantSpec()


def choose_qparams(
    params: Params, bits: Setting, *, spec: QuantSpec = _PLAIN, clip: Setting = 1.0, where: Where = None
) -> Params:
    """Scale and zero point of each selected leaf, found from its values.

    Args:
      params: any pytree, or one bare array.
      bits: width of a code in [1, 16], fractional values round half up; a scalar or a tree of scalars. Traced.
      spec: symmetric or not, axis, block size, calibration. Static.
      clip: ratio in (0, 1] that multiplies the range found (and the scale at 1 bit); a scalar or a tree. Traced.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      ``params`` with a ``QParams`` in place of each selected leaf (other leaves are the same objects). Its arrays have
      the leaf's rank with size 1 along the axes that share a range; in blocks, the contraction axis becomes two,
      ``(blocks, 1)``.

    Raises:
      ValueError: a concrete setting out of range; an axis or block size that does not fit, with the leaf's path.
      TypeError: a selected leaf does not hold floating-point numbers.

    >>> qparams = choose_qparams(jnp.array([-1.0, 0.5, 1.27]), 8)
    >>> float(qparams.scale[0] * 100), int(qparams.zero_point[0])
    (1.0, 0)
    """
    selection = _select(params, spec, where)
    found = _choose_leaves(selection.values, *_settings(selection, bits, clip), spec)
    return selection.replace(found)


def fake_quant(
    params: Params,
    bits: Setting,
    *,
    spec: QuantSpec = _PLAIN,
    clip: Setting = 1.0,
    qparams: Any = None,
    where: Where = None,
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

    Returns:
      ``params`` with the same structure, shapes and dtypes; leaves that take no part are the same objects.

    Raises:
      ValueError: a concrete setting out of range; an axis, block size or ``qparams`` that does not fit a leaf, with its
        path; both ``clip`` and ``qparams``.
      TypeError: a selected leaf does not hold floating-point numbers.

    >>> print(fake_quant(jnp.array([-1.0, 0.3, 0.0, 0.8]), 2))
    [-1.  0.  0.  1.]
    """
    selection = _select(params, spec, where)
    given = _given(selection, qparams, clip, spec)
    rounded = _fake_quant_leaves(selection.values, *_settings(selection, bits, clip), given, spec)
    return selection.replace(rounded)


def quantize(
    params: Params,
    bits: Setting,
    *,
    spec: QuantSpec = _PLAIN,
    clip: Setting = 1.0,
    qparams: Any = None,
    where: Where = None,
) -> Params:
    """Stores each selected leaf as integer codes.

    NaN is kept, as a code that no number has: the least integer if symmetric, else the largest. Asymmetric codes of 8
    and 16 bits fill their storage and leave none, so there a NaN raises, or under ``jit`` becomes the zero point.

    Args:
      params: any pytree, or one bare array.
      bits: width of a code in [1, 16], fractional values round half up; a scalar or a tree of scalars. Static, because
        it sets the storage dtype.
      spec, clip, qparams, where: as in :func:`fake_quant`.

    Returns:
      ``params`` with a ``QArray`` in place of each selected leaf: codes of its shape, ``int8`` up to 8 bits, else
      ``int16`` (``uint8`` and ``uint16`` if asymmetric). Other leaves are the same objects.

    Raises:
      TypeError: traced ``bits``; a selected leaf that does not hold floating-point numbers.
      ValueError: as in :func:`fake_quant`; NaN under asymmetric codes of 8 or 16 bits.

    >>> quantize(jnp.array([-1.0, 0.5, 1.0]), 8).codes
    Array([-127,   64,  127], dtype=int8)
    """
    selection = _select(params, spec, where)
    settings = _settings(selection, bits, clip)
    if any(isinstance(width, Tracer) for width in settings[0]):
        raise TypeError("quantize needs static bits, which set the storage dtype; fake_quant takes traced ones")
    widths = tuple(int(np.floor(width + np.float32(0.5))) for width in settings[0])
    given = _given(selection, qparams, clip, spec)
    if not spec.symmetric:
        for name, leaf, width in zip(selection.names, selection.values, widths, strict=True):
            if width in (8, 16) and not isinstance(leaf, Tracer) and _has_nan(leaf):
                raise ValueError(f"leaf {name!r} holds NaN, for which asymmetric {width}-bit codes leave no room")
    return selection.replace(_quantize_leaves(selection.values, *settings, given, spec, widths))


def fixed_point(params: Params, exponent: Setting, *, where: Where = None) -> Params:
    """Rounds to multiples of a power of two: ``round_half_even(w / 2**exponent) * 2**exponent``.

    ``exponent = -f`` is the usual grid of ``f`` fraction bits. Exact: only the rounding rounds. NaN and infinities
    stay; zeros are +0.0; a value that would round beyond the dtype's largest number takes the multiple before it. The
    gradient is straight-through, 1 everywhere. float64 leaves are rounded as float32.

    Args:
      params: any pytree, or one bare array.
      exponent: an integer in [-126, 126] (floats round half up); a scalar or a tree of scalars. Traced.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      ``params`` with the same structure, shapes and dtypes; leaves that take no part are the same objects.

    Raises:
      ValueError: a concrete exponent out of range. TypeError: a selected leaf is not floating.

    >>> print(fixed_point(jnp.array([0.3, 0.375, -1.2]), -2))
    [ 0.25  0.5  -1.25]
    """
    selection = tree.select(params, where)
    exponents = settings.per_leaf(exponent, selection, "exponent", -126, 126)
    return selection.replace(_fixed_point_leaves(selection.values, exponents))


def fixed_point_codes(params: Params, fraction_bits: Setting, *, where: Where = None) -> Params:
    """The int32 codes of the fixed-point grid: ``round_half_even(w * 2**fraction_bits)``.

    Codes beyond int32 saturate, NaN becomes 0. Where none saturates, ``codes * 2**-f`` is ``fixed_point(w, -f)``.

    Args:
      params: any pytree, or one bare array.
      fraction_bits: an integer in [-126, 126] (floats round half up); a scalar or a tree of scalars. Traced.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      ``params`` with int32 arrays in place of the selected leaves; others are the same objects.

    Raises:
      ValueError: concrete fraction bits out of range. TypeError: a selected leaf is not floating.

    >>> fixed_point_codes(jnp.array([0.3, 0.375, -1.2]), 2)
    Array([ 1,  2, -5], dtype=int32)
    """
    selection = tree.select(params, where)
    fractions = settings.per_leaf(fraction_bits, selection, "fraction_bits", -126, 126)
    return selection.replace(_fixed_point_code_leaves(selection.values, fractions))


def _select(params: Params, spec: QuantSpec, where: Where) -> tree.Selection:
    selection = tree.select(params, where)
    for name, leaf in zip(selection.names, selection.values, strict=True):
        uniform.layout(leaf.shape, spec, name)
    return selection


def _settings(selection: tree.Selection, bits: Setting, clip: Setting) -> tuple[list[Any], list[Any]]:
    widths = settings.per_leaf(bits, selection, "bits", 1, 16)
    return widths, settings.per_leaf(clip, selection, "clip", float(rounding.TINY), 1)


def _given(selection: tree.Selection, qparams: Any, clip: Setting, spec: QuantSpec) -> list[QParams] | None:
    """The ``QParams`` of each chosen leaf, checked against it."""
    if qparams is None:
        return None
    if not (isinstance(clip, int | float) and clip == 1):
        raise ValueError("clip scales a range that is found; with qparams the scale is fixed, so leave clip out")
    try:
        follow = selection.treedef.flatten_up_to(qparams)
    except (ValueError, TypeError) as error:
        raise ValueError(f"qparams do not follow the tree, whose paths are {selection.paths}: {error}") from error
    found = []
    for i, name, leaf in zip(selection.chosen, selection.names, selection.values, strict=True):
        if not isinstance(follow[i], QParams):
            raise ValueError(f"qparams of leaf {name!r} must be a QParams, got {type(follow[i]).__name__}")
        found.append(uniform.checked(follow[i], leaf.shape, spec, name))
    return found


def _has_nan(leaf: Array) -> bool:
    with jax.ensure_compile_time_eval():
        return bool(jnp.isnan(leaf).any())


@partial(jax.jit, static_argnames="spec")
def _choose_leaves(leaves, widths, clips, spec):
    choose = partial(uniform.choose, spec=spec)
    return [automatic(choose, x, uniform.width(b), clip) for x, b, clip in zip(leaves, widths, clips, strict=True)]


@partial(jax.jit, static_argnames="spec")
def _fake_quant_leaves(leaves, widths, clips, given, spec):
    zipped = zip(leaves, widths, clips, given or [None] * len(leaves), strict=True)
    fake = partial(uniform.fake_quant, spec=spec)
    return [automatic(fake, x, uniform.width(b), clip, q, out=explicit_spec(x)) for x, b, clip, q in zipped]


@partial(jax.jit, static_argnames=("spec", "bits"))
def _quantize_leaves(leaves, widths, clips, given, spec, bits):
    zipped = zip(leaves, widths, clips, given or [None] * len(leaves), bits, strict=True)
    found = [(x, b, uniform.quantize(x, uniform.width(width), clip, q, spec, b)) for x, width, clip, q, b in zipped]
    return [QArray(*parts, b, np.dtype(x.dtype), spec) for x, b, parts in found]


@jax.jit
def _fixed_point_leaves(leaves, exponents):
    return [rounding.round_to_power(x, e) for x, e in zip(leaves, exponents, strict=True)]


@jax.jit
def _fixed_point_code_leaves(leaves, fractions):
    return [rounding.power_codes(x, f) for x, f in zip(leaves, fractions, strict=True)]
