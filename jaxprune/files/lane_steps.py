"""The loops of :mod:`jaxprune.files.lanes`: 64 asymmetric numeral systems that take their steps together.

A state is an integer in [2**16, 2**32). In a step each lane takes one entry of a stretch; in the last step some may
rest. The loops are compiled once, for the CPU: integers of 32 bits, the same everywhere. The interpreter is free
meanwhile, so that leaves decode in parallel.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.files.errors import ArtifactError

LANES = 64
BITS = 12  # of a frequency
SLOTS = 256  # that a lane tells apart
START = 1 << 16  # the state of a lane that holds nothing
_STEPS = 2304  # of a call: its arrays stay in cache, and small enough that XLA leaves a step to one thread


def encode(tables: Sequence[np.ndarray], stretches: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """States, uint32 [64], and the words of each lane, uint16, in the order of reading.

    Args:
      tables: for each stretch, uint32 [256]: the frequency of each slot, of 2**12, and in the lowest 12 bits how much
        all before have.
      stretches: slots, uint8 [n], whose frequencies are above 0.
    """
    states, pieces = _put(np.full(LANES, START, np.uint32)), [[] for _ in range(LANES)]
    for table, stretch in zip(reversed(tables), reversed(stretches), strict=True):
        table = _put(table)
        for some in reversed(list(_calls(len(stretch)))):
            rows = np.zeros(_STEPS * LANES, np.uint8)
            rows[: some.stop - some.start] = stretch[some]
            with jax.ensure_compile_time_eval():
                states, *found = _encode(table, rows.reshape(-1, LANES), np.int32(some.stop - some.start), states)
            used = -(-(some.stop - some.start) // LANES)
            words, given = (np.ascontiguousarray(np.asarray(array)[:used].T) for array in found)
            ends = np.cumsum(np.count_nonzero(given, axis=1)).tolist()
            words = words[given]
            for piece, at, end in zip(pieces, [0, *ends], ends, strict=False):
                piece.append(words[at:end])
    return np.asarray(states), [np.concatenate(piece[::-1]) for piece in pieces]


def decode(
    tables: Sequence[tuple[np.ndarray, np.ndarray]],
    counts: Sequence[int],
    words: np.ndarray,
    lengths: np.ndarray,
    states: np.ndarray,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each stretch its values, int32 [n], and slots, uint8 [n].

    Args:
      tables: for each stretch, uint32 [4096], by the lowest bits of a state: slot (8 bits), its frequency (12), and
        which of its states this is (12); and int32 [256]: the value of each slot.
      counts: entries of each stretch.
      words: uint16, those of all lanes one after another.
      lengths: how many words each lane has, int64 [64].
      states: uint32 [64], at least 2**16.

    Raises:
      ArtifactError: the words are not those of so many entries.
    """
    ends, found = np.cumsum(lengths), []
    at, states = ends - lengths, _put(states)
    for (table, symbols), count in zip(tables, counts, strict=True):
        table, symbols = _put(table), _put(symbols)
        values, slots = np.empty(count, np.int32), np.empty(count, np.uint8)
        for some in _calls(count):
            number = some.stop - some.start
            window = _window(words, at, ends, -(-number // LANES))
            with jax.ensure_compile_time_eval():
                states, taken, slot, value = _decode(table, symbols, window, np.int32(number), states)
            at = at + np.asarray(taken)
            if (at > ends).any():
                raise ArtifactError("a lane that ends too early: damaged")
            slots[some] = np.asarray(slot).reshape(-1)[:number]
            values[some] = np.asarray(value).reshape(-1)[:number]
        found.append((values, slots))
    if (at != ends).any() or (np.asarray(states) != START).any():
        raise ArtifactError("something is left in a lane after the last entry: damaged")
    return found


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
    with jax.ensure_compile_time_eval():
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
        words = lax.dynamic_update_slice(words, states.astype(jnp.uint16)[None], (t, 0))
        given = lax.dynamic_update_slice(given, full[None], (t, 0))
        quotient, left = _divide(jnp.where(full, states >> 16, states), frequency)
        return jnp.where(active, (quotient << BITS) + left + begin, states), words, given

    return lax.fori_loop(0, steps, step, (states, jnp.zeros(slots.shape, jnp.uint16), jnp.zeros(slots.shape, bool)))


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
        more = active & (short < START)
        word = words.at[lanes, taken].get(mode="promise_in_bounds").astype(jnp.uint32)
        after = jnp.where(more, short << 16 | word, short)
        slots = lax.dynamic_update_slice(slots, (found >> 2 * BITS).astype(jnp.uint8)[None], (t, 0))
        return jnp.where(active, after, states), taken + more.astype(jnp.int32), slots

    carry = states, jnp.zeros(LANES, jnp.int32), jnp.zeros((_STEPS, LANES), jnp.uint8)
    states, taken, slots = lax.fori_loop(0, (count + LANES - 1) // LANES, step, carry)
    return states, taken, slots, symbols.at[slots].get(mode="promise_in_bounds")
