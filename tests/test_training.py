"""What every transformation of ``jaxprune.training`` that holds masks promises, in one table."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import orbax.checkpoint as checkpoint
import pytest
import strategies
from flax import nnx, serialization
from flax.training.train_state import TrainState
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxprune as jp
from jaxprune import schedules, training

KEY = jax.random.key(3)
CUBIC = schedules.cubic(0.0, 0.75, 8)


def two_of_four(scores, sparsity):
    return jp.masks.n_of_m(scores, 2, 4)


def tiles(scores, sparsity):
    return jp.masks.blocks(scores, sparsity, block_shape=(2, 2))


def fixed(params):
    return jp.prune(params, 0.75, scope="leaf").masks


# name -> (inner, params) -> transformation. The masks of all of them end with three quarters of each kernel removed,
# those of the exceptions in SPARSITY apart.
TABLE = {
    "hold_masks": lambda inner, p: optax.chain(inner, training.hold_masks(fixed(p))),
    "gradual_pruning": lambda inner, p: training.gradual_pruning(inner, CUBIC, every=3),
    "gradual_pruning, each step": lambda inner, p: training.gradual_pruning(inner, 0.75),
    "gradual_pruning, for good": lambda inner, p: training.gradual_pruning(inner, CUBIC, every=3, revive=False),
    "gradual_pruning, global": lambda inner, p: training.gradual_pruning(inner, CUBIC, every=3, scope="global"),
    "gradual_pruning, 2:4": lambda inner, p: training.gradual_pruning(inner, 0.5, every=3, scope=two_of_four),
    "gradual_pruning, blocks": lambda inner, p: training.gradual_pruning(inner, CUBIC, every=3, scope=tiles),
    "gradual_pruning, units": lambda inner, p: training.gradual_pruning(
        inner, CUBIC, every=3, saliency=jp.saliency.unit_norm
    ),
    "gradual_pruning, gradients": lambda inner, p: training.gradual_pruning(
        inner, CUBIC, every=3, saliency=jp.saliency.gradient
    ),
    "gradual_pruning, movement": lambda inner, p: training.gradual_pruning(
        inner, CUBIC, every=3, saliency=training.movement()
    ),
    "gradual_pruning, fisher": lambda inner, p: training.gradual_pruning(
        inner, CUBIC, every=3, saliency=training.running_fisher(0.9)
    ),
    "one_shot": lambda inner, p: training.one_shot(inner, 0.75, step=4),
    "gradual_pruning, in phases": lambda inner, p: training.gradual_pruning(
        inner, schedules.alternating(0.75, 2, 2, 1, 9), every=None
    ),
    "gradual_pruning, some stay": lambda inner, p: training.gradual_pruning(
        inner, CUBIC, every=3, scope="global", min_keep=2
    ),
    "static_sparse": lambda inner, p: training.static_sparse(inner, 0.75, key=KEY),
    "sparse_evolution": lambda inner, p: training.sparse_evolution(inner, 0.75, key=KEY, every=3),
    "rigl": lambda inner, p: training.rigl(inner, 0.75, key=KEY, every=3, stop_step=20),
}
SPARSITY = {"gradual_pruning, 2:4": 0.5}
# Parameters stay dense under these; what they hold is for the forward pass.
LATENT = {"straight_through": lambda inner, p: training.straight_through(inner, CUBIC, every=3, decay=0.1)}

STEPS = 12
# Near relatives of rows that every run takes.
SLOW = {
    *("gradual_pruning, each step", "gradual_pruning, gradients", "gradual_pruning, fisher", "gradual_pruning, blocks"),
    *("gradual_pruning, 2:4", "gradual_pruning, units", "gradual_pruning, some stay", "gradual_pruning, for good"),
    *("gradual_pruning, in phases", "one_shot", "static_sparse"),
    *("apply_if_finite", "chain", "masked, held", "masked, tree of sparsities"),
    *("MultiSteps inside", "inject_hyperparams inside", "apply_if_finite inside"),
}


def rows(*names, slow=SLOW):
    """A test for each of the names."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in names]


def params(dtype=jnp.float32):
    """Two kernels and a bias; the second kernel may have another dtype."""
    draw = np.random.default_rng(0).normal(size=(2, 8, 4)).astype(np.float32)
    return {
        "Dense_0": {"kernel": jnp.asarray(draw[0]), "bias": jnp.asarray(draw[1, 0])},
        "Dense_1": {"kernel": jnp.asarray(draw[1], dtype)},
    }


def grads_at(step, like):
    """Dense gradients of a step, the same however it is run."""
    key = jax.random.fold_in(jax.random.key(1), step)
    return jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape).astype(leaf.dtype), like)


def step_of(optimizer):
    def step(carry, number):
        values, state = carry
        updates, state = optimizer.update(grads_at(number, values), state, values)
        return optax.apply_updates(values, updates), state

    return step


def train(optimizer, values, steps=STEPS):
    step, carry = jax.jit(step_of(optimizer)), (values, optimizer.init(values))
    for number in range(steps):
        carry = step(carry, number)
    assert step._cache_size() == 1
    return carry


def assert_held(values, state):
    for value, mask in zip(jax.tree.leaves(values), jax.tree.leaves(training.masks_of(state, values)), strict=True):
        if mask.ndim:
            removed = np.asarray(value)[~np.broadcast_to(mask, value.shape)]
            assert (removed == 0).all() and not np.signbit(np.float32(removed)).any()
        else:
            assert mask and value.ndim == 1


def forms(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)


def test_every_transformation_has_a_row():
    named = {name.split(",")[0] for name in TABLE} | set(LATENT)
    made = {name for name in training.__all__ if name in named}
    other = {"RunningSaliency", "masks_of", "masked_forward", "lottery_ticket", "movement", "running_fisher"}
    assert named == made and not made & other
    assert made | other <= set(training.__all__)


@pytest.mark.parametrize("name", rows(*TABLE, *LATENT))
def test_zeros_are_exact_and_a_resumed_run_equals_an_unbroken_one(name):
    """Momentum and weight decay, float32 and bfloat16: zeros stay, kept weights move, no dtype or trace changes.

    Half-way the run goes through flax msgpack, and what comes back trains on to the same bits.
    """
    before = params(jnp.bfloat16)
    decayed = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))
    optimizer = {**TABLE, **LATENT}[name](optax.chain(optax.clip_by_global_norm(5.0), decayed), before)
    template = (before, optimizer.init(before))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(template[1]))
    step, carry, seen = jax.jit(step_of(optimizer)), template, []
    for number in range(STEPS):
        if number == 5:
            stored = serialization.to_bytes(carry)
        carry = step(carry, number)
        assert forms(carry) == forms(template)
        if name in TABLE:
            assert_held(*carry)
        seen.append(carry[0])

    masks = training.masks_of(carry[1])
    assert jp.masks.sparsity_of(masks, before) == SPARSITY.get(name, 0.75)
    moved = np.asarray(seen[-1]["Dense_0"]["kernel"] != seen[-3]["Dense_0"]["kernel"])
    assert moved[np.broadcast_to(masks["Dense_0"]["kernel"], moved.shape)].all()
    assert (seen[-1]["Dense_0"]["bias"] != before["Dense_0"]["bias"]).all()

    again = jax.tree.map(jnp.asarray, serialization.from_bytes(template, stored))
    assert jax.tree.structure(again) == jax.tree.structure(template) and forms(again) == forms(template)
    for number in range(5, STEPS):
        again = step(again, number)
    chex.assert_trees_all_equal(again, carry)
    assert step._cache_size() == 1


@pytest.mark.parametrize(
    "name",
    rows(
        *("hold_masks", "gradual_pruning", "gradual_pruning, in phases", "sparse_evolution", "rigl"),
        slow=("hold_masks", "gradual_pruning, in phases", "sparse_evolution", "rigl"),
    ),
)
def test_eager_jit_and_scan_give_the_same(name):
    before = params()
    optimizer = TABLE[name](optax.sgd(0.1), before)
    step = step_of(optimizer)
    eager = (before, optimizer.init(before))
    for number in range(STEPS):
        eager = step(eager, number)
    scanned = jax.jit(lambda carry: jax.lax.scan(lambda c, n: (step(c, n), None), carry, jnp.arange(STEPS))[0])(
        (before, optimizer.init(before))
    )
    for other in (train(optimizer, before), scanned):
        assert jax.tree.structure(other) == jax.tree.structure(eager)
        chex.assert_trees_all_equal(training.masks_of(other[1]), training.masks_of(eager[1]))
        chex.assert_trees_all_close(other[0], eager[0], rtol=1e-5, atol=1e-6)


def test_orbax_restores_the_state(tmp_path):
    before = params()
    optimizer = TABLE["rigl"](optax.adam(0.01), before)
    carry = train(optimizer, before, steps=4)
    with checkpoint.StandardCheckpointer() as writer:
        writer.save(tmp_path / "run", carry)
        writer.wait_until_finished()
        again = writer.restore(tmp_path / "run", jax.eval_shape(lambda: (before, optimizer.init(before))))
    assert jax.tree.structure(again) == jax.tree.structure(carry)
    chex.assert_trees_all_equal(again, carry)


PRUNER = TABLE["gradual_pruning"]
KERNEL_0 = {"Dense_0": {"kernel": True, "bias": False}, "Dense_1": {"kernel": False}}
# name -> params -> (optimizer, overall sparsity of the leaves that have masks)
WRAPPED = {
    "chain": lambda p: (optax.chain(optax.clip_by_global_norm(1.0), PRUNER(optax.adam(0.01), p)), 0.75),
    "masked": lambda p: (optax.masked(PRUNER(optax.adam(0.01), p), KERNEL_0), 0.75),
    "masked, held": lambda p: (
        optax.chain(optax.adam(0.01), optax.masked(training.hold_masks(fixed(p)), KERNEL_0)),
        0.75,
    ),
    "masked, tree of sparsities": lambda p: (
        optax.masked(
            training.rigl(optax.adam(0.01), {"Dense_0": 0.5, "Dense_1": {"kernel": 0.25}}, key=KEY, every=3), KERNEL_0
        ),
        0.5,
    ),
    "multi_transform": lambda p: (
        optax.multi_transform(
            {
                "a": PRUNER(optax.adam(0.01), p),
                "b": training.static_sparse(optax.sgd(0.1), 0.25, key=KEY),
            },
            {"Dense_0": "a", "Dense_1": "b"},
        ),
        0.5,
    ),
    "MultiSteps": lambda p: (optax.MultiSteps(training.gradual_pruning(optax.adam(0.01), 0.75), 2), 0.75),
    "MultiSteps inside": lambda p: (
        optax.chain(optax.MultiSteps(optax.adam(0.01), 2).gradient_transformation(), training.hold_masks(fixed(p))),
        0.75,
    ),
    "inject_hyperparams": lambda p: (
        optax.inject_hyperparams(training.gradual_pruning, hyperparam_dtype=jnp.float32)(
            optax.adam(0.01), CUBIC, every=3
        ),
        0.75,
    ),
    "inject_hyperparams inside": lambda p: (PRUNER(optax.inject_hyperparams(optax.adam)(0.01), p), 0.75),
    "apply_if_finite": lambda p: (optax.apply_if_finite(PRUNER(optax.adam(0.01), p), 3), 0.75),
    "apply_if_finite inside": lambda p: (PRUNER(optax.apply_if_finite(optax.adam(0.01), 3), p), 0.75),
    "tree_map_params": lambda p: (PRUNER(optax.chain(optax.scale_by_adam(), optax.scale(-0.01)), p), 0.75),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", rows(*WRAPPED))
def test_inside_and_around_the_wrappers_of_optax(name):
    before = params()
    optimizer, sparsity = WRAPPED[name](before)
    values, state = before, optimizer.init(before)
    step = jax.jit(step_of(optimizer))
    for number in range(STEPS):
        values, state = step((values, state), number)
        if number >= 2:  # by then the first update of MultiSteps has come
            for value, mask in zip(*map(jax.tree.leaves, (values, training.masks_of(state, values))), strict=True):
                assert (np.where(mask, 0, value) == 0).all()
    masks = training.masks_of(state, values)
    chex.assert_trees_all_equal_structs(masks, values)
    assert jp.masks.sparsity_of(masks, values) == sparsity
    if name == "tree_map_params":
        doubled = optax.tree_map_params(optimizer, lambda leaf: leaf * 2, state)
        assert jax.tree.structure(doubled) == jax.tree.structure(state)


def test_a_sparsity_that_is_injected_can_be_changed_while_training():
    before = params()
    optimizer = optax.inject_hyperparams(training.gradual_pruning)(optax.sgd(0.1), 0.25, every=100)
    state, step = optimizer.init(before), jax.jit(step_of(optimizer))
    values, state = step((before, state), 0)
    assert jp.masks.sparsity_of(training.masks_of(state), values) == 0.25
    state.hyperparams["schedule"] = jnp.float32(0.5)
    values, state = step((values, state), 1)
    assert jp.masks.sparsity_of(training.masks_of(state), values) == 0.5, "a new level does not wait for step 100"
    assert step._cache_size() == 1


@pytest.mark.parametrize("name", rows("gradual_pruning", "rigl", slow=["rigl"]))
def test_flax_train_state(name):
    before = params()
    state = TrainState.create(apply_fn=None, params=before, tx=TABLE[name](optax.adam(0.01), before))
    step = jax.jit(lambda state, number: state.apply_gradients(grads=grads_at(number, state.params)))
    for number in range(STEPS):
        state = step(state, number)
        assert_held(state.params, state.opt_state)
    assert jp.masks.sparsity_of(training.masks_of(state.opt_state), state.params) == 0.75


class Network(nnx.Module):
    def __init__(self, rngs):
        self.first, self.norm = nnx.Linear(8, 16, rngs=rngs), nnx.BatchNorm(16, rngs=rngs)
        self.last = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x))))


@pytest.mark.parametrize(
    "name", rows("hold_masks", "gradual_pruning", "sparse_evolution", slow=["hold_masks", "sparse_evolution"])
)
def test_nnx_optimizer(name):
    model = Network(nnx.Rngs(0))
    transformation = TABLE[name](optax.adam(0.01), nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        optimizer.update(model, nnx.grad(lambda model: jnp.mean(model(x) ** 2))(model))

    for number in range(STEPS):
        step(model, optimizer, jax.random.normal(jax.random.key(number), (32, 8)))
    state = nnx.state(model, nnx.Param)
    masks = training.masks_of(optimizer.opt_state)
    assert jp.masks.sparsity_of(masks, state) == 0.75
    chex.assert_trees_all_equal(nnx.to_pure_dict(jp.masks.apply_masks(state, masks)), nnx.to_pure_dict(state))
    assert (model.first.kernel[...] == 0).mean() >= 0.75 and (model.norm.scale[...] != 1).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", rows("gradual_pruning", "in phases", "rigl", slow=["in phases", "rigl"]))
def test_vmap_over_sparsities_equals_a_loop(name):
    """One program, in which making masks stays a branch and nothing is sorted."""
    makers = {
        "gradual_pruning": lambda s: training.gradual_pruning(optax.adam(0.01), schedules.cubic(0.0, s, 8), every=3),
        "in phases": lambda s: training.gradual_pruning(
            optax.adam(0.01), schedules.alternating(s, 2, 2, 0, 9), every=None
        ),
        "rigl": lambda s: training.rigl(optax.adam(0.01), s, key=KEY, every=3),
    }
    before, levels = params(), jnp.array([0.0, 0.25, 0.5, 0.75, 1.0])

    def run(sparsity):
        optimizer = makers[name](sparsity)
        step = step_of(optimizer)
        carry = (before, optimizer.init(before))
        values, state = jax.lax.scan(lambda c, n: (step(c, n), None), carry, jnp.arange(STEPS))[0]
        return values, training.masks_of(state)

    jaxpr = str(jax.make_jaxpr(jax.vmap(run))(levels))
    assert "cond[" in jaxpr and " sort[" not in jaxpr
    values, masks = jax.jit(jax.vmap(run))(levels)
    one = jax.jit(run)
    for i, level in enumerate(levels):
        expected = one(level)
        chex.assert_trees_all_equal(jax.tree.map(lambda leaf, i=i: leaf[i], masks), expected[1])
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, i=i: leaf[i], values), expected[0], rtol=1e-4, atol=1e-6)
        assert jp.masks.sparsity_of(expected[1], before) == level
    assert one._cache_size() == 1


@pytest.mark.slow
def test_vmap_over_masks_and_over_keys():
    before = params()
    many = jax.vmap(lambda s: jp.prune(before, s, scope="global").masks)(jnp.array([0.25, 0.5]))
    held = jax.jit(jax.vmap(lambda masks: train_once(optax.chain(optax.sgd(0.1), training.hold_masks(masks)), before)))
    for i, share in enumerate((0.25, 0.5)):
        kernels = [held(many)[name]["kernel"][i] for name in ("Dense_0", "Dense_1")]
        assert np.mean([kernel == 0 for kernel in kernels]) == share
    keys = jax.random.split(KEY, 3)
    drawn = jax.vmap(lambda key: training.static_sparse(optax.sgd(0.1), 0.5, key=key).init(before).masks)(keys)
    kernels = np.asarray(drawn["Dense_0"]["kernel"])
    assert (kernels.sum((1, 2)) == 16).all() and (kernels[0] != kernels[1]).any()


def train_once(optimizer, values):
    return step_of(optimizer)((values, optimizer.init(values)), 0)[0]


@pytest.mark.parametrize("container", (dict, tuple, list))
def test_containers_and_bare_arrays(container):
    kernel = params()["Dense_0"]["kernel"]
    tree = {dict: {"w": kernel}, tuple: (kernel, {"w": kernel}), list: [kernel]}[container]
    for before in (tree, kernel):
        optimizer = training.gradual_pruning(optax.sgd(0.1), 0.5)
        values = train_once(optimizer, before)
        assert jax.tree.structure(values) == jax.tree.structure(before)
        assert all((leaf == 0).mean() == 0.5 for leaf in jax.tree.leaves(values))


SOME_INNER = (
    lambda: optax.sgd(0.1),
    lambda: optax.chain(optax.add_decayed_weights(0.3), optax.sgd(0.2, momentum=0.9, nesterov=True)),
    lambda: optax.adamw(0.1),
    lambda: optax.lion(0.01),
    lambda: optax.chain(optax.clip(0.1), optax.rmsprop(0.05, momentum=0.5)),
)


@pytest.mark.slow
@settings(max_examples=4)
@given(
    tree=strategies.param_trees(special=False, kernels=[(3, 4), (2, 1, 3, 2)]),
    inner=st.sampled_from(SOME_INNER),
    level=strategies.sparsities(),
    scope=st.sampled_from(("leaf", "global")),
    every=st.sampled_from((None, 1, 2)),
    revive=st.booleans(),
)
def test_zeros_stay_exact_whatever_the_tree_and_the_optimizer(tree, inner, level, scope, every, revive):
    """Eager, so that nothing compiles for each example: three steps to a level, by count and in bits."""
    tree = jax.tree.map(jnp.asarray, tree)
    if not any(leaf.ndim > 1 for leaf in jax.tree.leaves(tree)):
        return
    schedule = schedules.piecewise([0.0, level], [1])
    optimizer = training.gradual_pruning(inner(), schedule, every=every, scope=scope, revive=revive)
    values, state = tree, optimizer.init(tree)
    for number in range(3):
        updates, state = optimizer.update(grads_at(number, values), state, values)
        values = optax.apply_updates(values, updates)
        assert_held(values, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(values, tree)
    masks = [mask for mask in jax.tree.leaves(training.masks_of(state)) if mask.ndim]
    sizes = [mask.size for mask in masks]
    removed = [int((~mask).sum()) for mask in masks]
    if scope == "global":
        assert sum(removed) == oracles.count_removed(sum(sizes), level)
    else:
        assert removed == [oracles.count_removed(size, level) for size in sizes]


@pytest.mark.parametrize("name", (*TABLE, *LATENT))
def test_updates_need_the_parameters(name):
    before = params()
    optimizer = {**TABLE, **LATENT}[name](optax.sgd(0.1), before)
    with pytest.raises(ValueError, match="needs the parameters: optimizer.update.grads, state, params."):
        optimizer.update(before, optimizer.init(before))


def test_averages_are_as_sparse_as_the_masks():
    """The averages of optax mix what weights were before they were pruned; held masks make them sparse."""
    params = {"kernel": jnp.array([[1.0, -2.0], [3.0, 4.0]])}
    masks = {"kernel": jnp.array([[True, False], [False, True]])}
    averaging = optax.contrib.schedule_free(optax.sgd(0.1), 0.1)
    trained, state = train(optax.chain(averaging, training.hold_masks(masks)), params, steps=3)
    dense = optax.contrib.schedule_free_eval_params(state[0], trained)
    assert dense["kernel"][0, 1] != 0
    average = jp.masks.apply_masks(dense, training.masks_of(state, trained))
    chex.assert_trees_all_equal(average["kernel"], jnp.where(masks["kernel"], dense["kernel"], 0.0))
    chex.assert_trees_all_equal(trained["kernel"] != 0, masks["kernel"])


def test_both_copies_of_lookahead_are_held():
    params = optax.LookaheadParams.init_synced({"kernel": jnp.array([[1.0, -2.0], [3.0, 4.0]])})
    masks = {"kernel": jnp.array([[True, False], [False, True]])}
    both = optax.LookaheadParams(masks, masks)
    optimizer = optax.chain(optax.lookahead(optax.sgd(0.1), 3, 0.5), training.hold_masks(both))
    state = optimizer.init(params)
    for _ in range(7):
        updates, state = optimizer.update({"kernel": 2 * params.fast["kernel"]}, state, params)
        params = optax.apply_updates(params, updates)
        chex.assert_trees_all_equal(jax.tree.map(lambda w: w != 0, params), both)
