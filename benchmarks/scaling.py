"""How does the cost of exact selection grow with the data, and with the number of settings?

Masks of 10 thousand to 100 million scores, against the copy, ``np.partition`` and (up to 10 million) argsort; then 1 to
512 thresholds of 10 million scores at once.
"""

import sys
from os.path import dirname

if not __package__:  # run as a file: its directory leads the path, and select.py would hide the standard module
    sys.path[0] = dirname(dirname(__file__))

import numpy as np

import jaxprune as jp
from benchmarks import _peers
from benchmarks._report import Table, options, report
from benchmarks._timer import Case, Row, compiled, measure

SORTED_AT_MOST = 10_000_000


def main() -> None:
    arguments = options(__doc__)
    sizes = [1_000, 10_000] if arguments.small else [10**power for power in range(4, 9)]
    counts = [1, 4] if arguments.small else [2**power for power in range(10)]
    many = sizes[-1] if arguments.small else 10_000_000
    tables = [Table(f"A mask of {n:,} scores", _masks(n)) for n in sizes]
    tables.append(Table(f"Thresholds of {many:,} scores", _thresholds(many, counts)))
    report(arguments, "scaling", {"n": sizes, "thresholds": counts, "dtype": "float32"}, tables, [])


def _scores(n: int) -> np.ndarray:
    return np.abs(np.random.default_rng(0).standard_normal(n, np.float32))


def _masks(n: int) -> dict[str, Row]:
    scores, half = _scores(n), np.float32(0.5)
    cases = [
        compiled("jaxprune", jp.masks.by_sparsity, scores, half, n=n),
        compiled("copy x * 2", _peers.copy, scores, n=n),
        Case("np.partition + compare", lambda: _peers.partition_mask(scores, 0.5), facts={"n": n}),
    ]
    if n <= SORTED_AT_MOST:
        cases.append(compiled("argsort (JaxPruner)", _peers.argsort_mask, scores, half, n=n))
    return measure(*cases)


def _thresholds(n: int, counts: list[int]) -> dict[str, Row]:
    scores = _scores(n)

    def case(count: int) -> Case:
        sparsities = np.linspace(0, 1, count + 2, dtype=np.float32)[1:-1]
        return compiled(f"{count} at once", jp.masks.thresholds, scores, sparsities, n=n, thresholds=count)

    return measure(*map(case, counts))


if __name__ == "__main__":
    main()
