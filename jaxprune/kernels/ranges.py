"""The range that a quantizer's codes span: the finite extremes; and the mean magnitude, the scale of 1-bit codes.

Over ``axes``, which are kept with size 1.
"""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Array
from jaxprune.kernels.rounding import divide
from jaxprune.kernels.sums import streamed

_LARGE = 2**20  # entries from which a copy is worth avoiding
_FOLD = 16  # entries that a short reduction takes


def full_range(x: Array, axes: tuple[int, ...], symmetric: bool) -> tuple[Array, Array]:
    """Finite extremes over ``axes`` and 0, float32: (-m, m) with m = max abs(x), or (min, max)."""
    if symmetric:
        high = _largest(x, axes, jnp.abs)
        return -high, high
    return -_largest(x, axes, jnp.negative), _largest(x, axes, lambda x: x)


def _largest(x: Array, axes: tuple[int, ...], of: Callable[[Array], Array]) -> Array:
    """The largest finite ``of(x)``, at least 0, over ``axes``, float32."""

    def plain(x):
        return jnp.max(jnp.where(jnp.isfinite(x), of(x), 0), axes, keepdims=True, initial=0)

    def folded(x):
        # XLA's fast CPU reductions lose maxima next to a NaN, and write out an array that is masked first. A reduction
        # over a few entries is compiled into the loop that masks, as long as it compares integers; so one read is left.
        axis = max(axes, key=lambda i: x.shape[i])
        size = x.shape[axis] // _FOLD
        head, tail = jnp.split(x, [size * _FOLD], axis)
        head = head.reshape(*x.shape[:axis], _FOLD, size, *x.shape[axis + 1 :])
        found = [jnp.max(_finite_bits(of(part)), axis, keepdims=part is tail) for part in (head, tail) if part.size]
        found = [jnp.max(jax.lax.bitcast_convert_type(part, x.dtype), axes, keepdims=True) for part in found]
        return jnp.max(jnp.stack(found), 0)

    long = x.size >= _LARGE and max((x.shape[i] for i in axes), default=0) >= _FOLD and x.dtype.itemsize > 1
    high = jax.lax.platform_dependent(x, cpu=folded, default=plain) if long else plain(x)
    return high.astype(jnp.float32)


def _finite_bits(x: Array) -> Array:
    """The bit patterns of positive finite entries, as signed integers, which sort like the numbers; 0 for others."""
    kind = np.dtype(f"int{x.dtype.itemsize * 8}")
    bits = jax.lax.bitcast_convert_type(x, kind)
    return jnp.where((bits >= 0) & (bits < np.asarray(np.inf, x.dtype).view(kind)), bits, kind.type(0))


@cache
def mean_magnitude(axes: tuple[int, ...]):
    """``(wanted, x, high) -> mean abs(x)`` over the finite entries along ``axes``, float32, or zeros where not wanted.

    ``high`` is their largest magnitude. A whole read that only 1-bit codes need, so it happens under a ``cond`` that a
    sweep over bits leaves unbatched.
    """

    @jax.jit  # traced once, though the rule below meets it again
    def mean(x, high):
        shift = jnp.where(jnp.max(high) > 2.0**64, jnp.float32(2.0**-32), 1)  # against overflow; exact
        total = streamed(x, axes, lambda row: jnp.where(jnp.isfinite(row), jnp.abs(row) * shift, 0)).reshape(high.shape)
        count = jnp.sum(jnp.isfinite(x), axes, dtype=jnp.int32, keepdims=True).astype(jnp.float32)
        return divide(total, jnp.maximum(count, 1)) / shift

    @jax.custom_batching.custom_vmap
    def lazily(wanted, x, high):
        return jax.lax.cond(wanted, mean, lambda x, high: jnp.zeros_like(high), x, high)

    @lazily.def_vmap
    def _(size, batched, wanted, x, high):
        wanted = jnp.any(wanted)
        if not batched[1]:
            return lazily(wanted, x, high.max(0) if batched[2] else high), False
        high = high if batched[2] else jnp.broadcast_to(high, (size, *high.shape))
        return mean_magnitude(tuple(a + 1 for a in axes))(wanted, x, high), True

    return lazily
