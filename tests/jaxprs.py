"""Looking into jaxprs: every equation, however deep in calls, branches, loops and custom rules."""

from collections.abc import Iterator
from typing import Any


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr and of every jaxpr among their parameters."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for value in equation.params.values():
            for inner in _jaxprs(value):
                yield from equations(inner)


def primitives(jaxpr: Any) -> set[str]:
    """The names of all primitives used."""
    return {equation.primitive.name for equation in equations(jaxpr)}


def _jaxprs(value: Any) -> Iterator[Any]:
    if hasattr(getattr(value, "jaxpr", value), "eqns"):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _jaxprs(item)
    elif isinstance(value, dict):
        yield from _jaxprs(list(value.values()))
