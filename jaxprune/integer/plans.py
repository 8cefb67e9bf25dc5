"""Which product runs how: chosen once, by rule or by measurement, and obeyed by everything that runs."""

import fnmatch
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import host, paths
from jaxprune.base import Array, Params
from jaxprune.integer import executing, timing
from jaxprune.integer.weights import Weight, weight_of
from jaxprune.program import jaxprs
from jaxprune.quantization.arrays.coded import QArray
from jaxprune.quantization.arrays.protocol import dense, is_stored

WAYS = ("w8a8", "weights", "bfloat16", "float32")
_AHEAD = ("bfloat16", "float32")  # weights are decoded ahead


class Choice(NamedTuple):
    """How one product runs.

    Attributes:
      name: the path of the weight; with a number, if it is in several products.
      path: of the weight.
      way: "w8a8", "weights", "bfloat16" or "float32".
      why: what decided.
      operation: of ``jax.lax``.
      shapes: of its operands.
      line: of the source.
      largest: the range of activations that is taken as known; None: found in each row.
    """

    name: str
    path: str
    way: str
    why: str
    operation: str
    shapes: str
    line: str
    largest: float | None = None


@dataclass(frozen=True)
class Plan:
    """How each product of a function with coded weights runs. Hashable.

    Attributes:
      choices: one a product, in the order of the program.
      keep_codes: whether weights of products on floats are decoded where they are used, not ahead.
    """

    choices: tuple[Choice, ...]
    keep_codes: bool = False

    def __repr__(self) -> str:
        head = ["product", "runs as", "why", "operation", "operands", "line"]
        return host.table(head, [[one.name, *one[2:7]] for one in self.choices], left=6)

    def to_json(self) -> str:
        """The plan as text, for :meth:`from_json`."""
        return json.dumps({"keep_codes": self.keep_codes, "choices": [one._asdict() for one in self.choices]})

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """The plan that ``to_json`` wrote."""
        known = json.loads(text)
        return cls(tuple(Choice(**one) for one in known["choices"]), known["keep_codes"])


class Leaves(NamedTuple):
    """Parameters, flat.

    Attributes:
      values: a ``Weight`` where a leaf has codes that products of integers take, else the dense array.
      why: of the leaves that hold codes that they don't take, by path.
      structs: shapes and dtypes of the dense arrays, as the function's tree.
    """

    values: list[Any]
    why: dict[str, str]
    structs: Any


def leaves_of(codes: Params) -> Leaves:
    """Sorts out what a tree of stored and dense arrays holds."""
    held = jax.tree.leaves(codes, is_leaf=is_stored)
    shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_stored(leaf) else leaf  # noqa: E731
    structs = jax.tree.map(shape, codes, is_leaf=is_stored)
    names, values, why = paths.leaves_of(structs).paths, [], {}
    for name, leaf in zip(names, held, strict=True):
        if is_stored(leaf) and (reason := _unfit(leaf)):
            why[name] = reason
        values.append(dense(leaf) if name in why else weight_of(leaf, name) if is_stored(leaf) else leaf)
    return Leaves(values, why, structs)


def _unfit(leaf: Any) -> str:
    """Why products of integers do not take a stored array."""
    if not isinstance(leaf, QArray):
        return f"stored as {type(leaf).__name__}"
    if leaf.bits > 8:
        return f"codes of {leaf.bits} bits"
    return "codes that stand for NaN" if bool(jnp.any(jnp.isnan(dense(leaf)))) else ""


def plan(
    apply: Callable[..., Any],
    codes: Params,
    *inputs: Any,
    compute: str | Mapping[str, str] = "auto",
    ranges: Mapping[str, float] | None = None,
    keep_codes: bool = False,
) -> Plan:
    """Finds the products that use coded weights in a function, and decides how each of them runs.

    * ``"w8a8"``: int8 codes times activations as int8, sums in int32, which are exact, scaled once. Activations are
      rounded to 254 steps of the largest finite magnitude of their row (of an image, for a convolution), or of
      ``ranges``.
    * ``"weights"``: codes are decoded where they are used, each time.
    * ``"bfloat16"``, ``"float32"``: weights are decoded once, ahead; products of bfloat16, or as they were traced.
    * ``"auto"``: the fastest of these, by timing each distinct product once. The choice is then fixed: results do not
      depend on the load of the machine, but on the plan.

    What has no integer form runs on floats and says why; rows of a table that is looked up are decoded after the
    lookup. Products of two activations stay as they are.

    Args:
      apply: ``(params, *inputs) -> outputs``.
      codes: a tree like the parameters, with ``QArray`` leaves, of :func:`jaxprune.quantize` or a file.
      inputs: arrays, or their shapes; with "auto" of the sizes that will be run.
      compute: for all products, or by glob patterns over the paths of weights, the first that fits; "auto" for others.
      ranges: the largest magnitude of activations to expect, by the name of a product or the path of its weight, which
        saves looking for it. Larger ones saturate.
      keep_codes: whether no weight is decoded ahead: less memory.

    Returns:
      A :class:`Plan`, for :func:`apply`; prints as a table.

    Raises:
      ValueError: an unknown way; ranges that are not positive, or of no product; no leaf holds codes, or no product
        uses them.

    >>> import jaxprune as jp
    >>> w = jp.quantize(jnp.ones((2, 3)), 8)
    >>> plan(lambda w, x: x @ w, w, jnp.ones((1, 2)), compute="w8a8").choices[0].way
    'w8a8'
    """
    leaves = leaves_of(codes)
    wanted = {"*": compute} if isinstance(compute, str) else dict(compute)
    for way in wanted.values():
        if way not in (*WAYS, "auto"):
            raise ValueError(f"compute is {way!r}; it may be 'auto', {', '.join(map(repr, WAYS))}")
    found = _products(apply, leaves, inputs)
    if not found:
        raise ValueError(f"no product uses codes: {leaves.why or 'no leaf holds any'}")
    known = _checked_ranges(ranges or {}, found)
    rows = []
    for name, product in found.items():
        path = product.weight.path
        way = next((way for glob, way in wanted.items() if fnmatch.fnmatchcase(path, glob)), "auto")
        way, why = _decided(product, way, keep_codes)
        rows.append(Choice(name, path, way, why, product.name, product.shapes, product.line, known.get(name)))
    return Plan(tuple(rows), keep_codes)


def _products(apply: Callable[..., Any], leaves: Leaves, inputs: Any) -> dict[str, timing.Product]:
    """The products that use coded weights, by name."""
    found: dict[str, timing.Product] = {}

    def seen(name: str, site: Any, side: int, weight: Weight, data: Array) -> None:
        shapes = jax.tree.map(lambda one: jax.ShapeDtypeStruct(one.shape, one.dtype), (weight, data))
        found[name] = timing.Product(site.equation, side, shapes[0], shapes[1], site.line)

    def run(values: Any, inputs: Any) -> Any:
        return run_program(apply, leaves.structs, values, inputs, executing.Running({}, seen=seen))

    jax.eval_shape(run, leaves.values, inputs)
    return found


def run_program(apply: Callable[..., Any], structs: Any, values: Any, inputs: Any, reader: executing.Running) -> Any:
    """What a function gives, run by a reader."""
    program, shapes = jaxprs.trace(apply, structs, *inputs)
    frame = jaxprs.visit(program, [*values, *jax.tree.leaves(inputs)], reader)
    return jax.tree.unflatten(jax.tree.structure(shapes), [*map(executing.dense, frame.results)])


def _decided(product: timing.Product, way: str, keep_codes: bool) -> tuple[str, str]:
    """How a product runs, and why."""
    lookup, reason = product.name == "gather", product.reason
    if lookup:
        return ("float32", reason) if reason or way in _AHEAD else ("weights", "rows are decoded after the lookup")
    if way == "auto":
        times = timing.times(product, [one for one in WAYS if one != "w8a8" or not reason], keep_codes)
        way = min(times, key=lambda one: times[one])
        return way, ", ".join(f"{one} {1e3 * seconds:.3g} ms" for one, seconds in times.items())
    if way == "w8a8" and reason:
        return "weights" if keep_codes else "float32", reason
    return way, "asked for"


def _checked_ranges(ranges: Mapping[str, float], found: Mapping[str, timing.Product]) -> dict[str, float]:
    known = {}
    for key, value in ranges.items():
        own = [name for name, product in found.items() if key in (name, product.weight.path)]
        if not own:
            raise ValueError(f"ranges has {key!r}, which is no product; these are {', '.join(found)}")
        if not 0 < value < float("inf"):
            raise ValueError(f"the range of {key!r} is {value}; it has to be positive and finite")
        known |= dict.fromkeys(own, float(value))
    return known
