"""Sharded parameters: the same bits, in the same sharding, and no device gathers the weights.

Run as a script on eight virtual CPU devices, this file makes every check and prints what failed; as a test it runs
itself once in a process of its own, because the number of devices is fixed when JAX starts.
"""

import contextlib
import json
import math
import os
import re
import subprocess
import sys
import traceback
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprune import calibration, dequantize, masks, pruning, schedules, training
from jaxprune.base import QuantSpec
from jaxprune.quantization import integers

CHECKS = {}
# shape of the leaf, shape of the mesh, how the leaf lies on it
LAYOUTS = {
    "last": ((2, 8192), (8,), P(None, "x")),
    "first": ((16, 24), (8,), P("x")),
    "both": ((16, 24), (4, 2), P("x", "y")),
    "one_of_two": ((16, 24), (4, 2), P(None, "y")),
    "two_on_one": ((16, 24), (4, 2), P(("y", "x"), None)),
    "conv": ((3, 3, 8, 16), (4, 2), P(None, None, "y", "x")),
    "vector": ((64,), (8,), P("x")),
}
TYPES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


def check(function):
    CHECKS[function.__name__] = function
    return function


def mesh_of(shape, kind):
    return jax.make_mesh(shape, ("x", "y")[: len(shape)], axis_types=(TYPES[kind],) * len(shape))


def data(shape, dtype=np.float32, seed=0):
    """Values with many ties, zeros of both signs and a NaN."""
    x = np.round(np.random.default_rng(seed).normal(size=shape) * 3) / 3
    x.reshape(-1)[1] = np.nan
    return jnp.asarray(x, dtype)


def placed(name, kind, dtype=np.float32):
    shape, mesh, spec = LAYOUTS[name]
    plain = data(shape, dtype)
    return plain, jax.device_put(plain, NamedSharding(mesh_of(mesh, kind), spec))


def gathered(compiled):
    """The largest result of an all-gather in a compiled program, in elements."""
    sizes = [0]
    for line in compiled.as_text().splitlines():
        if found := re.search(r"= (.*?) all-gather(-start|-done)?\(", line):
            shapes = re.findall(r"\w+\[([\d,]*)\]", found[1])
            sizes += [math.prod(int(n) for n in shape.split(",") if n) for shape in shapes]
    return max(sizes)


def same(result, expected):
    for got, wanted in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        assert got.dtype == wanted.dtype
        got, wanted = (np.asarray(x).astype(np.float32) for x in (got, wanted))
        np.testing.assert_array_equal(got, wanted)


def compare(function, plain, sharded, *settings, keeps=True):
    """Eager and inside another jit: the bits of the unsharded result, the input's sharding, no gathered weights."""
    expected = function(plain, *settings)
    compiled = jax.jit(function).lower(sharded, *settings).compile()
    smallest = min(leaf.size for leaf in jax.tree.leaves(sharded))
    assert gathered(compiled) < smallest, f"an all-gather of {gathered(compiled)} elements"
    for result in (function(sharded, *settings), compiled(sharded, *settings)):
        same(result, expected)
        for got, given in zip(jax.tree.leaves(result), jax.tree.leaves(sharded), strict=True) if keeps else ():
            assert got.sharding.is_equivalent_to(given.sharding, got.ndim), (got.sharding, given.sharding)


def tree(kind):
    """Leaves that lie differently."""
    mesh = mesh_of((4, 2), kind)
    plain = {"a": data((16, 24)), "b": data((8, 32), seed=1), "c": data((6, 10), seed=2)}
    specs = {"a": P("x", "y"), "b": P(None, "x"), "c": P()}
    return plain, {name: jax.device_put(plain[name], NamedSharding(mesh, specs[name])) for name in plain}


def large(kind):
    """Shards long enough to be counted in chunks."""
    plain = jnp.round(jnp.sin(jnp.arange(8 * 70_000, dtype=jnp.float32)) * 50).reshape(8, 70_000)
    return plain, jax.device_put(plain, NamedSharding(mesh_of((8,), kind), P("x")))


def fake_quant(spec, *layouts, bits=4.0):
    def check(kind):
        for name in layouts:
            compare(partial(integers.fake_quant, spec=spec), *placed(name, kind), bits)

    return check


def many_sparsities(kind):
    plain, sharded = placed("last", kind)
    sparsities = jnp.asarray([0.0, 0.2, 0.5, 0.9, 1.0])
    compare(masks.thresholds, plain, sharded, sparsities, keeps=False)
    compare(lambda x, s: jax.vmap(lambda s: masks.by_sparsity(x, s))(s), plain, sharded, sparsities, keeps=False)


BY_SPARSITY = {
    f"by_sparsity {name}": lambda kind, name=name: compare(masks.by_sparsity, *placed(name, kind), jnp.float32(0.37))
    for name in LAYOUTS
}
FUNCTIONS = BY_SPARSITY | {
    "by_sparsity large": lambda kind: compare(masks.by_sparsity, *large(kind), jnp.float32(0.5)),
    "by_sparsity global": lambda kind: compare(
        lambda params, s: masks.by_sparsity(params, s, scope="global", min_keep=1), *tree(kind), 0.6
    ),
    "many sparsities": many_sparsities,
    "prune bfloat16": lambda kind: compare(
        lambda x, s: pruning.prune(x, s).params, *placed("both", kind, jnp.bfloat16), 0.5
    ),
    "by_threshold": lambda kind: compare(masks.by_threshold, *placed("conv", kind), 0.4),
    "n_of_m": lambda kind: compare(lambda x: masks.n_of_m(x, 1, 2), *placed("both", kind)),
    "n_of_m on the other axis": lambda kind: compare(lambda x: masks.n_of_m(x, 1, 2, axis=-1), *placed("both", kind)),
    "blocks": lambda kind: compare(lambda x, s: masks.blocks(x, s, block_shape=(2, 4)), *placed("both", kind), 0.5),
    "by_unit_sparsity": lambda kind: compare(masks.by_unit_sparsity, *placed("both", kind), 0.2, keeps=False),
    "by_unit_entropy": lambda kind: compare(
        lambda x, t: masks.by_unit_entropy(x, t, bins=8), *placed("both", kind), 0.7, keeps=False
    ),
    "fixed_point": lambda kind: compare(integers.fixed_point, *placed("both", kind), -1),
    "fake_quant per tensor": fake_quant(QuantSpec(), "first", "one_of_two"),
    "fake_quant per channel": fake_quant(QuantSpec(axis=-1), "first", "one_of_two", "conv"),
    "fake_quant asymmetric": fake_quant(QuantSpec(symmetric=False, axis=-1), "first", "one_of_two"),
    "fake_quant of one bit": fake_quant(QuantSpec(axis=-1), "both", bits=1.0),
    "fake_quant by block": fake_quant(QuantSpec(block_size=8), "first", "conv"),
    "fake_quant by block of one bit": fake_quant(QuantSpec(block_size=8), "two_on_one", bits=1.0),
}
for kind in TYPES:
    for name, function in FUNCTIONS.items():
        if kind == "explicit" and name in ("by_sparsity first", "by_sparsity one_of_two", "by_sparsity vector"):
            continue  # as the others, for less time
        CHECKS[f"{name}, {kind}"] = lambda function=function, kind=kind: function(kind)


TRAINED = {
    "gradual": lambda: training.gradual_pruning(optax.adam(0.1), schedules.cubic(0.0, 0.75, 3), every=2),
    "rigl": lambda: training.rigl(optax.adam(0.1), 0.75, key=jax.random.key(0), every=2),
}


def trained(make, params):
    """Masks and weights after five steps whose gradients follow the weights."""
    optimizer = make()
    state = optimizer.init(params)
    step = jax.jit(lambda p, s, g: (lambda u, s: (optax.apply_updates(p, u), s))(*optimizer.update(g, s, p)))
    for number in range(5):
        params, state = step(params, state, jax.tree.map(lambda w, n=number: w * 0.25 * n - 0.5, params))
    return training.masks_of(state), params, state


def training_keeps_the_sharding(kind, make):
    plain = {"a": jnp.sin(jnp.arange(384.0)).reshape(16, 24), "b": jnp.cos(jnp.arange(256.0)).reshape(8, 32)}
    mesh = mesh_of((4, 2), kind)
    specs = {"a": P("x", "y"), "b": P(None, "x")}
    sharded = {name: jax.device_put(plain[name], NamedSharding(mesh, specs[name])) for name in plain}
    with jax.set_mesh(mesh) if kind == "explicit" else contextlib.nullcontext():
        masks, params, state = trained(make, sharded)
    same(masks, trained(make, plain)[0])
    for leaf in jax.tree.leaves((masks, params, state)):
        like = {given.shape: given.sharding for given in sharded.values()}.get(leaf.shape)
        assert like is None or leaf.sharding.is_equivalent_to(like, leaf.ndim), (leaf.sharding, like)


for kind in TYPES:
    for name, make in TRAINED.items():
        CHECKS[f"training, {name}, {kind}"] = lambda kind=kind, make=make: training_keeps_the_sharding(kind, make)


@check
def sharded_and_plain_arrays_where_a_mesh_is_set():
    plain, sharded = placed("first", "explicit")
    spec = QuantSpec(block_size=8)
    expected = dequantize(integers.quantize(plain, 4, spec=spec)), pruning.prune(plain, 0.5).params
    with jax.set_mesh(sharded.sharding.mesh):
        for x in (plain, sharded):
            found = dequantize(integers.quantize(x, 4, spec=spec)), pruning.prune(x, 0.5).params
            jax.tree.map(np.testing.assert_array_equal, found, expected)
            np.testing.assert_array_equal(integers.fake_quant(x, 4, spec=spec), expected[0])
            np.testing.assert_array_equal(integers.fake_quant(x, 1), integers.fake_quant(np.asarray(plain), 1))


@check
def unsharded_arrays_inside_an_explicit_mesh():
    plain = data((16, 24))
    expected = masks.by_sparsity(plain, 0.3)
    with jax.set_mesh(mesh_of((8,), "explicit")):
        same(masks.by_sparsity(plain, 0.3), expected)
        same(jax.jit(masks.by_sparsity)(plain, 0.3), expected)


@check
def shards_of_unequal_length():
    """A constraint inside a program may leave shards padded; what pads them is not counted."""
    mesh, plain = mesh_of((8,), "auto"), data((1001,))

    @jax.jit
    def constrained(x, s):
        return masks.by_sparsity(jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P("x"))), s)

    same(constrained(plain, 0.3), masks.by_sparsity(plain, 0.3))


@check
def the_search_for_gathers_sees_one():
    mesh = mesh_of((8,), "auto")
    x = jax.device_put(data((64,)), NamedSharding(mesh, P("x")))
    everywhere = jax.jit(lambda x: x * 2, out_shardings=NamedSharding(mesh, P()))
    assert gathered(everywhere.lower(x).compile()) == 64


@check
def statistics_are_summed_over_devices():
    params, x = {"a": data((16, 8)), "b": data((8, 4), seed=1)}, data((8, 16), seed=2).at[0, 1].set(0)
    params["a"] = params["a"].at[0, 1].set(0)
    params["b"] = params["b"].at[0, 1].set(0)

    def network(params, x):
        return jnp.tanh(x @ params["a"]) @ params["b"]

    how = {"key": jax.random.key(0), "want": ["gram", "histogram"]}
    wanted = calibration.collect(network, params, x, **how)
    for kind in TYPES:
        mesh = mesh_of((8,), kind)
        whole = jax.device_put(params, NamedSharding(mesh, P()))
        found = calibration.collect(network, whole, jax.device_put(x, NamedSharding(mesh, P("x"))), **how)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@check
def what_is_fitted_to_data_lies_as_it_did():
    """Layers of a scan and a leaf alone, on a mesh that is set: nearly all entries are those without a mesh."""
    random = np.random.default_rng(0)
    params, x = {"layers": random.normal(size=(2, 16, 16)), "last": random.normal(size=(16, 8))}, data((64, 16))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)

    def network(params, x):
        return jax.lax.scan(lambda x, own: (jnp.tanh(x @ own), None), x, params["layers"])[0] @ params["last"]

    stats = calibration.collect(network, params, x, key=jax.random.key(0))
    functions = (
        lambda p, s: calibration.fake_quant(p, s, 4),
        lambda p, s: calibration.prune(p, s, 0.5).params,
        lambda p, s: jax.tree.map(
            lambda one: one.codes, calibration.encode(p, s, 0.3), is_leaf=lambda x: hasattr(x, "codes")
        ),
    )
    for kind in TYPES:
        mesh = mesh_of((4, 2), kind)
        lying = {"layers": NamedSharding(mesh, P(None, "x", "y")), "last": NamedSharding(mesh, P("y"))}
        placed = {name: jax.device_put(leaf, lying[name]) for name, leaf in params.items()}
        for function in functions:
            wanted = function(params, stats)
            with jax.set_mesh(mesh):
                found = function(placed, stats)
            for name in params:
                assert np.isclose(found[name], wanted[name], rtol=1e-3, atol=1e-3).mean() >= 0.99
                assert found[name].sharding.is_equivalent_to(lying[name], found[name].ndim)


# The others are as these; the slow tests make all of them.
QUICK = (
    "by_sparsity both, explicit",
    "n_of_m, auto",
    "sharded_and_plain_arrays_where_a_mesh_is_set",
    "the_search_for_gathers_sees_one",
)


def main(names):
    results = {}
    for name in names:
        try:
            CHECKS[name]()
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc(limit=-6)
    print(json.dumps(results))


@pytest.mark.parametrize("names", [QUICK, pytest.param((), marks=pytest.mark.slow)], ids=["some", "all"])
def test_sharded_parameters(names):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, __file__, *names], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout.splitlines()[-1])
    failed = {name: error for name, error in results.items() if error}
    assert set(results) == set(names or CHECKS) and len(CHECKS) > 40
    assert not failed, f"failed: {sorted(failed)}\n" + "\n".join(f"{name}:\n{error}" for name, error in failed.items())


if __name__ == "__main__":
    main(sys.argv[1:] or CHECKS)
