"""What happens to each leaf: which weights go, which codes stand for the others, and what that takes in a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune import codebook, masks
from jaxprune.base import Params, QuantSpec, Where
from jaxprune.checkpoints import Leaf, compressed, ranking
from jaxprune.files import Compressed, lossy
from jaxprune.layout import Axes, sure
from jaxprune.quantization.integers import fake_quant
from jaxprune.quantization.leaves import default_spec, kept_axes, spec_of
from jaxprune.reports import measures

RUINED = 0.5  # relative error, from which on rounding is no use
TOGETHER = ("rd", "trellis")  # quantizers that choose one step for all their leaves


#: What is said of one leaf, by ``KEYS`` of recipes, and as ``section`` where its sparsity was: 0 for the top.
Treatment = dict[str, Any]


class Shared(NamedTuple):
    """A quantizer for :func:`jaxprune.compress`: a codebook for each of the layers that are stacked along some axes."""

    axis: Any

    def __call__(self, params: Params, k: Any, where: Where) -> Params:
        return codebook.encode(params, k, axis=self.axis, where=where)


@dataclass(frozen=True, eq=False)
class Given:
    """A quantizer for a tree of one leaf, for which there is something already."""

    leaf: Any

    def __call__(self, params: Params, bits: Any, where: Where) -> Params:
        return jax.tree.map(lambda _: self.leaf, params)


@dataclass(frozen=True)
class Recipe:
    """The treatment of each chosen leaf, by name, what is said once for all, and the axes of all leaves.

    ``left_out`` are leaves that N of M does not take, since they are not contracted along an axis: embeddings and
    depthwise kernels, unless they were named. ``records`` stand for leaves that are coded, or pruned, already.
    """

    leaves: Mapping[str, Leaf]
    treatments: dict[str, Treatment]
    scope: str
    side: str | None
    axes: dict[str, Axes | None]
    left_out: list[str]
    records: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def cuts(self) -> dict[str, ranking.Cut]:
        """Where each leaf is cut that has a sparsity; leaves of a section are ranked together in the scope global."""
        groups: dict[tuple[Any, float], dict[str, Leaf]] = {}
        for name in compressed.tree_order(self.treatments):
            treatment = self.treatments[name]
            if "sparsity" in treatment:
                key = treatment["section"] if self.scope == "global" else name
                groups.setdefault((key, treatment["sparsity"]), {})[name] = self.leaves[name]
        parts = [ranking.cuts(group, sparsity) for (_, sparsity), group in groups.items()]
        return {name: cut for part in parts for name, cut in part.items()}

    def mask(self, name: str, array: np.ndarray) -> np.ndarray:
        """Which weights stay: in the shape of the array, or a single True."""
        if name in self.records:
            return np.ones((), bool)
        if name in self.cuts:
            return ranking.mask(array, self.cuts[name])
        treatment = self.treatments.get(name, {})
        if "n_of_m" not in treatment:
            return np.ones((), bool)
        axis = treatment.get("n_of_m_axis")
        axis = sure(name, array, self.axes[name]).along - array.ndim if axis is None else axis
        scores = {name: np.abs(array.astype(np.float32))}
        return np.asarray(masks.n_of_m(scores, *treatment["n_of_m"], axis=axis, where=lambda *_: True)[name])

    def pruned(self, name: str, array: np.ndarray) -> np.ndarray:
        """The leaf with zeros in place of what goes."""
        mask = self.mask(name, array)
        return array if mask.all() else np.where(mask, array, np.zeros((), array.dtype))

    def changed(self, name: str, array: np.ndarray) -> np.ndarray:
        """The leaf as it comes back from codes of fixed widths."""
        pruned, bits = self.pruned(name, array), self.treatments.get(name, {}).get("bits")
        if bits is None:
            return pruned
        known = pruned if array.dtype.name in ("float16", "bfloat16") else pruned.astype(np.float32)
        return np.asarray(fake_quant(known, bits, spec=self.spec(name), where=lambda *_: True))

    def at(self, **keys: Any) -> "Recipe":
        """The same leaves pruned alike, with other codes."""
        made = replace(self, treatments={name: said | keys for name, said in self.treatments.items()})
        vars(made)["cuts"] = self.cuts  # which took a look at all leaves
        return made

    def spec(self, name: str) -> QuantSpec:
        """The spec of a uniform quantizer, with the axes of the leaf."""
        said, leaf, axes = self.treatments[name], self.leaves[name], self.axes[name]
        axis, block = said.get("axis"), said.get("block_size")
        spec = QuantSpec(axis=None if axis == "leaf" else axis, block_size=block)
        return spec_of(default_spec(leaf, axes) if axis is block is None else spec, name, leaf, axes)

    def coded(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Compressed]:
        """Leaves of one treatment, pruned already, as they are in the file."""
        first = next(iter(arrays))
        meant = first in self.treatments
        return compressed.code(arrays, side=self.side, where=lambda *_: meant, **self.codes(first))

    def tried(self, name: str, array: np.ndarray) -> tuple[Compressed, measures.Difference]:
        """What tells the size of a leaf in the file, and how far it moves."""
        part = self.coded({name: self.pruned(name, array)})[name]
        return part.without_bytes(), measures.compare(array, self.changed(name, array))

    def codes(self, name: str) -> dict[str, Any]:
        """What :func:`jaxprune.compress` is told of the codes of a leaf; nothing if it has none."""
        treatment = self.treatments.get(name, {})
        if name in self.records:
            return {"bits": 1, "quantizer": Given(self.records[name])}
        if "step" in treatment:
            return {"bits": treatment["step"], "quantizer": lossy.BY_STEP[treatment["quantizer"]]}
        if "codebook" in treatment:
            tables = kept_axes(None, name, self.leaves[name], self.axes[name])
            return {"bits": treatment["codebook"], "quantizer": Shared(tables)}
        if "bits" not in treatment:
            return {}
        quantizer = treatment.get("quantizer")
        return {"bits": treatment["bits"], "quantizer": quantizer if quantizer in TOGETHER else self.spec(name)}
