"""The protocol of arrays that are stored in another way, and the one verb that decodes all of them."""

from typing import Any, Protocol

import jax

from jaxprune import tree
from jaxprune.base import Array, Params


class StoredArray(Protocol):
    """An array in another form: a registered pytree node that knows what it stands for.

    A new form is one class with these three; ``jaxprune.dequantize`` decodes it, JAX's ``BCOO`` (``todense``) too.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense array."""
        ...

    @property
    def dtype(self) -> Any:
        """Dtype of the dense array."""
        ...

    def dense(self) -> Array:
        """The dense array; raises ``ValueError`` if the parts do not fit together."""
        ...


def is_stored(node: Any) -> bool:
    """Whether a node of a tree is an array in another form: the ``is_leaf`` of trees that may hold some."""
    kind = type(node)
    if not (callable(getattr(kind, "dense", None)) or callable(getattr(kind, "todense", None))):
        return False
    return hasattr(node, "shape") and hasattr(node, "dtype")


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
    return treedef.unflatten([_decoded(path, leaf) if is_stored(leaf) else leaf for path, leaf in keyed])


def describe(stored: StoredArray, *facts: str) -> str:
    """The ``repr`` of a stored array: what it stands for and its bytes, not its entries."""
    parts = [part for part in jax.tree.leaves(stored) if hasattr(part, "dtype")]
    held = sum(part.size * part.dtype.itemsize for part in parts)
    shape = getattr(stored, "shape", "?")
    return ", ".join([f"{type(stored).__name__}(shape={shape}", f"dtype={stored.dtype}", *facts, f"{held:,} bytes)"])


def _decoded(path: Any, leaf: Any) -> Array:
    try:
        return dense(leaf)
    except ValueError as error:
        name = tree.show(jax.tree_util.keystr(path, simple=True, separator="/"))
        raise ValueError(f"leaf {name}: {error}") from error
