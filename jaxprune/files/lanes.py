"""Static entropy coding in 64 lanes, which are decoded side by side: several times as fast as one stream.

Entry i is in lane i % 64. A lane is an asymmetric numeral system of its own with 16-bit words, and the frequencies
that a table gives are rounded to 12 bits. A value that is too rare for that escapes: an escape stands in its place, and
a plain stream, as in :mod:`jaxprune.files.tables`, says which of the rare values it is. docs/format.md has the details.
Giesen 2014, "Interleaved entropy coders", arXiv:1402.3392.

A state is an integer in [2**16, 2**32). In a step each lane takes one entry; in the last step some may rest. The loops
are compiled once, for the CPU: integers of 32 bits, the same everywhere. The interpreter is free meanwhile, so that
leaves decode in parallel.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.files import tables
from jaxprune.files.bytestream import FormatError, Reader, read_list, unsigned, write_list
from jaxprune.host import chunks

LANES = 64
BITS = 12  # of a frequency
_SLOTS = 256  # that a lane tells apart
_START = 1 << 16  # the state of a lane that holds nothing
_STEPS = 2304  # of a call: its arrays stay in cache, and small enough that XLA leaves a step to one thread


def write(table: tables.Table, codes: np.ndarray) -> bytes | None:
    """Codes that a table of at least two values holds, as bytes; None if frequencies of 12 bits do not do."""
    model, flat = _model(table), codes.reshape(-1)
    if model is None:
        return None
    of_table = np.full(len(table.symbols), len(model.symbols), np.uint8)
    of_table[np.searchsorted(table.symbols, model.symbols)] = np.arange(len(model.symbols))
    slots = np.concatenate([of_table[tables.places(part, table.symbols)] for part in chunks(flat)])
    states, lanes = _written(_encoding(model), slots)
    lengths = np.array([len(lane) for lane in lanes])
    head = unsigned(int(lengths.min())) + write_list(lengths - lengths.min())
    words = np.concatenate(lanes).astype("<u2").tobytes()
    rest = [(model.rare, flat[slots == len(model.symbols)])] if len(model.rare.symbols) else []
    return head + states.astype("<u4").tobytes() + words + tables.write_stream(rest)


def read(data: memoryview, table: tables.Table, count: int) -> np.ndarray:
    """What ``write`` wrote of so many codes: integers [count]."""
    model = _model(table) if len(table.symbols) > 1 else None
    if model is None:
        raise FormatError(f"a table of {len(table.symbols)} values that lanes cannot have")
    reader = Reader(data)
    least = reader.unsigned(reader.left)
    lengths = least + read_list(reader, LANES, reader.left)
    states = np.frombuffer(reader.take(4 * LANES), "<u4").astype(np.uint32)
    words = np.frombuffer(reader.take(2 * int(lengths.sum())), "<u2")
    if states.min() < _START:
        raise FormatError(f"a lane that begins at {states.min()}: damaged")
    kind = tables.narrow(table.symbols[0], table.symbols[-1])
    codes, slots = _read(_decoding(model), np.empty(count, kind), words, lengths, states)
    take, end = tables.reading(reader.rest(), count)
    if len(model.rare.symbols):
        escaped = np.flatnonzero(slots == len(model.symbols))
        codes[escaped] = take(model.rare, len(escaped))
    end()
    return codes


# ---------------------------------------------------------------------------------------------------------------------
# Frequencies of 12 bits


class _Model(NamedTuple):
    """What lanes make of a table.

    Attributes:
      symbols: int32 [n]: values with slots of their own; an escape, if there is one, has the next slot.
      frequencies: int64 [n or n + 1]: of the slots, of 2**12.
      rare: the table of those that escape, perhaps none.
    """

    symbols: np.ndarray
    frequencies: np.ndarray
    rare: tables.Table


def _model(table: tables.Table) -> _Model | None:
    """Frequencies of 24 bits rounded to 12; None if no values are left, or too little for the most frequent."""
    fine, shift = tables.probabilities(table), tables.PRECISION - BITS
    half = 1 << (shift - 1)
    coarse = (fine + half) >> shift
    kept = coarse > (np.sort(coarse)[-_SLOTS] if len(coarse) >= _SLOTS else 0)
    frequencies = coarse[kept]
    if not len(frequencies):
        return None
    largest = int(np.argmax(frequencies))
    if len(frequencies) < len(coarse):
        frequencies = np.append(frequencies, max(1, (int(fine[~kept].sum()) + half) >> shift))
    frequencies[largest] += (1 << BITS) - frequencies.sum()
    if frequencies[largest] < 1:
        return None
    return _Model(table.symbols[kept], frequencies, tables.Table(table.symbols[~kept], table.levels[~kept]))


def _encoding(model: _Model) -> np.ndarray:
    """For each slot its frequency, and that of all before it in the lowest 12 bits: uint32 [256]."""
    table = np.zeros(_SLOTS, np.uint32)
    table[: len(model.frequencies)] = model.frequencies << BITS | _begins(model)
    return table


def _decoding(model: _Model) -> tuple[np.ndarray, np.ndarray]:
    """For each remainder its slot (8 bits), the frequency, and its number in the slot; and the values of slots."""
    slots = np.repeat(np.arange(len(model.frequencies)), model.frequencies)
    table = slots << 2 * BITS | model.frequencies[slots] << BITS | np.arange(1 << BITS) - _begins(model)[slots]
    symbols = np.zeros(_SLOTS, np.int32)
    symbols[: len(model.symbols)] = model.symbols
    return table.astype(np.uint32), symbols


def _begins(model: _Model) -> Any:
    return np.cumsum(model.frequencies) - model.frequencies


# ---------------------------------------------------------------------------------------------------------------------
# Steps


def _written(table: np.ndarray, slots: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """States, uint32 [64], and the words of each lane, uint16, in the order of reading."""
    states, pieces, table = _put(np.full(LANES, _START, np.uint32)), [], _put(table)
    for some in reversed(list(_calls(len(slots)))):
        number = some.stop - some.start
        rows = np.zeros(_STEPS * LANES, np.uint8)
        rows[:number] = slots[some]
        with jax.ensure_compile_time_eval(), jax.enable_x64(False):
            states, *found = _encode(table, rows.reshape(-1, LANES), np.int32(number), states)
        words, given = (np.ascontiguousarray(np.asarray(array)[: -(-number // LANES)].T) for array in found)
        pieces.append(np.split(words[given], np.cumsum(np.count_nonzero(given, axis=1))[:-1]))
    return np.asarray(states), [np.concatenate(lane[::-1]) for lane in zip(*pieces, strict=True)]


def _read(
    tables: tuple[np.ndarray, np.ndarray], values: np.ndarray, words: np.ndarray, lengths: np.ndarray, states: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Values, put into the array given, and slots, uint8, of the words of all lanes one after another."""
    ends = np.cumsum(lengths)
    at, states, (table, symbols) = ends - lengths, _put(states), map(_put, tables)
    slots = np.empty(values.size, np.uint8)
    for some in _calls(values.size):
        number = some.stop - some.start
        window = _window(words, at, ends, -(-number // LANES))
        with jax.ensure_compile_time_eval(), jax.enable_x64(False):
            states, taken, slot, value = _decode(table, symbols, window, np.int32(number), states)
        at = at + np.asarray(taken)
        if (at > ends).any():
            raise FormatError("a lane that ends too early: damaged")
        slots[some] = np.asarray(slot).reshape(-1)[:number]
        values[some] = np.asarray(value).reshape(-1)[:number]
    if (at != ends).any() or (np.asarray(states) != _START).any():
        raise FormatError("something is left in a lane after the last entry: damaged")
    return values, slots


def _calls(count: int) -> Iterator[slice]:
    most = _STEPS * LANES
    return (slice(at, min(at + most, count)) for at in range(0, count, most))


def _window(words: np.ndarray, at: np.ndarray, ends: np.ndarray, steps: int) -> np.ndarray:
    """The words that come next in each lane, of which a step takes at most one; zeros behind the end."""
    window = np.zeros((LANES, _STEPS), np.uint16)
    for row, begin, end in zip(window, at.tolist(), np.minimum(ends, at + steps).tolist(), strict=True):
        row[: end - begin] = words[begin:end]
    return window


def _put(array: np.ndarray) -> Any:
    """An array on the CPU, which makes what is computed with it stay there."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # switched off: slower elsewhere, and the same
        device = jax.local_devices()[0]
    with jax.ensure_compile_time_eval(), jax.enable_x64(False):
        return jax.device_put(array, device)


@jax.jit
def _encode(table, slots, count, states):
    lanes, steps = jnp.arange(LANES), (count + LANES - 1) // LANES

    def step(i, carry):
        states, words, given = carry
        t = steps - 1 - i
        found, active = table.at[slots[t]].get(mode="promise_in_bounds"), t * LANES + lanes < count
        frequency, begin = found >> BITS, found & (2**BITS - 1)
        full = active & ((states >> (32 - BITS)) >= frequency)
        words = jax.lax.dynamic_update_slice(words, states.astype(jnp.uint16)[None], (t, 0))
        given = jax.lax.dynamic_update_slice(given, full[None], (t, 0))
        quotient, left = _divide(jnp.where(full, states >> 16, states), frequency)
        return jnp.where(active, (quotient << BITS) + left + begin, states), words, given

    return jax.lax.fori_loop(0, steps, step, (states, jnp.zeros(slots.shape, jnp.uint16), jnp.zeros(slots.shape, bool)))


def _divide(a, b):
    """Quotient, below 2**20, and remainder; in float32 it is at most one off, and division of integers takes long."""
    about = (a.astype(jnp.float32) / b.astype(jnp.float32)).astype(jnp.int32)
    left, whole = (a - about.astype(jnp.uint32) * b).astype(jnp.int32), b.astype(jnp.int32)
    off = (left >= whole).astype(jnp.int32) - (left < 0).astype(jnp.int32)
    return (about + off).astype(jnp.uint32), (left - off * whole).astype(jnp.uint32)


@jax.jit
def _decode(table, symbols, words, count, states):
    lanes = jnp.arange(LANES)

    def step(t, carry):
        states, taken, slots = carry
        found, active = table.at[states & (2**BITS - 1)].get(mode="promise_in_bounds"), t * LANES + lanes < count
        short = ((found >> BITS) & (2**BITS - 1)) * (states >> BITS) + (found & (2**BITS - 1))
        more = active & (short < _START)
        word = words.at[lanes, taken].get(mode="promise_in_bounds").astype(jnp.uint32)
        after = jnp.where(more, short << 16 | word, short)
        slots = jax.lax.dynamic_update_slice(slots, (found >> 2 * BITS).astype(jnp.uint8)[None], (t, 0))
        return jnp.where(active, after, states), taken + more.astype(jnp.int32), slots

    carry = states, jnp.zeros(LANES, jnp.int32), jnp.zeros((_STEPS, LANES), jnp.uint8)
    states, taken, slots = jax.lax.fori_loop(0, (count + LANES - 1) // LANES, step, carry)
    return states, taken, slots, symbols.at[slots].get(mode="promise_in_bounds")
