"""One option for each group, so that one sum is least and others are within limits: NumPy, on tables.

Tables are [groups, options], infinite where a group has no such option. With one limit this is the knapsack problem
with multiple choices, solved from group to group by keeping what no other partial choice beats (Nemhauser and Ullmann
1969): exactly, as long as these are few, and else to a part in some thousands of the limit. Several limits become one,
the weighted mean of what each leaves, with weights that rise where a limit is broken (Glover's surrogate constraint).
"""

from collections.abc import Container, Sequence
from typing import Any, NamedTuple

import numpy as np

_MOST = 4096  # partial choices that are kept
_ROUNDS = 24  # of weights
_ROUNDING = 1e-9  # of a limit

#: The number of an option for each group.
Choice = tuple[int, ...]


class Front(NamedTuple):
    """Choices that none beats, by ascending cost.

    Attributes:
      costs, values: float64 [N], sums over the groups.
      choices: int [N, groups].
    """

    costs: np.ndarray
    values: np.ndarray
    choices: np.ndarray


def front(values: np.ndarray, costs: np.ndarray) -> Front:
    """All choices that no other beats in the sum of costs and that of values, both better if lower.

    >>> found = front(np.array([[4.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 2.0], [0.0, 1.0]]))
    >>> found.costs.tolist(), found.values.tolist(), found.choices.tolist()
    ([0.0, 1.0, 2.0, 3.0], [5.0, 4.0, 1.0, 0.0], [[0, 0], [0, 1], [1, 0], [1, 1]])
    """
    cost, value, trail = np.zeros(1), np.zeros(1), []
    for own_values, own_costs in zip(values, costs, strict=True):
        options = np.flatnonzero(np.isfinite(own_values) & np.isfinite(own_costs))
        both = [(one[:, None] + own[options]).ravel() for one, own in ((cost, own_costs), (value, own_values))]
        kept = _unbeaten(*both)
        cost, value = both[0][kept], both[1][kept]
        trail.append((kept // len(options), options[kept % len(options)]))
    at, taken = np.arange(len(cost)), []
    for parents, options in reversed(trail):
        taken.append(options[at])
        at = parents[at]
    return Front(cost, value, np.stack(taken[::-1], axis=1))


def _unbeaten(cost: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Where the sums are that no other beats, by ascending cost; of more than some thousands an even selection."""
    order = np.lexsort((value, cost))
    best = np.minimum.accumulate(value[order])
    kept = order[np.concatenate([[True], best[1:] < best[:-1]])]
    if len(kept) <= _MOST:
        return kept
    span = cost[kept[-1]] - cost[kept[0]]
    bucket = ((cost[kept] - cost[kept[0]]) / span * (_MOST - 1)).astype(int)
    last = np.append(bucket[1:] != bucket[:-1], True)  # the best value of those of about the same cost
    last[0] = True
    return kept[last]


def few(
    values: np.ndarray, costs: Sequence[np.ndarray], limits: Sequence[float], count: int = 1, known: Container[Any] = ()
) -> list[Choice]:
    """Choices whose sums of costs are within limits, those of the least sums of values first; ``known`` ones left out.

    If none is within all limits, those that break them least, each measured by how far the least sum is from it.

    >>> values, costs = np.array([[9.0, 3.0, 0.0], [2.0, 1.0, 0.0]]), np.array([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]])
    >>> few(values, [costs], [6], 2)
    [(2, 1), (2, 0)]
    >>> few(values, [costs, costs], [6, 3], known={(1, 0)})
    [(0, 0)]
    """
    rooms = [_room(cost, limit) for cost, limit in zip(costs, limits, strict=True)]
    rooms = rooms or [np.where(np.isfinite(values), 0.0, np.inf)]
    weights, found = np.full(len(rooms), 1 / len(rooms)), dict[Choice, tuple[float, float]]()
    for _ in range(_ROUNDS if len(rooms) > 1 else 1):
        _, sums, choices = front(values, np.tensordot(weights, np.stack(rooms), 1))
        used = np.stack([room[np.arange(len(room)), choices].sum(axis=1) for room in rooms])
        over = np.maximum(used.max(axis=0) - 1, 0)
        over[over < _ROUNDING] = 0
        best = [i for i in np.lexsort((sums, over)).tolist() if tuple(choices[i].tolist()) not in known][:count]
        found |= {tuple(choices[i].tolist()): (float(over[i]), float(sums[i])) for i in best}
        if best:
            weights = weights * np.exp(np.clip(used[:, best[0]] - 1, -1, 1))
            weights /= weights.sum()
    return sorted(found, key=lambda choice: found[choice])[:count]


def _room(cost: np.ndarray, limit: float) -> np.ndarray:
    """Costs above the least ones, of which a sum of 1 is at the limit."""
    least = cost.min(axis=1, keepdims=True)
    room = limit - least.sum()
    span = np.where(np.isfinite(cost), cost, least).max(axis=1).sum() - least.sum()
    if room >= 0:
        return (cost - least) / max(room, 1e-12 * span, np.finfo(float).tiny)
    return 2 + (cost - least) / max(span, np.finfo(float).tiny)  # not within the limit, whatever is chosen


def total(table: np.ndarray, choice: Sequence[int]) -> float:
    """The sum of a table over a choice."""
    return float(table[np.arange(len(table)), list(choice)].sum())
