"""Many settings of one checkpoint: errors and bytes leaf by leaf, and a metric of the user on whole trees."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from jaxprune.checkpoints import Leaf, compressed, nested, ranking
from jaxprune.cli import lossy, output
from jaxprune.reports import measures


class Trial(NamedTuple):
    """What is tried: the chosen leaves, among all, with masks of a scope and scales of an axis."""

    leaves: Mapping[str, Leaf]
    chosen: Sequence[str]
    scope: str
    axis: int | None
    progress: bool

    @property
    def ranked(self) -> dict[str, Leaf]:
        """The chosen leaves, in the order of the tree that they are in."""
        return {name: self.leaves[name] for name in compressed.tree_order(self.chosen)}


def curves(trial: Trial, sparsities: Sequence[float], widths: Sequence[float | None]) -> list[dict[str, Any]]:
    """Relative error and bytes of every combination; each leaf is read by itself, and a shape compiles once."""
    settings: list[dict[str, Any]] = [{"sparsity": s, "bits": b} for s in sparsities for b in widths]
    errors, sizes, norm = np.zeros(len(settings)), np.zeros(len(settings), np.int64), 0.0
    removed = {s: {name: cut.removed for name, cut in _cuts(trial, s).items()} for s in sparsities}
    rest = sum(leaf.nbytes for name, leaf in trial.leaves.items() if name not in set(trial.chosen))
    for name in output.tracked(trial.chosen, "leaves", trial.progress):
        leaf = trial.leaves[name]
        w = lossy.as_jax(leaf.read())
        norm += float(np.sum(np.square(np.asarray(w, np.float64))))
        for quantized in (False, True):
            at = [i for i, setting in enumerate(settings) if (setting["bits"] is not None) == quantized]
            share = [removed[settings[i]["sparsity"]][name] / max(leaf.size, 1) for i in at]
            given = {"sparsity": np.array(share, np.float32)}
            if quantized:
                given["bits"] = np.array([settings[i]["bits"] for i in at], np.float32)
            if at:
                found = jp.sweep(_program(trial.axis), given, w)
                errors[at] += np.asarray(found["error"], np.float64)
                # A leaf that is not quantized takes what it takes in the file, whose dtype may be wider than that of w.
                wider = not quantized and leaf.dtype.itemsize != w.dtype.itemsize
                sizes[at] += leaf.nbytes if wider else np.asarray(found["bytes"], np.int64)
    sums = zip(settings, errors.tolist(), sizes.tolist(), strict=True)
    return [s | {"bytes": size + rest, "relative_error": measures.relative(e, norm)} for s, e, size in sums]


def evaluated(trial: Trial, rows: Sequence[dict[str, Any]], evaluate: Callable[..., Any]) -> list[float]:
    """The metric of each row's setting, on the whole tree."""
    cuts = {sparsity: _cuts(trial, sparsity) for sparsity in {row["sparsity"] for row in rows}}

    def value(name: str, leaf: Leaf, row: dict[str, Any]) -> jax.Array:
        array, cut = leaf.read(), cuts[row["sparsity"]].get(name)
        if cut is None:
            return jnp.asarray(array)
        pruned = jnp.asarray(np.where(ranking.mask(array, cut), array, np.zeros((), array.dtype)))
        if row["bits"] is None:
            return pruned
        return jp.fake_quant(pruned, row["bits"], spec=jp.QuantSpec(axis=trial.axis), where=lambda *_: True)

    def tree(row: dict[str, Any]) -> dict[str, Any]:
        return nested({name: value(name, leaf, row) for name, leaf in trial.leaves.items()})

    return [_number(evaluate(tree(row))) for row in output.tracked(rows, "settings", trial.progress)]


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the function of --eval returned {str(value)[:60]}, not a number") from error


def _cuts(trial: Trial, sparsity: float) -> dict[str, ranking.Cut]:
    if trial.scope == "global":
        return ranking.cuts(trial.ranked, sparsity)
    return {name: ranking.cuts({name: leaf}, sparsity)[name] for name, leaf in trial.ranked.items()}


@cache
def _program(axis: int | None) -> Callable[..., Any]:
    """What a sweep compiles for each shape: one leaf, masked and fake-quantized."""
    spec = jp.QuantSpec(axis=axis)

    def trial(setting: dict[str, jax.Array], w: jax.Array) -> dict[str, jax.Array]:
        everything = lambda *_: True  # noqa: E731
        masks = jp.masks.by_sparsity(jp.saliency.magnitude(w), setting["sparsity"], where=everything)
        after = jp.masks.apply_masks(w, masks)
        bits = setting.get("bits")
        if bits is not None:
            after = jp.fake_quant(after, bits, spec=spec, where=everything)
        error = jnp.sum(jnp.square(after.astype(jnp.float32) - w.astype(jnp.float32)))
        return {"error": error, "bytes": jp.reports.coded_bytes(w, masks, bits, spec=spec, where=everything)}

    return trial
