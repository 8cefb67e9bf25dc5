"""What does a 2:4 mask cost?

16 million weights, groups along the input axis: against the double argsort in groups, ``lax.top_k`` in groups, and the
copy ``x * 2``.
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
from benchmarks._report import Table, Target, options, report
from benchmarks._timer import Case, compiled, measure, ratio

N, M = 2, 4


def main() -> None:
    arguments = options(__doc__)
    side = 128 if arguments.small else 4096
    scores = np.abs(np.random.default_rng(0).standard_normal((side, side), np.float32))
    rows = measure(
        compiled("jaxprune", lambda scores: jp.masks.n_of_m(scores, N, M), scores),
        compiled("copy x * 2", _peers.copy, scores),
        compiled("double argsort (JaxPruner)", _double_argsort, scores),
        compiled("lax.top_k", _top_k, scores),
        Case("np.argpartition", lambda: _argpartition(scores)),
    )
    ours = rows["jaxprune"]
    np.testing.assert_array_equal(ours.case.call(), _double_argsort(jnp.asarray(scores)))
    targets = [Target("double argsort / jaxprune", ratio(rows["double argsort (JaxPruner)"], ours), ">=", 30)]
    sizes = {"shape": scores.shape, "n": N, "m": M, "dtype": "float32"}
    report(arguments, "n_of_m", sizes, [Table("N:M mask along axis -2", rows)], targets)


def _double_argsort(scores: jax.Array) -> jax.Array:
    """As JaxPruner does it: the input axis last, and the rank in a group as the argsort of an argsort."""
    groups = scores.swapaxes(-2, -1).reshape(-1, M)
    kept = groups.argsort().argsort() >= M - N
    return kept.reshape(scores.shape[::-1]).swapaxes(-2, -1)


def _top_k(scores: jax.Array) -> jax.Array:
    groups = scores.swapaxes(-2, -1).reshape(-1, M)
    kept = jax.nn.one_hot(jax.lax.top_k(groups, N)[1], M, dtype=bool).any(1)
    return kept.reshape(scores.shape[::-1]).swapaxes(-2, -1)


def _argpartition(scores: np.ndarray) -> np.ndarray:
    groups = scores.T.reshape(-1, M)
    kept = np.ones(groups.shape, bool)
    np.put_along_axis(kept, np.argpartition(groups, M - N - 1)[:, : M - N], False, 1)
    return kept.reshape(scores.shape[::-1]).T


if __name__ == "__main__":
    main()
