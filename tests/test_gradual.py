"""Masks that follow a schedule: when they change, what they hold, and the forward pass over latent weights."""

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

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(10, 8)).astype(np.float32)
GRADS = RNG.normal(size=(120, 10, 8)).astype(np.float32)


def history(optimizer, params=KERNEL, grads=GRADS, steps=None):
    """The weights and the masks after each step."""
    step = jax.jit(lambda p, s, g: (lambda u, s: (optax.apply_updates(p, u), s))(*optimizer.update(g, s, p)))
    params, seen = jnp.asarray(params), []
    state = optimizer.init(params)
    for grad in grads[:steps]:
        params, state = step(params, state, grad)
        seen.append((np.asarray(params), np.asarray(training.masks_of(state))))
    assert step._cache_size() == 1
    return seen


def removed(seen):
    return [int((~mask).sum()) for _, mask in seen]


@pytest.mark.parametrize("revive", (True, False))
def test_against_a_simulation(revive):
    """SGD in NumPy: masks of the candidate weights every 7 steps and when the schedule ends, at step 40."""
    level = schedules.cubic(0.0, 0.8, 40)
    seen = history(training.gradual_pruning(optax.sgd(0.5), level, every=7, revive=revive), steps=60)
    weights, keep = KERNEL, np.ones(KERNEL.shape, bool)
    came_back = False
    for count, (grad, (values, mask)) in enumerate(zip(GRADS, seen, strict=False)):
        dense = grad if revive else np.where(keep, grad, np.float32(0))
        if count % 7 == 0 or count == 40:
            scores = np.abs(weights - np.float32(0.5) * dense)
            new = oracles.mask_by_sparsity(scores if revive else np.where(keep, scores, -np.inf), float(level(count)))
            came_back |= bool((new & ~keep).any())
            keep = new if revive else new & keep
        weights = oracles_training.held_sgd(weights, grad, keep, 0.5)
        np.testing.assert_array_equal(mask, keep, err_msg=f"masks of step {count}")
        np.testing.assert_allclose(values, weights, rtol=1e-5, atol=1e-6)
    assert came_back == revive


def test_the_last_level_is_never_missed():
    """Cubic from 0 to 0.8 in 100 steps, masks every 30: the count after step 100 is the final one."""
    seen = removed(history(training.gradual_pruning(optax.sgd(0.1), schedules.cubic(0.0, 0.8, 100), every=30)))
    assert seen[60:90] == [seen[60]] * 30 and seen[60] < 64
    assert seen[100:] == [64] * 20


@pytest.mark.parametrize(("schedule", "every"), ((0.5, 100), (schedules.constant(0.5), 100), (0.5, None)))
def test_the_first_step_is_an_update_step(schedule, every):
    seen = history(training.gradual_pruning(optax.sgd(0.1), schedule, every=every), steps=7)
    assert removed(seen) == [40] * 7
    chex.assert_trees_all_equal(*[mask for _, mask in seen])


def test_a_constant_sparsity_never_multiplies_up():
    """Ten masks at 0.5 from fresh scores: always half; and a weight whose score rises comes back."""
    grads = np.zeros((10, 4), np.float32)
    grads[5, 0] = -100.0
    seen = history(training.gradual_pruning(optax.sgd(1.0), 0.5), np.float32([0.1, 3.0, 2.0, 0.2]), grads)
    assert removed(seen) == [2] * 10
    assert not seen[4][1][0] and seen[5][1][0] and seen[5][0][0] == 100
    fixed = history(training.gradual_pruning(optax.sgd(1.0), 0.5, revive=False), np.float32([0.1, 3, 2, 0.2]), grads)
    assert not fixed[-1][1][0]


def test_a_kept_weight_that_is_zero_still_trains():
    optimizer = optax.chain(optax.sgd(1.0), training.hold_masks(jnp.array([True, True, False])))
    params = jnp.array([0.0, 1.0, 5.0])
    updates, _ = optimizer.update(jnp.ones(3), optimizer.init(params), params)
    assert optax.apply_updates(params, updates).tolist() == [-1, 0, 0]


def test_dense_training_then_masks():
    """Dense, then 0.8 removed, then 50 steps each of Adam and of momentum with weight decay."""
    dense = optax.chain(optax.adam(0.1), training.hold_masks(jnp.ones((), bool)))
    params = {"kernel": jnp.asarray(history(dense, steps=20)[-1][0])}
    pruned, masks = jp.prune(params, 0.8, scope="global")
    gone = ~np.asarray(masks["kernel"])
    applied = lambda params, updates, state: (optax.apply_updates(params, updates), state)  # noqa: E731
    for inner in (optax.adam(0.01), optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))):
        optimizer = optax.chain(inner, training.hold_masks(masks))
        values, state = pruned, optimizer.init(pruned)
        step = jax.jit(lambda p, s, g, o=optimizer: applied(p, *o.update({"kernel": g}, s, p)))
        for grad in GRADS[:50]:
            values, state = step(values, state, grad)
            assert (np.asarray(values["kernel"])[gone] == 0).all()
        assert (np.asarray(values["kernel"]) != np.asarray(pruned["kernel"]))[~gone].all()


def test_bfloat16_gradients_of_float32_weights():
    """The update takes the weights' dtype: in bfloat16 it could not cancel them."""
    params = jnp.float32([0.123456789, 1.0])
    optimizer = training.hold_masks(jnp.array([False, True]))
    updates, _ = optimizer.update(jnp.bfloat16([1, 1]), optimizer.init(params), params)
    assert updates.dtype == jnp.float32 and optax.apply_updates(params, updates).tolist() == [0, 2]


def test_one_shot_prunes_at_its_step_and_never_again():
    seen = history(training.one_shot(optax.sgd(0.1), 0.7, step=5), steps=12)
    assert removed(seen) == [0] * 5 + [56] * 7
    chex.assert_trees_all_equal(*[mask for _, mask in seen[5:]])


def test_phases_hold_masks_in_sparse_phases_and_ends_sparse():
    optimizer = training.gradual_pruning(optax.sgd(0.5), schedules.alternating(0.75, 3, 2, 4, 17), every=None)
    seen = history(optimizer, steps=25)
    expected = [oracles_training.alternating(count, 60, 3, 2, 4, 17) for count in range(25)]
    assert removed(seen) == expected
    masks = [mask for _, mask in seen]
    assert (masks[4] == masks[5]).all() and (masks[9] == masks[10]).all() and (masks[5] != masks[9]).any()
    assert (seen[6][0][~masks[5]] != 0).all(), "removed weights train again from 0"


def test_patterns_and_units_follow_the_schedule():
    keep = history(training.gradual_pruning(optax.sgd(0.1), 0.5, scope=lambda s, _: jp.masks.n_of_m(s, 1, 2)))[-1][1]
    assert (keep.reshape(5, 2, 8).sum(1) == 1).all()
    units = training.gradual_pruning(
        optax.sgd(0.1), schedules.cubic(0.0, 0.5, 10), saliency=jp.saliency.unit_norm, every=4, revive=False
    )
    seen = history(units, steps=12)
    assert seen[-1][1].shape == (1, 8) and seen[-1][1].sum() == 4
    for (_, before), (values, after) in zip(seen, seen[1:], strict=False):
        assert not (after & ~before).any() and (values[:, ~after[0]] == 0).all()


def test_criteria_with_gradients_and_with_a_memory():
    """First masks: |w g| of the step; -sum w g; w**2 E[g**2], against NumPy."""
    grad, rate = GRADS[0], np.float32(0.1)
    after = KERNEL - rate * grad
    expected = {
        "gradient": np.abs(after * grad),
        "movement": -KERNEL * grad,
        "fisher": after**2 * grad**2,
    }
    criteria = {
        "gradient": jp.saliency.gradient,
        "movement": training.movement(),
        "fisher": training.running_fisher(0.5),
    }
    for name, criterion in criteria.items():
        mask = history(training.gradual_pruning(optax.sgd(0.1), 0.5, saliency=criterion), steps=1)[0][1]
        np.testing.assert_array_equal(mask, oracles.mask_by_sparsity(expected[name], 0.5), err_msg=name)


def test_movement_gathers_over_steps():
    criterion, memory, weights = training.movement(), np.zeros(KERNEL.shape), KERNEL
    state = criterion.init(jnp.asarray(KERNEL))
    for grad in GRADS[:5]:
        state = criterion.update(state, jnp.asarray(weights), jnp.asarray(grad))
        memory -= np.float64(weights) * grad
        weights = weights - np.float32(0.1) * grad
    np.testing.assert_allclose(criterion.scores(state, None, None), memory, rtol=1e-5, atol=1e-6)


def test_straight_through_keeps_latent_weights():
    """The loss sees masked weights, all of them get its gradient, the decay draws masked ones towards 0."""
    optimizer = training.straight_through(optax.sgd(1.0), 0.5, decay=0.25)
    params = jnp.array([4.0, 3.0, 2.0, 1.0])
    state = optimizer.init(params)

    def loss(params, masks):
        return jnp.sum(training.masked_forward(params, masks) * jnp.array([1.0, 2.0, 3.0, 4.0]))

    grads = jax.grad(loss)(params, jnp.array([True, True, False, False]))
    assert grads.tolist() == [1, 2, 3, 4]
    _, state = optimizer.update(jnp.zeros(4), state, params)
    assert training.masks_of(state).tolist() == [True, True, False, False]
    updates, state = optimizer.update(jnp.zeros(4), state, params)
    assert optax.apply_updates(params, updates).tolist() == [4, 3, 1.5, 0.75]
    assert training.masked_forward(jnp.array([jnp.nan, -1.0]), jnp.array([False, False])).tolist() == [0, 0]
    assert not np.signbit(training.masked_forward(jnp.array([-1.0]), jnp.array([False])))[0]


def test_masks_of_several_states_and_of_none():
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    rows = {"a": jnp.array([[True, True], [False, False]]), "b": jnp.ones((), bool)}
    columns = {"a": jnp.array([[True, False]]), "b": jnp.array([[False, True]])}
    optimizer = optax.chain(training.hold_masks(rows), training.hold_masks(columns))
    masks = training.masks_of(optimizer.init(params))
    assert masks["a"].tolist() == [[True, False], [False, False]] and masks["b"].tolist() == [[False, True]]
    with pytest.raises(ValueError, match="no masks in an optimizer state of type tuple"):
        training.masks_of(optax.adam(0.1).init(params))


def test_a_mask_of_no_rank_may_remove_a_whole_leaf():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    optimizer = optax.chain(
        optax.sgd(0.1), training.hold_masks({"kernel": jnp.zeros((), bool), "bias": jnp.ones((), bool)})
    )
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    values = optax.apply_updates(params, updates)
    assert (values["kernel"] == 0).all() and (values["bias"] != 0).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    (
        (lambda: training.gradual_pruning(optax.sgd(1), 1.5), ValueError, r"sparsity must be in \[0, 1\], got 1.5"),
        (lambda: training.gradual_pruning(optax.sgd(1), 0.5, every=0), ValueError, "every must be .* got 0"),
        (lambda: training.gradual_pruning(optax.sgd(1), 0.5, scope="all"), ValueError, "scope must be .* got 'all'"),
        (lambda: training.gradual_pruning(optax.sgd(1), 0.5, saliency=3), TypeError, "saliency must be .* got 3"),
        (lambda: training.straight_through(optax.sgd(1), 0.5, decay=-1), ValueError, "decay must be in .* got -1"),
        (lambda: training.running_fisher(1.0), ValueError, "decay must be in"),
        (
            lambda: training.gradual_pruning(optax.sgd(1), 0.5, where="x*").init({"a": jnp.ones((2, 2))}),
            ValueError,
            "pattern 'x.' matches no leaf",
        ),
        (
            lambda: training.hold_masks({"a": jnp.ones((3, 2), bool)}).init({"a": jnp.ones((2, 2))}),
            ValueError,
            r"the mask of 'a' has shape \(3, 2\)",
        ),
        (
            lambda: training.hold_masks({"b": jnp.ones((2, 2), bool)}).init({"a": jnp.ones((2, 2))}),
            ValueError,
            "params and masks differ in structure",
        ),
        (lambda: training.hold_masks(jnp.ones((2, 2))).init(jnp.ones((2, 2))), TypeError, "masks are bool"),
        (
            lambda: training.gradual_pruning(optax.sgd(1), 0.5, scope=lambda s, _: jp.masks.n_of_m(s, 2, 4)).init(
                {"a": jnp.ones((6, 2))}
            ),
            ValueError,
            "'a': axis -2 has length 6",
        ),
    ),
)
def test_errors_name_what_is_wrong(make, error, message):
    with pytest.raises(error, match=message):
        make()
