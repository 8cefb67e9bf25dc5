"""What compressed parameters weigh, by a plain code that anybody could write down in an afternoon. For each leaf

    bytes = ceil(kept * bits / 8) + mask + 4 * scales (+ 4 * zero points, if asymmetric)
    mask  = 0 where nothing is removed, ceil(units / 8) where whole units are, else ceil(mask entries / 8)

with one bit for each entry of the mask as it is stored: the parameters for a full mask. ``bits`` is the width of the
quantized codes, or of the dtype of a leaf that is not quantized (which has no scales). Zeros that no mask removes are
coded like any other value; at 1 bit, symmetric, the code has no room for them. An entropy coder gets below all this.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import settings, tree
from jaxprune.base import Array, Masks, Params, QuantSpec, Setting, Where
from jaxprune.kernels import uniform
from jaxprune.layout import find_axes
from jaxprune.quantization.arrays.coded import QArray
from jaxprune.quantization.leaves import spec_of

_PLAIN = QuantSpec()


def coded_bytes(
    params: Params, masks: Masks | None = None, bits: Setting = None, *, spec: QuantSpec = _PLAIN, where: Where = None
) -> Array:
    """The size in bytes that :func:`jaxprune.report` calls ``coded_bytes``, for use under ``jit``, ``vmap``, ``sweep``.

    Args:
      params: any pytree of arrays; only shapes and dtypes matter.
      masks: bool, same paths; each leaf broadcasts to its parameter. Traced. None for no masks.
      bits: width of the codes in [1, 16], fractional values round half up as in ``fake_quant``; a scalar or a tree.
        Traced. None if nothing is quantized.
      spec: the quantizer; it tells the number of scales. Static.
      where: the leaves that ``bits`` is about; see :func:`jaxprune.tree.select`. Static.

    Returns:
      A scalar: int32 and exact, or, of trees that may need 2**31 bytes or more, the float32 sum of exact leaves.

    Raises:
      ValueError: masks of another structure or shape; bits out of range; a leaf that may need 2**32 bytes or more.
      TypeError: a leaf that is no array, a mask that is not bool.

    >>> params = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}
    >>> int(coded_bytes(params)), int(coded_bytes(params, bits=4))  # 40 floats; 32 codes, a scale, 8 floats
    (160, 52)
    """
    everything = tree.flatten(params)
    flags = mask_leaves(params, masks)
    quantized = widths(params, bits, spec, where, {})
    plan, most = [], 0
    for i, leaf in enumerate(everything.leaves):
        if holds_numbers(leaf):
            size, own = _footprint(leaf)
            mask, scales = flags.get(i, np.True_), quantized.get(i, (0, 0))[1]
            bound = leaf_bytes(size, 16 if i in quantized else own, mask.size if mask.ndim else 0, scales)
            if bound >= 2**32:
                path = tree.show(everything.paths[i])
                raise ValueError(f"leaf {path} may need {bound} bytes, too many to count in 32 bits")
            most += bound
            plan.append((size, mask.size, math.prod(mask.shape[-1:]), own, i in quantized, scales))
    found = [_kept(jnp.asarray(flags.get(i, True))) for i, leaf in enumerate(everything.leaves) if holds_numbers(leaf)]
    given = [width for _, (width, _) in sorted(quantized.items())]
    return _total(found, given, tuple(plan), jnp.int32 if most < 2**31 else jnp.float32)


@jax.jit
def _kept(mask: Array) -> Array:
    """How many entries a mask keeps, and whether it keeps or removes whole units (1 or 0): uint32 [2]."""
    units = jnp.sum(_by_unit(mask), axis=0, dtype=jnp.uint32)
    whole = jnp.all((units == 0) | (units == mask.size // max(units.size, 1)))
    return jnp.stack([jnp.sum(units), whole.astype(jnp.uint32)])


@partial(jax.jit, static_argnums=(2, 3))
def _total(found: list[Array], bits: list[Any], plan: tuple[tuple[int, ...], ...], dtype: Any) -> Array:
    """Bytes of all leaves; ``plan`` has for each: size, entries, units of the mask, own bits, if quantized, scales."""
    if not plan:
        return jnp.zeros((), dtype)
    kept, whole = jnp.stack(found).T
    size, entries, units, own, quantized, scales = np.array(plan, np.uint32).T
    kept = kept * (size // np.maximum(entries, 1))
    stored = jnp.where(kept == size, 0, jnp.where(whole > 0, units, entries))
    coded = jnp.asarray(own)
    if bits:
        coded = coded.at[np.flatnonzero(quantized)].set(uniform.width(jnp.stack(bits)).astype(jnp.uint32))
    return jnp.sum(leaf_bytes(kept, coded, stored, scales).astype(dtype), dtype=dtype)


def leaf_bytes(kept: Any, bits: Any, mask_entries: Any, scales: Any) -> Any:
    """The formula, in Python or in unsigned integers; by eighths, so that ``kept * bits`` need not fit."""
    return kept // 8 * bits + (kept % 8 * bits + 7) // 8 + (mask_entries + 7) // 8 + scales


def mask_cost(mask: np.ndarray, size: int) -> tuple[int, int]:
    """How many of ``size`` entries the mask keeps, and the bits that it is stored in."""
    kept = int(np.count_nonzero(mask)) * (size // max(mask.size, 1))
    rows = _by_unit(mask)
    return kept, 0 if kept == size else rows.shape[-1] if (rows == rows[:1]).all() else mask.size


def _by_unit(mask: Any) -> Any:
    """The mask with an axis of units, the last."""
    return mask.reshape(-1, mask.shape[-1]) if mask.ndim and mask.size else mask.reshape(1, -1)


def mask_leaves(params: Params, masks: Masks | None) -> dict[int, Array]:
    """The mask of each floating leaf, by position."""
    if masks is None:
        return {}
    chosen, kept = tree.pair(params, masks)
    return dict(zip(chosen.chosen, kept, strict=True))


def widths(
    params: Params, bits: Setting, spec: QuantSpec, where: Where, codes: dict[int, QArray]
) -> dict[int, tuple[Any, int]]:
    """Width of the codes and bytes of the scales, by position, of the leaves that are quantized."""
    selection = tree.select(params, where)
    found = {i: (code.bits, _scale_bytes(code.shape, code.spec, selection.paths[i])) for i, code in codes.items()}
    if bits is None:
        return found
    given = settings.per_leaf(bits, selection, "bits", 1, 16)
    axes = find_axes(selection)
    for i, path, width, known in zip(selection.chosen, selection.names, given, axes, strict=True):
        if i not in codes:
            leaf = selection.leaves[i]
            own = spec_of(spec, path, leaf, known or find_axes(tree.select(leaf))[0])
            found[i] = (width, _scale_bytes(np.shape(leaf), own, path))
        elif codes[i].bits != math.floor(width + 0.5):
            raise ValueError(f"leaf {tree.show(path)} holds {codes[i].bits}-bit codes, but bits says {width:g}")
    return found


def holds_numbers(leaf: Any) -> bool:
    """Whether a leaf takes room at all: callables do not."""
    return tree.is_array(leaf) or not callable(leaf)


def _scale_bytes(shape: tuple[int, ...], spec: QuantSpec, path: str) -> int:
    _, shared = uniform.layout(shape, spec, path)
    groups = math.prod(n for i, n in enumerate(uniform.grouped_shape(shape, spec)) if i not in shared)
    return groups * (4 if spec.symmetric else 8)


def _footprint(leaf: Any) -> tuple[int, int]:
    """Number of entries, and bits of each as the array holds them."""
    if tree.is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    leaf = leaf if tree.is_array(leaf) else jnp.asarray(leaf)
    return math.prod(leaf.shape), 8 * np.dtype(leaf.dtype).itemsize
