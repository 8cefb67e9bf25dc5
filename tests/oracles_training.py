"""NumPy oracles of training under sparsity: no JAX, nothing from the package, float64, clarity over speed."""

import math

import numpy as np
import oracles

# ---------------------------------------------------------------------------------------------------------------------
# Penalties, their derivatives and proximal operators; a unit is an index along the last axis


def l1(w):
    w = np.float64(w)
    return np.abs(w).sum(), np.sign(w)


def group_lasso(w):
    w = np.float64(w)
    columns = w.reshape(-1, w.shape[-1])
    lengths = np.sqrt((columns**2).sum(axis=0))
    weight = math.sqrt(len(columns))
    slope = weight * columns / np.where(lengths > 0, lengths, 1)
    return weight * lengths.sum(), slope.reshape(w.shape)


def hoyer(w):
    w = np.float64(w)
    total, squares = np.abs(w).sum(), (w**2).sum()
    if squares == 0:
        return 0.0, np.zeros_like(w)
    return total**2 / squares, 2 * total / squares * np.sign(w) - 2 * w * (total / squares) ** 2


def soft_threshold(x, strength):
    x = np.float64(x)
    return np.sign(x) * np.maximum(np.abs(x) - strength, 0)


def group_soft_threshold(x, strength):
    x = np.float64(x)
    columns = x.reshape(-1, x.shape[-1])
    lengths = np.sqrt((columns**2).sum(axis=0))
    cut = strength * math.sqrt(len(columns))
    shrunk = columns * np.where(lengths > cut, 1 - cut / np.where(lengths > 0, lengths, 1), 0)
    return shrunk.reshape(x.shape)


# ---------------------------------------------------------------------------------------------------------------------
# Hard-concrete gates


def _sigmoid(x):
    return 1 / (1 + np.exp(-np.float64(x)))


def final_gate(log_alpha):
    return np.clip(_sigmoid(log_alpha) * 1.2 - 0.1, 0, 1)


def gate_below(log_alpha, value):
    """P(gate <= value) for 0 <= value < 1."""
    s = (value + 0.1) / 1.2
    return _sigmoid(2 / 3 * math.log(s / (1 - s)) - np.float64(log_alpha))


def gate_open(log_alpha):
    """P(gate > 0), written out as in the paper."""
    return _sigmoid(np.float64(log_alpha) - 2 / 3 * math.log(0.1 / 1.1))


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def activation_taylor(activations, grads, normalize=False):
    a, g = np.float64(activations), np.float64(grads)
    a, g = (x.reshape(len(x), -1, x.shape[-1]) for x in (a, g))
    scores = np.zeros(a.shape[-1])
    for example in range(len(a)):
        scores += np.abs((a[example] * g[example]).sum(axis=0)) / max(a.shape[1], 1)
    scores /= max(len(a), 1)
    norm = math.sqrt((scores**2).sum())
    return scores / norm if normalize and norm else scores


def synflow(kernels):
    """Of a chain of matrices: |w_ij| times what comes in at i times what goes on from j."""
    kernels = [np.abs(np.float64(w)) for w in kernels]
    incoming = [np.ones(len(kernels[0]))]
    for w in kernels:
        incoming.append(incoming[-1] @ w)
    outgoing = [np.ones(kernels[-1].shape[1])]
    for w in kernels[::-1]:
        outgoing.append(w @ outgoing[-1])
    return [w * np.outer(i, o) for w, i, o in zip(kernels, incoming[:-1], outgoing[::-1][1:], strict=True)]


def masks_in_rounds(leaves, sparsity, score, rounds):
    """Scores the masked leaves anew in each round and removes down to 1 - (1 - s)**(k / rounds), over all leaves."""
    kept = [np.ones(np.shape(leaf), bool) for leaf in leaves]
    for k in range(1, rounds + 1):
        scores = score([np.where(mask, leaf, 0) for mask, leaf in zip(kept, leaves, strict=True)])
        # What has been removed ranks behind all else, scores of -inf included.
        ranked = [
            np.where(mask, np.maximum(np.float64(s), -1e300), -math.inf) for mask, s in zip(kept, scores, strict=True)
        ]
        fraction = sparsity if k == rounds else 1 - (1 - sparsity) ** (k / rounds)
        kept = oracles.masks_by_sparsity_global(ranked, fraction)
    return kept


# ---------------------------------------------------------------------------------------------------------------------
# k-means in one dimension


def nearest(x, centroids):
    """Index of the nearest centroid, of equal distances the lower, by trying all; exact for float32 of like size."""
    return np.argmin(np.abs(np.float64(x)[..., None] - np.float64(centroids)), axis=-1)


def lloyd(x, start, iterations):
    """Assigns to the nearest and moves to the mean, with all distances; an empty cluster keeps its centroid. The mean
    is that of float32: the sum rounded, the quotient rounded, not beyond the cluster."""
    x, centroids = np.float64(x).ravel(), np.float32(start).copy()
    for _ in range(iterations):
        assigned = nearest(x, centroids)
        for j in np.unique(assigned):
            cluster = x[assigned == j]
            mean = np.float32(cluster.sum()) / np.float32(cluster.size)
            centroids[j] = np.clip(mean, np.float32(cluster.min()), np.float32(cluster.max()))
    return centroids


def squared_error(x, table):
    return ((np.float64(x) - np.float64(table)[nearest(x, table)]) ** 2).sum()


def least_squared_error(x, k):
    """The least that any k values can leave, by dynamic programming over where the sorted values are cut."""
    x = np.sort(np.float64(x).ravel())
    cost = np.full((x.size + 1, x.size + 1), np.inf)
    for i in range(x.size + 1):
        cost[i, i] = 0
        for j in range(i + 1, x.size + 1):
            cost[i, j] = ((x[i:j] - x[i:j].mean()) ** 2).sum()
    best = cost[0]
    for _ in range(k - 1):
        best = (best[:, None] + cost).min(axis=0)
    return best[-1]


def sum_by_code(values, codes, k):
    """The sum of the values of each code, float64."""
    return np.array([np.float64(values)[np.asarray(codes) == j].sum() for j in range(k)])


# ---------------------------------------------------------------------------------------------------------------------
# Learned steps and clip levels: forward in float32, one rounding a step; gradients element by element


def code_ends(bits, signed=True, narrow=True):
    """(Q_n, Q_p)."""
    if not signed:
        return 0, 2**bits - 1
    return 2 ** (bits - 1) - (1 if narrow else 0), 2 ** (bits - 1) - 1


def lsq(w, step, bits, signed=True, narrow=True):
    """round(clip(w / s, -Q_n, Q_p)) * s; zeros are +0.0."""
    below, above = code_ends(bits, signed, narrow)
    ratio = np.float32(w) / np.float32(step)
    return (np.rint(np.clip(ratio, -below, above)) * np.float32(step) + np.float32(0)).astype(np.asarray(w).dtype)


def lsq_slopes(w, step, bits, number, signed=True, narrow=True):
    """d/dw, and d/ds times 1 / sqrt(number * Q_p), of each element; equations 3 and 5 of the paper, in float64."""
    below, above = code_ends(bits, signed, narrow)
    by_weight, by_step = np.zeros(np.shape(w)), np.zeros(np.shape(w))
    steps = np.broadcast_to(np.float32(step), np.shape(w))
    for i in np.ndindex(np.shape(w)):
        ratio = float(np.float32(w[i]) / steps[i])
        if ratio <= -below:
            by_step[i] = -below
        elif ratio >= above:
            by_step[i] = above
        else:
            by_weight[i], by_step[i] = 1, np.rint(ratio) - ratio
    return by_weight, by_step / math.sqrt(number * above)


def pact(x, alpha, bits):
    """round(clip(x, 0, alpha) / s) * s with s = alpha / (2**bits - 1); 0 for alpha <= 0."""
    if alpha <= 0:
        return np.zeros_like(x)
    step = np.float32(alpha) / np.float32(2**bits - 1)
    codes = np.rint(np.clip(np.float32(x), 0, np.float32(alpha)) / step)
    return (codes * step).astype(np.asarray(x).dtype)


def running_range(batches, decay):
    """The least and the largest finite value, from the first batch on: end = decay * end + (1 - decay) * new."""
    ends, decay = None, np.float32(decay)
    for batch in batches:
        finite = np.float32(batch)[np.isfinite(np.float32(batch))]
        if finite.size:
            new = np.array([finite.min(), finite.max()])
            ends = new if ends is None else decay * ends + (np.float32(1) - decay) * new
    return ends


# ---------------------------------------------------------------------------------------------------------------------
# Schedules, and training under masks


def _over(count, steps, begin):
    """The fraction of a transition that is over; None before it, 1 from its last step on."""
    if count < begin:
        return None
    return 1.0 if count >= begin + steps else (count - begin) / steps


def polynomial(count, first, last, power, steps, begin):
    over = _over(count, steps, begin)
    return first if over is None else last + (first - last) * (1 - over) ** power


def cosine(count, first, last, steps, begin):
    over = _over(count, steps, begin)
    return first if over is None else last + (first - last) * (1 + np.cos(np.pi * over)) / 2


def alternating(count, value, dense, sparse, begin, end):
    if end is not None and count >= end:
        return value
    return value if count >= begin and (count - begin) % (dense + sparse) < sparse else 0.0


def held_sgd(params, grads, keep, rate):
    """One SGD step in float32 under a mask that is given."""
    return np.where(keep, np.float32(params) - np.float32(rate) * np.float32(grads), np.float32(0))


def exchange(weights, grads, live, drop):
    """RigL: of the live weights the ``drop`` smallest go; of all others as many of the largest gradients come.

    Equal magnitudes: the lower flat index goes first, and the higher comes first.
    """
    w, g, live = np.abs(np.float64(weights)).ravel(), np.abs(np.float64(grads)).ravel(), np.ravel(live)
    index = np.arange(w.size)
    gone = [i for i in np.lexsort((index, w)) if live[i]][:drop]
    survives = live.copy()
    survives[gone] = False
    coming = [i for i in np.lexsort((index, g))[::-1] if not survives[i]][:drop]
    after = survives.copy()
    after[coming] = True
    return after.reshape(np.shape(weights))
