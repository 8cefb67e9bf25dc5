"""Plain NumPy for statistics of data: slow, obvious, float64."""

import math

import numpy as np


def windows(x, size, strides, padding, dilation, groups):
    """What a convolution multiplies its kernel with: [groups, T, K], channels before places in the window."""
    dilation = (dilation, dilation) if isinstance(dilation, int) else dilation
    reach = [(n - 1) * d + 1 for n, d in zip(size, dilation, strict=True)]
    if padding == "SAME":
        ends = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(x.shape[1:3], strides, reach, strict=True)]
        x = np.pad(x, [(0, 0), *((e // 2, e - e // 2) for e in ends), (0, 0)])
    rows = []
    for image in x:
        for i in range(0, image.shape[0] - reach[0] + 1, strides[0]):
            for j in range(0, image.shape[1] - reach[1] + 1, strides[1]):
                window = image[i : i + reach[0] : dilation[0], j : j + reach[1] : dilation[1]]
                rows.append(np.moveaxis(window, -1, 0).reshape(groups, -1))
    return np.stack(rows, 1)


def damped(gram, damping=0.01):
    gram = np.asarray(gram, np.float64)
    return gram + damping * np.mean(np.diag(gram)) * np.eye(len(gram))


def refitted(weights, done, gram, fixed):
    """Rows from ``fixed`` on that make up best, by least squares, for how the first ones differ."""
    lost = weights[:fixed] - done[:fixed]
    return weights[fixed:] + np.linalg.solve(gram[fixed:, fixed:], gram[fixed:, :fixed] @ lost)


def gptq(weights, gram, scale, top):
    """Rounds row after row; before each, the rows that are left are fitted anew."""
    weights, gram = np.asarray(weights, np.float64), damped(gram)
    done = np.zeros_like(weights)
    for i in range(len(weights)):
        row = refitted(weights, done, gram, i)[0]
        done[i] = (np.clip(np.round(row / scale), -top, top) * scale)[0]
    return done


def table_steps(rows, metric, weighted=None, head=None):
    """log2 of the steps of a table [V, d]: of its rows and columns.

    Args:
      rows: how often each is looked up.
      metric: sum of g g' of what is looked up [d, d].
      weighted, head: if it is the factor of a product: the gradient-weighted second moments [d, d] of the other factor,
        and the squared gradients of the products [V].
    """
    rows, metric = np.asarray(rows, np.float64), np.asarray(metric, np.float64)
    once, never = (rows == 1).sum(), (rows == 0).sum()
    expected = np.maximum(rows * (1 - once / rows.sum()), max(once, 1) / max(never, 1))
    costs = np.sqrt(expected * expected.mean()) * np.trace(metric) / rows.sum()
    gram = metric / np.trace(metric) * costs.sum()
    if head is not None:
        gram = gram + np.asarray(weighted, np.float64)
        costs = costs + np.asarray(head, np.float64) / np.sum(head) * np.trace(weighted)
    left = 1 / np.diag(np.linalg.cholesky(np.linalg.inv(damped(gram))).T) ** 2  # once those that follow make up
    costs = costs + 0.05 * costs.mean()
    return -np.log2(np.outer(costs / costs.sum(), left)) / 2


def cheapest(x, penalty):
    """The number of least squared error and bits of all near ones, with spreads by rows times columns."""
    rows = np.mean(x**2, 1, keepdims=True)
    spread = np.maximum(np.sqrt(rows * np.mean(x**2 / rows, 0, keepdims=True)), 0.05)
    normal = np.vectorize(lambda value: 0.5 * (1 + math.erf(value / math.sqrt(2))))
    near = np.arange(np.ceil(abs(x).max()) + 1).reshape(-1, 1, 1)
    share = normal((near + 0.5) / spread) - normal((near - 0.5) / spread)
    costs = (abs(x) - near) ** 2 - penalty * np.log2(np.maximum(share, 1e-5))
    allowed = (near == 0) | (near == np.floor(abs(x))) | (near == np.floor(abs(x)) + 1)
    return np.sign(x) * np.argmin(np.where(allowed, costs, np.inf), 0)


def sparsegpt(weights, gram, sparsity, block, rounded=lambda row: row):
    """In each block, removes what costs least by the inverse of what is left; then row after row is fitted anew.

    What stays of a row is rounded, too, before the next one is fitted.
    """
    weights, gram = np.asarray(weights, np.float64), damped(gram)
    done, (inputs, outputs) = np.zeros_like(weights), weights.shape
    for start in range(0, inputs, block):
        end = min(start + block, inputs)
        free = refitted(weights, done, gram, start)[: end - start]
        # The cost of a row, once all before it are fixed: one over the first entry of the inverse of what is left.
        costs = np.array([1 / np.linalg.inv(gram[i:, i:])[0, 0] for i in range(start, end)])
        score = np.abs(free) * np.sqrt(costs)[:, None]
        before, after = (int(np.floor(n * outputs * np.float32(sparsity) + 0.5)) for n in (start, end))
        gone = np.zeros(score.size, bool)
        gone[np.argsort(score.ravel(), kind="stable")[: after - before]] = True
        keep = ~gone.reshape(score.shape)
        for i in range(start, end):
            done[i] = np.where(keep[i - start], rounded(refitted(weights, done, gram, i)[0]), 0)
    return done


def magnitudes(histogram, largest, each=64):
    """Numbers spread evenly within the bins of an eighth of an octave, and how many each of them stands for."""
    ends = np.minimum((np.arange(2041, dtype=np.uint32) << 20).view(np.float32).astype(np.float64), largest)
    some = np.flatnonzero(histogram)
    inside = (np.arange(each) + 0.5) / each
    numbers = ends[some, None] + inside * np.diff(ends)[some, None]
    counts = np.repeat(np.asarray(histogram, np.float64)[some, None] / each, each, 1)
    return numbers.ravel(), counts.ravel()


def percentile(numbers, counts, q):
    return np.interp(q / 100 * counts.sum(), np.cumsum(counts), numbers)


def squared_error(numbers, counts, high, bits):
    top = 2 ** (bits - 1) - 1
    rounded = np.minimum(np.round(numbers / high * top), top) * high / top
    return np.sum(counts * (numbers - rounded) ** 2)


def divergence(counts, bins, levels):
    """As in the slides on TensorRT: of the first ``bins`` of linear ones, outliers in the last, from as many levels."""
    reference = counts[:bins].copy()
    reference[-1] += counts[bins:].sum()
    rounded = np.zeros(bins)
    for level in range(levels):
        own = [k for k in range(bins) if k * levels // bins == level and counts[k] > 0]
        rounded[own] = counts[own].sum() / max(len(own), 1)
    p, q = reference / reference.sum(), rounded / rounded.sum()
    with np.errstate(divide="ignore"):
        return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
