"""What is wanted of a search: one value as low as it goes, others within limits."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxprune.base import Params

#: By name: a function of the parameters, and whether "min" or "max" is better.
Measures = Mapping[str, tuple[Callable[[Params], Any], str]]


class Wish(NamedTuple):
    """A goal and limits.

    Attributes:
      goal: the name of what is minimized.
      limits: by name.
      measures: the functions of other names than loss and bytes.
      directions: "min" or "max", by name.
    """

    goal: str
    limits: dict[str, float]
    measures: dict[str, Callable[[Params], Any]]
    directions: dict[str, str]

    @property
    def costs(self) -> list[str]:
        """What is to be low, besides the loss: it is taken to add up over groups."""
        return [name for name in dict.fromkeys([self.goal, *self.limits]) if name != "loss" and self.is_cost(name)]

    @property
    def qualities(self) -> list[str]:
        """What is to be high: it is taken to follow the loss."""
        return [name for name in self.limits if not self.is_cost(name)]

    def is_cost(self, name: str) -> bool:
        """Whether less of it is better."""
        return self.directions[name] == "min"

    def excess(self, name: str, value: float) -> float:
        """By how much a value breaks its limit, as a share of that; 0 if it holds."""
        limit = self.limits[name]
        over = value - limit if self.is_cost(name) else limit - value
        return over / (abs(limit) or 1.0) if over > 0 else 0.0

    def said(self, name: str) -> str:
        """A limit in words."""
        return f"{name} {'<=' if self.is_cost(name) else '>='} {show(self.limits[name])}"


def wish(minimize: str, limits: Mapping[str, float], measures: Measures | None) -> Wish:
    """Checks what is asked for.

    Raises:
      ValueError, TypeError: an unknown name, a goal in the wrong direction, limits that say nothing.
    """
    given = dict(measures or {})
    for name, pair in given.items():
        if name in ("loss", "bytes"):
            raise ValueError(f"measures: {name!r} is measured already; call yours something else")
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not callable(pair[0]) or pair[1] not in _DIRECTIONS:
            raise TypeError(f"measures: {name!r} must be (function of params, 'min' or 'max'), got {pair!r:.80}")
    directions = {"loss": "min", "bytes": "min"} | {name: pair[1] for name, pair in given.items()}
    for name in (minimize, *limits):
        if name not in directions:
            raise ValueError(f"{name!r} is none of {list(directions)}: say how to measure it by measures=")
    if directions[minimize] == "max":
        raise ValueError(f"more of {minimize!r} is better: minimize 'loss' for it, or set a limit that it must reach")
    held = {name: float(limit) for name, limit in limits.items()}
    for name, limit in held.items():
        if not np.isfinite(limit) or (name == "bytes" and limit <= 0):
            raise ValueError(
                f"the limit of {name!r} must be a finite number{' above 0' * (name == 'bytes')}, got {limit}"
            )
    if not any(name != minimize for name in held):
        other = "'bytes': 6e6" if minimize == "loss" else "'loss': 0.01"
        raise ValueError(f"the least {minimize} without a limit of anything else is no question: limits={{{other}}}")
    return Wish(minimize, held, {name: pair[0] for name, pair in given.items()}, directions)


_DIRECTIONS = ("min", "max")


def show(value: float) -> str:
    """A number, short; large whole ones in full."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 100 else f"{value:.4g}"


def number(name: str, value: Any) -> float:
    """What a measure returned, as one finite number."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"measure {name!r} returned {str(value)[:60]!r}: it must return one number") from None
    if not np.isfinite(found):
        raise ValueError(f"measure {name!r} returned {found}: it must return a finite number")
    return found
