"""Collects statistics of data from any JAX function."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxprune import tree
from jaxprune.base import Array, Params, Where
from jaxprune.calibration import statistics
from jaxprune.calibration.following import look_ahead
from jaxprune.calibration.reading import Found, Reading, Wanted
from jaxprune.calibration.statistics import Gradients, Statistics
from jaxprune.calibration.views import Use, View
from jaxprune.program import jaxprs
from jaxprune.program.jaxprs import visit


def collect(
    apply: Callable[..., Any],
    params: Params,
    *inputs: Any,
    stats: Statistics | None = None,
    want: Sequence[Literal["gram", "histogram"]] = ("gram",),
    key: Array | None = None,
    rows: Array | None = None,
    where: Where = None,
) -> Statistics:
    """Statistics of what each product multiplies a parameter with, when a function runs on data.

    Found in the function's traced program, so that no module needs to be touched: products, convolutions and lookups
    of rows, of parameters as they are or transposed, reshaped, cast or sliced; in scans (a leaf that holds a layer a
    step has statistics a layer), loops, conditions and rematerialization. Rows of data with NaN or infinities are
    counted and left out.

    With a ``key``, also of the gradients of the products' outputs: of ``sum(v * outputs)`` for random normal v,
    which in the mean gives the Gauss-Newton metric of the outputs, E[J'v v'J] = J'J. No labels are needed.

    Args:
      apply: ``(params, *inputs) -> outputs``. Compiled once for each function object and shapes of the inputs.
      params: any pytree.
      inputs: a batch of data. Sharded batches are summed over devices and processes.
      stats: what earlier batches gave, to add up; see :func:`merge`.
      want: static; besides sums, squares and maxima: "gram", the sums of x x' ([K, K] for K inputs of a product; all
        else takes O(K)); "histogram", of magnitudes, in 2048 bins of an eighth of an octave.
      key: of the random cotangents, a new one for each batch; ``None`` leaves gradients out.
      rows: bool, which rows of the data count, such as [batch, tokens] that are no padding: the first axes of inputs of
        these lengths, followed through the program. What has no such axis counts in full; windows with one such row do.
      where: whose statistics; see :func:`jaxprune.tree.select`. A large model may go in several passes.

    Returns:
      :class:`Statistics`, which name the leaves that no product was found for, and why.

    Raises:
      ValueError: no product uses any chosen leaf; something unknown is wanted; ``rows`` cannot be followed to a
        product, whose line is named.

    >>> stats = collect(lambda w, x: x @ w, jnp.ones((2, 3)), jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    >>> stats.inputs[""].gram.tolist()
    [[[10.0, 14.0], [14.0, 20.0]]]
    """
    if isinstance(want, str) or not {*want} <= {"gram", "histogram"}:
        raise ValueError(f"want is {want!r}; give a sequence of 'gram' and 'histogram'")
    selection = tree.select(params, where)
    chosen = frozenset(selection.chosen)
    names = tuple(selection.paths)
    found = _collect(
        apply, params, inputs, (key, rows), names, chosen, Wanted(*(one in want for one in Wanted._fields))
    )
    if not found.uses:
        raise ValueError(f"no product uses a chosen parameter: {dict(found.without)}")
    return found if stats is None else statistics.merged(stats, found, _add)


#: In the place of the second record, so that there is no third.
_add = jax.jit(statistics.add, donate_argnums=1)


@partial(jax.jit, static_argnums=(0, 4, 5, 6))
def _collect(
    apply: Callable[..., Any],
    params: Params,
    inputs: Any,
    extras: tuple[Array | None, Array | None],
    names: tuple[str, ...],
    chosen: frozenset[int],
    wanted: Wanted,
) -> Statistics:
    (key, rows), (program, _) = extras, jaxprs.trace(apply, params, *inputs)
    leaves, data = jax.tree.leaves((params, inputs)), jax.tree.leaves(inputs)
    views = [View.of(names[i], leaf) if i in chosen else None for i, leaf in enumerate(leaves)]
    guide, ahead = look_ahead(program, views, () if rows is None else rows.shape, len(leaves) - len(data))
    uses = {one.name: one.use for one in ahead.noted.values()}

    def read(taps: Found) -> tuple[list[Array], Found]:
        reading = Reading(wanted, ahead.noted, taps, rows)
        outs = visit(program, leaves, reading, guide=guide).results
        return [out for out in outs if jaxprs.is_inexact(out)], reading.found

    if key is None:
        (_, found), back = read({}), {}
    else:
        taps = {name: _zeros(use, wanted.gram) for name, use in uses.items()}
        outs, pullback, found = jax.vjp(read, taps, has_aux=True)
        keys = jax.random.split(key, max(len(outs), 1))
        (back,) = pullback([jax.random.normal(one, out.shape, out.dtype) for one, out in zip(keys, outs, strict=False)])
    used = {use.path for use in uses.values()}
    without = {
        names[i]: f"its view ends in {ahead.ended[names[i]]}" if names[i] in ahead.ended else "no operation uses it"
        for i in sorted(chosen)
        if names[i] not in used
    }
    return Statistics(found, back, tuple(uses.items()), tuple(without.items()))


def _zeros(use: Use, gram: bool) -> Gradients:
    many, inputs, outputs = use.shape
    size = outputs if use.lookup else inputs
    weighted = jnp.zeros((many, size, size)) if gram else None
    return Gradients(jnp.zeros((many, outputs)), weighted, jnp.zeros((many, inputs)) if use.lookup else None)
