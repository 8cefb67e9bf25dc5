"""Which parameters make the inputs of a product, so that dividing those divides these: from the traced program.

From the product backwards, through operations that a positive factor of an entry along one axis goes through as it is,
to the parameters. What is on the way is used nowhere else, and no output; else something would change.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune import tree
from jaxprune.base import Params
from jaxprune.program import jaxprs
from jaxprune.program.jaxprs import Abstract
from jaxprune.program.primitives import RULES
from jaxprune.program.primitives.calls import know_first


@dataclass(eq=False)
class Node:
    """A value: what it is made of, and what takes it; the path of a parameter, or a number in the program."""

    shape: tuple[int, ...]
    site: Any = None
    operands: Sequence["Node"] = ()
    path: str | None = None
    number: Any = None
    takers: list[Any] = field(default_factory=list)


class _Linking:
    """The reader that makes nodes of values."""

    site = Abstract

    def constant(self, variable: Any, value: Any, guide: Any) -> Node:
        return Node(np.shape(value))

    def literal(self, atom: Any) -> Node:
        return Node(np.shape(atom.val), number=atom.val)

    def apply(self, site: Any, operands: Sequence[Node]) -> Sequence[Node]:
        rule = RULES.get(site.name)
        if rule and rule.bound is know_first:
            return know_first(site, operands)
        outs = [Node(out.aval.shape, site, operands) for out in site.equation.outvars]
        for one in operands:
            one.takers.append(outs[0])
        return outs


class Made(NamedTuple):
    """Factors of products that take the same inputs, the axes of parameters that make these, and how long they are."""

    takers: tuple[str, ...]
    makers: tuple[tuple[str, int], ...]
    size: int


def find(apply: Callable[..., Any], params: Params, inputs: Any) -> list[Made]:
    """The inputs of products that nothing but parameters scales."""
    shapes = jax.tree.map(jaxprs.struct, (params, inputs))
    program, _ = jaxprs.trace(apply, *shapes[:1], *shapes[1])
    paths = tree.flatten(params).paths
    nodes = [Node(v.aval.shape) for v in jaxprs.body(program).invars]
    for node, path in zip(nodes, paths, strict=False):
        node.path = path
    for out in jaxprs.visit(program, nodes, _Linking()).results:
        out.takers.append(None)
    shared: dict[Any, tuple[Node, list[str]]] = {}
    for leaf, path in zip(nodes, paths, strict=False):
        if product := _product(leaf):
            data, axis = product
            shared.setdefault((id(data), axis), (data, []))[1].append(path)
    found = []
    for (_, axis), (data, takers) in shared.items():
        makers = _makers(data, axis) if len(takers) == len(data.takers) else None
        found += [Made(tuple(takers), tuple(makers), data.shape[axis])] if makers else []
    return found


def _product(leaf: Node) -> tuple[Node, int] | None:
    """The other operand of the only product that takes a parameter, and its axis over which the product sums."""
    node = leaf
    while len(node.takers) == 1 and node.takers[0] is not None:
        (taker,) = node.takers
        if taker.site.name == "dot_general":
            side = 1 if taker.operands[0] is node else 0
            contracted, batch = taker.site.params["dimension_numbers"]
            single = len(contracted[side]) == 1 and not batch[side]
            return (taker.operands[side], contracted[side][0]) if single else None
        if taker.site.name == "conv_general_dilated":
            whole = taker.site.params["feature_group_count"] == taker.site.params["batch_group_count"] == 1
            channels = taker.site.params["dimension_numbers"].lhs_spec[1]
            return (taker.operands[0], channels) if whole and taker.operands[1] is node else None
        if taker.site.name not in _MOVES:
            return None
        node = taker
    return None


def _makers(node: Node, axis: int) -> list[tuple[str, int]] | None:
    """The axes of parameters that make a value along one of its own; ``None`` if anything else does."""
    if node.path is not None:
        return [(node.path, axis)]
    rule = _RULES.get(node.site.name) if node.site else None
    for operands in rule(node, axis) if rule else ():
        own: list[tuple[str, int]] | None = []
        for operand, place in operands:
            alone = len(operand.takers) == 1 and operand.shape[place : place + 1] == (node.shape[axis],)
            more = _makers(operand, place) if alone else None
            own = None if own is None or more is None else own + more
        if own:
            return own
    return None


#: The ways in which an entry's factor may come in: for each the operands, all of which have it, and along which axis.
_Ways = list[list[tuple[Node, int]]]


def _all(node: Node, axis: int) -> _Ways:
    return [[(one, axis) for one in node.operands]]


def _any(node: Node, axis: int) -> _Ways:
    return [[(one, axis)] for one in node.operands]


def _first(node: Node, axis: int) -> _Ways:
    return [[(node.operands[0], axis)]]


def _rectified(node: Node, axis: int) -> _Ways:
    """The larger of a value and zero."""
    zero = [one.number is not None and not np.any(one.number) for one in node.operands]
    return [[(one, axis)] for one, other in zip(node.operands, zero[::-1], strict=True) if other]


def _broadcast(node: Node, axis: int) -> _Ways:
    places = node.site.params["broadcast_dimensions"]
    return [[(node.operands[0], places.index(axis))]] if axis in places else []


def _reshaped(node: Node, axis: int) -> _Ways:
    """The axis that is as long, with as many entries before it."""
    (operand, *_) = node.operands
    before = math.prod(node.shape[:axis])
    return [[(operand, i)] for i in range(len(operand.shape)) if math.prod(operand.shape[:i]) == before]


def _dot(node: Node, axis: int) -> _Ways:
    """An axis that only one of the factors has."""
    (contracted, batch), free = node.site.params["dimension_numbers"], []
    for operand, *gone in zip(node.operands, contracted, batch, strict=False):
        free += [(operand, i) for i in range(len(operand.shape)) if i not in (*gone[0], *gone[1])]
    return [[free[axis - len(batch[0])]]] if axis >= len(batch[0]) else []


def _convolution(node: Node, axis: int) -> _Ways:
    """The channels that a kernel makes."""
    numbers = node.site.params["dimension_numbers"]
    single = node.site.params["batch_group_count"] == 1 and axis == numbers.out_spec[1]
    return [[(node.operands[1], numbers.rhs_spec[0])]] if single else []


_MOVES = {
    "transpose": lambda node, axis: [[(node.operands[0], node.site.params["permutation"][axis])]],
    "broadcast_in_dim": _broadcast,
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshaped),
    **dict.fromkeys(("convert_element_type", "reduce_precision", "copy", "copy_p", "stop_gradient"), _first),
}
_RULES: dict[str, Callable[[Node, int], _Ways]] = {
    **_MOVES,
    **dict.fromkeys(("add", "sub", "add_any"), _all),
    "mul": _any,
    **dict.fromkeys(("div", "neg"), _first),
    "max": _rectified,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
}
