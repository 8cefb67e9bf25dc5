"""How often values occur, as a normal distribution in some four bytes, or as a table where that is no good.

As bytes: an unsigned number w. If it is 0, a table of :mod:`jaxprune.files.tables` follows. Otherwise there follow
16 times the mean, rounded, as a signed number m; the least value (signed); and how many values follow it, below 4096
and below 256 more than twice the number of entries. The level of value k is round(32767 * 2**-(v * (16 * k - m)**2)),
at least 1, with v = (16 + w % 16) * 2**(w // 16 - 44): 1 / v is about 710 times the variance. Levels are those of
``tables``: square roots of frequencies.
"""

from functools import reduce

import numpy as np

from jaxprune.files import tables
from jaxprune.files.bytestream import Reader, signed, unsigned
from jaxprune.files.errors import ArtifactError

_WIDEST = 1 << 12  # values
_MARGIN = 256
_WIDTHS = 1 << 10  # w is below it
_UNIT = 44
_HIGHEST = 2**15 - 1  # level
_LOG2_E = 1.4426950408889634
_LOG_2 = 0.6931471805599453
_TABLE = 512  # bits a value that a table must save; it takes fewer, but time
_NARROW = 0.4  # variance
_CORRECTIONS = 6
_SAMPLE = 14  # some 2**14 values decide


def fit(values: np.ndarray) -> tuple[tables.Table, bytes] | None:
    """A table for integers [n >= 1] and its bytes; None if there are more than 65536 different ones."""
    least, further = int(values.min()), int(values.max()) - int(values.min())
    if 0 < further < min(_WIDEST, 2 * len(values) + _MARGIN):
        counts = np.bincount(values[:: 1 + (len(values) >> _SAMPLE)].astype(np.int64) - least, minlength=further + 1)
        mean, width = _moments(counts)
        table = _bell(width, 16 * least + mean, least, further)
        if _excess(counts, tables.probabilities(table)) * len(values) < _TABLE * further:
            return table, unsigned(width) + signed(16 * least + mean) + signed(least) + unsigned(further)
    table = tables.from_codes(values.astype(np.int32))
    return None if table is None else (table, unsigned(0) + tables.write(table))


def read(reader: Reader, entries: int) -> tables.Table:
    """The table that ``fit`` made for so many values; raises :class:`ArtifactError` for what is none."""
    width = reader.unsigned(_WIDTHS - 1)
    if not width:
        return tables.read(reader, entries)
    mean, least = reader.signed(-(2**36), 2**36), reader.signed()
    further = reader.unsigned(min(_WIDEST, 2 * entries + _MARGIN) - 1)
    if not further or least + further >= 2**31:
        raise ArtifactError(f"{further + 1} values from {least} on")
    return _bell(width, mean, least, further)


def _moments(counts: np.ndarray) -> tuple[int, int]:
    """16 times the mean and the width of the normal distribution that has the moments of the counts.

    A narrow one has others at whole numbers than on the line; a few corrections make up for that.
    """
    symbols = np.arange(float(len(counts)))
    wanted = mean, variance = _of(counts, symbols)
    if variance < _NARROW:
        variance = max(variance, 1 / 32)
        for _ in range(_CORRECTIONS):
            got = _of(np.exp((symbols - mean) ** 2 / (-2 * variance)) + 1e-30, symbols)
            mean = min(max(mean + wanted[0] - got[0], 0), len(counts))
            variance = min(max(variance * min(max(wanted[1] / max(got[1], 1e-9), 0.5), 2), 1 / 32), 2.0)
    mantissa, exponent = np.frexp(_LOG2_E / 1024 / variance)  # 2**-(2 v (16 d)**2) is exp(-d**2 / (2 variance))
    width = int(np.rint(mantissa * 32)) - 16 + 16 * (int(exponent) - 5 + _UNIT)
    return round(16 * mean), min(max(width, 1), _WIDTHS - 1)


def _of(weights: np.ndarray, symbols: np.ndarray) -> tuple[float, float]:
    mean = float(symbols @ weights / weights.sum())
    return mean, float((symbols - mean) ** 2 @ weights / weights.sum())


def _excess(counts: np.ndarray, frequencies: np.ndarray) -> float:
    """Bits a value above what its own frequencies would cost."""
    share = counts / counts.sum()
    own = np.log2(np.where(share > 0, share, 1)) + tables.PRECISION
    return float(share @ (own - np.log2(frequencies))) if counts.any() else 0.0


def _bell(width: int, mean: int, least: int, further: int) -> tables.Table:
    """The levels by single operations, so that they are alike on all machines."""
    symbols = least + np.arange(further + 1)
    factor = np.ldexp(16.0 + width % 16, width // 16 - _UNIT)
    distance = (16 * symbols - mean).astype(np.float64)
    halvings = np.minimum(factor * (distance * distance), 64.0)
    whole = np.rint(halvings)
    x = (whole - halvings) * _LOG_2
    series = reduce(lambda total, n: total * x * (1 / n) + 1, range(12, 0, -1), np.ones_like(x))
    levels = np.rint(_HIGHEST * np.ldexp(series, -whole.astype(np.int32))).astype(np.int64)
    return tables.Table(symbols.astype(np.int32), np.maximum(levels, 1))
