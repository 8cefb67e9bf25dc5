"""What do masks add to a training step, and what does training many sparsities at once save?

Steps of LeNet-300-100 under Adam: plain, with held masks, and pruned gradually with new masks every 100 steps. Then 16
sparsities of a small MLP, compile time counted: one vmapped program, against 16 runs of a loop over a jitted step and
against 16 runs of a scanned loop (both compiled once, with the sparsity as an argument).
"""

import sys
from os.path import dirname

if not __package__:  # run as a file: its directory leads the path, and select.py would hide the standard module
    sys.path[0] = dirname(dirname(__file__))

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from benchmarks._report import Table, Target, options, report
from benchmarks._timer import Case, measure, ratio


def main() -> None:
    arguments = options(__doc__)
    small = arguments.small
    steps, batch = (8, 16) if small else (200, 100)
    cases = [_steps(name, make, steps, batch) for name, make in _optimizers(small).items()]
    single = measure(*cases, seconds=12)
    runs = {"sparsities": 16, "steps": 20 if small else 1000, "sizes": (64, 10) if small else (64, 64, 32, 10)}
    many = measure(*(Case(f.__name__.strip("_").replace("_", " "), partial(f, **runs)) for f in _WAYS), seconds=20)
    plain, held, gradual = single.values()
    vmapped, scanned, looped = many.values()
    targets = [
        Target("held masks / plain", ratio(held, plain), "<=", 1.05),
        Target("gradual pruning every 100 steps / plain", ratio(gradual, plain), "<=", 1.08),
        Target("loop over a jitted step / vmapped", ratio(looped, vmapped), ">=", 2),
        Target("scanned loop / vmapped", ratio(scanned, vmapped), ">=", 1),
    ]
    tables = [
        Table(f"{steps} steps of LeNet-300-100, batches of {batch}, Adam", single),
        Table("16 sparsities of a small MLP, compile time counted", many),
    ]
    report(arguments, "training_speed", {"steps": steps, "batch": batch, **runs}, tables, targets)


def _optimizers(small: bool) -> dict[str, Any]:
    """Optimizers made for parameters."""
    schedule = jp.schedules.cubic(0.0, 0.9, 4 if small else 1000)
    every = 4 if small else 100
    return {
        "plain": lambda params: optax.adam(1e-3),
        "held masks": lambda params: optax.chain(optax.adam(1e-3), jp.training.hold_masks(jp.prune(params, 0.9).masks)),
        "gradual pruning": lambda params: jp.training.gradual_pruning(optax.adam(1e-3), schedule, every=every),
    }


def _steps(name: str, make: Any, steps: int, batch: int) -> Case:
    """A number of steps, one call of a jitted function each, from where the last call ended."""
    params = _mlp((784, 300, 100, 10), jax.random.key(0))
    optimizer = make(params)
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(batch, 784)), jnp.float32), jnp.asarray(rng.integers(0, 10, batch))
    step = jax.jit(partial(_step, optimizer), donate_argnums=(0, 1))
    state = [jax.tree.map(jnp.copy, params), optimizer.init(params)]

    def call() -> Any:
        for _ in range(steps):
            state[:] = step(*state, x, y)
        return state[0]

    return Case(name, call)


def _mlp(sizes: tuple[int, ...], key: jax.Array) -> Any:
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"kernel": jax.random.normal(k, (i, o)) * np.sqrt(2 / i), "bias": jnp.zeros(o)}
        for k, i, o in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def _loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    logits = x @ params[-1]["kernel"] + params[-1]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def _step(optimizer: Any, params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
    updates, state = optimizer.update(jax.grad(_loss)(params, x, y), state, params)
    return optax.apply_updates(params, updates), state


def _small_run(steps: int, sizes: tuple[int, ...]) -> Any:
    """Parameters, batches, and the optimizer of one run of the small MLP."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(steps, 64, 64)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 10, (steps, 64)))

    def optimizer(sparsity: Any) -> Any:
        schedule = jp.schedules.cubic(0.0, sparsity, steps * 3 // 4)
        return jp.training.gradual_pruning(optax.adam(1e-3), schedule, every=100)

    return _mlp(sizes, jax.random.key(0)), x, y, optimizer


def _train(params: Any, x: jax.Array, y: jax.Array, optimizer: Any, sparsity: Any) -> Any:
    def body(carry: Any, batch: Any) -> Any:
        return _step(optimizer(sparsity), *carry, *batch), None

    return jax.lax.scan(body, (params, optimizer(sparsity).init(params)), (x, y))[0][0]


def _vmapped(sparsities: int, steps: int, sizes: tuple[int, ...]) -> Any:
    params, x, y, optimizer = _small_run(steps, sizes)
    train = jax.jit(lambda s, params, x, y: jax.vmap(lambda s: _train(params, x, y, optimizer, s))(s))
    return train(jnp.linspace(0, 0.95, sparsities), params, x, y)


def _scanned(sparsities: int, steps: int, sizes: tuple[int, ...]) -> Any:
    params, x, y, optimizer = _small_run(steps, sizes)
    train = jax.jit(lambda s, params, x, y: _train(params, x, y, optimizer, s))
    return [train(s, params, x, y) for s in jnp.linspace(0, 0.95, sparsities)]


def _looped(sparsities: int, steps: int, sizes: tuple[int, ...]) -> Any:
    first, x, y, optimizer = _small_run(steps, sizes)
    init = jax.jit(lambda params, s: optimizer(s).init(params))
    step = jax.jit(lambda params, state, x, y, s: _step(optimizer(s), params, state, x, y))
    trained = []
    for s in jnp.linspace(0, 0.95, sparsities):
        params, state = first, init(first, s)
        for i in range(steps):
            params, state = step(params, state, x[i], y[i], s)
        trained.append(params)
    return trained


_WAYS = (_vmapped, _scanned, _looped)

if __name__ == "__main__":
    main()
