"""Access to traced programs that reads alike on the versions of JAX that are supported."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np
from jax.extend import source_info_util

Program = Any  # a jaxpr, closed or not


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


def describe(equation: Any, caller: str = "") -> str:
    """The equation's operation and its line, or else that of its caller, for messages."""
    line = line_of(equation) or caller
    return f"`{equation.primitive.name}`" + (f" at {line}" if line else "")


def bind(equation: Any, values: Sequence[Any], **changed: Any) -> list[Any]:
    """Runs one equation on ``values``, with some of its parameters changed."""
    params = equation.primitive.get_bind_params({**equation.params, **changed})
    with source_info_util.user_context(equation.source_info.traceback), equation.ctx.manager:
        out = equation.primitive.bind(*values, **params)
    return list(out) if equation.primitive.multiple_results else [out]


def trace_flat(function: Callable[..., Any], avals: Sequence[Any]) -> Program:
    """The program of a function of flat arguments, from their shapes."""
    return jax.make_jaxpr(function)(*(struct(aval) for aval in avals))


def struct(aval: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of a value, weak type included."""
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=getattr(aval, "weak_type", False))


def is_inexact(aval: Any) -> bool:
    """Whether a value has a derivative."""
    return jax.numpy.issubdtype(aval.dtype, np.inexact)
