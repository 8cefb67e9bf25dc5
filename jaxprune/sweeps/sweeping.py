"""Trying many settings of one function.

A sweep compiles once, whatever the number of settings, because a setting is a traced argument. Settings stay in NumPy
until they enter the compiled program and results come back as NumPy arrays, so nothing else is ever compiled.
"""

import contextlib
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path

from jaxprune.host import progress_bar
from jaxprune.sweeps import batching, checkpointing


def grid(**settings: Sequence[float] | np.ndarray | jax.Array) -> dict[str, np.ndarray]:
    """All combinations of named values, the last name varying fastest.

    Args:
      **settings: one-dimensional, non-empty sequences of numbers without NaN.

    Returns:
      For each name an array [N], N the product of the lengths: int32 where all values are integers, else float32.

    Raises:
      TypeError: values that are not real numbers.
      ValueError: no names, or values that are empty, not one-dimensional, NaN, or integers outside int32.

    >>> grid(sparsity=[0.5, 0.9], bits=[4, 8])
    {'sparsity': array([0.5, 0.5, 0.9, 0.9], dtype=float32), 'bits': array([4, 8, 4, 8], dtype=int32)}
    """
    if not settings:
        raise ValueError("grid needs at least one named setting, as in grid(sparsity=[0.5, 0.9])")
    axes = [_grid_axis(name, values) for name, values in settings.items()]
    combined = np.meshgrid(*axes, indexing="ij")
    return {name: values.flatten() for name, values in zip(settings, combined, strict=True)}


def _grid_axis(name: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"grid: {name} must be one-dimensional, got rows of different lengths") from error
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"grid: {name} must be one-dimensional and not empty, got shape {array.shape}")
    if jnp.issubdtype(array.dtype, jnp.integer):
        return _cast(f"grid: {name}", array, np.dtype(np.int32))
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"grid: {name} must hold real numbers, got dtype {array.dtype}")
    if np.isnan(array).any():
        raise ValueError(f"grid: {name} has NaN at index {np.isnan(array).argmax()}")
    return array.astype(np.float32)


def _cast(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """``array`` as ``dtype``, where an integer that does not fit raises rather than wraps."""
    cast = array.astype(dtype, copy=False)
    if jnp.issubdtype(dtype, jnp.integer) and not np.array_equal(cast, array):
        raise ValueError(f"{name} has values outside {dtype.name}: {array[cast != array].flat[0]}")
    return cast


def sweep(
    fn: Callable[..., Any],
    settings: Any,
    *args: Any,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    axis: str | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Any:
    """Evaluates ``fn(setting, *args)`` for every setting, in one compiled program.

    It is compiled once, a last partial batch included (filled up with the last setting), and again only for another
    ``fn`` object or other shapes; the latest few ``fn`` are kept alive for that. Models and data belong in ``args``:
    what ``fn`` closes over is compiled in as constants.

    Args:
      fn: function of one setting and ``args``; traced, so it must be jittable. Returns a pytree of arrays.
      settings: pytree of arrays with one leading axis of length N (``grid(...)``, an array [N], a list of numbers). A
        setting is the pytree at one index: a leaf [N, ...] gives a leaf [...]. Traced, strongly typed.
      *args: pytrees of arrays and Python numbers, the same for every setting. Traced.
      batch_size: settings evaluated at once by ``jax.vmap``, on each device. None takes one on CPU, where batched
        convolutions are several times slower, and elsewhere as many as the free memory holds, judged by the temporaries
        of a single setting (one more compilation). Static.
      mesh: devices to spread the settings over. Args that lie on all its devices keep their sharding, others are
        copied to each. Under ``jax.distributed`` every process makes the same call, and each gets all results.
      axis: the mesh axis that the settings are sharded over, by default the first. The other axes stay automatic, for
        models that are sharded themselves.
      progress: draw a bar on stderr (needs ``rich``).
      checkpoint: file that keeps the finished results, about once a second and at any exception. A later call with
        equal settings and args goes on from there, and evaluates nothing (only traces ``fn``) if all is there. The file
        does not know ``fn``. Several processes each write their own, with the process index appended to the name.

    Returns:
      The output of ``fn`` with a leading axis [N] on every leaf: NumPy arrays of exactly the dtypes that it returns.

    Raises:
      TypeError: ``fn`` not callable or not hashable; settings that are not numbers; args that JAX cannot trace.
      ValueError: no settings, unequal leading axes, bad ``batch_size`` or ``axis``, a checkpoint that does not fit.

    >>> weights = np.array([-0.3, 0.1, 0.7], np.float32)
    >>> sweep(lambda threshold, w: (abs(w) >= threshold).sum(), [0.0, 0.2, 0.5], weights)
    array([3, 2, 1], dtype=int32)
    """
    axis = _check(fn, batch_size, mesh, axis)
    settings = host_settings(settings)
    count = jax.tree.leaves(settings)[0].shape[0]
    placed = batching.place(args, mesh)
    program, width = batching.plan(fn, settings, placed, batch_size, mesh, axis)
    results = _host_results(program.eval_shape(batching.chunk(settings, 0, width), placed), count)

    start, keeping = 0, contextlib.nullcontext(lambda finished: None)
    if checkpoint is not None:
        path = os.fspath(checkpoint) + (f".{jax.process_index()}" if mesh and mesh.is_multi_process else "")
        description = checkpointing.describe(settings, args, results)
        start = batching.smallest(checkpointing.load(path, description, results), mesh)
        keeping = checkpointing.keeping(path, description, results, start)
    # With a checkpoint nothing runs ahead, so that all that is finished at an exception is already on the host.
    finishing = batching.run(program, settings, placed, results, range(start, count, width), checkpoint is None)
    with progress_bar(progress, "settings", start, count) as show, keeping as keep:
        for finished in finishing:
            keep(finished)
            show(finished)
    return results


def _check(fn: Any, batch_size: int | None, mesh: Mesh | None, axis: str | None) -> str:
    """Raises on arguments that no sweep can use; returns the mesh axis of the settings ("" without a mesh)."""
    if not callable(fn):
        raise TypeError(f"fn must be callable, got {type(fn).__name__}")
    try:
        hash(fn)
    except TypeError:
        call = "sweep(lambda setting, model: model(setting), settings, model)"
        kind = type(fn).__name__
        raise TypeError(f"fn must be hashable, and {kind} is not: pass it as an argument, as in {call}") from None
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    names = mesh.axis_names if mesh else ("",)
    if axis is not None and axis not in names:
        raise ValueError(f"axis {axis!r} needs a mesh with that axis; {f'it has {names}' if mesh else 'mesh is None'}")
    return names[0] if axis is None else axis


def host_settings(settings: Any) -> Any:
    """The settings as NumPy arrays of JAX's dtypes with equal leading axes; lists of numbers become arrays."""
    settings = tree_map_with_path(_host_setting, settings, is_leaf=_is_numbers)
    lengths = {"settings" + keystr(path): leaf.shape[0] for path, leaf in tree_leaves_with_path(settings)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"settings must have equal leading axes, got {lengths}")
    if not any(lengths.values()):
        raise ValueError(f"there are no settings to try: {lengths}")
    return settings


def _is_numbers(tree: Any) -> bool:
    return type(tree) in (list, tuple) and len(tree) > 0 and all(isinstance(x, numbers.Real) for x in tree)


def _host_setting(path: Any, leaf: Any) -> np.ndarray:
    name = "settings" + keystr(path)
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise TypeError(f"{name} holds PRNG keys: sweep integer seeds, and call jax.random.key in fn")
    array = np.asarray(leaf)
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        raise TypeError(f"{name} must hold numbers, got dtype {array.dtype}")
    if array.ndim == 0:
        raise ValueError(f"{name} must have a leading axis, got a scalar")
    return _cast(name, array, jax.dtypes.canonicalize_dtype(array.dtype))


def _host_results(shapes: Any, count: int) -> Any:
    """Buffers for the results of ``count`` settings."""

    def buffer(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise TypeError(f"fn(...){keystr(path)} has dtype {leaf.dtype}: return jax.random.key_data of it")
        return np.empty((count, *leaf.shape[1:]), leaf.dtype)

    return tree_map_with_path(buffer, shapes)


def pareto_front(result: Any, *, cost: Any, metric: Any) -> np.ndarray:
    """Indices of the settings that no other beats, by ascending cost.

    Setting j beats setting i where cost[j] <= cost[i] and metric[j] >= metric[i], one of them strictly; of equal
    settings the first stays. NaN in either is never on the front. O(N log N), on the host.

    Args:
      result: mapping, or record with attributes, that names are looked up in.
      cost: lower is better. A name in ``result``, or numbers [N].
      metric: higher is better. Likewise.

    Returns:
      Integer array [K], K <= N.

    Raises:
      KeyError: a name that ``result`` does not have.
      ValueError: values that are not one-dimensional, or of different lengths.

    >>> pareto_front({"bytes": [4, 1, 2, 3], "accuracy": [0.9, 0.5, 0.8, 0.7]}, cost="bytes", metric="accuracy")
    array([1, 2, 0])
    """
    costs, metrics = column(result, "cost", cost), column(result, "metric", metric)
    if costs.shape != metrics.shape:
        raise ValueError(f"cost and metric must have equal lengths, got {costs.size} and {metrics.size}")
    order = np.flatnonzero(~(np.isnan(costs) | np.isnan(metrics)))
    # At equal cost the best metric comes first, and the sort is stable: of equal settings the first comes first.
    order = order[np.lexsort((-metrics[order], costs[order]))]
    best_so_far = np.maximum.accumulate(metrics[order])
    unbeaten = np.ones(order.shape, bool)
    unbeaten[1:] = best_so_far[1:] > best_so_far[:-1]
    return order[unbeaten]


def column(result: Any, role: str, value: Any) -> np.ndarray:
    """Values by name or as given, in float64, which holds every narrower dtype exactly."""
    if isinstance(value, str):
        fields = result if isinstance(result, Mapping) else getattr(result, "_asdict", lambda: vars(result))()
        if value not in fields:
            raise KeyError(f"{role}={value!r} is not in the result, which has {list(fields)}")
        value = fields[value]
    array = np.asarray(value, np.float64)
    if array.ndim != 1:
        raise ValueError(f"{role} must have one value per setting, got shape {array.shape}")
    return array
