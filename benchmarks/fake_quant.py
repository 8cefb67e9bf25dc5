"""What does fake quantization cost, once and for many bit widths?

16 million weights, one range a channel: against Qwix (quantize + dequantize, where it is installed) and the copy
``x * 2``; then the mean squared errors of 7 bit widths at once, against Qwix with one program a width. "Cold" is from
the Python function to the numbers: tracing, compiling and one run.
"""

import sys
from os.path import dirname

if not __package__:  # run as a file: its directory leads the path, and select.py would hide the standard module
    sys.path[0] = dirname(dirname(__file__))

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from benchmarks import _peers
from benchmarks._report import Table, Target, optional, options, report
from benchmarks._timer import Case, compiled, measure, ratio

CHANNEL = jp.QuantSpec(axis=-1)
qwix = optional("qwix")


def main() -> None:
    arguments = options(__doc__)
    side = 128 if arguments.small else 4096
    weights = jnp.asarray(np.random.default_rng(0).standard_normal((side, side), np.float32))
    bits = np.array([4, 8]) if arguments.small else np.arange(2, 9)
    once, warm, cold = _once(weights), _warm(weights, bits), _cold(weights, bits)
    ours, at_once = once["jaxprune"], f"jaxprune, {len(bits)} widths at once"
    targets = [
        Target("jaxprune / copy", ratio(ours, once["copy x * 2"]), "<=", 1.5),
        Target("jaxprune / Qwix", ratio(ours, once["Qwix"]) if qwix else None, "<=", 1),
        Target(
            f"cold: Qwix one by one / {len(bits)} widths at once",
            ratio(cold["Qwix, one by one"], cold[at_once]) if qwix else None,
            ">=",
            3.5,
        ),
        Target(f"warm: {len(bits)} widths at once / one width", ratio(warm[at_once], warm["jaxprune, one"]), "<=", 1.6),
    ]
    tables = [Table("8 bits", once), Table("Errors, warm", warm), Table("Errors, cold", cold)]
    report(arguments, "fake_quant", {"shape": weights.shape, "dtype": "float32"}, tables, targets)


def _once(weights: jax.Array) -> dict[str, Any]:
    bits = np.float32(8)
    return measure(
        compiled("jaxprune", _rounded, weights, bits),
        compiled("copy x * 2", _peers.copy, weights),
        *([compiled("Qwix", lambda w: _qwix_rounded(w, 8), weights)] if qwix else []),
        compiled("jaxprune, one range a tensor", lambda w, b: jp.fake_quant(w, b), weights, bits),
        compiled("jaxprune, blocks of 64", _rounded_in_blocks, weights, bits),
    )


def _warm(weights: jax.Array, bits: np.ndarray) -> dict[str, Any]:
    cases = [
        compiled(f"jaxprune, {len(bits)} widths at once", _errors, weights, bits.astype(np.float32)),
        compiled("jaxprune, one", lambda w, b: _error(w, _rounded(w, b)), weights, np.float32(8)),
    ]
    if qwix:
        one_by_one = [compiled("Qwix, one", lambda w, b=b: _error(w, _qwix_rounded(w, b)), weights) for b in bits]
        cases += [one_by_one[-1], Case("Qwix, one by one", lambda: [case.call() for case in one_by_one])]
    return measure(*cases)


def _cold(weights: jax.Array, bits: np.ndarray) -> dict[str, Any]:
    def qwix_one_by_one() -> list[jax.Array]:
        return [jax.jit(lambda w, b=b: _error(w, _qwix_rounded(w, b)))(weights) for b in bits]

    return measure(
        _cold_case(f"jaxprune, {len(bits)} widths at once", lambda: jax.jit(lambda w, b: _errors(w, b))(weights, bits)),
        *([_cold_case("Qwix, one by one", qwix_one_by_one)] if qwix else []),
    )


def _cold_case(name: str, call: Callable[[], Any]) -> Case:
    """A call that finds nothing traced or compiled."""

    def from_nothing() -> Any:
        jax.clear_caches()
        return call()

    return Case(name, from_nothing)


def _rounded(weights: jax.Array, bits: jax.Array) -> jax.Array:
    return jp.fake_quant(weights, bits, spec=CHANNEL)


def _rounded_in_blocks(weights: jax.Array, bits: jax.Array) -> jax.Array:
    return jp.fake_quant(weights, bits, spec=jp.QuantSpec(axis=-1, block_size=64))


def _errors(weights: jax.Array, bits: jax.Array) -> jax.Array:
    return jax.vmap(lambda width: _error(weights, _rounded(weights, width)))(bits)


def _error(weights: jax.Array, rounded: jax.Array) -> jax.Array:
    return jnp.mean((weights - rounded) ** 2)


def _qwix_rounded(weights: jax.Array, bits: int) -> jax.Array:
    """The widths that JAX has a dtype for go by it, the others by Qwix's own names."""
    kind = {4: jnp.int4, 8: jnp.int8}.get(int(bits), f"int{bits}")
    return qwix.dequantize(qwix.quantize(weights, kind, channelwise_axes=[1]))


if __name__ == "__main__":
    main()
