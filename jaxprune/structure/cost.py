"""What a function costs with and without the units of a plan: operations, counted from its program, and time."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxprune.program import jaxprs
from jaxprune.program.labelling import Axes
from jaxprune.program.visitor import Frame


def operations(frame: Frame, removed: np.ndarray) -> int:
    """Floating-point operations of the matrix products and convolutions of a program.

    A multiplication and an addition count 2. Padding counts as if it were data. The steps of a scan count each; the
    body of a while loop, whose length is not known, counts once; of the branches of a condition the dearest does.

    Args:
      frame: the program and its labels.
      removed: for each label, whether it is gone.
    """
    total = 0
    for position, equation in enumerate(jaxprs.body(frame.program).eqns):
        name = equation.primitive.name
        if name in _PRODUCTS:
            operands = [_shape(frame.read(atom), removed) for atom in equation.invars]
            total += _PRODUCTS[name](equation, operands, _shape(frame.values[equation.outvars[0]], removed))
        elif children := frame.children.get(position):
            counts = [operations(child, removed) for child in children]
            if name == "cond":
                total += max(counts)
            elif name == "while":
                total += sum(counts)
            else:  # what follows the first program is its derivative
                total += counts[0] * (equation.params["length"] if name == "scan" else 1)
    return total


def _shape(axes: Axes, removed: np.ndarray) -> tuple[int, ...]:
    return tuple(int(labels.size - np.count_nonzero(removed[labels])) for labels in axes)


def _dot_general(equation: Any, operands: Sequence[tuple[int, ...]], out: tuple[int, ...]) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    return 2 * math.prod(out) * math.prod(operands[0][axis] for axis in contracted)


def _convolution(equation: Any, operands: Sequence[tuple[int, ...]], out: tuple[int, ...]) -> int:
    kernel, outputs = operands[1], equation.params["dimension_numbers"].rhs_spec[0]
    return 2 * math.prod(out) * math.prod(size for axis, size in enumerate(kernel) if axis != outputs)


_PRODUCTS: dict[str, Callable[..., int]] = {"dot_general": _dot_general, "conv_general_dilated": _convolution}


def seconds(function: Callable[..., Any], *args: Any, repeats: int = 15) -> float:
    """The shortest time of a call, compiled, in seconds; the first call does not count."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        times.append(time.perf_counter() - start)
    return min(times)
