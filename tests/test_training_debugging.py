"""Training under the settings that people debug with; traced alone, as no value matters."""

from contextlib import ExitStack

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_training import KEY, LATENT, SLOW, TABLE, params

import jaxprune as jp
from jaxprune import schedules, training

pytestmark = pytest.mark.slow

slow = pytest.mark.slow
X = jax.ShapeDtypeStruct((2, 8), jnp.float32)
GATES = jax.ShapeDtypeStruct((8, 4), jnp.float32)
OPTIMIZERS = {
    **TABLE,
    **LATENT,
    "soft_threshold": lambda inner, p: optax.chain(inner, training.soft_threshold(optax.constant_schedule(0.1))),
    "shared_weights": lambda inner, p: training.shared_weights(inner, 3),
    "shared_weights of units": lambda inner, p: training.shared_weights(inner, 3, axis=-1),
    "injected": lambda inner, p: optax.inject_hyperparams(training.gradual_pruning, hyperparam_dtype=jnp.float32)(
        inner, schedules.polynomial(0.0, 0.5, 2, 4)
    ),
}


def loss(p, x):
    hidden = jax.nn.relu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"][None])
    return jnp.mean(hidden @ p["Dense_1"]["kernel"][:4].astype(jnp.float32))


def sparse(p, x):
    """Penalties and gates of a loss, with its gradient."""

    def penalized(p, gates):
        total = loss(training.apply_gates(p, gates, KEY), x) + training.expected_l0(p, gates)
        return total + training.l1(p) + training.group_lasso(p) + training.hoyer(p)

    gates = training.init_gates(p)
    return jax.value_and_grad(penalized, (0, 1))(p, gates), training.gate_masks(p, gates)


def quantized(p, x):
    steps = training.init_step_sizes(p, 4)
    seen = training.observe(training.init_range(), x)

    def learned(p, steps, alpha):
        return loss(training.learned_step_size(p, steps, 4), training.clip_activations(x, alpha, 4))

    return jax.grad(learned, (0, 1, 2))(p, steps, jnp.float32(1)), training.range_qparams(seen, 8)


FUNCTIONS = {
    "losses": sparse,
    "quantizers": quantized,
    "criteria": lambda p, x: [criterion(loss, p, x) for criterion in (training.snip, training.grasp, training.synflow)],
    "prune_at_start": lambda p, x: training.prune_at_start(p, 0.5, lambda p: training.snip(loss, p, x), rounds=2),
    "lottery_ticket": lambda p, x: training.lottery_ticket(lambda p, masks: (p, loss(p, x)), p, rounds=2),
    "masked_forward": lambda p, x: jax.grad(
        lambda p: loss(training.masked_forward(p, jp.prune(p, 0.5, scope="leaf").masks), x)
    )(p),
}
MODES = {
    "promotion": lambda: (jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise")),
    "leaks": lambda: (jax.checking_leaks(),),
    "x64": lambda: (jax.enable_x64(True),),
}
QUICK_LEAKS = ("gradual_pruning", "straight_through", "rigl", "shared_weights")  # everything is traced anew
ROWS = [
    pytest.param(name, mode, marks=[slow] if name in SLOW or (mode == "leaks" and name not in QUICK_LEAKS) else [])
    for name in OPTIMIZERS | FUNCTIONS
    for mode in MODES
]


def two_steps(name):
    """The parameters and the state after two updates, whose gradients have the dtypes of the parameters."""
    optimizer = OPTIMIZERS[name](optax.sgd(0.1, momentum=0.9), params(jnp.bfloat16))

    def run(values, x):
        state = optimizer.init(values)
        for _ in range(2):
            updates, state = optimizer.update(values, state, values)
            values = optax.apply_updates(values, updates)
        return values, state

    return run


@pytest.mark.parametrize("name, mode", ROWS)
def test_nothing_is_promoted_nothing_leaks_and_no_float_is_wider(name, mode):
    run, before = FUNCTIONS.get(name) or two_steps(name), params(jnp.bfloat16)
    with ExitStack() as stack:
        for context in MODES[mode]():
            stack.enter_context(context)
        found = jax.eval_shape(run, before, X)
    assert all(leaf.dtype != np.float64 for leaf in jax.tree.leaves(found))
    if name in OPTIMIZERS:
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), found[0]) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), before
        )
