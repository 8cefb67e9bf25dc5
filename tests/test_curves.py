"""The curves against one setting at a time, in float64 NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jaxprune import masks, saliency
from jaxprune.base import QuantSpec
from jaxprune.quantization import integers
from jaxprune.reports import curves


def relative(before, after):
    before, after = (np.asarray(x, np.float64) for x in (before, after))
    total = (before**2).sum()
    return np.sqrt(((before - after) ** 2).sum() / total) if total else 0.0


def weights(shape, dtype=np.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32)).astype(dtype)


SPARSITIES = np.linspace(0, 1, 21).astype(np.float32)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(5, jnp.float16), pytest.param(3000, jnp.bfloat16, marks=pytest.mark.slow), (70_000, jnp.float32)],
)
def test_sparsity_curve_is_by_sparsity_at_every_point(size, dtype):
    w = weights(size, dtype)
    curve = curves.sparsity_curve(w, SPARSITIES)
    chex.assert_shape((curve.thresholds, curve.errors), (21,))
    for i, sparsity in enumerate(SPARSITIES):
        kept = oracles.mask_by_sparsity(np.abs(np.asarray(w)), sparsity)
        np.testing.assert_allclose(curve.errors[i], relative(w, np.where(kept, w, 0)), rtol=2e-5, atol=1e-7)
        assert float(curve.thresholds[i]) == oracles.threshold_of(np.abs(np.asarray(w)), sparsity)
    assert curve.thresholds.dtype == w.dtype


def test_sparsity_curve_with_ties_takes_a_part_of_them():
    curve = curves.sparsity_curve(jnp.array([1.0, -1.0, 1.0, -1.0, 2.0], jnp.float16), [0.2, 0.4, 0.8] * 7)
    np.testing.assert_allclose(curve.errors, np.sqrt(np.array([1, 2, 4] * 7) / 8), rtol=1e-6)


@pytest.mark.parametrize(
    "spec",
    [
        *(pytest.param(spec, marks=pytest.mark.slow) for spec in (QuantSpec(), QuantSpec(axis=-1))),
        QuantSpec(symmetric=False, axis=-1, block_size=8),
    ],
)
def test_quantization_error_curve_is_fake_quant_at_every_width(spec):
    w = weights((40, 12))
    widths = list(range(1, 17))
    errors = curves.quantization_error_curve(w, widths, spec=spec)
    want = [relative(w, integers.fake_quant(w, b, spec=spec)) for b in widths]
    np.testing.assert_allclose(errors, want, rtol=2e-5, atol=1e-7)


def test_entropy_curve_is_by_unit_entropy_at_every_point():
    w = weights((30, 25)) * jnp.linspace(0, 1, 25)
    thresholds = np.linspace(0, 5, 33).astype(np.float32)
    curve = curves.entropy_curve(w, thresholds, bins=16)
    for i, threshold in enumerate(thresholds):
        kept = masks.by_unit_entropy(w, threshold, bins=16)
        np.testing.assert_allclose(curve.sparsities[i], 1 - np.asarray(kept).mean(), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(curve.errors[i], relative(w, masks.apply_masks(w, kept)), rtol=2e-5, atol=1e-7)
    assert 0 < float(curve.sparsities[10]) < 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "curve", [curves.sparsity_curve, curves.quantization_error_curve, lambda p, s, **k: curves.entropy_curve(p, s, **k)]
)
def test_structure_selection_and_empty_leaves(curve):
    params = {"a": {"kernel": weights((4, 5)), "bias": jnp.ones(5)}, "b": {"kernel": jnp.zeros((0, 3))}}
    result = curve(params, [1.0, 1.0, 1.0])
    for tree in result if isinstance(result, tuple) else (result,):
        assert jax.tree.structure(tree) == jax.tree.structure(params)
        chex.assert_tree_shape_prefix(tree, (3,))
        np.testing.assert_array_equal(tree["a"]["bias"], 0)
        assert np.isfinite(np.asarray(tree["a"]["kernel"], np.float32)).all() or float(tree["a"]["kernel"][0]) == np.inf


def test_curves_under_jit_are_the_same_and_thresholds_those_of_masks():
    w = weights(3000, jnp.bfloat16)
    found = curves.sparsity_curve(w, SPARSITIES)
    chex.assert_trees_all_equal(found, jax.jit(curves.sparsity_curve)(w, SPARSITIES))
    chex.assert_trees_all_equal(found.thresholds, masks.thresholds(saliency.magnitude(w), jnp.asarray(SPARSITIES)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: curves.sparsity_curve(jnp.ones(4), 0.5), "vector"),
        (lambda: curves.sparsity_curve(jnp.ones(4), [0.5, 1.5]), "1.5"),
        (lambda: curves.quantization_error_curve(jnp.ones(4), [0]), "bits"),
        (lambda: curves.entropy_curve(jnp.ones((4, 2)), [-1.0]), "threshold"),
        (lambda: curves.entropy_curve(jnp.ones((4, 2)), [1.0], bins=0), "bins"),
    ],
)
def test_errors_name_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
