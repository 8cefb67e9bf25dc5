"""Stored arrays through Flax's state dicts and msgpack."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

import jaxprune as jp
from jaxprune.quantization import trellis

PARAMS = {
    "kernel": jnp.asarray(np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)),
    "bias": jnp.ones(3),
}
FORMS = {
    "integers": lambda: jp.quantize(PARAMS, 4),
    "blocks": lambda: jp.quantize(PARAMS, 4, spec=jp.QuantSpec(symmetric=False, block_size=4)),
    "codebook": lambda: jp.codebook.encode(PARAMS, 4),
    "trellis": lambda: {"kernel": trellis.quantize(PARAMS["kernel"], 0.1)},
    "n_of_m": lambda: jp.quantization.to_n_of_m(PARAMS, jp.masks.n_of_m(PARAMS, 2, 4)),
}


@pytest.mark.parametrize("name", FORMS)
def test_bytes_restore_what_was_stored(name):
    stored = FORMS[name]()
    target = jax.tree.map(np.zeros_like, stored)
    restored = serialization.from_bytes(target, serialization.to_bytes(stored))
    chex.assert_trees_all_equal(restored, stored)
    assert jax.tree.structure(restored) == jax.tree.structure(stored)
    chex.assert_trees_all_equal(jp.dequantize(restored), jp.dequantize(stored))


def test_a_target_of_another_kind_is_refused():
    four = serialization.to_bytes(jp.quantize(PARAMS, 4))
    with pytest.raises(ValueError, match="QArray of bits=4, dtype=float32; the target's is bits=8, dtype=float32"):
        serialization.from_bytes(jp.quantize(PARAMS, 8), four)
    with pytest.raises(ValueError, match=r"CodebookArray has the parts \['codes', 'centroids'"):
        serialization.from_bytes(jp.codebook.encode(PARAMS, 4), four)
