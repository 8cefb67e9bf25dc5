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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxprune.checkpoints import Leaf
from jaxprune.cli import shared
from jaxprune.cli.treatments import Recipe, Treatment

LEFT_OUT = "Left out of N of M, as none of their axes is contracted: {}"


class Key(NamedTuple):
    """What may be said: the kind of the value, in words, and numbers from ``low`` to ``high``, or some ``choices``."""

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
    "axis": Key(int, "scales: units (default), leaf, or an axis with one for each index", choices=("units", "leaf")),
    "block_size": Key(int, "consecutive weights of the input axis that share a scale", 1),
}
TOP_KEYS = {
    "scope": Key(str, "leaf (default), or one ranking over all leaves of one sparsity", choices=("leaf", "global")),
    "side": Key(str, "how other floats, and scales, are stored; else as they are", choices=("float16", "int8")),
    **{key: Key(list, said) for key, said in shared.CHOICES.items()},
}
_SECTION_KEYS = {"skip": Key(bool, "true leaves these leaves alone")}
_RIVALS = {"sparsity": "n_of_m", "n_of_m": "sparsity", "bits": "codebook", "codebook": "bits"}


def add_options(parser: Any, keys: Iterable[str] = (*KEYS, *TOP_KEYS)) -> None:
    """The keys as options of a command; those of lists may be repeated."""
    for key in keys:
        about = (KEYS | TOP_KEYS)[key]
        if about.kind is list:
            shared.add_choices(parser, key)
        else:
            kind = {"axis": _axis, "sparsity": shared.fraction}.get(key, about.kind)
            choices = None if key == "axis" else about.choices or None
            parser.add_argument(f"--{key.replace('_', '-')}", help=about.said, type=kind, choices=choices)


def _axis(text: str) -> int | str:
    return text if text in KEYS["axis"].choices else int(text)


def from_options(args: argparse.Namespace, keys: Iterable[str] = (*KEYS, *TOP_KEYS)) -> dict[str, Any]:
    """The options of a command line as a recipe would say them."""
    given = {key: getattr(args, key) for key in keys}
    return {key: value for key, value in given.items() if value not in (None, [])}


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
    where, exclude, layout = (_texts(top, key) for key in ("where", "exclude", "layout"))
    lossless = not (base or sections or where or exclude)
    chosen = shared.eligible(leaves) if lossless else shared.choose(leaves, where, exclude)
    axes, left_out = shared.axes(leaves, layout), []
    found: dict[str, Treatment] = {name: base | {"section": 0} for name in chosen}
    for name in chosen if "n_of_m" in base and not where and "n_of_m_axis" not in base else ():
        if (known := axes[name]) and not known.grouped(leaves[name].shape):
            del found[name]["n_of_m"]
            left_out.append(name)
    for number, (pattern, section) in enumerate(sections.items(), 1):
        _check(section, KEYS | _SECTION_KEYS, f'section ["{pattern}"]')
        for name in shared.matching([pattern], chosen, leaves):
            below = {key: value for key, value in found[name].items() if _RIVALS.get(key) not in section}
            own = {"section": number} if "sparsity" in section else {}
            found[name] = below | {"skip": False} | section | own
    treatments = {name: keys for name, keys in found.items() if not keys.pop("skip", False)}
    for keys in treatments.values():
        keys |= {"n_of_m": _ratio(keys["n_of_m"])} if "n_of_m" in keys else {}
    left_out = [name for name in left_out if name in treatments and "n_of_m" not in treatments[name]]
    return Recipe(leaves, treatments, top.get("scope", "leaf"), top.get("side"), axes, left_out)


def _ratio(text: Any) -> tuple[int, int]:
    n, between, m = str(text).partition(":")
    if not (between and n.isdecimal() and m.isdecimal() and 0 <= int(n) <= int(m) > 0):
        raise ValueError(f'n_of_m is {text!r}; write N:M, such as "2:4", with N at most M')
    return int(n), int(m)


def _texts(top: Mapping[str, Any], key: str) -> Sequence[str]:
    given = top.get(key, [])
    given = [given] if isinstance(given, str) else given
    if not (isinstance(given, list) and all(isinstance(text, str) for text in given)):
        raise ValueError(f"{key} is {given!r}; write a text or a list of them: {TOP_KEYS[key].said}")
    return given


def _check(keys: Mapping[str, Any], known: Mapping[str, Key], place: str) -> None:
    """Raises unless all keys are known, of the right kind and in their ranges, and none has a rival."""
    at = f"{place}: " if place else ""
    for key, value in keys.items():
        if key not in known:
            raise ValueError(f"{at}unknown key {key!r}; there are {', '.join(known)}")
        kind, said, low, high, choices = known[key]
        fits = type(value) is kind or (kind is float and type(value) is int)
        if kind is not list and value not in choices and not (fits and not (kind is str and choices)):
            words = f"; it may be {', '.join(choices)}" if choices else ""
            raise ValueError(f"{at}{key} is {value!r}{words}: {said}")
        if _RIVALS.get(key) in keys:
            raise ValueError(f"{at}{key} and {_RIVALS[key]} exclude each other: give one")
        if type(value) in (int, float) and not low <= value <= high:
            raise ValueError(f"{at}{key} must be in [{low:g}, {high:g}], got {value:g}")
    if "n_of_m" in keys:
        _ratio(keys["n_of_m"])
