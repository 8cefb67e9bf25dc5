"""BatchNorm folded into the layer before it: fewer arrays and fewer operations, the same function at inference."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import settings, tree
from jaxprune.base import Array, Params, Setting

Path = tuple[Any, ...]


class _Leaf(NamedTuple):
    """A leaf of the variables: its keys from the root, its box or itself, and its array."""

    keys: Path
    node: Any
    value: Array


def merge_batch_norm(variables: Params, pairs: Mapping[str, str], *, epsilon: Setting = 1e-5) -> Params:
    """Folds the BatchNorm after a layer into the layer, as it works at inference, with its running averages.

    The layer ``y = W x + b`` and the BatchNorm ``(y - mean) * f + offset``, ``f = scale / sqrt(var + epsilon)``, are
    one layer with ``W' = W * f`` along the last axis, that of the outputs, and ``b' = (b - mean) * f + offset``.
    Nothing may stand between the two, not even an activation. For kernels ``(..., in, out)``, as of ``Dense``, ``Conv``
    and ``ConvTranspose`` (not with ``transpose_kernel=True``, whose outputs are on another axis), and a BatchNorm over
    the last axis; of stacked layers, one layer at a time (``jax.vmap``).

    Args:
      variables: nested mappings that hold both: Linen's ``{"params": ..., "batch_stats": ...}``, ``nnx.state(model)``,
        its pure dict, or any tree where ``kernel`` and ``bias`` of a layer, and ``scale``, ``bias``, ``mean`` and
        ``var`` of a BatchNorm, stand together. ``bias`` and ``scale`` may be missing (``use_bias=False``).
      pairs: path of a layer -> path of the BatchNorm after it, ``{"Conv_0": "BatchNorm_0"}``; without patterns. In a
        dict of Linen collections paths begin below the collection. One BatchNorm may serve several layers.
      epsilon: that of the modules, traced, at least 0; one for all or a mapping from each path of a BatchNorm.

    Returns:
      The variables without the entries of the BatchNorms, for a module without them whose layers have a bias: mappings
      of the same classes, boxes (``nnx.Variable``, ``nn.Partitioned``), dtypes. A bias that was missing has the
      kernel's dtype. Mappings that have become empty are left out. Computed in float32 (float64 for float64 kernels)
      and rounded once.

    Raises:
      ValueError: no such path, a layer without a kernel, a BatchNorm without ``mean`` and ``var``, shapes that do not
        fit, or an ``epsilon`` out of range or missing; each names the path.
      TypeError: variables that are no mapping, or an entry that is no floating array.

    >>> norm = {"scale": jnp.array([2.0, 1.0]), "bias": jnp.zeros(2)}
    >>> variables = {
    ...     "params": {"Dense_0": {"kernel": jnp.ones((1, 2))}, "BatchNorm_0": norm},
    ...     "batch_stats": {"BatchNorm_0": {"mean": jnp.array([1.0, 0.0]), "var": jnp.array([4.0, 1.0])}},
    ... }
    >>> merge_batch_norm(variables, {"Dense_0": "BatchNorm_0"}, epsilon=0.0)
    {'params': {'Dense_0': {'kernel': Array([[1., 1.]], dtype=float32), 'bias': Array([-1.,  0.], dtype=float32)}}}
    """
    if not isinstance(variables, Mapping):
        raise TypeError(f"variables are nested mappings, such as nnx.state(model), not a {type(variables).__name__}")
    if isinstance(epsilon, Mapping) and {*epsilon} != {*pairs.values()}:
        raise ValueError(f"epsilon is given for {sorted(epsilon)}, the BatchNorms are {sorted({*pairs.values()})}")
    changes: dict[Path, Any] = {}
    removed = set[Path]()
    for layer_path, norm_path in pairs.items():
        layer, norm = _entries(variables, layer_path), _entries(variables, norm_path)
        _check(layer, norm, layer_path, norm_path)
        one = epsilon[norm_path] if isinstance(epsilon, Mapping) else epsilon
        one = settings.check_setting(one, f"epsilon of {norm_path!r}", 0, 3e38)
        kernel, bias = layer["kernel"], layer.get("bias")
        weights, offsets = _folded(kernel.value, bias and bias.value, {k: leaf.value for k, leaf in norm.items()}, one)
        changes[kernel.keys] = _boxed(kernel.node, weights)
        changes[(*kernel.keys[:-1], "bias")] = _boxed(bias.node, offsets) if bias else _new_bias(kernel, norm, offsets)
        removed |= {leaf.keys[:-1] for leaf in norm.values()}
    return _rebuilt(variables, (), changes, removed) if changes else variables


@jax.jit
def _folded(kernel: Array, bias: Array | None, norm: dict[str, Array], epsilon: Any) -> tuple[Array, Array]:
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    entries = {name: value.astype(wide) for name, value in norm.items()}
    factor = entries.get("scale", 1) / jnp.sqrt(entries["var"] + epsilon)
    centered = -entries["mean"] if bias is None else bias.astype(wide) - entries["mean"]
    offset = centered * factor + entries.get("bias", 0)
    return (kernel.astype(wide) * factor).astype(kernel.dtype), offset.astype((kernel if bias is None else bias).dtype)


def _entries(variables: Mapping[Any, Any], path: str) -> dict[str, _Leaf]:
    """The leaves of a module by name, from all collections."""
    below = 1 if "params" in variables else 0
    nodes = jax.tree.leaves_with_path(variables, is_leaf=lambda node: not isinstance(node, Mapping))
    held = [(tuple(key.key for key in keys), node) for keys, node in nodes if node is not None]
    found = dict[str, _Leaf]()
    for keys, node in held:
        if "/".join(map(str, keys[below:-1])) != path:
            continue
        values = jax.tree.leaves(node)
        if len(values) != 1 or not tree.is_floating(values[0]):
            raise TypeError(f"leaf {'/'.join(map(str, keys))!r} is a {type(node).__name__}, not one floating array")
        found[str(keys[-1])] = _Leaf(keys, node, jnp.asarray(values[0]))
    if not found:
        top = sorted({str(keys[below]) for keys, _ in held if len(keys) > below})
        raise ValueError(f"there is no module {path!r} with arrays in the variables; at the top are {top}")
    return found


def _check(layer: dict[str, _Leaf], norm: dict[str, _Leaf], layer_path: str, norm_path: str) -> None:
    """Raises ``ValueError`` unless the two modules fit together."""
    if "kernel" not in layer:
        raise ValueError(f"{layer_path!r} has no kernel; it has {sorted(layer)}")
    if not {"mean", "var"} <= {*norm} <= {"mean", "var", "scale", "bias"}:
        raise ValueError(f"{norm_path!r} is no BatchNorm with mean and var; it has {sorted(norm)}")
    shape = layer["kernel"].value.shape
    units, wanted = shape[-1:], f"the kernel of {layer_path!r} has shape {shape}, whose last axis it must fit"
    for name, leaf in norm.items():
        if leaf.value.shape != units:
            raise ValueError(f"{name!r} of {norm_path!r} has shape {leaf.value.shape}; {wanted}")
    if "bias" in layer and layer["bias"].value.shape[-1:] != units:
        raise ValueError(f"the bias of {layer_path!r} has shape {layer['bias'].value.shape}, where {units} is needed")


def _boxed(node: Any, value: Array) -> Any:
    """The value in the place of the only array of a box, or of an array."""
    return jax.tree.map(lambda _: value, node)


def _new_bias(kernel: _Leaf, norm: dict[str, _Leaf], value: Array) -> Any:
    """A bias boxed as the vectors of the BatchNorm that are trained, or without those as an NNX kernel is."""
    if trained := norm.get("bias") or norm.get("scale"):
        return _boxed(trained.node, value)
    return type(kernel.node)(value) if hasattr(type(kernel.node), "get_raw_value") else value


def _rebuilt(node: Mapping[Any, Any], keys: Path, changes: dict[Path, Any], removed: set[Path]) -> Any:
    """The mapping with its changed and new entries, without the removed ones and what they leave empty."""
    new: dict[Any, Any] = {}
    for key, child in _children(node).items():
        here = (*keys, key)
        if here in removed:
            continue
        if isinstance(child, Mapping) and any(path[: len(here)] == here for path in [*changes, *removed]):
            child = _rebuilt(child, here, changes, removed)
            if not child:
                continue
        new[key] = changes.get(here, child)
    new |= {path[-1]: value for path, value in changes.items() if path[:-1] == keys and path[-1] not in new}
    return type(node)(new)  # type: ignore[call-arg]


def _children(node: Mapping[Any, Any]) -> dict[Any, Any]:
    """The entries as the tree holds them: asked for one, an ``nnx.State`` would put a box around it."""
    keyed, _ = jax.tree.flatten_with_path(node, is_leaf=lambda below: below is not node)
    held = {key[0].key: child for key, child in keyed if key}
    return {name: held[name] if name in held else node[name] for name in node}
