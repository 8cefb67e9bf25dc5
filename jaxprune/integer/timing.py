"""How long each way of a product takes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.integer import executing, rounding
from jaxprune.integer.products import PRODUCTS
from jaxprune.integer.weights import Weight

_ROUNDS = 7
_LONG = 2e-3  # seconds that a sample takes at least


class Product(NamedTuple):
    """A product with a coded weight, as it was traced; arrays as shapes."""

    equation: Any
    side: int
    weight: Weight
    data: Any
    line: str

    @property
    def name(self) -> str:
        return self.equation.primitive.name

    @property
    def shapes(self) -> str:
        """Of the operands, for people."""
        return " x ".join("(" + ", ".join(map(str, one.aval.shape)) + ")" for one in self.equation.invars)

    @property
    def reason(self) -> str:
        """Why it cannot run on integers; empty if it can."""
        said = []

        def run(weight: Weight, data: Any) -> Any:
            out = PRODUCTS[self.name](self.equation, self.side, weight, data, rounding.dynamic)
            said.extend([out] if isinstance(out, str) else [])
            return None if isinstance(out, str) else out

        jax.eval_shape(run, self.weight, self.data)
        return said[0] if said else ""


def times(product: Product, ways: Sequence[str], keep_codes: bool = False) -> dict[str, float]:
    """Seconds that each way takes, compiled: the least of some, which take turns. Equal products are timed once."""
    form = _form((replace(product.weight, path=""), product.data))
    key = (product.name, str(product.equation.params), product.side, form)
    known = _known.setdefault((key, keep_codes), {})
    if missing := [way for way in ways if way not in known]:
        known.update(_timed(product, missing, keep_codes))
    return {way: known[way] for way in ways}


_known: dict[Any, dict[str, float]] = {}


def _form(values: Any) -> Any:
    leaves, structure = jax.tree.flatten(values)
    return str(structure), tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)


def _timed(product: Product, ways: Sequence[str], keep_codes: bool) -> dict[str, float]:
    random = np.random.default_rng(0)

    def of(struct: Any) -> Any:
        if struct.dtype == np.int8:
            return jnp.asarray(random.integers(-100, 100, struct.shape, np.int8))
        numbers = random.standard_normal(struct.shape, np.float32)
        return jnp.abs(jnp.asarray(numbers)).astype(struct.dtype)

    weight, data = jax.tree.map(of, (product.weight, product.data))
    calls = {}
    for way in ways:
        own = weight
        if way in ("float32", "bfloat16") and not keep_codes:
            array = weight.dense() if way == "float32" else weight.dense().astype(jnp.bfloat16)
            own = replace(weight, codes=array, scale=None, zero=None)
        run = jax.jit(partial(executing.run, product.equation, product.side, way=way))
        calls[way] = partial(run, own, data)
    for call in calls.values():
        _seconds(call, 1)  # compiles
    counts = {way: max(1, int(_LONG / _seconds(call, 1))) for way, call in calls.items()}
    found = dict.fromkeys(calls, float("inf"))
    for _ in range(_ROUNDS):
        for way, call in calls.items():
            found[way] = min(found[way], _seconds(call, counts[way]))
    return found


def _seconds(call: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    outs = [call() for _ in range(count)]
    jax.block_until_ready(outs)
    return (time.perf_counter() - start) / count
