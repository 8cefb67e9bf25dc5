"""What is lost, decided before anything is coded: masks, low-bit codes or a codebook, and smaller side information."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import tree
from jaxprune.base import Masks, Params, QuantSpec, Setting, Where
from jaxprune.files import arrays
from jaxprune.files.records import is_record, with_scales
from jaxprune.layout import find_axes
from jaxprune.masks import apply_masks
from jaxprune.quantization import codebook as codebooks
from jaxprune.quantization import integers, rate_distortion, trellis
from jaxprune.quantization.arrays.coded import QArray
from jaxprune.quantization.leaves import CHANNELS, default_spec

#: ``(params, bits, where) -> params`` with a record, such as a ``QArray``, in place of each selected leaf.
Quantizer = Callable[[Params, Setting, Where], Params]
Way = str | QuantSpec | Quantizer

_WORTH = 0.115  # of a bit, in squared steps: 2 ln 2 / 12, at high rates


def choose(
    params: Params, masks: Masks, bits: Setting, quantizer: Quantizer, side: str | None, where: Where
) -> tuple[Params, list[Any], list[str]]:
    """Decides what is lost: what is left is coded without further loss.

    Returns:
      The parameters with their records, and a number for each record that is coded as one leaf; the arrays, numbers and
      such records, in order; the paths of the records that come back as the dense arrays they stand for.
    """
    nodes, treedef = jax.tree.flatten(params, is_leaf=is_record)
    # A record that was there before is no array to mask or quantize: a number, which nothing selects, stands for it.
    result = treedef.unflatten([np.int32(0) if is_record(node) else node for node in nodes])
    if masks is not None:
        result = apply_masks(result, masks)
    before = tree.select(result, where).chosen if side else ()
    if bits is not None:
        result = quantizer(result, bits, where)
    if side is not None:
        result = _smaller_side(result, set(before), side)
    new, treedef = jax.tree.flatten(result, is_leaf=is_record)
    made = [path for path, node in zip(_paths(result), new, strict=True) if is_record(node)]
    whole = [arrays.one_step(node) for node in new]
    new = [old if is_record(old) else decodable(node) for old, node in zip(nodes, new, strict=True)]
    leaves = [part for node, one in zip(new, whole, strict=True) for part in ([node] if one else jax.tree.leaves(node))]
    return treedef.unflatten([0 if one else node for node, one in zip(new, whole, strict=True)]), leaves, made


def decodable(node: Any) -> Any:
    """A record that comes back dense, without what decoding does not look at: leaves alike share a kind in the file."""
    if not isinstance(node, QArray):
        return node
    spec = node.spec
    return replace(node, spec=QuantSpec(spec.symmetric, block_size=spec.block_size, block_axis=spec.block_axis))


def by_bits(quantizer: Way) -> Quantizer:
    """What makes codes of so many bits."""
    if callable(quantizer):
        return quantizer
    if isinstance(quantizer, QuantSpec):
        return lambda params, bits, where: integers.quantize(params, bits, spec=quantizer, where=where)
    named: dict[str, Quantizer] = {"uniform": uniform, "rd": _rate_distortion, "trellis": _trellis, "codebook": _shared}
    if quantizer not in named:
        raise ValueError(f"quantizer must be one of {list(named)}, a QuantSpec or a function, got {quantizer!r}")
    return named[quantizer]


def by_step(quantizer: Way) -> Quantizer:
    """The same with a step for all leaves, which says how large the file becomes."""
    if callable(quantizer):
        return quantizer
    if not isinstance(quantizer, str) or quantizer not in BY_STEP:
        ways = f"{', '.join(map(repr, BY_STEP))} or a function (params, step, where)"
        raise ValueError(f"max_bytes finds the step of {ways}, got {quantizer!r}; jaxprune.search finds a width a leaf")
    return BY_STEP[quantizer]


def uniform(params: Params, bits: Setting, where: Where) -> Params:
    """Each leaf by the spec that is its default."""
    chosen, by_spec = tree.select(params, where), {CHANNELS: set()}
    for name, leaf, axes in zip(chosen.names, chosen.taken, find_axes(chosen), strict=True):
        by_spec.setdefault(default_spec(leaf, axes), set()).add(name)
    nodes, treedef = jax.tree.flatten(params)
    for spec, names in by_spec.items():
        coded = integers.quantize(params, bits, spec=spec, where=lambda path, _, names=names: path in names)
        new = jax.tree.leaves(coded, is_leaf=is_record)
        nodes = [after if is_record(after) else before for before, after in zip(nodes, new, strict=True)]
    return treedef.unflatten(nodes)


def _shared(params: Params, values: Setting, where: Where) -> Params:
    return codebooks.encode(params, values, where=where)


def _rate_distortion(params: Params, bits: Setting, where: Where) -> Params:
    step = rate_distortion.step_for(params, bits=bits, penalty=_WORTH, scope="global", where=where)
    return rate_distortion.quantize(params, step, _WORTH, scope="global", where=where)


def _trellis(params: Params, bits: Setting, where: Where) -> Params:
    # An index stands for every second number, so at half the step indices have the entropy of a uniform quantizer's.
    step = rate_distortion.step_for(params, bits=bits, scope="global", where=where) / 2
    return trellis.quantize(params, step, rotate=True, where=where)


#: The same with the step in place of the bits, each leaf by itself, as files code them.
BY_STEP: dict[str, Quantizer] = {
    "rd": lambda params, step, where: rate_distortion.quantize(params, step, _WORTH, where=where),
    "trellis": lambda params, step, where: trellis.quantize(params, step / 2, rotate=True, where=where),
}


def _paths(params: Params) -> list[str]:
    """The path of each leaf; a record is one."""
    nodes, treedef = jax.tree.flatten(params, is_leaf=is_record)
    return tree.flatten(treedef.unflatten([np.int32(0)] * len(nodes))).paths


def _smaller_side(params: Params, chosen: set[int], side: str) -> Params:
    """Biases and scales at fewer bits: float16 rounds them, int8 quantizes biases and rounds scales to float16."""
    if side not in ("float16", "int8"):
        raise ValueError(f"side must be None, 'float16' or 'int8', got {side!r}")
    nodes, treedef = jax.tree.flatten(params, is_leaf=is_record)
    for i, (path, node) in enumerate(zip(_paths(params), nodes, strict=True)):
        if is_record(node):
            # A single step takes four bytes, whatever it is.
            nodes[i] = with_scales(node, lambda scale, path=path: _half(scale, path) if scale.size > 1 else scale)
        elif i not in chosen and tree.is_floating(node) and np.size(node):
            whole = partial(integers.quantize, node, 8, where=lambda *_: True)
            nodes[i] = whole() if side == "int8" and np.ndim(node) else _half(node, path)
    return treedef.unflatten(nodes)


def _half(leaf: Any, path: str) -> Any:
    """Rounded to float16, in its own dtype."""
    if np.dtype(leaf.dtype).itemsize <= 2:
        return leaf
    rounded = jnp.asarray(leaf).astype(jnp.float16).astype(leaf.dtype)
    wrong = (jnp.isfinite(leaf) & ~jnp.isfinite(rounded)) | ((leaf != 0) & (rounded == 0))
    if bool(wrong.any()):
        worst = float(jnp.asarray(leaf)[wrong].ravel()[0])
        raise ValueError(f"leaf {tree.show(path)} holds {worst:g}, beyond float16's range")
    return rounded
