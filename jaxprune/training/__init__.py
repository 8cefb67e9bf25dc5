"""Sparse and low-precision training with the optax loop that people already have.

Transformations wrap an optimizer or stand at the end of a chain. Their states are arrays alone, masked weights are
exactly 0 after every ``optax.apply_updates``, and settings (sparsities, step counts, fractions) are traced, so that
``jax.vmap`` trains many of them in one program. :func:`masks_of` finds the masks in any optimizer state.
"""

from jaxprune.training.activation_ranges import clip_activations, init_range, observe, range_qparams
from jaxprune.training.criteria import RunningSaliency, grasp, movement, running_fisher, snip, synflow
from jaxprune.training.gradual_masks import gradual_pruning, masked_forward, one_shot, straight_through
from jaxprune.training.held_masks import hold_masks, masks_of
from jaxprune.training.l0_gates import apply_gates, expected_l0, gate_masks, init_gates
from jaxprune.training.lsq import init_step_sizes, learned_step_size, step_qparams
from jaxprune.training.penalties import group_lasso, hoyer, l1, soft_threshold
from jaxprune.training.rounds import lottery_ticket, prune_at_start
from jaxprune.training.sparse_training import rigl, sparse_evolution, static_sparse
from jaxprune.training.weight_sharing import shared_weights

__all__ = [
    "RunningSaliency", "apply_gates", "clip_activations", "expected_l0", "gate_masks", "gradual_pruning", "grasp",
    "group_lasso", "hold_masks", "hoyer", "init_gates", "init_range", "init_step_sizes", "l1", "learned_step_size",
    "lottery_ticket", "masked_forward", "masks_of", "movement", "observe", "one_shot", "prune_at_start",
    "range_qparams", "rigl", "running_fisher", "shared_weights", "snip", "soft_threshold", "sparse_evolution",
    "static_sparse", "step_qparams", "straight_through", "synflow",
]  # fmt: skip
