"""Traced programs: how they are made, and access that reads alike on the versions of JAX that are supported."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np
from jax import tree_util
from jax.extend import source_info_util

Program = Any  # a jaxpr, closed or not


def trace(function: Callable[..., Any], *args: Any) -> tuple[Program, Any]:
    """The program of a function at the shapes of its arguments, and the shapes of what it returns."""
    for path, leaf in tree_util.tree_leaves_with_path(args):
        if not all(isinstance(size, int) for size in leaf.shape):
            name = f"args{tree_util.keystr(path)}"
            raise ValueError(f"symbolic dimensions cannot be traced: {name} has shape {leaf.shape}")
    return jax.make_jaxpr(function, return_shape=True)(*args)


def trace_flat(function: Callable[..., Any], avals: Sequence[Any]) -> Program:
    """The program of a function of flat arguments, from their shapes."""
    return jax.make_jaxpr(function)(*map(struct, avals))


def struct(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of a value as JAX takes it, weak type included."""
    if not hasattr(leaf, "weak_type"):
        leaf = jax.typeof(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=bool(leaf.weak_type))


def key(inputs: Any) -> Any:
    """What decides whether a program serves for inputs: structure, shapes and dtypes."""
    leaves, structure = jax.tree.flatten(inputs)
    return structure, tuple((one.shape, one.dtype, one.weak_type) for one in map(struct, leaves))


def body(program: Program) -> Any:
    """The jaxpr itself, whose constants may be inputs."""
    return getattr(program, "jaxpr", program)


def constants(program: Program) -> list[Any]:
    """The values of its constants."""
    return list(getattr(program, "consts", ()))


def is_literal(atom: Any) -> bool:
    """Whether an operand is a number written into the program."""
    return isinstance(atom, jex.Literal)


def line_of(equation: Any) -> str:
    """Where in the user's source an equation is: ``file.py:12 (function)``; empty inside functions of JAX itself."""
    return source_info_util.summarize(equation.source_info)


def bind(equation: Any, values: Sequence[Any], **changed: Any) -> list[Any]:
    """Runs one equation on ``values``, with some of its parameters changed."""
    params = equation.primitive.get_bind_params({**equation.params, **changed})
    with source_info_util.user_context(equation.source_info.traceback), equation.ctx.manager:
        out = equation.primitive.bind(*values, **params)
    return list(out) if equation.primitive.multiple_results else [out]


def is_inexact(aval: Any) -> bool:
    """Whether a value has a derivative."""
    return jax.numpy.issubdtype(aval.dtype, np.inexact)
