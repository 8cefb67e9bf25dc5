"""Stored arrays in the state dicts of Flax, which its msgpack functions write."""

import sys
from dataclasses import fields
from typing import Any

import jax

_known: set[type] = set()


class FlaxState:
    """Base of stored arrays that ``flax.serialization`` shall know: ``to_bytes``, ``from_bytes`` and state dicts.

    A class is registered when the first of its records is made while that module is loaded: to import it takes as long
    as JAX takes. As everywhere in Flax the target of ``from_bytes`` gives what is static; a state whose static parts
    were others is refused.
    """

    def __post_init__(self) -> None:
        flax = sys.modules.get("flax.serialization")
        if flax is not None and type(self) not in _known and hasattr(flax, "register_serialization_state"):
            flax.register_serialization_state(type(self), _to_state, _from_state, override=True)
            _known.add(type(self))


def _to_state(record: Any) -> dict[str, Any]:
    flax = sys.modules["flax.serialization"]
    state = {name: flax.to_state_dict(getattr(record, name)) for name in _parts(record)}
    return state | {"static": _static(record)}


def _from_state(target: Any, state: dict[str, Any]) -> Any:
    flax, names, kind = sys.modules["flax.serialization"], _parts(target), type(target)
    if set(state) != {*names, "static"}:
        raise ValueError(f"a {kind.__name__} has the parts {[*names, 'static']}; the state has {sorted(state)}")
    if state["static"] != _static(target):
        raise ValueError(f"the state is of a {kind.__name__} of {state['static']}; the target's is {_static(target)}")
    parts = {name: flax.from_state_dict(getattr(target, name), state[name], name) for name in names}
    others = {field.name: getattr(target, field.name) for field in fields(target) if field.name not in parts}
    return kind(**parts, **others)


def _parts(record: Any) -> list[str]:
    """The names of what a record holds in arrays."""
    children, _ = jax.tree.flatten_with_path(record, is_leaf=lambda node: node is not record)
    return [path[0].name for path, _ in children]


def _static(record: Any) -> str:
    """What tells one record from another of the same arrays, as text; not a spec, which may hold functions."""
    names = [field.name for field in fields(record) if field.name not in (*_parts(record), "spec")]
    return ", ".join(f"{name}={getattr(record, name)}" for name in names)
