"""Integer histograms of whole arrays, at memory speed and under any sharding.

One operation, ``histogram``: counts where ``binning`` sends each element. It walks the array in chunks that stay in
cache on CPU (the bin numbers never exist for the whole array), in one scatter elsewhere. A sharded array is counted
where it lies and the counts are summed; its elements never move.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxprune.base import Array
from jaxprune.kernels.sharding import batch_axes, explicit_spec

#: ``(elements, flat_index, *operands) -> bins``, elementwise; a bin beyond the histogram is dropped. Hashable.
Binning = Callable[..., Array]
#: ``(elements, *operands) -> amounts``: the float32 that each element adds to its bin, elementwise. Hashable.
Weigh = Callable[..., Array]

# A thousand elements and their bins stay in the nearest cache, and XLA shares out so little among no threads, which
# would have to meet at every chunk. Measured as fast as copying the array, where one scatter over all of it takes four
# times as long and twice its memory.
_CHUNK = 1 << 10
_AT_ONCE = 1 << 16  # no more elements than that are not worth a loop
_RUN = 1 << 4  # adjacent elements in a sample


class _Counting(NamedTuple):
    """What is static about a histogram; the arguments of :func:`histogram`."""

    binning: Binning
    length: int
    weigh: Weigh | None
    every: int


def histogram(
    array: Array, operands: tuple[Any, ...], binning: Binning, length: int, weigh: Weigh | None = None, every: int = 1
) -> Array:
    """Counts the elements of ``array`` in each of ``length`` bins, or sums up what they weigh.

    Args:
      array: any shape, fewer than 2**31 elements.
      operands: pytree of small arrays that ``binning`` needs.
      binning: static, hashable by value; called with a 1-D chunk, the elements' row-major indices (uint32) in the
        whole array, and the operands.
      length: static number of bins.
      weigh: static; ``None`` counts.
      every: static; looks at one element of so many, in runs that share a cache line.

    Returns:
      [length], replicated if the array is sharded: uint32 counts, or float32 sums of weights.
    """
    how = _Counting(binning, length, weigh, every)
    spec, mesh = explicit_spec(array), jax.typeof(array).sharding.mesh
    around = mesh.axis_types or jax.sharding.get_abstract_mesh().axis_types
    if any(entry is not None for entry in spec):
        own, everywhere = _own_part(how, array.shape, mesh, spec), PartitionSpec()
        return jax.shard_map(own, mesh=mesh, in_specs=(spec, everywhere), out_specs=everywhere)(array, operands)
    if set(around) == {AxisType.Explicit}:
        return _count(how, array, operands)  # every device has all of it

    @jax.custom_batching.custom_vmap
    def count(array: Array, operands: tuple[Any, ...]) -> Array:
        return _partitioned(how)(array, operands)

    @count.def_vmap
    def _(axis_size: int, batched: Any, array: Array, operands: tuple[Any, ...]) -> tuple[Array, bool]:
        return jax.vmap(partial(_count, how), batch_axes(batched))(array, operands), True

    return count(array, operands)


def _count(how: _Counting, array: Array, operands: Any, to_index: Callable[..., Any] = lambda index: index) -> Array:
    flat, every = array.reshape(-1), how.every
    if every > 1:
        flat = flat[: flat.size - flat.size % (_RUN * every)].reshape(-1, _RUN * every)[:, :_RUN].reshape(-1)
    chunks = flat.size // _CHUNK if flat.size > _AT_ONCE else 0
    empty = jnp.zeros(how.length, jnp.uint32 if how.weigh is None else jnp.float32)

    def add(counts: Array, elements: Array, start: Any) -> Array:
        positions = jnp.asarray(start).astype(jnp.uint32) + jax.lax.iota(jnp.uint32, elements.size)
        if every > 1:
            positions += positions // _RUN * np.uint32(_RUN * (every - 1))
        bins = how.binning(elements, to_index(positions), *operands)
        amounts = jnp.uint32(1) if how.weigh is None else how.weigh(elements, *operands)
        return counts.at[bins].add(amounts, mode="drop")

    def in_chunks(flat: Array) -> Array:
        counts = empty + (flat[0] != flat[0]) * empty.dtype.type(0)  # zeros still, which vary as the shards do
        counts = add(counts, flat[chunks * _CHUNK :], chunks * _CHUNK) if flat.size % _CHUNK else counts
        dtype = flat.dtype
        if dtype.itemsize == 2:  # or XLA widens 16-bit floats ahead of the loop, all at once
            flat = jax.lax.bitcast_convert_type(flat, jnp.uint16)

        def step(i: Array, counts: Array) -> Array:
            chunk = jax.lax.bitcast_convert_type(jax.lax.dynamic_slice(flat, (i * _CHUNK,), (_CHUNK,)), dtype)
            return add(counts, chunk, i * _CHUNK)

        return jax.lax.fori_loop(0, chunks, step, counts)

    def at_once(flat: Array) -> Array:
        return add(empty, flat, 0)

    return jax.lax.platform_dependent(flat, cpu=in_chunks, default=at_once) if chunks else at_once(flat)


def _own_part(how: _Counting, shape: tuple[int, ...], mesh: Any, spec: PartitionSpec) -> Callable[..., Array]:
    """One device's part: its shard's counts, at the indices of the whole array, summed over the devices that share."""
    names = [_names(entry) for entry in spec] + [()] * (len(shape) - len(spec))

    def count(shard: Array, operands: Any) -> Array:
        def to_index(positions: Array) -> Array:
            index, inner, stride = jnp.zeros_like(positions), 1, 1
            for axes, size, whole in zip(names[::-1], shard.shape[::-1], shape[::-1], strict=True):
                start = jnp.asarray(_axis_index(axes, mesh) * size).astype(jnp.uint32)
                index += ((positions // np.uint32(inner)) % np.uint32(size) + start) * np.uint32(stride)
                inner, stride = inner * size, stride * whole
            return index

        counts, used = _count(how, shard, operands, to_index), sum(names, ())
        return jax.lax.psum(counts, used) if used else counts

    return count


def _names(entry: Any) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _axis_index(axes: tuple[str, ...], mesh: Any) -> Any:
    index = 0
    for name in axes:
        index = index * mesh.shape[name] + jax.lax.axis_index(name)
    return index


@cache
def _partitioned(how: _Counting) -> Any:
    """``(array, operands) -> counts``, which knows how it is partitioned."""

    def partition(mesh: Mesh, arguments: Any, result: Any) -> Any:
        array, operands = arguments
        spec = array.sharding.spec if isinstance(array.sharding, NamedSharding) else PartitionSpec()
        shards = [math.prod(mesh.shape[name] for name in _names(entry)) for entry in spec]
        if any(size % count for size, count in zip(array.shape, shards, strict=False)):
            spec = PartitionSpec()  # padded shards would be counted too
        everywhere = NamedSharding(mesh, PartitionSpec())

        def lower(shard: Array, rest: Any) -> Array:
            with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):  # or one around asks for its constraints
                return _own_part(how, array.shape, mesh, spec)(shard, rest)

        replicated = jax.tree.map(lambda _: everywhere, operands)
        return mesh, lower, everywhere, (NamedSharding(mesh, spec), replicated)

    # Its static_argnums would keep tracers that are looked for as leaks.
    alone = custom_partitioning(lambda array, operands: _count(how, array, operands))
    alone.def_partition(
        partition=partition,
        infer_sharding_from_operands=lambda mesh, arguments, result: NamedSharding(mesh, PartitionSpec()),
        sharding_rule=_rule,
    )
    return alone


def _rule(mesh: Mesh, values: Any, results: Any) -> str:
    """Every axis of every operand has a factor of its own, none of which the result shares."""
    letters = iter(f"a{i}" for i in range(sum(len(value.shape) for value in values) + 1))
    operands = ", ".join(" ".join(next(letters) for _ in value.shape) for value in values)
    return f"{operands} -> {next(letters)}"
