"""What does an exact mask of one tensor cost?

10 million float32 scores, half of them removed: against selection by argsort, sort, top_k and partition, and against
the copy ``x * 2``, the least that any mask takes. A second table has data that ties: half zeros, and bfloat16.
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

SPARSITY = 0.5


def main() -> None:
    arguments = options(__doc__)
    n = 20_000 if arguments.small else 10_000_000
    scores = np.abs(np.random.default_rng(0).standard_normal(n, np.float32))
    rows = measure(*_peer_cases(scores))
    half_zeros = np.where(scores < np.median(scores), 0, scores)
    ties = measure(
        _ours("jaxprune, distinct", scores),
        _ours("jaxprune, cut among the zeros", half_zeros, 0.25),
        _ours("jaxprune, bfloat16", jnp.asarray(scores, jnp.bfloat16)),
    )
    ours = rows["jaxprune"]
    targets = [
        Target("argsort selection / jaxprune", ratio(rows["argsort (JaxPruner)"], ours), ">=", 35),
        Target("np.partition + compare / jaxprune", ratio(rows["np.partition + compare"], ours), ">=", 2),
        Target("jaxprune / copy", ratio(ours, rows["copy x * 2"]), "<=", 4),
    ]
    sizes = {"n": n, "dtype": "float32", "sparsity": SPARSITY}
    report(arguments, "select", sizes, [Table("Exact mask", rows), Table("Ties", ties)], targets)


def _ours(name: str, scores: jnp.ndarray | np.ndarray, sparsity: float = SPARSITY) -> Case:
    case = compiled(name, jp.masks.by_sparsity, scores, np.float32(sparsity))
    assert int((~case.call()).sum()) == round(scores.size * sparsity), name
    return case


def _peer_cases(scores: np.ndarray) -> list[Case]:
    fraction, kept = np.float32(SPARSITY), scores.size - round(scores.size * SPARSITY)
    cases = [
        _ours("jaxprune", scores),
        compiled("copy x * 2", _peers.copy, scores),
        compiled("argsort (JaxPruner)", _peers.argsort_mask, scores, fraction),
        compiled("jnp.sort + compare", _peers.sort_mask, scores, fraction),
        compiled("lax.top_k + compare", lambda scores: _peers.top_k_mask(scores, kept), scores),
        Case("np.partition + compare", lambda: _peers.partition_mask(scores, SPARSITY)),
    ]
    if torch := optional("torch"):
        tensor = torch.from_numpy(scores)
        cases.append(Case("torch.kthvalue + compare", lambda: _peers.kthvalue_mask(tensor, SPARSITY)))
        cases.append(Case("torch.nn.utils.prune", lambda: _peers.torch_prune_mask(torch, tensor, SPARSITY)))
    return cases


if __name__ == "__main__":
    main()
