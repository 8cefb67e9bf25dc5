"""Sparse and low-precision training with the optax loop that people already have.

Transformations wrap an optimizer or stand at the end of a chain. Their states are arrays alone, masked weights are
exactly 0 after every ``optax.apply_updates``, and settings (sparsities, step counts, fractions) are traced, so that
``jax.vmap`` trains many of them in one program. :func:`masks_of` finds the masks in any optimizer state.
"""

from jaxprune.training.activations import Range, clip_activations, init_range, observe, range_qparams
from jaxprune.training.foresight import grasp, prune_at_start, snip, synflow
from jaxprune.training.gates import apply_gates, expected_l0, gate_masks, init_gates
from jaxprune.training.gradual import acdc, gradual_pruning, one_shot
from jaxprune.training.holding import HeldMasks, hold_masks, masks_of
from jaxprune.training.latent import masked_forward, straight_through
from jaxprune.training.lottery import Tickets, lottery_ticket
from jaxprune.training.penalties import group_lasso, hoyer, l1
from jaxprune.training.proximal import ProximalState, group_soft_threshold, soft_threshold
from jaxprune.training.quantization import init_step_sizes, learned_step_size, step_qparams
from jaxprune.training.renewal import PruningState
from jaxprune.training.running import RunningSaliency, movement, running_fisher
from jaxprune.training.sharing import SharedState, Shares, centroids_of, shared_weights, with_centroids
from jaxprune.training.sparse import SparseState, rigl, sparse_evolution, static_sparse

__all__ = [
    "HeldMasks",
    "ProximalState",
    "PruningState",
    "Range",
    "RunningSaliency",
    "SharedState",
    "Shares",
    "SparseState",
    "Tickets",
    "acdc",
    "apply_gates",
    "centroids_of",
    "clip_activations",
    "expected_l0",
    "gate_masks",
    "gradual_pruning",
    "grasp",
    "group_lasso",
    "group_soft_threshold",
    "hold_masks",
    "hoyer",
    "init_gates",
    "init_range",
    "init_step_sizes",
    "l1",
    "learned_step_size",
    "lottery_ticket",
    "masked_forward",
    "masks_of",
    "movement",
    "observe",
    "one_shot",
    "prune_at_start",
    "range_qparams",
    "rigl",
    "running_fisher",
    "shared_weights",
    "snip",
    "soft_threshold",
    "sparse_evolution",
    "static_sparse",
    "step_qparams",
    "straight_through",
    "synflow",
    "with_centroids",
]
