"""Quantized activations: a clip level that is learned (PACT), and ranges that are observed while training."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import settings, tree
from jaxprune.base import Array, QParams, QuantSpec, Setting
from jaxprune.kernels import uniform
from jaxprune.kernels.reductions import product
from jaxprune.kernels.rounding import TINY, grid, passed_through, qparams_of
from jaxprune.kernels.sharding import automatic, explicit_spec

_SYMMETRIC = QuantSpec()


def clip_activations(x: Array, alpha: Any, bits: Setting) -> Array:
    """Clips activations to [0, alpha] and rounds them to ``2**bits`` values, with an ``alpha`` that learns: PACT.

    ``round(clip(x, 0, alpha) / s) * s`` with ``s = alpha / (2**bits - 1)``, half to even: the unsigned quantizer of
    ``jp.fake_quant`` with the range [0, alpha]. Gradients (Choi et al. 2018, arXiv:1805.06085, equation 3), computed
    and summed in float32::

        dy/dx = 1 where 0 <= x < alpha, else 0         dy/dalpha = 1 where x >= alpha, else 0

    The paper adds an L2 penalty on ``alpha`` to the loss. There is no gradient with respect to ``bits``.

    Args:
      x: float activations of any shape.
      alpha: the clip level, a float scalar or an array that broadcasts to ``x`` (one a channel). Traced; an ordinary
        parameter of the model, that of a ReLU6 to begin with, say. One below the least normal float32, negative ones
        included, counts as that number: all outputs are 0, and its gradient can raise it again.
      bits: width of a code in [1, 16], fractional values round half up. Traced.

    Returns:
      Shape and dtype of ``x``. Zeros are +0.0, +inf gives the largest value, NaN stays NaN in its place alone.

    Raises:
      ValueError: concrete bits out of range; an ``alpha`` that does not broadcast.
      TypeError: ``x`` or ``alpha`` does not hold floating-point numbers.

    >>> clip_activations(jnp.array([-1.0, 0.4, 1.1, 7.0]), 3.0, 2).tolist()
    [0.0, 0.0, 1.0, 3.0]
    """
    for name, value in (("x", x), ("alpha", alpha)):
        if not tree.is_floating(value):
            raise TypeError(f"{name} must hold floating-point numbers, got {value!r}")
    x, alpha = jnp.asarray(x), jnp.asarray(alpha, jnp.float32)
    if not tree.broadcasts(alpha.shape, x.shape):
        raise ValueError(f"alpha has shape {alpha.shape}, which does not broadcast to the activations {x.shape}")
    return _clip(x, alpha, jnp.asarray(settings.check_setting(bits, "bits", 1, 16)))


@jax.jit
def _clip(x: Array, alpha: Array, bits: Array) -> Array:
    return automatic(_pact, x, alpha, uniform.width(bits), out=explicit_spec(x))


def _pact(x: Array, alpha: Array, bits: Array) -> Array:
    level, wide = passed_through(alpha, jnp.maximum(alpha, TINY)), x.astype(jnp.float32)
    clipped = jnp.where(wide >= level, level, jnp.where(wide >= 0, wide, 0)).astype(x.dtype)
    qparams = qparams_of(jnp.zeros_like(alpha), alpha, bits, False)
    x = jnp.where(jnp.isnan(alpha), jnp.nan, x)
    return passed_through(clipped, uniform.straight_through(x, *grid(qparams, bits, False)))


class Range(NamedTuple):
    """A running range of activations: float32 ``low`` and ``high``, and of how many ``batches`` (int32) they are."""

    low: Array
    high: Array
    batches: Array


def init_range(shape: tuple[int, ...] = ()) -> Range:
    """A range that has seen nothing: 0 to 0, of no batches.

    Args:
      shape: what broadcasts to the activations: ``()`` for one range, ``(C,)`` for one a channel along the last axis,
        ``(C, 1, 1)`` for channels before two axes of space. Static.

    >>> init_range().batches.item()
    0
    """
    return Range(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32))


def observe(state: Range, x: Array, decay: Setting = 0.99) -> Range:
    """Takes a batch into a range: ``end = decay * end + (1 - decay) * new``, for the least and the largest value.

    The first batch sets the ends, so there is no pull towards 0. Only finite values count; where there are none, as in
    a batch without entries, nothing changes. No gradient passes.

    Args:
      state: as :func:`init_range` or this function returns it. Extremes are taken along the axes on which it has size 1
        or that it does not have.
      x: float activations that the state's shape broadcasts to.
      decay: in [0, 1], the weight of the past. Traced.

    Returns:
      The new state, of the same shapes and dtypes: it can be carried by ``scan``.

    Raises:
      ValueError: a concrete decay out of range; a state that does not broadcast to ``x``.
      TypeError: ``x`` does not hold floating-point numbers.

    The moving averages of Jacob et al. 2018 (arXiv:1712.05877, section 3.1).

    >>> state = observe(init_range(), jnp.array([1.0, 3.0]))
    >>> state = observe(state, jnp.array([-1.0, 5.0]), 0.5)
    >>> float(state.low), float(state.high), int(state.batches)
    (0.0, 4.0, 2)
    """
    if not tree.is_floating(x):
        raise TypeError(f"x must hold floating-point numbers, got {x!r}")
    x = jnp.asarray(x)
    if not tree.broadcasts(np.shape(state.low), x.shape):
        raise ValueError(f"the range has shape {np.shape(state.low)}, which does not broadcast to the batch {x.shape}")
    return _observe(state, x, settings.check_setting(decay, "decay", 0, 1))


@jax.jit
def _observe(state: Range, x: Array, decay: Array) -> Range:
    decay = jnp.clip(jnp.asarray(decay), 0, 1)
    low, high = automatic(partial(_extremes, shape=state.low.shape), jax.lax.stop_gradient(x))
    seen, first = low <= high, state.batches == 0

    def merged(old: Array, new: Array) -> Array:
        return jnp.where(seen, jnp.where(first, new, product(decay, old) + product(1 - decay, new)), old)

    return Range(merged(state.low, low), merged(state.high, high), state.batches + seen.astype(jnp.int32))


def _extremes(x: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The least and the largest finite value, in ``shape``; inf and -inf of none."""
    own = (1,) * (x.ndim - len(shape)) + shape
    axes = tuple(i for i, n in enumerate(own) if n == 1)
    x = x.astype(jnp.float32)
    finite = jnp.isfinite(x)
    low = jnp.min(jnp.where(finite, x, jnp.inf), axes, initial=jnp.inf)
    high = jnp.max(jnp.where(finite, x, -jnp.inf), axes, initial=-jnp.inf)
    return low.reshape(shape), high.reshape(shape)


def range_qparams(state: Range, bits: Setting, *, spec: QuantSpec = _SYMMETRIC) -> QParams:
    """Scale and zero point of an observed range, for ``jp.fake_quant(x, bits, qparams=..., spec=spec)``.

    As everywhere in the library: a symmetric range is that of the larger magnitude, an asymmetric one is widened to
    hold 0, and one without width, as before the first batch, gives zeros.

    Args:
      state: a range; see :func:`observe`.
      bits: width of a code in [1, 16], fractional values round half up. Traced.
      spec: symmetric or not; the one that ``jp.fake_quant`` gets. Its axis is not looked at, as the shape of the state
        says what shares a range. Static.

    Returns:
      ``QParams`` in the state's shape.

    Raises:
      ValueError: concrete bits out of range; a spec with blocks.

    >>> state = observe(init_range(), jnp.array([1.0, 2.55]))
    >>> qparams = range_qparams(state, 8, spec=QuantSpec(symmetric=False))
    >>> round(float(qparams.scale), 4), int(qparams.zero_point)
    (0.01, 0)
    """
    if spec.block_size is not None:
        raise ValueError(f"an observed range has no blocks, got block_size {spec.block_size}")
    width = uniform.width(jnp.asarray(settings.check_setting(bits, "bits", 1, 16)))
    return _qparams_of(state.low, state.high, width, spec.symmetric)


_qparams_of = jax.jit(qparams_of, static_argnums=3)
