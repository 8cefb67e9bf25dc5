"""Many leaves, few programs: what is done for each leaf runs for some leaves of one shape together.

Eager calls compile one small program for each distinct shape, not one for the tree; and they call each for several
leaves at once, because a call takes longer than the work on a small leaf. Inside a trace, leaves of one shape are
traced once.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxprune import settings
from jaxprune.base import Array

_TOGETHER = 4  # leaves in one call: more make longer programs


def groups(leaves: Sequence[Any], together: int = _TOGETHER, own: Sequence[Any] = ()) -> list[list[int]]:
    """The leaves' numbers: four of one shape and dtype together as long as there are so many, then each alone."""
    alike: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        alike.setdefault((leaf.shape, leaf.dtype, own[i] if own else None), []).append(i)
    found = []
    for members in alike.values():
        whole = len(members) - len(members) % together
        found += [members[i : i + together] for i in range(0, whole, together)]
        found += [[i] for i in members[whole:]]
    return found


def each(
    kernel: Any,
    *columns: Sequence[Any],
    static: tuple[Any, ...] = (),
    own: Sequence[Any] = (),
    together: int = _TOGETHER,
) -> list[Any]:
    """``[kernel(*row, *static) for row in zip(*columns)]``, jitted; ``kernel(*row, own[i], *static)`` with ``own``.

    Args:
      kernel: static, hashable; traced once for each shape.
      columns: lists of equal length; the first holds the leaves, others what belongs to each.
      static: hashable.
      own: what is static for each leaf, hashable.
      together: how many leaves of one shape make a program; 1 for what takes long to compile.
    """
    first = columns[0]
    if settings.any_traced(columns):
        statics = [(mine, *static) for mine in own] if own else [static] * len(first)
        return [_one(kernel, s, *row) for s, *row in zip(statics, *columns, strict=True)]
    results: list[Any] = [None] * len(first)
    for members in groups(first, together, own):
        statics = (own[members[0]], *static) if own else static
        found = _some(kernel, statics, *(_pick(column, members) for column in columns))
        for i, result in zip(members, found, strict=True):
            results[i] = result
    return results


def _pick(column: Sequence[Any], members: list[int]) -> Any:
    """Some of a column; numbers as one array, which is one argument."""
    chosen = [column[i] for i in members]
    return np.asarray(chosen) if isinstance(chosen[0], np.generic) else chosen


@partial(jax.jit, static_argnums=(0, 1))
def _one(kernel: Any, static: tuple[Any, ...], *row: Any) -> Any:
    return kernel(*row, *static)


@partial(jax.jit, static_argnums=(0, 1))
def _some(kernel: Any, static: tuple[Any, ...], *columns: list[Array]) -> list[Any]:
    return [_one(kernel, static, *row) for row in zip(*columns, strict=True)]
