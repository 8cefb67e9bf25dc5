"""Leaf paths, the choice of leaves (``where``), settings per leaf, and errors that name the path.

Everything here runs in Python, before any ``jit``: a selection is a static tuple of leaf positions, so a fresh lambda
or an equal pattern never recompiles, and leaves that take no part come back as the very objects that went in.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import tree_util

from jaxprune.base import Array, Masks, Params, Where
from jaxprune.paths import follow_paths, leaves_of, matching, within

# Vectors that may be stacked (scanned layers) or reshaped (attention heads), and so reach rank 2 without being kernels:
# by their own names, or as what is no kernel in a module of such a name.
_NEVER_KERNELS = ("bias", "scale", "offset", "gamma", "beta")
_KERNELS = ("kernel", "w", "embedding", "embeddings")
_NORM = re.compile(r"norm(?!al)|(^|_)(ln|bn|gn|rms)(_|\d|$)", re.IGNORECASE)


class Selection(NamedTuple):
    """The leaves of one tree, and which of them take part."""

    leaves: list[Any]
    paths: list[str]
    treedef: Any
    chosen: tuple[int, ...]

    @property
    def taken(self) -> list[Any]:
        """The chosen leaves, as they are."""
        return [self.leaves[i] for i in self.chosen]

    @property
    def values(self) -> list[Array]:
        """The chosen leaves, as arrays."""
        return arrays(self.taken)

    @property
    def names(self) -> list[str]:
        """The paths of the chosen leaves."""
        return [self.paths[i] for i in self.chosen]

    def replace(self, values: Sequence[Any], rest: Callable[[Any], Any] = lambda leaf: leaf) -> Any:
        """The tree with ``values`` in the chosen places and ``rest(leaf)`` in the others."""
        new = dict(zip(self.chosen, values, strict=True))
        leaves = [new[i] if i in new else rest(leaf) for i, leaf in enumerate(self.leaves)]
        return tree_util.tree_unflatten(self.treedef, leaves)


def flatten(tree: Params) -> Selection:
    """The leaves of ``tree`` and their paths; none is chosen.

    Raises:
      TypeError: a leaf is no array.

    >>> flatten({"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}).paths
    ['bias', 'kernel']
    """
    return _flatten(tree)[0]


def select(tree: Params, where: Where = None, scores: bool = False) -> Selection:
    """Chooses the leaves of ``tree`` that take part in a transform.

    By default these are the floating leaves of rank 2 and more: kernels and embeddings. Biases, leaves of norms (by
    name), arrays of rank 3 and more with at most one axis above 1, every Linen collection but ``params``, every NNX
    variable but ``Param``, integer leaves, PRNG keys and callables are left alone. A tree that is one bare array is
    always selected.

    Args:
      tree: any pytree; boxed leaves (``nn.Partitioned``, ``nnx.Variable``) go by the path of their box.
      where: ``None`` for the default; a glob pattern or several (``fnmatch`` over paths such as ``"Dense_0/kernel"``,
        a leading ``!`` excludes, a leading ``params/`` may be left out) that choose among the default leaves; a
        predicate ``(path, leaf) -> bool`` over all leaves, taken at its word; or a tree of bools that follows the paths
        (a bool for a leaf is taken at its word, a bool for a subtree chooses among its default leaves).

      scores: whether the tree holds scores: those of units have one axis above 1 whatever they are of.

    Raises:
      ValueError: a pattern matches nothing, or a tree of bools names a path that is not there.
      TypeError: a leaf is no array, or a chosen leaf does not hold floating-point numbers.

    >>> params = {"Dense_0": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}
    >>> select(params).names
    ['Dense_0/kernel']
    >>> select(params, lambda path, leaf: True).names
    ['Dense_0/bias', 'Dense_0/kernel']
    """
    flat, trainable = _flatten(tree)
    leaves, paths = flat.leaves, flat.paths
    bare = paths == [""]
    every = zip(paths, leaves, trainable, strict=True)
    default = [bare or (free and is_kernel(path, leaf, scores)) for path, leaf, free in every]
    chosen = tuple(i for i, taken in enumerate(_resolve(where, paths, leaves, default)) if taken)
    for i in chosen:
        if not is_floating(leaves[i]):
            kind = getattr(leaves[i], "dtype", type(leaves[i]).__name__)
            raise TypeError(f"leaf {show(paths[i])} has dtype {kind}; only floating-point leaves can be selected")
    return flat._replace(chosen=chosen)


def arrays(leaves: Iterable[Any]) -> list[Array]:
    """The leaves as arrays; those that are come back as they are."""
    return [leaf if isinstance(leaf, Array) else jnp.asarray(leaf) for leaf in leaves]


def floating(tree: Params) -> Selection:
    """All floating leaves, whatever their rank."""
    return select(tree, lambda _, leaf: is_floating(leaf))


def no_score(leaf: Any) -> Array:
    """What stands for a leaf without scores."""
    return jnp.zeros((), jnp.float32)


def no_mask(leaf: Any) -> Array:
    """The 0-d ``True`` of a leaf that is left alone."""
    return jnp.ones((), bool)


def same_paths(left: Selection, right: Selection, left_name: str, right_name: str) -> None:
    """Raises ``ValueError`` with the paths that differ unless both trees have the same leaves."""
    if left.paths == right.paths:
        return
    only_left = [path for path in left.paths if path not in right.paths]
    only_right = [path for path in right.paths if path not in left.paths]
    both = f"{left_name} and {right_name}"
    if not only_left and not only_right:
        raise ValueError(f"{both} hold the same leaves in another order: {left.paths}, {right.paths}")
    differ = f"only in {left_name}: {only_left}, only in {right_name}: {only_right}"
    raise ValueError(f"{both} differ in structure: {differ}")


def leaves_like(selection: Selection, other: Any, name: str, other_name: str) -> list[Any]:
    """The leaves of another tree in the chosen places; ``ValueError`` unless both have the same leaves."""
    leaves, treedef = tree_util.tree_flatten(other)
    if treedef != selection.treedef:
        flat = flatten(other)
        same_paths(selection, flat, name, other_name)
        leaves = flat.leaves
    return [leaves[i] for i in selection.chosen]


def pair(params: Params, masks: Masks) -> tuple[Selection, list[Array]]:
    """The parameters that masks can change, and a valid mask for each."""
    flat = flatten(params)
    flags = leaves_like(flat._replace(chosen=tuple(range(len(flat.leaves)))), masks, "params", "masks")
    for path, leaf, mask in zip(flat.paths, flat.leaves, flags, strict=True):
        check_mask(path, leaf, mask)
    chosen = flat._replace(chosen=tuple(i for i, leaf in enumerate(flat.leaves) if is_floating(leaf)))
    return chosen, arrays(flags[i] for i in chosen.chosen)


def check_mask(path: str, leaf: Any, mask: Any) -> None:
    """Raises unless the mask is bool and broadcasts to its parameter."""
    if is_array(mask) and mask.dtype == bool and is_array(leaf) and mask.shape == leaf.shape and is_floating(leaf):
        return
    name, kind = show(path), np.dtype(mask.dtype if is_array(mask) else type(mask))
    if kind != np.dtype(bool):
        raise TypeError(f"the mask of {name} has dtype {kind}; masks are bool, True keeps")
    shape, wanted = np.shape(mask), np.shape(leaf)
    if not broadcasts(shape, wanted):
        raise ValueError(f"the mask of {name} has shape {shape}, which does not broadcast to its parameter {wanted}")
    if shape and not is_floating(leaf):
        kind = getattr(leaf, "dtype", type(leaf))
        raise TypeError(f"leaf {name} has dtype {kind}; only the 0-d True can mask it")


def broadcasts(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether an array of one shape broadcasts to the other, without making that larger."""
    return len(shape) <= len(wanted) and all(n in (1, m) for n, m in zip(shape[::-1], wanted[::-1], strict=False))


def show(path: str) -> str:
    """The path as error messages name it."""
    return repr(path) if path else "(the array itself)"


def is_array(leaf: Any) -> bool:
    """Whether the leaf has a shape and a dtype: a JAX or NumPy array, a tracer, a ``ShapeDtypeStruct``."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def is_floating(leaf: Any) -> bool:
    """Whether the leaf holds floating-point numbers."""
    return isinstance(leaf, float) or (is_array(leaf) and _is_floating_dtype(leaf.dtype))


@cache
def _is_floating_dtype(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _flatten(tree: Params) -> tuple[Selection, list[bool]]:
    """The leaves, none chosen, and whether each is trainable by where it stands."""
    leaves, paths, trainable, treedef = leaves_of(tree)
    for path, leaf in zip(paths, leaves, strict=True):
        if not (is_array(leaf) or isinstance(leaf, bool | int | float | complex) or callable(leaf)):
            raise TypeError(f"leaf {show(path)} is {leaf!r} ({type(leaf).__name__}); leaves must be arrays")
    return Selection(leaves, paths, treedef, ()), trainable


def _resolve(where: Where, paths: list[str], leaves: list[Any], default: list[bool]) -> list[bool]:
    if where is None:
        return default
    if callable(where):
        return [bool(where(path, leaf)) for path, leaf in zip(paths, leaves, strict=True)]
    patterns = (where,) if isinstance(where, str) else where
    if isinstance(patterns, Sequence) and patterns and all(isinstance(pattern, str) for pattern in patterns):
        return _match(patterns, paths, default)
    if isinstance(where, bytes | bool) or not tree_util.tree_leaves(where):
        raise ValueError(f"where is {where!r}; give None, glob patterns, a predicate or a tree of bools")
    flags = leaves_of(where)
    if not all(isinstance(flag, bool | np.bool_) for flag in flags.leaves):
        raise TypeError(f"where is {where!r}; a tree given as where must hold bools")
    given = set(flags.paths)
    covered = [path for path in paths if any(within(path, prefix) for prefix in given)]
    chosen = follow_paths(where, paths, covered, "where")
    return [bool(chosen.get(path)) and (free or path in given) for path, free in zip(paths, default, strict=True)]


def _match(patterns: Sequence[str], paths: list[str], default: list[bool]) -> list[bool]:
    """Glob patterns among the default leaves."""
    names = [path for path, taken in zip(paths, default, strict=True) if taken]

    def complaint(pattern: str) -> str:
        choice = f"patterns choose among {names}; a predicate (path, leaf) -> bool can choose any of {paths}"
        return f"pattern {pattern.removeprefix('!')!r} matches no leaf; {choice}"

    found = iter(matching(patterns, [(name, name.removeprefix("params/")) for name in names], complaint))
    return [taken and next(found) for taken in default]


def is_kernel(path: str, leaf: Any, scores: bool = False) -> bool:
    """Whether a leaf takes part by default, wherever it stands."""
    shape = np.shape(leaf)
    if len(shape) < 2 or not is_floating(leaf) or (not scores and len(shape) > 2 and sum(n != 1 for n in shape) < 2):
        return False
    *_, parent, name = ["", *path.replace(".", "/").split("/")]
    return name in _KERNELS or not (name in _NEVER_KERNELS or _NORM.search(parent))
