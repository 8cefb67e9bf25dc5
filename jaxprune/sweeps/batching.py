"""The one compiled program of a sweep: how many settings it takes at a time, on which devices, and running it."""

import collections
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import keystr

_IN_FLIGHT = 2, 32  # least and most programs dispatched ahead of the one whose result is awaited: hides Python
_IN_FLIGHT_BYTES = 2**26  # of results, which bounds that number in between
_ROUNDS = 4  # settings that a device of a mesh maps over in one dispatch, which costs more there than on one device
_MEMORY_SHARE = 0.8  # of an accelerator's free memory; the rest is for fragmentation and larger workspaces


def place(args: tuple[Any, ...], mesh: Mesh | None) -> tuple[Any, ...]:
    """``args`` on the device or devices, so that host arrays travel once and not once a setting."""

    def put(path: Any, leaf: Any) -> jax.Array:
        try:
            jax.typeof(leaf)
        except TypeError as error:
            raise TypeError(f"args{keystr(path)} is not an array or number ({error}): close over it in fn") from None
        if isinstance(leaf, jax.Array) and (mesh is None or leaf.sharding.device_set == set(mesh.devices.flat)):
            return leaf
        return jax.device_put(leaf, None if mesh is None else NamedSharding(mesh, P()))

    return jax.tree_util.tree_map_with_path(put, args)


def plan(
    fn: Callable[..., Any], settings: Any, args: Any, batch_size: int | None, mesh: Mesh | None, axis: str
) -> tuple[Any, int]:
    """The jitted function (settings [width], args) -> results [width], and ``width``, the same for all its calls."""
    devices = 1 if mesh is None else mesh.shape[axis]
    each = -(-jax.tree.leaves(settings)[0].shape[0] // devices)  # settings of one device
    batch = min(each, batch_size or _batch_that_fits(fn, chunk(settings, 0, devices), args, mesh, axis))
    if mesh is not None and batch == 1:
        dispatches = -(-each // _ROUNDS)
        return _program(fn, False, mesh, axis), devices * -(-each // dispatches)  # balanced: little padding at the end
    return _program(fn, batch > 1, mesh, axis), devices * batch


@functools.lru_cache(maxsize=16)  # bounded, because an entry keeps `fn` alive with all that it closes over
def _program(fn: Callable[..., Any], vmapped: bool, mesh: Mesh | None, axis: str) -> Any:
    def evaluate(settings: Any, args: tuple[Any, ...]) -> Any:
        def one(setting: Any) -> Any:
            return fn(setting, *args)

        if vmapped:
            return jax.vmap(one)(settings)
        if jax.tree.leaves(settings)[0].shape[0] > 1:
            return jax.lax.map(one, settings)
        # XLA:CPU takes its slow convolutions in a loop, though of one pass: gradients took 15 times as long.
        return jax.tree.map(lambda out: out[None], one(jax.tree.map(lambda leaf: leaf[0], settings)))

    def own_part(settings: Any, args: tuple[Any, ...]) -> Any:
        # All settings are on every device, as NumPy arrays arrive under any mesh, explicit axes and several processes
        # included. Each device cuts out its own.
        def own(leaf: jax.Array) -> jax.Array:
            width = leaf.shape[0] // jax.lax.axis_size(axis)
            return jax.lax.dynamic_slice_in_dim(leaf, jax.lax.axis_index(axis) * width, width)

        return evaluate(jax.tree.map(own, settings), args)

    if mesh is None:
        return jax.jit(evaluate)
    # Manual over the settings axis alone: every device runs its own settings, with no grouped convolutions and no
    # collectives, and a model sharded over the other axes is partitioned as usual. Carries of loops inside `fn` may
    # turn from constant to varying over the axis, hence no check of that.
    sharded = jax.shard_map(own_part, mesh=mesh, in_specs=P(), out_specs=P(axis), axis_names={axis}, check_vma=False)
    # A process can only read what lies on its own devices, and each wants the whole result.
    return jax.jit(sharded, out_shardings=NamedSharding(mesh, P()) if mesh.is_multi_process else None)


def _batch_that_fits(fn: Callable[..., Any], settings: Any, args: Any, mesh: Mesh | None, axis: str) -> int:
    """Settings that a device can evaluate at once: 1 on CPU, else by the memory that one setting takes."""
    free = _free_bytes(args, mesh)
    if free is None:
        return 1
    memory = _program(fn, False, mesh, axis).lower(settings, args).compile().memory_analysis()
    each = memory.temp_size_in_bytes + _IN_FLIGHT[0] * memory.output_size_in_bytes
    fit = max(1, int(_MEMORY_SHARE * free) // max(1, each))
    # A power of two, so that a little more or less free memory at the next call does not compile again.
    return smallest(1 << (fit.bit_length() - 1), mesh)


def _free_bytes(args: Any, mesh: Mesh | None) -> int | None:
    """Free memory of a device that the sweep runs on; None for CPU and where the platform does not say."""
    if mesh is not None:
        device = mesh.local_devices[0]
    else:
        leaves = jax.tree.leaves(args) or [jax.device_put(np.float32(0))]
        device = min(leaves[0].devices(), key=lambda device: device.id)
    stats = None if device.platform == "cpu" else device.memory_stats()
    return stats["bytes_limit"] - stats["bytes_in_use"] if stats and "bytes_limit" in stats else None


def smallest(value: int, mesh: Mesh | None) -> int:
    """The smallest ``value`` of all processes of the mesh, which must run the same programs in the same order."""
    if mesh is None or not mesh.is_multi_process:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.int32(min(value, 2**31 - 1))).min())


def chunk(settings: Any, start: int, width: int) -> Any:
    """Settings ``start`` to ``start + width``, the last one repeated past the end."""
    return jax.tree.map(lambda leaf: leaf.take(range(start, start + width), axis=0, mode="clip"), settings)


def run(program: Any, settings: Any, args: Any, results: Any, starts: range, ahead: bool) -> Iterator[int]:
    """Fills the host buffers ``results`` from each of ``starts`` on, and yields how many settings are finished.

    ``ahead`` dispatches further programs before a result is there.
    """
    width, buffers, pending = starts.step, jax.tree.leaves(results), collections.deque()
    width_bytes = sum(width * buffer[0].nbytes for buffer in buffers)
    in_flight = int(np.clip(_IN_FLIGHT_BYTES // max(1, width_bytes), *_IN_FLIGHT)) if ahead else 1

    def collect() -> int:
        start, outputs = pending.popleft()
        stop = min(start + width, starts.stop)
        for buffer, output in zip(buffers, jax.tree.leaves(outputs), strict=True):
            buffer[start:stop] = np.asarray(output)[: stop - start]
        return stop

    for start in starts:
        pending.append((start, program(chunk(settings, start, width), args)))
        if len(pending) == in_flight:
            yield collect()
    while pending:
        yield collect()
