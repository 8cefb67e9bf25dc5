"""Timing peers against each other on a machine that does other things too.

Peers take turns, A B C, C B A, A B C, ..., so that a slow moment hits all of them, and a ratio is the median over
rounds of the two times in one round. Compilation is timed apart, and a first call warms up.
"""

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

_ROUNDS = 3, 15  # fewest and most; slow cases take part in the first few only
_SHORTEST = 2e-3  # a measurement lasts at least so long: faster calls are repeated and averaged

jax.config.update("jax_enable_compilation_cache", False)  # a compile time is never that of a file that was read


@dataclass
class Case:
    """One peer: a call without arguments, and what is known about it before it runs."""

    name: str
    call: Callable[[], Any]
    compile_seconds: float | None = None
    temporaries_bytes: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Row:
    """What was measured of a case: seconds a call, one number a round, by the clock and of all its threads' work."""

    case: Case
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def spread(self) -> float:
        """From the first to the third quartile."""
        return float(np.subtract(*np.percentile(self.seconds, [75, 25])))


@dataclass(frozen=True)
class Ratio:
    """Median and quartiles, over the rounds that two cases share, of the one's time over the other's."""

    median: float
    low: float
    high: float

    def times(self, factor: float) -> "Ratio":
        """The ratio with ``factor`` calls of the slower one."""
        return Ratio(self.median * factor, self.low * factor, self.high * factor)


def compiled(name: str, function: Callable[..., Any], *args: Any, **facts: Any) -> Case:
    """A case of a jitted function: compiled ahead of time, with its temporaries as XLA's memory plan has them."""
    args = jax.device_put(args)
    start = time.perf_counter()
    program = jax.jit(lambda *args: function(*args)).lower(*args).compile()  # a new function: nothing is cached
    seconds = time.perf_counter() - start
    return Case(name, lambda: program(*args), seconds, program.memory_analysis().temp_size_in_bytes, facts)


def measure(*cases: Case, seconds: float = 6.0) -> dict[str, Row]:
    """Times the cases in turn, each for about so many seconds beyond its fewest rounds; rows by name."""
    calls, rounds = zip(*(_plan(case, seconds) for case in cases), strict=True)
    rows = [Row(case) for case in cases]
    gc.collect()
    for turn in range(max(rounds)):
        taking_part = [i for i in range(len(cases)) if turn < rounds[i]]
        for i in taking_part if turn % 2 == 0 else taking_part[::-1]:
            clock, work = _time(cases[i], calls[i])
            rows[i].seconds.append(clock)
            rows[i].cpu_seconds.append(work)
    return {case.name: row for case, row in zip(cases, rows, strict=True)}


def ratio(slow: Row, fast: Row) -> Ratio:
    """The time of ``slow`` over that of ``fast``."""
    shared = min(len(slow.seconds), len(fast.seconds))
    low, median, high = np.percentile(np.divide(slow.seconds[:shared], fast.seconds[:shared]), [25, 50, 75])
    return Ratio(float(median), float(low), float(high))


def _plan(case: Case, seconds: float) -> tuple[int, int]:
    """Warms a case up; calls in a measurement, and rounds."""
    _time(case, 1)
    once, _ = _time(case, 1)
    calls = math.ceil(_SHORTEST / once)
    return calls, int(np.clip(seconds / (once * calls), *_ROUNDS))


def _time(case: Case, calls: int) -> tuple[float, float]:
    """Seconds a call, by the clock and of work."""
    clock, work = time.perf_counter(), time.process_time()
    for _ in range(calls):
        jax.block_until_ready(case.call())
    return (time.perf_counter() - clock) / calls, (time.process_time() - work) / calls
