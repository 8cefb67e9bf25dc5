"""What every public transform promises, in one table: a new transform takes a row, and with it all the tests."""

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import jaxprune as jp

NAN, INF = jnp.nan, jnp.inf
FRACTIONS = (0.0, 0.25, 0.5, 0.9, 1.0)
LEVELS = (0.0, 0.25, 0.5, 1.0, 3.0)
CLIPS = (1.0, 0.9, 0.75, 0.5, 0.25)
WIDTHS = (1.0, 2.0, 3.5, 8.0, 16.0)
EXPONENTS = (-6.0, -3.0, -1.0, 0.0, 2.0)
ASYMMETRIC = jp.QuantSpec(symmetric=False)


def params(dtypes, seed=0):
    """Kernels of these dtypes, one without entries, a vector and an integer that take no part, an empty subtree."""
    draw = np.random.default_rng(seed).normal(size=(3, 8, 4)).astype(np.float32)
    layers = {f"Dense_{i}": {"kernel": draw[i].astype(dtype)} for i, dtype in enumerate(dtypes)}
    layers["Dense_0"]["bias"] = draw[2, 0]
    tree = layers | {"empty": np.zeros((0, 4), np.float32), "nothing": {}, "step": np.arange(3, dtype=np.int32)}
    return jax.tree.map(jnp.asarray, tree)


def odd(dtypes, seed=0):
    """The same with NaN, infinities and zeros of both signs."""

    def spoil(leaf):
        leaf = np.array(leaf)
        if leaf.ndim > 1 and leaf.size:
            leaf[1], leaf[2, 1] = [NAN, INF, -INF, -0.0], 0.0
        return jnp.asarray(leaf)

    return jax.tree.map(spoil, params(dtypes, seed))


def finite(tree):
    """For what takes no infinities or NaN: others in their place."""

    def tame(leaf):
        if leaf.ndim < 2 or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jnp.nan_to_num(leaf, posinf=9.0, neginf=-9.0)

    return jax.tree.map(tame, tree)


@dataclass(frozen=True)
class Transform:
    """A row of the table.

    Attributes:
      run: ``(params, setting, **where) -> result``; without settings the second argument is left alone.
      settings: five values that are swept, or none; then five trees of parameters are.
      form: what comes back: "params" (same shapes and dtypes), "masks", "scores", "nodes" (a record in place of each
        chosen leaf) or "any" arrays, all in the structure of the parameters; or a "scalar", or a "curve" (float arrays
        with one entry a leaf, in one such tree or several).
      exact: the same bits however it is run; otherwise float32 within a few ulp.
      where: whether it takes ``where``.
      rest: whether leaves that take no part come back as themselves.
      nan: what becomes of a NaN: "kept" by the mask, "stays" in its place alone, or nothing to check.
      slope: the derivative with respect to a weight: 1 "inside" the range and 0 outside, 1 everywhere ("one"), that of
        the "mask", "zero", or nothing to check.
    """

    run: Callable[..., Any]
    settings: tuple[float, ...] = ()
    form: str = "params"
    exact: bool = True
    where: bool = True
    rest: bool = False
    nan: str = ""
    slope: str = ""


def quantizer(spec, **calibration):
    return lambda p, s, **where: jp.fake_quant(p, s, spec=jp.QuantSpec(**spec, **calibration), **where)


def masks_of(function, settings=FRACTIONS, nan="kept", **spec):
    return Transform(lambda p, s, **where: function(p, s, **spec, **where), settings, "masks", nan=nan)


def scores_of(function, exact=True, slope="", form="scores"):
    return Transform(lambda p, s: function(p), form=form, exact=exact, where=False, slope=slope)


def curve_of(function, settings, **spec):
    return Transform(lambda p, s, **w: function(p, jnp.reshape(s, 1), **spec, **w), settings, "curve", exact=False)


def examples(p):
    """The tree as activations (batch, ..., C): a vector is one example."""
    return jax.tree.map(lambda x: x[None] if x.ndim == 1 else x, p)


def larger_than(p, s):
    """Masks of a kind that any user might make."""
    return jax.tree.map(
        lambda w: ~(abs(w).astype(jnp.float32) < s) if jnp.issubdtype(w.dtype, jnp.floating) else jnp.array(True), p
    )


@functools.cache
def statistics(kernels):
    """Of data that so many kernels are multiplied with, and of random cotangents."""
    x = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)

    def products(p, x):
        return [x @ p[f"Dense_{i}"]["kernel"] for i in range(kernels)]

    return jp.calibration.collect(products, params([jnp.float32] * kernels), x, key=jax.random.key(0))


def by_data(function, *args, **spec):
    """A row of a function of parameters and statistics: without feedback, which promises no bits.

    There are no statistics of parameters without leaves, and of others the statistics know what takes part.
    """

    def run(p, s):
        kernels = sum(name.startswith("Dense") for name in p) if isinstance(p, dict) else 0
        return function(p, statistics(kernels), s) if kernels else p

    return Transform(run, *args, where=False, **spec)


TABLE = {
    "calibration.fake_quant": by_data(
        lambda p, stats, s: jp.calibration.fake_quant(p, stats, s, damping=INF),
        WIDTHS[1:],
        nan="stays",
        rest=True,
    ),
    "calibration.quantize": by_data(
        lambda p, stats, s: jp.calibration.quantize(p, stats, 4, damping=INF),
        form="any",
        rest=True,
    ),
    "calibration.prune": by_data(
        lambda p, stats, s: jp.calibration.prune(p, stats, s, damping=INF).params,
        FRACTIONS,
        nan="stays",
        rest=True,
    ),
    "calibration.wanda": by_data(lambda p, stats, s: jp.calibration.wanda(p, stats), form="scores", exact=False),
    "calibration.obd": by_data(lambda p, stats, s: jp.calibration.obd(p, stats), form="scores", exact=False),
    "calibration.obs": by_data(lambda p, stats, s: jp.calibration.obs(p, stats), form="scores", exact=False),
    "masks.by_threshold": masks_of(jp.masks.by_threshold, LEVELS),
    "masks.by_sparsity": masks_of(jp.masks.by_sparsity, FRACTIONS[:4]),
    "masks.by_sparsity global": masks_of(jp.masks.by_sparsity, FRACTIONS[:4], scope="global", min_keep=1),
    "masks.n_of_m": masks_of(
        lambda p, s, **where: jp.masks.n_of_m(p, s, 4, **where), (0.0, 1.0, 2.0, 3.0, 4.0), nan=""
    ),
    "masks.blocks": masks_of(jp.masks.blocks, nan="", block_shape=(2, 2)),
    "masks.by_unit_entropy": masks_of(jp.masks.by_unit_entropy, LEVELS, nan="", bins=5),
    "masks.by_unit_sparsity": masks_of(jp.masks.by_unit_sparsity, nan=""),
    "masks.apply_masks": Transform(
        lambda p, s: jp.masks.apply_masks(p, larger_than(p, s)), LEVELS, where=False, nan="stays", slope="mask"
    ),
    "masks.sparsity_of": Transform(
        lambda p, s: jp.masks.sparsity_of(larger_than(p, s), p), LEVELS, "scalar", exact=False, where=False
    ),
    "masks.thresholds": Transform(lambda p, s, **w: jp.masks.thresholds(p, s, **w), FRACTIONS, "any", slope="zero"),
    "masks.thresholds global": Transform(
        lambda p, s, **where: jp.masks.thresholds(p, s, scope="global", **where), FRACTIONS, "any", slope="zero"
    ),
    "saliency.magnitude": scores_of(jp.saliency.magnitude),
    "saliency.gradient": scores_of(lambda p: jp.saliency.gradient(p, p), exact=False),
    "saliency.fisher": scores_of(lambda p: jp.saliency.fisher(p, p), exact=False),
    "saliency.random": scores_of(lambda p: jp.saliency.random(p, jax.random.key(3)), slope="zero"),
    "saliency.connection_entropy": scores_of(jp.saliency.connection_entropy, exact=False),
    "saliency.unit_norm": scores_of(jp.saliency.unit_norm, exact=False),
    "saliency.unit_norm of another order": scores_of(lambda p: jp.saliency.unit_norm(p, ord=3), exact=False),
    "saliency.geometric_median": scores_of(jp.saliency.geometric_median, exact=False, slope="zero"),
    "saliency.unit_entropy": scores_of(lambda p: jp.saliency.unit_entropy(p, bins=5), exact=False, slope="zero"),
    "saliency.unit_sparsity": scores_of(jp.saliency.unit_sparsity, slope="zero"),
    "saliency.activation_entropy": scores_of(
        lambda p: jp.saliency.activation_entropy(p, bins=5), exact=False, slope="zero"
    ),
    "saliency.activation_taylor": scores_of(
        lambda p: jp.saliency.activation_taylor(examples(p), examples(p), normalize=True), exact=False
    ),
    "allocation.uniform": Transform(lambda p, s, **where: jp.masks.allocation.uniform(p, s, **where), FRACTIONS, "any"),
    "allocation.erdos_renyi_kernel": Transform(
        lambda p, s, **where: jp.masks.allocation.erdos_renyi_kernel(p, s, **where), FRACTIONS, "any"
    ),
    "prune": Transform(
        lambda p, s, **w: jp.prune(p, s, **w).params, FRACTIONS[:4], nan="stays", slope="mask", rest=True
    ),
    "prune globally": Transform(
        lambda p, s, **w: jp.prune(p, s, scope="global", min_keep=1, **w).params,
        FRACTIONS[:4],
        nan="stays",
        slope="mask",
        rest=True,
    ),
    "prune units": Transform(
        lambda p, s, **w: jp.prune(p, s, saliency=jp.saliency.unit_norm, **w).masks, FRACTIONS, "masks"
    ),
    "threshold_prune": Transform(
        lambda p, s, **w: jp.threshold_prune(p, s, **w).params, LEVELS, nan="stays", slope="mask", rest=True
    ),
    "fake_quant": Transform(quantizer({}), WIDTHS[1:], nan="stays", slope="one", rest=True),
    "fake_quant of one bit": Transform(quantizer({}), WIDTHS[:1] * 2, nan="stays", rest=True),
    "fake_quant by channel": Transform(quantizer({"axis": -1}), WIDTHS, nan="stays", rest=True),
    "fake_quant by block": Transform(quantizer({"block_size": 3}), WIDTHS, nan="stays", rest=True),
    "fake_quant asymmetric": Transform(
        quantizer({"symmetric": False, "axis": -1}), WIDTHS, nan="stays", slope="one", rest=True
    ),
    "fake_quant within a percentile": Transform(
        quantizer({}, calibration=jp.quantization.percentile(80.0)), WIDTHS[1:], nan="stays", slope="inside", rest=True
    ),
    "fake_quant of least error": Transform(
        quantizer({"axis": -1}, calibration=jp.quantization.mean_squared_error((1.0, 0.7))),
        WIDTHS,
        nan="stays",
        rest=True,
    ),
    "fake_quant clipped": Transform(
        lambda p, s, **w: jp.fake_quant(p, 4, clip=s, **w), CLIPS, nan="stays", slope="inside", rest=True
    ),
    "choose_qparams": Transform(lambda p, s, **w: jp.choose_qparams(p, s, **w), WIDTHS, "nodes", rest=True),
    "choose_qparams asymmetric": Transform(
        lambda p, s, **w: jp.choose_qparams(p, s, spec=ASYMMETRIC, **w), WIDTHS, "nodes", rest=True
    ),
    "quantize": Transform(lambda p, s, **w: jp.quantize(p, 4, clip=s, **w), CLIPS, "nodes", rest=True),
    "quantize asymmetric": Transform(
        lambda p, s, **w: jp.quantize(p, 5, clip=s, spec=ASYMMETRIC, **w), CLIPS, "nodes", rest=True
    ),
    "dequantize": Transform(
        lambda p, s, **w: jp.dequantize(jp.quantize(p, 4, clip=s, **w)), CLIPS, nan="stays", rest=True
    ),
    "fixed_point": Transform(
        lambda p, s, **w: jp.fixed_point(p, s, **w), EXPONENTS, nan="stays", slope="one", rest=True
    ),
    "fixed_point codes": Transform(
        lambda p, s, **w: jp.fixed_point(p, s, codes=True, **w), EXPONENTS, "any", rest=True
    ),
    "reports.sparsity_curve": curve_of(jp.reports.sparsity_curve, FRACTIONS),
    "reports.quantization_error_curve": curve_of(jp.reports.quantization_error_curve, WIDTHS),
    "reports.entropy_curve": curve_of(jp.reports.entropy_curve, LEVELS, bins=5),
    "rate_distortion.round_to": Transform(
        lambda p, s, **w: jp.quantization.rate_distortion.round_to(finite(p), 0.1, s, **w),
        (0.0, 0.05, 0.1, 0.2, 0.5),
        rest=True,
    ),
    "codebook.kmeans": Transform(lambda p, s, **w: jp.codebook.kmeans(finite(p), 4, **w), slope="one", rest=True),
    "codebook.kmeans of units": Transform(
        lambda p, s, **w: jp.codebook.kmeans(finite(p), 4, axis="units", **w), slope="one", rest=True
    ),
}

NOT_TRANSFORMS = {
    "grid": "makes settings",
    "sweep": "runs a function of a setting; test_sweeps",
    "sensitivity": "runs a function of parameters; test_search",
    "search": "chooses by measurements; test_search",
    "pareto_front": "reads results on the host; test_sweeps",
    "report": "counts on the host; test_reports",
    "compress": "codes on the host; test_compress",
    "save": "writes a file; test_container",
    "shrink": "changes shapes, and with them programs; test_shrinking",
    "load": "reads a file; test_container",
    "read_checkpoint": "reads a file; test_checkpoints",
    "quantization.percentile": "makes a calibration, which a row of fake_quant uses",
    "quantization.mean_squared_error": "makes a calibration, which a row of fake_quant uses",
    "codebook.encode": "makes records of codes, which kmeans decodes; test_codebook",
    "calibration.output_error": "makes a calibration of concrete statistics; test_calibration",
    "calibration.divergence": "makes a calibration of inputs; test_calibration",
    "calibration.collect": "looks at data; its settings and batches are in test_calibration",
    "calibration.merge": "adds statistics; test_calibration",
    "calibration.input_qparams": "takes statistics alone; test_calibration",
    "calibration.progress": "draws",
    "calibration.smooth": "takes a program; test_calibration",
    "calibration.refit": "refuses by values; test_calibration",
    "calibration.correct_biases": "takes two trees; test_calibration",
    "calibration.encode": "chooses dtypes by values; test_calibration",
    "quantization.to_n_of_m": "makes records on the host; test_n_of_m_storage",
    "quantization.to_bcoo": "makes sparse arrays on the host; test_n_of_m_storage",
    "quantization.pack": "packs one array; test_coders",
    "quantization.unpack": "the other half of pack; test_coders",
}

# These call the kernels of other rows, which show how it is to run those under every transformation.
ALIKE = {
    *("calibration.fake_quant", "calibration.quantize", "calibration.prune"),
    *("calibration.wanda", "calibration.obd", "calibration.obs"),
    "masks.by_unit_entropy",
    "masks.by_sparsity",
    "masks.thresholds global",
    "saliency.activation_entropy",
    "saliency.unit_norm of another order",
    "prune globally",
    "prune units",
    "fake_quant of one bit",
    "fake_quant by channel",
    "fake_quant clipped",
    "choose_qparams asymmetric",
    "quantize asymmetric",
    "fake_quant of least error",
    "rate_distortion.round_to",
    "reports.sparsity_curve",
    "reports.quantization_error_curve",
    "reports.entropy_curve",
    *("codebook.kmeans", "codebook.kmeans of units"),  # which test_codebook runs in every way
}
# What a leaf gets depends on the others. Everything else is as dear as there are kernels, and meets two when slow.
TOGETHER = {
    "masks.by_sparsity global",
    "masks.thresholds global",
    "masks.sparsity_of",
    "allocation.uniform",
    "allocation.erdos_renyi_kernel",
    "prune globally",
    "saliency.random",
}


def rows_with_kernels(slow=()):
    """Each row with the dtypes of its kernels: one of three, in turn; among the slow tests float32 and a half."""
    floats, marks = (jnp.float32, jnp.bfloat16, jnp.float16), [pytest.mark.slow]
    for i, name in enumerate(TABLE):
        one, both = floats[i % 3 :][:1], (floats[0], floats[1 + i % 2])
        quick = both if name in TOGETHER else one
        yield pytest.param(name, quick, id=name, marks=marks if name in slow else [])
        if quick != both:
            yield pytest.param(name, both, id=f"{name}, two kernels", marks=marks)


every_row = pytest.mark.parametrize("name, dtypes", list(rows_with_kernels({"codebook.kmeans of units"})))
every_kernel = pytest.mark.parametrize("name, dtypes", list(rows_with_kernels(ALIKE)))


def test_every_public_function_has_a_row():
    modules = {"": jp, "allocation.": jp.masks.allocation}
    modules |= {f"{m}.": getattr(jp, m) for m in ("masks", "saliency", "quantization", "codebook", "calibration")}
    names = {
        prefix + name
        for prefix, module in modules.items()
        for name in module.__all__
        if inspect.isfunction(getattr(module, name)) and not name.startswith("_")
    }
    names |= {f"reports.{name}" for name in jp.reports.__all__ if name.endswith("_curve")} | {
        "rate_distortion.round_to"
    }
    verbs = {name.removeprefix("quantization.") for name in names}  # those at the top are the ones in the module
    rows = {row.split(" ")[0] for row in TABLE}
    explained = {name.removeprefix("quantization.") for name in NOT_TRANSFORMS}
    assert verbs - rows - explained == set(), "without a row in TABLE"
    assert rows <= verbs and not rows & explained


# ---------------------------------------------------------------------------------------------------------------------
# The ways to run a row

_compilations: list[str] = []


def _count(event, duration, **kwargs):
    if event == "/jax/core/compile/backend_compile_duration":
        _compilations.append(event)


jax.monitoring.register_event_duration_secs_listener(_count)


def cases(name, dtypes):
    """Ten inputs of one shape: every setting (or five trees of weights), with plain and with odd values."""
    row = TABLE[name]
    if row.settings:
        return [(tree(dtypes), np.float32(s)) for tree in (params, odd) for s in row.settings]
    return [(tree(dtypes, seed), np.float32(0)) for tree in (params, odd) for seed in range(5)]


def is_node(leaf):
    return isinstance(leaf, jp.QParams | jp.QArray)


def assert_same(row, result, expected, how):
    assert jax.tree.structure(result) == jax.tree.structure(expected), how
    for got, wanted in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        assert got.dtype == wanted.dtype and got.shape == wanted.shape, how
        if row.exact or not jnp.issubdtype(got.dtype, jnp.floating):
            assert oracles.bits_equal(got, wanted), f"{how}: {got} is not {wanted}"
        else:
            np.testing.assert_allclose(np.float32(got), np.float32(wanted), rtol=1e-6, atol=2e-7, err_msg=how)


def fresh_where(row):
    """A selection that no earlier call has seen; it chooses the kernels."""
    return {"where": lambda path, leaf: jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim > 1} if row.where else {}


@every_kernel
def test_every_way_to_run_it_gives_the_same(name, dtypes):
    """Eager, jit and vmap over the setting: one compilation for all settings, the same values."""
    row = TABLE[name]
    inputs = cases(name, dtypes)

    eager, compiled = [], []
    for p, s in inputs:
        before = len(_compilations)
        eager.append(row.run(p, s, **fresh_where(row)))
        compiled.append(len(_compilations) - before)
    assert not any(compiled[1:]), f"eager calls compiled {compiled} times"

    chex.clear_trace_counter()  # which goes by the place in the code, not by the function
    jitted = jax.jit(chex.assert_max_traces(lambda p, s: row.run(p, s), n=1))
    for (p, s), expected in zip(inputs, eager, strict=True):
        assert_same(row, jitted(p, s), expected, f"jit at {s}")

    half = len(inputs) // 2
    for start in (0, half):
        batch = inputs[start : start + half]
        if row.settings:
            mapped = _vmap(row)(batch[0][0], jnp.stack([s for _, s in batch]))
        else:
            mapped = _vmap(row)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *(p for p, _ in batch)), np.float32(0))
        for i, expected in enumerate(eager[start : start + half]):
            one = jax.tree.map(lambda leaf, i=i: leaf[i], mapped)
            assert_same(row, one, expected, f"vmap at {batch[i][1]}")


_vmapped: dict[int, Any] = {}


def _vmap(row):
    if id(row) not in _vmapped:
        axes = (None, 0) if row.settings else (0, None)
        _vmapped[id(row)] = jax.jit(jax.vmap(lambda p, s: row.run(p, s), axes))
    return _vmapped[id(row)]


@every_row
def test_what_comes_back(name, dtypes):
    """Structure, shapes and dtypes; leaves that take no part; NaN; weights under a derivative."""
    row = TABLE[name]
    (p, s), (strange, _) = (every := cases(name, dtypes))[1], every[-1]
    result = row.run(p, s, **fresh_where(row))
    _check_form(row, p, result)
    if row.rest:
        assert result["Dense_0"]["bias"] is p["Dense_0"]["bias"] and result["step"] is p["step"]
    _check_nan(row, strange, s)
    if row.slope:
        _check_slope(row, p, s, result)
    if row.form == "scalar":
        assert row.run({}, s) == 0
    elif row.form == "curve":
        assert not jax.tree.leaves(row.run({}, s)) and not jax.tree.leaves(row.run({"a": {}, "b": None}, s))
    else:
        assert (
            row.run({}, s) == {} and row.run([], s) == [] and row.run({"a": {}, "b": None}, s) == {"a": {}, "b": None}
        )


def _check_form(row, p, result):
    if row.form == "scalar":
        assert result.shape == ()
        return
    if row.form == "curve":
        leaves = jax.tree.leaves(result)
        assert len(leaves) % len(jax.tree.leaves(p)) == 0 and all(leaf.shape == (1,) for leaf in leaves)
        return
    assert jax.tree.structure(result, is_leaf=is_node) == jax.tree.structure(p)
    pairs = list(zip(jax.tree.leaves(result, is_leaf=is_node), jax.tree.leaves(p), strict=True))
    if row.form == "params":
        assert all(new.shape == old.shape and new.dtype == old.dtype for new, old in pairs)
    if row.form == "masks":
        assert all(mask.dtype == bool for mask, _ in pairs)
        assert all(mask.shape == () and bool(mask) for mask, leaf in pairs if leaf.ndim == 1)
    if row.form in ("masks", "scores"):
        assert all(not m.ndim or np.broadcast_shapes(m.shape, w.shape) == w.shape for m, w in pairs)
    if row.form == "nodes":
        assert all(is_node(node) == (leaf.ndim > 1) for node, leaf in pairs)


def _check_nan(row, strange, s):
    if not row.nan:
        return
    for result, leaf in zip(*map(jax.tree.leaves, (row.run(strange, s), strange)), strict=True):
        missing = np.isnan(np.float32(leaf))
        if row.nan == "kept" and result.ndim:
            assert np.asarray(result)[missing].all()
        elif row.nan == "stays":
            np.testing.assert_array_equal(np.isnan(np.float32(result)), missing)


def _check_slope(row, p, s, result):
    """The derivative of the sum of all results, by dtype of the weights; the integers take no part."""
    layers = [name for name in p if name.startswith("Dense")]
    floating = {name: p[name] for name in (*layers, "empty")}

    @jax.jit
    def slopes(p):
        def total(p):
            return sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(row.run(p, s)))

        return jax.grad(total)(p)

    after, found = row.run(floating, s), slopes(floating)
    for name in layers:
        slope, weight = np.float32(found[name]["kernel"]), np.float32(floating[name]["kernel"])
        if row.slope == "mask":
            np.testing.assert_array_equal(slope, np.float32(after[name]["kernel"]) == weight)
        elif row.slope == "inside":
            largest = np.abs(np.float32(after[name]["kernel"])).max()
            inside = np.abs(weight) < largest
            assert (slope[inside] == 1).all() and set(np.unique(slope)) == {0, 1}
        else:
            assert (slope == (row.slope == "one")).all()
    if row.rest:
        assert (found["Dense_0"]["bias"] == 1).all()


DEBUGGING = {
    "promotion": lambda: (jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise")),
    "leaks": lambda: (jax.checking_leaks(),),
    "x64": lambda: (jax.enable_x64(True),),
}


# To look for leaks, JAX traces everything anew.
QUICK_LEAKS = ("prune", "prune globally", "threshold_prune", "fake_quant", "quantize", "masks.n_of_m")
DEBUGGED = [
    pytest.param(name, mode, marks=[] if name in quick else [pytest.mark.slow])
    for mode, quick in (
        ("promotion", TABLE),
        ("x64", set(TABLE) - ALIKE | {"codebook.kmeans of units"}),
        ("leaks", QUICK_LEAKS),
    )
    for name in TABLE
]


@pytest.mark.slow
@pytest.mark.parametrize("name, mode", DEBUGGED)
def test_what_people_debug_with(name, mode):
    """Traced alone: no promotion that was not asked for, nothing kept of a trace, no float64 of float32 weights."""
    row, tree = TABLE[name], finite(params((jnp.float32, jnp.float16)))
    setting = np.float32(row.settings[1]) if row.settings else None
    with ExitStack() as stack:
        for context in DEBUGGING[mode]():
            stack.enter_context(context)
        found = jax.eval_shape(lambda p: row.run(p, setting), tree)
    assert all(leaf.dtype != np.float64 for leaf in jax.tree.leaves(found))
