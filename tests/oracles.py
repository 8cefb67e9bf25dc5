"""Plain NumPy oracles of the library's semantics: no JAX, nothing from the package, clarity over speed.

Masks are bool arrays, True = keep. Sparsity is the fraction removed. A unit is an index along the last axis.
Every oracle takes one array (or a list of arrays, for global rankings). float16 and bfloat16 inputs are widened first,
which is exact. Settings are rounded to float32, as the library receives them.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

F32 = np.float32


def _f32(x):
    return np.asarray(x).astype(F32)


def _f64(x):
    return np.asarray(x).astype(np.float64)


def _quiet():
    return np.errstate(all="ignore")


def _other_axes(w):
    return tuple(range(np.ndim(w) - 1))


def bits_equal(a, b):
    """Same shape, same dtype, same bits, except that every NaN equals every NaN; -0.0 differs from 0.0."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    nan = np.isnan(_f64(a))
    same_bits = (_f64(a) == _f64(b)) & (np.signbit(_f64(a)) == np.signbit(_f64(b)))
    return bool(np.array_equal(nan, np.isnan(_f64(b))) and np.all(same_bits | nan))


# ---------------------------------------------------------------------------------------------------------------------
# Selection


def count_removed(n, sparsity):
    """round_half_up(n * float32(sparsity)) = floor(n * s + 1/2), exactly, in rationals."""
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity {sparsity} is outside [0, 1]")
    return math.floor(n * Fraction(float(F32(sparsity))) + Fraction(1, 2))


def total_order(scores):
    """Flat indices from the first removed to the last: by (is NaN, score, flat index), with -0.0 equal to 0.0."""
    s = _f64(scores).ravel()
    nan = np.isnan(s)
    values = np.where(nan, 0.0, s) + 0.0  # -0.0 + 0.0 is 0.0
    return np.lexsort((np.arange(s.size), values, nan))  # the last key is the primary one


def mask_by_sparsity(scores, sparsity):
    """Removes the first count_removed(n, s) entries of the total order."""
    keep = np.ones(np.size(scores), bool)
    keep[total_order(scores)[: count_removed(keep.size, sparsity)]] = False
    return keep.reshape(np.shape(scores))


def masks_by_sparsity_global(leaves: Sequence, sparsity, min_keep=0):
    """One ranking over all leaves in order; the min(min_keep, size) best entries of each leaf are protected, and
    min(count_removed(total, s), unprotected) of the others go."""
    flat = np.concatenate([np.zeros(0)] + [_f64(leaf).ravel() for leaf in leaves])
    protected = np.zeros(flat.size, bool)
    starts = np.cumsum([0] + [np.size(leaf) for leaf in leaves])
    for leaf, start in zip(leaves, starts, strict=False):
        best = total_order(leaf)[max(np.size(leaf) - min_keep, 0) :]
        protected[start + best] = True
    removable = [i for i in total_order(flat) if not protected[i]]
    keep = np.ones(flat.size, bool)
    keep[removable[: count_removed(flat.size, sparsity)]] = False
    return [keep[start : start + np.size(x)].reshape(np.shape(x)) for x, start in zip(leaves, starts, strict=False)]


def mask_by_threshold(scores, threshold):
    """keep = not (score < float32(threshold)); NaN is kept, -0.0 is not below 0.0."""
    with _quiet():
        return ~(_f64(scores) < float(F32(threshold)))


def threshold_of(scores, sparsity):
    """Score of the first kept entry in the total order (rank count_removed), +inf if everything is removed."""
    k = count_removed(np.size(scores), sparsity)
    return float(_f64(scores).ravel()[total_order(scores)[k]]) if k < np.size(scores) else math.inf


def n_of_m(scores, n, m, axis=-2, pad=False):
    """Keeps the n last in the total order of every m consecutive entries along axis; a tail of L keeps min(n, L)."""
    if m < 1 or not 0 <= n <= m:
        raise ValueError(f"{n}:{m} needs 0 <= n <= m and m >= 1")
    s = np.moveaxis(_f64(scores), axis, -1)
    length = s.shape[-1]
    if length % m and not pad:
        raise ValueError(f"axis {axis} of length {length} is not divisible by {m}")
    keep = np.zeros(s.shape, bool)
    for row in np.ndindex(s.shape[:-1]):
        for start in range(0, length, m):
            group = s[row][start : start + m]
            best = total_order(group)[max(len(group) - n, 0) :]
            keep[row][start + best] = True
    return np.moveaxis(keep, -1, axis)


def _block_slices(shape, block_shape):
    """Row-major list of the slices of all blocks; a leading axis that block_shape does not name has extent 1."""
    extents = (1,) * (len(shape) - len(block_shape)) + tuple(block_shape)
    grid = [-(-size // extent) for size, extent in zip(shape, extents, strict=True)]
    return [
        tuple(slice(i * extent, (i + 1) * extent) for i, extent in zip(index, extents, strict=True))
        for index in np.ndindex(*grid)
    ]


def block_sums(scores, block_shape):
    """Sum of the scores over each block, flat in row-major block order."""
    with _quiet():
        return np.array([_f64(scores)[s].sum() for s in _block_slices(np.shape(scores), block_shape)])


def block_means(scores, block_shape):
    """Mean of the scores over the entries that each block really has: what blocks are ranked by."""
    sizes = [_f64(scores)[s].size for s in _block_slices(np.shape(scores), block_shape)]
    with _quiet():
        return block_sums(scores, block_shape) / np.array(sizes, np.float64)


def blocks(scores, sparsity, block_shape):
    """Removes count_removed(number of blocks, s) blocks of least mean score, partial blocks at the edges included."""
    keep = np.ones(np.shape(scores), bool)
    kept_blocks = mask_by_sparsity(block_means(scores, block_shape), sparsity)
    for kept, block in zip(kept_blocks, _block_slices(keep.shape, block_shape), strict=True):
        keep[block] = kept
    return keep


def apply_mask(w, mask):
    """where(mask, w, +0.0): the kept entries keep their bits, the others are +0.0 whatever they were."""
    w = np.asarray(w)
    return np.where(np.broadcast_to(mask, w.shape), w, np.zeros((), w.dtype))


# ---------------------------------------------------------------------------------------------------------------------
# Saliency


def magnitude(w):
    """|w|, in float32 (exact)."""
    return np.abs(_f32(w))


def gradient(w, g):
    """|w * g|, in float32 (one rounding)."""
    with _quiet():
        return np.abs(_f32(w) * _f32(g))


def fisher(w, squared_grads):
    """w**2 * squared_grads / 2, in float64."""
    with _quiet():
        return _f64(w) ** 2 * _f64(squared_grads) / 2


def connection_entropy(w):
    """-p log2 p with p = |w| / sum of |w| over the unit; 0 log 0 = 0; a zero unit gives zeros. float64."""
    a = np.abs(_f64(w))
    total = a.sum(axis=_other_axes(w), keepdims=True)
    with _quiet():
        p = np.where(total == 0, 0.0, a / np.where(total == 0, 1.0, total))
        return np.where(p == 0, 0.0, -p * np.log2(np.where(p == 0, 1.0, p))) + 0.0


def unit_norm(w, ord=1):
    """(sum over the unit of |w|**ord) ** (1 / ord), shape (1, .., 1, C). float64."""
    with _quiet():
        return (np.abs(_f64(w)) ** ord).sum(axis=_other_axes(w), keepdims=True) ** (1 / ord)


def geometric_median(w):
    """Sum of the distances to all other units whose weights are finite, shape (1, .., 1, C); NaN for a unit whose own
    are not. float64, by differences."""
    units = _f64(w).reshape(-1, np.shape(w)[-1]).T
    finite = np.isfinite(units).all(axis=1)
    scores = np.full(len(units), np.nan)
    for i in np.flatnonzero(finite):
        scores[i] = np.sqrt(((units[finite] - units[i]) ** 2).sum(axis=1)).sum()
    return scores.reshape((1,) * (np.ndim(w) - 1) + (-1,))


def entropy_of_counts(counts):
    """-sum p log2 p in bits, p = counts / sum of counts; no counts give 0."""
    total = sum(int(c) for c in counts)
    return sum(-(c / total) * math.log2(c / total) for c in map(int, counts) if c) + 0.0


def bin_indices(x, lo, hi, bins, dtype=F32):
    """min(floor((x - lo) / (hi - lo) * bins), bins - 1), each step rounded to dtype; all 0 when hi == lo."""
    x, lo, hi = np.asarray(x).astype(dtype), dtype(lo), dtype(hi)
    if lo == hi:
        return np.zeros(x.shape, int)
    with _quiet():
        return np.minimum(np.floor((x - lo) / (hi - lo) * dtype(bins)), bins - 1).astype(int)


def _entropy_per_unit(x, bins, dtype):
    x = np.asarray(x)
    units = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    finite = np.isfinite(_f64(units))
    result = np.zeros(x.shape[-1])
    if not finite.any():
        return result
    lo, hi = _f64(units)[finite].min(), _f64(units)[finite].max()
    for c in range(x.shape[-1]):
        index = bin_indices(units[finite[:, c], c], lo, hi, bins, dtype)
        result[c] = entropy_of_counts(np.bincount(index, minlength=bins))
    return result


def unit_entropy(w, bins, dtype=F32):
    """Bits of the histogram of each unit's finite weights over equal bins between the leaf's finite min and max,
    shape (1, .., 1, C). The bin of a value on an edge depends on rounding: dtype is the one that is binned in."""
    return _entropy_per_unit(w, bins, dtype).reshape((1,) * (np.ndim(w) - 1) + (-1,))


def unit_sparsity(w):
    """zeros / elements of each unit, shape (1, .., 1, C), float32; -0.0 is a zero, NaN is none; no elements give 0."""
    zeros = (_f64(w) == 0).sum(axis=_other_axes(w), keepdims=True)
    return (zeros / max(math.prod(np.shape(w)[:-1]), 1)).astype(F32)


def activation_entropy(activations, bins, dtype=F32):
    """Bits of the histogram of each unit's finite activations; every leading axis of (..., C) is samples; equal bins
    between the whole array's finite min and max; shape (C,)."""
    return _entropy_per_unit(activations, bins, dtype)


def by_unit_entropy(w, threshold, bins, dtype=F32):
    """Unit kept when H >= threshold (both in float32), shape (1, .., 1, C)."""
    return unit_entropy(w, bins, dtype).astype(F32) >= F32(threshold)


def by_unit_sparsity(w, threshold):
    """Unit kept when its fraction of zeros <= threshold (both in float32), shape (1, .., 1, C)."""
    return unit_sparsity(w) <= F32(threshold)


# ---------------------------------------------------------------------------------------------------------------------
# Quantization: float32, one rounding a step


def round_bits(bits):
    """floor(bits + 1/2), for bits in 1..16."""
    if not 1 <= bits <= 16:
        raise ValueError(f"bits {bits} is outside 1..16")
    return math.floor(Fraction(float(F32(bits))) + Fraction(1, 2))


def range_ids(shape, axis=None, block_size=None):
    """For each entry, the number of the range it shares. axis: one range for each index of the kept axis or axes.
    block_size: one for each block of the contraction axis (-2, or 0 in 1-D) and index of every other axis."""
    if block_size is not None:
        if axis is not None:
            raise ValueError("block_size already gives a range to every index of the other axes")
        contraction = len(shape) - min(len(shape), 2)
        steps = [block_size if i == contraction else 1 for i in range(len(shape))]
    else:
        kept = () if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
        kept = {a % len(shape) for a in kept}
        steps = [1 if i in kept else max(size, 1) for i, size in enumerate(shape)]
    ids = np.zeros(shape, int)
    for i, (size, step) in enumerate(zip(shape, steps, strict=True)):
        position = (np.arange(size) // step).reshape([-1 if j == i else 1 for j in range(len(shape))])
        ids = ids * -(-size // step) + position
    return ids


def _finite(x):
    x = _f32(x).ravel()
    return x[np.isfinite(x)]


def symmetric_scale(x, bits, clip=1.0):
    """max |x| / (2**(b-1) - 1) over finite x in float32 (at 1 bit mean |x|), times the clip ratio; 0 without any."""
    b, a = round_bits(bits), np.abs(_finite(x))
    if a.size == 0:
        return F32(0)
    scale = F32(a.astype(np.float64).mean()) if b == 1 else a.max() / F32(2 ** (b - 1) - 1)
    return scale if clip == 1 else F32(scale * F32(clip))


def asymmetric_scale_zero_point(x, bits):
    """lo = min(x, 0), hi = max(x, 0) over finite x; scale = (hi - lo) / (2**b - 1);
    zero_point = clip(round_half_even(-lo / scale), 0, 2**b - 1)."""
    levels, finite = F32(2 ** round_bits(bits) - 1), _finite(x)
    lo, hi = (min(finite.min(), F32(0)), max(finite.max(), F32(0))) if finite.size else (F32(0), F32(0))
    scale = F32(hi - lo) / levels
    if scale == 0:
        return F32(0), 0
    return scale, int(np.clip(np.rint(-lo / scale), 0, levels))


def symmetric_codes(x, scale, bits):
    """clip(round_half_even(x / scale), -q, q), q = 2**(b-1) - 1, int64; at 1 bit sign(x); 0 for NaN or zero scale."""
    b, x = round_bits(bits), _f32(x)
    q = max(2 ** (b - 1) - 1, 1)
    if scale == 0:
        return np.zeros(x.shape, np.int64)
    with _quiet():
        codes = np.sign(x) if b == 1 else np.clip(np.rint(x / F32(scale)), -q, q)
    return np.where(np.isnan(x), 0, codes).astype(np.int64)


def asymmetric_codes(x, scale, zero_point, bits):
    """clip(round_half_even(x / scale) + zero_point, 0, 2**b - 1), int64; zero_point for NaN or zero scale."""
    x = _f32(x)
    if scale == 0:
        return np.full(x.shape, zero_point, np.int64)
    with _quiet():
        codes = np.clip(np.rint(x / F32(scale)) + F32(zero_point), 0, 2 ** round_bits(bits) - 1)
    return np.where(np.isnan(x), zero_point, codes).astype(np.int64)


def dequantize(codes, scale, zero_point=0):
    """(code - zero_point) * scale in float32; code 0 is +0.0."""
    with _quiet():
        return (np.asarray(codes) - zero_point).astype(F32) * F32(scale)


def _fake_quant(x, one_range, axis, block_size):
    x = np.asarray(x)
    ids, out = range_ids(x.shape, axis, block_size), np.zeros(x.shape, F32)
    for i in np.unique(ids):
        out[ids == i] = one_range(_f32(x)[ids == i])
    with _quiet():
        return np.where(np.isnan(_f32(x)), F32(np.nan), out).astype(x.dtype)


def fake_quant_symmetric(x, bits, axis=None, block_size=None, clip=1.0, scale=None):
    """symmetric_codes * scale for each range, float32 then cast back once. Zero scale gives +0.0, inf saturates,
    NaN stays NaN in its place alone. A given scale replaces the calibrated one."""

    def one_range(v):
        s = symmetric_scale(v, bits, clip) if scale is None else F32(scale)
        return dequantize(symmetric_codes(v, s, bits), s)

    return _fake_quant(x, one_range, axis, block_size)


def fake_quant_short(x, bits, axis=-1):
    """As files are quantized by default: a scale an index of ``axis``, rounded up to three binary digits."""
    top, others = F32(2 ** (bits - 1) - 1), tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    fraction, exponent = np.frexp(np.abs(x).max(others, keepdims=True).astype(F32) / top)
    scale = np.ldexp(np.ceil(fraction * 16) / 16, exponent).astype(F32)
    codes = np.divide(x.astype(F32), scale, where=scale > 0, out=np.zeros(x.shape, F32))
    return (np.clip(np.rint(codes), -top, top) * scale + F32(0)).astype(x.dtype)


def fake_quant_asymmetric(x, bits, axis=None, block_size=None):
    """(asymmetric_codes - zero_point) * scale for each range, float32 then cast back once; as above otherwise."""

    def one_range(v):
        s, zero_point = asymmetric_scale_zero_point(v, bits)
        return dequantize(asymmetric_codes(v, s, zero_point, bits), s, zero_point)

    return _fake_quant(x, one_range, axis, block_size)


def fixed_point(w, exponent):
    """ldexp(round_half_even(ldexp(w, -e)), e), in float64 so that no intermediate overflows, then cast back once.
    Plain IEEE: a negative weight that rounds to zero gives -0.0."""
    w = np.asarray(w)
    with _quiet():
        return np.ldexp(np.rint(np.ldexp(_f64(w), -exponent)), exponent).astype(F32).astype(w.dtype)


def fixed_point_codes(w, exponent):
    """int32 round_half_even(w / 2**e), saturated to the int32 range; 0 for NaN."""
    info = np.iinfo(np.int32)
    with _quiet():
        codes = np.clip(np.rint(np.ldexp(_f64(w), -exponent)), info.min, info.max)
    return np.where(np.isnan(codes), 0, codes).astype(np.int32)


# ---------------------------------------------------------------------------------------------------------------------
# Calibration, allocation, sweep


def percentile_range(x, q):
    """The q-th percentile (q in [0, 100], linear interpolation) of |x| over finite x, float64; 0 without any."""
    a = np.sort(np.abs(_finite(x)).astype(np.float64))
    if a.size == 0:
        return 0.0
    position = (a.size - 1) * q / 100
    below = math.floor(position)
    above = min(below + 1, a.size - 1)
    return float(a[below] + (a[above] - a[below]) * (position - below))


def clip_error(x, bits, clip):
    """Mean over finite x of (fake_quant_symmetric(x, clip) - x)**2, float64; 0 without any."""
    finite = _finite(x)
    error = _f64(fake_quant_symmetric(finite, bits, clip=clip)) - _f64(finite)
    return float(np.mean(error**2)) if finite.size else 0.0


def mse_clip(x, bits, candidates):
    """The clip ratio of least clip_error; the first on ties."""
    errors = [clip_error(x, bits, c) for c in candidates]
    return candidates[errors.index(min(errors))]


def uniform(shapes, sparsity):
    """The same float32(sparsity) for every layer."""
    return [float(F32(sparsity)) for _ in shapes]


def erdos_renyi_kernel(shapes, sparsity):
    """Density = min(1, eps * sum(shape) / prod(shape)), eps such that the kept total is (1 - s) * N (Evci et al. 2020);
    a layer that would exceed 1 is dense and the others share the rest. Layers without entries get sparsity 0."""
    sizes = [math.prod(shape) for shape in shapes]
    budget = (1 - Fraction(float(F32(sparsity)))) * sum(sizes)
    open_layers = [i for i, size in enumerate(sizes) if size]
    density = [Fraction(1)] * len(shapes)
    while open_layers:
        dense = sum(size for i, size in enumerate(sizes) if i not in open_layers)
        eps = (budget - dense) / sum(sum(shapes[i]) for i in open_layers)
        trial = {i: eps * Fraction(sum(shapes[i]), sizes[i]) for i in open_layers}
        over = [i for i in open_layers if trial[i] > 1]
        if not over:
            for i, d in trial.items():
                density[i] = d
            break
        open_layers = [i for i in open_layers if i not in over]
    return [float(1 - d) for d in density]


def pareto_front(cost, metric):
    """Indices, by cost, of the points that no other beats (cost <= and metric >=, one of them strictly); of equal
    points the first; a point with a NaN is never on the front and beats nobody."""
    points = [(float(c), float(m)) for c, m in zip(cost, metric, strict=True)]
    valid = [i for i, (c, m) in enumerate(points) if not (math.isnan(c) or math.isnan(m))]

    def beats(j, i):
        (cj, mj), (ci, mi) = points[j], points[i]
        return cj <= ci and mj >= mi and (points[j] != points[i] or j < i)

    return sorted((i for i in valid if not any(beats(j, i) for j in valid)), key=lambda i: points[i][0])


# ---------------------------------------------------------------------------------------------------------------------
# Structure


def merged_batch_norm(kernel, bias, scale, offset, mean, var, epsilon):
    """Kernel and bias of a layer with the BatchNorm after it folded in, float64; None where there is none."""
    factor = (1.0 if scale is None else _f64(scale)) / np.sqrt(_f64(var) + epsilon)
    centered = (0.0 if bias is None else _f64(bias)) - _f64(mean)
    return _f64(kernel) * factor, centered * factor + (0.0 if offset is None else _f64(offset))


def n_of_m_storage(w, mask, n, m, axis):
    """Values and packed indices of an N:M array: group by group, filled up with zeros at the lowest free places."""
    rows, kept = np.moveaxis(w, axis, -1), np.moveaxis(np.broadcast_to(mask, w.shape), axis, -1)
    values = np.zeros((*rows.shape[:-1], rows.shape[-1] // m * n), w.dtype)
    bits, width = [], math.ceil(math.log2(m))
    for row in np.ndindex(rows.shape[:-1]):
        for group in range(rows.shape[-1] // m):
            inside = list(kept[row][group * m : group * m + m])
            free = [i for i in range(m) if not inside[i]]
            places = sorted([i for i in range(m) if inside[i]] + free[: n - sum(inside)])
            for slot, i in enumerate(places):
                if inside[i]:
                    values[(*row, group * n + slot)] = rows[(*row, group * m + i)]
                bits += [i >> b & 1 for b in range(width)]
    return np.moveaxis(values, -1, axis), np.packbits(np.array(bits, np.uint8), bitorder="little")


def least_squares_scales(codes, weights, inputs):
    """For each column the scale s of codes c that minimizes |x c s - x w|**2 over rows x."""
    found = []
    for column, wanted in zip(codes.T.astype(np.float64), weights.T.astype(np.float64), strict=True):
        ours, theirs = inputs.astype(np.float64) @ column, inputs.astype(np.float64) @ wanted
        found.append((ours @ theirs) / (ours @ ours))
    return np.array(found)
