"""Axes that a kernel does not see: of explicitly sharded arrays, whose types carry their sharding, and of ``vmap``."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxprune.base import Array


def explicit_spec(array: Array) -> PartitionSpec:
    """The sharding that the array's type names; empty unless its mesh has explicit axes."""
    return jax.typeof(array).sharding.spec


def batch_axes(batched: Any) -> Any:
    """What ``custom_vmap`` says is batched, as ``in_axes``."""
    return jax.tree.map(lambda flag: 0 if flag else None, tuple(batched))


def automatic(fn: Callable[..., Any], array: Array, *args: Any, out: Any = None) -> Any:
    """``fn(array, *args)``, with explicit mesh axes of ``array`` made automatic: the compiler places what is inside.

    Reshapes and the like need a sharding rule in explicit mode, which inside a kernel nobody should have to write.

    Args:
      fn: any traceable function.
      array: decides the mesh; without explicit axes ``fn`` is just called.
      *args: further arguments.
      out: the ``PartitionSpec`` of the result, or a tree of them; replicated by default.

    Returns:
      What ``fn`` returns.
    """
    if all(entry is None for entry in explicit_spec(array)):
        return fn(array, *args)
    mesh = jax.typeof(array).sharding.mesh
    axes = tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit)
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.sharding.auto_axes(fn, axes=axes, out_sharding=PartitionSpec() if out is None else out)(array, *args)


def everywhere(array: Array) -> Array:
    """The array as it is, or, if its type names a sharding, a copy of it in full on each device.

    For what runs eagerly and needs no rules for sharding.
    """
    if all(entry is None for entry in explicit_spec(array)):
        return array
    return jax.device_put(array, NamedSharding(array.sharding.mesh, PartitionSpec()))  # type: ignore[union-attr]
