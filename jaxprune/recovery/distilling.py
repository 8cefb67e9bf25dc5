"""Training against the outputs of the original, and the best that came of it on batches that took no part."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax

from jaxprune import host
from jaxprune.base import Params
from jaxprune.quantization.arrays.protocol import dequantize
from jaxprune.recovery.learning import Batches, Program, Run, learner_of
from jaxprune.recovery.losses import LOSSES, Loss

_CHECKS = 10  # how often the batches that are held back are looked at
_SEARCH = 8  # a rate is tried for so small a part of all steps


@dataclass(frozen=True)
class RecoverySpec:
    """How a network is trained against its original.

    Attributes:
      optimizer: of optax, without a learning rate; ``optax.scale_by_adam()`` by default.
      rates: learning rates to try. They fall to 0 along half a cosine. Scales learn by factors, codes by steps.
      held_back: the part of the batches that does not train, in (0, 1): at least one.
      mix: whether rows of floating inputs are mixed with others of their batch, by a random share: far fewer inputs do.
      seed: of the order of batches, and of the mixing.
      original_apply: the function of the original, if it is another: before ``shrink``.
    """

    optimizer: optax.GradientTransformation | None = None
    rates: Sequence[float] = (1e-3, 3e-3, 1e-2, 3e-2)
    held_back: float = 0.1
    mix: bool = True
    seed: int = 0
    original_apply: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if not len(self.rates) or not all(0 < rate < np.inf for rate in self.rates):
            raise ValueError(f"rates must be some finite numbers above 0, got {self.rates}")
        if not 0 < self.held_back < 1:
            raise ValueError(f"held_back must be between 0 and 1, got {self.held_back}")


@dataclass(frozen=True, repr=False)
class Recovered:
    """A network that has learned.

    Attributes:
      params: stored as they were.
      before, after: the loss on what was held back.
      rate: the learning rate that was best.
      losses: (step, loss) of the run with it, on what was held back. The smallest is ``after``.
    """

    params: Params
    before: float
    after: float
    rate: float
    losses: list[tuple[int, float]]

    def __repr__(self) -> str:
        """Losses, not weights."""
        step = min(self.losses, key=lambda pair: pair[1])[0]
        steps = self.losses[-1][0]
        return f"Recovered(loss {self.before:.4g} -> {self.after:.4g}, step {step} of {steps}, rate {self.rate:g})"


def recover(
    apply: Callable[..., Any],
    params: Params,
    original: Params,
    batches: Iterable[Any],
    *,
    train: str | Sequence[str] = "scales",
    loss: str | Loss = "divergence",
    steps: int = 500,
    spec: RecoverySpec = RecoverySpec(),  # noqa: B008
) -> Recovered:
    """Trains a compressed network until it answers as its original does; never returns a worse one.

    Adam by default, on ``loss(apply(original, *batch), apply(params, *batch))``. Each learning rate of the
    spec runs for an eighth of the steps, the best one for all of them, and what is returned is the best of ten
    looks at the batches that are held back, the start included: evaluated as it is stored, decoded.

    Args:
      apply: ``(params, *inputs) -> outputs``, for dense parameters.
      params: any pytree of dense arrays and of stored ones: ``QArray``, codebook, trellis, N:M, ``encode``'s.
      original: the dense parameters before; a leaf of the same path and shape is where weights start behind codes.
      batches: inputs of ``apply``, an array or a tuple each, of few shapes (each compiles a program). A sequence goes
        in another order each time; another iterable as it comes, each time anew; an iterator is kept in memory.
      train: "scales" (scales and steps of codes, centroids, and dense leaves that are no kernels: biases, norms);
        "all" (also kernels: the weights behind codes, N:M values, and what is not 0 of dense ones); or patterns of
        ``path/part``, ``"*/scale"`` say, with the parts ``scale``, ``codes``, ``step``, ``centroids``, ``values``.
      loss: "divergence" (Kullback-Leibler, of logits), "squared_error" (over the mean square), "cosine", or a function
        of both outputs that returns one number, lower is better.
      steps: of the optimizer, a batch each. Static.
      spec: optimizer, learning rates, what is held back, another function of the original.

    Returns:
      ``Recovered``. Its ``params`` are stored as they were, with the same dtypes, codes within the same bits; zeros of
      dense kernels stay +0.0, and leaves that do not learn are the same objects. What is learned of scales and vectors
      has 11 significant bits, so that a file does not grow where codes stay.

    Raises:
      ValueError: fewer than two batches; nothing to train, or patterns that match nothing; outputs of another shape; a
        loss that is not finite at the start; settings out of range.

    >>> import jax.numpy as jnp, jaxprune
    >>> w = jnp.array([[1.0, -0.8], [0.6, 0.4]])
    >>> small = jaxprune.quantize(w, 2)
    >>> found = recover(lambda w, x: x @ w, small, w, [jnp.eye(2)] * 4, loss="squared_error", steps=50)
    >>> found.after < found.before, bool((found.params.codes == small.codes).all())
    (True, True)
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    data, learner = Batches(batches, spec.held_back, spec.seed), learner_of(params, original, train)
    if not learner.forms:
        raise ValueError(f"train={train!r} leaves nothing to train: no scales, no biases; 'all' trains kernels too")
    wanted, key = _named(loss), jax.random.key(spec.seed) if spec.mix else None
    program = Program(
        apply, spec.original_apply or apply, wanted, spec.optimizer or optax.scale_by_adam(), learner, key
    )
    program.check(params, original, data.first)

    def measured(stored: Params) -> float:
        dense = dequantize(stored)
        found = float(np.mean([program.loss(dense, original, batch) for batch in data.held_back()]))
        return found if np.isfinite(found) else np.inf

    before, short = measured(params), max(steps // _SEARCH, 1)
    if before == np.inf:
        raise ValueError("the loss of what is held back is not finite at the start: look at params, data and loss")
    with host.progress_bar(False, "steps", 0, steps + (len(spec.rates) > 1) * len(spec.rates) * short) as show:
        taken = itertools.count(1)
        run = Run(program, original, data, lambda: show(next(taken)))
        rate = spec.rates[0]
        if len(spec.rates) > 1:
            tried = {rate: measured(learner.stored(next(run(rate, short, short))[1])) for rate in spec.rates}
            rate = min(tried, key=lambda rate: (tried[rate], rate))
        best, losses = params, [(0, before)]
        for step, changes in run(rate, steps, max(steps // _CHECKS, 1)):
            stored = learner.stored(changes)
            found = measured(stored)
            best = stored if found < min(loss for _, loss in losses) else best
            losses.append((step, found))
    return Recovered(best, before, min(loss for _, loss in losses), rate, losses)


def _named(loss: str | Loss) -> Loss:
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {sorted(LOSSES)} or a function of both outputs, got {loss!r}")
    return LOSSES[loss]
