"""What a sweep has found: the cost and the metric of settings, what nothing beats; and axes to draw it on."""

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.sweeps.evaluation import column, host_settings, pareto_front


@dataclass(frozen=True)
class Frontier:
    """Attributes:
    cost: float64 [N], lower is better.
    metric: float64 [N], higher is better.
    front: indices [K] of the settings that no other beats, by ascending cost.
    cost_name: what the cost is called.
    metric_name: what the metric is called.
    settings: for each name the values [N].
    chosen: index of one setting, or None.
    baseline: the metric before compression, or None.
    """

    cost: np.ndarray
    metric: np.ndarray
    front: np.ndarray
    cost_name: str
    metric_name: str
    settings: dict[str, np.ndarray]
    chosen: int | None
    baseline: float | None

    @property
    def finite(self) -> np.ndarray:
        """Which settings can be drawn: bool [N]."""
        return np.isfinite(self.cost) & np.isfinite(self.metric)

    @property
    def lowest(self) -> float:
        """The metric from which on settings are drawn: those that have lost nearly everything would fill the picture.

        Four times as far below the best as the median is; what was chosen is always in.
        """
        metrics = self.metric[self.finite]
        lowest = max(float(metrics.min()), float(metrics.max() - 4 * (metrics.max() - np.median(metrics))))
        if self.chosen is not None and self.finite[self.chosen]:
            lowest = min(lowest, float(self.metric[self.chosen]))
        return lowest

    @property
    def drawn(self) -> np.ndarray:
        """Which settings are drawn: bool [N]."""
        return self.finite & (self.metric >= self.lowest)

    @property
    def left_out(self) -> list[str]:
        """Which settings are not drawn, in words."""
        below, without = int((self.finite & ~self.drawn).sum()), int((~self.finite).sum())
        said = {f"below {self.lowest:.4g}": below, "without a finite cost and metric": without}
        return [f"{count:,} {what}" for what, count in said.items() if count]

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """Settings, cost and metric, by name."""
        return {**self.settings, self.cost_name: self.cost, self.metric_name: self.metric}

    def describe(self, index: int) -> str:
        """The setting in words: ``sparsity 0.5, bits 4``."""
        if not self.settings:
            return f"setting {index}"
        return ", ".join(f"{name} {value[index]:.6g}" for name, value in self.settings.items())


def find(sweep: Any, *, cost: Any, metric: Any, settings: Any, chosen: int | None, baseline: float | None) -> Frontier:
    """Checks what :meth:`jaxprune.reports.Report.to_html` is given about a sweep, and finds the front."""
    costs, metrics = column(sweep, "cost", cost), column(sweep, "metric", metric)
    front = pareto_front(None, cost=costs, metric=metrics)
    names = _name(cost, "cost"), _name(metric, "metric")
    found = Frontier(costs, metrics, front, *names, _named(settings, costs.size), chosen, baseline)
    if not found.finite.any():
        raise ValueError("no setting of the sweep has a finite cost and metric")
    if chosen is not None and not 0 <= operator.index(chosen) < costs.size:
        raise ValueError(f"chosen must be an index in [0, {costs.size - 1}], got {chosen}")
    return found


def _name(value: Any, role: str) -> str:
    return value if isinstance(value, str) else role


def _named(settings: Any, count: int) -> dict[str, np.ndarray]:
    """The settings that are one number each, by path."""
    if settings is None:
        return {}
    held = host_settings(settings)
    parts = [{key: held[key]} for key in settings] if isinstance(settings, Mapping) else [held]  # in the order given
    keyed = [pair for part in parts for pair in jax.tree_util.tree_flatten_with_path(part)[0]]
    named = {jax.tree_util.keystr(path, simple=True, separator="/") or "setting": values for path, values in keyed}
    for name, values in named.items():
        if values.shape != (count,):
            raise ValueError(f"settings: {name!r} must have shape ({count},), as the sweep has, got {values.shape}")
    return named


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
