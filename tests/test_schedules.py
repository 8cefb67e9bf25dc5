"""Schedules against plain formulas, above all at their boundary steps."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles_training as oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprune import schedules


def values(schedule, counts):
    return np.array([float(schedule(int(count))) for count in counts], np.float32)


def around(*steps):
    return sorted({max(step + d, 0) for step in steps for d in (-1, 0, 1)} | {10**6})


@pytest.mark.parametrize("power", (1, 2.5, 3))
@pytest.mark.parametrize(("begin", "steps"), ((0, 100), (30, 70), (5, 1), (7, 0), (0, 0)))
def test_polynomial(power, begin, steps):
    schedule = schedules.polynomial(0.1, 0.8, power, steps, begin)
    counts = around(begin, begin + steps // 2, begin + steps)
    expected = [oracles.polynomial(count, 0.1, 0.8, power, steps, begin) for count in counts]
    np.testing.assert_allclose(values(schedule, counts), np.float32(expected), rtol=1e-6)
    assert schedule(begin + steps) == schedule(10**8) == np.float32(0.8), "the end is exact"
    if begin + steps:
        assert schedule(max(begin - 1, 0)) == np.float32(0.1), "the start is exact"


def test_the_cubic_of_gradual_pruning():
    schedule = schedules.cubic(0.0, 0.8, 100)
    np.testing.assert_allclose(values(schedule, [0, 50]), [0, 0.7], rtol=1e-6)
    assert values(schedule, [100, 1000]).tolist() == [np.float32(0.8)] * 2
    assert float(schedules.cubic(0.0, 0.8, 0)(0)) == np.float32(0.8), "begin == end is final at once"


@pytest.mark.parametrize(("begin", "steps"), ((0, 100), (20, 10), (3, 0)))
def test_cosine(begin, steps):
    schedule = schedules.cosine(0.3, 0.05, steps, begin)
    counts = around(begin, begin + steps // 2, begin + steps)
    expected = [oracles.cosine(count, 0.3, 0.05, steps, begin) for count in counts]
    np.testing.assert_allclose(values(schedule, counts), np.float32(expected), rtol=1e-5, atol=1e-7)
    assert schedule(begin + steps) == schedule(10**8) == np.float32(0.05)


def test_one_shot_and_constant():
    assert values(schedules.one_shot(0.7, 10), [0, 9, 10, 11]).tolist() == [0, 0, np.float32(0.7), np.float32(0.7)]
    assert values(schedules.one_shot(0.7, 0), [0]).tolist() == [np.float32(0.7)]
    assert values(schedules.constant(0.7), [0, 5, 10**9]).tolist() == [np.float32(0.7)] * 3


@given(st.lists(st.integers(0, 50), max_size=4), st.integers(0, 60))
def test_piecewise(edges, count):
    edges = sorted(edges)
    levels = [8.0, 6.0, 4.0, 3.0, 2.0][: len(edges) + 1]
    assert float(schedules.piecewise(levels, edges)(count)) == levels[sum(count >= edge for edge in edges)]


@pytest.mark.parametrize("end", (None, 17))
def test_alternating(end):
    schedule = schedules.alternating(0.9, 3, 2, transition_begin=4, transition_end=end)
    counts = range(25)
    expected = [oracles.alternating(count, 0.9, 3, 2, 4, end) for count in counts]
    assert values(schedule, counts).tolist() == np.float32(expected).tolist()


EVERY = {
    "constant": lambda value: schedules.constant(value),
    "one_shot": lambda value: schedules.one_shot(value, 3),
    "polynomial": lambda value: schedules.polynomial(0.1, value, 2, 5, 1),
    "cubic": lambda value: schedules.cubic(0.0, value, 5, 1),
    "cosine": lambda value: schedules.cosine(0.1, value, 5, 1),
    "piecewise": lambda value: schedules.piecewise(jax.tree.map(lambda v: [v / 2, v], value), [3]),
    "alternating": lambda value: schedules.alternating(value, 2, 2),
}


def test_every_schedule_is_tested():
    assert set(EVERY) == set(schedules.__all__)


@pytest.mark.parametrize("name", EVERY)
def test_traced_values_and_trees(name):
    """jit, vmap over values and counts, trees of values: float32, one trace, the same values."""
    levels, counts = jnp.array([0.2, 0.5, 0.8]), jnp.arange(9)
    run = chex.assert_max_traces(lambda value, count: EVERY[name](value)(count), n=2)
    chex.clear_trace_counter()
    jitted = jax.jit(run)
    loop = np.array([[float(jitted(level, count)) for count in counts] for level in levels])
    mapped = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(levels, counts)
    np.testing.assert_allclose(mapped, loop, rtol=1e-6, atol=1e-8)
    assert mapped.dtype == jnp.float32 and not mapped.weak_type
    tree = EVERY[name]({"a": 0.2, "b": {"c": 0.8}})(4)
    np.testing.assert_allclose([tree["a"], tree["b"]["c"]], [loop[0, 4], loop[2, 4]], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("make", "message"),
    (
        (lambda: schedules.constant(np.nan), "init_value must be finite, got nan"),
        (lambda: schedules.cubic(0.0, np.inf, 10), "end_value must be finite, got inf"),
        (lambda: schedules.cubic(0.0, 0.5, -1), "transition_steps must be an integer of 0 or more, got -1"),
        (lambda: schedules.cubic(0.0, 0.5, 2.5), "transition_steps must be an integer of 0 or more, got 2.5"),
        (lambda: schedules.cosine(0.0, 0.5, 2, -3), "transition_begin must be an integer of 0 or more, got -3"),
        (lambda: schedules.polynomial(0.0, 0.5, 0, 2), "power must be above 0, got 0"),
        (lambda: schedules.piecewise([1, 2], [3, 4]), "one more than boundaries, got 2 values and 2 boundaries"),
        (lambda: schedules.piecewise([1, 2, 3], [4, 3]), "boundaries must ascend, got .4, 3."),
        (lambda: schedules.alternating(0.5, 0, 2), "dense_steps must be an integer of 1 or more, got 0"),
        (lambda: schedules.polynomial({"a": 0.0}, {"b": 0.5}, 1, 2), "differ in structure"),
    ),
)
def test_errors_name_the_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()
