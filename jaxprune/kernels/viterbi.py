"""Trellis-coded quantization of many sequences at once: the best path, and the numbers that a path stands for.

The numbers are odd multiples of 1/2: n + 1/2 for all whole n, which belong to four subsets, n % 4. From an even state
of the trellis only those with n % 4 of 0 or 2 can be reached, from an odd one only those of 1 or 3, the mirror images
of the former. So both have one set of indices: index k stands for 2 k + 1/2, in an odd state for -(2 k + 1/2), and the
indices are distributed alike. A path goes from state s to (2 s + b) % states, where b is the parity of k, of s and of
some further bits of s (a convolutional code of rate 1/2).

Ahead of it the rows of tall kernels may be rotated, so that their columns are uncorrelated and cost fewer bits. The
columns of an embedding are correlated: its rows times the eigenvectors of their covariance (Hotelling 1933; for coding
Huang and Schultheiss 1963) have columns of unequal variance, and the mean of their logarithms, which is what costs
bits, is smaller. The eigenvectors are kept in few bits; what is coded is the exact solution for these.

Source: Marcellin and Fischer 1990, "Trellis coded quantization of memoryless and Gauss-Markov sources"; Fischer and
Wang 1992 and Marcellin 1994 for supersets that share their entropy code; the trellises are those of Ungerboeck 1982.
"""

import math
from functools import partial, reduce
from operator import xor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Array

#: The bits of a state, besides its lowest, whose parity decides which of two branches has which subset.
TAPS = {4: (1,), 8: (1, 2), 16: (1, 3), 32: (2, 4)}
_LENGTH = 512  # of a sequence; each begins in a known state, which costs about what two weights gain
_WIDTH = 2048  # sequences that are looked at together; their states and choices fit a cache
_FAR = 1e9
_SAMPLE = 8192  # rows
_TALL = 8  # times as many rows as columns, at least
_EXACT = 2.0**24
_PRICE = 6.0  # bits of an entry of the basis


def layout(size: int) -> tuple[int, int]:
    """Length and number of the sequences that so many entries make; entry i is number i // lanes of i % lanes."""
    lanes = max(1, -(-size // _LENGTH))
    return -(-size // lanes), lanes


def to_lanes(x: Array) -> Array:
    """The entries of an array as sequences [length, lanes], filled up with zeros."""
    length, lanes = layout(x.size)
    return jnp.pad(x.reshape(-1), (0, length * lanes - x.size)).reshape(length, lanes)


def from_lanes(x: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of :func:`to_lanes`."""
    return x.reshape(-1)[: math.prod(shape)].reshape(shape)


def spare(lanes: int) -> int:
    """How many lanes to add, so that blocks of about 2048 are equal, and whole vectors."""
    number = max(1, -(-lanes // _WIDTH))
    width = -(-lanes // number)
    return number * (width if number == 1 else -(-width // 16) * 16) - lanes


def search(x: Array, states: int, zeros: bool, dtype: Any = jnp.int32) -> Array:
    """The indices whose numbers are nearest to ``x``, in the sum of squares over each sequence.

    Args:
      x: float32 [length, lanes]; a sequence goes along the first axis, and begins in state 0. With :func:`spare`
        lanes in it.
      states: of the trellis, 4, 8, 16 or 32.
      zeros: whether zeros take no part: they leave the state as it is, and their index means nothing.
      dtype: of the indices, which must fit.

    Returns:
      The indices, in the shape of ``x``.
    """
    length, lanes = x.shape
    number = -(-lanes // _WIDTH)
    width = lanes // number

    def block(i, indices):
        part = jax.lax.dynamic_slice(x, (0, i * width), (length, width))
        return jax.lax.dynamic_update_slice(indices, _best(part, states, zeros, dtype), (0, i * width))

    return jax.lax.fori_loop(0, number, block, jnp.zeros(x.shape, dtype))


def _best(x: Array, states: int, zeros: bool, dtype: Any) -> Array:
    small = jnp.uint8 if states <= 8 else jnp.uint16 if states <= 16 else jnp.uint32
    start = tuple(jnp.full(x.shape[1:], _FAR if state else 0.0, jnp.float32) for state in range(states))
    costs, choices = jax.lax.scan(lambda costs, x: _forward(costs, x, states, zeros, small), start, x)
    last = jnp.argmin(jnp.stack(costs), 0).astype(small)
    back = partial(_backward, states=states, zeros=zeros, dtype=dtype)
    return jax.lax.scan(back, last, (x, choices), reverse=True)[1]


def numbers(indices: Array, states: int, kept: Array | None = None) -> Array:
    """Twice the numbers that the indices stand for: whole, float32 [length, lanes]; 0 where ``kept`` is False."""

    def step(state, at):
        index, keep = at
        odd = state & 1
        branch = (index & 1).astype(state.dtype) ^ odd ^ _parity(state, states)
        after = ((state << 1) | branch) & (states - 1)
        value = 4 * index.astype(jnp.float32) + 1
        value = jnp.where(odd == 1, -value, value)
        return (after, value) if keep is None else (jnp.where(keep, after, state), jnp.where(keep, value, 0))

    return jax.lax.scan(step, jnp.zeros(indices.shape[1:], jnp.uint8), (indices, kept))[1]


def _parity(state: Array | int, states: int) -> Array | int:
    return reduce(xor, ((state >> tap) & 1 for tap in TAPS[states]))


def _forward(costs, x, states, zeros, small):
    """Adds one number: the least cost of each state, and from which of its two predecessors it comes."""
    # A subset is a lattice of spacing 4. Distances are those modulo 4, in units of 4.
    place = x * 0.25 - 0.125
    place = place - jnp.round(place)
    first, second = jnp.abs(place), jnp.abs(place - 0.25)
    second = jnp.minimum(second, 1 - second)
    squares = [distance * distance for distance in (first, second, 0.5 - first, 0.5 - second)]
    after, choices = [], jnp.zeros(x.shape, small)
    for state in range(states):
        ways = []
        for before in (state // 2, state // 2 + states // 2):
            subset = before % 2 + 2 * (state % 2 ^ _parity(before, states))
            ways.append(costs[before] + squares[subset])
        after.append(jnp.minimum(*ways))
        choices |= (ways[1] < ways[0]).astype(small) << state
    if zeros:
        after = [jnp.where(x == 0, old, new) for old, new in zip(costs, after, strict=True)]
    return tuple(after), choices


def _backward(state, at, states, zeros, dtype):
    """The state before, and the index that leads from it to ``state``."""
    x, choices = at
    kind = state.dtype.type
    before = (state >> 1) | (((choices >> state) & kind(1)) << (states.bit_length() - 2))
    odd = before & kind(1)
    parity = ((state ^ before ^ _parity(before, states)) & kind(1)).astype(jnp.float32)
    mirrored = jnp.where(odd == 1, -x, x)
    index = (2 * jnp.round((mirrored - 0.5 - 2 * parity) * 0.25) + parity).astype(dtype)
    return (jnp.where(x == 0, state, before) if zeros else before), index


# ---------------------------------------------------------------------------------------------------------------------
# Rotations


def basis_exponent(columns: int) -> int:
    """The entries of a basis are multiples of 2**-exponent: their errors add 1% to the error of what is coded."""
    return min((10 * columns).bit_length() // 2, 6)


def basis_of(matrix: Array, step: float) -> tuple[np.ndarray, Array] | None:
    """Eigenvectors of the columns' covariance, int8, one a row; and what :func:`rotated` multiplies by, float32.

    Args:
      matrix: finite float array [rows, columns], concrete.
      step: half the distance of the numbers to which coordinates are rounded.

    Returns:
      Two arrays [columns, columns], or None if the rotation does not pay.
    """
    rows, columns = matrix.shape
    if columns < 2 or rows < _TALL * columns:
        return None
    found = _covariances(matrix[:: -(-rows // _SAMPLE)])
    if columns**0.5 * (2 * float(_longest(matrix)) / step + 2 * columns**0.5) * 2 ** basis_exponent(columns) > _EXACT:
        return None  # a sum of rotated_back() might not be exact, by the inequality of Cauchy and Schwarz
    plain, weighed = (np.asarray(part) for part in found)
    vectors = np.linalg.eigh(weighed)[1][:, ::-1].T
    variances = np.einsum("ij,ij->i", vectors @ plain, vectors)
    halves = [0.5 * np.log2(np.maximum(part, step**2)).sum() for part in (np.diag(plain), variances)]
    if rows * (halves[0] - halves[1]) < 2 * _PRICE * columns**2:
        return None
    basis = np.clip(np.rint(vectors * 2.0 ** basis_exponent(columns)), -127, 127)
    inverse = np.linalg.inv(basis * np.float32(2.0 ** -basis_exponent(columns)) + 0.0)
    if not np.sum(inverse**2) < 2 * columns:
        return None
    return basis.astype(np.int8), jnp.asarray(inverse, jnp.float32)


@jax.jit
def _longest(matrix: Array) -> Array:
    return jnp.sqrt(jnp.max(jnp.sum(jnp.square(matrix.astype(jnp.float32)), axis=1)))


@jax.jit
def _covariances(rows: Array) -> tuple[Array, Array]:
    """Of the rows as they are, and of rows of the same norm: the former's prices, the latter's directions."""
    rows = rows.astype(jnp.float32)
    weights = 1 / jnp.maximum(jnp.sum(rows * rows, axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    return jnp.dot(rows.T, rows) / len(rows), jnp.dot(rows.T, rows * weights)


def rotated(matrix: Array, inverse: Array) -> Array:
    """The coordinates of the rows of a float32 matrix, given the inverse of the basis."""
    return jnp.dot(matrix, inverse, precision=jax.lax.Precision.HIGHEST)


def rotated_back(coordinates: Array, basis: Array) -> Array:
    """Whole coordinates times the int8 basis: exact, and so alike everywhere, as long as sums stay below 2**24."""
    return jnp.dot(coordinates, basis.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
