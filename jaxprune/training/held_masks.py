"""Masks that an optimizer holds: exact zeros after every update, and where to find the masks again."""

from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import MaskedNode

from jaxprune import settings, tree
from jaxprune.base import Array, Masks, Params, Setting, Where


class HeldMasks(NamedTuple):
    """State of :func:`hold_masks`."""

    masks: Masks


def hold_masks(masks: Masks) -> optax.GradientTransformationExtraArgs:
    """Keeps removed weights at exactly 0: the update of a weight ``p`` under a False is ``-p``. Last in a chain.

    Whatever stands before it (momentum, weight decay, any optimizer), ``optax.apply_updates`` gives ``p + (-p)``, which
    is +0.0 for every finite weight. All other updates pass unchanged, those of kept weights that happen to be 0
    included.

    Args:
      masks: bool, True keeps, in the structure of the parameters; each leaf broadcasts to its parameter. Traced, so
        many masks can train under ``jax.vmap``.

    Returns:
      An optax transformation. The masks go into its state when it is initialized, and are taken from there.

    Raises:
      ValueError: when initialized, masks that do not fit the parameters, with the path; when it updates, no ``params``.
      TypeError: masks that are not bool.

    An update narrower than its parameter (bfloat16 gradients of float32 weights) comes back in the parameter's dtype,
    without which it could not be exact.

    >>> params, masks = jnp.array([3.0, -1.0]), jnp.array([True, False])
    >>> optimizer = optax.chain(optax.sgd(0.5), hold_masks(masks))
    >>> state = optimizer.init(params)
    >>> updates, state = optimizer.update(jnp.ones(2), state, params)
    >>> optax.apply_updates(params, updates).tolist()
    [2.5, 0.0]
    """

    def init(params: Params) -> HeldMasks:
        return HeldMasks(_fitted(masks, params))

    def update(updates: Any, state: Any, params: Params | None = None, **_: Any) -> tuple[Any, Any]:
        return held(updates, need(params, "hold_masks"), state.masks), state

    return optax.GradientTransformationExtraArgs(init, update)


def masks_of(opt_state: Any, params: Params | None = None) -> Masks:
    """Finds the masks in the state of an optimizer, however deep chains and wrappers have put them.

    Args:
      opt_state: any optax state with at least one state in it that has a field ``masks``. Where several hold masks of
        one parameter, what any of them removes is removed.
      params: if given, parameters that no state holds masks of (``optax.masked``, ``optax.multi_transform``) get the
        0-d ``True``, so that the masks have the structure of the parameters; without it an ``optax.MaskedNode`` stands
        there.

    Returns:
      The masks, in the structure of the parameters.

    Raises:
      ValueError: there are no masks.

    >>> state = optax.chain(optax.adam(0.1), hold_masks(jnp.array([True, False]))).init(jnp.ones(2))
    >>> masks_of(state).tolist()
    [True, False]
    """
    found = list(_masks_in(opt_state))
    if not found:
        raise ValueError(f"no masks in an optimizer state of type {type(opt_state).__name__}")
    merged = reduce(_merged, found)
    if params is None:
        return merged
    shown, known = tree.flatten(params), tree.flatten(merged)
    by_path = dict(zip(known.paths, known.leaves, strict=True))
    return shown.treedef.unflatten([by_path.get(path, tree.no_mask(path)) for path in shown.paths])


def held(updates: Any, params: Params, masks: Masks) -> Any:
    """The updates that take every masked weight to 0.0."""

    def hold(mask: Array, update: Array, param: Array) -> Array:
        if not tree.is_floating(param):
            return update
        dtype = jnp.promote_types(update.dtype, param.dtype)
        return jnp.where(mask, update.astype(dtype), -param.astype(dtype))

    return jax.tree.map(hold, masks, updates, params)


def masked(values: Any, masks: Masks) -> Any:
    """``where(mask, value, 0)``; what a 0-d mask stands for is left as it is."""

    def keep(mask: Array, value: Array) -> Array:
        return jnp.where(mask, value, jnp.zeros((), value.dtype)) if jnp.ndim(mask) else value

    return jax.tree.map(keep, masks, values)


def need(params: Params | None, name: str) -> Params:
    """The parameters, without which nothing here can update."""
    if params is None:
        raise ValueError(f"{name} needs the parameters: optimizer.update(grads, state, params)")
    return params


def chosen_of(params: Params, where: Where) -> tree.Selection:
    """The leaves that take part, of a tree that optax may have emptied in part or whole (``MaskedNode``)."""
    if not jax.tree.leaves(params):
        return tree.select(params)
    return tree.select(params, where)


def within(setting: Setting, params: Params) -> Setting:
    """A setting or tree of settings, without those of leaves that ``optax.masked`` has taken out of ``params``."""
    if settings.is_scalar(setting) or not _has_gaps(params):
        return setting
    given = tree.flatten(setting)
    paths = tree.flatten(params).paths
    pairs = zip(given.paths, given.leaves, strict=True)
    return {path: value for path, value in pairs if any(f"{leaf}/".startswith(f"{path}/") for leaf in paths)}


def _fitted(masks: Masks, params: Params) -> Masks:
    """The masks in the structure of ``params``, once it is sure that they fit."""
    shown, flags = tree.flatten(params), tree.flatten(masks)
    if not _has_gaps(params):
        tree.same_paths(shown, flags, "params", "masks")
    by_path = dict(zip(flags.paths, flags.leaves, strict=True))
    missing = [path for path in shown.paths if path not in by_path]
    if missing:
        raise ValueError(f"masks have no leaf {missing[0]!r}; they have {flags.paths}")
    for path, leaf in zip(shown.paths, shown.leaves, strict=True):
        tree.check_mask(path, leaf, by_path[path])
    return shown.treedef.unflatten([jnp.asarray(by_path[path]) for path in shown.paths])


def _has_gaps(params: Params) -> bool:
    nodes = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, MaskedNode))
    return any(isinstance(node, MaskedNode) for node in nodes)


def _masks_in(state: Any) -> Any:
    """All fields named ``masks`` of the named tuples in a state, depth first."""
    fields = getattr(state, "_fields", ())
    for name, child in zip(fields, state, strict=True) if fields else ((None, child) for child in _children(state)):
        if name == "masks":
            yield child
        else:
            yield from _masks_in(child)


def _merged(left: Any, right: Any) -> Any:
    if isinstance(left, MaskedNode):
        return right
    if isinstance(right, MaskedNode):
        return left
    if not (parts := _children(left)):
        return left & right if tree.is_array(left) else left
    treedef = jax.tree.structure(left, is_leaf=lambda node: node is not left)
    return treedef.unflatten([_merged(a, b) for a, b in zip(parts, _children(right), strict=True)])


def _children(node: Any) -> list[Any]:
    """The nodes one level below, none for a leaf."""
    below = jax.tree.leaves(node, is_leaf=lambda child: child is not node)
    return [child for child in below if child is not node]
