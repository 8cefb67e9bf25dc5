"""What compressed parameters weigh, by a plain code that anybody could write down in an afternoon. For each leaf

    bytes = ceil(kept * bits / 8) + mask + 4 * scales (+ 4 * zero points, if asymmetric)
    mask  = 0 where nothing is removed, ceil(units / 8) where whole units are, else ceil(mask entries / 8)

with one bit for each entry of the mask as it is stored: the parameters for a full mask. ``bits`` is the width of the
quantized codes, or of the dtype of a leaf that is not quantized (which has no scales). Zeros that no mask removes are
coded like any other value; at 1 bit, symmetric, the code has no room for them. An entropy coder gets below all this.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import settings, tree
from jaxprune.base import Array, Layout, Masks, Params, QuantSpec, Setting, Where
from jaxprune.kernels import uniform
from jaxprune.layout import Axes, find_axes
from jaxprune.quantization.leaves import spec_of

_PLAIN = QuantSpec()


def coded_bytes(
    params: Params,
    masks: Masks | None = None,
    bits: Setting = None,
    *,
    spec: QuantSpec = _PLAIN,
    where: Where = None,
    layout: Layout = None,
) -> Array:
    """The size in bytes that :func:`jaxprune.report` calls ``coded_bytes``, for use under ``jit``, ``vmap``, ``sweep``.

    Args:
      params: any pytree of arrays; only shapes and dtypes matter.
      masks: bool, same paths; each leaf broadcasts to its parameter. Traced. None for no masks.
      bits: width of the codes in [1, 16], fractional values round half up as in ``fake_quant``; a scalar or a tree.
        Traced. None if nothing is quantized.
      spec: the quantizer; it tells the number of scales. Static.
      where: the leaves that ``bits`` is about; see :func:`jaxprune.tree.select`. Static.
      layout: the axes of leaves, static; see :mod:`jaxprune.layout`. They tell what is a unit, or a block.

    Returns:
      A scalar: int32 and exact, or, of trees that may need 2**31 bytes or more, the float32 sum of exact leaves.

    Raises:
      ValueError: masks of another structure or shape; bits out of range; a leaf that may need 2**32 bytes or more.
      TypeError: a leaf that is no array, a mask that is not bool.

    >>> params = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}
    >>> int(coded_bytes(params)), int(coded_bytes(params, bits=4))  # 40 floats; 32 codes, a scale, 8 floats
    (160, 52)
    """
    plan, most = [], 0
    stored = describe(params, masks, bits, spec, where, layout)
    for one in stored:
        (size, own), scales = _footprint(one.leaf), one.scales * one.each
        bound = leaf_bytes(size, own if one.bits is None else 16, one.mask.size if one.mask.ndim else 0, scales)
        if bound >= 2**32:
            raise ValueError(f"leaf {tree.show(one.path)} may need {bound} bytes, too many to count in 32 bits")
        most += bound
        plan.append((size, one.mask.size, own, one.bits is not None, scales))
    kept = [_kept(jnp.asarray(one.mask), one.within) for one in stored]
    return _total(kept, [one.bits for one in stored], tuple(plan), jnp.int32 if most < 2**31 else jnp.float32)


@partial(jax.jit, static_argnums=1)
def _kept(mask: Array, within: tuple[int, ...]) -> Array:
    """How many entries a mask keeps, and the bits that it takes: uint32 [2]."""
    kept, whole, units = _counted(mask, within)
    return jnp.stack([kept, jnp.where(whole, np.uint32(units), np.uint32(mask.size))])


@partial(jax.jit, static_argnums=(2, 3))
def _total(found: list[Array], bits: list[Any], plan: tuple[tuple[int, ...], ...], dtype: Any) -> Array:
    """Bytes of all leaves; ``plan`` has for each: size, entries of the mask, own bits, if quantized, scales."""
    if not plan:
        return jnp.zeros((), dtype)
    kept, stored = jnp.stack(found).T
    size, entries, own, quantized, scales = np.array(plan, np.uint32).T
    kept = kept * (size // np.maximum(entries, 1))
    widths = uniform.width(jnp.stack([0.0 if width is None else width for width in bits])).astype(jnp.uint32)
    coded = jnp.where(quantized, widths, own)
    return jnp.sum(leaf_bytes(kept, coded, jnp.where(kept == size, 0, stored), scales).astype(dtype), dtype=dtype)


def leaf_bytes(kept: Any, bits: Any, mask_entries: Any, scales: Any) -> Any:
    """The formula, in Python or in unsigned integers; by eighths, so that ``kept * bits`` need not fit."""
    return kept // 8 * bits + (kept % 8 * bits + 7) // 8 + (mask_entries + 7) // 8 + scales


def mask_cost(mask: np.ndarray, size: int, within: tuple[int, ...] = ()) -> tuple[int, int]:
    """How many of ``size`` entries the mask keeps, and the bits that it is stored in."""
    kept, whole, units = _counted(mask, within)
    kept = int(kept) * (size // max(mask.size, 1))
    return kept, 0 if kept == size else units if whole else mask.size


def _counted(mask: Any, within: tuple[int, ...]) -> tuple[Any, Any, int]:
    """How many entries a mask keeps, whether it keeps or removes whole units, and how many units there are."""
    units, length = mask.sum(within, dtype=np.uint32), math.prod(mask.shape[i] for i in within)
    return units.sum(dtype=np.uint32), ((units == 0) | (units == length)).all(), units.size


class Stored(NamedTuple):
    """What is known of a leaf that takes room.

    Attributes:
      path, leaf: of the tree.
      mask: as it was given; a single True where none was.
      within: the axes of the mask along which a unit lies.
      bits: the width of its codes; ``None`` if it has none.
      scales: how many there are.
      each: bytes of a scale, and its zero point.
      axes: of the layout.
      spec: of the quantizer, with these axes.
    """

    path: str
    leaf: Any
    mask: Any
    within: tuple[int, ...]
    bits: Any
    scales: int
    each: int
    axes: Axes | None
    spec: QuantSpec


def describe(
    params: Params, masks: Masks | None, bits: Setting, spec: QuantSpec, where: Where, layout: Layout, codes: Any = None
) -> list[Stored]:
    """What is known of each leaf but callables; ``codes`` are those that are there already, by position."""
    chosen, codes = tree.select(params, where), codes or {}
    given = [None] * len(chosen.chosen) if bits is None else settings.per_leaf(bits, chosen, "bits", 1, 16)
    widths = dict(zip(chosen.chosen, given, strict=True))
    masked, kept = (chosen._replace(chosen=()), []) if masks is None else tree.pair(params, masks)
    flags = dict(zip(masked.chosen, kept, strict=True))
    every = find_axes(chosen._replace(chosen=tuple(range(len(chosen.leaves)))), layout)
    found = []
    rows: list[tuple[str, Any, Axes | None]] = list(zip(chosen.paths, chosen.leaves, every, strict=True))
    for i, (path, leaf, axes) in enumerate(rows):
        if not holds_numbers(leaf):
            continue
        width, own = widths.get(i), spec
        if i in codes:
            if width is not None and codes[i].bits != math.floor(width + 0.5):
                raise ValueError(f"leaf {tree.show(path)} holds {codes[i].bits}-bit codes, but bits says {width:g}")
            width, own = codes[i].bits, codes[i].spec
        elif width is not None:
            own = spec_of(spec, path, leaf, axes or find_axes(tree.select(leaf))[0])
        scales = (0, 0) if width is None else scales_of(np.shape(leaf), own, path)
        mask = flags.get(i, np.True_)
        found.append(Stored(path, leaf, mask, _within(mask, leaf, axes), width, *scales, axes, own))
    return found


def _within(mask: Any, leaf: Any, axes: Axes | None) -> tuple[int, ...]:
    """The axes of a mask, which may have fewer than its leaf, along which a unit lies."""
    missing = np.ndim(leaf) - np.ndim(mask)
    return tuple(i - missing for i in (axes.inputs if axes else ()) if i >= missing)


def holds_numbers(leaf: Any) -> bool:
    """Whether a leaf takes room at all: callables do not."""
    return tree.is_array(leaf) or not callable(leaf)


def scales_of(shape: tuple[int, ...], spec: QuantSpec, path: str) -> tuple[int, int]:
    """How many scales there are, and the bytes of each with its zero point."""
    _, shared = uniform.layout(shape, spec, path)
    groups = math.prod(n for i, n in enumerate(uniform.grouped_shape(shape, spec)) if i not in shared)
    return groups, 4 if spec.symmetric else 8


def _footprint(leaf: Any) -> tuple[int, int]:
    """Number of entries, and bits of each as the array holds them."""
    if tree.is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    leaf = leaf if tree.is_array(leaf) else jnp.asarray(leaf)
    return math.prod(leaf.shape), 8 * np.dtype(leaf.dtype).itemsize
