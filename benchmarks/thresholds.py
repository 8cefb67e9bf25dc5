"""What do many exact thresholds cost at once?

64 sparsities of 10 million float32 scores: against one, and against 64 selections by argsort. Of these one is timed,
and multiplied by 64. A sort whose result serves all 64 is there too, which is how one would do it by hand.
"""

import sys
from os.path import dirname

if not __package__:  # run as a file: its directory leads the path, and select.py would hide the standard module
    sys.path[0] = dirname(dirname(__file__))

import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from benchmarks import _peers
from benchmarks._report import Table, Target, optional, options, report
from benchmarks._timer import Case, compiled, measure, ratio

COUNT = 64


def main() -> None:
    arguments = options(__doc__)
    n = 20_000 if arguments.small else 10_000_000
    scores = np.abs(np.random.default_rng(0).standard_normal(n, np.float32))
    sparsities = np.linspace(0, 1, COUNT, endpoint=False, dtype=np.float32)
    rows = measure(
        compiled(f"jaxprune, {COUNT} at once", jp.masks.thresholds, scores, sparsities),
        compiled("jaxprune, one", jp.masks.thresholds, scores, np.float32(0.5)),
        compiled("copy x * 2", _peers.copy, scores),
        compiled("argsort (JaxPruner), one", _peers.argsort_mask, scores, np.float32(0.5)),
        compiled(f"jnp.sort, {COUNT} read off", _read_off, scores, sparsities),
        Case(f"np.partition, {COUNT} at once", lambda: np.partition(scores, _ranks(sparsities, n))),
        Case("np.partition, one", lambda: np.partition(scores, n // 2)),
        *_torch_cases(scores),
    )
    at_once = rows[f"jaxprune, {COUNT} at once"]
    argsort = ratio(rows["argsort (JaxPruner), one"], at_once)
    targets = [
        Target(f"{COUNT} at once / one", ratio(at_once, rows["jaxprune, one"]), "<=", 2),
        Target(f"{COUNT} x one argsort selection / {COUNT} at once", argsort.times(COUNT), ">=", 500),
    ]
    _check(scores, sparsities)
    sizes = {"n": n, "dtype": "float32", "thresholds": COUNT}
    report(arguments, "thresholds", sizes, [Table("Exact thresholds", rows)], targets)


def _ranks(sparsities: np.ndarray, n: int) -> np.ndarray:
    return np.floor(n * sparsities.astype(np.float64) + 0.5).astype(int)


def _read_off(scores: jnp.ndarray, sparsities: jnp.ndarray) -> jnp.ndarray:
    return jnp.sort(scores)[jnp.round(scores.size * sparsities).astype(int)]


def _check(scores: np.ndarray, sparsities: np.ndarray) -> None:
    ranks = _ranks(sparsities, scores.size)
    expected = np.partition(scores, ranks)[ranks]
    np.testing.assert_array_equal(jp.masks.thresholds(scores, sparsities), expected)


def _torch_cases(scores: np.ndarray) -> list[Case]:
    torch = optional("torch")
    if torch is None:
        return []
    tensor = torch.from_numpy(scores)
    return [Case("torch.kthvalue, one", lambda: tensor.kthvalue(scores.size // 2 + 1))]


if __name__ == "__main__":
    main()
