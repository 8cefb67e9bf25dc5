"""Sparse and low-precision training with the optax loop that people already have.

Transformations wrap an optimizer or stand at the end of a chain. Their states are arrays alone, masked weights are
exactly 0 after every ``optax.apply_updates``, and settings (sparsities, step counts, fractions) are traced, so that
``jax.vmap`` trains many of them in one program. :func:`masks_of` finds the masks in any optimizer state.
"""

from jaxprune.training.gradual import acdc, gradual_pruning, one_shot
from jaxprune.training.holding import HeldMasks, hold_masks, masks_of
from jaxprune.training.latent import masked_forward, straight_through
from jaxprune.training.lottery import Tickets, lottery_ticket
from jaxprune.training.renewal import PruningState
from jaxprune.training.running import RunningSaliency, movement, running_fisher
from jaxprune.training.sparse import SparseState, rigl, sparse_evolution, static_sparse

__all__ = [
    "HeldMasks",
    "PruningState",
    "RunningSaliency",
    "SparseState",
    "Tickets",
    "acdc",
    "gradual_pruning",
    "hold_masks",
    "lottery_ticket",
    "masked_forward",
    "masks_of",
    "movement",
    "one_shot",
    "rigl",
    "running_fisher",
    "sparse_evolution",
    "static_sparse",
    "straight_through",
]
