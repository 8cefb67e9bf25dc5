"""Grids, sweeps on one device, checkpoints and Pareto fronts. Several devices: test_sweeps_distributed.py."""

import functools
import gc
import os
import subprocess
import sys
import types
import weakref
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from jaxprune.sweeps import batching, checkpointing, grid, pareto_front, sweep


class Setting(NamedTuple):
    threshold: object
    bits: object


_compiles = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: _compiles.append(event) if event.endswith("backend_compile_duration") else None
)


@pytest.fixture
def compiles():
    _compiles.clear()
    return _compiles


def _weights(shape=(7, 5), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _prune_error(setting, w):
    pruned = jnp.where(jnp.abs(w) < setting["threshold"], 0, w)
    return {"kept": (pruned != 0).sum(), "error": jnp.square(w - pruned).sum(), "level": 2 ** setting["bits"]}


def _loop(fn, settings, *args):
    count = len(jax.tree.leaves(settings)[0])
    each = [jax.jit(fn)(jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf[i]), settings), *args) for i in range(count)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


# --- grid -----------------------------------------------------------------------------------------------------------


def test_grid_is_the_product_with_the_last_name_fastest():
    made = grid(a=[0.5, 1], b=np.arange(3), c=jnp.array([7.0]))
    chex.assert_trees_all_equal(
        made,
        {
            "a": np.array([0.5, 0.5, 0.5, 1, 1, 1], np.float32),
            "b": np.array([0, 1, 2, 0, 1, 2], np.int32),
            "c": np.full(6, 7, np.float32),
        },
        strict=True,
    )
    assert list(made) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ([], ValueError),
        (0.5, ValueError),
        ([[0.5, 0.1]], ValueError),
        ([[0.5], [0.1, 0.2]], ValueError),
        ([0.1, float("nan")], ValueError),
        ([2**31], ValueError),
        ("0.5", ValueError),
        (["a", "b"], TypeError),
        ([True, False], TypeError),
        ([None, 1.0], TypeError),
        ([1 + 2j], TypeError),
    ],
)
def test_grid_names_the_bad_setting(values, error):
    with pytest.raises(error, match="sparsity"):
        grid(bits=[2, 4], sparsity=values)


def test_grid_without_names_raises():
    with pytest.raises(ValueError, match="at least one"):
        grid()


# --- sweep: values, dtypes, containers ------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 1, 8, 33, 100])
def test_sweep_equals_the_loop(batch_size):
    settings = grid(threshold=np.linspace(0, 2, 11), bits=[2, 4, 8])
    result = sweep(_prune_error, settings, _weights(), batch_size=batch_size)
    assert all(isinstance(leaf, np.ndarray) for leaf in result.values())
    chex.assert_trees_all_close(result, _loop(_prune_error, settings, _weights()), rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "read"),
    [
        ([0.0, 0.5, 2.0], lambda s: s),
        (np.array([0.0, 0.5, 2.0]), lambda s: s),
        (jnp.array([0.0, 0.5, 2.0]), lambda s: s),
        ({"threshold": (0.0, 0.5, 2.0)}, lambda s: s["threshold"]),
        ([np.array([0.0, 0.5, 2.0]), np.arange(3)], lambda s: s[0]),
        (Setting(np.array([0.0, 0.5, 2.0]), [2, 4, 8]), lambda s: s.threshold),
        ({"layer": {"w": np.array([[0.0, 9], [0.5, 9], [2.0, 9]])}}, lambda s: s["layer"]["w"][0]),
    ],
)
def test_settings_may_be_any_pytree(settings, read):
    kept = sweep(lambda s, w: (jnp.abs(w) >= read(s)).sum(), settings, _weights())
    np.testing.assert_array_equal(kept, [(np.abs(_weights()) >= t).sum() for t in (0.0, 0.5, 2.0)])


def test_settings_are_scalars_of_strong_type():
    def fn(setting):
        chex.assert_shape([setting["threshold"], setting["bits"], setting["flag"]], ())
        assert not any(leaf.aval.weak_type for leaf in setting.values())
        return setting

    settings = {"threshold": [0.1, 0.2], "bits": [2, 4], "flag": np.array([True, False])}
    for batch_size in (1, 2):
        result = sweep(fn, settings, batch_size=batch_size)
        assert {name: leaf.dtype.name for name, leaf in result.items()} == {
            "threshold": "float32",
            "bits": "int32",
            "flag": "bool",
        }


_DTYPES = ["bfloat16", "float16", "float8_e4m3fn", "int4", "int8", "uint32", "bool", "complex64"]


def _every_dtype(setting, w):
    outputs = {name: (w * setting).astype(name) for name in _DTYPES}
    return outputs | {"empty": jnp.zeros((0, 3), jnp.bfloat16), "nested": (None, [setting])}


def test_result_dtypes_are_exact():
    result = sweep(_every_dtype, [1.0, 2.0, 3.0], _weights())
    for name in _DTYPES:
        assert result[name].dtype == jnp.dtype(name) and result[name].shape == (3, 7, 5)
        want = np.stack([jnp.asarray(_weights() * s).astype(name) for s in np.float32([1, 2, 3])])
        np.testing.assert_array_equal(result[name], want)
    assert result["empty"].shape == (3, 0, 3)
    np.testing.assert_array_equal(result["nested"][1][0], np.float32([1, 2, 3]))


def test_args_may_hold_numbers_keys_and_low_precision():
    args = ({"w": jnp.ones(3, jnp.bfloat16), "gain": 2.0}, jax.random.key(0), 3)

    def fn(setting, params, key, power):
        noise = jax.random.uniform(key, (3,), params["w"].dtype)
        return (params["w"] * params["gain"] * setting) ** power + noise

    result = sweep(fn, np.array([1, 2], jnp.bfloat16), *args)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(result, _loop(fn, np.array([1, 2], jnp.bfloat16), *args))


def test_methods_and_partials_are_functions_too(compiles):
    class Task:
        def __init__(self):
            self.w = jnp.asarray(_weights())

        def kept(self, threshold, scale=1.0):
            return (jnp.abs(self.w) * scale >= threshold).sum()

    task = Task()
    first = sweep(task.kept, [0.5, 1.0])
    compiled = len(compiles)
    np.testing.assert_array_equal(sweep(task.kept, [0.5, 1.0]), first)
    assert len(compiles) == compiled  # a bound method is a new object every time, and equal
    np.testing.assert_array_equal(sweep(functools.partial(task.kept, scale=2.0), [1.0, 2.0]), first)


# --- sweep: one compilation, bounded memory -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "batch_size"), [({"threshold": 50, "bits": 7}, None), ({"threshold": 11, "bits": 3}, 8)]
)
def test_a_sweep_compiles_once(compiles, names, batch_size):
    def fn(setting, w):
        return _prune_error(setting, w)

    settings = grid(**{name: np.linspace(1, 8, n).astype(np.int32) for name, n in names.items()})
    w = _weights((13, 3))
    chex.clear_trace_counter()
    first = sweep(chex.assert_max_traces(fn, n=1), settings, w, batch_size=batch_size)
    assert first["kept"].shape == (np.prod(list(names.values())),)
    assert len(compiles) == 1

    sweep(fn, settings, w, batch_size=batch_size)
    assert len(compiles) == 2  # another function
    again = sweep(fn, settings, w + 1, batch_size=batch_size)
    assert len(compiles) == 2
    chex.assert_trees_all_close(again, _loop(_prune_error, settings, w + 1), rtol=1e-6)


def test_args_are_not_captured_as_constants():
    program = batching._program(_prune_error, False, None, "")
    settings = {"threshold": np.zeros(1, np.float32), "bits": np.zeros(1, np.int32)}
    jaxpr = program.trace(settings, (_weights((300, 300)),)).jaxpr
    assert not any(np.size(constant) > 1 for constant in jaxpr.consts)
    assert jaxpr.in_avals[-1].shape == (300, 300)


def test_functions_are_released_with_the_cache():
    gc.freeze()  # what is older need not be searched
    big = np.ones((100, 100), np.float32)

    def fn(setting):
        return setting * big.sum()

    sweep(fn, [1.0, 2.0])
    alive = weakref.ref(fn)
    del fn
    assert batching._program.cache_info().maxsize < 100
    batching._program.cache_clear()
    gc.collect()
    assert alive() is None


def test_accelerators_take_as_many_settings_as_fit(monkeypatch, compiles):
    def fn(setting, w):
        return jnp.sort(w * setting)[::7].sum()

    w = jnp.ones(3_000)
    settings = np.arange(1, 34, dtype=np.float32)
    want = sweep(fn, settings, w)
    one = batching._program(fn, False, None, "").lower(settings[:1], (w,)).compile().memory_analysis()
    assert one.temp_size_in_bytes >= w.nbytes
    for free, batch in ((0, 1), (11.5 * one.temp_size_in_bytes, 8), (10**12, 33)):
        monkeypatch.setattr(batching, "_free_bytes", lambda args, mesh, free=free: free)
        assert batching.plan(fn, settings, (w,), None, None, "")[1] == batch
        np.testing.assert_allclose(sweep(fn, settings, w), want, rtol=1e-6)


def test_cpu_takes_one_setting_at_a_time():
    assert batching._free_bytes((jnp.ones(3),), None) is None
    assert batching._free_bytes((), None) is None
    assert batching.plan(_prune_error, grid(bits=range(9)), (), None, None, "")[1] == 1


_MEMORY = """
import resource
import jax, jax.numpy as jnp, numpy as np
from jaxprune.sweeps import sweep

def fn(setting, params, x):  # several temporaries as large as a layer, and a pruned copy to sum over
    pruned = jax.tree.map(lambda w: jnp.where(jnp.abs(w) < setting, 0, w), params)
    return sum((x @ w @ w.T).sum() for w in jax.tree.leaves(pruned))

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
params = {str(i): jnp.full((2500, 1000), float(i)) for i in range(10)}  # 100 MB
x = jnp.ones((2, 2500))
sweep(fn, [0.5], params, x)
one = peak()
sweep(fn, np.linspace(0, 9, 64), params, x)
print(one, peak())
"""


@pytest.mark.slow
def test_memory_stays_near_one_copy_of_the_model():
    output = subprocess.run([sys.executable, "-c", _MEMORY], capture_output=True, text=True, check=True).stdout
    one, many = map(int, output.split())
    assert many <= 1.3 * one, (one, many)


# --- sweep: errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"a": [0.1, 0.2], "b": np.ones(3)}, ValueError, r"settings\['a'\]': 2, \"settings\['b'\]\": 3|'b'.*3"),
        ([], ValueError, "no settings"),
        ({"a": np.ones((0, 3))}, ValueError, r"settings\['a'\]"),
        ({"a": 0.5}, ValueError, r"settings\['a'\] must have a leading axis"),
        ({"a": np.array(["x", "y"])}, TypeError, r"settings\['a'\].*numbers"),
        ({"a": np.array([object()])}, TypeError, r"settings\['a'\].*numbers"),
        ({"a": [2**40]}, ValueError, r"settings\['a'\].*int32"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, TypeError, r"settings\['key'\].*seeds"),
    ],
)
def test_bad_settings_are_named(settings, error, match):
    with pytest.raises(error, match=match):
        sweep(lambda setting: 0.0, settings)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ((1.0, {"layer": {"act": jax.nn.relu}}), r"args\[1\]\['layer'\]\['act'\].*close over it"),
        (("relu",), r"args\[0\]"),
        ((np.array([object()]),), r"args\[0\]"),
    ],
)
def test_bad_args_are_named(args, match):
    with pytest.raises(TypeError, match=match):
        sweep(lambda setting, *args: setting, [0.5], *args)


class _Unhashable:
    __hash__ = None

    def __call__(self, setting):
        return setting


@pytest.mark.parametrize(
    ("fn", "options", "error", "match"),
    [
        ("accuracy", {}, TypeError, "callable"),
        (_Unhashable(), {}, TypeError, "hashable.*argument"),
        (abs, {"batch_size": 0}, ValueError, "batch_size.*0"),
        (abs, {"axis": "data"}, ValueError, "'data'.*mesh"),
        (lambda s: jax.random.key(0), {}, TypeError, "key_data"),
    ],
)
def test_bad_calls_raise(fn, options, error, match):
    with pytest.raises(error, match=match):
        sweep(fn, [0.5, 0.6], **options)


def test_errors_inside_fn_come_through():
    def fn(setting):
        raise RuntimeError("from the user")

    with pytest.raises(RuntimeError, match="from the user"):
        sweep(fn, [0.5])


# --- sweep: progress ------------------------------------------------------------------------------------------------


def test_progress_goes_to_stderr(capfd):
    sweep(lambda s: s, [0.1, 0.2, 0.3], progress=True)
    output = capfd.readouterr()
    assert "3/3" in output.err and output.out == ""
    sweep(lambda s: s, [0.1, 0.2, 0.3])
    assert capfd.readouterr().err == ""


def test_progress_without_rich_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxprune\[progress\]'"):
        sweep(lambda s: s, [0.1], progress=True)


# --- sweep: checkpoints ---------------------------------------------------------------------------------------------


class _Counting:
    """A function that counts its evaluations on the host and can be told to fail at one of them."""

    def __init__(self):
        self.seen, self.fail_at = [], None

    def _note(self, setting):
        if self.fail_at == len(self.seen):
            self.fail_at = None
            raise RuntimeError("stopped")
        self.seen.append(float(setting))
        return np.float32(setting)

    def __call__(self, setting, w):
        setting = jax.pure_callback(self._note, jax.ShapeDtypeStruct((), np.float32), setting)
        return {"sum": (w * setting).sum(), "low": (w * setting).astype(jnp.bfloat16)}


_SETTINGS = np.arange(10, dtype=np.float32)


def _want():
    return {
        "sum": np.stack([(_weights() * s).sum() for s in _SETTINGS]),
        "low": np.stack([(_weights() * s).astype(jnp.bfloat16) for s in _SETTINGS]),
    }


def _assert_complete(result):
    np.testing.assert_allclose(result["sum"], _want()["sum"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(result["low"], _want()["low"])


def test_a_failed_sweep_goes_on_where_it_stopped(tmp_path, compiles):
    path, fn = tmp_path / "sweep.npz", _Counting()
    fn.fail_at = 6
    with pytest.raises(Exception, match="stopped"):
        sweep(fn, _SETTINGS, _weights(), checkpoint=path)
    assert fn.seen == list(_SETTINGS[:6]) and os.listdir(tmp_path) == ["sweep.npz"]

    _assert_complete(sweep(fn, _SETTINGS, _weights(), checkpoint=str(path)))
    assert fn.seen == list(_SETTINGS)
    assert len(compiles) == 1

    _assert_complete(sweep(fn, _SETTINGS, _weights(), checkpoint=path))
    assert fn.seen == list(_SETTINGS)  # nothing evaluated


def test_an_interrupted_sweep_goes_on(tmp_path, monkeypatch):
    path, fn, chunk = tmp_path / "sweep.npz", _Counting(), batching.chunk

    def interrupted(settings, start, width):
        if start == 6:
            raise KeyboardInterrupt
        return chunk(settings, start, width)

    monkeypatch.setattr(batching, "chunk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(fn, _SETTINGS, _weights(), checkpoint=path)
    monkeypatch.undo()
    assert fn.seen == list(_SETTINGS[:6])
    _assert_complete(sweep(fn, _SETTINGS, _weights(), checkpoint=path))
    assert fn.seen == list(_SETTINGS)


def test_a_resumed_sweep_may_use_other_batches(tmp_path):
    path, fn = tmp_path / "sweep.npz", _Counting()
    fn.fail_at = 4
    with pytest.raises(Exception, match="stopped"):
        sweep(fn, _SETTINGS, _weights(), checkpoint=path)

    def same(setting, w):
        return {"sum": (w * setting).sum(), "low": (w * setting).astype(jnp.bfloat16)}

    _assert_complete(sweep(same, _SETTINGS, _weights(), batch_size=4, checkpoint=path))


def test_a_checkpoint_keeps_every_dtype(tmp_path):
    path = tmp_path / "sweep.npz"
    first = sweep(_every_dtype, [1.0, 2.0, 3.0], _weights(), checkpoint=path)
    again = sweep(_every_dtype, [1.0, 2.0, 3.0], _weights(), checkpoint=path)
    assert jax.tree.structure(first) == jax.tree.structure(again)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("fn", "settings", "w", "match"),
    [
        (abs, _SETTINGS + 1, _weights(), "other settings.*delete"),
        (abs, _SETTINGS.astype(np.int32), _weights(), "other settings"),
        (abs, {"a": _SETTINGS}, _weights(), "other settings"),
        (abs, _SETTINGS, _weights((7, 6)), "other arguments"),
        (abs, _SETTINGS, _weights(seed=1), "other arguments"),
        (abs, _SETTINGS, _weights().astype(np.float16), "other arguments"),
        (lambda s: s.astype(jnp.bfloat16), _SETTINGS, _weights(), "other outputs"),
    ],
)
def test_a_checkpoint_of_something_else_raises(tmp_path, fn, settings, w, match):
    path = tmp_path / "sweep.npz"
    sweep(lambda s, w: s, _SETTINGS, _weights(), checkpoint=path)
    content = path.read_bytes()
    with pytest.raises(ValueError, match=match):
        sweep(lambda s, w: fn(jax.tree.leaves(s)[0]), settings, w, checkpoint=path)
    assert path.read_bytes() == content


def test_a_damaged_checkpoint_raises_or_is_right(tmp_path):
    path = tmp_path / "sweep.npz"

    def run():
        return sweep(_prune_error, grid(threshold=[0.1, 0.5], bits=[2, 4]), _weights(), checkpoint=path)

    want, content = run(), path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [content[:n] for n in range(0, len(content), 29)] + [b"garbage" * 100, b"\x93NUMPY" + content]
    for place in rng.integers(0, len(content), 200):
        damaged.append(content[:place] + bytes([content[place] ^ 1 << rng.integers(8)]) + content[place + 1 :])
    refused = 0
    for broken in damaged:
        path.write_bytes(broken)
        try:
            chex.assert_trees_all_equal(run(), want)
        except ValueError as error:
            assert "checkpoint" in str(error) and "delete" in str(error)
            refused += 1
    assert refused > len(damaged) / 2


def test_saves_are_rare_and_whole(tmp_path, monkeypatch):
    now, saves = [0.0], []

    def clock():
        now[0] += 0.05
        return now[0]

    monkeypatch.setattr(checkpointing, "time", types.SimpleNamespace(monotonic=clock))
    save = checkpointing.save
    monkeypatch.setattr(checkpointing, "save", lambda *a: (saves.append(a[-1]), save(*a)))
    sweep(lambda s: s, np.arange(100.0), checkpoint=tmp_path / "sweep.npz")
    assert 2 < len(saves) <= 7 and saves[-1] == 100  # five seconds by this clock

    def fail(*_):
        raise OSError("disk full")

    content = (tmp_path / "sweep.npz").read_bytes()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save(str(tmp_path / "sweep.npz"), {}, {}, 0)
    assert (tmp_path / "sweep.npz").read_bytes() == content and os.listdir(tmp_path) == ["sweep.npz"]


def test_a_checkpoint_in_no_folder_raises_before_any_work(tmp_path):
    fn = _Counting()
    with pytest.raises(FileNotFoundError, match="missing"):
        sweep(fn, _SETTINGS, _weights(), checkpoint=tmp_path / "missing" / "sweep.npz")
    assert fn.seen == []


# --- pareto_front ---------------------------------------------------------------------------------------------------


def _brute_force_front(cost, metric):
    def beaten(i):
        for j in range(len(cost)):
            better = cost[j] < cost[i] or metric[j] > metric[i] or j < i
            if j != i and cost[j] <= cost[i] and metric[j] >= metric[i] and better:
                return True
        return not (cost[i] == cost[i] and metric[i] == metric[i])

    return sorted((i for i in range(len(cost)) if not beaten(i)), key=lambda i: cost[i])


_values = st.sampled_from([0.0, -0.0, 1.0, 2.0, 2.5, -3.0, float("inf"), float("-inf"), float("nan")])


@given(st.lists(st.tuples(_values, _values), max_size=12))
@hypothesis_settings(deadline=None, derandomize=True, max_examples=300)
def test_pareto_front_equals_brute_force(points):
    cost, metric = [p[0] for p in points], [p[1] for p in points]
    front = pareto_front(None, cost=cost, metric=metric)
    assert front.dtype.kind == "i" and front.shape == (len(front),)
    assert front.tolist() == _brute_force_front(cost, metric)


def test_pareto_front_reads_names_from_mappings_and_records():
    bits, accuracy = jnp.array([8, 4, 2, 4], jnp.bfloat16), np.array([0.9, 0.8, 0.8, 0.7])
    records = [
        {"threshold": bits, "bits": accuracy},
        Setting(bits, accuracy),
        types.SimpleNamespace(threshold=bits, bits=accuracy),
    ]
    for record in records:
        assert pareto_front(record, cost="threshold", metric="bits").tolist() == [2, 0]
    assert pareto_front(records[0], cost=bits, metric="bits").tolist() == [2, 0]
    assert pareto_front({}, cost=[], metric=[]).tolist() == []


def test_pareto_front_errors():
    result = {"bytes": [1, 2], "accuracy": [0.5, 0.6], "confusion": np.ones((2, 3))}
    with pytest.raises(KeyError, match="size.*bytes.*accuracy"):
        pareto_front(result, cost="size", metric="accuracy")
    with pytest.raises(ValueError, match="2 and 3"):
        pareto_front(result, cost="bytes", metric=[1, 2, 3])
    with pytest.raises(ValueError, match=r"metric.*\(2, 3\)"):
        pareto_front(result, cost="bytes", metric="confusion")


def test_pareto_front_of_many_is_quick_enough():
    rng = np.random.default_rng(0)
    cost = rng.random(1_000_000)
    front = pareto_front(None, cost=cost, metric=rng.random(cost.size))  # minutes if it were quadratic
    assert np.all(np.diff(cost[front]) > 0)
