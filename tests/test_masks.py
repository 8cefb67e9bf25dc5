"""Masks against the NumPy oracles, and the situations that bit users of other tools."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import strategies
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st
from jaxprs import equations

from jaxprune import masks

F32, F16, BF16 = np.dtype(np.float32), np.dtype(np.float16), strategies.BFLOAT16
INF, NAN = math.inf, math.nan
# Few shapes and dtypes, so that the examples share compilations.
LEAVES = {
    "vector": ((7,), F32),
    "matrix": ((4, 6), BF16),
    "kernel": ((2, 3, 4, 2), F32),
    "half": ((3, 5), F16),
    "scalar": ((), F32),
    "empty": ((0, 3), F32),
}
slow = pytest.mark.slow
each_leaf = pytest.mark.parametrize("name", LEAVES)
# Where programs are large: the other leaves have its dtype, or its rank.
each_kind = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[slow] if n in ("vector", "half") else []) for n in LEAVES]
)


def drawn(data, name, special=True):
    shape, dtype = LEAVES[name]
    return data.draw(strategies.float_arrays((dtype,), shape, special))


def assert_mask(mask, expected):
    assert mask.dtype == bool
    np.testing.assert_array_equal(np.asarray(mask), expected, strict=True)


def normals(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def params():
    return {
        "Conv_0": {"kernel": normals(3, 3, 2, 4), "bias": np.zeros(4, np.float32)},
        "Dense_0": {"kernel": normals(8, 3, seed=1), "bias": np.zeros(3, np.float32)},
    }


# ---------------------------------------------------------------------------------------------------------------------
# By threshold


@each_leaf
@given(st.data())
def test_by_threshold(name, data):
    scores = drawn(data, name)
    threshold = data.draw(st.sampled_from([0.0, -0.0, 1.0, -INF, INF, 0.5, *scores.ravel()[:2]]) | st.floats(-9, 9))
    threshold = 0.0 if np.isnan(threshold) else threshold
    assert_mask(masks.by_threshold(scores, threshold), oracles.mask_by_threshold(scores, threshold))


def test_by_threshold_compares_in_float32():
    """A bfloat16 score of 1.0 is below 1.001, which bfloat16 would round to it; and equal scores stay."""
    scores = jnp.asarray([1.0, 1.0078125], jnp.bfloat16)
    assert masks.by_threshold(scores, 1.001).tolist() == [False, True]
    assert masks.by_threshold(scores, jnp.bfloat16(1.0)).tolist() == [True, True]
    assert jax.jit(masks.by_threshold)(scores, 1.001).tolist() == [False, True]
    assert masks.by_threshold(np.float32([0.1, 0.3]), 0.1).tolist() == [True, True]  # 0.1 as float32 receives it


def test_by_threshold_keeps_nan():
    scores = jnp.asarray([NAN, -INF, 0.0, -0.0, INF])
    assert masks.by_threshold(scores, 0.0).tolist() == [True, False, True, True, True]
    assert masks.by_threshold(scores, INF).tolist() == [True, False, False, False, True]
    assert masks.by_threshold(scores, -INF).tolist() == [True] * 5
    assert jax.jit(masks.by_threshold)(scores, NAN).tolist() == [True] * 5  # traced: nothing is below NaN


def test_thresholds_of_their_own():
    tree = {"a": jnp.asarray([[1.0, 2.0]]), "b": {"c": jnp.asarray([[1.0, 2.0]]), "bias": jnp.zeros(2)}}
    kept = masks.by_threshold(tree, {"a": 1.5, "b": 3.0})
    assert jax.tree.map(lambda mask: mask.tolist(), kept) == {
        "a": [[False, True]],
        "b": {"c": [[False, False]], "bias": True},
    }


# ---------------------------------------------------------------------------------------------------------------------
# By sparsity


@each_kind
@given(st.data())
def test_by_sparsity(name, data):
    scores, sparsity = drawn(data, name), data.draw(strategies.sparsities())
    mask = masks.by_sparsity(scores, sparsity)
    assert_mask(mask, oracles.mask_by_sparsity(scores, sparsity))
    assert int((~mask).sum()) == oracles.count_removed(scores.size, sparsity)


@pytest.mark.parametrize("min_keep", [pytest.param(0, marks=slow), 2])
@given(st.data())
def test_by_sparsity_global(min_keep, data):
    tree = [drawn(data, name) for name in ("matrix", "empty", "kernel", "half")]
    sparsity = data.draw(strategies.sparsities())
    kept = masks.by_sparsity(tree, sparsity, scope="global", min_keep=min_keep)
    for mask, expected in zip(kept, oracles.masks_by_sparsity_global(tree, sparsity, min_keep), strict=True):
        assert_mask(mask, expected)


@pytest.mark.slow
@given(st.data())
def test_by_sparsity_of_units(data):
    """Scores of units: one of each leaf stays, by default."""
    tree = [data.draw(strategies.float_arrays((F32,), shape)) for shape in ((1, 3), (1, 1, 1, 4), (1, 1))]
    sparsity = data.draw(strategies.sparsities())
    kept = masks.by_sparsity(tree, sparsity, scope="global")
    for mask, expected in zip(kept, oracles.masks_by_sparsity_global(tree, sparsity, 1), strict=True):
        assert_mask(mask, expected)
        assert mask.any()


def test_sparsities_of_their_own():
    tree = {"a": normals(4, 5), "b": normals(8, 5, seed=1), "bias": np.zeros(5, np.float32)}
    kept = masks.by_sparsity(tree, {"a": 0.25, "b": jnp.float32(0.5)})
    assert_mask(kept["a"], oracles.mask_by_sparsity(tree["a"], 0.25))
    assert_mask(kept["b"], oracles.mask_by_sparsity(tree["b"], 0.5))
    assert_mask(kept["bias"], np.array(True))


@pytest.mark.parametrize("how", ["eager", "jit", *(pytest.param(how, marks=slow) for how in ("vmap", "vmap_scores"))])
def test_ties(how):
    """Exactly 3 of 6 and 64 of 128 equal scores go, the lower indices first, however it is run."""
    run = {
        "eager": masks.by_sparsity,
        "jit": jax.jit(masks.by_sparsity),
        "vmap": lambda x, s: jax.jit(jax.vmap(masks.by_sparsity, (None, 0)))(x, jnp.stack([s, 1 - s]))[0],
        "vmap_scores": lambda x, s: jax.jit(jax.vmap(masks.by_sparsity, (0, None)))(jnp.stack([x, -x]), s)[0],
    }[how]
    half = jnp.float32(0.5)
    assert run(jnp.asarray([0.0, 0.0, 1.0, 1.0, 2.0, 2.0]), half).tolist() == [False] * 3 + [True] * 3
    assert run(jnp.full(128, 0.3, jnp.bfloat16), half).tolist() == [False] * 64 + [True] * 64


@pytest.mark.parametrize("sparsity", [0, 0.01, 0.0125, 0.3, 0.5, 0.9875, 0.99, 1])
def test_the_documented_rounding(sparsity):
    """Of 40 entries round_half_up(40 * s) go, s being the float32 that the library receives."""
    for scores in (normals(40), np.ones(40, np.float32)):
        mask = masks.by_sparsity(scores, sparsity)
        assert int((~mask).sum()) == oracles.count_removed(40, sparsity)
        assert_mask(jax.jit(masks.by_sparsity)(scores, sparsity), mask)
    assert int((~mask).sum()) == {0: 0, 0.01: 0, 0.0125: 1, 0.3: 12, 0.5: 20, 0.9875: 40, 0.99: 40, 1: 40}[sparsity]


def test_traced_sparsities_are_clamped():
    counts = jax.jit(jax.vmap(lambda s: (~masks.by_sparsity(normals(40), s)).sum()))(jnp.asarray([-1, 2, NAN, INF]))
    assert counts.tolist() == [0, 40, 0, 40]


def test_nan_is_never_pruned_silently():
    scores = jnp.asarray([3.0, NAN, 1.0, INF, 0.5, 2.0, -INF, 0.0])
    mask = masks.by_sparsity(scores, 0.5)
    assert mask.tolist() == [True, True, False, True, False, True, False, False]
    assert masks.by_sparsity(scores, 0.875).tolist() == [False, True] + [False] * 6
    assert masks.by_sparsity(jnp.asarray([0.0, -0.0, 0.0, -0.0]), 0.5).tolist() == [False, False, True, True]
    assert masks.by_sparsity(jnp.asarray([NAN, -NAN, NAN, -NAN]), 0.5).tolist() == [False, False, True, True]


def test_a_weak_layer_keeps_its_best_units():
    """Global unit sparsity, one layer scaled by 1e-3: each keeps ``min_keep`` units, and the total still holds."""
    tree = {"a": np.abs(normals(1, 16)), "b": np.abs(normals(1, 16, seed=1)) * 1e-3, "c": np.abs(normals(1, 8, seed=2))}
    for min_keep in (1, 3):
        kept = jax.tree.map(np.asarray, masks.by_sparsity(tree, 0.5, scope="global", min_keep=min_keep))
        assert int(kept["b"].sum()) == min_keep
        assert sum(int((~mask).sum()) for mask in kept.values()) == 20
        best = np.argsort(tree["b"][0])[16 - min_keep :]
        assert kept["b"][0][best].all()
    shortfall = masks.by_sparsity(tree, 1.0, scope="global", min_keep=3)
    assert [int(np.sum(mask)) for mask in shortfall.values()] == [3, 3, 3]
    of_weights = masks.by_sparsity({"a": 1 + normals(4, 4) ** 2, "b": normals(4, 4) ** 2 * 1e-3}, 0.5, scope="global")
    assert int(of_weights["b"].sum()) == 0  # of weights none is kept by default


@pytest.mark.parametrize("scope", [pytest.param("leaf", marks=slow), "global"])
def test_only_selected_leaves_count(scope):
    """Biases take no part: neither in the ranking, nor in the number that goes; their mask is the 0-d True."""
    tree = params()
    kept = jax.tree.map(np.asarray, masks.by_sparsity(tree, 0.5, scope=scope))
    assert int((~kept["Conv_0"]["kernel"]).sum() + (~kept["Dense_0"]["kernel"]).sum()) == (72 + 24) // 2
    for layer in kept.values():
        assert_mask(layer["bias"], np.array(True))
    one = masks.by_sparsity(tree, 0.5, scope=scope, where="Dense*")
    assert_mask(one["Conv_0"]["kernel"], np.array(True))
    assert_mask(one["Dense_0"]["kernel"], oracles.mask_by_sparsity(tree["Dense_0"]["kernel"], 0.5))
    every = masks.by_sparsity(tree, 1.0, scope=scope, where=lambda path, leaf: True)
    assert not any(np.any(mask) for mask in jax.tree.leaves(every))


@slow
def test_33_sparsities_in_chunks_of_8():
    scores, sparsities = normals(6, 10), jnp.linspace(0, 1, 33)
    of = partial(masks.by_sparsity, scores)
    chunked = jax.jit(lambda s: jax.lax.map(of, s, batch_size=8))(sparsities)
    expected = np.stack([oracles.mask_by_sparsity(scores, s) for s in sparsities])
    assert_mask(chunked, expected)
    assert_mask(np.stack([of(s) for s in sparsities]), expected)


@pytest.mark.parametrize(
    ("dtype", "sparsity"),
    [
        (jnp.float16, 0.3),
        (jnp.bfloat16, 0.3),
        (jnp.float16, 1 - 2.0**-24),
    ],
)
@slow
def test_counts_beyond_2_to_the_24(dtype, sparsity):
    """More elements than float32 can count, four values, so that the cut falls among millions of ties."""
    size = 2**24 + 3
    pattern = np.arange(size, dtype=np.uint32) % 5
    scores = jnp.asarray(pattern, dtype)
    removed = oracles.count_removed(size, sparsity)
    mask = np.asarray(masks.by_sparsity(scores, sparsity))
    assert int((~mask).sum()) == removed
    value = np.searchsorted(np.cumsum(np.bincount(pattern)), removed, side="right")
    assert not mask[pattern < value].any() and mask[pattern > value].all()
    among = mask[pattern == value]
    assert not among[: among.size - int(among.sum())].any()  # the lower indices went


def test_sizes_beyond_2_to_the_31():
    """What can be counted works, what cannot raises with the path; shapes alone."""

    def leaf(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    def shapes(function, *args, **spec):
        return jax.tree.map(lambda x: x.shape, jax.eval_shape(lambda *a: function(*a, **spec), *args))

    most, more, half = leaf(2**31 - 1), leaf(2**16, 2**15), jnp.float32(0.5)
    assert shapes(masks.by_sparsity, most, half) == (2**31 - 1,)
    every = {"where": lambda path, leaf: True}
    assert len(shapes(masks.by_sparsity, {"a": most, "b": most}, half, scope="global", **every)) == 2
    with pytest.raises(ValueError, match=f"leaf 'a/kernel' has {2**31} entries; at most {2**31 - 1}"):
        shapes(masks.by_sparsity, {"a": {"kernel": more}}, half)
    with pytest.raises(ValueError, match=f"have {3 * (2**31 - 1)} entries; at most {2**32 - 1}.*scope='leaf'"):
        shapes(masks.by_sparsity, [most] * 3, half, scope="global", **every)
    assert len(shapes(masks.by_sparsity, [most] * 3, half, **every)) == 3
    with pytest.raises(ValueError, match="leaf 'k' has"):
        shapes(masks.thresholds, {"k": more}, jnp.zeros(3))
    assert shapes(masks.by_threshold, more, half) == more.shape
    assert shapes(lambda x: masks.n_of_m(x, 2, 4), more) == more.shape
    assert shapes(masks.blocks, more, half, block_shape=(64, 64)) == more.shape
    with pytest.raises(ValueError, match=r"leaf 'k' has"):
        shapes(masks.blocks, {"k": more}, half, block_shape=(1, 1))
    assert shapes(masks.by_unit_sparsity, more, half) == (1, 2**15)
    with pytest.raises(ValueError, match="leaf 'k' has"):
        shapes(masks.by_unit_sparsity, {"k": leaf(2**31, 2)}, half)
    assert shapes(masks.apply_masks, more, jax.ShapeDtypeStruct(more.shape, bool)) == more.shape


# ---------------------------------------------------------------------------------------------------------------------
# Thresholds that reach a sparsity


@each_kind
@given(st.data())
def test_thresholds(name, data):
    scores = drawn(data, name)
    sparsities = np.float32(data.draw(st.lists(strategies.sparsities(), min_size=4, max_size=4))).reshape(2, 2)
    found = masks.thresholds(scores, sparsities)
    expected = np.reshape([oracles.threshold_of(scores, s) for s in sparsities.ravel()], (2, 2))
    np.testing.assert_array_equal(np.asarray(found).astype(np.float64), expected)
    assert found.dtype == scores.dtype


@slow
def test_thresholds_reach_their_sparsities():
    scores, sparsities = normals(30, 20), jnp.linspace(0, 1, 64)
    limits = masks.thresholds(scores, sparsities)
    for limit, sparsity in zip(limits, sparsities, strict=True):
        assert_mask(masks.by_threshold(scores, limit), np.asarray(masks.by_sparsity(scores, sparsity)))


@pytest.mark.slow
def test_thresholds_of_a_tree():
    tree, sparsities = params(), np.float32([0.0, 0.5, 1.0])
    of_leaves = masks.thresholds(tree, sparsities)
    for layer in tree:
        expected = [oracles.threshold_of(tree[layer]["kernel"], s) for s in sparsities]
        np.testing.assert_array_equal(of_leaves[layer]["kernel"], np.float32(expected))
        np.testing.assert_array_equal(of_leaves[layer]["bias"], np.full(3, -np.inf, np.float32))
    flat = np.concatenate([tree[layer]["kernel"].ravel() for layer in tree])
    together = masks.thresholds(tree, sparsities, scope="global", where="*kernel")
    for layer in tree:
        expected = np.float32([oracles.threshold_of(flat, s) for s in sparsities])
        np.testing.assert_array_equal(together[layer]["kernel"], expected)


def test_thresholds_of_any_number():
    for settings, shape in ((0.5, ()), (np.zeros((2, 3)), (2, 3))):
        assert jax.eval_shape(lambda s=settings: masks.thresholds(normals(5), s)).shape == shape
    assert masks.thresholds(normals(5), []).shape == (0,)
    assert jax.vmap(partial(masks.by_sparsity, normals(5)))(jnp.zeros(0)).shape == (0, 5)


# ---------------------------------------------------------------------------------------------------------------------
# N of every M


@pytest.mark.parametrize(
    ("name", "n", "m", "axis"),
    [
        ("matrix", 2, 4, -2),
        ("matrix", 1, 3, -1),
        pytest.param("matrix", 5, 6, 1, marks=slow),
        ("kernel", 2, 4, -2),
        pytest.param("kernel", 1, 2, 0, marks=slow),
        pytest.param("half", 0, 3, 0, marks=slow),
        ("half", 3, 3, -2),
        ("vector", 3, 7, -1),
        ("empty", 2, 4, -2),
    ],
)
@given(st.data())
def test_n_of_m(name, n, m, axis, data):
    scores = drawn(data, name)
    assert_mask(masks.n_of_m(scores, n, m, axis=axis), oracles.n_of_m(scores, n, m, axis))


@pytest.mark.parametrize(("name", "n", "m", "axis"), [("matrix", 2, 3, -2), ("kernel", 1, 5, 1), ("vector", 3, 4, 0)])
@given(st.data())
def test_n_of_m_with_a_short_tail(name, n, m, axis, data):
    scores = drawn(data, name)
    assert_mask(masks.n_of_m(scores, n, m, axis=axis, pad=True), oracles.n_of_m(scores, n, m, axis, pad=True))


@pytest.mark.parametrize(("shape", "axis"), [((3, 3, 8, 16), 2), ((8, 16), 0)])
def test_two_of_four_along_the_input_axis(shape, axis):
    mask = np.asarray(masks.n_of_m(normals(*shape), 2, 4))
    groups = np.moveaxis(mask, axis, -1).reshape(-1, 4)
    assert (groups.sum(1) == 2).all()


def test_two_of_four_on_a_length_of_ten():
    tree = {"Dense_0": {"kernel": normals(10, 3)}}
    with pytest.raises(ValueError, match=r"leaf 'Dense_0/kernel': axis -2 has length 10, not a multiple of m=4"):
        masks.n_of_m(tree, 2, 4)
    mask = masks.n_of_m(tree, 2, 4, pad=True)["Dense_0"]["kernel"]
    assert mask[8:].all() and mask.sum(0).tolist() == [6, 6, 6]


def test_one_of_four_equal_scores():
    mask = masks.n_of_m(jnp.ones((8, 3)), 1, 4)
    assert mask[:, 0].tolist() == [False, False, False, True] * 2
    assert float(1 - mask.mean()) == 0.75


def test_long_groups():
    """The program does not grow with the square of m (it would compile for minutes), and ranks beyond 8 bits count."""
    program = jax.make_jaxpr(lambda x: masks.n_of_m(x, 40, 80))(jnp.ones((80, 2)))
    assert len(list(equations(program))) <= 50 * 80
    scores = normals(300, 2)
    assert_mask(masks.n_of_m(scores, 100, 300), oracles.n_of_m(scores, 100, 300))


@pytest.mark.parametrize(("n", "m"), [(5, 4), (-1, 4), (0, 0), (1, -2), (1, 0)])
def test_n_of_m_out_of_range(n, m):
    wanted = rf"n must be in \[0, {m}\], got {n}" if m > 0 else f"m must be 1 or more, got {m}"
    with pytest.raises(ValueError, match=wanted):
        masks.n_of_m(jnp.ones((8, 4)), n, m)


@pytest.mark.parametrize(("n", "m"), [(2, 4.0), (2, "4"), (True, 4), (None, 4), (1, True)])
def test_n_of_m_must_be_numbers(n, m):
    with pytest.raises(TypeError, match="must be an? (real number|integer)"):
        masks.n_of_m(jnp.ones((8, 4)), n, m)
    with pytest.raises(ValueError, match=r"n must be a whole number in \[0, 4\], got 2.5"):
        masks.n_of_m(jnp.ones((8, 4)), 2.5, 4)


def test_n_is_a_setting():
    """One program for all n: traced, under vmap, one for each leaf; out of range it is clamped."""
    scores = normals(8, 3)
    wanted = np.stack([oracles.n_of_m(scores, min(max(n, 0), 4), 4, -2) for n in range(-1, 6)])
    assert_mask(jax.jit(jax.vmap(lambda n: masks.n_of_m(scores, n, 4)))(jnp.arange(-1.0, 6.0)), wanted)
    assert jax.jit(lambda n: masks.n_of_m(scores, n, 4))(jnp.nan).all()
    each = masks.n_of_m({"a": scores, "b": {"c": scores}}, {"a": 1, "b": 3}, 4)
    assert_mask(each["a"], wanted[2])
    assert_mask(each["b"]["c"], wanted[4])


def test_n_of_m_needs_its_axis():
    with pytest.raises(ValueError, match=r"leaf \(the array itself\) has shape \(8,\) and no axis -2"):
        masks.n_of_m(jnp.ones(8), 2, 4)
    with pytest.raises(ValueError, match=r"leaf 'w/kernel' has shape \(8, 4\) and no axis 2"):
        masks.n_of_m({"w": {"kernel": jnp.ones((8, 4))}}, 2, 4, axis=2)


# ---------------------------------------------------------------------------------------------------------------------
# Blocks


@pytest.mark.parametrize(
    ("shape", "block"),
    [
        pytest.param((4, 6), (2, 3), marks=slow),
        ((5, 7), (2, 3)),
        ((2, 4, 5), (3, 2)),
        pytest.param((9,), (4,), marks=slow),
        pytest.param((3, 4), (1, 1), marks=slow),
        pytest.param((3, 4), (5, 9), marks=slow),
        ((0, 3), (2, 2)),
    ],
)
@given(st.data())
def test_blocks(shape, block, data):
    scores = data.draw(strategies.integer_scores(shape))  # whose sums are exact in any order
    sparsity = data.draw(strategies.sparsities())
    assert_mask(masks.blocks(scores, sparsity, block_shape=block), oracles.blocks(scores, sparsity, block))


def test_blocks_of_half_precision():
    scores = normals(6, 8).astype(BF16)
    assert_mask(masks.blocks(scores, 0.5, block_shape=(3, 4)), oracles.blocks(scores, 0.5, (3, 4)))
    large = jnp.full((2, 4096), 60000.0, jnp.float16).at[1].set(50000.0)  # sums beyond float16
    assert masks.blocks(large, 0.5, block_shape=(1, 4096))[:, 0].tolist() == [True, False]


def test_blocks_globally():
    tree = {"a": jnp.ones((2, 4)), "b": jnp.full((2, 4), 2.0), "bias": jnp.zeros(4)}
    kept = masks.blocks(tree, 0.5, block_shape=(2, 2), scope="global")
    assert not kept["a"].any() and kept["b"].all()
    assert_mask(kept["bias"], np.array(True))
    each = masks.blocks(tree, {"a": 0.5, "b": 1.0}, block_shape=(2, 2))
    assert each["a"][0].tolist() == [False, False, True, True] and not each["b"].any()


def test_blocks_with_nan_are_kept():
    scores = jnp.zeros((2, 4)).at[0, 0].set(NAN).at[0, 2].set(INF)
    assert masks.blocks(scores, 0.75, block_shape=(1, 2)).tolist() == [[True, True, False, False], [False] * 4]


@pytest.mark.parametrize("block", [(), (0, 2), (2, -1)])
def test_blocks_of_no_length(block):
    with pytest.raises(ValueError, match="block_shape must hold lengths of 1 or more"):
        masks.blocks(jnp.ones((4, 4)), 0.5, block_shape=block)


def test_blocks_of_too_many_axes():
    with pytest.raises(ValueError, match=r"leaf 'k' has shape \(4, 4\), too few axes for blocks of shape \(1, 2, 2\)"):
        masks.blocks({"k": jnp.ones((4, 4))}, 0.5, block_shape=(1, 2, 2))


# ---------------------------------------------------------------------------------------------------------------------
# Units


@pytest.mark.parametrize(
    "name", ["vector", "matrix", *(pytest.param(n, marks=slow) for n in ("kernel", "half")), "empty"]
)
@given(st.data())
def test_by_unit_entropy(name, data):
    w = drawn(data, name)
    entropies = oracles.unit_entropy(w, 5)
    threshold = data.draw(st.floats(0, 3, width=32).filter(lambda t: (abs(entropies - t) > 1e-5).all()))
    assert_mask(masks.by_unit_entropy(w, threshold, bins=5), oracles.by_unit_entropy(w, threshold, 5))


def test_by_unit_entropy_at_whole_bits():
    """A unit that fills 2**k bins evenly has k bits, not an ulp less: it stays at the threshold k."""
    w = np.stack([np.arange(16) // 2**i for i in range(5)], 1).astype(np.float32)  # 4, 3, 2, 1, 0 bits
    for bits in range(5):
        expected = [4 - i >= bits for i in range(5)]
        assert masks.by_unit_entropy(w, float(bits), bins=16).tolist() == [expected]
        above = masks.by_unit_entropy(w, bits + 2.0**-20, bins=16)
        assert above.tolist() == [[4 - i > bits for i in range(5)]]


@pytest.mark.parametrize("name", ["vector", "matrix", "kernel", "half", "empty"])
@given(st.data())
def test_by_unit_sparsity(name, data):
    w = drawn(data, name)
    fractions = oracles.unit_sparsity(w).ravel().tolist()
    threshold = data.draw(st.sampled_from([0.0, 1.0, *fractions]) | st.floats(0, 1, width=32))
    assert_mask(masks.by_unit_sparsity(w, threshold), oracles.by_unit_sparsity(w, threshold))


@pytest.mark.parametrize("length", [3, 7, 10, 49, 1000])
def test_by_unit_sparsity_at_its_own_fraction(length):
    """zeros / elements is the nearest float32: a unit is not above the threshold that names its very fraction."""
    zeros = np.arange(length + 1)
    w = (np.arange(length)[:, None] >= zeros).astype(np.float32)
    for count in {1, 2, length // 3, length - 1}:
        kept = masks.by_unit_sparsity(w, count / length)
        assert kept.tolist() == [(zeros <= count).tolist()]


def test_units_have_the_shape_that_broadcasts():
    tree = params()
    for kept in (masks.by_unit_entropy(tree, 1.0, bins=8), masks.by_unit_sparsity(tree, 0.5)):
        assert kept["Conv_0"]["kernel"].shape == (1, 1, 1, 4)
        assert kept["Dense_0"]["kernel"].shape == (1, 3)
        assert_mask(kept["Dense_0"]["bias"], np.array(True))
    each = masks.by_unit_sparsity(tree, {"Conv_0": 0.0, "Dense_0": 1.0})
    assert each["Dense_0"]["kernel"].all()


# ---------------------------------------------------------------------------------------------------------------------
# Application


@each_leaf
@given(st.data())
def test_apply_masks(name, data):
    w = drawn(data, name)
    shape = data.draw(st.sampled_from([w.shape, w.shape[:0], (1,) * max(w.ndim - 1, 0) + w.shape[-1:]]))
    mask = np.asarray(data.draw(st.lists(st.booleans(), min_size=math.prod(shape), max_size=math.prod(shape))), bool)
    mask = mask.reshape(shape)
    assert oracles.bits_equal(np.asarray(masks.apply_masks(w, mask)), oracles.apply_mask(w, mask))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_nothing_passes_a_false(dtype):
    w = jnp.asarray([INF, NAN, 1.0, -2.0, -0.0], dtype)
    result = masks.apply_masks(w, jnp.asarray([False, False, True, False, False]))
    assert result.tolist() == [0.0, 0.0, 1.0, 0.0, 0.0] and not jnp.signbit(result).any()
    assert result.dtype == dtype
    kept = masks.apply_masks(w, jnp.ones((), bool))
    assert oracles.bits_equal(np.asarray(kept), np.asarray(w))


def test_the_derivative_of_an_application_is_the_mask():
    w, mask = jnp.asarray([INF, NAN, 1.0, -2.0]), jnp.asarray([False, False, True, True])
    grad = jax.grad(lambda w: masks.apply_masks(w, mask).sum())(w)
    assert grad.tolist() == [0.0, 0.0, 1.0, 1.0]


def test_masks_leave_other_leaves_alone():
    tree = {"w": jnp.ones((2, 2)), "n": jnp.arange(3), "key": jax.random.key(0), "f": jnp.tanh}
    kept = masks.by_threshold(tree, 2.0)
    result = masks.apply_masks(tree, kept)
    assert not result["w"].any()
    assert all(result[name] is tree[name] for name in ("n", "key", "f"))


def test_masks_that_do_not_fit():
    tree = {"a": {"kernel": jnp.ones((2, 3))}, "n": jnp.arange(3)}
    true = jnp.ones((), bool)
    with pytest.raises(ValueError, match=r"only in params: \['n'\], only in masks: \['m'\]"):
        masks.apply_masks(tree, {"a": {"kernel": true}, "m": true})
    with pytest.raises(ValueError, match=r"mask of 'a/kernel' has shape \(3, 2\), which does not broadcast.*\(2, 3\)"):
        masks.apply_masks(tree, {"a": {"kernel": jnp.ones((3, 2), bool)}, "n": true})
    with pytest.raises(ValueError, match=r"mask of 'a/kernel' has shape \(1, 2, 3\)"):
        masks.apply_masks(tree, {"a": {"kernel": jnp.ones((1, 2, 3), bool)}, "n": true})
    with pytest.raises(TypeError, match="mask of 'a/kernel' has dtype float32; masks are bool"):
        masks.apply_masks(tree, {"a": {"kernel": jnp.ones((2, 3))}, "n": true})
    with pytest.raises(TypeError, match="leaf 'n' has dtype int32; only the 0-d True"):
        masks.apply_masks(tree, {"a": {"kernel": true}, "n": jnp.ones(3, bool)})
    with pytest.raises(ValueError, match="only in params"):
        masks.sparsity_of({"a": {"kernel": true}}, tree)


def test_sparsity_of():
    tree = params()
    assert float(masks.sparsity_of(masks.by_sparsity(tree, 0.3, scope="global"), tree)) == np.float32(29) / 96
    assert float(masks.sparsity_of(masks.by_unit_sparsity(tree, 0.5), tree)) == 0.0
    one_unit = {
        "Conv_0": {"kernel": jnp.asarray([True, False, True, True]).reshape(1, 1, 1, 4), "bias": jnp.ones((), bool)},
        "Dense_0": {"kernel": jnp.ones((), bool), "bias": jnp.ones((), bool)},
    }
    assert float(masks.sparsity_of(one_unit, tree)) == 0.25  # the leaf left alone is not counted
    nothing = masks.by_sparsity(tree, 0.5, where=lambda path, leaf: False)
    assert float(masks.sparsity_of(nothing, tree)) == 0.0
    assert float(masks.sparsity_of({}, {})) == 0.0
    zeros = jnp.zeros((4, 4))  # natural zeros are not the mask's
    assert float(masks.sparsity_of(masks.by_sparsity(zeros, 0.0), zeros)) == 0.0


def test_sparsity_of_more_entries_than_32_bits_count():
    @jax.jit
    def fraction(mask):
        return masks.sparsity_of(mask, jnp.zeros((2**31, 4), jnp.bfloat16))  # only its shape is used

    assert float(fraction(jnp.asarray([[False, False, False, True]]))) == 0.75
    assert float(fraction(jnp.asarray([[False, False, True, True]]))) == 0.5


# ---------------------------------------------------------------------------------------------------------------------
# Networks, bad settings


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


def test_linen_variables_only_kernels_are_masked():
    shapes = jax.eval_shape(CNN().init, jax.random.key(0), jnp.ones((1, 4, 4, 1)))
    variables = jax.tree.map(lambda leaf: abs(normals(*leaf.shape)), shapes)
    kept = masks.by_sparsity(variables, 0.5)
    assert jax.tree.structure(kept) == jax.tree.structure(variables)
    shapes = {"/".join(k.key for k in path): m.shape for path, m in jax.tree_util.tree_leaves_with_path(kept) if m.ndim}
    assert shapes == {"params/Conv_0/kernel": (3, 3, 1, 4), "params/Dense_0/kernel": (64, 3)}
    assert all(m.item() is True for m in jax.tree.leaves(kept) if not m.ndim)


SETTINGS = {
    "by_threshold": (masks.by_threshold, {}, "threshold", [NAN], r"\[-inf, inf\]"),
    "by_sparsity": (masks.by_sparsity, {}, "sparsity", [1.5, -0.1, NAN, INF], r"\[0, 1\]"),
    "by_sparsity_global": (masks.by_sparsity, {"scope": "global"}, "sparsity", [1.5, NAN], r"\[0, 1\]"),
    "blocks": (masks.blocks, {"block_shape": (2, 2)}, "sparsity", [1.5, -0.1, NAN], r"\[0, 1\]"),
    "by_unit_entropy": (masks.by_unit_entropy, {}, "threshold", [-0.5, NAN], r"\[0, inf\]"),
    "by_unit_sparsity": (masks.by_unit_sparsity, {}, "threshold", [1.5, -0.1, NAN], r"\[0, 1\]"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_out_of_range(name):
    function, spec, setting, bad, allowed = SETTINGS[name]
    for value in (*bad, *(jnp.float32(v) for v in bad)):
        with pytest.raises(ValueError, match=rf"{setting}.* must be in {allowed}, got {float(value):g}"):
            function(params(), value, **spec)
    with pytest.raises(ValueError, match=rf"{setting}.* must be a scalar, got shape \(2,\)"):
        function(params(), jnp.zeros(2), **spec)
    for value in ("half", None, 1j):
        with pytest.raises(TypeError, match=f"{setting}.* must be a real number"):
            function(params(), value, **spec)


@pytest.mark.parametrize("name", sorted(set(SETTINGS) - {"by_sparsity_global"}))
def test_settings_of_one_leaf_out_of_range(name):
    function, spec, setting, bad, _ = SETTINGS[name]
    with pytest.raises(ValueError, match=rf"{setting}.* of 'Dense_0/kernel' must be in"):
        function(params(), {"Conv_0": 0.5, "Dense_0": bad[0]}, **spec)
    with pytest.raises(ValueError, match="has no value for leaf 'Conv_0/kernel'"):
        function(params(), {"Dense_0": 0.5}, **spec)
    with pytest.raises(ValueError, match=r"names 'Dense_7', which is not in the tree"):
        function(params(), {"Conv_0": 0.5, "Dense_0": 0.5, "Dense_7": 0.5}, **spec)


@pytest.mark.parametrize("name", SETTINGS)
def test_leaves_that_cannot_be_ranked(name):
    function, spec, *_ = SETTINGS[name]
    with pytest.raises(TypeError, match="leaf 'a/name' is 'relu'"):
        function({"a": {"name": "relu", "kernel": jnp.ones((2, 2))}}, 0.5, **spec)
    with pytest.raises(TypeError, match=r"leaf \(the array itself\) has dtype int32"):
        function(jnp.ones((2, 2), jnp.int32), 0.5, **spec)
    with pytest.raises(TypeError, match="leaf 'n' has dtype int32"):
        function({"n": jnp.ones((2, 2), jnp.int32)}, 0.5, where=lambda path, leaf: True, **spec)
    with pytest.raises(ValueError, match=r"pattern 'Dence\*' matches no leaf.*Dense_0/kernel"):
        function(params(), 0.5, where="Dence*", **spec)


def test_other_bad_specs():
    with pytest.raises(ValueError, match="scope must be 'leaf' or 'global', got 'layer'"):
        masks.by_sparsity(params(), 0.5, scope="layer")
    with pytest.raises(ValueError, match="scope must be 'leaf' or 'global', got 'all'"):
        masks.thresholds(params(), 0.5, scope="all")
    with pytest.raises(ValueError, match=r"min_keep must be a count of 0 or more, or a fraction in \(0, 1\), got -1"):
        masks.by_sparsity(params(), 0.5, min_keep=-1)
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\], got 2"):
        masks.thresholds(params(), [0.5, 2.0])
    for bins in (0, -1, 2.5, True, "8"):
        with pytest.raises(ValueError, match="bins must be an integer of at least 1"):
            masks.by_unit_entropy(params(), 0.5, bins=bins)
    with pytest.raises(TypeError, match="sparsity must be a real number for scope='global'.* got {'Conv_0': 0.5"):
        masks.by_sparsity(params(), {"Conv_0": 0.5, "Dense_0": 0.5}, scope="global")
