"""A uniform quantizer on one array: its groups, its scale, its fake and its stored form. Called under ``jit``."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import settings
from jaxprune.base import Array, QParams, QuantSpec
from jaxprune.kernels.reductions import full_range, mean_magnitude
from jaxprune.kernels.rounding import TINY, divide, grid, multiples, qparams_of, snap
from jaxprune.kernels.sharding import automatic, explicit_spec
from jaxprune.layout import check_axis
from jaxprune.tree import broadcasts


class Storage(NamedTuple):
    """How codes are stored: all widths that are stored alike share one compiled program.

    Attributes:
      dtype: of the codes.
      marker: the code that stands for NaN, where one is free.
      signs: whether they have one bit, so that a scale is a mean.
    """

    dtype: Any
    marker: int | None
    signs: bool


def storage(bits: int, symmetric: bool) -> Storage:
    """The storage of codes of that width: NaN has the least integer if they are symmetric, else the largest."""
    dtype = (jnp.int8 if bits <= 8 else jnp.int16) if symmetric else (jnp.uint8 if bits <= 8 else jnp.uint16)
    if symmetric:
        return Storage(dtype, int(jnp.iinfo(dtype).min), bits == 1)
    return Storage(dtype, None if bits in (8, 16) else int(jnp.iinfo(dtype).max), False)


def layout(shape: tuple[int, ...], spec: QuantSpec, path: str) -> tuple[int | None, tuple[int, ...]]:
    """``(blocked axis, axes that share a range)``, the latter in the grouped array, where a blocked axis is two."""
    rank, size = len(shape), spec.block_size
    name = f"leaf {path!r} of shape {shape}"
    if size is not None and (size < 1 or rank == 0):
        raise ValueError(f"{name}: block_size must be at least 1 and needs an axis to cut, got {size}")
    if spec.block_axis is not None:
        check_axis(path, shape, spec.block_axis)
    blocked = blocked_axis(rank, spec)
    axis = spec.axis
    if isinstance(axis, str):
        raise ValueError(f"{name}: axis must be integers, 'units' or None, got {axis!r}")
    if axis is None:
        axis = () if blocked is None else tuple(i for i in range(rank) if i != blocked)
    axis = (axis,) if isinstance(axis, int) else tuple(axis)
    kept = {check_axis(path, shape, a) for a in axis}
    if len(kept) < len(axis):
        raise ValueError(f"{name}: axis names one axis twice: {spec.axis}")
    if blocked in kept:
        raise ValueError(f"{name}: axis {spec.axis} keeps the axis that block_size cuts, {blocked - rank}")
    shared = [i for i in range(rank) if i not in kept and i != blocked]
    if blocked is not None:
        shared = sorted([blocked + 1] + [i if i < blocked else i + 1 for i in shared])
    return blocked, tuple(shared)


def blocked_axis(rank: int, spec: QuantSpec) -> int | None:
    """The axis that is cut, counted from the front: as the spec has it, or the second to last."""
    if spec.block_size is None:
        return None
    return max(rank - 2, 0) if spec.block_axis is None else spec.block_axis % rank


def from_the_end(spec: QuantSpec, rank: int) -> QuantSpec:
    """The spec with its blocked axis counted from the end, so that it says the same of a slice or a stack."""
    blocked = blocked_axis(rank, spec)
    return spec if blocked is None else replace(spec, block_axis=blocked - rank)


def grouped_shape(shape: tuple[int, ...], spec: QuantSpec) -> tuple[int, ...]:
    blocked = blocked_axis(len(shape), spec)
    if blocked is None or spec.block_size is None:
        return shape
    return (*shape[:blocked], -(-shape[blocked] // spec.block_size), spec.block_size, *shape[blocked + 1 :])


def checked(given: QParams, shape: tuple[int, ...], spec: QuantSpec, name: str) -> QParams:
    """Given parameters as arrays, if they fit an array of ``shape``; in Python, before any ``jit``."""
    shape = grouped_shape(shape, spec)
    with jax.ensure_compile_time_eval():
        scale, zero_point = jnp.asarray(given.scale, jnp.float32), jnp.asarray(given.zero_point, jnp.int32)
    for part, array in (("scale", scale), ("zero_point", zero_point)):
        if not broadcasts(array.shape, shape):
            raise ValueError(f"{part} of leaf {name!r} has shape {array.shape}, which does not broadcast to {shape}")
    with jax.ensure_compile_time_eval():
        if not (settings.any_traced(scale) or bool(jnp.all((scale >= 0) & (scale < jnp.inf)))):
            raise ValueError(f"scale of leaf {name!r} must be finite and at least 0, got {scale}")
        if spec.symmetric and not settings.any_traced(zero_point) and bool(jnp.any(zero_point)):
            raise ValueError(f"zero_point of leaf {name!r} must be 0 in a symmetric quantizer, got {zero_point}")
    return QParams(scale, zero_point)


def width(bits: Array) -> Array:
    """int32 in [1, 16]; halves round up."""
    return jnp.clip(jnp.floor(bits + 0.5), 1, 16).astype(jnp.int32)


def group(x: Array, spec: QuantSpec, fill: float = 0) -> Array:
    """The array with the blocked axis cut in two, the last block filled up."""
    blocked, shape = blocked_axis(x.ndim, spec), grouped_shape(x.shape, spec)
    if blocked is None:
        return x
    tail = shape[blocked] * shape[blocked + 1] - x.shape[blocked]
    pads = [(0, tail if i == blocked else 0) for i in range(x.ndim)]
    return (jnp.pad(x, pads, constant_values=fill) if tail else x).reshape(shape)


def ungroup(x: Array, shape: tuple[int, ...], spec: QuantSpec) -> Array:
    blocked = blocked_axis(len(shape), spec)
    if blocked is None:
        return x
    x = x.reshape(*shape[:blocked], -1, *shape[blocked + 1 :]) if x.size else jnp.zeros(shape, x.dtype)
    return jax.lax.slice_in_dim(x, 0, shape[blocked], axis=blocked)


def spread(part: Array, shape: tuple[int, ...], spec: QuantSpec) -> Array:
    """What belongs to ranges, such as their scales, for each entry of an array of that shape."""
    return ungroup(jnp.broadcast_to(part, grouped_shape(shape, spec)), shape, spec)


def choose(x: Array, bits: Array, clip: Array, spec: QuantSpec, signs: bool = True) -> QParams:
    """Scale and zero point; without ``signs`` for more than one bit, which compiles in a third of the time."""
    x = jax.lax.stop_gradient(x)
    axes = layout(x.shape, spec, "")[1]
    if x.size == 0:
        shape = tuple(1 if i in axes else n for i, n in enumerate(grouped_shape(x.shape, spec)))
        return QParams(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32))
    if spec.calibration is None:
        low, high = full_range(group(x, spec), axes, spec.symmetric)
    else:
        low, high = spec.calibration(group(x, spec, jnp.nan).astype(jnp.float32), axes, bits, spec)
    scale, zero_point = qparams_of(low, high, bits, spec.symmetric)
    if spec.symmetric and signs:
        mean = mean_magnitude(axes)
        scale = jnp.where(bits == 1, mean(bits == 1, group(x, spec, jnp.nan), jnp.maximum(-low, high)), scale)
    clip = jnp.clip(clip, TINY, 1)
    scale = jnp.where(scale * clip >= TINY, scale * clip, 0)
    return QParams(scale, jnp.where(scale > 0, zero_point, 0))


def grid_of(x: Array, bits: Array, clip: Array, given: QParams | None, spec: QuantSpec, signs: bool = True):
    qparams = choose(x, bits, clip, spec, signs) if given is None else given
    return qparams, grid(qparams, bits, spec.symmetric)


@jax.custom_jvp
def straight_through(x: Array, scale: Array, divisor: Array, lowest: Array, highest: Array) -> Array:
    return store(snap(x.astype(jnp.float32), scale, divisor, lowest, highest), x.dtype)


@straight_through.defjvp
def _(primals, tangents):
    x, scale, _, lowest, highest = primals
    y = x.astype(jnp.float32)
    code = jnp.round(divide(y, jnp.where(scale > 0, scale, 1)))  # NaN for NaN and infinities: no gradient
    inside = (code >= lowest) & (code <= highest)
    return straight_through(*primals), jnp.where(inside, tangents[0], 0)


def store(x: Array, dtype: Any) -> Array:
    """Casts float32 values; those beyond a smaller dtype saturate at its largest number."""
    if dtype == jnp.float32:
        return x
    largest = min(float(jnp.finfo(dtype).max), float(jnp.finfo(jnp.float32).max))
    return jnp.clip(x, -largest, largest).astype(dtype)


def fake_quant(x: Array, bits: Array, clip: Array, given: QParams | None, spec: QuantSpec) -> Array:
    return ungroup(straight_through(group(x, spec), *grid_of(x, bits, clip, given, spec)[1]), x.shape, spec)


def quantize(
    x: Array, bits: Array, clip: Array, given: QParams | None, spec: QuantSpec, storage: Storage
) -> tuple[Array, Array, Array]:
    """Codes, scale and zero point."""
    qparams, (scale, divisor, lowest, highest) = grid_of(x, bits, clip, given, spec, storage.signs)
    zero_point = jnp.broadcast_to(qparams.zero_point, scale.shape)
    grouped = group(x, spec).astype(jnp.float32)
    nan = jnp.isnan(grouped)
    code, _ = multiples(jnp.where(nan, 0, grouped), divisor, lowest, highest)
    code = code.astype(jnp.int32) + zero_point
    code = code if storage.marker is None else jnp.where(nan, storage.marker, code)
    return ungroup(code.astype(storage.dtype), x.shape, spec), scale, zero_point


def dequantize(codes: Array, scale: Array, zero_point: Array, bits: int, dtype: Any, spec: QuantSpec) -> Array:
    """``(codes - zero_point) * scale``, NaN where the code says so, in ``dtype``.

    Of the spec counts only which axis is in blocks, from the end: a slice of codes and scales, or a stack, is as well.
    """
    marker = storage(bits, spec.symmetric).marker

    def decoded(codes: Array, scale: Array, zero_point: Array) -> Array:
        code = group(codes, spec).astype(jnp.int32)
        value = (code - zero_point).astype(jnp.float32) * scale
        value = value if marker is None else jnp.where(code == marker, jnp.nan, value)
        return ungroup(store(value, dtype), codes.shape, spec)

    codes = jnp.asarray(codes)
    return automatic(decoded, codes, scale, zero_point, out=explicit_spec(codes))
