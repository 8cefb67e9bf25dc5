"""What happens to each leaf: a recipe from options or from a TOML file.

sparsity = 0.5                    # top: all chosen leaves
bits = 4
exclude = ["*LayerNorm*"]

["*attention*"]                   # a section: the leaves of a pattern; later sections win
bits = 8
"""

import argparse
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxprune.checkpoints import Leaf
from jaxprune.cli import shared


class Key(NamedTuple):
    """What may be said: the kind of the value, in words, and numbers from ``low`` to ``high`` or some ``choices``."""

    kind: type
    said: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()


KEYS = {
    "sparsity": Key(float, "fraction of the weights that becomes 0, those of the least magnitude, in [0, 1]", 0, 1),
    "n_of_m": Key(str, 'N of every M weights stay, such as "2:4"; instead of sparsity'),
    "n_of_m_axis": Key(int, "the axis along which N of M are counted; default: the inputs of each leaf"),
    "bits": Key(float, "width of the codes, 1 to 16; mean bits a weight for the quantizers rd and trellis", 1, 16),
    "codebook": Key(int, "number of values that the weights of a leaf share; instead of bits", 1, 65536),
    "quantizer": Key(str, "rd is for rate and distortion; default: uniform", choices=("uniform", "rd", "trellis")),
    "axis": Key(int, "the axis with a scale for each index: -1 for units (PyTorch: 0); else one a leaf"),
    "block_size": Key(int, "consecutive weights of the input axis that share a scale"),
}
TOP_KEYS = {
    "scope": Key(str, "leaf (default), or one ranking over all leaves of one sparsity", choices=("leaf", "global")),
    "side": Key(str, "how other floats, and scales, are stored; else as they are", choices=("float16", "int8")),
    "where": Key(list, "patterns of the leaves that are chosen; all kernels and embeddings without it"),
    "exclude": Key(list, "patterns of leaves that are left alone"),
}
_SECTION_KEYS = {"skip": Key(bool, "true leaves these leaves alone")}
_RIVALS = {"sparsity": "n_of_m", "n_of_m": "sparsity", "bits": "codebook", "codebook": "bits"}


class Treatment(NamedTuple):
    """What happens to one leaf; see ``KEYS``. ``section`` is 0 for the top, then the number of the section."""

    sparsity: float | None = None
    n_of_m: tuple[int, int] | None = None
    n_of_m_axis: int | None = None
    bits: float | None = None
    codebook: int | None = None
    quantizer: str = "uniform"
    axis: int | None = None
    block_size: int | None = None
    section: int = 0


class Recipe(NamedTuple):
    """The treatment of each chosen leaf, by name, and what is said once for all."""

    treatments: dict[str, Treatment]
    scope: str
    side: str | None


def add_options(parser: Any) -> None:
    """The keys as options of a command; those of lists may be repeated."""
    for key, about in (KEYS | TOP_KEYS).items():
        kind = {"action": "append", "metavar": "PATTERN"} if about.kind is list else {"type": about.kind}
        chosen = {"choices": about.choices} if about.choices else {}
        parser.add_argument(f"--{key.replace('_', '-')}", help=about.said, **kind, **chosen)


def from_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of the command line as a recipe would say them."""
    given = {key: getattr(args, key) for key in (*KEYS, *TOP_KEYS)}
    return {key: value for key, value in given.items() if value is not None}


def from_file(path: str) -> dict[str, Any]:
    """The content of a TOML file; ``ValueError`` if it is none."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML file: {error}") from error


def resolve(said: Mapping[str, Any], leaves: Mapping[str, Leaf]) -> Recipe:
    """What a recipe means for these leaves.

    Raises:
      ValueError: an unknown key, a value out of range, two that exclude each other, a pattern that matches nothing.
    """
    top = {key: value for key, value in said.items() if not isinstance(value, dict)}
    sections = {key: value for key, value in said.items() if isinstance(value, dict)}
    _check(top, KEYS | TOP_KEYS, "the recipe" if sections else "")
    base = {key: top[key] for key in KEYS if key in top}
    where, exclude = _patterns(top, "where"), _patterns(top, "exclude")
    lossless = not (base or sections or where or exclude)
    chosen = shared.eligible(leaves) if lossless else shared.choose(leaves, where, exclude)
    found: dict[str, dict[str, Any]] = {name: base | {"section": 0} for name in chosen}
    for number, (pattern, section) in enumerate(sections.items(), 1):
        _check(section, KEYS | _SECTION_KEYS, f'section ["{pattern}"]')
        for name in shared.matching([pattern], chosen, leaves):
            below = {key: value for key, value in found[name].items() if _RIVALS.get(key) not in section}
            own = {"section": number} if "sparsity" in section else {}
            found[name] = below | {"skip": False} | section | own
    treatments = {name: _treatment(keys) for name, keys in found.items() if not keys.get("skip")}
    return Recipe(treatments, top.get("scope", "leaf"), top.get("side"))


def _treatment(keys: dict[str, Any]) -> Treatment:
    made = Treatment(**{key: value for key, value in keys.items() if key != "skip"})
    return made if made.n_of_m is None else made._replace(n_of_m=_ratio(made.n_of_m))


def _ratio(text: Any) -> tuple[int, int]:
    n, between, m = str(text).partition(":")
    if not (between and n.isdecimal() and m.isdecimal() and 0 <= int(n) <= int(m) > 0):
        raise ValueError(f'n_of_m is {text!r}; write N:M, such as "2:4", with N at most M')
    return int(n), int(m)


def _patterns(top: Mapping[str, Any], key: str) -> list[str]:
    given = top.get(key, [])
    given = [given] if isinstance(given, str) else given
    if not (isinstance(given, list) and all(isinstance(pattern, str) for pattern in given)):
        raise ValueError(f"{key} is {given!r}; write a pattern or a list of them")
    return given


def _check(keys: Mapping[str, Any], known: Mapping[str, Key], place: str) -> None:
    """Raises unless all keys are known, of the right kind and in their ranges, and none has a rival."""
    at = f"{place}: " if place else ""
    for key, value in keys.items():
        if key not in known:
            raise ValueError(f"{at}unknown key {key!r}; there are {', '.join(known)}")
        kind, said, low, high, choices = known[key]
        if kind is not list and not (type(value) is kind or (kind is float and type(value) is int)):
            raise ValueError(f"{at}{key} is {value!r}: {said}")
        if choices and value not in choices:
            raise ValueError(f"{at}{key} is {value!r}; it may be {', '.join(choices)}")
        if _RIVALS.get(key) in keys:
            raise ValueError(f"{at}{key} and {_RIVALS[key]} exclude each other: give one")
        if kind in (int, float) and not low <= value <= high:
            raise ValueError(f"{at}{key} must be in [{low:g}, {high:g}], got {value:g}")
    if "n_of_m" in keys:
        _ratio(keys["n_of_m"])
