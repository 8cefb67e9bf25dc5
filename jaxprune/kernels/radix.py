"""Order statistics by radix selection: count one digit, most significant first, among the elements that may still win.

Keys of 32 bits take two passes over the elements, or one where a sample says where to look; keys of 16 bits take one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Array
from jaxprune.kernels.float_keys import Cut, Ranked, key_type, to_keys
from jaxprune.kernels.histogram import histogram

DIGIT = 16  # bits of a digit, whose histogram stays in cache
_LARGE = 1 << 22  # elements from which a sample pays, and digits whose histogram takes 1 MiB
_WIDE = 18  # bits of such digits
_EVERY = 17  # of so many elements one is sampled; odd, so that every column of a matrix has its turn
_LANES = 1 << 6  # bins that share one count, because additions to a single one wait for each other


def cut_at(leaf: Ranked, rank: Array, key: Array | None = None) -> Cut:
    """A cut that exactly ``rank`` elements of the leaf lie below; arguments as for ``bisection.cut_at``.

    One loop finds the key, digit by digit, and then, among equal keys, the flat index, which most data never need: it
    ends once no equal element is left to remove. A digit may start anywhere: where a sample tells in which narrow range
    the key must lie, one pass finds it; if it does not lie there, the search starts anew.
    """
    dtype, size = leaf.dtype, leaf.values.size
    large = size >= _LARGE
    width, lanes = (_WIDE, _LANES) if large else (DIGIT, 0)
    kind = np.promote_types(key_type(dtype), np.uint32)
    shifts = [kind.type(max(bits - width, 0)) for bits in (dtype.itemsize * 8, size.bit_length())]

    def whole(on_index: Array) -> _Digit:
        return _Digit(jnp.zeros((), kind), jnp.where(on_index, shifts[1], shifts[0]), on_index)

    def step(state: tuple[_Digit, Cut, Array, Array]) -> tuple[_Digit, Cut, Array, Array]:
        digit, cut, rank, _ = state
        binning = _NextDigit(dtype, width, lanes)
        counts = histogram(leaf.values, (cut, digit, leaf.guard), binning, (1 << width) + 2 * lanes)
        below = counts[1 << width : (1 << width) + lanes].sum(dtype=jnp.uint32)
        bin_, rest = _find(counts[: 1 << width], rank - below)
        inside = bin_ < 1 << width
        value = digit.start + (bin_.astype(kind) << digit.shift)
        found = inside & (digit.shift == 0)
        of_key, of_index = found & ~digit.on_index, found & digit.on_index
        cut = cut.moved(value, of_key, of_index)
        shift = jnp.maximum(digit.shift, width) - kind.type(width)
        narrower = _digit(value, shift, digit.on_index, width) if large else _Digit(value, shift, digit.on_index)
        anew = whole(digit.on_index | of_key)
        digit = jax.tree.map(lambda new, old: jnp.where(inside & ~of_key, new, old), narrower, anew)
        rank = jnp.where(of_key if large else inside, rest, rank)
        return digit, cut, rank, of_index | (of_key & (rest == 0))

    known = key is not None
    digit = whole(jnp.asarray(known))
    if large and not known and dtype.itemsize > 2:
        digit = _likely(leaf, rank, width)
    cut = Cut(key if known else jnp.zeros((), key_type(dtype)), jnp.zeros((), jnp.uint32))
    return jax.lax.while_loop(lambda state: ~state[3], step, (digit, cut, rank, (rank == 0) & known))[1]


class _Digit(NamedTuple):
    """What is counted next: ``(number - start) >> shift``, of keys or, among equals, of flat indices."""

    start: Array
    shift: Array
    on_index: Array


def _digit(start: Array, shift: Array, on_index: Array, width: int) -> _Digit:
    """A digit that starts no later than there, and whose last bin ends no later than the numbers do."""
    return _Digit(jnp.minimum(start, -(start.dtype.type(1 << width) << shift)), shift, on_index)


@dataclass(frozen=True)
class _NextDigit:
    """Sends an element to its digit, or beyond all bins.

    With ``lanes``, where a digit may start at the wrong place, elements whose number is too low are counted too, in so
    many bins behind, and the others in as many more: of elements at random, a branch that skips them is often predicted
    wrongly, and counting takes less time. Unequal keys have the highest index of all. What is too low wraps around.
    """

    dtype: np.dtype
    width: int
    lanes: int

    def __call__(self, values: Array, index: Array, cut: Cut, digit: _Digit, guard: Cut | None) -> Array:
        keys = to_keys(values, self.dtype, index, guard)
        number = cut.numbers(keys, index, digit.on_index, digit.start.dtype)
        bins, end = (number - digit.start) >> digit.shift, np.uint32(1 << self.width)
        outside = end
        if self.lanes:
            outside = index % self.lanes + jnp.where(number < digit.start, end, end + np.uint32(self.lanes))
        return jnp.where(bins < end, bins.astype(jnp.uint32), outside)


def _likely(leaf: Ranked, rank: Array, width: int) -> _Digit:
    """A digit of the keys in which the rank very likely lies, by a sample."""
    left, kind = leaf.dtype.itemsize * 8 - DIGIT, key_type(leaf.dtype)
    counts = _count(leaf, kind.type(0), kind.type(left), every=_EVERY)
    size = counts.sum(dtype=jnp.uint32).astype(jnp.float32)
    middle = rank.astype(jnp.float32) * (size / leaf.values.size)
    spread = 4 * jnp.sqrt(middle * jnp.maximum(1 - middle / size, 0)) + 16
    ends = jnp.stack([middle - spread, middle + spread])
    bins, _ = locate(counts[None], jnp.zeros(2, jnp.int32), jnp.clip(ends, 0, size - 1).astype(jnp.uint32))
    low, high = jnp.where(ends < 0, 0, jnp.where(ends >= size - 1, (1 << DIGIT) - 1, bins)).astype(jnp.uint32)
    shift = jnp.maximum(32 - jax.lax.clz(high - low).astype(jnp.int32) + left - width, 0)
    kind = np.promote_types(kind, np.uint32)
    return _digit(low.astype(kind) << left, shift.astype(kind), jnp.zeros((), bool), width)


def key_at(leaves: Sequence[Ranked], rank: Array) -> tuple[Array, Array]:
    """The key of one 0-based rank among all leaves, and how many of its equals come before it.

    One unrolled program of few operations a leaf, because loops over many leaves take long to compile.
    """
    key = jnp.zeros((), key_type(leaves[0].dtype))
    for shift in digit_shifts(leaves[0].dtype):
        counts = jnp.zeros(1 << DIGIT, jnp.uint32)
        for leaf in leaves:
            counts += count_digit(leaf, key, shift)
        digit, rank = _find(counts, rank)
        key |= digit.astype(key.dtype) << shift
    return key, rank


def digit_shifts(dtype: np.dtype) -> list[Any]:
    """How far ``count_digit`` has to shift the keys in each pass, most significant digit first."""
    return [key_type(dtype).type(shift) for shift in range(dtype.itemsize * 8 - DIGIT, -1, -DIGIT)]


@jax.jit
def count_digit(leaf: Ranked, above: Array, shift: Array) -> Array:
    """Histogram of the digit at ``shift`` among the elements whose keys begin like ``above``: uint32 [2**16]."""
    return _count(leaf, above, shift)


def count_equal(leaf: Ranked, key: Array) -> Array:
    """How many elements have this key: uint32."""
    return _count(leaf, key, key_type(leaf.dtype).type(0), bins=1)[0]


def _count(leaf: Ranked, above: Array, shift: Array, bins: int = 1 << DIGIT, every: int = 1) -> Array:
    return histogram(leaf.values, (above, shift, leaf.guard), _OneDigit(leaf.dtype), bins, every=every)


@dataclass(frozen=True)
class _OneDigit:
    """Sends an element to its digit; what is too low wraps around, and so lies beyond all bins too."""

    dtype: np.dtype

    def __call__(self, values: Array, index: Array, above: Array, shift: Array, guard: Cut | None) -> Array:
        keys = to_keys(values, self.dtype, index, guard)
        bins = ((keys - above) >> shift).astype(np.promote_types(keys.dtype, np.uint32))
        return jnp.minimum(bins, 1 << DIGIT).astype(jnp.uint32)


def _find(counts: Array, rank: Array) -> tuple[Array, Array]:
    """The bin in which a rank falls, and the rank within it."""
    bins, rest = locate(counts[None], jnp.zeros(1, jnp.int32), rank[None])
    return bins[0], rest[0]


def locate(counts: Array, slot: Array, rank: Array) -> tuple[Array, Array]:
    """In row ``slot`` of ``counts`` [slots, bins], the bin in which each rank falls, and the rank within it.

    In two steps, blocks of bins and then bins, so that nothing as long as the histogram is summed up cumulatively.
    """
    blocks = counts.reshape(counts.shape[0], 1 << (counts.shape[1].bit_length() // 2), -1)
    block, rank = _walk(blocks.sum(-1, dtype=jnp.uint32)[slot], rank)
    inner, rank = _walk(blocks[slot, block], rank)
    return block * blocks.shape[2] + inner, rank


def _walk(rows: Array, rank: Array) -> tuple[Array, Array]:
    passed = jnp.cumsum(rows, axis=1, dtype=jnp.uint32) <= rank[:, None]
    return passed.sum(1, dtype=jnp.int32), rank - jnp.where(passed, rows, 0).sum(1, dtype=jnp.uint32)
