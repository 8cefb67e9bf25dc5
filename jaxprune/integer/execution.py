"""A function that runs on coded weights, as a plan says."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.base import Params
from jaxprune.integer.executing import Running
from jaxprune.integer.plans import Plan, leaves_of, run_program
from jaxprune.integer.weights import Weight


def apply(function: Callable[..., Any], codes: Params, plan: Plan) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """``fn, weights``: ``fn(weights, *inputs)`` is ``function(params, *inputs)`` run as the plan says.

    Args:
      function: that the plan was made for, ``(params, *inputs) -> outputs``.
      codes: a tree like the parameters, with ``QArray`` leaves, of the shapes and paths that the plan was made for.
      plan: of :func:`plan`.

    Returns:
      A function to be jitted, which traces the original anew for other shapes of inputs, and its weights: plain
      arrays in tuples, in the order of the parameters' leaves. Weights whose products all run on floats are decoded,
      unless the plan keeps codes.

    Raises:
      ValueError: the plan names products of weights that are not there, or that hold no codes.

    >>> import jaxprune as jp
    >>> w, x = jp.quantize(jnp.array([[1.0], [-0.5]]), 8), jnp.array([[2.0, 1.0]])
    >>> product = lambda w, x: x @ w
    >>> fn, weights = apply(product, w, jp.integer.plan(product, w, x, compute="w8a8"))
    >>> [leaf.dtype.name for leaf in weights[0]], jnp.round(jax.jit(fn)(weights, x), 1).tolist()
    (['int8', 'float32'], [[1.5]])
    """
    leaves = leaves_of(codes)
    coded = {value.path for value in leaves.values if isinstance(value, Weight)}
    if missing := sorted({one.path for one in plan.choices} - coded):
        raise ValueError(f"the plan names products of {missing}, which hold no codes here; these do: {sorted(coded)}")
    values = [_held(value, plan) if isinstance(value, Weight) else value for value in leaves.values]
    weights = tuple(tuple(jax.tree.leaves(value)) if isinstance(value, Weight) else value for value in values)
    forms = [jax.tree.structure(value) if isinstance(value, Weight) else None for value in values]
    ways = {one.name: one.way for one in plan.choices}
    ranges = {one.name: one.largest for one in plan.choices if one.largest is not None}

    def fn(weights: Any, *inputs: Any) -> Any:
        pairs = zip(forms, weights, strict=True)
        values = [leaf if form is None else jax.tree.unflatten(form, leaf) for form, leaf in pairs]
        return run_program(function, leaves.structs, values, inputs, Running(ways, ranges))

    return fn, weights


def _held(weight: Weight, plan: Plan) -> Weight:
    """The codes, or the array that they stand for, as the products of the weight have it."""
    ways = {one.way for one in plan.choices if one.path == weight.path}
    if plan.keep_codes or ways & {"w8a8", "weights"}:
        return weight
    array = weight.dense()
    array = array.astype(jnp.bfloat16) if ways == {"bfloat16"} else array
    return replace(weight, codes=array, scale=None, zero=None)
