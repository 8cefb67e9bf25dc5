"""A rotation of the rows of tall kernels, after which their columns are uncorrelated and cost fewer bits.

The columns of an embedding are correlated. Its rows times the eigenvectors of their covariance (Hotelling 1933; for
coding Huang and Schultheiss 1963) have columns of unequal variance, and the mean of their logarithms, which is what
costs bits, is smaller. The eigenvectors are kept in few bits; what is coded is the exact solution for these.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Array

_SAMPLE = 8192  # rows
_TALL = 8  # times as many rows as columns, at least
_EXACT = 2.0**24
_PRICE = 6.0  # bits of an entry of the basis


def exponent(columns: int) -> int:
    """The entries of a basis are multiples of 2**-exponent: their errors add 1% to the error of what is coded."""
    return min((10 * columns).bit_length() // 2, 6)


def basis_of(matrix: Array, step: float) -> tuple[np.ndarray, Array] | None:
    """Eigenvectors of the columns' covariance, int8, one a row; and what :func:`forth` multiplies by, float32.

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
    if columns**0.5 * (2 * float(_longest(matrix)) / step + 2 * columns**0.5) * 2 ** exponent(columns) > _EXACT:
        return None  # a sum of back() might not be exact, by the inequality of Cauchy and Schwarz
    plain, weighed = (np.asarray(part) for part in found)
    vectors = np.linalg.eigh(weighed)[1][:, ::-1].T
    variances = np.einsum("ij,ij->i", vectors @ plain, vectors)
    halves = [0.5 * np.log2(np.maximum(part, step**2)).sum() for part in (np.diag(plain), variances)]
    if rows * (halves[0] - halves[1]) < 2 * _PRICE * columns**2:
        return None
    basis = np.clip(np.rint(vectors * 2.0 ** exponent(columns)), -127, 127)
    inverse = np.linalg.inv(basis * np.float32(2.0 ** -exponent(columns)) + 0.0)
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


def forth(matrix: Array, inverse: Array) -> Array:
    """The coordinates of the rows of a float32 matrix, given the inverse of the basis."""
    return jnp.dot(matrix, inverse, precision=jax.lax.Precision.HIGHEST)


def back(coordinates: Array, basis: Array) -> Array:
    """Whole coordinates times the int8 basis: exact, and so alike everywhere, as long as sums stay below 2**24."""
    return jnp.dot(coordinates, basis.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
