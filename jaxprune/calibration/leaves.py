"""The leaves that statistics know, their matrices, and what is done to these."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jaxprune import host, settings, tree
from jaxprune.base import Array, Params, QuantSpec, Setting, Where
from jaxprune.calibration import feedback
from jaxprune.calibration.statistics import Moments, Statistics
from jaxprune.calibration.views import Use
from jaxprune.kernels import uniform
from jaxprune.kernels.sharding import automatic, explicit_spec

_LOG = logging.getLogger(__name__)


class Part(NamedTuple):
    """Matrices of a leaf, and the second moments [L, K, K] of their inputs."""

    use: Use
    gram: Array


def choose(params: Params, stats: Statistics, where: Where, lookups: bool = False) -> tree.Selection:
    """The leaves that take part; each is the factor of a product on data, or with ``lookups`` a table."""
    known = {use.path for _, use in stats.uses if lookups or not use.lookup}
    if where is None:
        chosen = tree.select(params, lambda path, _: path in known)
    else:
        chosen = tree.select(params, where)
    if not chosen.chosen:
        raise ValueError(f"the statistics are of {sorted(known)}, none of which is a leaf of {chosen.paths}")
    counts = []
    for path, leaf in zip(chosen.names, chosen.values, strict=True):
        for _, use in stats.of(path):
            if leaf.shape != use.view.shape:
                raise ValueError(
                    f"leaf {tree.show(path)} has shape {leaf.shape}; the statistics are of shape {use.view.shape}"
                )
            counts.append(stats.inputs[use.source].count)
    if not any(isinstance(count, Tracer) for count in counts) and not any(
        np.asarray(c).any() for c in jax.device_get(counts)
    ):
        raise ValueError(f"the statistics hold no row of data for any of {chosen.names}")
    return chosen


class Task(NamedTuple):
    """What is asked of one leaf.

    Attributes:
      mask: what may stay, or a function of the leaf that says so.
      operands: of the rounding; they broadcast to the leaf, with an axis in blocks as ``spec`` has them.
      settings: of the choice.
      spec: static.
    """

    mask: Any = True
    operands: Sequence[Array] = ()
    settings: Any = ()
    spec: QuantSpec = QuantSpec()


class _Shared(NamedTuple):
    """Leaves of the same inputs, by their places among the chosen ones, and how products use one layer of each."""

    gram: Array
    damping: Any
    layers: int
    members: list[tuple[int, Use]]


def each(
    chosen: tree.Selection,
    stats: Statistics,
    damping: Setting,
    tasks: Sequence[Task],
    how: feedback.Pass,
    finish: Callable[[int, Array, Array], Any] = lambda place, leaf, mask: (leaf, mask),
) -> list[Any]:
    """What ``finish`` makes of each new leaf and its mask.

    One layer after the other: of factors, and of what is computed from them, there is no more at a time than one layer
    needs; leaves of the same inputs share it. Each layer is logged, as large models take long.
    """
    work = _work(chosen, stats, settings.per_leaf(damping, chosen, "damping", 0.0, np.inf), tasks)
    left = Counter(place for shared in work for place, _ in shared.members)
    traced = settings.any_traced(chosen.values, stats, damping, tasks)
    states: dict[int, tuple[Array, Array]] = {}
    finished: dict[int, Any] = {}
    layers = 0 if traced else sum(shared.layers for shared in work)
    with host.progress_bar(False, "layers", 0, layers) as show:
        done = count(1)
        for shared in work:
            for place, _ in shared.members:
                if place not in states:
                    leaf, mask = chosen.values[place], tasks[place].mask
                    states[place] = _start(leaf, mask(leaf) if callable(mask) else mask)
            own = {place: states.pop(place) for place, _ in shared.members}
            step = partial(_layer, shared, tasks, how)
            if traced:
                own = lax.fori_loop(0, shared.layers, step, own)
            else:
                lying = {place: (chosen.values[place].sharding,) * 2 for place in own}
                for number in range(shared.layers):
                    own = jax.device_put(step(number, own), lying)
                    jax.block_until_ready(own)  # else memory is taken ahead of its turn
                    _LOG.info("layer %d of %d of %s", number + 1, shared.layers, [chosen.names[place] for place in own])
                    show(next(done))
            for place, _ in shared.members:
                left[place] -= 1
            states |= own
            for place in own:
                if not left[place]:
                    finished[place] = finish(place, *states.pop(place))
    return [finished[place] for place in range(len(tasks))]


def _work(chosen: tree.Selection, stats: Statistics, dampings: Sequence[Any], tasks: Sequence[Task]) -> list[_Shared]:
    work: dict[Any, _Shared] = {}
    for place, (path, rate, task) in enumerate(zip(chosen.names, dampings, tasks, strict=True)):
        for use, gram in parts(stats, path):
            layers, own = use.by_layer(whole=uniform.blocked_axis(len(use.view.shape), task.spec) == 0)
            shared = work.setdefault((id(gram), id(rate), layers), _Shared(gram, rate, layers, []))
            shared.members.append((place, own))
    return list(work.values())


def parts(stats: Statistics, path: str) -> list[Part]:
    """The matrices of a leaf; what is used alike several times is one, of the sum of the second moments."""
    alike: dict[Any, tuple[Use, list[str]]] = {}
    for name, use in stats.of(path):
        if not use.lookup:
            alike.setdefault((use.view, use.shape), (use, []))[1].append(name)
    return [Part(use, _gram(stats, path, names)) for use, names in alike.values()]


def _gram(stats: Statistics, path: str, names: list[str]) -> Array:
    uses = dict(stats.uses)
    weighted: list[Any] = [stats.gradients[name].weighted for name in names if name in stats.gradients]
    grams: list[Any] = [_moments(stats, uses[name]).gram for name in names]
    if any(one is None for one in (*grams, *weighted)):
        raise ValueError(
            f"the statistics of leaf {tree.show(path)} hold no Gram matrices: collect them with want=['gram']"
        )
    plain: Array = sum(grams[1:], grams[0])  # type: ignore[assignment]
    if not weighted:
        return plain
    total: Array = sum(weighted[1:], weighted[0])  # type: ignore[assignment]
    reached = trace(total)
    if not isinstance(reached, Tracer) and (np.asarray(reached) > 0).all():
        return total  # itself: a copy of each would double what statistics take
    return jnp.where(reached[:, None, None] > 0, total, plain)  # no gradient goes back through a loop of unknown length


@jax.jit
def trace(many: Array) -> Array:
    """Of each of [L, K, K]."""
    return jnp.trace(many, axis1=1, axis2=2)


def _moments(stats: Statistics, use: Use) -> Moments:
    found = stats.inputs[use.source]
    assert isinstance(found, Moments)
    return found


@jax.jit
def _start(leaf: Array, mask: Array) -> tuple[Array, Array]:
    """A copy of the leaf, and its mask in full."""
    spec = explicit_spec(leaf)
    return automatic(
        lambda leaf, mask: (jnp.copy(leaf), jnp.broadcast_to(mask, leaf.shape)), leaf, mask, out=(spec, spec)
    )


def _layer(shared: _Shared, tasks: Sequence[Task], how: feedback.Pass, number: Any, states: Any) -> Any:
    """The leaves with one of their layers compressed, and their masks."""
    factors = _factors(shared.gram, number, shared.damping, shared.layers)
    states = dict(states)
    for place, use in shared.members:
        task = tasks[place]
        states[place] = _solve(states[place], number, factors, tuple(task.operands), task.settings, use, task.spec, how)
    return states


@partial(jax.jit, static_argnums=3)
def _factors(gram: Array, number: Any, damping: Any, layers: int) -> Array:
    def own(gram: Array) -> Array:
        size = len(gram) // layers
        return feedback.factor(lax.dynamic_slice_in_dim(gram, number * size, size), damping)

    return automatic(own, gram)


@partial(jax.jit, static_argnums=(5, 6, 7), donate_argnums=0)
def _solve(
    state: tuple[Array, Array],
    number: Any,
    factors: Array,
    operands: tuple[Array, ...],
    settings: Any,
    use: Use,
    spec: QuantSpec,
    how: feedback.Pass,
) -> tuple[Array, Array]:
    layered = use.view.shape != state[0].shape

    def solved(leaf: Array, mask: Array, number: Any, factors: Array, operands: Any, settings: Any) -> Any:
        def own(x: Array) -> Array:  # which is the only one where all layers have the same
            return lax.dynamic_index_in_dim(x, number, keepdims=False) if layered else x

        def put(x: Array, new: Array) -> Array:
            return (
                lax.dynamic_update_index_in_dim(x, new.astype(x.dtype), number, 0) if layered else new.astype(x.dtype)
            )

        old, kept = own(leaf), own(mask)
        rows = tuple(use.matrices(uniform.spread(own(one), old.shape, spec)) for one in operands)
        matrices, chosen = feedback.run(use.matrices(old), factors, use.matrices(kept) > 0, rows, settings, how)
        new, still = use.leaf(matrices, old), use.leaf(chosen, old) > 0
        if matrices.size < old.size:
            seen = use.leaf(jnp.ones(matrices.shape), old) > 0
            new, still = jnp.where(seen, new, old), jnp.where(seen, still, kept)
        return put(leaf, new), put(mask, still)

    return automatic(solved, *state, number, factors, operands, settings, out=(explicit_spec(state[0]),) * 2)
