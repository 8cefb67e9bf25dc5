"""What each group of leaves loses, alone, by each method at each setting, and how many bytes it then takes."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxprune import host
from jaxprune.base import Params, Where
from jaxprune.sweeps import options as found
from jaxprune.sweeps.evidence import Choice, Evidence, How

_ROWS, _COLUMNS = 24, 9  # of a table that fits a screen
_LONGEST = 36  # characters of a group's name


class Sensitivity:
    """The losses and bytes of each group at each option, alone: all other leaves as they are. ``print`` it.

    Attributes:
      groups: the names of the groups, [G]; the leaves of a group, between commas, share one decision.
      options: [K], each with ``method`` and ``setting``; the first is a leaf as it is.
      loss: float64 [G, K], of the whole parameters with one group changed; infinite where a method changes nothing.
      nbytes: float64 [G, K], of the group in a file, without its header; likewise.
      base: the loss of the parameters as they are.
    """

    def __init__(self, loss: Callable[[Params], Any], params: Params, options: found.Options, how: How) -> None:
        self.function, self.params, self.known, self.how = loss, params, options, how
        self.evidence = Evidence(loss, options, how)
        self.groups, self.options, self.nbytes = options.groups, options.options, options.nbytes
        singles = [(g, k) for g, k in np.argwhere(np.isfinite(self.nbytes)).tolist() if k]
        self.loss = np.where(np.isfinite(self.nbytes), 0.0, np.inf)
        self.base = float(self.evidence([self.alone()])[0])
        self.loss[:, 0] = self.base
        for (g, k), value in zip(singles, self.evidence([self.alone(*one) for one in singles]), strict=True):
            self.loss[g, k] = value

    def alone(self, group: int = 0, option: int = 0) -> Choice:
        """The choice of one option for one group."""
        return tuple(option if i == group else 0 for i in range(len(self.known.groups)))

    def plot(self, ax: Any = None) -> Any:
        """Draws what each option of each group adds to the loss, as a heat map (needs matplotlib).

        Args:
          ax: matplotlib axes to draw on; None for a new figure.

        Returns:
          The axes; ``.figure`` is the figure.
        """
        added = np.where(np.isfinite(self.loss), self.loss - self.base, np.nan)[:, 1:]
        if ax is None:
            size = (2.5 + 0.7 * added.shape[1], 1.2 + 0.3 * added.shape[0])
            ax = host.library("matplotlib.pyplot", "jaxprune[plots]").subplots(figsize=size, layout="constrained")[1]
        largest = np.nanmax(np.abs(added), initial=0)
        scale = host.library("matplotlib.colors", "jaxprune[plots]").SymLogNorm(1e-3 * largest or 1.0)
        image = ax.imshow(added, aspect="auto", norm=scale, cmap="viridis")
        ax.set_xticks(range(added.shape[1]), map(str, self.options[1:]), rotation=45, ha="right", fontsize=8)
        ax.set_yticks(range(added.shape[0]), [short(name) for name in self.groups], fontsize=8)
        ax.figure.colorbar(image, ax=ax, label="added to the loss")
        return ax

    def __repr__(self) -> str:
        shown = min(len(self.options), _COLUMNS)
        order = np.argsort(-self.nbytes[:, 0], kind="stable")[:_ROWS]
        rows = []
        for g in sorted(order.tolist()):
            added = [_added(value - self.base) for value in self.loss[g, 1:shown]]
            rows.append([short(self.groups[g]), f"{self.nbytes[g, 0]:,.0f}", *added])
        drawn = host.table(["group", "bytes", *map(str, self.options[1:shown])], rows)
        more = [f"{len(self.groups) - len(rows)} smaller groups"] if len(rows) < len(self.groups) else []
        more += [f"{len(self.options) - shown} options"] if shown < len(self.options) else []
        left_out = f"; not shown: {', '.join(more)}" if more else ""
        return f"{drawn}\n\nadded to the loss, {self.base:.4g} of all as it is, by each alone{left_out}"


def _added(value: float) -> str:
    return f"{value:+.2g}" if np.isfinite(value) else "-"


def short(name: str) -> str:
    """The end of a long name, which tells it from others."""
    return "…" + name[1 - _LONGEST :] if len(name) > _LONGEST else name or "(the array)"


def sensitivity(
    loss: Callable[[Params], Any],
    params: Params,
    methods: found.Methods,
    *,
    by: found.By = None,
    where: Where = None,
    mesh: Mesh | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Sensitivity:
    """Measures what each leaf loses, alone, by every method at every setting, and the bytes that it then takes.

    One compiled program evaluates all of it, whatever the methods and settings are: it holds each leaf in all its
    forms, so memory takes as many times the parameters as there are settings, and one.

    Args:
      loss: function of the parameters that returns one number, lower is better. Traced, so it must be jittable; smooth
        is best, a divergence from the outputs before or a cross-entropy, as accuracy hardly moves for one leaf. Called
        with dense arrays. The data that it closes over are not compiled in.
      params: any pytree of arrays.
      methods: by name, a function of (params, setting), and the settings to try: ``{"int": (jp.quantize, [2, 4, 8])}``.
        The function is called with all parameters, so that it knows paths and layouts, and leaves alone may stay as
        they are; shapes and dtypes stay, as dense arrays or stored ones. ``[None]`` for a method without settings.
      by: patterns, or lists of patterns, over the paths of leaves; leaves that match one entry share one decision:
        ``["*/experts_*/kernel", ["q/kernel", "k/kernel"]]``. Other leaves decide alone.
      where: which leaves take part; see :func:`jaxprune.tree.select`.
      mesh: devices to spread evaluations over, along its first axis; see :func:`jaxprune.sweep`.
      progress: draw a bar on stderr (needs ``rich``).
      checkpoint: file that keeps all that was evaluated; a later call of the same loss, data, parameters and methods
        evaluates only what is not there, and a :func:`jaxprune.search` with this table adds to it.

    Returns:
      A table, ``Sensitivity``: ``loss`` and ``nbytes``, float64 [groups, options]; ``print`` it, or ``plot()`` it.

    Raises:
      ValueError: a loss that is not one finite number, or another one the second time; no methods or settings; a
        pattern that matches nothing; what a method returns has other paths, shapes or dtypes.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {"a": jnp.array([[1.0, 0.4]]), "b": jnp.array([[0.1, 0.02]])}
    >>> loss = lambda p: jnp.square(p["a"] - params["a"]).sum() + jnp.square(p["b"] - params["b"]).sum()
    >>> table = sensitivity(loss, params, {"int": (jp.quantize, [2, 3])})
    >>> table.loss.round(4).tolist()
    [[0.0, 0.16, 0.0044], [0.0, 0.0004, 0.0002]]
    """
    return Sensitivity(loss, params, found.find(params, methods, by, where), How(mesh, progress, checkpoint))
