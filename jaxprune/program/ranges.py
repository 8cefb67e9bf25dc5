"""Ranges of numbers, one or many, and what they say of a value.

A range says between which numbers entries lie, and whether they may be infinite or NaN. Bounds are computed in float64
and widened by more than a rounding of any narrower type, so that they hold for what a device computes; 0 stays exactly
0 where the operation is exact there. An infinite bound without the flag means: finite, however large.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

#: Relative widening of bounds: above the rounding of bfloat16, and of the approximations of transcendental functions.
SLACK = 2.0**-6


class Range(NamedTuple):
    """Bounds of entries, one or an array of them.

    Attributes:
      low, high: float64; the entries that are not NaN lie between them.
      nan: whether entries may be NaN.
      infinite: whether entries may be infinite, on the side of an infinite bound.
    """

    low: np.ndarray
    high: np.ndarray
    nan: np.ndarray
    infinite: np.ndarray

    @property
    def zero(self) -> np.ndarray:
        """Whether the entries are exactly 0."""
        return (self.low == 0) & (self.high == 0) & self.finite

    @property
    def finite(self) -> np.ndarray:
        """Whether the entries are finite for sure."""
        return ~(self.nan | self.infinite)


def between(low: Any, high: Any, nan: Any = False, infinite: Any = False) -> Range:
    """A range from its bounds; bounds that are NaN (of infinity minus infinity) say nothing."""
    low, high, nan, infinite = np.broadcast_arrays(np.float64(low), np.float64(high), nan, infinite)
    return Range(np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high), nan, infinite)


ZERO = between(0.0, 0.0)
UNBOUNDED = between(-np.inf, np.inf)
ANYTHING = between(-np.inf, np.inf, True, True)


def join(*ranges: Range) -> Range:
    """What holds for the entries of either."""
    found = ranges[0]
    for low, high, nan, infinite in ranges[1:]:
        ends = np.minimum(found.low, low), np.maximum(found.high, high)
        found = Range(*ends, found.nan | nan, found.infinite | infinite)
    return found


def hull(found: Range, axis: int | tuple[int, ...] | None = None) -> Range:
    """One range for many; there has to be one at least."""
    low, high, nan, infinite = found
    return Range(low.min(axis), high.max(axis), np.any(nan, axis), np.any(infinite, axis))


def choose(where: Any, yes: Range, no: Range) -> Range:
    """The first range at some places, the second at the others."""
    return Range(*(np.where(where, a, b) for a, b in zip(yes, no, strict=True)))


def pick(found: Range, index: Any) -> Range:
    """Some of an array of ranges."""
    return Range(*(part[index] for part in found))


def widen(found: Range) -> Range:
    """Room for rounding, on both sides, for results that rounding can change."""
    low, high, nan, infinite = found
    down, up = (np.where(np.isinf(end), 0, SLACK * np.abs(end)) for end in (low, high))
    return Range(low - down, high + up, nan, infinite)


def settle(found: Range, dtype: Any) -> Range:
    """What a range says of numbers of a dtype: they may round to 0, overflow, or wrap around."""
    low, high, nan, infinite = found
    low, high = np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)
    if dtype == jnp.bool_:
        return between(np.clip(low, 0, 1), np.clip(high, 0, 1))
    if jnp.issubdtype(dtype, jnp.integer):
        limits = jnp.iinfo(dtype)
        inside = (low >= limits.min) & (high <= limits.max) & ~nan & ~infinite
        return between(np.where(inside, low, float(limits.min)), np.where(inside, high, float(limits.max)))
    if not jnp.issubdtype(dtype, jnp.floating):
        return between(np.where(found.zero, 0, -np.inf), np.where(found.zero, 0, np.inf), nan, infinite)
    tiny, largest = float(jnp.finfo(dtype).tiny), float(jnp.finfo(dtype).max)
    over = (np.isfinite(low) & (low < -largest)) | (np.isfinite(high) & (high > largest))
    low, high = np.where(low < -largest, -np.inf, low), np.where(high > largest, np.inf, high)
    low, high = np.where((low > 0) & (low < tiny), 0, low), np.where((high < 0) & (high > -tiny), 0, high)
    return Range(low, high, nan, infinite | over)


def measure(numbers: np.ndarray, over: tuple[int, ...] | None) -> Range:
    """The range of numbers, over some axes or all."""
    low, high = np.min(numbers, axis=over), np.max(numbers, axis=over)  # NaN if any is
    return between(low, high, np.isnan(low), np.any(np.isinf(numbers), axis=over))


def many(one: Range, size: int) -> Range:
    """The same range for each index of an axis."""
    return Range(*(np.broadcast_to(part, (size,)) for part in one))


def chain(*ranges: Range) -> Range:
    """Ranges along an axis, one after the other."""
    return Range(*(np.concatenate(part) for part in zip(*ranges, strict=True)))


def not_zero(removed: Range, cause: str = "") -> str:
    """In words, what is wrong with many entries that should be 0; ``cause`` made them infinite or NaN."""
    if not removed.finite.all():
        return "may be infinite or NaN there" + (f", from {cause}" if cause else "")
    worst = pick(removed, np.flatnonzero(~removed.zero)[:1])
    if worst.low == worst.high:
        return f"are {worst.low[0]:.4g} there"
    return f"are not 0 for sure there, but in [{worst.low[0]:.4g}, {worst.high[0]:.4g}]"


#: For each axis that loses entries, which go.
Gone = dict[int, np.ndarray]


class Fault(NamedTuple):
    """A place where what is removed makes a difference.

    Attributes:
      operation: name of the operation, as in the traced program.
      line: where it comes from: ``file.py:12 (function)``.
      reason: what is wrong, in words.
    """

    operation: str
    line: str
    reason: str


@dataclass(eq=False)
class Value:
    """What is known of one value.

    Attributes:
      rest: the range of the entries that stay along every axis.
      axes: for each axis that loses entries a range for each index. At an index that goes it holds for all entries
        there; at one that stays, for those that stay along the other axes as well.
      gone: for each of these axes, which indices go.
      faults: the differences that the value may have taken part in.
      peak: ``(axes, number)``: wherever along the other axes, some entry along these is at least the number.
      largest: ``(value, axes, sources)``: this is the maximum of another value over some axes; for each axis of this
        value the axis of the other, or ``None``.
      alike: axes along which entries only repeat each other: what holds for those that stay holds for all.
      cause: the operation that first made removed entries infinite or NaN.
      known: gives the value itself, if no parameter and no input takes part in it.
      finite_at: gives the places where entries that may be infinite are finite for sure.
    """

    rest: Range
    axes: dict[int, Range] = field(default_factory=dict)
    gone: Gone = field(default_factory=dict)
    faults: frozenset[Fault] = frozenset()
    peak: tuple[tuple[int, ...], float] | None = None
    largest: "tuple[Value, tuple[int, ...], tuple[int | None, ...]] | None" = None
    alike: frozenset[int] = frozenset()
    cause: str = ""
    known: Callable[[], Any] | None = None
    finite_at: Callable[[], Any] | None = None

    def anywhere(self, but: Sequence[int] = ()) -> Range:
        """A range for all entries, except those that go along some axes."""
        parts = [hull(pick(self.axes[i], gone)) for i, gone in self.gone.items() if i not in but]
        return join(self.rest, *parts)

    def along(self, axis: int | None, gone: np.ndarray, but: Sequence[int] = ()) -> Range:
        """Ranges for each index of an axis that loses entries; ``None``: along which this value is repeated."""
        return self.axes[axis] if axis in self.axes else choose(gone, self.anywhere(but), self.rest)

    def mapped(self, function: Callable[..., Range], *others: "Value") -> "Value":
        """The same, with a function of its ranges, and of those of others that lose the same entries."""
        axes = {i: function(found, *(other.axes[i] for other in others)) for i, found in self.axes.items()}
        return replace(self, rest=function(self.rest, *(other.rest for other in others)), axes=axes)

    def ranges(self) -> list[Range]:
        """All that is known."""
        return [self.rest, *self.axes.values()]

    def repeated(self, alike: frozenset[int]) -> "Value":
        """The same, whose entries only repeat each other along some axes."""
        if alike == self.alike:  # the same object, as maxima are told by it
            return self
        held, left = self.anywhere(but=tuple(alike)), {i for i in alike if i in self.gone and not self.gone[i].all()}
        axes = {i: choose(self.gone[i], held, a) if i in left else a for i, a in self.axes.items()}
        return replace(self, axes=axes, alike=alike)

    def is_number(self, number: float) -> bool:
        """Whether all entries are one number."""
        return all(np.all((a.low == number) & (a.high == number) & ~a.nan) for a in self.ranges())

    def is_finite(self) -> bool:
        """Whether all entries are finite for sure."""
        return all(np.all(a.finite) for a in self.ranges())


def of_array(array: Any, gone: Gone) -> Value:
    """What is known of a constant."""
    opaque = isinstance(array, Tracer) or jnp.issubdtype(array.dtype, jax.dtypes.extended)
    if opaque or not array.size:
        whole = ANYTHING if opaque else ZERO
        return Value(whole, {i: many(whole, flags.size) for i, flags in gone.items()}, gone)
    numbers = np.asarray(array)
    numbers = (np.abs(numbers) if np.issubdtype(numbers.dtype, np.complexfloating) else numbers).astype(np.float64)
    kept = np.ones(numbers.shape, bool)
    axes = {}
    for i, flags in gone.items():
        axes[i] = settle(measure(numbers, tuple(k for k in range(numbers.ndim) if k != i)), array.dtype)
        kept &= ~flags.reshape([-1 if k == i else 1 for k in range(numbers.ndim)])
    rest = settle(measure(numbers[kept], None), array.dtype) if kept.any() else ZERO
    return Value(rest, axes, gone, known=lambda: array)


def all_faults(values: Iterable[Value]) -> frozenset[Fault]:
    """What any of some values has taken part in."""
    return frozenset().union(*(value.faults for value in values))
