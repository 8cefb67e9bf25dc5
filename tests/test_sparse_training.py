"""Static, evolving and rigged sparse training; lottery tickets."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import oracles_training
import pytest

import jaxprune as jp
from jaxprune import schedules, training

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
slow = pytest.mark.slow
PARAMS = {"a": RNG.normal(size=(12, 8)).astype(np.float32), "b": RNG.normal(size=(8, 5)).astype(np.float32)}
GRADS = [jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), PARAMS) for _ in range(20)]


def history(optimizer, steps=20):
    step = jax.jit(lambda p, s, g: (lambda u, s: (optax.apply_updates(p, u), s))(*optimizer.update(g, s, p)))
    values, state = jax.tree.map(jnp.asarray, PARAMS), optimizer.init(PARAMS)
    seen = [(PARAMS, jax.tree.map(np.asarray, training.masks_of(state)))]
    for grads in GRADS[:steps]:
        values, state = step(values, state, grads)
        seen.append(jax.tree.map(np.asarray, (values, training.masks_of(state))))
    assert step._cache_size() == 1
    return seen


def test_static_masks_have_the_count_and_stay():
    seen = history(training.static_sparse(optax.sgd(0.1, momentum=0.9), 0.8, key=KEY), steps=5)
    assert {name: int(mask.sum()) for name, mask in seen[0][1].items()} == {"a": 96 - 77, "b": 40 - 32}
    for _, masks in seen[1:]:
        chex.assert_trees_all_equal(masks, seen[0][1])
    erk = jp.masks.allocation.erdos_renyi_kernel(PARAMS, 0.8)
    masks = training.static_sparse(optax.sgd(0.1), erk, key=KEY).init(PARAMS).masks
    for name, mask in masks.items():
        assert int((~mask).sum()) == oracles.count_removed(mask.size, float(erk[name]))


@pytest.mark.parametrize("make", (training.sparse_evolution, pytest.param(training.rigl, marks=slow)))
def test_exchanges_keep_the_count_and_start_at_zero(make):
    seen = history(make(optax.sgd(0.1, momentum=0.9), 0.75, key=KEY, every=4, drop_fraction=0.5))
    exchanges = 0
    for count, ((_, before), (values, after)) in enumerate(zip(seen, seen[1:], strict=False)):
        for name in PARAMS:
            born, live = after[name] & ~before[name], before[name].sum()
            assert after[name].sum() == live
            assert (values[name][born] == 0).all()
            assert born.sum() <= int(0.5 * live) and (count > 0 and count % 4 == 0 or not born.any())
            exchanges += int(born.any())
    assert exchanges >= 6


def test_rigl_against_a_simulation():
    """The smallest live candidates go, the largest gradients elsewhere come, by counts that fall with the cosine."""
    seen = history(training.rigl(optax.sgd(0.1), 0.75, key=KEY, every=3, drop_fraction=0.6, stop_step=14))
    fraction = schedules.cosine(0.6, 0.0, 14)
    for count, ((old, before), (values, after)) in enumerate(zip(seen, seen[1:], strict=False)):
        for name in PARAMS:
            live, grad = before[name], GRADS[count][name]
            if count and count % 3 == 0 and count < 14:
                drop = int(np.float32(fraction(count)) * np.float32(live.sum()))
                candidate = oracles_training.held_sgd(old[name], grad, live, 0.1)
                expected = oracles_training.exchange(candidate, grad, live, drop)
            else:
                expected = live
            np.testing.assert_array_equal(after[name], expected, err_msg=f"{name} after step {count}")
            stayed = oracles_training.held_sgd(old[name], grad, live & expected, 0.1)
            np.testing.assert_allclose(values[name], stayed, rtol=1e-6, atol=1e-7)


def test_survivors_are_not_grown_and_odd_gradients_do_no_harm():
    """NaN gradients never grow, infinite ones do, and the count holds all the same."""
    params, grads = jnp.ones((4, 4)), jnp.asarray(np.where(np.arange(4)[:, None] > 0, np.float32(np.nan), np.inf))
    optimizer = training.rigl(optax.set_to_zero(), 0.5, key=KEY, every=1, drop_fraction=1.0)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(2):
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    masks = np.asarray(state.masks)
    assert masks.sum() == 8 and masks[0].all()


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"every": 0}, "every must be a number of steps, 1 or more; got 0"),
        ({"drop_fraction": 1.5}, r"drop_fraction must be in \[0, 1\], got 1.5"),
        ({"stop_step": -1}, "transition_steps must be an integer of 0 or more"),
    ),
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        training.rigl(optax.sgd(0.1), 0.5, key=KEY, **changes)
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\], got 2"):
        training.rigl(optax.sgd(0.1), 2.0, key=KEY).init(PARAMS)


# ---------------------------------------------------------------------------------------------------------------------
# Lottery tickets

WEIGHTS = jnp.asarray(np.random.default_rng(1).normal(size=(20, 50)), jnp.float32)


def retrain(params, masks):
    """Some steps of momentum and weight decay on a quadratic loss, under the masks."""
    optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.05, momentum=0.9), training.hold_masks(masks))

    def step(carry, number):
        params, state = carry
        updates, state = optimizer.update(params - jnp.roll(WEIGHTS, number), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(5))[0][0], None


def test_rounds_keep_800_640_and_512_of_a_thousand():
    calls, retrained = [], jax.jit(retrain)

    def train(params, masks):
        calls.append(masks)
        trained = np.asarray(retrained(params, masks)[0])
        assert (trained[~np.asarray(masks)] == 0).all()
        return trained, {"zeros": np.sum(trained == 0)}

    tickets = training.lottery_ticket(train, WEIGHTS, 0.2, rounds=3)
    assert repr(tickets) == "Tickets(1 leaves, sparsities=[0.2   0.36  0.488])"
    rounds = np.asarray(tickets.rounds)
    assert rounds.sum((1, 2)).tolist() == [800, 640, 512] and len(calls) == 3
    np.testing.assert_allclose(tickets.sparsities, [0.2, 0.36, 0.488], rtol=1e-6)
    np.testing.assert_array_equal(tickets.params, np.where(tickets.masks, WEIGHTS, 0))
    np.testing.assert_array_equal(tickets.masks, rounds[-1])
    assert not (rounds[1:] & ~rounds[:-1]).any(), "a removed weight never returns"
    assert tickets.metrics["zeros"].tolist() == [0, 200, 360], "zeros last through retraining"
    first = oracles.mask_by_sparsity(np.abs(retrained(WEIGHTS, jnp.ones(WEIGHTS.shape, bool))[0]), 0.2)
    np.testing.assert_array_equal(rounds[0], first)


def test_every_leaf_keeps_some():
    @jax.jit
    def kept(weights):
        train = lambda params, masks: (params, None)  # noqa: E731
        together = training.lottery_ticket(train, weights, 0.9, rounds=2, scope="global", min_keep=5)
        alone = training.lottery_ticket(train, weights, 0.9, rounds=1)
        return jax.tree.map(jnp.sum, (together.masks, alone.masks))

    weights = {"large": WEIGHTS, "small": np.asarray(WEIGHTS)[:2] / 100}
    assert kept(weights) == ({"small": 5, "large": 6}, {"small": 10, "large": 100})


@slow
def test_vmap_over_seeds_traces_training_once():
    seeds = jnp.stack([WEIGHTS, jnp.roll(WEIGHTS, 7)])
    train = chex.assert_max_traces(retrain, n=2)  # once, and once more for the batched carry of the loop
    chex.clear_trace_counter()
    many = jax.jit(jax.vmap(lambda params: training.lottery_ticket(train, params, 0.2, rounds=4)))(seeds)
    for i, params in enumerate(seeds):
        one = training.lottery_ticket(retrain, params, 0.2, rounds=4)
        chex.assert_trees_all_equal(many.rounds[i], one.rounds)
        chex.assert_trees_all_equal(many.params[i], one.params)


def test_errors_of_tickets():
    with pytest.raises(ValueError, match="rounds must be an integer of at least 1 .*got 0"):
        training.lottery_ticket(retrain, WEIGHTS, 0.2, rounds=0)
    with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\], got 2"):
        training.lottery_ticket(retrain, WEIGHTS, 2, rounds=1)
    with pytest.raises(TypeError, match=r"train must return \(trained params, metrics\), got "):
        training.lottery_ticket(lambda params, masks: params, WEIGHTS, rounds=1)
    with pytest.raises(TypeError, match="saliency must be a function of the parameters, got "):
        training.lottery_ticket(retrain, WEIGHTS, rounds=1, saliency=training.movement())
