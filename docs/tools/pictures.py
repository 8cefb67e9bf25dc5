"""Draws the pictures of the documentation, as small SVG files in docs/pictures. All but the boxes is computed.

python docs/tools/pictures.py
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import jaxprune as jp

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

FOLDER = Path(__file__).parent.parent / "pictures"
BLUE, ORANGE, GREEN, GRAY = "#4477aa", "#ee7733", "#228833", "#8a8a8a"
# Text stays text: small files, and the font of the reader. The fixed salt makes equal pictures equal files.
plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "jaxprune", "font.size": 11, "font.family": "sans-serif"})


def save(figure, name):
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None, "Creator": None}, facecolor="white", dpi=180)
    plt.close(figure)


def pipeline():
    """Boxes for what there is, arrows for the functions between them."""
    boxes = [("params", BLUE), ("scores", GRAY), ("masks", GRAY), ("pruned", BLUE), ("codes", ORANGE), ("file", GREEN)]
    steps = ["saliency", "by_sparsity", "apply_masks", "quantize", "compress"]
    figure, axes = plt.subplots(figsize=(9, 1.9), layout="constrained")
    for i, (label, color) in enumerate(boxes):
        axes.text(
            2 * i,
            0,
            label,
            ha="center",
            va="center",
            color="white",
            weight="bold",
            bbox={"boxstyle": "round,pad=0.6", "facecolor": color, "edgecolor": "none"},
        )
    for i, step in enumerate(steps):
        axes.annotate("", (2 * i + 1.45, 0), (2 * i + 0.6, 0), arrowprops={"arrowstyle": "->", "color": "0.3"})
        axes.text(2 * i + 1, 0.42, step, ha="center", color="0.3", size=9.5)
    axes.annotate(
        "",
        (5.9, -0.35),
        (0.1, -0.35),
        arrowprops={"arrowstyle": "->", "color": "0.3", "connectionstyle": "arc3,rad=0.16"},
    )
    axes.text(3, -1.15, "prune", ha="center", color="0.3", size=9.5)
    axes.set(xlim=(-0.8, 10.8), ylim=(-1.35, 0.8))
    axes.axis("off")
    save(figure, "pipeline")


def masks():
    """One kernel under four kinds of masks, each at half of the weights."""
    kernel = (
        jax.random.normal(jax.random.key(4), (8, 12))
        * jnp.linspace(0.6, 1.6, 12)[jnp.array([5, 0, 9, 3, 11, 1, 7, 4, 10, 2, 8, 6])]
    )
    scores = jp.saliency.magnitude(kernel)
    kinds = {
        "weights\nby_sparsity(scores, 0.5)": jp.masks.by_sparsity(scores, 0.5),
        "units\nunit_norm, then by_sparsity": jp.masks.by_sparsity(jp.saliency.unit_norm(kernel), 0.5),
        "2 of 4\nn_of_m(scores, 2, 4)": jp.masks.n_of_m(scores, 2, 4),
        "blocks\nblocks(..., block_shape=(4, 4))": jp.masks.blocks(scores, 0.5, block_shape=(4, 4)),
    }
    figure, panels = plt.subplots(1, 4, figsize=(10, 2.6), layout="constrained")
    for axes, (title, mask) in zip(panels, kinds.items(), strict=True):
        kept = np.where(np.broadcast_to(mask, kernel.shape), np.asarray(scores), np.nan)
        axes.pcolormesh(
            kept[::-1], cmap="Blues", vmin=-0.6, vmax=float(scores.max()), edgecolors="0.82", lw=0.6, rasterized=True
        )
        axes.set_title(title, fontsize=9.5)
        axes.set(xticks=[], yticks=[], aspect="equal")
        axes.spines[:].set_color("0.82")
    panels[0].set_ylabel("inputs")
    panels[0].set_xlabel("units (outputs)")
    save(figure, "masks")


def quantizers():
    """What becomes of each value, for three quantizers."""
    x = np.linspace(-0.6, 1.4, 801, dtype=np.float32)
    kinds = {
        "symmetric, 3 bits": jp.fake_quant(x, 3),
        "asymmetric, 3 bits": jp.fake_quant(x, 3, spec=jp.QuantSpec(symmetric=False)),
        "symmetric, 1 bit": jp.fake_quant(x, 1),
    }
    figure, panels = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained", sharey=True)
    for axes, (title, rounded) in zip(panels, kinds.items(), strict=True):
        axes.plot(x, x, color="0.75", lw=1)
        axes.plot(x, rounded, color=BLUE, lw=1.8, drawstyle="steps-mid")
        axes.scatter(np.zeros(1), np.zeros(1), color=ORANGE, s=28, zorder=3)
        axes.set_title(f"{title}: {len(np.unique(rounded))} values here", fontsize=9.5)
        axes.set_xlabel("before")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("after")
    save(figure, "quantizers")


def schedule():
    """The cubic schedule, and what masks follow that are made every 50 steps."""
    steps = np.arange(601)
    values = np.asarray(jax.vmap(jp.schedules.cubic(0.0, 0.9, 400, 100))(steps))
    figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    axes.plot(steps, values, color=BLUE, lw=1.6, label="cubic(0.0, 0.9, transition_steps=400, transition_begin=100)")
    axes.plot(steps, values[steps // 50 * 50], color=ORANGE, lw=1.4, label="masks, every=50")
    axes.set(xlabel="step", ylabel="sparsity", ylim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", fontsize=9.5)
    save(figure, "schedule")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for draw in (pipeline, masks, quantizers, schedule):
        draw()
