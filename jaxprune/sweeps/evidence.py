"""The loss of choices, each evaluated once and kept, in a file too; all in one compiled program.

A choice is the number of an option for each group. The program takes the dense arrays of every option, so that it is
the same for all choices and methods; and what the loss closes over, its data, as arguments: as constants, they would
be compiled in, and parts of the network evaluated on them while it is compiled.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxprune import host, tree
from jaxprune.base import Params
from jaxprune.sweeps import checkpointing
from jaxprune.sweeps.choosing import Choice
from jaxprune.sweeps.options import Options
from jaxprune.sweeps.sweeping import sweep

_AT_ONCE = 16  # choices between two saves
_SAME, _ZERO = 1e-4, 1e-7  # how near one loss is to itself, evaluated again
_FIX = "fix its data and its seeds"


class How(NamedTuple):
    """How choices are evaluated: the devices, a bar on stderr, and the file that keeps results."""

    mesh: Mesh | None = None
    progress: bool = False
    checkpoint: str | os.PathLike[str] | None = None


class Evidence:
    """What was evaluated, by choice; loaded from a file and saved to it.

    Attributes:
      losses: infinite where the loss is no number.
      slopes: what each option of each group would add to the loss of a choice, to first order, [groups, options].
      measured: values by the name of a measure and choice.
    """

    def __init__(self, loss: Callable[[Params], Any], options: Options, how: How) -> None:
        self.losses: dict[Choice, float] = {}
        self.slopes: dict[Choice, np.ndarray] = {}
        self.measured: dict[tuple[str, Choice], float] = {}
        self._how, self._options = how, options
        self._program, rest, text = _traced(loss, options.flat)
        self._arrays = (options.stacks(), *rest)
        self._mark = checkpointing.digest((self._arrays, np.frombuffer(text.encode(), np.uint8)))
        self._load()
        self._check_base((0,) * len(options.groups))

    def __call__(self, choices: Iterable[Choice]) -> np.ndarray:
        """The loss of each choice, float64."""
        choices = list(choices)
        new = [choice for choice in dict.fromkeys(choices) if choice not in self.losses]
        with host.progress_bar(self._how.progress and bool(new), "evaluations", 0, len(new)) as show:
            for start in range(0, len(new), _AT_ONCE):
                part = new[start : start + _AT_ONCE]
                found = self._evaluate(part)
                self.losses.update(zip(part, np.where(np.isnan(found), np.inf, found).tolist(), strict=True))
                self.save()
                show(start + len(part))
        return np.array([self.losses[choice] for choice in choices])

    def slope(self, choice: Choice) -> np.ndarray | None:
        """What each option of each group would add to the loss, to first order; None if the loss has no derivative."""
        if choice not in self.slopes:
            if self._program.slopes is None:
                return None
            rows = np.array([self._options.rows(choice)], np.int32)
            of_leaves = sweep(self._program.slopes, rows, *self._arrays, mesh=self._how.mesh)
            found = np.zeros(self._options.nbytes.shape)
            for leaf, own in zip(self._options.leaves, of_leaves, strict=True):
                found[leaf.group] += [own[0, row] for row in self._options.rows_of(leaf)]
            self.slopes[choice] = np.where(np.isfinite(found), found, 0.0)
            self.save()
        return self.slopes[choice]

    def measure(self, name: str, choice: Choice, value: Callable[[], float]) -> float:
        """A measure of a choice, asked for once."""
        if (name, choice) not in self.measured:
            self.measured[name, choice] = value()
            self.save()
        return self.measured[name, choice]

    def save(self) -> None:
        """Writes the file, if there is one."""
        if self._how.checkpoint is None or jax.process_index() > 0:
            return
        losses = [[list(choice), loss] for choice, loss in self.losses.items()]
        slopes = [[list(choice), slope.tolist()] for choice, slope in self.slopes.items()]
        measured = [[name, list(choice), value] for (name, choice), value in self.measured.items()]
        kept = {"format": 1, "of": self._mark, "losses": losses, "slopes": slopes, "measured": measured}
        with host.written_whole(self._how.checkpoint) as beside:
            beside.write_text(json.dumps(kept))

    def _load(self) -> None:
        path = self._how.checkpoint
        if path is None or not os.path.exists(path):
            return
        try:
            with open(path) as file:
                found = json.load(file)
            mark = found["of"]
            losses = {tuple(choice): float(loss) for choice, loss in found["losses"]}
            slopes = {tuple(choice): np.array(slope, float) for choice, slope in found["slopes"]}
            measured = {(name, tuple(choice)): float(value) for name, choice, value in found["measured"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no checkpoint of a search, or is damaged: delete it to start over") from error
        if mark != self._mark:
            raise ValueError(f"checkpoint {path} is of another loss, other data, parameters or methods: give another")
        self.losses, self.slopes, self.measured = losses, slopes, measured

    def _evaluate(self, choices: Sequence[Choice]) -> np.ndarray:
        # Accelerators take several at once: always as many, so that they compile once.
        alone = self._how.mesh is None and jax.default_backend() == "cpu"
        padded = [*choices, *([] if alone else [choices[-1]] * (_AT_ONCE - len(choices)))]
        rows = np.array([self._options.rows(choice) for choice in padded], np.int32)
        found = sweep(self._program.loss, rows, *self._arrays, mesh=self._how.mesh)
        return np.asarray(found, np.float64)[: len(choices)]

    def _check_base(self, base: Choice) -> None:
        """Evaluates the parameters as they are, twice."""
        if base in self.losses:
            return
        first, second = (float(self._evaluate([base])[0]) for _ in range(2))
        if not np.isfinite(first):
            raise ValueError(f"loss is {first} of the parameters as they are: it must be a finite number")
        if not abs(first - second) <= _SAME * abs(first) + _ZERO:
            raise ValueError(f"loss is {first:.6g}, and of the same parameters {second:.6g}: {_FIX}")
        self.losses[base] = first
        self.save()


class _Program(NamedTuple):
    """Functions of rows (where the array of each leaf that takes part is in its stack), the stacks, and two more.

    Attributes:
      loss: the loss, float32.
      slopes: for each leaf what each of its arrays would add to it, to first order; None if there is no derivative.
    """

    loss: Callable[..., Any]
    slopes: Callable[..., Any] | None


def _traced(loss: Callable[[Params], Any], flat: tree.Selection) -> tuple[_Program, tuple[Any, Any], str]:
    """The loss as such a program; the two more, other leaves and what the loss closes over; its text."""
    arrays = [i for i, leaf in enumerate(flat.leaves) if tree.is_array(leaf)]
    every, inner = flat._replace(chosen=tuple(arrays)), getattr(loss, "__wrapped__", loss)  # jit keeps its data inside
    shapes = [jax.typeof(leaf) for leaf in every.taken]
    try:
        closed, again = (jax.make_jaxpr(lambda *given: inner(every.replace(given)))(*shapes) for _ in range(2))
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        said = "loss must be traceable: it takes a Python number or a NumPy array of a traced one"
        raise TypeError(
            f"{said}. Compute it with jax.numpy, or ask for it by measures=, which may be anything"
        ) from error
    outs = closed.out_avals
    if len(outs) != 1 or outs[0].shape != () or not jnp.issubdtype(outs[0].dtype, jnp.floating):
        shown = ", ".join(map(str, outs)) or "nothing"
        raise ValueError(f"loss must return one floating-point number, got {shown}: take the mean over examples")
    text, other = (re.sub(r" at 0x[0-9a-f]+", "", str(program.jaxpr)) for program in (closed, again))
    if text != other or checkpointing.digest(closed.consts) != checkpointing.digest(again.consts):
        raise ValueError(f"loss is another function each time it is traced: {_FIX}")
    chosen, rest = list(flat.chosen), [i for i in arrays if i not in set(flat.chosen)]

    def of_taken(taken: Sequence[Any], others: Any, closed_over: Any) -> Any:
        given = dict(zip([*chosen, *rest], [*taken, *others], strict=True))
        return jex.jaxpr_as_fun(jex.ClosedJaxpr(closed.jaxpr, closed_over))(*(given[i] for i in arrays))[0]

    def taken_of(rows: Any, stacks: Any) -> list[Any]:
        return [stack[rows[i]] for i, stack in enumerate(stacks)]

    def run(rows: Any, stacks: Any, others: Any, closed_over: Any) -> Any:
        return of_taken(taken_of(rows, stacks), others, closed_over)

    def slopes(rows: Any, stacks: Any, others: Any, closed_over: Any) -> Any:
        taken = taken_of(rows, stacks)
        gradients = jax.grad(of_taken)(taken, others, closed_over)
        return [
            jnp.tensordot((stack - own).astype(jnp.float32), gradient.astype(jnp.float32), gradient.ndim)
            for stack, own, gradient in zip(stacks, taken, gradients, strict=True)
        ]

    others = [flat.leaves[i] for i in rest]
    smooth = _has_derivative(of_taken, flat.taken, others, closed.consts)
    return _Program(run, slopes if smooth else None), (others, closed.consts), text


def _has_derivative(function: Callable[..., Any], *args: Any) -> bool:
    """Whether a gradient can be traced: not through callbacks, nor back through loops of unknown length."""
    try:
        jax.eval_shape(jax.grad(function), *args)
    except Exception:  # whatever the rule of an operation raises
        return False
    return True
