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

_NEAR = 3  # units on each side of the line that are named
_BINS = 16
_BARS = "▁▂▃▄▅▆▇█"


def reason(one: Stored, before: np.ndarray, coded: int, error: float, scores: Any = None) -> str:
    """The sentence of a leaf; empty of one that nothing was done to.

    Args:
      one: what is known of it.
      before: the leaf as it was.
      coded, error: bytes and relative error of what it became.
      scores: what its mask was made from, in the shape of the mask; ``None`` where nobody knows.
    """
    mask = np.asarray(one.mask)
    if one.bits is None and mask.all():
        return ""
    parts = [f"saves {before.nbytes - coded:,} bytes for a relative error of {error:.3g}"]
    parts += [] if one.bits is None else _next_widths(one, before, mask, coded)
    if scores is not None and mask.ndim and not mask.all():
        found = np.asarray(scores)
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
