"""Decodes the leaves of a tree, some at once, within a limit that is checked before the first array is made."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from jaxprune.files import arrays, node_kinds, records, tree_json
from jaxprune.files.container import Stored
from jaxprune.files.errors import ArtifactError
from jaxprune.files.tree_json import Node
from jaxprune.host import progress_bar

_LEAST_LIMIT = 2**30  # bytes that any file may decode to
_LEAST_RATIO = 1000  # times its coded size that any file may decode to


class Unit(NamedTuple):
    """An array, or a record of one in several parts."""

    node: Node
    parts: list[tuple[str, Stored]]


def units(root: Node, stored: Sequence[Stored]) -> list[Unit]:
    """The units of a tree, in order."""
    remaining = iter(stored)

    def walk(node: Node) -> Iterator[Unit]:
        if node.kind is None or node_kinds.is_record(node.kind):
            yield Unit(node, [(leaf.path, next(remaining)) for leaf in tree_json.leaves(node)])
        else:
            for child in node.children:
                yield from walk(child)

    return list(walk(root))


def decode_all(wanted: Sequence[Unit], coded: int, max_bytes: int | None, progress: bool) -> list[Any]:
    """The array or record of each unit; ``coded`` is the number of bytes that the whole file has."""
    limit = max(_LEAST_LIMIT, _LEAST_RATIO * coded) if max_bytes is None else max_bytes
    total = sum(_decoded_bytes(unit) for unit in wanted)
    if total > limit:
        most = max(wanted, key=_decoded_bytes)
        raise ArtifactError(
            f"the arrays take {total} bytes, most of them leaf {most.node.path!r}; the limit is {limit}: "
            "give a larger max_bytes if the file can be trusted"
        )
    return in_parallel(_decoded, wanted, "leaves", progress)


def in_parallel(work: Callable[[Any], Any], items: Sequence[Any], what: str, progress: bool) -> list[Any]:
    """``[work(item) for item in items]``, in threads, the first error in order raised."""
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress_bar(progress, what, 0, len(items)) as show:
        results = pool.map(work, items)
        found = []
        for result in results:
            found.append(result)
            show(len(found))
    return found


def _decoded_bytes(unit: Unit) -> int:
    """What the arrays of a unit, and the dense array that is made of them, take in memory."""
    heads = [_named(path, lambda part=part: arrays.head(part.read(arrays.LONGEST_HEAD))) for path, part in unit.parts]
    total = sum(_volume(head.shape) * max(4, head.dtype.itemsize) for head in heads)
    kind = unit.node.kind
    return total if kind is None else total + _volume(records.whole_shape(kind, heads[0].shape)) * 8


def _volume(shape: tuple[int, ...]) -> int:
    return math.prod(max(length, 1) for length in shape)  # an axis of none must not hide a huge one


def _decoded(unit: Unit) -> Any:
    parts = iter([_named(path, lambda part=part: arrays.decode(arrays.head(part.data()))) for path, part in unit.parts])
    if unit.node.kind is None:
        return next(parts)
    record = tree_json.rebuild(unit.node, lambda: next(parts))
    _named(unit.node.path, lambda: records.check(record))
    return records.dense(record) if unit.node.kind.get("dense") else record


def _named(path: str, work: Callable[[], Any]) -> Any:
    """``work()``, whose faults name the leaf."""
    try:
        return work()
    except ArtifactError as error:
        raise ArtifactError(f"leaf {path!r}: {error}") from error
