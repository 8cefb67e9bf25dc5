"""The geometric median criterion against sums of float64 differences, also where float32 products would cancel."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jaxprune.saliency import distances, geometric_median

UNITS = 2 * distances._TILE + 5  # several tiles, the last one short
draw = np.random.default_rng(0)
NORMAL = draw.normal(size=(3, 4, UNITS))
SOME = draw.random(UNITS) < 0.1

# name -> weights (3, 4, UNITS), float64
WEIGHTS = {
    "normal": NORMAL,
    "all near each other": 1 + 1e-4 * NORMAL,
    "some near each other": np.where(SOME, 2.0 + 1e-5 * NORMAL, NORMAL),
    "the same twice": np.concatenate([NORMAL[..., : UNITS // 2 + 1], NORMAL[..., : UNITS // 2]], axis=-1),
    "many pruned": np.where(SOME, NORMAL, 0.0),
    "one alone": np.where(np.arange(UNITS) == UNITS - 1, 1.0, 0.0) * np.ones((3, 4, 1)),
    "squares overflow": 1e33 * NORMAL,
    "squares underflow": 1e-33 * NORMAL,
    "alike where they are large": np.where(np.arange(3)[:, None, None] == 0, 1e15, 1e-15 * NORMAL),
    "all alike": np.full(NORMAL.shape, 0.3),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_scores_equal_the_oracle(name):
    w = WEIGHTS[name].astype(np.float32)
    result = np.asarray(geometric_median(w))
    assert result.dtype == np.float32 and result.shape == (1, 1, UNITS)
    np.testing.assert_allclose(result.astype(np.float64), oracles.geometric_median(w), rtol=1e-6)


def test_the_sum_of_products_alone_would_be_wrong():
    w = (1 + 1e-4 * NORMAL).astype(np.float32).reshape(-1, UNITS)
    norms = np.square(w).sum(axis=0)
    by_products = np.sqrt(np.maximum(norms[:, None] + norms - 2 * w.T @ w, 0)).sum(axis=1)
    assert np.abs(by_products / oracles.geometric_median(w).ravel() - 1).max() > 1e-2


def test_a_unit_that_is_not_finite_scores_nan_and_is_left_out_of_the_others():
    w = NORMAL.astype(np.float32)
    w[1, 2, 4], w[0, 0, 200], w[2, 1, -1] = np.nan, np.inf, -np.inf
    result, rest = np.asarray(geometric_median(w)), np.delete(np.arange(UNITS), [4, 200, UNITS - 1])
    np.testing.assert_allclose(result, oracles.geometric_median(w), rtol=1e-6)
    assert np.isnan(result[0, 0, [4, 200, -1]]).all() and np.isfinite(result[0, 0, rest]).all()


def test_narrow_floats_are_computed_in_float32():
    w = WEIGHTS["all near each other"].astype(jnp.bfloat16)
    result = geometric_median(w)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, oracles.geometric_median(np.asarray(w)), rtol=1e-6)


def test_vectors_scalars_and_leaves_without_units_or_weights():
    tree = {"bias": jnp.array([1.0, 4.0, -1.0]), "scale": jnp.float32(3), "step": 7, "one": jnp.ones((5, 1))}
    scores = geometric_median(tree)
    np.testing.assert_array_equal(scores["bias"], [5, 8, 7])
    assert scores["scale"].shape == () and scores["step"].shape == () and scores["one"].shape == (1, 1)
    assert scores["scale"] == 0 and scores["one"] == 0
    for shape in [(0, 4), (3, 0), (0,)]:
        empty = geometric_median(jnp.zeros(shape))
        assert empty.shape == (1,) * (len(shape) - 1) + shape[-1:] and not empty.any()


def test_the_most_replaceable_unit_need_not_be_the_smallest():
    w = jnp.array([[0.0, 5.0, 5.1, 5.2, 11.0]])
    assert geometric_median(w).argmin() == 2
    np.testing.assert_allclose(geometric_median(w)[0, 0], 26.3, rtol=1e-6)


def test_memory_is_a_few_times_the_leaf():
    leaf = jax.ShapeDtypeStruct((256, 1024), jnp.float32)  # units**2 * 256 floats would be 1,024 times the leaf
    compiled = jax.jit(distances._sums_of_distances).lower(leaf).compile()
    memory = compiled.memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < 4 * 4 * 256 * 1024
