"""Words and types that the whole library shares.

Conventions, said once:

* **masks** are bool pytrees with the structure of the parameters; ``True`` keeps. Each mask leaf broadcasts to its
  parameter: full shape, one entry a unit (``(1, ..., 1, C)`` of a Flax kernel), or the 0-d ``True`` of a leaf that is
  left alone.
* **scores** have the structure of the parameters; larger is more important.
* **sparsity** is the fraction *removed*, in [0, 1].
* a **unit** is one output neuron or channel: an index along the output axes of a leaf (:mod:`jaxprune.layout`).
* a **setting** (threshold, sparsity, bits, exponent, clip ratio) is always traced: a scalar, or a tree of scalars that
  follows the parameters' paths. A **spec** (axis, block size, N and M, scope) is always static.
* **where** chooses the leaves that take part; see :func:`jaxprune.tree.select`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import jax

Array: TypeAlias = jax.Array
#: Any pytree of arrays. Structure, container types and dtypes come back unchanged.
Params: TypeAlias = Any
#: A pytree like the parameters; larger is more important.
Scores: TypeAlias = Any
#: A bool pytree like the parameters; ``True`` keeps.
Masks: TypeAlias = Any
#: A scalar, or a tree of scalars whose paths are those of the parameters or a prefix of them.
Setting: TypeAlias = Any
#: Which leaves take part: the default, glob patterns, a predicate ``(path, leaf) -> bool`` or a tree of bools.
Where: TypeAlias = str | Sequence[str] | Callable[[str, Any], bool] | Mapping[str, Any] | None
#: The axes of leaves: ``{pattern: (batch, inputs, outputs)}``, or those of a framework; see :mod:`jaxprune.layout`.
Layout: TypeAlias = Mapping[str, tuple[Sequence[int], Sequence[int], Sequence[int]]] | Literal["flax", "torch"] | None
#: What is ranked together: the entries of each leaf, or those of all chosen leaves.
Scope: TypeAlias = Literal["leaf", "global"]
#: A criterion: parameters in, scores out.
Saliency: TypeAlias = Callable[[Params], Scores]

#: ``(x, axes, bits, spec) -> (low, high)``: the range of ``x`` (float32) over ``axes``, kept as dimensions of size 1.
Calibration: TypeAlias = Callable[[Array, tuple[int, ...], Array, "QuantSpec"], tuple[Array, Array]]


@dataclass(frozen=True)
class QuantSpec:
    """What is static about a uniform quantizer. Hashable: equal specs share one compilation.

    Attributes:
      symmetric: codes in [-(2**(b-1)-1), 2**(b-1)-1] around zero point 0; otherwise codes in [0, 2**b-1] and a zero
        point, over a range that is widened to hold 0.
      axis: the axes that keep a range of their own: ``None`` for one range a tensor, ``"units"`` for one a unit (a row
        of an embedding), wherever the leaf's layout has them, or axes as written. Each of stacked layers keeps its own.
      block_size: if given, the contraction axis is cut into consecutive blocks of this length; the last one may be
        shorter. A range then belongs to a block and an index along ``axis``, which may not name the cut axis; here
        ``None`` stands for all others, as is usual, and ``()`` for ranges that span them. A depthwise kernel has one
        input, so there is nothing to cut: it has a range for each index along ``axis``, for ``None`` one a unit.
      calibration: how the range is found; ``None`` takes the largest finite magnitude (symmetric) or the finite
        minimum and maximum. See ``jaxprune.quantization.percentile`` and ``jaxprune.quantization.mean_squared_error``.
      block_axis: the axis that is cut; ``None`` for that of the leaf's layout: the last of the inputs, of an embedding
        that of the features.
    """

    symmetric: bool = True
    axis: int | tuple[int, ...] | Literal["units"] | None = None
    block_size: int | None = None
    calibration: Calibration | None = None
    block_axis: int | None = None


class QParams(NamedTuple):
    """Scale (float32) and zero point (int32) of a quantizer, each broadcastable to the (blocked) array."""

    scale: Array
    zero_point: Array
