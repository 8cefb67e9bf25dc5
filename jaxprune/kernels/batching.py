"""Batching rules that several kernels share."""

from typing import Any

import jax
from jax import lax
from jax.custom_batching import custom_vmap

from jaxprune.base import Array


def one_at_a_time(function: Any) -> Any:
    """``function`` with a batching rule that maps, so that each search ends when it is done."""
    alone = custom_vmap(function)

    @alone.def_vmap
    def _(axis_size: int, batched: Any, *arguments: Any) -> Any:
        values, treedef = jax.tree.flatten(arguments)
        flags = jax.tree.leaves(batched)

        def one(rows: list[Array]) -> Any:
            row = iter(rows)
            chosen = [next(row) if flag else value for value, flag in zip(values, flags, strict=True)]
            return alone(*jax.tree.unflatten(treedef, chosen))

        results = lax.map(one, [value for value, flag in zip(values, flags, strict=True) if flag])
        return results, jax.tree.map(lambda _: True, results)

    return alone


def batch_axes(batched: Any) -> Any:
    """What ``custom_vmap`` says is batched, as ``in_axes``."""
    return jax.tree.map(lambda flag: 0 if flag else None, tuple(batched))
