"""Reports: counts by hand, sizes by really packing the bits, every container, and the traced count inside a sweep."""

import json
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import freeze

import jaxprune as jp
from jaxprune import dequantize, fake_quant, quantize
from jaxprune import masks as masking
from jaxprune.base import QuantSpec
from jaxprune.pruning import prune
from jaxprune.reports import coded_bytes, report
from jaxprune.sweeps import grid, sweep


class Layer(NamedTuple):
    kernel: Any
    bias: Any


def normal(*shape, seed=0, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def network():
    return {
        "Conv_0": {"kernel": normal(3, 3, 2, 5), "bias": normal(5, seed=1)},
        "Dense_0": {"kernel": normal(37, 6, seed=2), "bias": normal(6, seed=3)},
    }


def packed(mask, shape, bits):
    """Bytes of one leaf by writing the kept codes and the mask out as bits; the mask in the cheapest way there is."""
    kept = np.broadcast_to(mask, shape)
    values = np.packbits(np.zeros(int(sum(kept.ravel().tolist())) * bits, bool)).size
    if kept.all():
        return values
    by_unit = kept.reshape(-1, shape[-1])
    whole = all(len(set(column.tolist())) == 1 for column in by_unit.T)
    return values + np.packbits(by_unit[0] if whole else np.asarray(mask).ravel()).size


def rows_by_path(result):
    return {row.path: row for row in result.rows}


# --- counts ---------------------------------------------------------------------------------------------------------


def test_mask_sparsity_and_natural_zeros_are_kept_apart():
    """Cases, row 30: a 4-bit leaf that nobody pruned but that has zeros, and a mask of 0.3."""
    natural = np.array(normal(10, 10))
    natural[np.abs(natural) < 0.4] = 0
    params = {"masked": normal(10, 10, seed=1), "natural": jnp.asarray(natural)}
    masks = masking.by_sparsity(params, {"masked": 0.3, "natural": 0.0})
    masks["natural"] = jnp.ones((), bool)
    after = fake_quant(masking.apply_masks(params, masks), 4)
    rows = rows_by_path(report(params, after, masks=masks, bits=4))
    zeros = {name: sum(value == 0 for value in np.ravel(leaf).tolist()) for name, leaf in after.items()}
    assert rows["natural"].mask_sparsity == 0 and rows["natural"].removed == rows["natural"].masked == 0
    assert rows["masked"].mask_sparsity == 0.3 and rows["masked"].removed == 30
    assert {name: row.zeros for name, row in rows.items()} == zeros
    assert zeros["natural"] >= 20 and zeros["masked"] > 30
    assert {name: row.zero_fraction for name, row in rows.items()} == {n: z / 100 for n, z in zeros.items()}


@pytest.mark.parametrize(
    "bits, sparsity",
    [
        pytest.param(bits, sparsity, marks=[] if i == j else pytest.mark.slow)
        for i, bits in enumerate([3, 1, 13, 8])
        for j, sparsity in enumerate([0.0, 0.37, 0.9, 1.0])
    ],
)
def test_bytes_are_those_of_the_packed_bits(sparsity, bits):
    params = network()
    pruned, masks = prune(params, sparsity, scope="global")
    result = report(params, fake_quant(pruned, bits), masks=masks, bits=bits)
    for name, layer in params.items():
        row = rows_by_path(result)[f"{name}/kernel"]
        mask, shape = np.asarray(masks[name]["kernel"]), layer["kernel"].shape
        assert row.coded_bytes == packed(mask, shape, bits) + 4
        assert (row.parameters, row.masked, row.bits) == (mask.size, mask.size, bits)
        assert row.removed == mask.size - int(mask.sum())
        assert rows_by_path(result)[f"{name}/bias"].coded_bytes == layer["bias"].nbytes
    assert int(coded_bytes(params, masks, bits)) == result.total.coded_bytes
    assert result.total.mask_sparsity == pytest.approx(float(masking.sparsity_of(masks, params)), abs=1e-7)


def test_the_total_is_the_sum_of_the_rows():
    params = network()
    pruned, masks = prune(params, 0.6, scope="global")
    result = report(params, pruned, masks=masks)
    for field in ("parameters", "masked", "removed", "zeros", "dense_bytes", "coded_bytes"):
        assert getattr(result.total, field) == sum(getattr(row, field) for row in result.rows)
        assert type(getattr(result.total, field)) is int
    assert result.total.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert result.total.dense_bytes == 4 * result.total.parameters
    assert result.total.bits == 8 * result.total.coded_bytes / result.total.parameters


def test_whole_units_cost_a_bit_a_unit_however_the_mask_is_held():
    w = normal(12, 10)
    unit = jnp.asarray(np.arange(10) % 3 > 0)[None]
    full = jnp.broadcast_to(unit, w.shape)
    ragged = full.at[5, 1].set(False)
    for mask, stored in ((unit, 2), (full, 2), (ragged, 15), (~jnp.zeros((12, 10), bool), 0)):
        kept = int(np.broadcast_to(mask, w.shape).sum())
        row = report(w, masking.apply_masks(w, mask), masks=mask).rows[0]
        assert row.coded_bytes == 4 * kept + stored == int(coded_bytes(w, mask))
        assert row.removed == 120 - kept


def test_a_mask_along_the_inputs_costs_its_own_entries():
    w = normal(12, 10)
    mask = jnp.asarray(np.arange(12) % 2 == 0)[:, None]
    row = report(w, masking.apply_masks(w, mask), masks=mask).rows[0]
    assert row.coded_bytes == 60 * 4 + 2 == int(coded_bytes(w, mask))


@pytest.mark.slow
def test_counts_stay_exact_above_float32_integers():
    n = 2**24 + 5
    w = jnp.ones((n,), jnp.float16)
    mask = jnp.ones((n,), bool).at[3].set(False)
    row = report(w, masking.apply_masks(w, mask), masks=mask, bits=3).rows[0]
    assert (row.parameters, row.removed, row.zeros) == (n, 1, 1)
    assert row.coded_bytes == -(-3 * (n - 1) // 8) + -(-n // 8) + 4 == int(coded_bytes(w, mask, 3))


# --- codes ----------------------------------------------------------------------------------------------------------

SPECS = [
    QuantSpec(),
    QuantSpec(axis=-1),
    QuantSpec(symmetric=False),
    QuantSpec(symmetric=False, axis=-1, block_size=5),
    QuantSpec(block_size=4),
]


@pytest.mark.parametrize(
    "spec", [pytest.param(s, marks=pytest.mark.slow if i in (0, 1, 2) else [], id=str(s)) for i, s in enumerate(SPECS)]
)
def test_quantized_leaves_count_the_scales_they_have(spec):
    params = network()
    codes = quantize(params, 5, spec=spec)
    result = report(params, codes)
    for name in params:
        held = codes[name]["kernel"]
        extra = held.scale.nbytes + (0 if spec.symmetric else held.zero_point.nbytes)
        row = rows_by_path(result)[f"{name}/kernel"]
        assert row.coded_bytes == -(-held.codes.size * 5 // 8) + extra
        assert row.bits == 5
    assert report(params, fake_quant(params, 5, spec=spec), bits=5, spec=spec) == result
    assert int(coded_bytes(params, bits=5, spec=spec)) == result.total.coded_bytes


def test_the_dtype_is_the_width_where_nothing_is_quantized():
    params = {"w": normal(9, 7)}
    after = {"w": params["w"].astype(jnp.bfloat16)}
    row = report(params, after).rows[0]
    assert (row.bits, row.dense_bytes, row.coded_bytes) == (16, 252, 126)
    assert 0 < row.relative_error < 2**-8


def test_bits_by_path_and_where():
    params = network()
    result = report(params, params, bits={"Conv_0": 2, "Dense_0": 6})
    assert [row.bits for row in result.rows] == [32, 2, 32, 6]
    result = report(params, params, bits=3, where="Dense_0/*")
    assert [row.bits for row in result.rows] == [32, 32, 32, 3]
    assert int(coded_bytes(params, bits=3, where="Dense_0/*")) == result.total.coded_bytes


def test_fractional_bits_round_as_the_quantizer_rounds():
    w = normal(8, 8)
    for bits, width in ((2.49, 2), (2.5, 3)):
        assert report(w, fake_quant(w, bits), bits=bits).rows[0].bits == width
        assert int(coded_bytes(w, bits=bits)) == 8 * width + 4


def test_a_pruned_tree_is_smaller_and_both_sizes_are_named():
    """Cases, row 3."""
    params = network()
    pruned, masks = prune(params, 0.9, scope="global")
    result = report(params, pruned, masks=masks)
    assert result.total.coded_bytes < result.total.dense_bytes
    assert f"dense {result.total.dense_bytes:,} bytes, coded {result.total.coded_bytes:,} bytes" in str(result)


# --- errors of the values -------------------------------------------------------------------------------------------


def test_errors_are_those_of_the_definition():
    params = network()
    after = fake_quant(params, 3)
    result = report(params, after, bits=3)
    differences, norms = [], []
    for name in params:
        old = np.asarray(params[name]["kernel"]).astype(float).ravel().tolist()
        new = np.asarray(after[name]["kernel"]).astype(float).ravel().tolist()
        row = rows_by_path(result)[f"{name}/kernel"]
        squares = sum((a - b) ** 2 for a, b in zip(old, new, strict=True))
        assert row.relative_error == pytest.approx((squares / sum(a * a for a in old)) ** 0.5, rel=1e-12)
        assert row.max_error == max(abs(a - b) for a, b in zip(old, new, strict=True))
        differences.append(squares)
        norms.append(sum(value**2 for leaf in params[name].values() for value in np.ravel(leaf).astype(float).tolist()))
    assert result.total.relative_error == pytest.approx((sum(differences) / sum(norms)) ** 0.5, rel=1e-12)
    assert result.total.max_error == max(row.max_error for row in result.rows)


def test_values_that_are_not_finite():
    before = jnp.array([jnp.nan, jnp.inf, 3.0, 4.0])
    assert report(before, before).rows[0].relative_error == 0
    assert report(before, before.at[2].set(0)).rows[0].relative_error == 0.6
    assert np.isnan(report(before, before.at[3].set(jnp.nan)).total.max_error)
    assert report(before, before.at[1].set(1)).rows[0].max_error == np.inf
    assert report(jnp.zeros(3), jnp.ones(3)).rows[0].relative_error == np.inf


def test_the_total_error_is_that_of_the_weights():
    """Position ids and keys hold numbers next to which no weight would count."""
    before = {"ids": jnp.arange(512), "key": jax.random.key(0), "w": jnp.array([3.0, 4.0])}
    result = report(before, before | {"w": jnp.array([0.0, 4.0])})
    assert result.total.relative_error == rows_by_path(result)["w"].relative_error == 0.6


# --- trees ----------------------------------------------------------------------------------------------------------


class Boxed(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
        return nn.BatchNorm(use_running_average=True)(nn.Dense(5, kernel_init=init)(x))


TREES = {
    "bare": lambda: normal(6, 5),
    "list": lambda: [normal(6, 5), {"bias": normal(5)}],
    "named": lambda: Layer(normal(6, 5), normal(5)),
    "frozen": lambda: freeze(network()),
    "boxed": lambda: Boxed().init(jax.random.key(0), jnp.ones((1, 6))),
    "nnx": lambda: nnx.state(nnx.Linear(6, 5, rngs=nnx.Rngs(0)), nnx.Param),
    "empty": dict,
    "no entries": lambda: {"kernel": normal(0, 5)},
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ("bare", "named", "frozen") else []) for n in TREES]
)
def test_containers(name):
    params = TREES[name]()
    pruned, masks = prune(params, 0.5, scope="global")
    codes = quantize(pruned, 4)
    result = report(params, codes, masks=masks)
    assert result == report(params, dequantize(codes), masks=masks, bits=4)
    assert result.total.coded_bytes == int(coded_bytes(params, masks, 4))
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    assert [row.parameters for row in result.rows] == sizes
    assert result.total.removed == sum(np.size(m) - int(np.sum(m)) for m in jax.tree.leaves(masks))
    assert str(result).count("\n") >= len(sizes)


def test_boxes_go_by_the_path_of_the_box():
    variables = TREES["boxed"]()
    paths = [row.path for row in report(variables, quantize(variables, 4)).rows]
    assert "params/Dense_0/kernel" in paths and "batch_stats/BatchNorm_0/mean" in paths


def test_leaves_that_are_not_floating_are_listed_with_their_bytes():
    params = {"f": jnp.tanh, "i": jnp.arange(5, dtype=jnp.int8), "k": jax.random.key(0), "w": normal(4, 4)}
    pruned, masks = prune(params, 0.5, scope="global")
    result = report(params, pruned, masks=masks)
    assert {row.path: row.coded_bytes for row in result.rows} == {"i": 5, "k": 8, "w": 8 * 4 + 2}
    assert int(coded_bytes(params, masks)) == result.total.coded_bytes
    assert rows_by_path(result)["i"].zeros == 1


# --- output ---------------------------------------------------------------------------------------------------------


def test_the_table_is_aligned_and_states_the_formula():
    params = network()
    pruned, masks = prune(params, 0.5, scope="global")
    result = report(params, pruned, masks=masks)
    table, footer = str(result).split("\n\n")
    lines = table.split("\n")
    assert len({len(line) for line in lines}) == 1 and len(lines) == len(result.rows) + 4
    assert (
        lines[0].split() == "leaf parameters sparsity zeros bits dense bytes coded bytes rel. error max error".split()
    )
    assert lines[-1].split()[:4] == ["total", "323", "0.5000", f"{result.total.zero_fraction:.4f}"]
    assert "ceil(kept * bits / 8) + mask + 4 a scale" in footer and "entropy coder" in footer


def test_to_dict_is_plain_and_complete():
    params = network()
    pruned, masks = prune(params, 0.5, scope="global")
    result = report(params, pruned, masks=masks)
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain == result.to_dict()
    assert [row["path"] for row in plain["rows"]] == [row.path for row in result.rows]
    assert plain["total"]["mask_sparsity"] == result.total.mask_sparsity
    assert plain["total"]["zero_fraction"] == result.total.zero_fraction
    with pytest.raises(AttributeError):
        result.total.zeros = 0  # type: ignore[misc]


# --- traced ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_counts_as_the_report_does():
    params = network()
    settings = grid(sparsity=[0.0, 0.5, 0.83, 1.0], bits=[2, 4, 7])

    def size(setting, params):
        return coded_bytes(params, prune(params, setting["sparsity"], scope="global").masks, setting["bits"])

    sizes = sweep(size, settings, params)
    batched = sweep(size, settings, params, batch_size=5)
    assert sizes.dtype == np.int32
    expected = []
    for sparsity, bits in zip(settings["sparsity"], settings["bits"], strict=True):
        pruned, masks = prune(params, sparsity, scope="global")
        expected.append(report(params, fake_quant(pruned, bits), masks=masks, bits=bits).total.coded_bytes)
    assert sizes.tolist() == batched.tolist() == expected


def test_settings_do_not_recompile():
    params, masks = network(), prune(network(), 0.5, scope="global").masks
    traced = jax.jit(chex.assert_max_traces(lambda bits: coded_bytes(params, masks, bits), n=1))
    assert [int(traced(np.float32(bits))) for bits in (2, 3, 9)] == [
        int(coded_bytes(params, masks, bits)) for bits in (2, 3, 9)
    ]


def test_sizes_beyond_32_bits():
    two = {name: jax.ShapeDtypeStruct((2**28, 2), jnp.float32) for name in "ab"}
    found = coded_bytes(two)
    assert found.dtype == jnp.float32 and float(found) == 2**32
    assert coded_bytes({"a": jax.ShapeDtypeStruct((2**28,), jnp.float32)}).dtype == jnp.int32
    with pytest.raises(ValueError, match=r"'a' may need 4294967296 bytes"):
        coded_bytes({"a": jax.ShapeDtypeStruct((2**30,), jnp.float32)})


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "options", "error", "match"),
    [
        ({"w": jnp.ones((2, 2)), "v": jnp.ones(2)}, {}, ValueError, r"before and after differ .*'v'"),
        ({"w": jnp.ones((2, 3))}, {}, ValueError, r"'w' has shape \(2, 2\) before and \(2, 3\) after"),
        ({"w": jnp.ones((2, 2), int)}, {}, TypeError, "'w' is floating before and int32 after"),
        ({"w": jnp.ones((2, 2))}, {"masks": {"v": True}}, ValueError, "params and masks differ"),
        ({"w": jnp.ones((2, 2))}, {"masks": {"w": jnp.ones((2, 2))}}, TypeError, "'w' has dtype float32"),
        (
            {"w": jnp.ones((2, 2))},
            {"masks": {"w": jnp.eye(2, dtype=bool)}},
            ValueError,
            "'w' has values under its mask",
        ),
        ({"w": jnp.ones((2, 2))}, {"bits": 0}, ValueError, r"bits must be in \[1, 16\], got 0"),
        ({"w": jnp.ones((2, 2))}, {"bits": 4, "where": "u*"}, ValueError, "'u\\*' matches no leaf"),
        (
            {"w": jnp.ones((2, 2))},
            {"bits": 4, "spec": QuantSpec(axis=2)},
            ValueError,
            r"'w' has shape \(2, 2\) and no axis 2",
        ),
        ({"w": quantize(jnp.ones((2, 2)), 5)}, {"bits": 4}, ValueError, "'w' holds 5-bit codes, but bits says 4"),
        ({"w": "text"}, {}, TypeError, "'w' is 'text'"),
    ],
)
def test_bad_input(after, options, error, match):
    with pytest.raises(error, match=match):
        report({"w": jnp.ones((2, 2))}, after, **options)


def test_traced_arrays_are_pointed_to_the_traced_count():
    with pytest.raises(TypeError, match="coded_bytes"):
        jax.jit(lambda w: report(w, w).total.coded_bytes)(jnp.ones(3))


def test_why_a_leaf_is_as_it_is():
    draw = np.random.default_rng(0)
    params = {"a": {"kernel": draw.normal(size=(30, 8)).astype(np.float32) * np.arange(1, 9, dtype=np.float32)}}
    params["a"]["bias"] = np.ones(8, np.float32)
    scores = jp.saliency.unit_norm(params)
    masks = jp.masks.by_sparsity(scores, 0.5)
    spec = jp.QuantSpec(axis=-1)
    after = jp.fake_quant(jp.masks.apply_masks(params, masks), 4, spec=spec)
    report = jp.report(params, after, masks=masks, bits=4, spec=spec, why=scores)
    (row, plain), kernel = sorted(report.rows, key=lambda row: not row.why), params["a"]["kernel"]
    assert plain.why == "" and plain.path == "a/bias"
    said = row.why.split("; ")
    assert (
        said[0] == f"saves {row.dense_bytes - row.coded_bytes:,} bytes for a relative error of {row.relative_error:.3g}"
    )
    for bits, text in zip((3, 5), said[1:3], strict=True):
        kept = np.where(np.broadcast_to(masks["a"]["kernel"], kernel.shape), kernel, 0)
        new = oracles.fake_quant_symmetric(kept, bits, axis=-1)
        error = np.linalg.norm(kernel - new) / np.linalg.norm(kernel)
        assert text == f"{bits} bits: {(bits - 4) * 30 * 4 // 8:+,} bytes, error {error:.3g}"
    sizes = np.sort(np.abs(kernel).sum(0))
    assert (
        said[3]
        == f"4 of 8 units stay, the last by a score of {sizes[4]:.4g}, and the best that goes has {sizes[3]:.4g}"
    )
    order, spread = np.argsort(np.abs(kernel).sum(0)), np.abs(kernel).sum(0).std()
    near = [f"{i} {(np.abs(kernel).sum(0)[i] - sizes[3:5].mean()) / spread:+.2f}" for i in order[1:7]]
    assert said[4] == f"from the line, in standard deviations: {', '.join(near)}"
    for i, bars in zip(order[3:5], said[5].removeprefix("weights of the two next to it: ").split(" | "), strict=True):
        counts = np.histogram(kernel[:, i], 16, (kernel.min(), kernel.max()))[0]
        assert bars == f"{i} " + "".join("▁▂▃▄▅▆▇█"[round(7 * n / counts.max())] for n in counts)
    assert "a/kernel: saves" in str(report) and max(map(len, str(report).splitlines())) <= 120
    assert "saves" not in str(jp.report(params, after, masks=masks, bits=4, spec=spec))
    single = jp.report(params, after, masks=masks, bits=1, spec=spec, why=True).rows
    assert ["2 bits" in row.why and "0 bits" not in row.why and "stay" not in row.why for row in single if row.why] == [
        True
    ]


def test_why_masks_of_weights_and_of_groups():
    kernel = np.arange(1, 17, dtype=np.float32).reshape(8, 2)
    scores = jp.saliency.magnitude(kernel)
    masks = jp.masks.by_sparsity(scores, 0.25)
    row = jp.report(kernel, jp.masks.apply_masks(kernel, masks), masks=masks, why=scores).rows[0]
    assert row.why.endswith("12 of 16 weights stay, the last by a score of 5, and the best that goes has 4")
    masks = jp.masks.n_of_m(scores, 2, 4)
    row = jp.report(kernel, jp.masks.apply_masks(kernel, masks), masks=masks, why=scores).rows[0]
    assert row.why.endswith("has 12, since groups of them were ranked by themselves")
    none = jp.report(kernel, kernel * 0, masks=masks & False, why=scores).rows[0]
    assert none.why.endswith("none of 16 weights stays")
    with pytest.raises(ValueError, match=r"scores of shape \(1, 2\) and a mask of shape \(8, 2\)"):
        jp.report(kernel, jp.masks.apply_masks(kernel, masks), masks=masks, why=jp.saliency.unit_norm(kernel))


def test_why_a_search_took_what_it_took():
    draw = np.random.default_rng(0)
    params = {
        "a": draw.normal(size=(20, 30)).astype(np.float32),
        "b": 9 * draw.normal(size=(20, 30)).astype(np.float32),
    }

    def loss(p):
        return sum(jnp.square(p[name] - params[name]).mean() for name in "ab")

    found = jp.search(loss, params, {"int": (jp.quantize, [2, 4, 8])}, limits={"bytes": 1200})
    rows = {row.path: row for row in jp.report(params, jp.dequantize(found.params), why=found).rows}
    assert set(rows) == {"a", "b"}
    for one in found.why:
        text = rows[one.group].why
        assert text.startswith(f"{one.option} saves {one.saved:,.0f} bytes and adds {one.loss:.3g} to the loss alone; ")
        for step in filter(None, (one.smaller, one.larger)):
            assert f"; {step.option}: {step.nbytes:+,.0f} bytes, {step.loss:+.3g} to the loss of all" in text
