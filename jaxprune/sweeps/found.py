"""What a search has found, and why: what each setting costs and saves, and what the next one either way would."""

from typing import Any, NamedTuple

import numpy as np

from jaxprune import files, host
from jaxprune.base import Params
from jaxprune.sweeps.choosing import Choice
from jaxprune.sweeps.options import Option
from jaxprune.sweeps.sensitivities import Sensitivity, short
from jaxprune.sweeps.sweeping import pareto_front
from jaxprune.sweeps.wishes import Wish, show

_ROWS = 24


class Tried(NamedTuple):
    """A combination that was evaluated.

    Attributes:
      choice: the number of an option for each group.
      values: the loss, the bytes, and the measures that were asked for.
      excess: by how much it breaks limits, as a share of these; 0 if it holds.
    """

    choice: Choice
    values: dict[str, float]
    excess: float


class Step(NamedTuple):
    """Another option for one group, all others as they were chosen.

    Attributes:
      option: the method and the setting.
      nbytes, loss: what it would add to the file and to the loss.
      measured: whether that was evaluated; else the loss is estimated.
    """

    option: Option
    nbytes: float
    loss: float
    measured: bool


class Why(NamedTuple):
    """What the setting of one group costs and saves.

    Attributes:
      group, option: what was decided.
      nbytes: in the file.
      saved: bytes, against the group as it was.
      loss: what it adds to the loss alone.
      smaller, larger: the next option either way; None where there is none.
    """

    group: str
    option: Option
    nbytes: float
    saved: float
    loss: float
    smaller: Step | None
    larger: Step | None


class Found:
    """The best combination that holds. ``print`` it; ``jaxprune.save(path, found.compressed)`` writes it.

    Attributes:
      table: the single losses and bytes that it began with.
      settings: for each group the option that was taken, with ``method`` and ``setting``.
      values: of the loss, the bytes of the file (exactly) and the measures.
      reported: what ``report`` gave; None without.
      evaluations: of the loss; a gradient counts as 3.
      evidence: all combinations that were evaluated together.
    """

    def __init__(self, table: Sensitivity, wish: Wish, best: Tried, evidence: list[Tried], evaluations: int) -> None:
        self.table, self.evidence, self.evaluations = table, evidence, evaluations
        self._wish, self._best = wish, best
        self.values = best.values
        self.reported: float | None = None
        self.settings = {name: table.options[k] for name, k in zip(table.groups, best.choice, strict=True)}

    @property
    def params(self) -> Params:
        """The parameters, stored as the methods store them; ``jaxprune.dequantize`` makes them dense."""
        return self.table.known.params(self._best.choice)

    @property
    def compressed(self) -> files.Compressed:
        """The file."""
        return self.table.known.compressed(self._best.choice)

    @property
    def front(self) -> list[Tried]:
        """The combinations, of those evaluated, that no other beats in both bytes and loss, the smallest first."""
        bytes_, losses = (np.array([one.values[name] for one in self.evidence]) for name in ("bytes", "loss"))
        return [self.evidence[i] for i in pareto_front(None, cost=bytes_, metric=-losses)]

    @property
    def why(self) -> list[Why]:
        """For each group what its setting costs and saves, and what the next would."""
        return [self._why(g) for g in range(len(self.table.groups))]

    def _why(self, g: int) -> Why:
        table, k = self.table, self._best.choice[g]
        sizes, losses = table.nbytes[g], table.loss[g]
        useful = [i for i in np.flatnonzero(np.isfinite(sizes)).tolist() if i != k and not self._beaten(g, i)]
        smaller = max((i for i in useful if sizes[i] < sizes[k]), key=lambda i: sizes[i], default=None)
        larger = min((i for i in useful if sizes[i] > sizes[k]), key=lambda i: sizes[i], default=None)
        steps = [None if i is None else self._step(g, i) for i in (smaller, larger)]
        saved = float(sizes[0] - sizes[k])
        return Why(table.groups[g], table.options[k], float(sizes[k]), saved, float(losses[k] - table.base), *steps)

    def _beaten(self, g: int, i: int) -> bool:
        """Whether another option of the group takes no more bytes and loses less."""
        sizes, losses = self.table.nbytes[g], self.table.loss[g]
        return bool(np.any((sizes <= sizes[i]) & (losses < losses[i])))

    def _step(self, g: int, i: int) -> Step:
        table, choice = self.table, self._best.choice
        other = (*choice[:g], i, *choice[g + 1 :])
        nbytes = float(table.nbytes[g, i] - table.nbytes[g, choice[g]])
        if other in table.evidence.losses:
            return Step(table.options[i], nbytes, table.evidence.losses[other] - self.values["loss"], True)
        return Step(table.options[i], nbytes, float(table.loss[g, i] - table.loss[g, choice[g]]), False)

    def plot(self, ax: Any = None) -> Any:
        """Draws bytes and loss of all combinations that were evaluated, and what was found (needs matplotlib).

        Args:
          ax: matplotlib axes to draw on; None for a new figure.

        Returns:
          The axes; ``.figure`` is the figure.
        """
        if ax is None:
            ax = host.library("matplotlib.pyplot", "jaxprune[plots]").subplots(figsize=(7, 4.2), layout="constrained")[
                1
            ]
        looks = (self.evidence, ".", "#c3c8ce", "evaluated"), (self.front, "o-", "#0072b2", "front")
        for tried, mark, color, label in (*looks, ([self._best], "*", "#d55e00", "found")):
            across, up = ([one.values[name] for one in tried] for name in ("bytes", "loss"))
            ax.plot(across, up, mark, color=color, label=label, ms=12 if mark == "*" else 5)
        for name, line in (("bytes", ax.axvline), ("loss", ax.axhline)):
            if name in self._wish.limits:
                line(self._wish.limits[name], color="0.5", lw=0.8, ls="--")
        ax.set(xscale="log", xlabel="bytes of the file", ylabel="loss")
        ax.set_yscale("symlog", linthresh=max(1e-3 * max(one.values["loss"] for one in self.evidence), 1e-9))
        ax.legend(frameon=False)
        return ax

    def __repr__(self) -> str:
        rows = sorted(self.why, key=lambda row: -(row.nbytes + row.saved))
        drawn = [
            [short(row.group), str(row.option), f"{row.nbytes:,.0f}", f"{row.saved:,.0f}", f"{row.loss:+.2g}"]
            + [_said(row.smaller), _said(row.larger)]
            for row in rows[:_ROWS]
        ]
        head = ["group", "setting", "bytes", "saved", "loss alone", "the next smaller", "the next larger"]
        more = f"\n{len(rows) - _ROWS} smaller groups are not shown" if len(rows) > _ROWS else ""
        values = ", ".join(f"{name} {show(value)}" for name, value in self.values.items())
        reported = "" if self.reported is None else f"; reported: {show(self.reported)}"
        wish = f"least {self._wish.goal} with {' and '.join(map(self._wish.said, self._wish.limits))}"
        found = f"{wish}: {values}{reported}; {self.evaluations} evaluations"
        return f"{host.table(head, drawn, left=2)}{more}\n\n{found}\nnext: bytes, loss; ~ estimated from the table"


def _said(step: Step | None) -> str:
    if step is None:
        return "-"
    return f"{step.option}: {step.nbytes:+,.0f}, {'' if step.measured else '~'}{step.loss:+.2g}"
