"""Order statistics: exact against NumPy's sort, the same by every path, and at the cost that was promised."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import strategies
from hypothesis import example, given
from hypothesis import strategies as st
from jax import lax
from jaxprs import equations, primitives

from jaxprune import masks
from jaxprune.kernels import bisection, many_ranks, order, radix
from jaxprune.kernels.float_keys import Cut, Ranked, common_dtype, flat_index, to_keys
from jaxprune.kernels.order import removed_count, removed_of

F32, F16, BF16 = np.dtype(np.float32), np.dtype(np.float16), strategies.BFLOAT16
CHUNK = 1 << 14  # beyond four of them a CPU histogram runs in a loop, a whole number of times over each
MEGA = 1 << 20

keep_from_some = jax.jit(order.keep_from, static_argnums=2)


def keep_from(leaves, removed, min_keep=0):
    return keep_from_some(leaves, removed, (min_keep,) * len(leaves))


@jax.jit
def keep_from_each(leaves, removed):
    return [order.keep_above(leaf, count) for leaf, count in zip(leaves, removed, strict=True)]


kth_smallest = jax.jit(order.kth_smallest)


def expected_masks(leaves, removed, min_keep=0):
    """Removes the first entries in the total order of all leaves, the best ``min_keep`` of each leaf left out."""
    flat = np.concatenate([np.asarray(leaf).astype(np.float64).ravel() for leaf in leaves])
    starts = np.cumsum([0, *(np.size(leaf) for leaf in leaves)])
    protected = np.zeros(flat.size, bool)
    for leaf, start in zip(leaves, starts, strict=False):
        best = oracles.total_order(leaf)[max(np.size(leaf) - min_keep, 0) :]
        protected[start + best] = True
    ranking = oracles.total_order(flat)
    keep = np.ones(flat.size, bool)
    keep[ranking[~protected[ranking]][:removed]] = False
    return [keep[start : start + np.size(x)].reshape(np.shape(x)) for x, start in zip(leaves, starts, strict=False)]


@jax.jit
def by_bisection(leaves, removed):
    """The masks of ``keep_from`` by the kernels that accelerators without a fast scatter use."""
    dtype = common_dtype(leaves)
    ranked = [Ranked(leaf, dtype) for leaf in leaves]
    key, rest = bisection.keys_at(ranked, removed)
    kept = []
    for leaf in ranked:
        keys, index = leaf.keys(), flat_index(leaf.values.shape)
        share = jnp.minimum(rest, jnp.sum(keys == key, dtype=jnp.uint32))
        kept.append(bisection.cut_at(leaf, share, key).keeps(keys, index))
        rest -= share
    return kept


def assert_masks(actual, expected):
    for got, wanted in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(got), wanted)


def normals(size, dtype=F32, ties=False, seed=0):
    """Random floats; with ``ties`` only about a dozen different ones, zeros of both signs among them."""
    x = np.random.default_rng(seed).normal(size=size)
    return (np.round(x * 2) * 0.5 if ties else x).astype(dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Counts

slow = pytest.mark.slow
SIZES = (0, 1, 2, 3, 40, 1000, 2**16 + 1, 2**24 - 1, 2**24 + 1, 2**24 + 3, 2**31 - 1, 2**31, 2**32 - 1)
bit_patterns = st.integers(0, np.float32(1).view(np.uint32).item()).map(lambda b: np.uint32(b).view(np.float32))


@given(st.sampled_from(SIZES) | st.integers(0, 2**32 - 1), st.lists(bit_patterns, min_size=16, max_size=16))
@example(2**32 - 1, [0.0, 1.0, 0.5, 2.0**-33, 2.0**-32, 2.0**-31, 1 - 2.0**-24, 1e-45, 1e-38, 0.1, 0.9] + [0.25] * 5)
def test_removed_count_is_exact(size, sparsities):
    sparsities = np.asarray(sparsities, np.float32)
    counts = removed_count(size, sparsities)
    assert counts.dtype == jnp.uint32
    assert counts.tolist() == [oracles.count_removed(size, s) for s in sparsities]
    assert counts.tolist() == [removed_of(size, s) for s in sparsities]


@pytest.mark.parametrize("size", SIZES)
def test_removed_count_at_the_halves(size):
    """The product falls on a half, or as close to it as float32 sparsities come, in all ranges of exponents."""
    halves = [(i + 0.5) / max(size, 1) for i in (0, 1, 2, size // 3, size // 2, size - 1)]
    near = np.asarray([s for s in halves if 0 <= s <= 1] or [0.5], np.float32)
    ends = (np.zeros_like(near), np.ones_like(near))
    sparsities = np.concatenate([near, *(np.nextafter(near, end) for end in ends), *ends])
    counts = jax.jit(lambda s: removed_count(size, s))(sparsities).tolist()
    assert counts == [oracles.count_removed(size, s) for s in sparsities]
    assert counts[-1] == size and counts[-len(near) - 1] == 0


def test_removed_count_clamps_traced_sparsities():
    counts = jax.jit(lambda s: removed_count(40, s))(jnp.array([-0.5, 1.5, jnp.nan, jnp.inf, -jnp.inf, -0.0]))
    assert counts.tolist() == [0, 40, 0, 40, 0, 0]


# ---------------------------------------------------------------------------------------------------------------------
# Against the oracle

STRUCTURES = {
    "vector": ([((7,), F32)], 0),
    "bfloat16": ([((3, 4), BF16)], 0),
    "float16": ([((2, 3, 2), F16)], 0),
    "scalars": ([((), F32), ((), F32), ((), F32)], 0),
    "mixed": ([((2, 3), F32), ((4,), BF16), ((), F16)], 0),
    "halves": ([((5,), F16), ((5,), BF16)], 0),
    "empty_between": ([((2,), F32), ((0, 3), F32), ((3,), F32)], 0),
    "min_keep_1": ([((5,), F32), ((0,), F32), ((), F32), ((2, 3), F32)], 1),
    "min_keep_3": ([((2, 4), BF16), ((2,), F16)], 3),
    "min_keep_of_one": ([((6,), F16)], 2),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[slow]
            if name in ("bfloat16", "float16", "halves", "empty_between", "min_keep_of_one", "min_keep_3")
            else [],
        )
        for name in STRUCTURES
    ],
)
@given(st.data())
def test_keep_from(name, data):
    structure, min_keep = STRUCTURES[name]
    leaves = [data.draw(strategies.float_arrays((dtype,), shape)) for shape, dtype in structure]
    total = sum(leaf.size for leaf in leaves)
    removed = data.draw(st.integers(0, total) | st.integers(0, 2**32 - 1))
    kept = keep_from(leaves, np.uint32(removed), min_keep)
    assert_masks(kept, expected_masks(leaves, removed, min_keep))
    assert all(mask.dtype == bool for mask in kept)


@pytest.mark.parametrize(
    "name", [pytest.param("mixed", marks=slow), "empty_between", pytest.param("min_keep_1", marks=slow)]
)
@given(st.data())
def test_keep_from_each(name, data):
    leaves = [data.draw(strategies.float_arrays((dtype,), shape)) for shape, dtype in STRUCTURES[name][0]]
    removed = [data.draw(st.integers(0, leaf.size) | st.just(2**32 - 1)) for leaf in leaves]
    expected = [expected_masks([leaf], count)[0] for leaf, count in zip(leaves, removed, strict=True)]
    assert_masks(keep_from_each(leaves, [np.uint32(count) for count in removed]), expected)


@pytest.mark.parametrize(
    "name", ["vector", *(pytest.param(n, marks=slow) for n in ("float16", "empty_between")), "mixed"]
)
@given(st.data())
def test_kth_smallest(name, data):
    leaves = [data.draw(strategies.float_arrays((dtype,), shape)) for shape, dtype in STRUCTURES[name][0]]
    ranks = data.draw(st.lists(st.integers(0, 15) | st.just(2**32 - 1), min_size=6, max_size=6))
    found = kth_smallest(leaves, jnp.asarray(ranks, jnp.uint32).reshape(2, 3))
    ascending = np.sort(np.concatenate([leaf.astype(np.float64).ravel() for leaf in leaves])).tolist()
    wanted = [ascending[rank] if rank < len(ascending) else math.inf for rank in ranks]
    np.testing.assert_array_equal(np.asarray(found).astype(np.float64), np.reshape(wanted, (2, 3)))
    assert found.dtype == common_dtype(leaves)


def test_nothing_to_rank():
    empty = jnp.zeros((0, 3))
    assert order.keep_from([], jnp.uint32(3)) == []
    assert order.keep_from([empty], jnp.uint32(3))[0].shape == (0, 3)
    assert order.kth_smallest([empty], jnp.zeros((2, 2), jnp.uint32)).tolist() == [[math.inf] * 2] * 2
    assert order.kth_smallest([jnp.ones(3)], jnp.zeros((0,), jnp.uint32)).shape == (0,)


def test_mixed_dtypes_compare_exactly():
    """Values that one of the two half precisions would round: they rank by what they are."""
    leaves = [jnp.asarray([v], dtype) for v, dtype in ((2049, jnp.float32), (2048, jnp.bfloat16), (2050, jnp.float16))]
    kept = [[bool(mask[0]) for mask in keep_from(leaves, np.uint32(removed))] for removed in range(4)]
    assert kept == [[True, True, True], [True, False, True], [False, False, True], [False, False, False]]


@pytest.mark.parametrize("dtype", [F32, BF16, pytest.param(F16, marks=slow)], ids=str)
def test_every_kind_of_float_in_order(dtype):
    """Subnormals, the ends of the range, both zeros, both infinities, NaNs of any payload and sign."""
    info = jnp.finfo(dtype)
    ascending = [-np.inf, info.min, -1.0, -info.tiny, 0.0, info.tiny, 1.0, info.max, np.inf]
    nans = np.asarray([np.nan, -np.nan], dtype)
    shuffled = np.random.default_rng(0).permutation(np.concatenate([np.asarray(ascending, dtype), nans]))
    found = np.asarray(kth_smallest([shuffled], np.arange(11, dtype=np.uint32))).astype(np.float64)
    np.testing.assert_array_equal(found, [*np.asarray(ascending, dtype).astype(np.float64), np.nan, np.nan])
    zeros = np.asarray([0.0, -0.0, 0.0, -0.0], dtype)
    assert keep_from([zeros], np.uint32(2))[0].tolist() == [False, False, True, True]


# Sizes at which something changes: digits of 8 to 16 bits, chunks of a histogram, their tails.
@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        pytest.param(600, F32, marks=slow),
        pytest.param(1500, BF16, marks=slow),
        (3000, F32),
        pytest.param(9000, F32, marks=slow),
        pytest.param(40_000, F16, marks=slow),
        pytest.param(4 * CHUNK, F32, marks=slow),
        (4 * CHUNK + 1, F32),
        pytest.param(5 * CHUNK - 1, BF16, marks=slow),
        pytest.param(5 * CHUNK, F32, marks=slow),
        (7 * CHUNK + 5, F16),
    ],
)
def test_large_leaves(size, dtype):
    some = (0, 1, 2, size // 3, size // 2 + 1, size - 1, size, size + 7)
    for x in (normals(size, dtype), normals(size, dtype, ties=True), np.full(size, 0.5, dtype)):
        ranking = oracles.total_order(x)
        for removed in some:
            wanted = np.ones(size, bool)
            wanted[ranking[:removed]] = False
            assert_masks(keep_from([x], np.uint32(removed)), [wanted])


@slow
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_large_leaves_together(dtype):
    leaves = [normals(70_000, dtype, ties=True), normals((300, 250), dtype, seed=1), normals(33, dtype, seed=2)]
    leaves[1][0, :3] = np.nan
    total = sum(leaf.size for leaf in leaves)
    for removed in (0, 70_001, total // 2, total - 2, total):
        assert_masks(keep_from(leaves, np.uint32(removed)), expected_masks(leaves, removed))
    ranks = jnp.asarray([0, 1, 70_001, total // 2, total - 1, total], jnp.uint32)
    ascending = np.sort(np.concatenate([leaf.astype(np.float64).ravel() for leaf in leaves]))
    np.testing.assert_array_equal(
        np.asarray(kth_smallest(leaves, ranks)).astype(np.float64), [*ascending[np.asarray(ranks[:-1])], np.inf]
    )


SAMPLED = {
    "distinct": lambda x: x,
    "half zeros": lambda x: np.where(x < 0, 0, x).astype(x.dtype),
    "one value": np.ones_like,
    "ascending": np.sort,
    "the sample sees one value alone": lambda x: np.where(np.arange(x.size) % 272 < 16, 9, x).astype(x.dtype),
    "a third is NaN": lambda x: np.where(np.arange(x.size) % 3 == 0, np.nan, x).astype(x.dtype),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=slow if c in ("half zeros", "one value", "ascending") else []) for c in SAMPLED]
)
def test_sampled_leaves(case, monkeypatch):
    """Large leaves are searched where a sample says, and anew where it was wrong; both find the same."""
    monkeypatch.setattr(radix, "_LARGE", 1 << 16)
    x = SAMPLED[case](normals(9 * CHUNK + 77, F32, seed=3))
    ranking = oracles.total_order(x)
    for removed in (0, 1, x.size // 100, x.size // 3, x.size // 2, x.size - 2, x.size):
        wanted = np.ones(x.size, bool)
        wanted[ranking[:removed]] = False
        assert_masks(keep_from([x], np.uint32(removed)), [wanted])
        assert_masks(keep_from([x[:77], x[77:]], np.uint32(removed)), [wanted[:77], wanted[77:]])


@slow
def test_sampled_leaves_keep_some(monkeypatch):
    monkeypatch.setattr(radix, "_LARGE", 1 << 16)
    leaves = [normals(5 * CHUNK + 3, F32, ties=True), normals(2 * CHUNK, F32, seed=1) / 100]
    assert_masks(keep_from(leaves, np.uint32(6 * CHUNK), CHUNK), expected_masks(leaves, 6 * CHUNK, CHUNK))


def test_rankings_without_elements():
    """Nothing is searched for where there is nothing, and others are not kept waiting."""
    leaves = [np.zeros(0, np.float32), normals(50, F32), np.zeros((0, 3), np.float32)]
    kept = keep_from_each(leaves, [np.uint32(0), np.uint32(20), np.uint32(0)])
    assert [mask.shape for mask in kept] == [(0,), (50,), (0, 3)] and int(kept[1].sum()) == 30


@pytest.mark.parametrize("size", [pytest.param(5 * CHUNK, marks=slow), 5 * CHUNK + 5])
def test_large_leaves_on_a_mesh(size):
    """Explicit axes give a shard's counts a type of their own from the start, whether or not a tail is left."""
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    x = normals(size, F32)
    sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))
    assert_masks(keep_from([sharded], np.uint32(size // 3)), expected_masks([x], size // 3))


def test_small_leaves_among_large_ones():
    """Small neighbours are ranked as one leaf; ties still go leaf by leaf, wherever the cut falls."""
    sizes = [(7, 3), (0,), (40,), (5 * CHUNK + 3,), (11,), (2, 2)]
    leaves = [np.random.default_rng(i).integers(0, 3, size).astype(np.float32) for i, size in enumerate(sizes)]
    zeros = np.cumsum([(leaf == 0).sum() for leaf in leaves])
    for removed in (0, *(zeros - 1), *zeros, sum(leaf.size for leaf in leaves) - 3):
        assert_masks(keep_from(leaves, np.uint32(removed)), expected_masks(leaves, removed))


def test_what_is_compiled_for_small_leaves():
    """One histogram a digit, however many they are."""
    leaves = [normals(64, F32, seed=i) for i in range(9)]
    program = jax.make_jaxpr(lambda leaves: order.keep_from(leaves, jnp.uint32(99)))
    counts = [sum(e.primitive.name == "scatter-add" for e in equations(program(leaves[:n]))) for n in (2, 9)]
    assert counts[0] == counts[1] > 0


def test_ranks_share_wide_and_narrow_digits():
    """Many ranks of one leaf take narrower second digits than one rank does; what they find is the same."""
    x = normals(5 * CHUNK + 3, F32)
    ranks = np.unique(np.linspace(0, x.size - 1, 300).astype(np.uint32))
    np.testing.assert_array_equal(kth_smallest([x], ranks), np.sort(x)[ranks])


# ---------------------------------------------------------------------------------------------------------------------
# Radix and bisection


@pytest.mark.parametrize(
    "name", [*(pytest.param(n, marks=slow) for n in ("vector", "bfloat16", "empty_between")), "mixed"]
)
@given(st.data())
def test_bisection_makes_the_same_masks(name, data):
    leaves = [data.draw(strategies.float_arrays((dtype,), shape)) for shape, dtype in STRUCTURES[name][0]]
    removed = data.draw(st.integers(0, sum(leaf.size for leaf in leaves) - 1))
    assert_masks(by_bisection(leaves, np.uint32(removed)), keep_from(leaves, np.uint32(removed)))


@slow
@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_bisection_and_radix_find_the_same(dtype, guarded):
    leaves = [jnp.asarray(normals(5 * CHUNK + 1, dtype, ties=True)), jnp.asarray(normals((40, 50), dtype, seed=1))]
    guards = [Cut(to_keys(jnp.zeros((), dtype), dtype), np.uint32(40_000)), None] if guarded else [None, None]
    ranked = [Ranked(leaf, np.dtype(dtype), guard) for leaf, guard in zip(leaves, guards, strict=True)]
    ranks = jnp.asarray([0, 1, 777, 30_000, 41_000, 83_920], jnp.uint32)
    keys, equals = jax.jit(many_ranks.keys_at)(ranked, ranks)

    def one_by_one(leaves, ranks):
        found = [radix.key_at(leaves, rank) for rank in ranks]
        return jnp.stack([key for key, _ in found]), jnp.stack([equal for _, equal in found])

    for found in (bisection.keys_at, one_by_one):
        keys_, equals_ = jax.jit(found)(ranked, ranks)
        np.testing.assert_array_equal(keys, keys_)
        np.testing.assert_array_equal(equals, equals_)

    @jax.jit
    def masks_below(leaf, rank, key, equal):
        cuts = [search(leaf, rank) for search in (radix.cut_at, bisection.cut_at)]
        cuts += [search(leaf, equal, key) for search in (radix.cut_at, bisection.cut_at)]
        return [cut.keeps(leaf.keys(), flat_index(leaf.values.shape)) for cut in cuts]

    ranks = jnp.asarray([0, 1, 777, 30_000, 81_919], jnp.uint32)
    keys, equals = jax.jit(many_ranks.keys_at)(ranked[:1], ranks)
    for rank, key, equal in zip(ranks, keys, equals, strict=True):
        first, *others = masks_below(ranked[0], rank, key, equal)
        assert int((~first).sum()) == int(rank)
        assert_masks(others, [first] * 3)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_lowers_for_accelerators(platform):
    """TPU programs have neither scatters nor sorts; GPU programs no sorts, and no loop over chunks."""

    def select(scores, sparsity):
        return order.keep_from(scores, removed_count(80_000, sparsity)), order.kth_smallest(scores, jnp.arange(3))

    scores = [jax.ShapeDtypeStruct((70_000,), jnp.float32), jax.ShapeDtypeStruct((100, 100), jnp.float32)]
    lowered = jax.jit(select).trace(scores, jnp.float32(0.5)).lower(lowering_platforms=(platform,))
    text = lowered.as_text()
    assert "stablehlo.sort" not in text and "top_k" not in text.lower()
    assert ("stablehlo.scatter" in text) == (platform == "cuda")
    assert "tensor<16384xf32>" not in text


# ---------------------------------------------------------------------------------------------------------------------
# Transformations

RANKS = jnp.asarray([0, 1, 5, 11, 12, 3, 40], jnp.uint32)


def loop(leaves, ranks=RANKS, min_keep=0):
    return [np.stack(rows) for rows in zip(*(keep_from(leaves, rank, min_keep) for rank in ranks), strict=True)]


@pytest.mark.parametrize("min_keep", [pytest.param(0, marks=slow), 2])
def test_vmap_over_ranks(min_keep):
    leaves = [jnp.asarray(normals((2, 4), ties=True)), jnp.asarray(normals(4, ties=True, seed=1))]
    mapped = jax.jit(jax.vmap(lambda rank: order.keep_from(leaves, rank, (min_keep,) * 2)))(RANKS)
    assert_masks(mapped, loop(leaves, min_keep=min_keep))


@slow
def test_vmap_over_ranks_of_each():
    leaves = [
        jnp.asarray(normals((3, 4), ties=True)),
        jnp.asarray(normals(5)),
        jnp.asarray(normals(7, BF16, ties=True)),
    ]
    ranks = jnp.stack([RANKS, RANKS[::-1], RANKS % 3], 1)
    mapped = jax.jit(jax.vmap(lambda each: keep_from_each(leaves, list(each))))(ranks)
    assert_masks(mapped, [loop([leaf], ranks[:, i])[0] for i, leaf in enumerate(leaves)])


@slow
def test_vmap_over_ranks_of_a_large_leaf():
    leaves = [jnp.asarray(normals(5 * CHUNK + 7, BF16)), jnp.asarray(normals(3000, BF16, ties=True, seed=1))]
    ranks = jnp.asarray([0, 1, 20_000, 41_000, 85_000, 85_927, 90_000], jnp.uint32)
    mapped = jax.jit(jax.vmap(lambda rank: order.keep_from(leaves, rank)))(ranks)
    assert_masks(mapped, loop(leaves, ranks))


def test_vmap_over_scores():
    rows = jnp.asarray(normals((7, 12), ties=True))
    mapped = jax.jit(jax.vmap(lambda row: order.keep_from([row], RANKS[2])[0]))(rows)
    np.testing.assert_array_equal(mapped, [keep_from([row], RANKS[2])[0] for row in rows])
    both = jax.jit(jax.vmap(lambda row, rank: order.keep_from([row], rank, (1,))[0]))(rows, RANKS)
    np.testing.assert_array_equal(both, [keep_from([row], rank, 1)[0] for row, rank in zip(rows, RANKS, strict=True)])


@slow
def test_vmap_over_some_of_the_leaves():
    rows, shared = jnp.asarray(normals((7, 8), ties=True)), jnp.asarray(normals(4, ties=True, seed=1))
    mapped = jax.jit(jax.vmap(lambda row, rank: order.keep_from([row, shared], rank)))(rows, RANKS)
    each = [keep_from([row, shared], rank) for row, rank in zip(rows, RANKS, strict=True)]
    assert_masks(mapped, [np.stack(rows) for rows in zip(*each, strict=True)])


@pytest.mark.parametrize("outer", [pytest.param("ranks", marks=slow), "scores"])
def test_nested_vmaps(outer):
    rows = jnp.asarray(normals((3, 12), ties=True))
    wanted = np.array([[keep_from([row], rank)[0] for rank in RANKS] for row in rows])

    def one(row, rank):
        return order.keep_from([row], rank)[0]

    if outer == "scores":
        nested = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
    else:
        nested = jax.vmap(jax.vmap(one, (0, None)), (None, 0), out_axes=1)
    np.testing.assert_array_equal(jax.jit(nested)(rows, RANKS), wanted)


@slow
def test_nested_vmaps_over_ranks_alone():
    x = jnp.asarray(normals(12, ties=True))
    pairs = jnp.arange(12, dtype=jnp.uint32).reshape(3, 4)
    nested = jax.jit(jax.vmap(jax.vmap(lambda rank: order.keep_from([x], rank)[0])))(pairs)
    np.testing.assert_array_equal(nested.reshape(12, 12), loop([x], pairs.reshape(-1))[0])
    found = jax.jit(jax.vmap(jax.vmap(lambda rank: order.kth_smallest([x], rank))))(pairs)
    np.testing.assert_array_equal(found.reshape(-1), np.sort(x))


@slow
@pytest.mark.parametrize("outer", ["ranks", "scores"])
def test_kth_smallest_under_nested_vmaps(outer):
    rows, ranks = jnp.asarray(normals((3, 12))), jnp.asarray([[0, 5], [11, 12]], jnp.uint32)
    wanted = np.concatenate([np.sort(rows, axis=1), np.full((3, 1), np.inf)], 1)[:, np.asarray(ranks)]

    def one(row, ranks):
        return order.kth_smallest([row], ranks)

    if outer == "scores":
        nested = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
    else:
        nested = jax.vmap(jax.vmap(one, (0, None)), (None, 0), out_axes=1)
    np.testing.assert_array_equal(jax.jit(nested)(rows, ranks), wanted)


def test_map():
    x = jnp.asarray(normals(12, ties=True))

    def one(rank):
        return order.keep_from([x], rank)[0]

    mapped, batched = jax.jit(lambda ranks: (lax.map(one, ranks), lax.map(one, ranks, batch_size=3)))(RANKS)
    np.testing.assert_array_equal(mapped, loop([x])[0])
    np.testing.assert_array_equal(batched, loop([x])[0])


def test_derivatives_are_those_of_the_values():
    x, rank = jnp.asarray([3.0, -1.0, 2.0, 0.5]), jnp.uint32(2)

    def loss(x, rank):
        return jnp.sum(jnp.where(order.keep_from([jnp.abs(x)], rank)[0], x**2, 0.0))

    @jax.jit
    def derivatives(x, rank):
        forward = jax.jvp(lambda x: loss(x, rank), (x,), (jnp.ones(4),))[1]
        each = jax.vmap(jax.grad(loss), (None, 0))(x, jnp.arange(4, dtype=jnp.uint32))
        flat = jax.grad(lambda x: order.kth_smallest([x], jnp.uint32(1)).sum())(x)
        return forward, each, jax.hessian(loss)(x, rank), flat

    forward, each, hessian, flat = derivatives(x, rank)
    assert forward == 10.0
    assert each.tolist() == [[6, -2, 4, 1], [6, -2, 4, 0], [6, 0, 4, 0], [6, 0, 0, 0]]
    assert hessian.tolist() == np.diag([2.0, 0.0, 2.0, 0.0]).tolist()
    assert flat.tolist() == [0.0] * 4


# ---------------------------------------------------------------------------------------------------------------------
# Cost

PROGRAMS = {
    "leaf": (lambda x, s: masks.by_sparsity(x, s), 0.5),
    "global": (lambda x, s: masks.by_sparsity({"a": x, "b": x[: x.shape[0] // 2]}, s, scope="global"), 0.5),
    "min_keep": (lambda x, s: masks.by_sparsity([x, x], s, scope="global", min_keep=1), 0.5),
    "vmap": (lambda x, s: jax.vmap(lambda s: masks.by_sparsity(x, s))(s), [0.1, 0.5, 0.9]),
    "vmap_scores": (lambda x, s: jax.vmap(lambda row: masks.by_sparsity(row, s))(x), 0.5),
    "vmap_global": (lambda x, s: jax.vmap(lambda s: masks.by_sparsity([x, x], s, scope="global"))(s), [0.1, 0.5]),
    "thresholds": (lambda x, s: masks.thresholds(x, s), [0.1, 0.5, 0.9]),
    "map": (lambda x, s: lax.map(lambda s: masks.by_sparsity(x, s), s), [0.1, 0.5, 0.9]),
    "grad": (lambda x, s: jax.grad(lambda x: jnp.sum(x * masks.by_sparsity(x, s)))(x), 0.5),
    "n_of_m": (lambda x, s: masks.n_of_m(x, 2, 4), 0.5),
    "blocks": (lambda x, s: masks.blocks(x, s, block_shape=(4, 4)), 0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=slow)])
@pytest.mark.parametrize("name", PROGRAMS)
def test_jaxprs(name, dtype):
    """No sort, no top_k, no concatenation of leaves, no running sum as long as a leaf: anywhere in the program."""
    program, setting = PROGRAMS[name]
    jaxpr = jax.make_jaxpr(program)(jax.ShapeDtypeStruct((512, 512), dtype), jnp.asarray(setting, jnp.float32))
    assert not primitives(jaxpr) & {"sort", "top_k", "approx_top_k"}
    for equation in equations(jaxpr):
        if equation.primitive.name == "cumsum":
            assert equation.invars[0].aval.shape[equation.params["axis"]] <= 512
        if equation.primitive.name == "concatenate" and name != "n_of_m":  # which stacks the flags of its groups
            assert equation.outvars[0].aval.size <= 1024


def test_a_jaxpr_walk_sees_everything():
    """The walk itself finds a sort in a branch of a loop of a jitted function under a checkpoint."""
    looped = jax.jit(lambda x: lax.fori_loop(0, 2, lambda _, x: lax.cond(x[0] > 0, jnp.sort, jnp.negative, x), x))
    assert {"sort", "cond", "neg"} <= primitives(jax.make_jaxpr(jax.checkpoint(looped))(jnp.ones(3)))


def temporaries(function, *arguments):
    """Bytes that the compiled program needs beyond its arguments and results."""
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [("by_sparsity", (2 * MEGA, 2), jnp.float32), ("thresholds", (4 * MEGA,), jnp.bfloat16)]
    + [
        pytest.param(name, (4 * MEGA,), dtype, marks=slow)
        for name, dtype in [("by_sparsity", jnp.float32), ("by_sparsity", jnp.bfloat16), ("thresholds", jnp.float32)]
    ],
)
def test_temporaries_of_a_leaf(name, shape, dtype):
    leaf = jax.ShapeDtypeStruct(shape, dtype)
    function, setting = getattr(masks, name), jnp.zeros(() if name == "by_sparsity" else 64)
    assert temporaries(function, leaf, setting) <= 1.5 * leaf.size * leaf.dtype.itemsize


@pytest.mark.parametrize("min_keep", [pytest.param(0, marks=slow), 1])
def test_temporaries_of_a_global_ranking(min_keep):
    tree = {f"Dense_{i}": jax.ShapeDtypeStruct((1024, 512), jnp.float32) for i in range(3)}
    size = sum(leaf.size * 4 for leaf in tree.values())
    used = temporaries(lambda tree, s: masks.by_sparsity(tree, s, scope="global", min_keep=min_keep), tree, 0.5)
    assert used < size


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=slow), jnp.bfloat16])
def test_temporaries_of_many_sparsities(dtype):
    leaf = jax.ShapeDtypeStruct((MEGA,), dtype)
    used = temporaries(lambda x, s: jax.vmap(lambda s: masks.by_sparsity(x, s))(s), leaf, jnp.zeros(8))
    assert used <= 1.5 * leaf.size * leaf.dtype.itemsize
