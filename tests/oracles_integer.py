"""Products of rounded activations and codes, in plain NumPy: sums in int64."""

import numpy as np


def activations(x, axes):
    """Codes and scales: int64, and float32 with one entry along the axes."""
    x = np.asarray(x, np.float32)
    scale = np.abs(x).max(axes, keepdims=True) / np.float32(127)
    scale = np.where(scale > 0, scale, np.float32(1))
    return np.clip(np.round(x / scale), -127, 127).astype(np.int64), scale


def rounded(x, axes):
    """What activations stand for."""
    codes, scale = activations(x, axes)
    return codes * np.float64(scale)


def dot(x, leaf):
    """``x @ leaf`` of [T, K] and a QArray [K, N]: by blocks of inputs that share a scale."""
    codes, scale = activations(x, (1,))
    size = leaf.spec.block_size or leaf.codes.shape[0]
    total = np.zeros((len(x), leaf.codes.shape[1]))
    for block, start in enumerate(range(0, leaf.codes.shape[0], size)):
        part = slice(start, start + size)
        own, zero = (
            np.asarray(one)[block] if leaf.spec.block_size else np.asarray(one) for one in (leaf.scale, leaf.zero_point)
        )
        numbers = np.asarray(leaf.codes, np.int64)[part] - np.asarray(zero, np.int64)
        total += (codes[:, part] @ numbers) * np.float64(own)
    return total * scale
