"""The oracles themselves, on values worked out by hand."""

import ml_dtypes
import numpy as np
import oracles as o
import pytest
import strategies
from hypothesis import given, settings

INF, NAN = np.inf, np.nan
F32 = np.float32


@pytest.mark.parametrize("s, count", [(0, 0), (0.01, 0), (0.99, 40), (1, 40), (0.5, 20)])
def test_counts_of_forty(s, count):
    assert o.count_removed(40, s) == count
    assert (~o.mask_by_sparsity(np.arange(40.0), s)).sum() == count


def test_counts_round_half_up_from_the_float32_and_stay_exact():
    assert o.count_removed(5, 0.5) == 3 and o.count_removed(1, 0.5) == 1
    assert o.count_removed(5, 0.7) == 3  # float32(0.7) is just below 0.7, so 5s is just below 3.5
    assert o.count_removed(5, 0.1) == 1  # float32(0.1) is just above 0.1, so 5s is just above 0.5
    assert o.count_removed(2**33 + 1, 0.5) == 2**32 + 1
    for bad in (1.5, -0.1, NAN):
        with pytest.raises(ValueError):
            o.count_removed(4, bad)


def test_ties_nan_and_signed_zero():
    assert o.mask_by_sparsity([0, 0, 1, 1, 2, 2], 0.5).tolist() == [0, 0, 0, 1, 1, 1]
    tied = o.mask_by_sparsity(np.full(128, 0.3, ml_dtypes.bfloat16), 0.5)
    assert not tied[:64].any() and tied[64:].all()
    with_nan = o.mask_by_sparsity([NAN, 7, 6, 5, 4, 3, 2, 1], 0.5)
    assert with_nan.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert o.mask_by_sparsity([NAN, INF, NAN, INF], 0.75).tolist() == [0, 0, 1, 0]
    assert o.mask_by_sparsity([0.0, -0.0, 0.0, -0.0], 0.5).tolist() == [0, 0, 1, 1]


def test_global_order_and_min_keep():
    a, b = np.array([[3.0, 1.0], [1.0, 2.0]]), np.array([1.0, 0.0])
    assert [m.tolist() for m in o.masks_by_sparsity_global([a, b], 0.5)] == [[[1, 0], [0, 1]], [1, 0]]
    kept = o.masks_by_sparsity_global([np.arange(4) * 1e-3, np.arange(1.0, 5)], 0.5, min_keep=1)
    assert [m.tolist() for m in kept] == [[0, 0, 0, 1], [0, 1, 1, 1]]
    assert [m.sum() for m in o.masks_by_sparsity_global([np.ones(3), np.ones(1)], 1, min_keep=2)] == [2, 1]
    assert o.masks_by_sparsity_global([], 0.5) == []


def test_thresholds():
    assert o.mask_by_threshold([0.5, -0.0, 1.0, NAN, INF, -1.0], 0.5).tolist() == [1, 0, 1, 1, 1, 0]
    assert o.mask_by_threshold([-0.0, 0.0], 0.0).tolist() == [1, 1]
    assert o.threshold_of([0, 0, 1, 1, 2, 2], 0.5) == 1 and o.threshold_of([3, 1], 0) == 1
    assert o.threshold_of([1, 2], 1) == INF and np.isnan(o.threshold_of([NAN, 1], 0.5))


@pytest.mark.parametrize("shape, axis", [((3, 3, 8, 16), 2), ((8, 16), 0)])
def test_two_of_four_along_the_input_axis(shape, axis):
    keep = o.n_of_m(np.random.default_rng(0).normal(size=shape), 2, 4)
    groups = np.moveaxis(keep, axis, -1).reshape(-1, 4)
    assert (groups.sum(-1) == 2).all()


def test_n_of_m_ties_tail_and_bounds():
    assert o.n_of_m(np.ones(8), 1, 4, axis=0).tolist() == [0, 0, 0, 1] * 2
    assert o.n_of_m(np.arange(10.0), 2, 4, axis=0, pad=True).tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 1, 1]
    assert o.n_of_m([NAN, INF, 5, 6], 1, 4, axis=0).tolist() == [1, 0, 0, 0]
    for n, m in ((5, 4), (-1, 4), (0, 0), (2, 4)):
        with pytest.raises(ValueError):
            o.n_of_m(np.arange(10.0), n, m, axis=0)


def test_blocks_with_partial_edges():
    scores = np.array([[1.0, 1, 3], [1, 1, 3], [2, 2, 0]])
    assert o.block_sums(scores, (2, 2)).tolist() == [4, 6, 4, 0]
    assert o.block_means(scores, (2, 2)).tolist() == [1, 3, 2, 0]
    assert o.blocks(scores, 0.5, (2, 2)).tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    assert o.blocks(np.ones((2, 4)), 0.5, (2,)).tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]
    assert o.blocks(np.ones((0, 4)), 0.5, (2, 2)).shape == (0, 4)


def test_apply_mask_gives_positive_zero():
    out = o.apply_mask(np.array([INF, NAN, 1, -2], F32), np.array([False, False, True, False]))
    assert o.bits_equal(out, np.array([0, 0, 1, 0], F32))
    half = o.apply_mask(np.full((2, 2), -1, ml_dtypes.bfloat16), np.array([[True, False]]))
    assert half.dtype == ml_dtypes.bfloat16 and half.astype(F32).tolist() == [[-1, 0], [-1, 0]]


def test_saliencies():
    assert o.magnitude([-2.0, 1]).tolist() == [2, 1] and o.gradient([-2.0, 1], [3.0, -4]).tolist() == [6, 4]
    assert o.fisher([-2.0, 3], [1.0, 2]).tolist() == [2, 9]
    w = np.array([[1.0, 0, 1, 3], [-1, 0, 0, -1]])
    np.testing.assert_allclose(o.connection_entropy(w), [[0.5, 0, 0, -0.75 * np.log2(0.75)], [0.5, 0, 0, 0.5]])
    assert o.unit_norm(w).tolist() == [[2, 0, 1, 4]]
    np.testing.assert_allclose(o.unit_norm(w, 2), [[2**0.5, 0, 1, 10**0.5]])
    assert o.unit_sparsity([[0.0, 1], [-0.0, 0], [1, 2], [NAN, 3]]).tolist() == [[0.5, 0.25]]


def test_entropies():
    w = np.array([[0.0, 0, 1, NAN], [1, 0, 2, 4], [2, 0, 3, INF], [4, 0, 4, 0]])
    assert o.unit_entropy(w, 4).tolist() == [[2, 0, 1.5, 1]]  # bins [0,1) [1,2) [2,3) [3,4]
    assert o.unit_entropy(np.full((3, 2), 5.0), 4).tolist() == [[0, 0]]
    assert o.unit_entropy(np.full((2, 1), NAN), 4).tolist() == [[0]]
    assert o.activation_entropy(w.reshape(2, 2, 4), 4).tolist() == [2, 0, 1.5, 1]
    assert o.by_unit_entropy(w, 1.5, 4).tolist() == [[1, 0, 1, 0]]
    tenths = np.array([[0.0, 0]] * 6 + [[0, 1]] * 1 + [[1, 1]] * 3)
    assert o.by_unit_sparsity(tenths, 0.6).tolist() == [[0, 1]]
    assert o.by_unit_sparsity(tenths, 0.7).tolist() == [[1, 1]]


def test_symmetric_eight_bits():
    w = np.linspace(-1, 1, 201, dtype=F32)
    scale = o.symmetric_scale(w, 8)
    codes = o.symmetric_codes(w, scale, 8)
    assert scale == F32(1) / F32(127) and codes.min() == -127 and codes.max() == 127
    assert np.array_equal(o.fake_quant_symmetric(-w, 8), -o.fake_quant_symmetric(w, 8))
    assert o.symmetric_codes([0.5, 1.5, 2.5, -0.5], 1.0, 8).tolist() == [0, 2, 2, 0]
    assert [o.round_bits(b) for b in (1, 1.5, 2.5, 7.4, 16)] == [1, 2, 3, 7, 16]


def test_symmetric_specials():
    out = o.fake_quant_symmetric(np.array([INF, -INF, NAN, 1e38, 3], F32), 8, scale=2.0)
    assert o.bits_equal(out, np.array([254, -254, NAN, 254, 4], F32))  # 3 / 2 = 1.5 rounds to 2
    assert o.bits_equal(o.fake_quant_symmetric(np.array([0, -0.0, NAN, INF], F32), 8), np.array([0, 0, NAN, 0], F32))
    assert o.bits_equal(o.fake_quant_symmetric(np.array([3, -1, 0, -0.0], F32), 1), np.array([1, -1, 0, 0], F32))
    channels = np.array([[0, 1e-6], [0, -5e-7]], np.float16)
    out, scale = o.fake_quant_symmetric(channels, 8, axis=-1), o.symmetric_scale(channels[:, 1], 8)
    assert out.dtype == np.float16 and (out[:, 0] == 0).all() and (out[:, 1] != 0).all()
    rounding = 2.0**-25  # half a step of float16 down there
    assert (np.abs(out[:, 1].astype(float) - channels[:, 1].astype(float)) <= scale / 2 + rounding).all()


def test_asymmetric():
    w = np.linspace(1, 2, 99, dtype=F32)
    assert o.asymmetric_scale_zero_point(w, 8) == (F32(2) / F32(255), 0)
    assert np.abs(o.fake_quant_asymmetric(w, 8) - w).max() <= 1.0001 / 255
    assert o.asymmetric_scale_zero_point(np.array([-1, 509], F32), 8) == (2, 0)  # -lo / scale = 0.5, half to even
    out = o.fake_quant_asymmetric(np.array([-1, 0, 3, 509, INF, -INF, NAN], F32), 8)
    assert o.bits_equal(out, np.array([0, 0, 4, 508, 510, 0, NAN], F32))  # 254.5 goes to 254
    assert o.bits_equal(o.fake_quant_asymmetric(np.array([0, NAN], F32), 4), np.array([0, NAN], F32))


def test_ranges():
    assert o.range_ids((2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert o.range_ids((2, 3), axis=-1).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert o.range_ids((2, 3), axis=(0, 1)).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert o.range_ids((5, 2), block_size=2).tolist() == [[0, 1], [0, 1], [2, 3], [2, 3], [4, 5]]
    assert o.range_ids((3,), block_size=2).tolist() == [0, 0, 1]
    w = np.array([[1, 30], [2, 20], [70, 1], [7, 2]], F32)
    per_block = o.fake_quant_symmetric(w, 4, block_size=2)
    assert per_block[:2, 0].tolist() == o.fake_quant_symmetric(w[:2, 0], 4).tolist()
    assert o.fake_quant_symmetric(w, 4, axis=-1)[:, 0].tolist() == [0, 0, 70, 10]


def test_fixed_point():
    w = np.array([0.5, 1.5, 2.5, -0.3, 1e30, INF, NAN], F32)
    assert o.bits_equal(o.fixed_point(w, 0), np.array([0, 2, 2, -0.0, 1e30, INF, NAN], F32))
    assert o.fixed_point(np.array([0.3, 5.0], F32), -2).tolist() == [0.25, 5]
    assert o.fixed_point(np.array([5.0, 6.0], F32), 2).tolist() == [4, 8]
    assert o.fixed_point(np.array([1e30], F32), -40).tolist() == [F32(1e30)]
    assert o.fixed_point_codes([0.3, -0.3, 1e30, NAN], -2).tolist() == [1, -1, 2**31 - 1, 0]


def test_calibration():
    x = np.array([1, -2, 3, -4, NAN, INF], F32)
    assert o.percentile_range(x, 100) == 4 and o.percentile_range(x, 50) == 2.5
    assert o.percentile_range(x, 90) == pytest.approx(np.percentile([1, 2, 3, 4], 90))
    assert o.mse_clip(np.array([3, -1, 2], F32), 3, [0.5, 1.0, 1.0]) == 1.0
    outlier = np.array([1.0] * 99 + [2.0], F32)
    assert o.mse_clip(outlier, 2, [1.0, 0.5]) == 0.5  # one level: the 99 ones exact, at the cost of the outlier
    assert o.clip_error(outlier, 2, 0.5) == 0.01
    assert o.mse_clip(np.zeros(3, F32), 4, [0.7, 1.0]) == 0.7


def test_allocation():
    assert o.uniform([(2, 2), (3,)], 0.5) == [0.5, 0.5]
    shapes = [(3, 3, 16, 32), (512, 10), (64, 64)]
    result = o.erdos_renyi_kernel(shapes, 0.75)
    sizes = [np.prod(s) for s in shapes]
    assert np.dot(result, sizes) == pytest.approx(0.75 * sum(sizes))
    ratios = [(1 - r) * n / sum(s) for r, n, s in zip(result, sizes, shapes, strict=True)]
    assert ratios == pytest.approx([ratios[0]] * 3)
    # eps = 0.5 * 104 / (4 + 20) would give the small layer density > 1: it is dense, the other one keeps 48 of 100
    assert o.erdos_renyi_kernel([(2, 2), (10, 10)], 0.5) == pytest.approx([0, 0.52])
    assert o.erdos_renyi_kernel([(2, 2), (0, 3)], 1) == [1, 0] and o.erdos_renyi_kernel([(4, 4)], 0) == [0]


def test_pareto_front():
    cost, metric = [3, 1, 2, 2, 1, 5, 0], [0.9, 0.5, 0.4, 0.8, 0.5, 0.9, NAN]
    assert o.pareto_front(cost, metric) == [1, 3, 0]
    assert o.pareto_front([], []) == []


@settings(max_examples=50, deadline=None)
@given(strategies.float_arrays(), strategies.sparsities(), strategies.bit_widths(fractional=True))
def test_oracles_take_whatever_the_strategies_draw(x, s, bits):
    mask = o.mask_by_sparsity(x, s)
    assert (~mask).sum() == o.count_removed(x.size, s)
    assert np.array_equal(o.masks_by_sparsity_global([x], s)[0], mask)
    for quantized in (o.fake_quant_symmetric(x, bits), o.fake_quant_asymmetric(x, bits, axis=-1)):
        assert quantized.dtype == x.dtype and np.array_equal(np.isnan(quantized), np.isnan(x))
    assert o.by_unit_entropy(x, 1, 8).shape == o.by_unit_sparsity(x, s).shape == (1,) * (x.ndim - 1) + x.shape[-1:]
    assert o.connection_entropy(x).shape == o.blocks(x, s, (2,)).shape == x.shape


@settings(max_examples=25, deadline=None)
@given(strategies.param_trees())
def test_trees_hold_kernels_and_biases(tree):
    def walk(node):
        if isinstance(node, np.ndarray):
            return [node]
        return [leaf for child in (node.values() if isinstance(node, dict) else node) for leaf in walk(child)]

    leaves = walk(tree)
    assert {leaf.ndim for leaf in leaves} <= {1, 2, 4} and {leaf.dtype for leaf in leaves} <= set(strategies.DTYPES)
