"""Masks: bool trees in the structure of the parameters; ``True`` keeps."""

from jaxprune.masks import allocation
from jaxprune.masks.application import apply_masks, sparsity_of
from jaxprune.masks.patterns import blocks, by_unit_entropy, by_unit_sparsity, n_of_m
from jaxprune.masks.selection import by_sparsity, by_threshold, thresholds

__all__ = [
    "allocation", "apply_masks", "blocks", "by_sparsity", "by_threshold", "by_unit_entropy", "by_unit_sparsity",
    "n_of_m", "sparsity_of", "thresholds",
]  # fmt: skip
