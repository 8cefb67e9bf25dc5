"""Many settings of one checkpoint: errors and bytes leaf by leaf, and a metric of the user on whole trees."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from jaxprune.checkpoints import Leaf, compressed, nested, ranking
from jaxprune.cli import lossy
from jaxprune.host import progress_bar
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
    settings = [{"sparsity": s, "bits": b} for s in sparsities for b in widths]
    errors, sizes, norm = np.zeros(len(settings)), np.zeros(len(settings), np.int64), 0.0
    removed = _removed(trial, sparsities)
    rest = sum(leaf.nbytes for name, leaf in trial.leaves.items() if name not in set(trial.chosen))
    with progress_bar(trial.progress, "leaves", 0, len(trial.chosen)) as finished:
        for number, name in enumerate(trial.chosen, 1):
            leaf = trial.leaves[name]
            w = lossy.as_jax(leaf.read())
            norm += float(np.sum(np.square(np.asarray(w, np.float64))))
            for quantized in (False, True):
                at = [i for i, setting in enumerate(settings) if (setting["bits"] is not None) == quantized]
                if at:
                    share = [removed[settings[i]["sparsity"]][name] / max(leaf.size, 1) for i in at]
                    given = {"sparsity": np.array(share, np.float32)}
                    if quantized:
                        given["bits"] = np.array([settings[i]["bits"] for i in at], np.float32)
                    found = jp.sweep(_program(trial.axis), given, w)
                    errors[at] += np.asarray(found["error"], np.float64)
                    own = found["bytes"] if quantized else _dense(found["bytes"], leaf, w)
                    sizes[at] += np.asarray(own, np.int64)
            finished(number)
    return [
        setting | {"bytes": int(size) + rest, "relative_error": measures.relative(float(error), norm)}
        for setting, error, size in zip(settings, errors, sizes, strict=True)
    ]


def evaluated(trial: Trial, rows: Sequence[dict[str, Any]], evaluate: Callable[..., Any]) -> list[float]:
    """The metric of each row's setting, on the whole tree."""
    found: list[float] = []
    spec = jp.QuantSpec(axis=trial.axis)
    cuts: dict[float, dict[str, ranking.Cut]] = {}
    with progress_bar(trial.progress, "settings", 0, len(rows)) as finished:
        for row in rows:
            if row["sparsity"] not in cuts:
                cuts[row["sparsity"]] = _cuts(trial, row["sparsity"])
            params: dict[str, Any] = {}
            for name, leaf in trial.leaves.items():
                array = leaf.read()
                if name in cuts[row["sparsity"]]:
                    kept = ranking.mask(array, cuts[row["sparsity"]][name])
                    array = jnp.asarray(np.where(kept, array, np.zeros((), array.dtype)))
                    if row["bits"] is not None:
                        array = jp.fake_quant(array, row["bits"], spec=spec, where=lambda *_: True)
                params[name] = jnp.asarray(array)
            found.append(_number(evaluate(nested(params))))
            finished(len(found))
    return found


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the function of --eval returned {str(value)[:60]}, not a number") from error


def _cuts(trial: Trial, sparsity: float) -> dict[str, ranking.Cut]:
    if trial.scope == "global":
        return ranking.cuts(trial.ranked, sparsity)
    return {name: ranking.cuts({name: leaf}, sparsity)[name] for name, leaf in trial.ranked.items()}


def _removed(trial: Trial, sparsities: Sequence[float]) -> dict[float, dict[str, int]]:
    return {s: {name: cut.removed for name, cut in _cuts(trial, s).items()} for s in sparsities}


def _dense(coded: Any, leaf: Leaf, w: jax.Array) -> Any:
    """Bytes of weights that are not quantized, in the dtype of the file, where they were counted in that of ``w``."""
    return np.asarray(coded, np.int64) if leaf.dtype.itemsize == w.dtype.itemsize else np.full(len(coded), leaf.nbytes)


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
