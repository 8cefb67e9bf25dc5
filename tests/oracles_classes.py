"""The coder of classes and the trellis quantizer, written down again one entry at a time: nothing from jaxprune."""

import itertools

import numpy as np
from oracles_files import number, small_integers, stream, table

# ---------------------------------------------------------------------------------------------------------------------
# Files


def classes(data, shape):
    """What the coder `classes` coded: int32 [rows, columns]."""
    sides, at, levels = data[0], 1, []
    for length, bit in zip(shape, (1, 2), strict=True):
        if sides & bit:
            center, at = number(data, at)
            folded, at = small_integers(data, at, length)
            levels.append([center + (-(v + 1) // 2 if v % 2 else v // 2) for v in folded])
        else:
            levels.append([0] * length)
    a, b = levels
    places = {}
    for i, j in itertools.product(range(shape[0]), range(shape[1])):
        places.setdefault(a[i] + b[j], []).append((a[i], i, j))
    tables, ordered = [], []
    for key in sorted(places):
        symbols, levels, at = table(data, at)
        tables += [list(zip(symbols, levels, strict=True))] * len(places[key])
        ordered += [place[1:] for place in sorted(places[key])]
    codes = np.zeros(shape, np.int32)
    codes[tuple(np.array(ordered).T)] = stream(data[at:], tables)
    return codes


# ---------------------------------------------------------------------------------------------------------------------
# The trellis

TAPS = {4: (1,), 8: (1, 2), 16: (1, 3), 32: (2, 4)}


def branch(state, index, states):
    """Twice the number that an index stands for in a state, and the state after it."""
    flips = sum(state >> tap & 1 for tap in TAPS[states])
    value = -(4 * index + 1) if state % 2 else 4 * index + 1
    return value, (2 * state + (index + state + flips) % 2) % states


def trellis_numbers(indices, states, zero):
    """Twice the numbers of an array of indices."""
    flat = np.asarray(indices).reshape(-1).tolist()
    lanes = max(1, -(-len(flat) // 512))
    values = np.zeros(len(flat))
    for lane in range(lanes):
        state = 0
        for i in range(lane, len(flat), lanes):
            index = flat[i]
            if index != zero:
                index -= zero == 0 and index > 0
                values[i], state = branch(state, index, states)
    return values.reshape(np.shape(indices))


def least_error(x, states):
    """The least sum of squares that a sequence of numbers, in steps, can be quantized with: by trying all paths."""
    paths = {(0, ()): 0.0}
    for value in x:
        longer = {}
        for (state, path), cost in paths.items():
            for parity in (0, 1):
                mirrored = -value if state % 2 else value
                index = parity + 2 * round((mirrored - 0.5 - 2 * parity) / 4)
                number, after = branch(state, index, states)
                longer[after, (*path, index)] = cost + (value - number / 2) ** 2
        paths = longer
    return min(paths.values())


# ---------------------------------------------------------------------------------------------------------------------
# Rounding by error and bits


def bits_of(groups):
    """For each group of magnitudes, the bits of 0, 1, ... by their shares among all of them."""
    together = np.concatenate([group.reshape(-1) for group in groups]).astype(int)
    counts = np.bincount(together, minlength=1024)
    with np.errstate(divide="ignore"):
        bits = -np.log2(counts / len(together))
    return np.where(counts > 0, bits, 64) + (np.arange(len(counts)) > 0)


def rate_distortion(arrays, step, penalty, scope):
    """Integers for each array."""
    sizes = [np.abs(x) / step for x in arrays]
    codes = [np.ceil(a - 0.5) for a in sizes]
    for _ in range(4 if penalty else 0):
        bits = [bits_of(codes)] * len(codes) if scope == "global" else [bits_of([code]) for code in codes]
        found = []
        for a, b in zip(sizes, bits, strict=True):
            ways = np.stack([np.floor(a), np.ceil(a), np.zeros_like(a)])
            costs = (ways - a) ** 2 + penalty * b[ways.astype(int)]
            near = np.argmin(costs[:2], axis=0)
            best = np.where(costs[2] <= np.min(costs[:2], axis=0), 0, np.take_along_axis(ways, near[None], 0)[0])
            found.append(best)
        codes = found
    return [np.where(x < 0, -code, code).astype(int) for x, code in zip(arrays, codes, strict=True)]


def objective(arrays, codes, step, penalty):
    """Squared error in steps, and what the bits cost, of integers that share one code."""
    error = sum(((x / step - code) ** 2).sum() for x, code in zip(arrays, codes, strict=True))
    sizes = [np.abs(code) for code in codes]
    bits = bits_of(sizes)
    return error + penalty * sum(bits[size].sum() for size in sizes)
