"""A function under a plan: what is left of it, what it costs, whether that is exact, and how it runs."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from jaxprune.base import Masks, Params
from jaxprune.masks import apply_masks
from jaxprune.program.jaxprs import visit
from jaxprune.program.narrowing import Narrowing, operations
from jaxprune.program.primitives import RULES
from jaxprune.structure import cutting, plans
from jaxprune.structure.plans import Units
from jaxprune.structure.tracing import Certificate, Origin


@dataclass(frozen=True, eq=False)
class Resolved:
    """A function under a plan, resolved once; ``graph.at`` gives it.

    Attributes:
      units: for each group that the plan names, which of its units stay.
      kept: for each ``(path, axis)`` of a parameter that loses entries, which of them stay.
    """

    units: Units
    kept: dict[tuple[str, int], np.ndarray]
    _origin: Origin

    def __repr__(self) -> str:
        left, all_ = sum(int(flags.sum()) for flags in self.units.values()), sum(f.size for f in self.units.values())
        return f"Resolved({left:,} of {all_:,} units of {len(self.units)} groups stay)"

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter that is left, by path."""
        return cutting.small_shapes(self._origin.params, self.kept)

    @cached_property
    def _removed(self) -> np.ndarray:
        return self._origin.traced.removed(self.kept)

    @cached_property
    def flops(self) -> int:
        """Floating-point operations of the smaller function, at the shapes that were traced.

        Matrix products and convolutions count, 2 for a multiplication and an addition, padding included; the steps of
        scans count each, the body of a while loop once, and of the branches of a condition the dearest.
        """
        return operations(self._origin.traced.frame, self._removed, RULES)

    @cached_property
    def certificate(self) -> Certificate:
        """Whether removal equals masking, as :meth:`certify` says of ``mask``."""
        return self.certify()

    def cut(self, params: Any) -> Any:
        """Cuts parameters, or anything of their shape: gradients, optimizer states, masks, batch statistics.

        Args:
          params: a tree like the one that was traced; or one that holds such trees, or the collections of one, as
            subtrees: the state of an optimizer. Leaves that broadcast, as masks of units do, are cut along the axes
            that they have.

        Returns:
          The tree, smaller. Dtypes and structure are kept.

        Raises:
          ValueError: no part of the tree is like the parameters, or a leaf has another shape, with its path.
        """
        return cutting.cut_tree(params, self._origin.params, self.kept)

    def mask(self, params: Params) -> Params:
        """The parameters in their full shapes, with 0 in every entry that is removed: what removal imitates."""
        return cutting.mask_tree(params, self._origin.params, self.kept)

    def apply(self, params: Params, *inputs: Any) -> Any:
        """The smaller function, ``apply(cut(params), *inputs)``, under ``jit``, ``grad`` and ``vmap`` as well.

        For inputs of other shapes the original function is traced again.

        Raises:
          ValueError: parameters of other shapes than cut ones have; inputs at whose shapes the plan is not possible.
        """
        leaves = cutting.check_small(params, self._origin.params, self.shapes)
        traced = self._origin.at(inputs)
        values, reader = [*leaves, *jax.tree.leaves(inputs)], Narrowing(traced.removed(self.kept), RULES)
        small = visit(traced.frame.program, values, reader, guide=traced.frame)
        return jax.tree.unflatten(traced.out_tree, small.results)

    def certify(self, masked: Masks | None = None) -> Certificate:
        """Says, without running anything, whether removal equals masking, and where not.

        The program is followed with ranges of numbers instead of numbers. At every sum, product and extreme over an
        axis that loses entries these must contribute nothing: exact means that ``apply`` of the cut parameters gives
        the outputs that the function has for the masked ones, up to rounding, for all parameters and inputs. The other
        way round it is careful: a fault may also mean that nothing was found that rules a difference out.

        It is assumed that parameters, inputs, and what the smaller function computes from them are finite, unless the
        program itself writes infinities; that nothing overflows; and that positions lie within what they index. Outputs
        of ``free_output`` are not compared.

        Args:
          masked: what is known to be 0. ``None``: every entry that is removed, as in ``mask``. Else masks in the
            structure of the parameters, True keeps: only what they remove is 0, everything else may be any finite
            number, removed or not.

        Returns:
          ``Certificate(exact, faults)``, where a fault is ``(operation, line, reason)``. ``print`` it.

        >>> import jax
        >>> import jax.numpy as jnp
        >>> params = {"first": jnp.ones((3, 8)), "second": jnp.ones((8, 2))}
        >>> from jaxprune.structure import trace
        >>> graph = trace(lambda p, x: jax.nn.gelu(x @ p["first"]) @ p["second"], params, jnp.ones((4, 3)))
        >>> print(graph.at({"first:1": [0, 2, 5]}).certify())
        exact: what is removed contributes nothing
        """
        flags = dict.fromkeys(self.shapes) if masked is None else plans.mask_flags(masked, self._origin.params)
        return self._origin.traced.certify(self._removed, list(flags.values()))

    def check(self, params: Params, *inputs: Any, masked: Masks | None = None) -> float:
        """Runs both functions: the numbers beside the certificate.

        Args:
          params: uncut parameters.
          *inputs: as the function takes them, in the shapes that were traced, or others.
          masked: masks to apply to the parameters first, True keeps. ``None``: all that is removed is 0.

        Returns:
          The largest absolute difference between the outputs of the function of masked parameters and of the smaller
          function of cut ones; infinite where only one of them is a number. Outputs of ``free_output`` do not count.
        """
        full = self.mask(params) if masked is None else apply_masks(params, masked)
        outputs, small = self._origin.function(full, *inputs), self.apply(self.cut(full), *inputs)
        return self._origin.traced.difference(outputs, small)
