"""Why a leaf is as it is: what it cost and saved, what a bit more or less would have, which scores are near the line.

Text for people, a sentence a leaf, which the report and its page show.
"""

import math
from typing import Any

import numpy as np

from jaxprune import tree
from jaxprune.quantization.integers import fake_quant
from jaxprune.reports import measures, sizes
from jaxprune.reports.sizes import Stored
from jaxprune.sweeps.found import Found, Why

_NEAR = 3  # units on each side of the line that are named
_BINS = 16
_BARS = "▁▂▃▄▅▆▇█"


def given(why: Any, flat: tree.Selection) -> list[Any]:
    """What is known of each leaf: a sentence, scores, or whether to say anything."""
    if isinstance(why, bool):
        return [why] * len(flat.leaves)
    if not isinstance(why, Found):
        return tree.leaves_like(flat._replace(chosen=tuple(range(len(flat.leaves)))), why, "before", "why")
    said = {path: _searched(row) for row in why.why for path in row.group.split(", ")}
    return [said.get(path, "") for path in flat.paths]


def _searched(row: Why) -> str:
    """What the setting of a group adds to the loss and saves, and what the next one either way would."""
    alike = f", decided together for {row.group}" if "," in row.group else ""
    parts = [f"{row.option} saves {row.saved:,.0f} bytes and adds {row.loss:.3g} to the loss alone{alike}"]
    for step in filter(None, (row.smaller, row.larger)):
        guess = "" if step.measured else ", as estimated"
        parts.append(f"{step.option}: {step.nbytes:+,.0f} bytes, {step.loss:+.3g} to the loss of all{guess}")
    return "; ".join(parts)


def reason(one: Stored, before: np.ndarray, coded: int, error: float, known: Any) -> str:
    """The sentence of a leaf; empty of one that nothing was done to.

    Args:
      one: what is known of it.
      before: the leaf as it was.
      coded, error: bytes and relative error of what it became.
      known: of :func:`given`; scores are what its mask was made from, in the shape of the mask.
    """
    mask = np.asarray(one.mask)
    if isinstance(known, str):
        return known
    if known is False or (one.bits is None and mask.all()):
        return ""
    parts = [f"saves {before.nbytes - coded:,} bytes for a relative error of {error:.3g}"]
    parts += [] if one.bits is None else _next_widths(one, before, mask, coded)
    if known is not True and mask.ndim and not mask.all():
        found = np.asarray(known)
        if found.shape != mask.shape:
            shapes = f"scores of shape {found.shape} and a mask of shape {mask.shape}"
            raise ValueError(f"leaf {tree.show(one.path)} has {shapes}: give those that the mask was made from")
        parts += _near_the_line(before, mask, found.astype(np.float64))
    return "; ".join(parts)


def _next_widths(one: Stored, before: np.ndarray, mask: np.ndarray, coded: int) -> list[str]:
    """What a bit less and a bit more would cost, by the error of the weights."""
    pruned, width = np.where(mask, before, np.zeros((), before.dtype)), math.floor(one.bits + 0.5)
    kept, entries = sizes.mask_cost(mask, before.size, one.within)
    found = []
    for bits in (width - 1, width + 1):
        if 1 <= bits <= 16:
            after = np.asarray(fake_quant(pruned, bits, spec=one.spec, where=lambda *_: True))
            more = sizes.leaf_bytes(kept, bits, entries, one.scales * one.each) - coded
            found.append(f"{bits} bits: {more:+,} bytes, error {measures.compare(before, after).relative_error:.3g}")
    return found


def _near_the_line(before: np.ndarray, mask: np.ndarray, scores: np.ndarray) -> list[str]:
    """Which stay by what score, how far from the line the nearest are, and the histograms of the two next to it."""
    units, whole = mask.size < before.size, scores[~np.isnan(scores)]
    what = "units" if units else "weights"
    stay, go = np.flatnonzero(mask & ~np.isnan(scores)), np.flatnonzero(~mask)
    if not stay.size:
        return [f"none of {mask.size:,} {what} stays"]
    flat = scores.reshape(-1)
    stay, go = stay[np.argsort(flat[stay], kind="stable")], go[np.argsort(-flat[go], kind="stable")]
    low, high = flat[stay[0]], flat[go[0]]
    said = f"{stay.size:,} of {mask.size:,} {what} stay, the last by a score of {low:.4g}, and the best that goes has "
    said += f"{high:.4g}"
    if high > low:
        return [f"{said}, since groups of them were ranked by themselves"]
    if not units:
        return [said]
    line, spread = (low + high) / 2, float(whole.std()) or 1.0
    near = [*go[:_NEAR][::-1], *stay[:_NEAR]]
    apart = ", ".join(f"{i} {(flat[i] - line) / spread:+.2f}" for i in near)
    bars = " | ".join(f"{i} {_bars(before, mask.shape, i)}" for i in (go[0], stay[0]))
    return [said, f"from the line, in standard deviations: {apart}", f"weights of the two next to it: {bars}"]


def _bars(before: np.ndarray, shape: tuple[int, ...], unit: int) -> str:
    """The histogram of a unit between the extremes of the leaf, as entropies of units have it."""
    place = zip(np.unravel_index(unit, shape), shape, strict=True)
    own = before[(Ellipsis, *(i if n > 1 else slice(None) for i, n in place))].astype(np.float64)
    finite = before[np.isfinite(before)].astype(np.float64)
    counts = np.histogram(own[np.isfinite(own)], _BINS, (finite.min(), finite.max()))[0]
    return "".join(_BARS[round((len(_BARS) - 1) * n / max(counts.max(), 1))] for n in counts)
