"""What of a leaf learns, in whatever form it is stored: changes that begin at 0, and the leaf that has changed.

Changes are float32 arrays by the name of the part that they change:

- ``scale``, ``step``: the logarithm of what the part is multiplied by;
- ``codes``: what is added to a weight before it is rounded, in steps;
- ``centroids``, ``values``: what is added to the numbers themselves.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.base import Array
from jaxprune.kernels import uniform
from jaxprune.quantization.arrays.coded import CodebookArray, QArray, ScaledArray, TrellisArray
from jaxprune.quantization.arrays.n_of_m import NOfMArray
from jaxprune.quantization.arrays.protocol import dense

Changes = dict[str, Array]

_NEAR = 0.49  # of a step: how far a weight may be from its code, so that it begins as that


class Form(NamedTuple):
    """How one kind of leaf learns.

    Attributes:
      start: (leaf, its original or None) -> changes.
      changed: (leaf, changes) -> the leaf, stored as before.
      forward: (leaf, changes) -> the dense array with gradients to the changes; None for what ``changed`` decodes to.
    """

    start: Callable[[Any, Array | None], Changes]
    changed: Callable[[Any, Changes], Any]
    forward: Callable[[Any, Changes], Array] | None = None


def form_of(leaf: Any, kernel: bool) -> Form:
    """The form of a leaf; a dense ``kernel`` keeps its zeros, which were pruned."""
    return _FORMS.get(type(leaf), _KERNEL if kernel else _VECTOR)


def forward(form: Form, leaf: Any, changes: Changes) -> Array:
    """The dense array of a leaf that has changed, in its dtype; differentiable in the changes."""
    if form.forward is not None:
        return form.forward(leaf, changes).astype(leaf.dtype)
    changed = form.changed(leaf, changes)
    return dense(changed) if type(leaf) in _FORMS else changed


def _zeros(*names: str) -> Callable[[Any, Array | None], Changes]:
    return lambda leaf, _: {name: jnp.zeros(jnp.shape(getattr(leaf, name)), jnp.float32) for name in names}


def _short(x: Array) -> Array:
    """Rounded to 11 bits: what is learned is not known better, and a file is smaller."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=10)


def _factor(leaf: Any, changes: Changes, name: str) -> Array:
    part = getattr(leaf, name)
    return part * jnp.exp(changes[name]) if name in changes else part


def _codes_start(leaf: QArray, original: Array | None) -> Changes:
    """The original weights, as far as they round to the codes that there are."""
    changes = _zeros("scale", "codes")(leaf, None)
    if leaf.bits == 1:  # a sign has no step to be rounded to
        return {"scale": changes["scale"]}
    if original is not None:
        scale = uniform.spread(leaf.scale, leaf.shape, leaf.spec)
        zero = uniform.spread(leaf.zero_point, leaf.shape, leaf.spec)
        apart = original.astype(jnp.float32) / jnp.where(scale > 0, scale, 1) - (leaf.codes.astype(jnp.int32) - zero)
        changes["codes"] = jnp.where(scale > 0, jnp.clip(apart, -_NEAR, _NEAR), 0)
    return changes


def _latent(leaf: QArray, changes: Changes) -> tuple[Array, Array]:
    """Weights over their new scale, within the codes, above the zero point; and the scale. In groups."""
    scale = _factor(leaf, changes, "scale")
    codes = uniform.group(leaf.codes, leaf.spec).astype(jnp.int32) - leaf.zero_point
    if "codes" not in changes:
        return codes.astype(jnp.float32), scale
    top = 2 ** (leaf.bits - 1) - 1 if leaf.spec.symmetric else 2**leaf.bits - 1
    low = (-top if leaf.spec.symmetric else jnp.int32(0)) - leaf.zero_point
    at = codes + uniform.group(changes["codes"], leaf.spec)  # in steps of the scale before
    at = at * jnp.exp(-changes["scale"]) if "scale" in changes else at
    return jnp.clip(at, low, top - leaf.zero_point), scale


def _codes_forward(leaf: QArray, changes: Changes) -> Array:
    at, scale = _latent(leaf, changes)
    rounded = at + jax.lax.stop_gradient(jnp.round(at) - at)
    return uniform.ungroup(rounded * scale, leaf.shape, leaf.spec)


def _codes_changed(leaf: QArray, changes: Changes) -> QArray:
    at, scale = _latent(leaf, changes)
    codes = leaf.codes
    if "codes" in changes:
        whole = jnp.round(at).astype(jnp.int32) + leaf.zero_point
        codes = uniform.ungroup(whole, leaf.shape, leaf.spec).astype(leaf.codes.dtype)
    return replace(leaf, codes=codes, scale=_short(scale) if "scale" in changes else scale)


def _moved(name: str) -> Callable[[Any, Changes], Any]:
    """A part to whose numbers something is added."""

    def changed(leaf: Any, changes: Changes) -> Any:
        part = getattr(leaf, name)
        return replace(leaf, **{name: (part.astype(jnp.float32) + changes[name]).astype(part.dtype)})

    return changed


def _vector(leaf: Any, changes: Changes) -> Array:
    return _short(jnp.asarray(leaf).astype(jnp.float32) + changes["values"]).astype(leaf.dtype)


def _kernel(leaf: Any, changes: Changes) -> Array:
    """With its zeros, which were pruned."""
    leaf = jnp.asarray(leaf)
    return jnp.where(leaf == 0, leaf, (leaf.astype(jnp.float32) + changes["values"]).astype(leaf.dtype))


def _start_dense(leaf: Any, _: Array | None) -> Changes:
    return {"values": jnp.zeros(jnp.shape(leaf), jnp.float32)}


def _stepped(leaf: Any, changes: Changes) -> Any:
    return replace(leaf, step=_short(_factor(leaf, changes, "step")))


_VECTOR = Form(_start_dense, _vector)
_KERNEL = Form(_start_dense, _kernel)
_FORMS: dict[type, Form] = {
    QArray: Form(_codes_start, _codes_changed, _codes_forward),
    CodebookArray: Form(_zeros("centroids"), _moved("centroids")),
    NOfMArray: Form(_zeros("values"), _moved("values")),
    TrellisArray: Form(_zeros("step"), _stepped),
    ScaledArray: Form(_zeros("step"), _stepped),
}
