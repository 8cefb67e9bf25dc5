"""Plans: which units of which groups stay. As users write them, as flags for each unit, and as flags for each entry."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from jaxprune import settings, tree
from jaxprune.structure.groups import Group

#: What stays: for a group, its name, or the ``(path, axis)`` of a parameter, indices or a bool mask.
Plan: TypeAlias = Mapping[Any, Any]

#: For each group that loses units, by name: which of them stay.
Units: TypeAlias = dict[str, np.ndarray]


def resolve(
    plan: Plan, groups: Sequence[Group], why_pinned: Callable[[str, int], str], from_front: Callable[[str, int], int]
) -> Units:
    """The units that stay, for each group that a plan names. See ``Graph.at``.

    Args:
      plan: as the user wrote it.
      groups: what can be removed.
      why_pinned: says why an axis of a parameter stays.
      from_front: the number of an axis that may be counted from the back.
    """
    by_name = {group.name: group for group in groups}
    kept: Units = {}
    for key, value in plan.items():
        name = key.name if isinstance(key, Group) else key
        if isinstance(name, str) and name in by_name:
            found = {name: _flags(value, by_name[name].size, f"group {name!r}")}
        elif isinstance(name, tuple) and len(name) == 2:
            found = _of_axis((name[0], from_front(*name)), value, groups, why_pinned)
        else:
            raise ValueError(f"there is no group {key!r}; there are {list(by_name)}")
        for one, flags in found.items():
            kept[one] = kept.get(one, np.ones(flags.size, bool)) & flags
    for name, flags in kept.items():
        if not flags.any():
            raise ValueError(f"the plan keeps none of the {flags.size} units of group {name!r}; at least 1 has to stay")
    return kept


def _flags(value: Any, size: int, what: str) -> np.ndarray:
    """Indices or a bool mask as a bool mask."""
    if settings.any_traced(value):
        raise TypeError(f"the plan for {what} is traced; shapes depend on it, so it has to be concrete")
    keep = np.asarray(value)
    if keep.dtype == bool:
        if keep.shape != (size,):
            raise ValueError(f"the mask for {what} has shape {keep.shape}; it needs {(size,)}, one flag a unit")
        return keep
    if keep.ndim != 1 or not (keep.size == 0 or np.issubdtype(keep.dtype, np.integer)):
        raise TypeError(f"the plan for {what} must hold indices or a bool mask, got {value!r}")
    wrong = keep[(keep < 0) | (keep >= size)]
    if wrong.size:
        raise ValueError(f"index {wrong[0]} of {what} is out of range: it has {size} units, 0 to {size - 1}")
    flags = np.zeros(size, bool)
    flags[keep.astype(np.int64)] = True
    return flags


def _of_axis(key: tuple[str, int], value: Any, groups: Sequence[Group], why_pinned: Callable[[str, int], str]) -> Units:
    """The units of an axis of a parameter, given which of its entries stay."""
    path, axis = key
    reasons = why_pinned(path, axis)
    found = along(groups, path, axis)
    if not found:
        raise ValueError(f"axis {axis} of {tree.show(path)} cannot be cut: {reasons}")
    flags = _flags(value, found[0][1].size, f"axis {axis} of {tree.show(path)}")
    owned = np.any([units >= 0 for _, units in found], axis=0)
    if not flags[~owned].all():
        entry = np.flatnonzero(~flags & ~owned)[0]
        raise ValueError(f"entry {entry} along axis {axis} of {tree.show(path)} has to stay: {reasons}")
    kept: Units = {}
    for group, units in found:
        lost = np.bincount(units[~flags & (units >= 0)], minlength=group.size)
        every = np.bincount(units[units >= 0], minlength=group.size)
        if np.any(part := (lost > 0) & (lost < every)):
            together = np.flatnonzero(units == np.flatnonzero(part)[0]).tolist()
            where = f"entries {together} along axis {axis} of {tree.show(path)}"
            raise ValueError(f"{where} can only be removed together, as {group.description}")
        kept[group.name] = lost == 0
    return kept


def along(groups: Sequence[Group], path: str, axis: int) -> list[tuple[Group, np.ndarray]]:
    """The groups that have units along an axis of a parameter, each with the unit of each entry."""
    members = ((group, m, units) for group in groups for m, units in zip(group.members, group.units, strict=True))
    return [(group, units) for group, member, units in members if member == (path, axis)]


def entries(units: Units, groups: Sequence[Group]) -> dict[tuple[str, int], np.ndarray]:
    """For each axis of a parameter that loses entries, which of them stay."""
    flags: dict[tuple[str, int], np.ndarray] = {}
    for group in groups:
        if group.name not in units or units[group.name].all():
            continue
        padded = np.append(units[group.name], True)  # -1: entries that are not of this group
        for member, places in zip(group.members, group.units, strict=True):
            flags[member] = flags.get(member, np.ones(places.size, bool)) & padded[places]
    return flags


def mask_flags(masks: Any, params: Any) -> dict[str, np.ndarray]:
    """For each parameter, by path, its mask in full shape; ``ValueError`` or ``TypeError`` if the masks are not."""
    chosen, shapes = tree.flatten(masks), tree.flatten(params)
    tree.same_paths(chosen, shapes, "masks", "params")
    flags = {}
    for path, mask, leaf in zip(chosen.paths, chosen.leaves, shapes.leaves, strict=True):
        if settings.any_traced(mask) or not np.issubdtype(getattr(mask, "dtype", type(mask)), np.bool_):
            raise TypeError(f"mask {tree.show(path)} must be a concrete bool array")
        flags[path] = np.broadcast_to(np.asarray(mask), np.shape(leaf))
    return flags


def from_masks(masks: Any, params: Any, groups: Sequence[Group]) -> Units:
    """The plan that removes the units that masks remove. See ``Graph.plan_from``."""
    flags = mask_flags(masks, params)
    units = {}
    for group in groups:
        gone = np.zeros(group.size, bool)
        for role in ("out", "in"):
            rows = [i for i, own in enumerate(group.roles) if own == role] or range(len(group.roles))
            gone |= np.all([_masked(flags[group.members[i][0]], group, i) for i in rows], axis=0)
        if gone.any():
            units[group.name] = ~gone
    return units


def _masked(flags: np.ndarray, group: Group, member: int) -> np.ndarray:
    """Which units of a group a mask removes from one member altogether."""
    units = group.units[member]
    return np.bincount(units[any_along(flags, group.members[member][1]) & (units >= 0)], minlength=group.size) == 0


def any_along(mask: np.ndarray, axis: int) -> np.ndarray:
    """At which indices of an axis a mask keeps anything."""
    return np.any(mask, axis=tuple(i for i in range(mask.ndim) if i != axis))
