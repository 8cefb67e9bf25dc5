"""Search: combinations against all there are, files against what is promised, one program, and what goes wrong."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.sweeps import choosing
from jaxprune.sweeps.evidence import Evidence

RNG = np.random.default_rng(0)
CHANNELS = jp.QuantSpec(axis=-1)
INT = {"int": (lambda params, bits: jp.quantize(params, bits, spec=CHANNELS), [2, 3, 4, 8])}
WIDTH = 24

_compiles = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration_secs, **_: _compiles.append(event) if event.endswith("backend_compile_duration") else None
)


def network(layers=3):
    draw = np.random.default_rng(1)
    params = {
        f"layer_{i}": {
            "kernel": jnp.asarray(draw.normal(size=(WIDTH, WIDTH)) / 4, jnp.float32),
            "bias": jnp.asarray(draw.normal(size=WIDTH), jnp.float32),
        }
        for i in range(layers)
    }
    return params, jnp.asarray(draw.normal(size=(32, WIDTH)), jnp.float32)


def apply(params, x):
    for layer in params.values():
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return x


PARAMS, INPUTS = network()
WANTED = apply(PARAMS, INPUTS)


def loss(params):
    return jnp.square(apply(params, INPUTS) - WANTED).mean()


@pytest.fixture(scope="module")
def table():
    return jp.sensitivity(loss, PARAMS, INT)


def combinations(table):
    """Every combination: its dense loss and its file, by the plain functions."""
    for choice in itertools.product(range(len(table.options)), repeat=len(table.groups)):
        params = {name: dict(layer) for name, layer in PARAMS.items()}
        for name, k in zip(PARAMS, choice, strict=True):
            if k:
                params[name]["kernel"] = jp.quantize(PARAMS[name]["kernel"], table.options[k].setting, spec=CHANNELS)
        yield choice, float(loss(jp.dequantize(params))), jp.compress(params).nbytes


@pytest.fixture(scope="module")
def every(table):
    return list(combinations(table))


# ---------------------------------------------------------------------------------------------------------------------
# Tables: one option for each group


def brute_force(values, costs, limits):
    found = []
    for choice in itertools.product(*(range(row.size) for row in values)):
        pick = [table[range(len(choice)), choice].sum() for table in (values, *costs)]
        if all(used <= limit for used, limit in zip(pick[1:], limits, strict=True)) and np.isfinite(pick).all():
            found.append((pick[0], choice))
    return min(found) if found else None


@pytest.mark.parametrize("limits", [[6.0], [4.5], [3.1], [9.0, 8.0], []])
def test_the_best_of_a_table_is_that_of_all_combinations(limits):
    for _ in range(20):
        values, *costs = RNG.uniform(0, 3, (1 + len(limits), 3, 3))
        values[RNG.integers(3), RNG.integers(1, 3)] = np.inf  # no such option
        wanted = brute_force(values, costs, limits)
        (found,) = choosing.few(values, costs, limits)
        if wanted and len(limits) < 2:
            assert choosing.total(values, found) == pytest.approx(wanted[0])
        if wanted:
            assert all(choosing.total(cost, found) <= limit + 1e-6 for cost, limit in zip(costs, limits, strict=True))


def test_a_front_is_all_that_no_combination_beats():
    values, costs = RNG.integers(0, 9, (2, 3, 3)).astype(float)
    found = choosing.front(values, costs)
    every = [(costs[range(3), c].sum(), values[range(3), c].sum()) for c in itertools.product(range(3), repeat=3)]
    unbeaten = {a for a in every if not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in every)}
    assert list(zip(found.costs, found.values, strict=True)) == sorted(unbeaten)
    for choice, cost, value in zip(found.choices, found.costs, found.values, strict=True):
        assert (choosing.total(costs, choice), choosing.total(values, choice)) == (cost, value)


def test_fronts_of_many_groups_stay_short_and_good():
    values = np.exp(-RNG.uniform(0, 3, (60, 1)) * np.arange(7)) + RNG.uniform(0, 0.01, (60, 7))
    costs = np.arange(1, 8) * RNG.uniform(1, 100, (60, 1))
    limit = 0.4 * costs.max(axis=1).sum()
    (found,) = choosing.few(values, [costs], [limit])
    assert choosing.total(costs, found) <= limit
    # Above what Lagrange multipliers say is the least, by little: those make a bound from below.
    bound = max((values + m * costs).min(axis=1).sum() - m * limit for m in np.geomspace(1e-6, 1, 200))
    assert choosing.total(values, found) <= bound * 1.002


def test_what_breaks_limits_least_is_better_than_nothing():
    values, costs = np.array([[1.0, 0.0]]), np.array([[5.0, 9.0]])
    assert choosing.few(values, [costs], [3.0]) == [(0,)]
    assert choosing.few(values, [costs], [5.0], count=5, known={(0,)}) == [(1,)]


# ---------------------------------------------------------------------------------------------------------------------
# Single options


def test_a_table_holds_the_loss_and_the_bytes_of_each_option_alone(table, every):
    assert table.groups == [f"layer_{i}/kernel" for i in range(3)]
    assert [str(option) for option in table.options] == ["as it is", "int 2", "int 3", "int 4", "int 8"]
    known = {choice: (value, nbytes) for choice, value, nbytes in every}
    base = known[0, 0, 0]
    for g, k in itertools.product(range(3), range(5)):
        value, nbytes = known[table.alone(g, k)]
        assert table.loss[g, k] == pytest.approx(value, rel=1e-4, abs=1e-9)
        assert nbytes - base[1] == pytest.approx(table.nbytes[g, k] - table.nbytes[g, 0], abs=160)  # of the header


def test_all_methods_and_combinations_take_one_program_and_its_gradient():
    methods = INT | {"zeros": (lambda params, s: jp.prune(params, s).params, [0.5, 0.9])}
    fresh = lambda params: loss(params) * 1.5  # noqa: E731
    jp.sensitivity(lambda params: loss(params) * 2.5, PARAMS, methods)  # compiles what the methods are made of
    _compiles.clear()
    table = jp.sensitivity(fresh, PARAMS, methods)
    assert len(_compiles) == 1
    jp.search(fresh, PARAMS, table, limits={"bytes": 2500})
    assert len(_compiles) <= 3  # its gradient, and what measures nothing else


def test_data_are_no_constants_of_the_program():
    big = jnp.asarray(RNG.normal(size=(500, WIDTH)), jnp.float32)
    evidence = jp.sensitivity(jax.jit(lambda p: jnp.square(apply(p, big)).mean()), PARAMS, INT).evidence
    _, _, closed_over = evidence._arrays
    assert any(leaf.shape == big.shape for leaf in closed_over)


def test_leaves_that_decide_together_have_one_row():
    table = jp.sensitivity(loss, PARAMS, INT, by=["layer_[01]/*"])
    assert table.groups == ["layer_0/kernel, layer_1/kernel", "layer_2/kernel"]
    found = jp.search(loss, PARAMS, table, limits={"bytes": 1800})
    codes = [found.params[name]["kernel"] for name in PARAMS]
    assert codes[0].bits == codes[1].bits == found.settings[table.groups[0]].setting
    single = {g: jp.sensitivity(loss, PARAMS, INT, where=g).nbytes[0] for g in ("layer_0/*", "layer_1/*")}
    np.testing.assert_array_equal(table.nbytes[0], single["layer_0/*"] + single["layer_1/*"])
    with pytest.raises(ValueError, match="is in two groups"):
        jp.sensitivity(loss, PARAMS, INT, by=["layer_0/*", "*/kernel"])
    with pytest.raises(ValueError, match=r"by: 'none\*' matches none of"):
        jp.sensitivity(loss, PARAMS, INT, by="none*")


def test_what_a_method_leaves_alone_is_no_option():
    def first(params, bits):
        return jp.quantize(params, bits, where="layer_0/*")

    table = jp.sensitivity(loss, PARAMS, INT | {"first": (first, [2, 5])})
    assert np.isfinite(table.loss[0]).all() and np.isinf(table.loss[1:, -2:]).all()
    assert "-" in str(table).splitlines()[3].split()[-1]
    found = jp.search(loss, PARAMS, table, limits={"bytes": 2200})
    assert all(option.method != "first" for name, option in found.settings.items() if name != "layer_0/kernel")


def test_a_bare_array_and_a_dtype_of_its_own():
    array = jnp.asarray(RNG.normal(size=(16, 16)), jnp.bfloat16)
    found = jp.search(
        lambda w: jnp.square((w - array).astype(jnp.float32)).mean(),
        array,
        {"int": (jp.quantize, [2, 4])},
        limits={"bytes": 450},
    )
    assert jp.dequantize(found.params).dtype == jnp.bfloat16 and found.values["bytes"] <= 450


# ---------------------------------------------------------------------------------------------------------------------
# Combinations


@pytest.mark.parametrize("limit", [1450, 1700, 2000])
def test_the_least_loss_within_bytes_is_near_that_of_all_combinations(table, every, limit):
    found = jp.search(loss, PARAMS, table, limits={"bytes": limit})
    best = min(value for _, value, nbytes in every if nbytes <= limit)
    assert found.values["bytes"] <= limit and found.values["loss"] <= 1.05 * best
    assert found.values["bytes"] == found.compressed.nbytes == jp.compress(found.params).nbytes
    assert found.compressed.to_bytes() == jp.compress(found.params).to_bytes()
    assert found.values["loss"] == pytest.approx(float(loss(jp.dequantize(found.params))), rel=1e-4)
    assert found.evaluations <= 12 + 2 + 20


@pytest.mark.parametrize("limit", [0.001, 0.01, 0.05])
def test_the_smallest_file_within_a_loss_is_near_that_of_all_combinations(table, every, limit):
    found = jp.search(loss, PARAMS, table, minimize="bytes", limits={"loss": limit})
    best = min(nbytes for _, value, nbytes in every if value <= limit)
    assert found.values["loss"] <= limit and found.values["bytes"] <= 1.02 * best


@pytest.mark.parametrize("option", [1, 2, 3])
def test_it_is_no_worse_than_one_setting_for_all(table, every, option):
    """Whose file is the limit, to the byte."""
    _, uniform, nbytes = next(one for one in every if one[0] == (option,) * 3)
    found = jp.search(loss, PARAMS, table, limits={"bytes": nbytes})
    assert found.values["bytes"] <= nbytes and found.values["loss"] <= uniform * (1 + 1e-6)


def test_measures_of_either_direction(table, every):
    calls = []

    def fit(params):  # follows the loss, in steps as accuracy does
        calls.append(1)
        return round(1 - float(loss(params)), 2)

    def work(params):
        return sum(int((np.asarray(layer["kernel"]) != 0).sum()) for layer in params.values())

    measures = {"fit": (fit, "max"), "work": (work, "min")}
    found = jp.search(loss, PARAMS, table, minimize="bytes", limits={"fit": 0.95}, measures=measures)
    assert found.values["fit"] >= 0.95 and len(calls) <= 20
    assert found.values["bytes"] <= 1.02 * min(nbytes for _, value, nbytes in every if round(1 - value, 2) >= 0.95)
    methods = {"zeros": (lambda params, s: jp.prune(params, s).params, [0.25, 0.5, 0.75])} | INT
    limits = {"bytes": 2500, "work": 1000}
    found = jp.search(loss, PARAMS, methods, limits=limits, measures=measures)
    assert found.values["bytes"] <= 2500 and found.values["work"] <= 1000
    assert {option.method for option in found.settings.values()} & {"zeros"}
    least = jp.search(loss, PARAMS, methods, minimize="work", limits={"loss": 0.02}, measures=measures)
    assert least.values["loss"] <= 0.02 and least.values["work"] < 3 * WIDTH**2


def test_a_loss_without_derivative_is_searched_too(every):
    def called_back(params):
        return jax.pure_callback(lambda value: value, jax.ShapeDtypeStruct((), jnp.float32), loss(params))

    table = jp.sensitivity(called_back, PARAMS, INT)
    assert table.evidence.slope(table.alone()) is None
    found = jp.search(called_back, PARAMS, table, limits={"bytes": 1700})
    assert found.values["loss"] <= 1.2 * min(value for _, value, nbytes in every if nbytes <= 1700)


def test_slopes_are_the_derivative_along_what_each_option_changes(table):
    center = (1, 2, 0)
    slope = table.evidence.slope(center)
    dense = jp.dequantize(table.known.params(center))
    gradient = jax.grad(loss)(dense)
    for g, name in enumerate(PARAMS):
        for k in range(len(table.options)):
            other = jp.dequantize(table.known.params((*center[:g], k, *center[g + 1 :])))[name]["kernel"]
            wanted = np.vdot(np.asarray(gradient[name]["kernel"], float), np.asarray(other - dense[name]["kernel"]))
            assert slope[g, k] == pytest.approx(wanted, rel=1e-3, abs=1e-6)


def test_ties_go_to_the_smaller_file():
    def counts_one(params):
        return jnp.square(params["layer_0"]["kernel"] - PARAMS["layer_0"]["kernel"]).mean()

    found = jp.search(counts_one, PARAMS, INT, limits={"bytes": 3500})
    assert {str(found.settings[f"layer_{i}/kernel"]) for i in (1, 2)} == {"int 2"}


# ---------------------------------------------------------------------------------------------------------------------
# Going on, and saying why


def test_an_interrupted_search_gives_what_a_whole_one_does(tmp_path, monkeypatch):
    def run(path):
        table = jp.sensitivity(loss, PARAMS, INT, checkpoint=path)
        return jp.search(loss, PARAMS, table, limits={"bytes": 1700}, budget=40)

    whole = run(tmp_path / "whole")
    evaluate, left = Evidence._evaluate, iter(range(3))

    def stops(self, choices):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return evaluate(self, choices)

    monkeypatch.setattr(Evidence, "_evaluate", stops)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part")
    monkeypatch.setattr(Evidence, "_evaluate", evaluate)
    again = run(tmp_path / "part")
    assert (again.settings, again.values, again.evaluations) == (whole.settings, whole.values, whole.evaluations)
    monkeypatch.setattr(Evidence, "_evaluate", None)  # nothing is left to evaluate
    assert run(tmp_path / "part").values == whole.values
    with pytest.raises(ValueError, match="of another loss, other data, parameters or methods"):
        jp.sensitivity(lambda params: 2 * loss(params), PARAMS, INT, checkpoint=tmp_path / "part")
    (tmp_path / "part").write_text("{}")
    with pytest.raises(ValueError, match="is no checkpoint of a search, or is damaged"):
        run(tmp_path / "part")


def test_it_says_why(table):
    found = jp.search(loss, PARAMS, table, limits={"bytes": 1700}, report=lambda params: 2 * loss(params))
    assert found.reported == pytest.approx(2 * found.values["loss"], rel=1e-4)
    text = str(found)
    assert "least loss with bytes <= 1,700" in text and "the next smaller" in text and "reported" in text
    assert max(map(len, text.splitlines())) <= 120 and max(map(len, str(table).splitlines())) <= 120
    for g, row in enumerate(found.why):
        k = table.options.index(row.option)
        assert (row.nbytes, row.saved) == (table.nbytes[g, k], table.nbytes[g, 0] - table.nbytes[g, k])
        assert row.larger is None or row.larger.nbytes > 0
        assert row.smaller is None or row.smaller.nbytes < 0
    sizes = [one.values["bytes"] for one in found.front]
    losses = [one.values["loss"] for one in found.front]
    assert sizes == sorted(sizes) and losses == sorted(losses, reverse=True)


def test_it_can_be_drawn(table):
    pytest.importorskip("matplotlib").use("agg")
    drawn = table.plot()
    assert [label.get_text() for label in drawn.get_yticklabels()] == table.groups
    assert jp.search(loss, PARAMS, table, limits={"bytes": 1700}).plot().get_xlabel() == "bytes of the file"


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong


def callback(values):
    return lambda params: jax.pure_callback(
        lambda _: np.float32(next(values)), jax.ShapeDtypeStruct((), jnp.float32), params["layer_0"]["bias"]
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda params: jnp.square(apply(params, INPUTS)), r"one floating-point number, got float32\[32,24\]"),
        (lambda params: (loss(params), 0.0), "one floating-point number"),
        (lambda params: loss(params) * math.nan, "loss is nan of the parameters as they are"),
        (callback(iter(range(9))), "loss is 0, and of the same parameters 1: fix its data"),
        (lambda params: loss(params) * RNG.normal(), "another function each time it is traced"),
    ],
)
def test_losses_that_cannot_serve(wrong, message):
    with pytest.raises(ValueError, match=message):
        jp.sensitivity(wrong, PARAMS, INT)


def test_a_loss_that_cannot_be_traced_may_be_a_measure():
    with pytest.raises(TypeError, match="loss must be traceable: .* or ask for it by measures="):
        jp.sensitivity(lambda params: float(loss(params)), PARAMS, INT)


@pytest.mark.parametrize(
    ("methods", "error", "message"),
    [
        ({}, ValueError, "there are no methods"),
        ({"int": (jp.quantize, [])}, ValueError, "method 'int' has no settings"),
        ({"int": jp.quantize}, TypeError, "must be .function of params and a setting, settings."),
        ({"half": (lambda p, _: jax.tree.map(lambda x: x[:3], p), [None])}, ValueError, "keep shapes and dtypes"),
        ({"bare": (lambda p, _: p["layer_0"], [None])}, ValueError, "does not follow the parameters"),
    ],
)
def test_methods_that_cannot_serve(methods, error, message):
    with pytest.raises(error, match=message):
        jp.sensitivity(loss, PARAMS, methods)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limits": {}}, "the least loss without a limit"),
        ({"limits": {"loss": 1.0}}, "the least loss without a limit"),
        ({"limits": {"bytes": 10}}, "bytes <= 10 contradicts what there is: the smallest settings take"),
        ({"limits": {"bytes": math.nan}}, "must be a finite number above 0, got nan"),
        ({"limits": {"speed": 1}}, "'speed' is none of .*: say how to measure it by measures="),
        ({"minimize": "fit", "limits": {"bytes": 2e3}}, "more of 'fit' is better: minimize 'loss'"),
        ({"limits": {"bytes": 2e3}, "budget": 12}, "budget must be above the 14 evaluations of the table"),
        ({"limits": {"bytes": 1500, "loss": 1e-7}}, "nothing of .* holds bytes <= 1,500 and loss <= 1e-07; the near"),
        ({"limits": {"fit": 2}, "minimize": "bytes"}, "nothing of .* holds fit >= 2; the nearest: fit"),
        ({"minimize": "bytes", "limits": {"odd": 1}}, "measure 'odd' returned 'no': it must return one number"),
    ],
)
def test_wishes_that_cannot_be(table, options, message):
    measures = {"fit": (lambda params: 1 - float(loss(params)), "max"), "odd": (lambda params: "no", "max")}
    with pytest.raises(ValueError, match=message):
        jp.search(loss, PARAMS, table, measures=measures, **options)


def test_a_table_serves_its_own_loss_alone(table):
    with pytest.raises(ValueError, match="the table is of another loss or of other parameters"):
        jp.search(lambda params: loss(params), PARAMS, table, limits={"bytes": 2e3})
