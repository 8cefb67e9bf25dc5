"""Quantization against the NumPy oracles, and the cases from the field."""

from functools import cache
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune import QArray, QParams, QuantSpec, choose_qparams, dequantize, fake_quant, fixed_point, quantize
from jaxprune.kernels import rounding
from jaxprune.quantization import integers, mean_squared_error, percentile

slow = pytest.mark.slow
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]
SPECS = [
    QuantSpec(symmetric=symmetric, **layout)
    for symmetric in (True, False)
    for layout in ({}, {"axis": -1}, {"axis": (0, 1)}, {"block_size": 3}, {"block_size": 4, "axis": ()})
]
CALIBRATIONS = [percentile(90.0), mean_squared_error((1.0, 0.8, 0.6, 0.4))]
HUGE = float(np.finfo(np.float32).max)


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32).astype(dtype))


def assert_bits_equal(a, b):
    assert oracles.bits_equal(a, b), (a, b)


def with_oddities(x):
    """The array with NaN, infinities, zeros and a tiny number put in."""
    odd = np.array(x)
    odd.reshape(-1)[:6] = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-7]
    return jnp.asarray(odd)


def every_mode(f, bits, x):
    """f(x, b) for each b: eager, jit, vmap over the bits, vmap over x, lax.map."""
    eager = [f(x, b) for b in bits]
    yield eager
    yield [jax.jit(lambda x: f(x, bits[0]))(x), *eager[1:]]
    yield from map(list, _mapped(f)(x, jnp.asarray(bits)))


@cache
def _mapped(f):
    """One program a function: vmap over the bits, vmap over x, lax.map."""

    def modes(x, bits):
        rows = jnp.stack([x] * len(bits))
        return jax.vmap(f, (None, 0))(x, bits), jax.vmap(f)(rows, bits), jax.lax.map(lambda b: f(x, b), bits)

    return jax.jit(modes)


# ---------------------------------------------------------------------------------------------------------------------
# Against the oracles


LAYOUTS = [{}, {"axis": -1}, {"axis": 0}, {"axis": (0, 2)}, {"block_size": 4}]


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        pytest.param(layout, dtype, marks=[] if (i, j) in [(0, 0), (3, 0), (1, 1), (4, 2)] else slow)
        for i, layout in enumerate(LAYOUTS)
        for j, dtype in enumerate(DTYPES)
    ],
)
def test_fake_quant_equals_the_oracle(layout, dtype):
    x = with_oddities(normal(5, 10, 7, dtype=dtype))
    for bits in (2, 3, 7.5, 8, 16):
        symmetric = fake_quant(x, bits, spec=QuantSpec(**layout))
        assert_bits_equal(symmetric, oracles.fake_quant_symmetric(x, bits, **layout))
        asymmetric = fake_quant(x, bits, spec=QuantSpec(symmetric=False, **layout))
        assert_bits_equal(asymmetric, oracles.fake_quant_asymmetric(x, bits, **layout))
    one = fake_quant(x, 1, spec=QuantSpec(**layout))
    want = oracles.fake_quant_symmetric(x, 1, **layout)
    np.testing.assert_allclose(
        one.astype(jnp.float32), want.astype(np.float32), rtol=1e-2 if dtype != DTYPES[0] else 3e-7
    )
    assert_bits_equal(
        fake_quant(x, 1, spec=QuantSpec(symmetric=False, **layout)), oracles.fake_quant_asymmetric(x, 1, **layout)
    )


@settings(max_examples=20, deadline=None)
@given(
    values=st.lists(st.floats(width=32) | st.integers(-40, 40).map(lambda i: i / 8), min_size=12, max_size=12),
    bits=st.integers(2, 16),
    symmetric=st.booleans(),
)
def test_any_numbers(values, bits, symmetric):
    x = np.array(values, np.float32).reshape(4, 3)
    x = np.where(np.abs(x) < 1e-30, np.float32(0), x)  # subnormal steps count as no range
    finite = x[np.isfinite(x)]
    y = np.asarray(fake_quant(x, bits, spec=QuantSpec(symmetric=symmetric)))
    assert np.array_equal(np.isnan(x), np.isnan(y)) and not np.isinf(y).any()
    assert not np.signbit(y[y == 0]).any()
    if finite.size and np.abs(finite).max() < 1e38:
        oracle = oracles.fake_quant_symmetric if symmetric else oracles.fake_quant_asymmetric
        assert_bits_equal(y, oracle(x, bits))


@given(
    values=st.lists(st.floats(-65504, 65504, width=16), min_size=6, max_size=6),
    bits=st.integers(2, 16),
    symmetric=st.booleans(),
    dtype=st.sampled_from(DTYPES[::2]),
)
def test_error_is_at_most_half_a_step(values, bits, symmetric, dtype):
    x = jnp.array(values, jnp.float32).astype(dtype)
    spec = QuantSpec(symmetric=symmetric)
    scale = float(choose_qparams(x, bits, spec=spec).scale[0])
    y = fake_quant(x, bits, spec=spec)
    x64, y64 = (np.asarray(a.astype(jnp.float32), np.float64) for a in (x, y))
    output_rounding = np.abs(x64) * float(jnp.finfo(dtype).eps) + float(jnp.finfo(dtype).smallest_subnormal)
    assert np.all(np.abs(x64 - y64) <= scale / 2 * (1 + 1e-4) + output_rounding)


@pytest.mark.parametrize(
    ("spec", "dtype"),
    [(SPECS[8], jnp.float32)]
    + [
        pytest.param(s, d, marks=slow)
        for s, d in [(SPECS[i], jnp.float32) for i in (1, 2, 4, 6, 9)]
        + [(SPECS[0], jnp.bfloat16), (SPECS[4], jnp.float16)]
    ],
)
def test_stored_equals_fake_in_every_mode(spec, dtype):
    x = with_oddities(normal(9, 11, 5, dtype=dtype))
    bits = [4, 1, 9]
    stored = [dequantize(quantize(x, b, spec=spec)) for b in bits]
    for got in every_mode(lambda x, b: fake_quant(x, b, spec=spec), bits, x):
        for a, b in zip(stored, got, strict=True):
            assert b.dtype == dtype
            assert_bits_equal(a, b)


@slow
@pytest.mark.parametrize(
    ("calibration", "symmetric", "layout"),
    [
        (CALIBRATIONS[0], False, {"axis": -1}),
        (CALIBRATIONS[1], True, {"block_size": 4}),
        (CALIBRATIONS[0], True, {"block_size": 4}),
        (CALIBRATIONS[1], True, {"axis": -1}),
        (CALIBRATIONS[1], False, {"block_size": 4}),
    ],
)
def test_calibrated_in_every_mode(calibration, symmetric, layout):
    spec = QuantSpec(symmetric=symmetric, calibration=calibration, **layout)
    x, bits = normal(9, 7).at[2, 3].set(jnp.nan), [1, 3]
    stored = [dequantize(quantize(x, b, spec=spec)) for b in bits]
    for got in every_mode(lambda x, b: fake_quant(x, b, spec=spec), bits, x):
        for a, b in zip(stored, got, strict=True):
            assert_bits_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [QuantSpec(), *(pytest.param(s, marks=slow) for s in (QuantSpec(axis=-1), QuantSpec(axis=0, symmetric=False)))],
)
def test_large_arrays_with_odd_tails(spec):
    x = normal(1031, 1033)  # large enough for the range of a large leaf
    fused = jax.jit(lambda x: (fake_quant(x * 1, 8, spec=spec), jnp.sum(x)))(x)[0]
    swept = jax.jit(jax.vmap(lambda b, x: fake_quant(x, b, spec=spec), (0, None)))(jnp.array([8, 3]), x)[0]
    eager = fake_quant(x, 8, spec=spec)
    for got in (dequantize(quantize(x, 8, spec=spec)), fused, swept):
        assert_bits_equal(got, eager)
    if spec.axis is None:
        assert_bits_equal(eager, oracles.fake_quant_symmetric(x, 8))
    with_nan = x.at[3, 5].set(jnp.nan).at[100, 7].set(jnp.inf)
    without = jnp.where(jnp.isfinite(with_nan), with_nan, 0)
    a, b = (choose_qparams(v, 8, spec=spec) for v in (with_nan, without))
    chex.assert_trees_all_equal(a, b)


def test_scale_and_bits_that_are_constants_change_nothing():
    x = normal(33, 65)
    qparams = choose_qparams(x, 7, spec=QuantSpec(axis=-1))
    scale = np.asarray(qparams.scale)
    want = oracles.dequantize(np.clip(np.rint(np.asarray(x) / scale), -63, 63).astype(int), scale)
    constant = jax.jit(lambda x: fake_quant(x, 7, spec=QuantSpec(axis=-1), qparams=qparams))(x)
    assert_bits_equal(constant, want)
    assert_bits_equal(jax.jit(lambda: fake_quant(x, 7, spec=QuantSpec(axis=-1)))(), constant)


# ---------------------------------------------------------------------------------------------------------------------
# Cases from the field


def test_15_zero_channel_and_tiny_channel():
    x = jnp.asarray(np.stack([np.zeros(8), np.asarray(normal(8)) * 1e-6], -1), jnp.float16)
    for symmetric in (True, False):
        y = fake_quant(x, 8, spec=QuantSpec(axis=-1, symmetric=symmetric))
        scale = choose_qparams(x, 8, spec=QuantSpec(axis=-1, symmetric=symmetric)).scale[0, 1]
        assert_bits_equal(y[:, 0], jnp.zeros(8, jnp.float16))
        assert jnp.any(y[:, 1] != 0)
        error = jnp.abs(x[:, 1].astype(jnp.float32) - y[:, 1].astype(jnp.float32))
        assert jnp.all(error <= scale / 2 + 2**-25)


def test_16_positive_range_is_widened_to_zero():
    x = jnp.linspace(1.0, 2.0, 50)
    spec = QuantSpec(symmetric=False)
    qparams = choose_qparams(x, 8, spec=spec)
    assert qparams.scale[0] == np.float32(2) / np.float32(255) and qparams.zero_point[0] == 0
    assert jnp.all(jnp.abs(fake_quant(x, 8, spec=spec) - x) <= qparams.scale / 2 * (1 + 1e-5))
    assert_bits_equal(fake_quant(jnp.zeros(3), 8, spec=spec, qparams=qparams), jnp.zeros(3))
    assert quantize(x, 8, spec=spec).codes.dtype == jnp.uint8


def test_31_zeros_stay_zeros_in_training():
    spec = QuantSpec(symmetric=False, axis=-1)
    mask = jax.random.bernoulli(jax.random.key(1), 0.5, (8, 6))
    w, x = jnp.where(mask, normal(8, 6), 0), normal(32, 8, seed=3)

    @jax.jit
    def step(w):
        g = jax.grad(lambda w: jnp.mean((x @ fake_quant(w, 8, spec=spec) - 1) ** 2))(w)
        return jnp.where(mask, w - 0.1 * g, 0)

    before = w
    for _ in range(20):
        w = step(w)
        for v in (w, fake_quant(w, 8, spec=spec)):
            assert_bits_equal(jnp.where(mask, 0, v), jnp.zeros_like(v))
    assert jnp.any(w != before)


def test_37_symmetric_codes():
    x = jnp.linspace(-1, 1, 1001)
    q = quantize(x, 8)
    assert q.scale[0] == np.float32(1) / np.float32(127) and not jnp.any(q.zero_point)
    assert (q.codes.min(), q.codes.max()) == (-127, 127)
    assert_bits_equal(quantize(-x, 8).codes, -q.codes)
    assert_bits_equal(q.codes, oracles.symmetric_codes(x, np.float32(1) / np.float32(127), 8).astype(np.int8))


def test_38_zero_point_on_a_half():
    x = jnp.array([-1.0, 509.0, 3.0])
    spec = QuantSpec(symmetric=False)
    qparams = choose_qparams(x, 8, spec=spec)
    assert qparams.scale[0] == 2.0 and qparams.zero_point[0] == 0  # 0.5 to even
    assert choose_qparams(x.at[0].set(-3.0).at[1].set(507.0), 8, spec=spec).zero_point[0] == 2  # 1.5 to even
    want = oracles.fake_quant_asymmetric(x, 8)
    for got in every_mode(lambda x, b: fake_quant(x, b, spec=spec), [8, 8], x):
        for y in got:
            assert_bits_equal(y, want)


def test_39_a_fixed_scale():
    x = jnp.array([jnp.inf, -jnp.inf, jnp.nan, 1e38])
    for symmetric, low, high in ((True, -127, 127), (False, -100, 155)):
        qparams = QParams(jnp.float32(0.5), jnp.int32(0 if symmetric else 100))
        spec = QuantSpec(symmetric=symmetric)
        y = fake_quant(x, 8, spec=spec, qparams=qparams)
        assert_bits_equal(y, jnp.array([high / 2, low / 2, jnp.nan, high / 2]))
        if symmetric:
            assert_bits_equal(dequantize(quantize(x, 8, spec=spec, qparams=qparams)), y)
    params = {"a": normal(4, 4), "b": jnp.ones(3)}
    qparams = choose_qparams(params, 8, spec=QuantSpec(axis=-1))
    half = jax.tree.map(lambda v: v / 2, params)
    y = fake_quant(half, 8, spec=QuantSpec(axis=-1), qparams=qparams)
    assert y["b"] is half["b"]
    assert_bits_equal(y["a"][:, 0], oracles.fake_quant_symmetric(half["a"][:, 0], 8, scale=qparams["a"].scale[0, 0]))
    assert_bits_equal(
        fake_quant(params, 8, spec=QuantSpec(axis=-1), qparams=qparams)["a"],
        fake_quant(params, 8, spec=QuantSpec(axis=-1))["a"],
    )


def scale_shape(x, **spec):
    return jax.eval_shape(lambda x: choose_qparams(x, 8, spec=QuantSpec(**spec)), x).scale.shape


def test_51_the_axis_is_the_one_named():
    pointwise, depthwise = normal(1, 1, 8, 16), normal(3, 3, 1, 16)
    for x in (pointwise, depthwise):
        assert scale_shape(x, axis=-1) == (1, 1, 1, 16)
        assert scale_shape(x, axis=(0, -2)) == (x.shape[0], 1, x.shape[2], 1)
        assert scale_shape(x) == (1, 1, 1, 1)
    assert scale_shape(pointwise, block_size=4) == (1, 1, 2, 1, 16)
    assert scale_shape(depthwise, block_size=4) == (1, 1, 1, 16)  # one input: nothing to cut


def test_53_widths_in_one_program():
    params = {"a": normal(16, 8), "b": [normal(8, 4, seed=1)]}
    f = jax.jit(chex.assert_max_traces(lambda bits: fake_quant(params, bits, spec=QuantSpec(axis=-1)), n=1))
    for bits in range(2, 9):
        chex.assert_trees_all_equal(f(jnp.float32(bits)), fake_quant(params, bits, spec=QuantSpec(axis=-1)))
    mixed = {"a": np.arange(2, 9), "b": [np.arange(8, 1, -1)]}
    swept = jax.jit(jax.vmap(lambda bits: fake_quant(params, bits, spec=QuantSpec(axis=-1))))(mixed)
    for i in range(7):
        alone = fake_quant(params, {"a": 2 + i, "b": 8 - i}, spec=QuantSpec(axis=-1))
        chex.assert_trees_all_equal(jax.tree.map(lambda v, i=i: v[i], swept), alone)


def test_no_recompilation():
    params = {"Dense_0": {"kernel": normal(6, 5), "bias": jnp.ones(5)}}
    compiled = integers._fake_quant._cache_size
    fake_quant(params, 8, spec=QuantSpec(calibration=percentile(99.0)), where=lambda path, leaf: leaf.ndim == 2)
    before = compiled()
    for bits in (1, 2.5, np.int64(4), jnp.float32(5), jnp.int32(16)):
        spec = QuantSpec(calibration=percentile(99))
        y = fake_quant(params, bits, spec=spec, clip=0.5, where=lambda path, leaf: leaf.ndim == 2)
        assert y["Dense_0"]["bias"] is params["Dense_0"]["bias"]
    assert compiled() == before
    assert mean_squared_error([1.0, 0.5]) == mean_squared_error((1, 0.5))


# ---------------------------------------------------------------------------------------------------------------------
# Gradients


@pytest.mark.parametrize("dtype", [DTYPES[0], *(pytest.param(dtype, marks=slow) for dtype in DTYPES[1:])])
def test_35_straight_through(dtype):
    x = jnp.array([-3.0, -1.0, -0.2, 0.0, 0.6, 1.0, 1.003, 7.0, jnp.nan, jnp.inf], dtype)
    qparams = QParams(jnp.float32(1 / 127), jnp.int32(0))

    def f(x):
        return fake_quant(x, 8, qparams=qparams)

    def total(x):
        return jnp.sum(f(x))

    @jax.jit
    def derivatives(x):
        batch = jax.vmap(jax.grad(lambda x, b: jnp.sum(fake_quant(x, b))), (None, 0))
        second = jax.hessian(lambda x: jnp.sum(f(x) ** 2))(x[:6])
        pair = jax.jvp(f, (x,), (jnp.full_like(x, 2),))
        return pair, (jax.grad(total)(x), jax.jacfwd(total)(x)), batch(x[:6], jnp.array([1, 2, 4, 16])), second

    plain = dequantize(quantize(x, 8, qparams=qparams))
    (value, tangent), gradients, batch, second = derivatives(x)
    assert_bits_equal(value, plain)
    assert tangent.dtype == dtype
    inside = np.array([0, 1, 1, 1, 1, 1, 1, 0, 0, 0], dtype)
    np.testing.assert_array_equal(tangent, 2 * inside)
    for gradient in (*gradients, jax.grad(total)(x)):
        assert gradient.dtype == dtype
        np.testing.assert_array_equal(gradient, inside)
    assert batch.shape == (4, 6)
    np.testing.assert_array_equal(batch[1:], 1)
    np.testing.assert_array_equal(second, 2 * np.diag(inside[:6]))


def test_no_gradient_through_settings_and_scale():
    x = normal(4, 4)

    @jax.jit
    def slopes(x, b, s):
        def of_settings(b, c, s):
            fixed = fake_quant(x, 3, qparams=QParams(s, jnp.int32(0)))
            return jnp.sum(fake_quant(x, b) + fake_quant(x, 3, clip=c) + fixed)

        def of_weights(x, c, **spec):
            return jax.grad(lambda x: jnp.sum(fake_quant(x, 8, clip=c, spec=QuantSpec(**spec))))(x)

        best = [of_weights(x, 1.0, symmetric=sym, calibration=CALIBRATIONS[1], axis=-1) for sym in (True, False)]
        settings = jax.grad(of_settings, (0, 1, 2))(b, s, s)
        return settings, of_weights(jnp.zeros_like(x), 1.0), of_weights(x, 0.5), best

    settings, zeros, clipped, best = slopes(x, 3.7, 0.7)
    assert settings == (0, 0, 0)
    np.testing.assert_array_equal(zeros, 1)  # zeros can learn
    assert set(np.unique(clipped)) == {0.0, 1.0}
    assert [slope.shape for slope in best] == [(4, 4)] * 2 and jnp.isfinite(jnp.stack(best)).all()


# ---------------------------------------------------------------------------------------------------------------------
# Ranges, edges


def test_one_bit():
    x = jnp.array([[1.0, -2.0, 0.0, -0.0, 3.0, jnp.nan, jnp.inf]])
    assert_bits_equal(fake_quant(x, 1), jnp.array([[1.2, -1.2, 0.0, 0.0, 1.2, jnp.nan, 1.2]]))
    assert_bits_equal(dequantize(quantize(x, 1)), fake_quant(x, 1))
    assert set(np.unique(quantize(normal(50), 1, spec=QuantSpec(symmetric=False)).codes)) == {0, 1}
    big = jnp.full((4, 64), HUGE)
    np.testing.assert_allclose(fake_quant(big, 1), HUGE, rtol=1e-6)
    swept = jax.vmap(jax.vmap(fake_quant, (None, 0)), (0, None))(jnp.stack([x[0, :5], x[0, :5] * 2]), jnp.array([1, 8]))
    assert_bits_equal(swept[:, 0], jnp.stack([fake_quant(x[0, :5], 1), fake_quant(x[0, :5] * 2, 1)]))
    many = normal(100_003)
    np.testing.assert_allclose(choose_qparams(many, 1).scale, np.abs(np.asarray(many, np.float64)).mean(), rtol=2e-7)


@pytest.mark.parametrize("symmetric", [True, pytest.param(False, marks=slow)])
@pytest.mark.parametrize("dtype", [*(pytest.param(dtype, marks=slow) for dtype in DTYPES[:2]), DTYPES[2]])
def test_extremes_stay_finite(dtype, symmetric):
    largest = jnp.finfo(dtype).max
    x = jnp.array([largest, -largest, largest / 3, 0, 1], dtype)
    spec = QuantSpec(symmetric=symmetric)
    sweep = jax.jit(jax.vmap(lambda b, x: fake_quant(x, b, spec=spec), (0, None)))
    for values in (x, x.at[0].set(1), x.at[1].set(-largest / 5)):
        swept = sweep(jnp.arange(1, 17), values)
        assert jnp.all(jnp.isfinite(swept)), swept
        for bits in (1, 8, 16):
            assert_bits_equal(dequantize(quantize(values, bits, spec=spec)), swept[bits - 1])
    huge = fake_quant(x, 8, spec=spec, qparams=QParams(jnp.float32(1e37), jnp.int32(0)))
    assert jnp.all(jnp.isfinite(huge))
    for tiny in (1e-37, 1e-38, 3e-39, 1e-45):
        y = fake_quant(jnp.array([tiny, -tiny, jnp.inf, jnp.nan]).astype(jnp.float32), 8, spec=spec)
        assert jnp.all(jnp.isfinite(y[:3])) and jnp.isnan(y[3])


def test_nan_storage():
    x = normal(20).at[4].set(jnp.nan)
    for bits in (1, 7, 12):
        assert_bits_equal(dequantize(quantize(x, bits, spec=SPECS[5])), fake_quant(x, bits, spec=SPECS[5]))
    for bits in (8, 16):
        assert_bits_equal(dequantize(quantize(x, bits)), fake_quant(x, bits))
        with pytest.raises(ValueError, match=r"kernel.*NaN"):
            quantize({"kernel": x[None]}, bits, spec=SPECS[5])
        traced = jax.jit(lambda x, bits=bits: dequantize(quantize(x, bits, spec=SPECS[5])))(x)
        assert traced[4] == 0


@pytest.mark.parametrize("q", [20.0, *(pytest.param(q, marks=slow) for q in (99.9, 100.0))])
def test_percentile_equals_the_oracle(q):
    x = normal(40, 6).at[3, 2].set(jnp.nan).at[4, 4].set(jnp.inf).at[:, 5].set(jnp.nan)
    for spec in (QuantSpec(), QuantSpec(symmetric=False)):
        for axes in ((0,), (0, 1), (1,)):
            low, high = jax.jit(percentile(q), static_argnums=(1, 3))(x, axes, jnp.int32(8), spec)
            for group, a, b in zip(_groups(x, axes), low.ravel(), high.ravel(), strict=True):
                finite = group[np.isfinite(group)]
                want = oracles.percentile_range(group, q)
                ends = (-want, want)
                if not spec.symmetric and finite.size:
                    ends = tuple(np.percentile(finite.astype(np.float64), p) for p in (100 - q, q))
                np.testing.assert_allclose((a, b), ends if finite.size else (0, 0), rtol=2e-6, atol=2e-6)


def _groups(x, axes):
    x = np.moveaxis(np.asarray(x), axes, range(-len(axes), 0))
    return x.reshape(-1, int(np.prod(x.shape[x.ndim - len(axes) :])))


def test_mean_squared_error_equals_the_oracle():
    x = normal(3000, 3).at[0].set(jnp.array([9.0, 30.0, 4.0])).at[5, 1].set(jnp.nan)
    candidates = (1.0, 0.7, 0.5, 0.3, 0.2)
    search = jax.jit(mean_squared_error(candidates), static_argnums=(1, 3))
    for bits in (2, 4):
        _, high = search(x, (0,), jnp.int32(bits), QuantSpec())
        full = np.nanmax(np.abs(x), 0)
        want = [oracles.mse_clip(x[:, c], bits, candidates) for c in range(3)]
        np.testing.assert_allclose(high[0], full * np.array(want), rtol=1e-6)
        for spec in (QuantSpec(axis=-1, symmetric=False), QuantSpec(block_size=100)):
            best = QuantSpec(spec.symmetric, spec.axis, spec.block_size, mean_squared_error(candidates))
            errors = [jnp.nansum((fake_quant(x, bits, spec=s) - x) ** 2) for s in (best, spec)]
            assert errors[0] <= errors[1] * (1 + 1e-6)


def test_clip_scales_the_range():
    x = normal(30, 4)
    jitted = jax.jit(lambda c: fake_quant(x, 4, clip=c))
    for clip in (1.0, 0.61, 0.3):
        assert_bits_equal(fake_quant(x, 4, clip=clip), oracles.fake_quant_symmetric(x, 4, clip=clip))
        assert_bits_equal(jitted(clip), fake_quant(x, 4, clip=clip))
    spec = QuantSpec(symmetric=False)
    full, half = (choose_qparams(x, 8, spec=spec, clip=c) for c in (1.0, 0.5))
    np.testing.assert_array_equal(full.scale / 2, half.scale)
    np.testing.assert_array_equal(full.zero_point, half.zero_point)


def test_blocks():
    x = normal(10, 3)
    for spec, kept in (
        (QuantSpec(block_size=4), None),
        (QuantSpec(block_size=4, axis=-1), None),
        (QuantSpec(block_size=4, axis=()), ()),
    ):
        y = fake_quant(x, 4, spec=spec)
        for start in range(0, 10, 4):
            part = x[start : start + 4]
            assert_bits_equal(
                y[start : start + 4], oracles.fake_quant_symmetric(part, 4, axis=-1 if kept is None else None)
            )
    vector = normal(7)
    assert_bits_equal(
        fake_quant(vector, 3, spec=QuantSpec(block_size=3)), oracles.fake_quant_symmetric(vector, 3, block_size=3)
    )
    assert scale_shape(normal(2, 10, 3), block_size=4, axis=0) == (2, 3, 1, 1)
    assert_bits_equal(fake_quant(x, 4, spec=QuantSpec(block_size=64)), fake_quant(x, 4, spec=QuantSpec(axis=-1)))


# ---------------------------------------------------------------------------------------------------------------------
# Fixed point


@pytest.mark.parametrize("dtype", [DTYPES[0], *(pytest.param(dtype, marks=slow) for dtype in DTYPES[1:])])
def test_fixed_point_equals_the_oracle(dtype):
    x = jnp.concatenate(
        [normal(200, dtype=dtype), jnp.array([0.5, 1.5, -2.5, 0, -0.0, jnp.nan, jnp.inf, -jnp.inf], dtype)]
    )
    for exponent in (-20, -3, 0, 5):
        want = oracles.fixed_point(x, exponent)
        want = np.where(want == 0, np.zeros((), want.dtype), want)  # no -0.0
        for got in every_mode(fixed_point, [exponent, float(exponent)], x):
            for y in got:
                assert_bits_equal(y, want)
    codes = fixed_point(x, -6, codes=True)
    assert codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes, oracles.fixed_point_codes(x, -6))
    np.testing.assert_array_equal(
        jax.vmap(lambda e: fixed_point(x, e, codes=True))(jnp.array([-6, -30]))[1], oracles.fixed_point_codes(x, -30)
    )
    finite = x[:-3]
    assert_bits_equal((fixed_point(finite, -6, codes=True) * 2.0**-6).astype(dtype), fixed_point(finite, -6))
    gradient = jax.grad(lambda w: jnp.sum(fixed_point(w, -3)))(x[:200])
    assert gradient.dtype == dtype
    np.testing.assert_array_equal(gradient, 1)


@settings(max_examples=40, deadline=None)
@given(st.floats(width=32, allow_subnormal=False), st.integers(-126, 126))
def test_fixed_point_of_any_number(value, exponent):
    w = np.float32(value)
    y, want = np.asarray(fixed_point(w, exponent)), oracles.fixed_point(w, exponent)
    if np.isinf(want) and np.isfinite(w):
        assert np.isfinite(y) and abs(y) <= abs(w) and y / 2.0**exponent == np.trunc(y / 2.0**exponent)
    elif np.isnan(want) or abs(want) >= np.finfo(np.float32).tiny or abs(w) == 0:
        np.testing.assert_array_equal(y, want)
    assert fixed_point(w, exponent, codes=True) == oracles.fixed_point_codes(w, exponent)


def test_powers_of_two_are_exact():
    exponents = jnp.arange(-126, 127)
    np.testing.assert_array_equal(rounding.power_of_two(exponents), np.ldexp(np.float32(1), np.asarray(exponents)))


# ---------------------------------------------------------------------------------------------------------------------
# Trees, errors


class Pair(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


@pytest.mark.slow
def test_trees_come_back_as_they_were():
    params = {"a": Pair(normal(4, 3, dtype=jnp.bfloat16), jnp.ones(3)), "b": [normal(2, 2), jnp.arange(3)], "c": ()}
    for y in (fake_quant(params, 4), dequantize(quantize(params, {"a": 4, "b": 12})), fixed_point(params, -2)):
        chex.assert_trees_all_equal_structs(params, y)
        chex.assert_trees_all_equal_shapes_and_dtypes(params, y)
        assert y["a"].bias is params["a"].bias and y["b"][1] is params["b"][1]
    stored = quantize(params, {"a": 4, "b": 12}, spec=QuantSpec(axis=-1))
    assert isinstance(stored["a"].kernel, QArray) and stored["a"].kernel.codes.dtype == jnp.int8
    assert stored["b"][0].codes.dtype == jnp.int16 and stored["b"][0].shape == (2, 2)
    assert quantize(normal(3), 9, spec=SPECS[5]).codes.dtype == jnp.uint16
    chex.assert_trees_all_equal(jax.jit(dequantize)(stored), dequantize(stored))
    assert choose_qparams(params, 4)["a"].bias is params["a"].bias


@pytest.mark.parametrize(
    "spec",
    [pytest.param(s, marks=[] if i == 7 else slow) for i, s in enumerate(SPECS[:3] + SPECS[5:])],
)
def test_empty_trees_and_leaves(spec):
    for tree in (
        {},
        [],
        None,
        {"conv": jnp.zeros((0, 3))},
        {"conv": jnp.zeros((3, 0))},
        {"conv": jnp.zeros((2, 0, 3))},
    ):
        if spec.axis == (0, 1) and tree and tree["conv"].ndim == 2 and spec.block_size:
            continue
        for calibration in (None, *CALIBRATIONS):
            s = QuantSpec(spec.symmetric, spec.axis, spec.block_size, calibration)
            for y in (fake_quant(tree, 4, spec=s), dequantize(quantize(tree, 4, spec=s)), fixed_point(tree, 0)):
                chex.assert_trees_all_equal(y, tree)
    assert fake_quant(jnp.float32(0.3), 8) == np.float32(0.3)


def test_errors_name_the_leaf():
    params = {"Dense_0": {"kernel": normal(4, 3)}}
    for bits in (0, 17, float("nan"), 0.9):
        for f in (fake_quant, quantize, choose_qparams):
            with pytest.raises(ValueError, match=r"bits.*\[1, 16\]"):
                f(params, bits)
    with pytest.raises(ValueError, match="clip"):
        fake_quant(params, 8, clip=0.0)
    with pytest.raises(ValueError, match="clip"):
        fake_quant(params, 8, clip=1.5)
    with pytest.raises(TypeError, match="fake_quant"):
        jax.jit(lambda b: quantize(params, b))(8)
    for spec in (
        QuantSpec(block_size=0),
        QuantSpec(axis=2),
        QuantSpec(axis=-3),
        QuantSpec(axis=(1, -1)),
        QuantSpec(axis=-2, block_size=2),
    ):
        with pytest.raises(ValueError, match="Dense_0/kernel"):
            fake_quant(params, 8, spec=spec)
    with pytest.raises(ValueError, match="block_size"):
        fake_quant(jnp.float32(1), 8, spec=QuantSpec(block_size=2))
    good = choose_qparams(params, 8, spec=QuantSpec(axis=-1))
    for bad in (
        {"Dense_1": good["Dense_0"]},
        {"Dense_0": {"kernel": jnp.ones(())}},
        {"Dense_0": {"kernel": QParams(jnp.ones((1, 4)), jnp.zeros((1, 3), jnp.int32))}},
        {"Dense_0": {"kernel": QParams(jnp.full((1, 3), jnp.inf), jnp.zeros((1, 3), jnp.int32))}},
        {"Dense_0": {"kernel": QParams(jnp.ones((1, 3)), jnp.ones((1, 3), jnp.int32))}},
    ):
        with pytest.raises(ValueError, match="Dense_0/kernel"):
            fake_quant(params, 8, spec=QuantSpec(axis=-1), qparams=bad)
    with pytest.raises(ValueError, match="leave clip out"):
        fake_quant(params, 8, spec=QuantSpec(axis=-1), qparams=good, clip=0.5)
    for f in (fake_quant, quantize, choose_qparams, fixed_point):
        with pytest.raises(TypeError, match="kernel.*int32"):
            f({"kernel": jnp.ones((2, 2), jnp.int32)}, 8, where=lambda path, leaf: True)
        with pytest.raises(TypeError, match="name"):
            f({"name": "x"}, 8)
    with pytest.raises(ValueError, match=r"exponent.*\[-126, 126\]"):
        fixed_point(params, 127)
    for bad in (0.0, 101.0):
        with pytest.raises(ValueError, match="q must be"):
            percentile(bad)
    for bad in ((), (0.0,), (1.2,)):
        with pytest.raises(ValueError, match="candidates"):
            mean_squared_error(bad)


def test_traced_settings_are_clamped():
    x = normal(5, 5)
    f = jax.jit(fake_quant)
    for traced, concrete in ((0.0, 1), (-3.0, 1), (17.0, 16), (100.0, 16)):
        assert_bits_equal(f(x, traced), fake_quant(x, concrete))
    assert_bits_equal(jax.jit(lambda c: fake_quant(x, 4, clip=c))(2.0), fake_quant(x, 4))
    assert_bits_equal(jax.jit(lambda e: fixed_point(x, e))(200.0), fixed_point(x, 126))


@slow
def test_a_sweep_holds_at_most_one_copy_of_the_array():
    x = normal(2048, 512)
    spec = QuantSpec(axis=-1)

    def error(b):
        return lambda x, b=b: jnp.sum((x - fake_quant(x, b, spec=spec)) ** 2)

    sweep = jax.jit(jax.vmap(lambda b, x: error(b)(x), (0, None)))
    memory = sweep.lower(jnp.arange(2, 9), x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1.1 * x.nbytes  # seven widths; the copy is of the branch for values that are NaN
    for b, got in zip(range(2, 9), sweep(jnp.arange(2, 9), x), strict=True):
        np.testing.assert_allclose(got, error(b)(x), rtol=1e-5)


def test_more_entries_than_can_be_sorted():
    """Nothing of that size is made here."""
    large = jax.ShapeDtypeStruct((2**17, 2**16), jnp.float32)
    for calibration in (None, mean_squared_error()):
        spec = QuantSpec() if calibration is None else QuantSpec(calibration=calibration)
        assert jax.eval_shape(lambda x: fake_quant(x, 4, spec=spec), large) == large  # noqa: B023
    with pytest.raises(ValueError, match=r"a percentile of 8589934592 entries of \(131072, 65536\)"):
        jax.eval_shape(lambda x: fake_quant(x, 4, spec=QuantSpec(calibration=percentile(99.0))), large)


def test_all_widths_of_one_storage_share_a_program():
    x, spec = jnp.linspace(-1, 1, 35).reshape(5, 7), QuantSpec(axis=-1)
    before = integers._quantize._cache_size()
    codes = [quantize(x, bits, spec=spec) for bits in (2, 3, 5, 8)]
    assert integers._quantize._cache_size() == before + 1
    assert [code.bits for code in codes] == [2, 3, 5, 8]
    assert [int(jnp.abs(code.codes).max()) for code in codes] == [1, 3, 15, 127]


def test_records_act_as_arrays_of_jax_by_decoding_and_refuse_other_operators():
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    codes, x = quantize(weights, 8), jnp.ones((2, 3))
    dense = (np.asarray(codes.codes, np.float32) * np.asarray(codes.scale)).astype(np.float32)
    assert np.array_equal(jnp.asarray(codes), dense)
    np.testing.assert_allclose(x @ codes, np.ones((2, 3)) @ dense, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda x, q: x @ q)(x, codes), np.ones((2, 3)) @ dense, rtol=1e-6)
    wrong = (lambda: codes * 2, lambda: 2 * codes, lambda: codes[0], lambda: codes @ x, lambda: np.ones((2, 3)) @ codes)
    for operation in wrong:
        with pytest.raises(TypeError, match=r"QArray.*jaxprune.dequantize"):
            operation()
