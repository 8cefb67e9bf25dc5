"""How others select, restated in a few lines each: scores and a sparsity in, a mask out."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def copy(x: jax.Array) -> jax.Array:
    """One read and one write: what a memory can do at best."""
    return x * 2


def argsort_mask(scores: jax.Array, sparsity: jax.Array) -> jax.Array:
    """As JaxPruner does it: an argsort of the whole tensor for one threshold; of its equals, lower indices stay."""
    flat = scores.reshape(-1)
    kept = jnp.maximum(1, jnp.round(flat.size * (1 - sparsity)).astype(int))
    last = jnp.argsort(-flat)[kept - 1]
    mask = (flat >= flat[last]) & ((jnp.arange(flat.size) <= last) | (flat != flat[last]))
    return mask.reshape(scores.shape).astype(jnp.uint8)


def sort_mask(scores: jax.Array, sparsity: jax.Array) -> jax.Array:
    """A sort, and a comparison with one element of it; equals stay."""
    flat = scores.reshape(-1)
    removed = jnp.round(flat.size * sparsity).astype(int)
    return scores >= jnp.sort(flat)[removed]


def top_k_mask(scores: jax.Array, kept: int) -> jax.Array:
    """``lax.top_k``, whose k is static, and a comparison with its last value; equals stay."""
    return scores >= jax.lax.top_k(scores.reshape(-1), kept)[0][-1]


def partition_mask(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """``np.partition`` and a comparison; equals stay."""
    removed = round(scores.size * sparsity)
    return scores >= np.partition(scores, removed, axis=None)[removed]


def kthvalue_mask(scores: Any, sparsity: float) -> Any:
    """``torch.kthvalue`` and a comparison; equals stay."""
    return scores >= scores.flatten().kthvalue(round(scores.numel() * sparsity) + 1).values


def torch_prune_mask(torch: Any, weights: Any, sparsity: float) -> Any:
    """The mask that ``torch.nn.utils.prune.l1_unstructured`` computes, without the module around it."""
    prune = importlib.import_module("torch.nn.utils.prune")  # torch need not have imported it
    return prune.L1Unstructured(amount=sparsity).compute_mask(weights, torch.ones_like(weights))
