"""What a matrix of small integers, mostly zeros, leads one to expect of each entry from the entries before it.

Entries come diagonal by diagonal, from the first row and column; the entry at (i, j) is on diagonal i + j. All of one
diagonal are foretold at once, and by then everything above and to the left of each is known: its row so far, its column
so far. So there are only rows + columns steps, each on whole arrays. Three walks: which entries are not zero; the signs
of these; their magnitudes. ``lags`` are numbers of rows: the entry so many rows above is a feature (the pixel above, of
an image's pixels in rows; a kernel's neighbour).

Each walk takes an :data:`~jaxprune.files.learning.Ask`, and the truth, which is not looked at where bits are read.
Numbers are as :mod:`jaxprune.files.learning` says.
"""

import math
from collections.abc import Iterator

import numpy as np

from jaxprune.files.learning import ONE, Ask, Mixer, clip, log_ratio, squash

LEVELS = 16  # magnitudes told apart one by one
_WHOLE = 1 << 24  # a share of 1
_OF_ROW, _OF_COLUMN, _OF_ABOVE = 60, 60, 16  # entries that an expectation is worth
_ROWS_ABOVE = 6  # lags whose rows tell what a row begins with
_ALIKE = 1 << 29  # products that the likeness of rows may take
_NARROW = 3 * ONE  # a feature of magnitudes, of which there are LEVELS times as many


def kept(ask: Ask, truth: np.ndarray, count: int, lags: list[int]) -> np.ndarray:
    """Which of the entries [rows, columns], ``count`` of them, are not zero."""
    (rows, columns), flat = truth.shape, truth.reshape(-1)
    pad = max(lags, default=0)
    share = max(1, (5 * count + 2) * _WHOLE // (5 * rows * columns + 4))
    usual = log_ratio(np.array([float(share)]), np.array([float(_WHOLE - share)]))[0]
    zero = -(share * ONE // _WHOLE)  # as a feature; features are 0 on average
    grid = np.zeros((pad + rows) * columns, np.float32)
    of_rows, of_columns = np.zeros((2, pad + rows)), np.zeros((2, columns))  # ones, and all, so far
    mixer = Mixer([1.0, 0.9, 0.7] + [0.3] * len(lags), [30.0] * 3 + [5.0] * len(lags))
    features = np.empty((3 + len(lags), min(truth.shape)))
    for d, low, high in _diagonals(truth.shape):
        here, there = slice(pad + low, pad + high), slice(d - high + 1, d - low + 1)
        x = features[:, : high - low]
        x[0] = usual
        x[1:3] = _densities(of_rows, of_columns[:, there], here, lags, share) - usual
        for k, lag in enumerate(lags, 3):
            x[k] = _diagonal(grid, columns, d, low, high, pad - lag)
        bits = mixer.bits(ask, x, _diagonal(flat, columns, d, low, high))
        _diagonal(grid, columns, d, low, high, pad)[:] = bits * ONE + zero
        of_rows[:, here] += bits, np.ones(len(bits))
        of_columns[:, there] += bits[::-1], np.ones(len(bits))
    return grid.reshape(-1, columns)[pad:] > 0


def _densities(of_rows: np.ndarray, below: np.ndarray, here: slice, lags: list[int], share: int) -> np.ndarray:
    """Log-odds of a one by its row so far, and by its column; the rows above tell what a row begins with."""
    expected = share
    if lags:
        above = np.sum([of_rows[:, here.start - lag : here.stop - lag] for lag in lags[:_ROWS_ABOVE]], 0)
        expected = np.floor((8 * _OF_ABOVE * share + above[0] * _WHOLE) / (8 * _OF_ABOVE + above[1]))
    ones = np.stack([of_rows[0, here] * _WHOLE + _OF_ROW * expected, below[0, ::-1] * _WHOLE + _OF_COLUMN * share])
    total = np.stack([of_rows[1, here] + _OF_ROW, below[1, ::-1] + _OF_COLUMN]) * _WHOLE
    return log_ratio(ones, total - ones)


def signs(ask: Ask, truth: np.ndarray, mask: np.ndarray, lags: list[int]) -> np.ndarray:
    """1 and -1 where ``mask``, 0 elsewhere: int8.

    Two rows that had equal signs so far, or opposite ones, wherever both are kept, will again: an entry is foretold by
    the sum of s[i, j'] s[i', j'] s[i', j] over rows i' above and columns j' to the left. For that ``alike`` has, for
    each two columns, the sum of s[i', j'] s[i', j] over the rows, or of rows over the columns: whichever are fewer.
    Nothing is foretold so where that would take too long.
    """
    pad, columns = max(lags, default=0), mask.shape[1]
    found = np.zeros((pad + len(mask), columns), np.int8)
    flat, steps = found.reshape(-1), columns * np.array(lags, np.int64)[:, None]
    side, count, tall = min(mask.shape), int(mask.sum()), mask.shape[0] >= mask.shape[1]
    likely, scale = count * side <= _ALIKE, max(4, math.isqrt(count**3 // mask.size**2) // 2)
    alike = left = np.zeros((side, side) if likely else (0, 0), np.int32)
    mixer = Mixer([0.0, 0.8] + [1.0] * len(lags), [8.0, 4.0] + [2.0] * len(lags))
    for i, j in _groups(mask):
        x = np.full((2 + len(lags), len(i)), float(ONE))
        x[1] = 0
        if likely:
            left = (found[pad + i] if tall else found[pad:, j].T).astype(np.int32)
            x[1] = np.floor(np.einsum("ij,ij->i", left, alike[j if tall else i]).astype(np.float64) * ONE / scale)
        x[2:] = flat[(pad + i) * columns + j - steps].astype(np.float64) * ONE
        sign = np.where(mixer.bits(ask, x, truth[i, j]), 1, -1).astype(np.int8)
        found[pad + i, j] = sign
        if likely:
            alike[j if tall else i] += left * sign[:, None]
    return found[pad:]


def magnitudes(ask: Ask, truth: np.ndarray, mask: np.ndarray, lags: list[int], top: int, mean: int) -> np.ndarray:
    """How much more than 1 where ``mask``, up to ``top``, at most LEVELS: int32, 0 elsewhere.

    One bit after another tells whether an entry is more. ``mean`` is about theirs, 1 added, in quarters.
    """
    pad, (rows, columns) = max(lags, default=0), mask.shape
    padded = np.pad(mask, ((pad, pad), (0, 0))).reshape(-1)
    steps = columns * np.array(lags, np.int64)[:, None]
    root = max(1, math.isqrt(len(lags)))
    sides, total = ((1, rows), (0, columns)), mask.sum()
    dense = [log_ratio((mask.sum(axis) + 2.0) * n, np.full(n, total + 2.0 * n)) for axis, n in sides]
    usual = [(mean - 4 - 4 * level) / max(2, mean // 3) for level in range(top)]
    mixer = Mixer(usual + [0.3, 0.4, 0.2, 0.2], [0.3] * top + [10.0, 10.0, 5.0, 10.0])
    found = np.zeros(mask.shape, np.int32)
    for i, j in _groups(mask) if top else ():
        y, at = np.empty((4, len(i))), (pad + i) * columns + j
        y[0], y[1] = dense[0][i], dense[1][j]
        y[2], y[3] = (padded[at + step].sum(0) * ONE / root for step in (-steps, steps))
        found[i, j] = _more(ask, truth[i, j], mixer, clip(np.floor(y), _NARROW), top)
    return found


def _more(ask: Ask, truth: np.ndarray, mixer: Mixer, y: np.ndarray, top: int) -> np.ndarray:
    """The magnitudes of one diagonal, and what the mixer learns from them."""
    chances = squash(mixer.weights[:top, None] * ONE + mixer.weights[top:] @ y)
    more, alive, used, bits = np.zeros(y.shape[1], np.int64), np.arange(y.shape[1]), [], []
    for level in range(top):
        used.append(alive)
        bits.append(ask(chances[level, alive], truth[alive] > level))
        alive = alive[bits[-1]]
        more[alive] += 1
        if not len(alive):
            break
    levels, entries = np.repeat(np.arange(len(used)), [len(some) for some in used]), np.concatenate(used)
    x = np.zeros((len(mixer.weights), len(entries)))
    x[levels, np.arange(len(entries))] = ONE
    x[top:] = y[:, entries]
    mixer.learn(x, np.concatenate(bits), chances[levels, entries])
    return more


# ---------------------------------------------------------------------------------------------------------------------
# Diagonals, and what rows and columns have told so far


def _diagonals(shape: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Each diagonal's number, and its first row and the row after its last."""
    rows, columns = shape
    for d in range(rows + columns - 1):
        yield d, max(0, d - columns + 1), min(rows, d + 1)


def _diagonal(flat: np.ndarray, columns: int, d: int, low: int, high: int, down: int = 0) -> np.ndarray:
    """A view of the entries of diagonal ``d`` in rows low .. high, in a matrix that begins ``down`` rows lower."""
    first, step = (down + low) * columns + d - low, max(columns - 1, 1)
    return flat[first : first + (high - low - 1) * step + 1 : step]


def _groups(mask: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns of what is kept, diagonal by diagonal."""
    flat = mask.reshape(-1)
    for d, low, high in _diagonals(mask.shape):
        i = np.flatnonzero(_diagonal(flat, mask.shape[1], d, low, high)) + low
        if len(i):
            yield i, d - i
