"""The combination of options that is best within limits, and holds when it is evaluated.

It begins with the table of single losses, of which it takes the best combination as if they added up. What does not add
up is corrected around the best that was found. With V the arrays of the options of a group, V' that which is there, and
S the single losses, all above that of the parameters as they are, another option is taken to add

    gradient . (V - V') + penalty * (S[option] + S[there])

to the loss: the gradient of the combination knows what the errors of all other groups do to this one; the second term
is the curvature, as the errors of two options are about independent. Large steps are worse than the gradient says, by
how much differs: some penalties are tried, what each finds best is evaluated, and the best goes on.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxprune import host
from jaxprune.base import Params
from jaxprune.quantization.arrays.protocol import dequantize
from jaxprune.sweeps import choosing
from jaxprune.sweeps.choosing import Choice
from jaxprune.sweeps.found import Found, Tried
from jaxprune.sweeps.sensitivities import Sensitivity
from jaxprune.sweeps.wishes import Wish, number, show

_PENALTIES = (2.0, 8.0)
_EACH = 2  # choices a penalty
_GRADIENT = 3  # evaluations that it takes as long as
_ROUNDS = 8  # that look for the loss at the limit
_NEAR = 1.02  # of the limit of the loss, at which they end
_OWN, _PER_GROUP = 14, 2  # evaluations besides those of the table, unless said


class Search:
    """What is known of single options, and all combinations that were tried."""

    def __init__(self, table: Sensitivity, wanted: Wish, budget: int | None) -> None:
        self.table, self.wanted, self.tried = table, wanted, dict[Choice, Tried]()
        self.groups = np.arange(len(table.groups))
        self.added = np.where(np.isfinite(table.loss), np.maximum(table.loss - table.base, 0), np.inf)
        self.used = int(np.isfinite(table.nbytes[:, 1:]).sum()) + 2  # as it is, twice
        self.budget = self.used + _OWN + _PER_GROUP * len(table.groups) if budget is None else budget
        if self.budget <= self.used:
            raise ValueError(f"budget must be above the {self.used} evaluations of the table, got {budget}")
        self.costs = {name: self._alone(name) for name in wanted.costs}
        base = table.alone()
        self.offsets = {name: self.value(name, base) - choosing.total(self.costs[name], base) for name in wanted.costs}
        for name in {"bytes"} & wanted.limits.keys():
            least = self.value(name, tuple(self.costs[name].argmin(axis=1).tolist()))
            if least > 1.01 * wanted.limits[name]:
                said = f"{wanted.said(name)} contradicts what there is: the smallest settings take {least:,.0f}"
                raise ValueError(f"{said}; raise it or add smaller settings to methods")
        self.allowed = wanted.limits.get("loss", np.inf)  # of the loss; lower where a quality needs it
        self.try_(base, free=True)

    def begin(self) -> None:
        """Combinations as if single losses added up, times what they turn out to be; and the loss that holds."""
        scale, base = 1.0, self.table.base
        if self.wanted.goal == "loss":
            for choice in (*self._few(self.added, base, _EACH), *self._alike()):
                self.try_(choice)
            return
        held, broken = base, np.inf  # losses at which all limits hold, and do not
        for _ in range(_ROUNDS):
            aim = (
                self.allowed if np.isinf(broken) else min(self.allowed, base + np.sqrt((held - base) * (broken - base)))
            )
            choices = self._few(scale * self.added, base, 1, aim)
            if not choices or not self.try_(choices[0]):
                break
            found, sum_ = self.tried[choices[0]], choosing.total(self.added, choices[0])
            if found.excess == 0:
                held = max(held, found.values["loss"])
            elif self.wanted.qualities:
                broken = min(broken, found.values["loss"])
            if sum_ > 0 and np.isfinite(found.values["loss"]):
                scale = max((found.values["loss"] - base) / sum_, 1e-3)
            if held > base and (self.allowed if np.isinf(broken) else broken) - base <= _NEAR * (held - base):
                break
        for choice in self._alike(scale):
            self.try_(choice)
        if np.isfinite(broken):
            self.allowed = min(self.allowed, broken)

    def improve(self) -> None:
        """Other combinations around the best, until the budget is spent or there are none."""
        stalled = 0
        around: dict[Choice, np.ndarray] = {}
        with host.progress_bar(self.table.how.progress, "evaluations", self.used, self.budget) as drawn:
            while self.used < self.budget:
                order = sorted(self.tried, key=self.merit)
                center = next((choice for choice in order[: 1 + stalled] if choice not in around), None)
                fresh = center is not None and self.used + _GRADIENT < self.budget
                if center is not None and fresh:
                    around[center] = self._slope(center)
                center = center if fresh else min(around, key=self.merit, default=None)
                if center is None:
                    break
                new = [self.try_(choice) for penalty in _PENALTIES for choice in self._around(center, around, penalty)]
                drawn(self.used)
                if not (fresh or any(new)):
                    break
                stalled = 0 if min(self.tried, key=self.merit) != order[0] else stalled + 1

    def found(self, report: Callable[[Params], Any] | None) -> Found:
        """The best, with its evidence."""
        best = min(self.tried.values(), key=lambda one: self.merit(one.choice))
        found = Found(self.table, self.wanted, best, list(self.tried.values()), self.used)
        if best.excess > 0:
            raise ValueError(f"nothing of {len(self.tried)} combinations {self._nearest()}")
        if report is not None:
            found.reported = number("report", report(dequantize(found.params)))
        return found

    def _nearest(self) -> str:
        """For each limit the best that was found where all others hold, in words."""
        limits, near = self.wanted.limits, []
        for name in limits:
            others = [other for other in limits if other != name]
            held = [
                one.values[name]
                for one in self.tried.values()
                if name in one.values
                and all(self.wanted.excess(other, one.values.get(other, np.inf)) == 0 for other in others)
            ]
            if held:
                best = min(held) if self.wanted.is_cost(name) else max(held)
                near.append(
                    f"{name} {show(best)}" + (f" with {' and '.join(map(self.wanted.said, others))}" if others else "")
                )
        said = " and ".join(map(self.wanted.said, limits))
        return f"holds {said}; the nearest: {'; '.join(near)}: allow that, more budget, or other methods"

    def try_(self, choice: Choice, free: bool = False) -> bool:
        """Evaluates a combination, unless that was done, or there is no budget left; says whether it was."""
        if choice in self.tried or (self.used >= self.budget and not free):
            return False
        self.used += not free
        names = ["loss", "bytes", *self.wanted.costs]
        values = {name: self.value(name, choice) for name in dict.fromkeys(names)}
        excess = sum(self.wanted.excess(name, values[name]) for name in self.wanted.limits if name in values)
        if excess == 0:  # others may take long
            values |= {name: self.value(name, choice) for name in self.wanted.qualities}
            excess = sum(self.wanted.excess(name, values[name]) for name in self.wanted.qualities)
        self.tried[choice] = Tried(choice, values, excess)
        # Headers name each kind of array once, and costs need not add up: as far off as here, others will be too.
        self.offsets |= {name: values[name] - choosing.total(table, choice) for name, table in self.costs.items()}
        return True

    def merit(self, choice: Choice) -> tuple[float, ...]:
        """What is lower of the better of two: limits, the goal, the file, and the first in order."""
        one = self.tried[choice]
        return (one.excess, one.values[self.wanted.goal], one.values["bytes"], *choice)

    def value(self, name: str, choice: Choice) -> float:
        """The loss, the bytes or a measure of a combination."""
        known, evidence = self.table.known, self.table.evidence
        if name == "loss":
            return float(evidence([choice])[0])
        if name == "bytes":
            return float(known.compressed(choice).nbytes)
        function = self.wanted.measures[name]
        return evidence.measure(name, choice, lambda: number(name, function(dequantize(known.params(choice)))))

    def _alone(self, name: str) -> np.ndarray:
        """What each option of each group takes of a cost, [groups, options], up to what is the same for all."""
        if name == "bytes":
            return self.table.nbytes
        table = np.where(np.isfinite(self.table.nbytes), 0.0, np.inf)
        for g, k in np.argwhere(np.isfinite(table)).tolist():
            table[g, k] = self.value(name, self.table.alone(g, k))
        return table - table[:, :1]

    def _slope(self, center: Choice) -> np.ndarray:
        """What each option of each group adds to the loss of a combination, to first order."""
        slope = self.table.evidence.slope(center)
        if slope is not None:
            self.used += _GRADIENT
            return slope
        there = self.added[self.groups, list(center)][:, None]  # as if single losses added up
        return np.repeat(-2 * there, self.added.shape[1], axis=1)

    def _around(self, center: Choice, around: dict[Choice, np.ndarray], penalty: float) -> list[Choice]:
        """Combinations that should be best, by what is known around one."""
        there = self.added[self.groups, list(center)]
        added = around[center] + penalty * (self.added + there[:, None])
        added[self.groups, list(center)] = 0
        return self._few(added, self.tried[center].values["loss"], _EACH)

    def _alike(self, scale: float = 1.0) -> list[Choice]:
        """One option for all groups, the best of those that should hold, and the next better: what is to be beaten."""
        options = np.flatnonzero(np.isfinite(self.table.nbytes).all(axis=0)).tolist()
        every = [(option,) * len(self.groups) for option in options if option]
        limits = self.wanted.limits.keys() & self.costs.keys()
        every = [c for c in every if not any(self.wanted.excess(name, self.value(name, c)) for name in limits)]
        table = self.added if self.wanted.goal == "loss" else self.costs[self.wanted.goal]
        every.sort(key=lambda choice: choosing.total(table, choice))
        room = (self.allowed - self.table.base) / scale
        first = next((i for i, choice in enumerate(every) if choosing.total(self.added, choice) <= room), len(every))
        return every[max(first - 1, 0) : first + 1]

    def _few(self, added: np.ndarray, at: float, count: int, aim: float | None = None) -> list[Choice]:
        """Combinations that should be best within all limits; ``added`` to the loss ``at``."""
        limits = {name: limit - self.offsets[name] for name, limit in self.wanted.limits.items() if name in self.costs}
        tables = {name: self.costs[name] for name in limits}
        if self.wanted.goal == "loss":
            values = added
        else:
            values = self.costs[self.wanted.goal]
            aim = self.allowed if aim is None else aim
            if np.isfinite(aim):
                tables["loss"], limits["loss"] = added, aim - at
        return choosing.few(values, list(tables.values()), [limits[name] for name in tables], count, self.tried)
