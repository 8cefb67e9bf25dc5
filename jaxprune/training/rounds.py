"""Pruning in rounds: before training, by criteria that look ahead, and lottery tickets: train, prune, rewind, again."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import saliency as criteria
from jaxprune import settings
from jaxprune.base import Array, Masks, Params, Saliency, Scope, Setting, Where
from jaxprune.masks import apply_masks, sparsity_of
from jaxprune.training.mask_updates import MaskFn, Ranking, as_running, ranked, unpruned


def prune_at_start(
    params: Params,
    sparsity: Setting,
    saliency: Saliency,
    *,
    rounds: int = 1,
    scope: Scope | MaskFn = "leaf",
    min_keep: int | float | None = None,
    where: Where = None,
) -> Masks:
    """Masks for a network before it is trained, found in rounds of scoring and removing.

    Round k of n takes the sparsity to ``1 - (1 - sparsity) ** (k / n)``: each round removes the same fraction of what
    is left. In each round the masked parameters are scored anew; what has been removed stays removed. Rounds matter to
    criteria that depend on the other weights: :func:`synflow` takes 100.

    Args:
      params: any pytree of arrays; ``where`` chooses among its leaves.
      sparsity: traced fraction to remove in the end, in [0, 1]; for scope "leaf" a tree of them serves too.
      saliency: static criterion ``params -> scores``, of full shape or one score a unit; close over what else it needs:
        ``lambda p: jaxprune.training.snip(loss, p, x, y)``.
      rounds: static number of rounds, 1 or more; they are one compiled loop.
      scope: static; "leaf" ranks each leaf alone, "global" all chosen leaves together, as the papers of these criteria
        do; or a function ``(scores, sparsity) -> masks``.
      min_keep: static, see :func:`jaxprune.masks.by_sparsity`.
      where: see :func:`jaxprune.tree.select`; resolved on the parameters.

    Returns:
      Masks in the shapes of the scores, the 0-d ``True`` for leaves that take no part. Exactly ``round_half_up(n *
      sparsity)`` of n entries are removed, as by :func:`jaxprune.masks.by_sparsity`, and its ties and NaN rules hold.

    Raises:
      ValueError: as :func:`jaxprune.masks.by_sparsity`; ``rounds`` below 1; scores of another structure than the
        parameters.

    Source: Tanaka et al., 2020 (arXiv:2006.05467), Algorithm 1.

    >>> prune_at_start(jnp.array([4.0, -3.0, 2.0, 1.0]), 0.5, criteria.magnitude, rounds=2).tolist()
    [True, True, False, False]
    """
    settings.check_count(rounds, "rounds")
    ranking = Ranking(as_running(saliency, with_grads=False), scope, min_keep, where, revive=False)
    sparsity = jax.tree.map(lambda value: settings.check_setting(value, "sparsity", 0.0, 1.0), sparsity)
    levels = jax.tree.map(lambda value: _fractions(value, int(rounds)), sparsity)

    def prune(masks: Masks, level: Setting) -> tuple[Masks, None]:
        return ranked(ranking, apply_masks(params, masks), level, (), None, masks), None

    return jax.lax.scan(prune, unpruned(ranking, params), levels)[0]


class Tickets(NamedTuple):
    """What :func:`lottery_ticket` found; R is the number of rounds.

    Attributes:
      params: the given weights under the last masks: the ticket, ready to be trained.
      masks: the last masks.
      rounds: the masks of each round, every leaf with a leading axis [R].
      sparsities: float32 [R], what each round's masks remove of the leaves that take part.
      metrics: what ``train`` gave beside the trained weights, every leaf with a leading axis [R]: entry r is of a
        network under the masks of round r - 1, entry 0 of the dense one.
    """

    params: Params
    masks: Masks
    rounds: Masks
    sparsities: Any
    metrics: Any

    def __repr__(self) -> str:
        return f"Tickets({len(jax.tree.leaves(self.params))} leaves, sparsities={self.sparsities})"


def lottery_ticket(
    train: Callable[[Params, Masks], tuple[Params, Any]],
    params: Params,
    fraction: Setting = 0.2,
    *,
    rounds: int,
    saliency: Saliency = criteria.magnitude,
    scope: Scope | MaskFn = "leaf",
    min_keep: int | float | None = None,
    where: Where = None,
) -> Tickets:
    """Iterative pruning with rewinding: finds sparse networks that train as well as the dense one from the start.

    In each round the given weights are trained under the masks so far, a fraction of the remaining weights is removed
    by the trained weights' scores, and what is left goes back to its given value. After round r exactly
    ``round_half_up(n * (1 - (1 - fraction)**r))`` of n weights are removed; a removed weight never returns.

    Args:
      train: ``(params, masks) -> (trained params, metrics)``, pure; metrics are any pytree of arrays, None for none. It
        has to keep masked weights at 0, by :func:`hold_masks` say; what it gives is masked again to be sure. It is
        called with full masks first. If it is traceable, the whole function may run under ``jit`` or under ``vmap``
        over seeds or fractions, and it is then traced once however many rounds there are; outside of a trace,
        ``train`` may loop over a data loader.
      params: weights that tickets rewind to and ``train`` starts from: those of step 0, or of an early step.
      fraction: of the remaining weights that go in a round, in [0, 1], a scalar or (scope "leaf") a tree. Traced.
      rounds: 1 or more, static.
      saliency: static criterion ``params -> scores``.
      scope: as for :func:`gradual_pruning`.
      min_keep: as for :func:`gradual_pruning`.
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      A named tuple: ``params``, the given weights under the last ``masks``; ``rounds``, the masks of all rounds with a
      leading axis [R]; ``sparsities``, float32 [R]; and ``metrics``, with a leading axis [R].

    Raises:
      ValueError: no rounds; a concrete fraction outside [0, 1]; a ``where`` that matches nothing.
      TypeError: ``train`` returns no pair.

    Sources: Frankle & Carbin, "The Lottery Ticket Hypothesis", 2019 (arXiv:1803.03635); Frankle et al., "Linear Mode
    Connectivity and the Lottery Ticket Hypothesis", 2020 (arXiv:1912.05671), for rewinding to step k.

    >>> tickets = lottery_ticket(lambda params, masks: (params * 2, None), jnp.arange(1.0, 6.0), 0.4, rounds=2)
    >>> tickets.params.tolist()
    [0.0, 0.0, 0.0, 4.0, 5.0]
    """
    settings.check_count(rounds, "rounds")
    ranking = Ranking(as_running(saliency, with_grads=False), scope, min_keep, where, revive=False)
    fraction = jax.tree.map(lambda value: settings.check_setting(value, "fraction", 0.0, 1.0), fraction)

    def one_round(masks: Masks, number: Any) -> tuple[Masks, Any]:
        result = train(apply_masks(params, masks), masks)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(f"train must return (trained params, metrics), got {type(result).__name__}")
        level = jax.tree.map(lambda value: 1 - (1 - value) ** number, fraction)
        masks = ranked(ranking, apply_masks(result[0], masks), level, (), None, masks)
        return masks, (masks, result[1])

    masks = unpruned(ranking, params)
    numbers = np.arange(1, rounds + 1, dtype=np.float32)
    if settings.any_traced(params, fraction):
        masks, (history, metrics) = jax.lax.scan(one_round, masks, jnp.asarray(numbers))
    else:
        outcomes = []
        for number in numbers:
            masks, outcome = one_round(masks, number)
            outcomes.append(outcome)
        history, metrics = jax.tree.map(lambda *leaves: jnp.stack(leaves), *outcomes)
    sparsities = jax.vmap(lambda masks: sparsity_of(masks, params))(history)
    return Tickets(apply_masks(params, masks), masks, history, sparsities, metrics)


def _fractions(sparsity: Any, rounds: int) -> Array:
    """The sparsity after each round, never falling, the last one exactly as given."""
    end = jnp.clip(jnp.asarray(sparsity, jnp.float32), 0.0, 1.0)
    steps = 1 - (1 - end) ** jnp.asarray(np.arange(1, rounds + 1) / rounds, jnp.float32)
    return jnp.minimum(jax.lax.cummax(steps), end).at[-1].set(end)
