"""Scales and round ticks for the charts of the page."""

import math
from typing import NamedTuple

import numpy as np


class Axis(NamedTuple):
    """From ``low`` to ``high``, by equal steps or, if ``log``, by equal factors."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Where the value lies, from 0 at ``low`` to 1 at ``high``."""
        low, high, value = (math.log(v) for v in (self.low, self.high, value)) if self.log else (*self[:2], value)
        return (value - low) / (high - low)

    def ticks(self, most: int = 7) -> list[float]:
        """Round numbers along the axis: at most so many, or nearly."""
        if not self.log:
            return _steps(self.low, self.high, most)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for digits in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            found = [d * 10.0**power for power in decades for d in digits if self.low <= d * 10.0**power <= self.high]
            if len(found) <= most:
                break
        return found if len(found) >= 3 else _steps(self.low, self.high, most)


def around(values: np.ndarray, log: bool = False) -> Axis:
    """An axis that holds the values, with some room at both ends; ``log`` is for positive ones that differ much."""
    low, high = float(values.min()), float(values.max())
    if log and low > 0 and high >= 3 * low:
        room = (high / low) ** 0.03
        return Axis(low / room, high * room, True)
    room = 0.04 * (high - low) or abs(high) or 1.0
    return Axis(low - room, high + room)


def brief(value: float) -> str:
    """A number as ticks show it: 20k, 1.5M, 0.85."""
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.6g}{name}"
    return f"{value:.6g}"


def _steps(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(i * step / power, 6) * power for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
