"""Cutting and masking trees that are shaped like the parameters of a traced function."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune import settings, tree
from jaxprune.base import Params
from jaxprune.program import jaxprs
from jaxprune.program.narrowing import take

#: For each ``(path, axis)`` of a parameter that loses entries, which of them stay.
Flags = Mapping[tuple[str, int], np.ndarray]

#: Path and shape of the parameter that a leaf belongs to.
Owner = tuple[str, tuple[int, ...]]


def cut_tree(values: Any, params: Params, flags: Flags) -> Any:
    """Cuts every subtree of ``values`` that is like ``params``, or like one of its collections.

    On the host wherever all of a leaf is at hand: there is a shape to each leaf, and no program to compile for each.
    """

    def cut(path: str, leaf: Any, shape: tuple[int, ...]) -> Any:
        axes = [i for i in range(np.ndim(leaf)) if (path, i) in flags and leaf.shape[i] == shape[i]]
        local = bool(axes) and _at_hand(leaf)
        small = np.asarray(leaf) if local else leaf
        for axis in axes:
            small = take(small, np.flatnonzero(flags[path, axis]), axis)
        return _placed(small, leaf.sharding) if local else small

    return _map_like(values, params, cut)


def _at_hand(leaf: Any) -> bool:
    concrete = isinstance(leaf, jax.Array) and not settings.any_traced(leaf)
    return concrete and leaf.is_fully_addressable and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)


def _placed(small: np.ndarray, sharding: Any) -> jax.Array:
    """On the devices where it was; where these cannot share what is left evenly, each has all of it."""
    try:
        sharding.shard_shape(small.shape)
    except ValueError:
        sharding = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.device_put(small, sharding)


def mask_tree(values: Any, params: Params, flags: Flags) -> Any:
    """Puts 0 in every entry that is removed."""

    def mask(path: str, leaf: Any, shape: tuple[int, ...]) -> Any:
        for axis in range(np.ndim(leaf)):
            keep = flags.get((path, axis))
            if keep is not None:
                wide = keep.reshape([-1 if i == axis else 1 for i in range(len(shape))])
                leaf = jnp.where(wide, leaf, jnp.zeros((), leaf.dtype))
        return leaf

    return _map_like(values, params, mask)


def _map_like(values: Any, params: Params, change: Any) -> Any:
    """Changes the leaves of all subtrees that have the structure of ``params`` or of one of its collections.

    Leaves elsewhere are known by the end of their path: an optimizer's state for a part of the parameters has holes.
    """
    selection, found = tree.flatten(params), list[str]()
    owners = [(path, leaf.shape) for path, leaf in zip(selection.paths, selection.leaves, strict=True)]
    parts, named = _parts(params, owners), _named(params, owners)

    def of_leaf(leaf: Any, path: str, shape: tuple[int, ...]) -> Any:
        found.append(path)
        if np.size(leaf) == 1 and np.ndim(leaf) < len(shape):
            return leaf  # stands for what the optimizer does not keep of this parameter
        _check_shape(path, np.shape(leaf), shape)
        return change(path, leaf, shape)

    def of_subtree(keys: Any, subtree: Any) -> Any:
        structure = jax.tree.structure(subtree)
        part = parts.get(structure)
        if part is None:
            inner = [(keys + own, leaf) for own, leaf in jax.tree.leaves_with_path(subtree)]
            ends = [next((own[i:] for i in range(len(own)) if own[i:] in named), None) for own, _ in inner]
            part = [named[end] for end in ends if end is not None]
            if structure not in parts and not part:
                return subtree
            if len(part) < len(ends):
                alike = f"a part of the tree with the structure {structure} is like several parts of the parameters"
                raise ValueError(f"{alike}; give it inside a tree like all of them")
        leaves = [of_leaf(leaf, *owner) for leaf, owner in zip(jax.tree.leaves(subtree), part, strict=True)]
        return jax.tree.unflatten(structure, leaves)

    changed = jax.tree.map_with_path(of_subtree, values, is_leaf=lambda node: jax.tree.structure(node) in parts)
    if not found:
        raise ValueError(f"no part of the tree is like the parameters, whose structure is {jax.tree.structure(params)}")
    return changed


def _check_shape(path: str, own: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if len(own) == len(shape) and tree.broadcasts(own, shape):
        return
    factored = own in [shape[:axis] + shape[axis + 1 :] for axis in range(len(shape))]
    advice = "; factored moments (optax.adafactor) depend on all shapes: init a new state with the cut parameters"
    raise ValueError(f"leaf {tree.show(path)} has shape {own}, but was traced with {shape}{advice * factored}")


def _named(params: Params, owners: Sequence[Owner]) -> dict[Any, Owner]:
    """The parameters by their keys, and by those inside their collection; positions alone do not tell."""
    named: dict[Any, list[Owner]] = {}
    for (keys, _), owner in zip(jax.tree.leaves_with_path(params), owners, strict=True):
        for own in {keys, keys[1:]} if isinstance(params, Mapping) and len(keys) > 2 else {keys}:
            if not all(isinstance(key, jax.tree_util.SequenceKey) for key in own):
                named.setdefault(own, []).append(owner)
    return {keys: alike[0] for keys, alike in named.items() if len(alike) == 1}


def _parts(params: Params, owners: Sequence[Owner]) -> dict[Any, Sequence[Owner] | None]:
    """The structures to look for: that of all parameters, and of each collection (``params``, ``batch_stats``).

    ``None`` for a structure that several collections have.
    """
    parts: dict[Any, Sequence[Owner] | None] = {}
    start = 0
    if isinstance(params, Mapping):
        for child in jax.tree.leaves(params, is_leaf=lambda node: node is not params):
            structure, size = jax.tree.structure(child), len(jax.tree.leaves(child))
            if size and structure != jax.tree.structure(0):
                parts[structure] = None if structure in parts else owners[start : start + size]
            start += size
    parts[jax.tree.structure(params)] = owners
    return parts


def small_shapes(params: Params, flags: Flags) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter after the cut, by path."""
    selection = tree.flatten(params)
    return {
        path: tuple(int(flags[path, i].sum()) if (path, i) in flags else n for i, n in enumerate(leaf.shape))
        for path, leaf in zip(selection.paths, selection.leaves, strict=True)
    }


def check_small(small: Params, params: Params, shapes: Mapping[str, tuple[int, ...]]) -> list[Any]:
    """The leaves of cut parameters; ``ValueError`` if they are not, or have other dtypes than those traced."""
    leaves, structure, expected = jax.tree.leaves(small), jax.tree.structure(small), jax.tree.structure(params)
    if structure != expected:
        raise ValueError(f"the parameters have the structure {structure}, expected {expected}")
    for leaf, (path, shape), whole in zip(leaves, shapes.items(), jax.tree.leaves(params), strict=True):
        if np.shape(leaf) != shape:
            raise ValueError(f"leaf {tree.show(path)} has shape {np.shape(leaf)}; cut parameters have {shape}")
        if (own := jaxprs.struct(leaf).dtype) != whole.dtype:
            advice = "trace the function with parameters of this dtype"
            raise ValueError(f"leaf {tree.show(path)} has dtype {own}, but was traced with {whole.dtype}; {advice}")
    return leaves
