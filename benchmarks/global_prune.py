"""What does one ranking over a whole model cost?

The 40 kernels and embeddings of a transformer encoder with 22.5 million parameters, half of them removed wherever they
are: against concatenation and argsort, and against the copy of all leaves.
"""

import sys
from os.path import dirname

if not __package__:  # run as a file: its directory leads the path, and select.py would hide the standard module
    sys.path[0] = dirname(dirname(__file__))

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from benchmarks import _peers
from benchmarks._report import Table, Target, optional, options, report
from benchmarks._timer import Case, compiled, measure, ratio

SPARSITY = 0.5


def main() -> None:
    arguments = options(__doc__)
    scores = _encoder(500, 16, 64, 1) if arguments.small else _encoder(30_522, 384, 1_536, 6)
    leaves = jax.tree.leaves(scores)
    rows = measure(*_peer_cases(scores))
    ours = rows["jaxprune"]
    targets = [
        Target("concatenate + argsort / jaxprune", ratio(rows["concatenate + argsort (JaxPruner)"], ours), ">=", 40)
    ]
    sizes = {"parameters": sum(leaf.size for leaf in leaves), "leaves": len(leaves), "dtype": "float32"}
    report(arguments, "global_prune", sizes, [Table("Global mask", rows)], targets)


def _encoder(vocabulary: int, width: int, inner: int, layers: int) -> dict[str, Any]:
    """Magnitudes in the shapes of an encoder's weights; layers differ in scale, as trained ones do."""
    random = np.random.default_rng(0)

    def kernel(rows: int, columns: int, scale: float) -> np.ndarray:
        return np.abs(scale * random.standard_normal((rows, columns), np.float32))

    def layer(scale: float) -> dict[str, np.ndarray]:
        attention = {name: kernel(width, width, scale) for name in ("query", "key", "value", "output")}
        return attention | {"up": kernel(width, inner, scale), "down": kernel(inner, width, scale)}

    embeddings = {"word": vocabulary, "position": 512, "type": 2}
    return {
        "embeddings": {name: kernel(rows, width, 0.05) for name, rows in embeddings.items()},
        "layers": [layer(0.02 * (i + 1)) for i in range(layers)],
        "pooler": kernel(width, width, 0.04),
    }


def _peer_cases(scores: Any) -> list[Case]:
    fraction = np.float32(SPARSITY)
    leaves = jax.tree.leaves(scores)
    ours = compiled("jaxprune", _global_mask, scores, fraction)
    kept = sum(int(mask.sum()) for mask in jax.tree.leaves(ours.call()))
    assert kept == sum(leaf.size for leaf in leaves) // 2, kept
    cases = [
        ours,
        compiled("copy of all leaves", lambda tree: jax.tree.map(_peers.copy, tree), scores),
        compiled("concatenate + argsort (JaxPruner)", _concatenated(_peers.argsort_mask), scores, fraction),
        compiled("concatenate + jnp.sort + compare", _concatenated(_peers.sort_mask), scores, fraction),
        Case("np.concatenate + np.partition + compare", lambda: _partition_masks(leaves)),
    ]
    if torch := optional("torch"):
        tensors = [torch.from_numpy(leaf) for leaf in leaves]
        cases.append(Case("torch.nn.utils.prune, global", lambda: _torch_masks(torch, tensors)))
    return cases


def _global_mask(scores: Any, sparsity: jax.Array) -> Any:
    return jp.masks.by_sparsity(scores, sparsity, scope="global")


def _concatenated(mask: Any) -> Any:
    """Concatenates the leaves, masks the long vector, and cuts it up again."""

    def masks(scores: Any, sparsity: jax.Array) -> Any:
        leaves, treedef = jax.tree.flatten(scores)
        ends = np.cumsum([leaf.size for leaf in leaves])[:-1].tolist()
        parts = jnp.split(mask(jnp.concatenate([leaf.reshape(-1) for leaf in leaves]), sparsity), ends)
        return treedef.unflatten([part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)])

    return masks


def _partition_masks(leaves: list[np.ndarray]) -> list[np.ndarray]:
    flat = np.concatenate([leaf.reshape(-1) for leaf in leaves])
    rank = round(flat.size * SPARSITY)
    threshold = np.partition(flat, rank)[rank]
    return [leaf >= threshold for leaf in leaves]


def _torch_masks(torch: Any, tensors: list[Any]) -> list[Any]:
    """What ``torch.nn.utils.prune.global_unstructured`` does between the modules: concatenate, and mask as one."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    masks = _peers.torch_prune_mask(torch, flat, SPARSITY).split([tensor.numel() for tensor in tensors])
    return [mask.view_as(tensor) for mask, tensor in zip(masks, tensors, strict=True)]


if __name__ == "__main__":
    main()
