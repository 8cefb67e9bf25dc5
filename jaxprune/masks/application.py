"""What is done with masks: apply them, and count what they remove."""

import jax.numpy as jnp
import numpy as np

from jaxprune import settings, tree
from jaxprune.base import Array, Masks, Params
from jaxprune.kernels import by_shape
from jaxprune.kernels.rounding import divide


def apply_masks(params: Params, masks: Masks) -> Params:
    """Parameters with 0.0 where the mask is ``False``: ``where(mask, w, 0)``.

    Not a product: NaN, inf and negative weights under a ``False`` become 0.0 too. The derivative is the mask.

    Args:
      params: any pytree of arrays.
      masks: bool, same paths; each leaf broadcasts to its parameter. Leaves under a 0-d mask that are not floating
        (integers, PRNG keys, callables) are left alone.

    Returns:
      The parameters' structure, shapes, dtypes and sharding.

    Raises:
      ValueError: the trees differ in structure, or a mask does not broadcast to its parameter.
      TypeError: a mask is not bool.

    >>> apply_masks(jnp.array([jnp.inf, jnp.nan, 1.0, -2.0]), jnp.array([False, False, True, False])).tolist()
    [0.0, 0.0, 1.0, 0.0]
    """
    chosen, kept = tree.pair(params, masks)
    # Outside a trace, what the 0-d True stands for comes back as it is.
    touched = [i for i, mask in enumerate(kept) if mask.ndim or settings.any_traced(mask) or not mask]
    chosen = chosen._replace(chosen=tuple(chosen.chosen[i] for i in touched))
    return chosen.replace(mask_each(chosen.values, [kept[i] for i in touched]))


def mask_each(values: list[Array], masks: list[Array]) -> list[Array]:
    """The values with 0.0 where their mask is ``False``."""
    return by_shape.each(_masked, values, masks)


def _masked(value: Array, mask: Array) -> Array:
    return jnp.where(mask, value, jnp.zeros((), value.dtype))


def sparsity_of(masks: Masks, params: Params) -> Array:
    """The fraction that the masks remove, of the entries of all leaves that they are about.

    Leaves under the 0-d ``True`` take no part and are not counted; with no other leaf the sparsity is 0.

    Args:
      masks: bool, each leaf broadcasts to its parameter; a removed unit counts as all its entries.
      params: the parameters, for their shapes.

    Returns:
      float32 scalar in [0, 1]; counted in integers, so exact to the rounding of one sum and one quotient.

    Raises:
      As :func:`apply_masks`.

    >>> sparsity_of({"kernel": jnp.array([[True, False]])}, {"kernel": jnp.ones((3, 2))})
    Array(0.5, dtype=float32)
    """
    chosen, kept = tree.pair(params, masks)
    about = [(value.size, mask) for value, mask in zip(chosen.values, kept, strict=True) if mask.ndim and mask.size]
    removed = jnp.zeros((), jnp.float32)
    for size, mask in about:
        removed += jnp.sum(~mask, dtype=jnp.uint32).astype(jnp.float32) * np.float32(size // mask.size)
    return divide(removed, np.float32(max(sum(size for size, _ in about), 1)))
