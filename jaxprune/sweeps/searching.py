"""Saying what is wanted, and having the settings found."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxprune.base import Params
from jaxprune.sweeps.combining import Search
from jaxprune.sweeps.found import Found
from jaxprune.sweeps.options import Methods
from jaxprune.sweeps.sensitivities import Sensitivity, sensitivity
from jaxprune.sweeps.wishes import Measures, wish


def search(
    loss: Callable[[Params], Any],
    params: Params,
    methods: Methods | Sensitivity,
    *,
    minimize: str = "loss",
    limits: Mapping[str, float],
    measures: Measures | None = None,
    budget: int | None = None,
    report: Callable[[Params], Any] | None = None,
) -> Found:
    """Finds a method and a setting for each leaf, such that the loss, the file or another cost is least within limits.

    All leaves at all settings are evaluated alone (:func:`jaxprune.sensitivity`), then combinations, corrected by what
    these give. What comes back holds when evaluated. The same calls give the same result.

    Args:
      loss: function of the parameters that returns one number, lower is better; see :func:`jaxprune.sensitivity`. It
        should be differentiable, or fewer of the combinations are good.
      params: any pytree of arrays.
      methods: by name, a function of (params, setting), and the settings to try; or a table that ``sensitivity`` made
        with this loss and these parameters, for groups that decide together, other leaves, devices, a progress bar, and
        a file to go on from. Leaves may also stay as they are.
      minimize: "loss", "bytes" (of the file that is written), or the name of a measure of which less is better.
      limits: by name, the most that is allowed, or the least of a measure of which more is better.
      measures: by name, a function of the dense parameters, of any kind, and "min" or "max", whichever is better. Those
        to be low (latency, FLOPs) are taken to add up over leaves, and measured for each leaf and setting; those to be
        high (accuracy) to follow the loss. Each is asked once a combination.
      budget: evaluations of the loss, those of the table included; a gradient counts as 3. By default 14 and 2 a group
        on top of the table.
      report: another loss or metric, on other data, of the result alone: the data that chose flatter it.

    Returns:
      ``Found``: ``params``, as the methods store them, for :func:`jaxprune.save`; ``settings`` by group; ``values`` of
      the loss, the bytes and the measures; ``reported``; ``front``; ``evaluations``. ``print`` it for what each setting
      costs and saves, and what the next one would.

    Raises:
      ValueError: limits that nothing holds, with what came nearest; a goal or a limit that is not measured, or in the
        wrong direction; a budget below what the table takes; as ``sensitivity``.

    >>> import jax, jax.numpy as jnp, jaxprune as jp
    >>> noise = jax.random.normal(jax.random.key(0), (64, 64))
    >>> params = {"a": noise, "b": 9 * noise.T}
    >>> loss = lambda p: sum(jnp.square(p[name] - params[name]).mean() for name in "ab")
    >>> found = search(loss, params, {"int": (jp.quantize, [2, 4, 6])}, limits={"bytes": 5000})
    >>> {name: str(option) for name, option in found.settings.items()}, found.values["bytes"] <= 5000
    ({'a': 'int 4', 'b': 'int 6'}, True)
    """
    wanted = wish(minimize, limits, measures)
    if isinstance(methods, Sensitivity):
        if methods.function is not loss or methods.params is not params:
            raise ValueError("the table is of another loss or of other parameters: give those that it was made with")
        table = methods
    else:
        table = sensitivity(loss, params, methods)
    run = Search(table, wanted, budget)
    run.begin()
    run.improve()
    return run.found(report)
