"""What bounds selection and quantization on this machine?

The parts that they are made of, each alone: one read, one pass of a histogram, a comparison, the copy ``x * 2`` and
``np.partition``; then rounding without a range and in plain ``jax.numpy``, once and for 7 bit widths, and what it takes
to compile that. No targets: the ratios say what is left to win.
"""

import sys
from os.path import dirname

if not __package__:  # run as a file: its directory leads the path, and select.py would hide the standard module
    sys.path[0] = dirname(dirname(__file__))

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from benchmarks import _peers
from benchmarks._report import Table, options, report
from benchmarks._timer import Case, compiled, measure

SPARSITY = 0.5
BITS = np.arange(2, 9, dtype=np.float32)


def main() -> None:
    arguments = options(__doc__)
    n, side = (100_000, 128) if arguments.small else (10_000_000, 4096)
    scores = np.abs(np.random.default_rng(0).standard_normal(n, np.float32))
    weights = jnp.asarray(np.random.default_rng(0).standard_normal((side, side), np.float32))
    tables = [
        Table("Selection", _selection(scores)),
        Table("Rounding, 8 bits", _rounding(weights)),
        Table("Errors of bit widths", _errors(weights)),
    ]
    report(arguments, "limits", {"n": n, "shape": weights.shape, "dtype": "float32"}, tables, [])


def _selection(scores: np.ndarray) -> dict:
    return measure(
        compiled("copy x * 2", _peers.copy, scores),
        compiled("one read: max(x)", jnp.max, scores),
        compiled("one comparison", lambda scores: scores >= 0.67, scores),
        compiled("one pass: 16-bit histogram, a loop of scatters", _histogram, scores),
        Case("np.partition + compare", lambda: _peers.partition_mask(scores, SPARSITY)),
        compiled("jaxprune, exact mask", jp.masks.by_sparsity, scores, np.float32(SPARSITY)),
    )


def _histogram(scores: jax.Array, chunk: int = 1 << 10) -> jax.Array:
    """Counts the upper 16 bits, which order non-negative floats, in chunks that stay in cache; the tail is left out."""

    def add(i: jax.Array, counts: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice(scores, (i * chunk,), (chunk,))
        return counts.at[jax.lax.bitcast_convert_type(part, jnp.uint32) >> 16].add(jnp.uint32(1), mode="drop")

    return jax.lax.fori_loop(0, scores.size // chunk, add, jnp.zeros(1 << 16, jnp.uint32))


def _rounding(weights: jax.Array) -> dict:
    bits, scale = np.float32(8), jnp.max(jnp.abs(weights), 0, keepdims=True) / 127
    return measure(
        compiled("copy x * 2", _peers.copy, weights),
        compiled("one read: max(abs(x))", lambda w: jnp.max(jnp.abs(w), 0), weights),
        compiled(
            "round(x / scale) * scale, scale known", lambda w, scale: jnp.round(w / scale) * scale, weights, scale
        ),
        compiled("plain jax.numpy, range and rounding", _plain, weights, bits),
        compiled("jaxprune, fake_quant", _ours, weights, bits),
    )


def _errors(weights: jax.Array) -> dict:
    def errors(rounded):
        return lambda w, bits: jax.vmap(lambda b: jnp.mean((w - rounded(w, b)) ** 2))(bits)

    return measure(
        compiled("plain jax.numpy, one width", errors(_plain), weights, BITS[-1:]),
        compiled("plain jax.numpy, 7 widths", errors(_plain), weights, BITS),
        compiled("jaxprune, one width", errors(_ours), weights, BITS[-1:]),
        compiled("jaxprune, 7 widths", errors(_ours), weights, BITS),
        compiled("one read: mean(x ** 2)", lambda w: jnp.mean(w**2), weights),
    )


def _plain(w: jax.Array, bits: jax.Array) -> jax.Array:
    """What a user would write: without care for NaN, infinities, zero ranges and 1 bit; XLA divides by a reciprocal."""
    top = 2.0 ** (bits - 1) - 1
    scale = jnp.max(jnp.abs(w), 0, keepdims=True) / top
    return jnp.clip(jnp.round(w / scale), -top, top) * scale


def _ours(w: jax.Array, bits: jax.Array) -> jax.Array:
    return jp.fake_quant(w, bits, spec=jp.QuantSpec(axis=-1))


if __name__ == "__main__":
    main()
