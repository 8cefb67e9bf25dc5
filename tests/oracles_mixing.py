"""The bytes of the coder `mixing`, read entry by entry with Python's own integers: nothing from jaxprune.

Only weights are floats, and every operation on them is a single one.
"""

import decimal
import functools
import math

from oracles_files import number

decimal.getcontext().prec = 40


class Bits:
    """A range decoder: 64 bits of state, words of 32, probabilities of 24."""

    def __init__(self, data):
        self.data, self.at = data, 8
        self.low, self.range = 0, 2**64 - 1
        self.point = int.from_bytes(data[:8].ljust(8, b"\0"), "big")

    def take(self, chance):
        """A bit that is 1 with `chance` 65536ths."""
        zero = (65536 - chance) * (2**24 - 2) // 65536 + 1
        scale = self.range >> 24
        bit = (self.point - self.low) % 2**64 // scale >= zero
        self.low = (self.low + scale * zero * bit) % 2**64
        self.range = scale * (2**24 - zero if bit else zero)
        if self.range < 2**32:
            word = int.from_bytes(self.data[self.at : self.at + 4].ljust(4, b"\0"), "big")
            self.at += 4
            self.low, self.range = self.low * 2**32 % 2**64, self.range * 2**32
            self.point = (self.point * 2**32 + word) % 2**64
        return int(bit)


@functools.cache
def _log(odd):
    """log of odd / 8192 in 2**-20ths, towards 0 from 2**-20 below."""
    return -1 - math.floor(-(decimal.Decimal(odd) / 8192).ln() * 2**20)


@functools.cache
def _sigmoid(steps):
    if steps < 0:
        return 65536 - _sigmoid(-steps) if steps > -2816 else 1
    exact = 65536 / (1 + (decimal.Decimal(-steps) / 256).exp())
    return min(max(int(exact.to_integral_value(decimal.ROUND_HALF_UP)), 1), 65535)


def log(n):
    """log(n) in 2**-20ths, by the 11 bits after the first."""
    size = n.bit_length()
    mantissa = (n << 12 >> size) if size <= 12 else n >> (size - 12)  # in 2048 .. 4095
    return _log(2 * mantissa + 1) + size * math.floor(decimal.Decimal(2).ln() * 2**20)


def log_ratio(over, under):
    return (log(over) - log(under)) // 1024


def clip(x, most):
    return min(max(x, -most), most)


class Mixer:
    def __init__(self, weights, stiffness):
        n = self.n = len(weights)
        self.weights = [math.floor(w * 65536) for w in weights]
        self.curvature = [[stiffness[i] if i == j else 0.0 for j in range(n)] for i in range(n)]
        self.slope = [0.0] * n
        self.seen = self.waiting = 0

    def chance(self, x):
        total = sum(w * f for w, f in zip(self.weights, x, strict=True))
        return _sigmoid(clip((total + 2**17) // 2**18, 2816))

    def learn(self, told):
        """`told` are features, bits and chances of all entries of a diagonal."""
        for i in range(self.n):
            self.slope[i] += sum(x[i] * (bit * 65536 - p) for x, bit, p in told) / 2**26
            for j in range(self.n):
                total = sum(x[i] * x[j] * (p * (65536 - p) // 65536 + 1) for x, _, p in told)
                self.curvature[i][j] += total / 2**36
        self.seen, self.waiting = self.seen + len(told), self.waiting + len(told)
        if self.waiting * 16 >= self.seen:
            steps = self.solve()
            self.weights = [clip(w + round(s * 65536), 32 * 65536) for w, s in zip(self.weights, steps, strict=True)]
            self.slope, self.waiting = [0.0] * self.n, 0

    def solve(self):
        rows = [[*row, right] for row, right in zip(self.curvature, self.slope, strict=True)]
        for i in range(self.n):
            factors = [row[i] / rows[i][i] for row in rows]
            for k in range(self.n):
                if k != i:
                    rows[k] = [a - factors[k] * b for a, b in zip(rows[k], rows[i], strict=True)]
        return [row[-1] / row[i] for i, row in enumerate(rows)]


def mixed(data, shape):
    """What the coder `mixing` coded: rows of integers."""
    rows, columns = shape
    out = [[0] * columns for _ in range(rows)]
    if not rows * columns:
        return out
    count, at = number(data, 0)
    if not count:
        return out
    both, at = number(data, at)
    top, lags, mean = both % 17, [], 4
    for _ in range(both // 17):
        gap, at = number(data, at)
        lags.append(gap + (lags[-1] if lags else 0))
    if top:
        mean, at = number(data, at)
    bits = Bits(data[at:])
    whole = {(i, j) for i in range(rows) for j in range(columns)}
    kept = whole if count == len(whole) else _kept(bits, shape, count, lags)
    assert len(kept) == count
    sign = _signs(bits, shape, kept, lags)
    size = _magnitudes(bits, shape, kept, lags, top, mean) if top else dict.fromkeys(kept, 0)
    for i, j in kept:
        out[i][j] = sign[i, j] * (size[i, j] + 1)
    return out


def _diagonals(shape, where):
    for d in range(sum(shape) - 1):
        told = [(i, d - i) for i in range(shape[0]) if (i, d - i) in where]
        if told:
            yield told


def _kept(bits, shape, count, lags):
    rows, columns = shape
    share = max(1, (5 * count + 2) * 2**24 // (5 * rows * columns + 4))
    usual, zero = log_ratio(share, 2**24 - share), -(share * 1024 // 2**24)
    known = {}
    mixer = Mixer([1.0, 0.9, 0.7] + [0.3] * len(lags), [30.0] * 3 + [5.0] * len(lags))
    for told in _diagonals(shape, {(i, j) for i in range(rows) for j in range(columns)}):
        before = dict(known)
        features = []
        for i, j in told:
            row = [bit for (a, _), bit in before.items() if a == i]
            column = [bit for (_, b), bit in before.items() if b == j]
            above = [bit for lag in lags[:6] for (a, _), bit in before.items() if a == i - lag]
            expected = (128 * share + sum(above) * 2**24) // (128 + len(above)) if lags else share
            x = [usual]
            for seen, prior in ((row, expected), (column, share)):
                ones = sum(seen) * 2**24 + 60 * prior
                x.append(log_ratio(ones, (len(seen) + 60) * 2**24 - ones) - usual)
            near = [before.get((i - lag, j)) for lag in lags]
            x += [0 if bit is None else bit * 1024 + zero for bit in near]
            features.append([clip(f, 12288) for f in x])
        _ask(bits, mixer, told, features, known)
    return {at for at, bit in known.items() if bit}


def _ask(bits, mixer, told, features, known):
    chances = [mixer.chance(x) for x in features]
    got = [bits.take(p) for p in chances]
    known.update(zip(told, got, strict=True))
    mixer.learn(list(zip(features, got, chances, strict=True)))


def _signs(bits, shape, kept, lags):
    scale = max(4, math.isqrt(len(kept) ** 3 // (shape[0] * shape[1]) ** 2) // 2)
    mixer = Mixer([0.0, 0.8] + [1.0] * len(lags), [8.0, 4.0] + [2.0] * len(lags))
    sign = {}
    for told in _diagonals(shape, kept):
        features = []
        for i, j in told:
            row = {b: s for (a, b), s in sign.items() if a == i}
            column = {a: s for (a, b), s in sign.items() if b == j}
            alike = sum(s * t * sign.get((a, b), 0) for a, s in column.items() for b, t in row.items())
            x = [1024, alike * 1024 // scale, *(sign.get((i - lag, j), 0) * 1024 for lag in lags)]
            features.append([clip(f, 12288) for f in x])
        got = {}
        _ask(bits, mixer, told, features, got)
        sign.update({at: 2 * bit - 1 for at, bit in got.items()})
    return sign


def _magnitudes(bits, shape, kept, lags, top, mean):
    rows, columns = shape
    root = max(1, math.isqrt(len(lags)))
    usual = [(mean - 4 - 4 * level) / max(2, mean // 3) for level in range(top)]
    mixer = Mixer(usual + [0.3, 0.4, 0.2, 0.2], [0.3] * top + [10.0, 10.0, 5.0, 10.0])
    size = {}
    for told in _diagonals(shape, kept):
        learnt = []
        for i, j in told:
            in_row, in_column = sum(a == i for a, _ in kept), sum(b == j for _, b in kept)
            y = [
                log_ratio((in_row + 2) * rows, len(kept) + 2 * rows),
                log_ratio((in_column + 2) * columns, len(kept) + 2 * columns),
                sum((i - lag, j) in kept for lag in lags) * 1024 // root,
                sum((i + lag, j) in kept for lag in lags) * 1024 // root,
            ]
            learnt.append([clip(f, 3072) for f in y])
        new, facts, alive = dict.fromkeys(told, 0), [], list(range(len(told)))
        for level in range(top):
            still = []
            for k in alive:
                x = [1024 * (other == level) for other in range(top)] + learnt[k]
                chance = mixer.chance(x)
                bit = bits.take(chance)
                facts.append((x, bit, chance))
                if bit:
                    new[told[k]] += 1
                    still.append(k)
            alive = still
        mixer.learn(facts)
        size.update(new)
    return size
