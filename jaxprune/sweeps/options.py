"""What each group of leaves may be: as it is, or what a method makes of it at one of its settings."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import files, host, paths, tree
from jaxprune.base import Params, Where
from jaxprune.quantization.arrays import protocol

#: By name: a function of (params, setting), which gives them with other leaves, and the settings to try.
Methods = Mapping[str, tuple[Callable[[Params, Any], Params], Sequence[Any]]]
#: Patterns, or lists of patterns, whose leaves share one decision.
By = str | Sequence[str | Sequence[str]] | None


class Option(NamedTuple):
    """A method and its setting; as they are, leaves have neither."""

    method: str
    setting: Any

    def __str__(self) -> str:
        if not self.method:
            return "as it is"
        return self.method if self.setting is None else f"{self.method} {_said(self.setting)}"


def _said(setting: Any) -> str:
    return f"{setting:.4g}" if isinstance(setting, float | np.floating) else str(setting)


class Leaf(NamedTuple):
    """A leaf that takes part.

    Attributes:
      place: its number among the leaves of the tree.
      group: the number of its group.
      records: by number of the option, what stands for it: an array, or a stored one.
      coded: the same, compressed.
    """

    place: int
    group: int
    records: dict[int, Any]
    coded: dict[int, files.Compressed]


class Options(NamedTuple):
    """All that can be chosen.

    Attributes:
      flat: the parameters, of which the leaves that take part are chosen.
      groups: the name of each group, its leaves' paths between commas.
      options: of which the first is to leave things as they are.
      leaves: those that take part.
      rest: the other leaves, by their number, compressed.
      nbytes: float64 [groups, options], what the leaves of a group take in a file, without its header; infinite where a
        method has left all of them as they are.
    """

    flat: tree.Selection
    groups: list[str]
    options: list[Option]
    leaves: list[Leaf]
    rest: dict[int, files.Compressed]
    nbytes: np.ndarray

    def params(self, choice: Sequence[int]) -> Params:
        """The parameters with one option for each group, stored as the methods store them."""
        return self.flat.replace([leaf.records[self.taken(leaf, choice)] for leaf in self.leaves])

    def compressed(self, choice: Sequence[int]) -> files.Compressed:
        """The file of these parameters, as ``jaxprune.compress`` makes it."""
        parts = dict(self.rest) | {leaf.place: leaf.coded[self.taken(leaf, choice)] for leaf in self.leaves}
        return files.join(self.flat.treedef.unflatten([parts[i] for i in range(len(self.flat.leaves))]))

    def stacks(self) -> list[jax.Array]:
        """For each leaf the dense arrays of its own options, [own options, ...]."""
        return [jnp.stack([jnp.asarray(protocol.dequantize(x)) for x in leaf.records.values()]) for leaf in self.leaves]

    def rows(self, choice: Sequence[int]) -> list[int]:
        """For each leaf where its array is in its stack."""
        return [self.rows_of(leaf)[choice[leaf.group]] for leaf in self.leaves]

    def rows_of(self, leaf: Leaf) -> list[int]:
        """For each option where the array of a leaf is in its stack; leaves that a method left alone are the first."""
        own = {option: row for row, option in enumerate(leaf.records)}
        return [own.get(i, 0) for i in range(len(self.options))]

    def taken(self, leaf: Leaf, choice: Sequence[int]) -> int:
        """The option of a leaf: that of its group, unless the method has left this one as it is."""
        return choice[leaf.group] if choice[leaf.group] in leaf.records else 0


def find(params: Params, methods: Methods, by: By, where: Where) -> Options:
    """Applies every method at every setting, and codes what comes out of it.

    Raises:
      ValueError, TypeError: no methods, no settings, or what a method gives does not fit the parameters.
    """
    flat = tree.select(params, where)
    if not flat.chosen:
        raise ValueError(f"where chooses none of the leaves {flat.paths}")
    options = [Option("", None), *_listed(methods)]
    made = [dict(zip(flat.chosen, flat.taken, strict=True))]
    made += [_applied(flat, params, methods[option.method][0], option) for option in options[1:]]
    groups, names = _grouped(flat.names, by)
    leaves = []
    for place, group in zip(flat.chosen, groups, strict=True):
        own = {i: new[place] for i, new in enumerate(made) if i == 0 or new[place] is not flat.leaves[place]}
        leaves.append(Leaf(place, group, own, {}))
    rest = [i for i in range(len(flat.leaves)) if i not in set(flat.chosen)]
    nodes = [(leaf.coded, i, node) for leaf in leaves for i, node in leaf.records.items()]
    others: dict[int, files.Compressed] = {}
    nodes += [(others, i, flat.leaves[i]) for i in rest]
    sizes = host.in_parallel(files.compress, [node for *_, node in nodes], nbytes=lambda node: getattr(node, "size", 8))
    for (into, i, _), part in zip(nodes, sizes, strict=True):
        into[i] = part
    return Options(flat, names, options, leaves, others, _bytes(leaves, len(names), len(options)))


def _listed(methods: Methods) -> list[Option]:
    if not methods:
        raise ValueError("there are no methods: give some, as in {'int': (jp.quantize, [2, 4, 8])}")
    found = []
    for name, pair in methods.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not callable(pair[0]):
            raise TypeError(f"method {name!r} must be (function of params and a setting, settings), got {pair!r:.80}")
        if isinstance(pair[1], str) or not np.iterable(pair[1]) or not len(settings := list(pair[1])):
            raise ValueError(f"method {name!r} has no settings to try: list some, or [None] if it takes none")
        found += [Option(str(name), setting) for setting in settings]
    return found


def _applied(flat: tree.Selection, params: Params, function: Any, option: Option) -> dict[int, Any]:
    """What a method makes of the leaves that take part."""
    new = function(params, option.setting)
    try:
        nodes = flat.treedef.flatten_up_to(new)
    except (ValueError, TypeError) as error:
        said = f"method {option}: what it returns does not follow the parameters, whose paths are {flat.paths}"
        raise ValueError(f"{said}: {error}") from None
    for i in flat.chosen:
        old, node = flat.leaves[i], nodes[i]
        if (np.shape(node), getattr(node, "dtype", None)) != (np.shape(old), old.dtype):
            what = f"{getattr(node, 'dtype', type(node).__name__)}{list(np.shape(node))}"
            said = f"method {option} makes {what} of leaf {tree.show(flat.paths[i])}, which is {old.dtype}"
            raise ValueError(f"{said}{list(np.shape(old))}: keep shapes and dtypes (0 for what is cut)")
    return {i: nodes[i] for i in flat.chosen}


def _grouped(leaves: list[str], by: By) -> tuple[list[int], list[str]]:
    """The group of each leaf, in order of the first, and the groups' names."""
    together: dict[str, str] = {}
    for patterns in [by] if isinstance(by, str) else by or ():
        listed = [patterns] if isinstance(patterns, str) else list(patterns)
        flags = paths.matching(
            listed,
            [(name, name.removeprefix("params/")) for name in leaves],
            f"by: {{!r}} matches none of {leaves}".format,
        )
        mine = [name for name, taken in zip(leaves, flags, strict=True) if taken]
        for name in mine:
            if name in together:
                raise ValueError(f"by: leaf {tree.show(name)} is in two groups, of {patterns!r} and another pattern")
            together[name] = ", ".join(mine)
    of_leaf = [together.get(name, name) for name in leaves]
    names = list(dict.fromkeys(of_leaf))
    return [names.index(group) for group in of_leaf], names


def _bytes(leaves: list[Leaf], groups: int, options: int) -> np.ndarray:
    total, made = np.zeros((groups, options)), np.zeros((groups, options), bool)
    for leaf in leaves:
        for i in range(options):
            total[leaf.group, i] += sum(part.nbytes for part in leaf.coded[i if i in leaf.coded else 0].leaves)
            made[leaf.group, i] |= i in leaf.records
    return np.where(made, total, np.inf)
