"""The protocol of arrays that are stored in another way, and the one verb that decodes all of them.

A new form is one class, a registered pytree node, with three members: ``shape`` and ``dtype`` of the dense array, and
``dense()``, which gives it, or raises ``ValueError`` if the parts do not fit together; ``jaxprune.dequantize`` decodes
it. JAX's ``BCOO`` is one of them, and ``flax.serialization`` learns of those that are made here.
"""

import sys
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import settings, tree
from jaxprune.base import Array, Masks, Params, Where
from jaxprune.paths import join

T = TypeVar("T")
_known: set[type] = set()  # to Flax


def is_stored(node: Any) -> bool:
    """Whether a node of a tree is an array in another form: the ``is_leaf`` of trees that may hold some."""
    return tree.is_array(node) and any(callable(getattr(type(node), name, None)) for name in ("dense", "todense"))


@jax.jit
def dense(stored: Any) -> Array:
    """The array that a stored one stands for: one program for each form, shape and dtype."""
    return stored.dense() if hasattr(stored, "dense") else stored.todense()


def dequantize(params: Params) -> Params:
    """Turns every stored array back into a dense one of its shape and dtype.

    Those are ``QArray`` ((codes - zero_point) * scale), ``CodebookArray`` (centroids[codes]), ``TrellisArray``,
    ``NOfMArray``, JAX's ``BCOO``, and whatever else has ``shape``, ``dtype`` and ``dense()``. Works under ``jit`` and
    ``vmap``. Differentiable in centroids (the gradient of one is the sum, in float32, over the weights that share it;
    that of kept zeros is 0), in the values of N:M arrays and in scales.

    Args:
      params: any pytree; leaves that are dense come back as the same objects.

    Raises:
      ValueError: the parts of a stored array do not fit together, with its path.

    >>> import jax.numpy as jnp
    >>> from jaxprune import quantize
    >>> print(dequantize(quantize(jnp.array([-1.0, 0.3, 0.0, 0.8]), 2)))
    [-1.  0.  0.  1.]
    """
    keyed, treedef = jax.tree.flatten_with_path(params, is_leaf=is_stored)
    return treedef.unflatten([_decoded(join(path), leaf) if is_stored(leaf) else leaf for path, leaf in keyed])


def _decoded(path: str, leaf: Any) -> Array:
    try:
        return dense(leaf)
    except ValueError as error:
        raise ValueError(f"leaf {tree.show(path)}: {error}") from error


def to_bcoo(params: Params, masks: Masks | None = None, *, where: Where = None) -> Params:
    """Turns leaves into ``jax.experimental.sparse.BCOO`` of exactly what masks keep, or of their nonzero entries.

    On the host, where the number of them is known. ``BCOO.todense()`` gives the leaf back, masked, with +0.0 for what
    is not stored; the indices are sorted and unique, int32 [entries, rank].

    Args:
      params: any pytree of arrays, or one bare array; what :func:`jaxprune.load` returns, say.
      masks: bool, same paths; True keeps. A kept weight is stored even if it is 0, so that it can be trained. Leaves
        under a 0-d True stay as they are. None to store what is not 0.
      where: which leaves take part, see :func:`jaxprune.tree.select`; None for all that have masks, or without masks
        for the default.

    Returns:
      ``params`` with a ``BCOO`` in place of each selected leaf; other leaves are the same objects.

    Raises:
      TypeError: traced leaves or masks, or selected leaves that do not hold floating-point numbers.
      ValueError: masks that do not fit, or a 0-d False.

    >>> sparse = to_bcoo(jnp.array([[0.0, 2.0], [0.0, 0.0]]))
    >>> sparse.indices, sparse.data
    (Array([[0, 1]], dtype=int32), Array([2.], dtype=float32))
    >>> to_bcoo(jnp.array([0.0, 2.0, 3.0]), jnp.array([True, True, False])).data
    Array([0., 2.], dtype=float32)
    """
    if masks is None:
        selection = tree.select(params, where)
        kept: list[Any] = [None] * len(selection.chosen)
    else:
        selection, kept = masked(params, masks, where)
    pairs = list(zip(selection.names, selection.values, kept, strict=True))
    for path, leaf, mask in pairs:
        if settings.any_traced(leaf, mask):
            raise TypeError(f"leaf {tree.show(path)} is traced: how many entries are stored must be known")
    return selection.replace([_sparse(np.asarray(leaf), mask) for _, leaf, mask in pairs])


def masked(params: Params, masks: Masks, where: Where) -> tuple[tree.Selection, list[Array]]:
    """The leaves that have masks, of those that ``where`` selects (None: of all), and their masks."""
    floating, kept = tree.pair(params, masks)
    mask_of = dict(zip(floating.chosen, kept, strict=True))
    selection = floating if where is None else tree.select(params, where)
    for path, mask in zip(selection.names, [mask_of[i] for i in selection.chosen], strict=True):
        if mask.ndim == 0 and not settings.any_traced(mask) and not bool(mask):
            raise ValueError(f"the mask of {tree.show(path)} is a 0-d False; a 0-d True leaves a leaf alone")
    chosen = tuple(i for i in selection.chosen if mask_of[i].ndim)
    return selection._replace(chosen=chosen), [mask_of[i] for i in chosen]


def _sparse(array: np.ndarray, mask: Any) -> Any:
    from jax.experimental.sparse import BCOO  # takes as long to import as all the rest

    stored = array != 0 if mask is None else np.broadcast_to(np.asarray(mask), array.shape)
    places = np.argwhere(stored).astype(np.int32)
    data = array[tuple(places.T)] if array.ndim else array[None][: len(places)]
    return BCOO((jnp.asarray(data), jnp.asarray(places)), shape=array.shape, indices_sorted=True, unique_indices=True)


@dataclass_transform(frozen_default=True)
def stored(kind: type[T]) -> type[T]:
    """Makes a class a frozen dataclass and a pytree: fields of type ``Array`` are its parts, all others are static."""
    kind = dataclass(frozen=True, repr=False)(kind)
    return jax.tree_util.register_dataclass(kind, parts(kind), statics(kind))


class FlaxState:
    """Base of stored arrays: what they show, and state dicts and ``to_bytes`` of ``flax.serialization``.

    A class is registered when the first of its records is made while that module is loaded: to import it takes as long
    as JAX takes. As everywhere in Flax the target of ``from_bytes`` gives what is static; a state whose static parts
    were others is refused.
    """

    def __post_init__(self) -> None:
        flax = sys.modules.get("flax.serialization")
        if flax is not None and type(self) not in _known and hasattr(flax, "register_serialization_state"):
            flax.register_serialization_state(type(self), _to_state, _from_state, override=True)
            _known.add(type(self))

    def __jax_array__(self) -> Array:
        """For ``x @ q`` and ``jax.numpy``, as a convenience: each use decodes the array."""
        return dense(self)

    def _refuse(self, *_: Any) -> Any:
        name = type(self).__name__
        raise TypeError(f"a {name} has no operators but x @ it; decode it: jaxprune.dequantize(it), or jnp.asarray(it)")

    __array_ufunc__ = None  # NumPy's operators come here too
    __getitem__ = __matmul__ = __rmatmul__ = __neg__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = _refuse

    def __repr__(self) -> str:
        """What the array stands for and its bytes, not its entries."""
        arrays = [leaf for leaf in jax.tree.leaves(self) if hasattr(leaf, "dtype")]
        held = sum(array.size * array.dtype.itemsize for array in arrays)
        known = [f"{name}={getattr(self, name, '?')}" for name in ("shape", "dtype")]
        facts = filter(None, [*known, _static(self, "shape", "dtype"), f"{held:,} bytes"])
        return f"{type(self).__name__}({', '.join(facts)})"


class CodedArray(FlaxState):
    """Base of those whose codes, the first part, have the shape of the array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that was quantized."""
        return getattr(self, parts(self)[0]).shape


def _to_state(record: Any) -> dict[str, Any]:
    flax = sys.modules["flax.serialization"]
    state = {name: flax.to_state_dict(getattr(record, name)) for name in parts(record)}
    return state | {"static": _static(record)}


def _from_state(target: Any, state: dict[str, Any]) -> Any:
    flax, names, kind = sys.modules["flax.serialization"], parts(target), type(target)
    if set(state) != {*names, "static"}:
        raise ValueError(f"a {kind.__name__} has the parts {[*names, 'static']}; the state has {sorted(state)}")
    if state["static"] != _static(target):
        raise ValueError(f"the state is of a {kind.__name__} of {state['static']}; the target's is {_static(target)}")
    return replace(target, **{name: flax.from_state_dict(getattr(target, name), state[name], name) for name in names})


def parts(record: Any) -> list[str]:
    """The names of what a stored array, or a class of them, holds in arrays."""
    return [field.name for field in fields(record) if field.type is Array]


def statics(record: Any) -> list[str]:
    """The names of all else."""
    return [field.name for field in fields(record) if field.type is not Array]


def _static(record: Any, *without: str) -> str:
    """What tells one record from another of the same arrays, as text; not a spec, which may hold functions."""
    names = [name for name in statics(record) if name not in ("spec", *without)]
    return ", ".join(f"{name}={getattr(record, name)}" for name in names)
