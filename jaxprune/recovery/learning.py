"""What learns of a tree, the two compiled programs, the batches, and running steps over them."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxprune import paths, tree
from jaxprune.base import Array, Params
from jaxprune.quantization.arrays.protocol import dequantize, is_stored
from jaxprune.recovery import forms
from jaxprune.recovery.forms import Changes, Form
from jaxprune.recovery.losses import Loss

_WEIGHTS = ("codes", "values")  # of kernels: what learns by "all", and not by "scales"

Moved = dict[str, Changes]


class Learner(NamedTuple):
    """What learns of a tree.

    Attributes:
      flat: the tree, its floating leaves chosen.
      forms: of the leaves that learn, by path.
      start: changes that change nothing, by path.
    """

    flat: tree.Selection
    forms: dict[str, Form]
    start: Moved

    def floating(self) -> dict[str, Any]:
        """The floating leaves, by path."""
        return dict(zip(self.flat.names, self.flat.taken, strict=True))

    def stored(self, changes: Moved) -> Params:
        """The tree, stored as before."""
        leaves = self.floating()
        leaves |= {path: form.changed(leaves[path], changes[path]) for path, form in self.forms.items()}
        return self.flat.replace(list(leaves.values()))


def learner_of(params: Params, original: Params, train: str | Sequence[str]) -> Learner:
    """What learns of ``params`` by a preset or patterns."""
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if is_stored(x) else x, params, is_leaf=is_stored
    )
    flat, kernels = tree.floating(shapes), set(tree.select(shapes).names)
    flat = flat._replace(leaves=jax.tree.leaves(params, is_leaf=is_stored))
    before = tree.flatten(original)
    dense = dict(zip(before.paths, before.leaves, strict=True))
    kinds, start = {}, {}
    for path, leaf in zip(flat.names, flat.taken, strict=True):
        first = dense.get(path)
        kinds[path] = forms.form_of(leaf, path in kernels)
        start[path] = kinds[path].start(leaf, first if getattr(first, "shape", None) == leaf.shape else None)
    chosen: Moved = {}
    for path, part in _parts(start, kernels, train):
        chosen.setdefault(path, {})[part] = start[path][part]
    return Learner(flat, {path: kinds[path] for path in chosen}, chosen)


def _parts(start: Moved, kernels: set[str], train: str | Sequence[str]) -> list[tuple[str, str]]:
    """The paths and parts that a preset or patterns choose."""
    parts = [(path, part) for path, changes in start.items() for part in changes]
    names = [f"{path}/{part}" if path else part for path, part in parts]
    listed = [train] if isinstance(train, str) else list(train)
    if listed == ["all"]:
        return parts
    if listed == ["scales"]:
        return [(path, part) for path, part in parts if not (path in kernels and part in _WEIGHTS)]
    if not listed:
        raise ValueError(f"train=[] leaves nothing to train of {names}")
    known = [(name, name.removeprefix("params/")) for name in names]
    taken = paths.matching(listed, known, lambda pattern: f"train: {pattern!r} matches none of {names}")
    return [part for part, mine in zip(parts, taken, strict=True) if mine]


class Program:
    """One step of an optimizer, and the loss; each compiled once for each shape of a batch."""

    def __init__(
        self,
        apply: Callable[..., Any],
        original_apply: Callable[..., Any],
        loss: Loss,
        optimizer: optax.GradientTransformation,
        learner: Learner,
        key: Array | None,
    ) -> None:
        self.learner, self.start = learner, optimizer.init(learner.start)
        self._apply, self._first = apply, original_apply
        flat, kinds = learner.flat, learner.forms
        self._rest = {path: dequantize(leaf) for path, leaf in learner.floating().items() if path not in kinds}
        self._leaves = {path: leaf for path, leaf in learner.floating().items() if path in kinds}

        @jax.jit
        def lost(params: Params, original: Params, batch: Any) -> Array:
            return loss(original_apply(original, *batch), apply(params, *batch))

        @jax.jit
        def step(at: tuple[Moved, Any], rate: Array, number: Array, leaves: Any, original: Params, batch: Any) -> Any:
            (changes, state), (leaves, rest) = at, leaves
            batch = batch if key is None else _mixed(batch, jax.random.fold_in(key, number))
            target = original_apply(original, *batch)

            def lost(changes: Moved) -> Array:
                dense = {path: forms.forward(form, leaves[path], changes[path]) for path, form in kinds.items()} | rest
                return loss(target, apply(flat.replace([dense[path] for path in flat.names]), *batch))

            updates, state = optimizer.update(jax.grad(lost)(changes), state, changes)
            return jax.tree.map(lambda x, update: x - rate * update, changes, updates), state

        self.loss, self._step = lost, step

    def step(self, at: tuple[Moved, Any], rate: float, number: int, original: Params, batch: Any) -> tuple[Moved, Any]:
        """Changes and the optimizer's state, after one more step."""
        return self._step(at, np.float32(rate), np.int32(number), (self._leaves, self._rest), original, batch)

    def check(self, params: Params, original: Params, batch: Any) -> None:
        """Raises if the outputs of both differ in shape."""
        ours = jax.eval_shape(lambda params: self._apply(dequantize(params), *batch), params)
        theirs = jax.eval_shape(lambda params: self._first(params, *batch), original)
        shapes = [jax.tree.map(lambda out: out.shape, outs) for outs in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"outputs of params have shapes {shapes[0]}, those of the original {shapes[1]}")


def _mixed(batch: Any, key: Array) -> Any:
    """Each row of all inputs, and another in another place, by a share of their own; as it is unless all are floating.

    Zhang et al. 2018 (arXiv:1710.09412), without labels: the original answers what lies between its inputs as well.
    """
    rows = {x.shape[:1] for x in jax.tree.leaves(batch)}
    if not all(tree.is_floating(x) for x in jax.tree.leaves(batch)) or len(rows) > 1 or () in rows:
        return batch
    (count,), (order, shares) = rows.pop(), jax.random.split(key)
    places, share = jax.random.permutation(order, count), jax.random.uniform(shares, (count,))

    def mixed(x: Array) -> Array:
        own = share.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype)
        return own * x + (1 - own) * x[places]

    return jax.tree.map(mixed, batch)


class Batches:
    """Batches as tuples of inputs: some are held back, the others train.

    Attributes:
      first: the first of them.
    """

    def __init__(self, batches: Iterable[Any], share: float, seed: int) -> None:
        self._all = list(batches) if iter(batches) is batches else batches
        self._every, self._random = max(round(1 / share), 2), np.random.default_rng(seed)
        few = list(zip(range(2), self._all, strict=False))
        if len(few) < 2:
            raise ValueError(f"batches must be at least 2, of which one is held back; there are {len(few)}")
        self.first = _inputs(few[0][1])

    def held_back(self) -> Iterator[tuple[Any, ...]]:
        """One of every so many."""
        return (_inputs(batch) for i, batch in enumerate(self._all) if i % self._every == 0)

    def training(self) -> Iterator[tuple[Any, ...]]:
        """The others, without end; a sequence in another order each time."""
        while True:
            if isinstance(self._all, Sequence):
                own = [i for i in range(len(self._all)) if i % self._every]
                yield from (_inputs(self._all[i]) for i in self._random.permutation(own))
            else:
                yield from (_inputs(batch) for i, batch in enumerate(self._all) if i % self._every)


def _inputs(batch: Any) -> tuple[Any, ...]:
    return tuple(batch) if isinstance(batch, tuple | list) else (batch,)


class Run(NamedTuple):
    """Steps over the batches that train; ``show`` is told how many were taken in all."""

    program: Program
    original: Params
    batches: Batches
    show: Callable[[], None]

    def __call__(self, rate: float, steps: int, every: int) -> Iterator[tuple[int, Moved]]:
        """The changes after every so many steps, and after the last, at a rate that falls to 0 along half a cosine."""
        at = self.program.learner.start, self.program.start
        for number, batch in zip(range(1, steps + 1), self.batches.training(), strict=False):
            now = rate * 0.5 * (1 + math.cos(math.pi * (number - 1) / steps))
            at = self.program.step(at, now, number, self.original, batch)
            self.show()
            if number % every == 0 or number == steps:
                yield number, at[0]
