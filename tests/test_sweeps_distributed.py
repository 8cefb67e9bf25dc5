"""Sweeps over several devices and several processes; each test runs in fresh processes with virtual CPU devices."""

import os
import socket
import subprocess
import sys

import pytest

_COMMON = """
import os, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxprune.sweeps import grid, sweep

compiles = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: compiles.append(event) if event.endswith("backend_compile_duration") else None
)

def mesh_of(sizes, names, kind=AxisType.Auto):
    return jax.make_mesh(sizes, names, axis_types=(kind,) * len(sizes))

def fn(setting, params, x, scale):
    # A loop whose carry starts constant and then depends on the setting, a branchy output, a low-precision one.
    pruned = jax.tree.map(lambda w: jnp.where(jnp.abs(w) < setting["threshold"], 0, w), params)
    total = jax.lax.fori_loop(0, 3, lambda i, carry: carry + setting["bits"] * i, 0)
    y = jnp.tanh(x @ pruned["a"]) @ pruned["b"]
    return {"total": total, "mean": y.mean() * scale, "row": y[0].astype(jnp.bfloat16), "constant": jnp.ones(2)}

rng = np.random.default_rng(0)
params = {"a": rng.normal(size=(16, 8)).astype(np.float32), "b": rng.normal(size=(8, 4)).astype(np.float32)}
x = rng.normal(size=(5, 16)).astype(np.float32)
settings = grid(threshold=np.linspace(0, 2, 11), bits=[2, 4, 8])
N = 33

def check(result, want):
    assert jax.tree.structure(result) == jax.tree.structure(want)
    for key in want:
        assert isinstance(result[key], np.ndarray) and result[key].dtype == want[key].dtype, key
        assert result[key].shape[0] == N, key
        tolerance = 2e-2 if key == "row" else 1e-5
        np.testing.assert_allclose(
            result[key].astype(np.float32), want[key].astype(np.float32), rtol=tolerance, atol=tolerance
        )
"""

_EIGHT_DEVICES = (
    _COMMON
    + """
assert jax.device_count() == 8
want = sweep(fn, settings, params, x, 0.5)

def compiled_once(*args, **kwargs):
    compiles.clear()
    result = sweep(*args, **kwargs)
    assert len(compiles) == 1, len(compiles)
    sweep(*args, **kwargs)
    assert len(compiles) == 1, "the second call compiled again"
    return result

line, table = mesh_of((8,), ("sweep",)), mesh_of((2, 4), ("model", "sweep"))
if "all" in sys.argv:
    check(compiled_once(fn, settings, params, x, 0.5, mesh=line), want)
    check(compiled_once(fn, settings, params, x, 0.5, mesh=line, batch_size=100), want)
    check(compiled_once(fn, settings, params, x, 0.5, mesh=table, axis="sweep"), want)
    explicit = mesh_of((2, 4), ("model", "sweep"), AxisType.Explicit)
    check(compiled_once(fn, settings, params, x, 0.5, mesh=explicit, axis="sweep"), want)
    with jax.set_mesh(explicit):
        check(sweep(fn, settings, params, x, 0.5, mesh=explicit, axis="sweep"), want)
check(compiled_once(fn, settings, params, x, 0.5, mesh=line, batch_size=2), want)

# A model sharded over the other axis stays so: no device is given a whole kernel.
sharding = NamedSharding(table, P(None, "model"))
sharded = {"a": jax.device_put(params["a"], sharding), "b": params["b"]}
check(compiled_once(fn, settings, sharded, x, 0.5, mesh=table, axis="sweep", batch_size=3), want)
from jaxprune.sweeps import batching
placed = batching.place((sharded, x), table)
assert placed[0]["a"].sharding == sharding and placed[1].sharding.is_fully_replicated
text = batching._program(fn, False, table, "sweep").lower(
    {"threshold": np.zeros(4, np.float32), "bits": np.zeros(4, np.int32)}, (sharded, x, 0.5)
).compile().as_text()
assert "f32[16,4]" in text and "f32[16,8]" not in text

# Fewer settings than devices, and the default axis is the first.
few = {name: values[:3] for name, values in settings.items()}
N = 3
check(sweep(fn, few, params, x, 0.5, mesh=table), {name: values[:3] for name, values in want.items()})

try:
    sweep(fn, few, params, x, 0.5, mesh=table, axis="data")
except ValueError as error:
    assert "data" in str(error) and "model" in str(error), error
else:
    raise AssertionError("an unknown axis must raise")
print("passed")
"""
)

_TWO_PROCESSES = (
    _COMMON
    + """
process, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
assert jax.device_count() == 4 and jax.local_device_count() == 2
want = sweep(fn, settings, params, x, 0.5)  # each process on its own

mesh = mesh_of((4,), ("sweep",))
check(sweep(fn, settings, params, x, 0.5, mesh=mesh), want)
check(sweep(fn, settings, params, x, 0.5, mesh=mesh, batch_size=3), want)
compiles.clear()
sweep(fn, settings, params, x, 0.5, mesh=mesh)
assert not compiles

# A model sharded over devices of both processes, which no process holds as a whole.
table = mesh_of((2, 2), ("model", "sweep"))
rows = NamedSharding(table, P(None, "model"))
spread = jax.make_array_from_callback((16, 8), rows, lambda index: params["a"][index])
assert not spread.is_fully_addressable
sharded = {"a": spread, "b": params["b"]}
check(sweep(fn, settings, sharded, x, 0.5, mesh=table, axis="sweep"), want)

# Both go on from the process that kept least: here one of them lost its file.
path = os.path.join(folder, "sweep.npz")
check(sweep(fn, settings, params, x, 0.5, mesh=mesh, checkpoint=path), want)
assert os.path.exists(f"{path}.{process}")
if process == 1:
    os.unlink(f"{path}.1")
check(sweep(fn, settings, params, x, 0.5, mesh=mesh, checkpoint=path), want)
assert os.path.exists(f"{path}.{process}")
print("passed")
"""
)


def _start(script: str, devices: int, *arguments: str) -> subprocess.Popen[str]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _assert_pass(*processes: subprocess.Popen[str]) -> None:
    try:
        for process in processes:
            output, _ = process.communicate()
            assert process.returncode == 0 and "passed" in output, output
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["some", pytest.param("all", marks=pytest.mark.slow)])
def test_eight_devices_equal_one(which):
    _assert_pass(_start(_EIGHT_DEVICES, 8, which))


@pytest.mark.slow
def test_two_processes_each_get_the_whole_result(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    _assert_pass(*(_start(_TWO_PROCESSES, 2, str(process), port, str(tmp_path)) for process in range(2)))
