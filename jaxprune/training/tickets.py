"""Lottery tickets: train, prune, rewind, again and again."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jaxprune import settings
from jaxprune.base import Masks, Params, Setting, Where
from jaxprune.masks import apply_masks, sparsity_of
from jaxprune.masks.selection import Scope
from jaxprune.training.mask_updates import mask_rule, ranked

#: ``(params, masks) -> trained params``.
Train = Callable[[Params, Masks], Params]


class Tickets(NamedTuple):
    """What :func:`lottery_ticket` found; R is the number of rounds.

    Attributes:
      params: the early weights under the last masks: the ticket, ready to be trained.
      masks: the last masks.
      rounds: the masks of each round, every leaf with a leading axis [R].
      sparsities: float32 [R], what each round's masks remove of the leaves that take part.
      metrics: what ``evaluate`` gave for the trained weights of each round, every leaf with a leading axis [R]: entry r
        is of a network under the masks of round r - 1, entry 0 of the dense one. None without ``evaluate``.
    """

    params: Params
    masks: Masks
    rounds: Masks
    sparsities: Any
    metrics: Any


def lottery_ticket(
    train: Train,
    params: Params,
    fraction: Setting = 0.2,
    *,
    rounds: int,
    early: Callable[[Params], Params] | None = None,
    evaluate: Callable[[Params], Any] | None = None,
    saliency: Any = None,
    scope: Scope = "global",
    where: Where = None,
) -> Tickets:
    """Iterative pruning with rewinding: finds sparse networks that train as well as the dense one from the start.

    In each round the early weights are trained under the masks so far, a fraction of the remaining weights is removed
    by the trained weights' scores, and what is left goes back to its early values. After round r exactly
    ``round_half_up(n * (1 - (1 - fraction)**r))`` of n weights are removed; a removed weight never returns.

    Args:
      train: ``(params, masks) -> trained params``, pure. It has to keep masked weights at 0, by :func:`hold_masks`
        say; what it gives is masked again to be sure. It is called with full masks first. If it is traceable, the
        whole function may run under ``jit`` or under ``vmap`` over seeds or fractions, and it is then traced once
        however many rounds there are; outside of a trace, ``train`` may loop over a data loader.
      params: weights at step 0.
      fraction: of the remaining weights that go in a round, in [0, 1], a scalar or (scope "leaf") a tree. Traced.
      rounds: 1 or more, static.
      early: ``params -> params``, the first k steps of training: tickets rewind to what it gives, and ``train`` goes on
        from there. None rewinds to step 0.
      evaluate: ``trained params -> metrics``, any pytree of arrays.
      saliency: static criterion ``params -> scores``, by default ``jaxprune.saliency.magnitude``.
      scope: static, "leaf" or "global".
      where: which leaves take part; see :func:`jaxprune.tree.select`.

    Returns:
      :class:`Tickets`.

    Raises:
      ValueError: no rounds; a concrete fraction outside [0, 1]; a ``where`` that matches nothing.

    Sources: Frankle & Carbin, "The Lottery Ticket Hypothesis", 2019 (arXiv:1803.03635); Frankle et al., "Linear Mode
    Connectivity and the Lottery Ticket Hypothesis", 2020 (arXiv:1912.05671), for rewinding to step k.

    >>> tickets = lottery_ticket(lambda params, masks: params * 2, jnp.arange(1.0, 6.0), 0.4, rounds=2)
    >>> tickets.params.tolist()
    [0.0, 0.0, 0.0, 4.0, 5.0]
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int | np.integer) or rounds < 1:
        raise ValueError(f"rounds must be an integer of 1 or more, got {rounds!r}")
    rule = mask_rule(lambda count: count, saliency, None, 1, scope, where, revive=False)
    fraction = jax.tree.map(lambda value: settings.check_setting(value, "fraction", 0.0, 1.0), fraction)
    start = params if early is None else early(params)

    def one_round(masks: Masks, number: Any) -> tuple[Masks, Any]:
        trained = apply_masks(train(apply_masks(start, masks), masks), masks)
        level = jax.tree.map(lambda value: 1 - (1 - value) ** number, fraction)
        masks = ranked(rule, trained, level, (), trained, masks)
        return masks, (masks, None if evaluate is None else evaluate(trained))

    full = jax.tree.map(lambda mask: jnp.ones_like(mask), jax.eval_shape(lambda p: ranked(rule, p, 0.0, (), p), start))
    numbers = np.arange(1, rounds + 1, dtype=np.float32)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((start, fraction))):
        masks, (history, metrics) = lax.scan(one_round, full, jnp.asarray(numbers))
    else:
        masks, outcomes = full, []
        for number in numbers:
            masks, outcome = one_round(masks, number)
            outcomes.append(outcome)
        history, metrics = jax.tree.map(lambda *leaves: jnp.stack(leaves), *outcomes)
    sparsities = jax.vmap(lambda masks: sparsity_of(masks, start))(history)
    return Tickets(apply_masks(start, masks), masks, history, sparsities, metrics)
