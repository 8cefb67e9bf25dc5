"""A compressed network that learns from its original: what moves, what stays, and that it never gets worse."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

import jaxprune as jp
from jaxprune.quantization import to_n_of_m
from jaxprune.recovery import RecoverySpec, recover

RNG = np.random.default_rng(0)
PARAMS = {
    name: {"kernel": jnp.asarray(RNG.normal(size=shape), jnp.float32), "bias": jnp.zeros(shape[1])}
    for name, shape in {"layer_0": (8, 16), "layer_1": (16, 4)}.items()
}
BATCHES = [RNG.normal(size=(16, 8)).astype(np.float32) for _ in range(10)]
SHORT = RecoverySpec(rates=(1e-2,))


def apply(params, x):
    x = jnp.tanh(x @ params["layer_0"]["kernel"] + params["layer_0"]["bias"])
    return x @ params["layer_1"]["kernel"] + params["layer_1"]["bias"]


def n_of_m(params):
    masks = jp.masks.n_of_m(jp.saliency.magnitude(params), 2, 4)
    return to_n_of_m(params, masks)


def encoded(params):
    stats = jp.calibration.collect(apply, params, np.concatenate(BATCHES), key=jax.random.key(0))
    return jp.calibration.encode(params, stats, 4.0)


FORMS = {
    "2 bits": lambda p: jp.quantize(p, 2, spec=jp.QuantSpec(axis="units")),
    "1 bit": lambda p: jp.quantize(p, 1),
    "asymmetric": lambda p: jp.quantize(p, 3, spec=jp.QuantSpec(symmetric=False, axis="units")),
    "blocks": lambda p: jp.quantize(p, 2, spec=jp.QuantSpec(block_size=3)),
    "codebook": lambda p: jp.codebook.kmeans(p, 4),
    "trellis": lambda p: jp.compress(p, 1.5, quantizer="trellis").decompress(),
    "encode": encoded,
    "2:4": n_of_m,
    "pruned": lambda p: jp.prune(p, 0.7).params,
}


def parts_of(params):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


@pytest.mark.parametrize("train", ["scales", "all"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_learns_and_stays_what_it_is(form, train):
    small = FORMS[form](PARAMS)
    found = recover(apply, small, PARAMS, BATCHES, train=train, loss="squared_error", steps=40, spec=SHORT)
    weights = train == "all" and form in ("2 bits", "asymmetric", "blocks", "2:4", "pruned")
    assert found.after < (0.95 if weights else 1) * found.before
    chex.assert_trees_all_equal_shapes_and_dtypes(found.params, small)
    assert jax.tree.structure(found.params) == jax.tree.structure(small)
    after = parts_of(found.params)
    for name, part in parts_of(small).items():
        if part.dtype.kind in "iub":
            learns = weights and name.endswith(".codes")
        else:
            learns = train == "all" or not name.endswith(("['kernel']", ".values"))
        if not learns:
            np.testing.assert_array_equal(part, after[name], name)
    if form == "pruned":
        kernels = (small["layer_0"]["kernel"], found.params["layer_0"]["kernel"])
        chex.assert_trees_all_equal(*(kernel != 0 for kernel in kernels))
    if train == "scales" and form != "pruned":
        assert jp.compress(found.params).nbytes <= jp.compress(small).nbytes + 64  # biases are no longer zeros


def test_what_is_lost_is_of_what_came_in():
    small = jp.quantize(PARAMS, 3)
    found = recover(apply, small, PARAMS, BATCHES, loss="squared_error", steps=20, spec=SHORT)
    held = BATCHES[0]  # one of ten
    for params, said in ((small, found.before), (found.params, found.after)):
        ours, theirs = apply(jp.dequantize(params), held), apply(PARAMS, held)
        np.testing.assert_allclose(said, jnp.square(ours - theirs).mean() / jnp.square(theirs).mean(), rtol=1e-5)


def test_codes_stay_within_their_bits():
    small = jp.quantize(PARAMS, 2)
    found = recover(
        apply, small, PARAMS, BATCHES, train="all", loss="squared_error", steps=40, spec=RecoverySpec(rates=(0.3,))
    )
    codes = np.asarray(found.params["layer_0"]["kernel"].codes)
    assert set(np.unique(codes)) <= {-1, 0, 1}
    assert (codes != np.asarray(small["layer_0"]["kernel"].codes)).any()


def test_scales_of_a_linear_layer_reach_least_squares():
    w, inputs = RNG.normal(size=(8, 5)).astype(np.float32), [RNG.normal(size=(32, 8)).astype(np.float32)] * 4
    small = jp.quantize(jnp.asarray(w), 2, spec=jp.QuantSpec(axis=-1))
    spec = RecoverySpec(rates=(3e-2,), mix=False)
    found = recover(lambda w, x: x @ w, small, jnp.asarray(w), inputs, loss="squared_error", steps=600, spec=spec)
    wanted = oracles.least_squares_scales(np.asarray(small.codes), w, inputs[0])
    np.testing.assert_allclose(found.params.scale[0], wanted, rtol=3e-3)
    np.testing.assert_array_equal(found.params.codes, small.codes)


def test_never_worse_at_any_rate():
    small = jp.quantize(PARAMS, 3)
    found = recover(apply, small, PARAMS, BATCHES, train="all", steps=10, spec=RecoverySpec(rates=(100.0,)))
    assert found.after <= found.before
    if found.after == found.before:
        assert found.params is small


def test_the_same_twice_and_one_program_for_all_steps_and_rates():
    traces = chex.assert_max_traces(lambda params, x: apply(params, x), n=4)  # shapes, the loss, a step and its teacher
    small = jp.quantize(PARAMS, 2)
    chex.clear_trace_counter()
    first = recover(traces, small, PARAMS, BATCHES, steps=16, spec=RecoverySpec(original_apply=apply))
    chex.assert_trees_all_equal(first.params, recover(apply, small, PARAMS, BATCHES, steps=16).params)
    other = recover(apply, small, PARAMS, BATCHES, steps=16, spec=RecoverySpec(seed=1))
    assert any((x != y).any() for x, y in zip(*map(jax.tree.leaves, (first.params, other.params)), strict=True))


def test_patterns_choose_parts():
    small = jp.quantize(PARAMS, 2)
    found = recover(apply, small, PARAMS, BATCHES, train="layer_0/kernel/scale", steps=20, spec=SHORT)
    assert found.params["layer_1"] is not None
    moved = [name for name, part in parts_of(small).items() if (part != parts_of(found.params)[name]).any()]
    assert moved == ["['layer_0']['kernel'].scale"]


def test_a_shrunk_network_learns_from_the_one_that_it_was():
    small = jp.shrink(apply, PARAMS, BATCHES[0], sparsity=0.5)
    spec = RecoverySpec(original_apply=apply)
    found = recover(small.apply, small.params, PARAMS, BATCHES, train="all", loss="squared_error", steps=60, spec=spec)
    assert found.after < 0.95 * found.before
    chex.assert_trees_all_equal_shapes_and_dtypes(found.params, small.params)


def test_states_of_nnx():
    model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    small = jp.quantize(state, 2)
    found = recover(lambda state, x: nnx.merge(graph, state)(x), small, state, BATCHES, steps=20, spec=SHORT)
    assert jax.tree.structure(found.params) == jax.tree.structure(small)
    assert found.after < found.before


def test_what_it_shows_fits_a_line():
    found = recover(apply, jp.quantize(PARAMS, 2), PARAMS, BATCHES, steps=10, spec=SHORT)
    assert repr(found).startswith("Recovered(loss ")
    assert len(repr(found)) < 100


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batches": BATCHES[:1]}, "batches must be at least 2, of which one is held back; there are 1"),
        ({"batches": [x * np.nan for x in BATCHES]}, "not finite at the start"),
        ({"train": "*/step"}, r"train: '\*/step' matches none of .*layer_0/kernel/scale"),
        ({"train": []}, "nothing to train"),
        ({"loss": "error"}, "loss must be one of .*divergence.* or a function"),
        (
            {"spec": RecoverySpec(original_apply=lambda params, x: apply(params, x)[:, :2])},
            r"outputs of params have shapes \(16, 4\)",
        ),
        ({"steps": 0}, "steps must be at least 1, got 0"),
    ],
)
def test_bad_input(wrong, message):
    given = {"batches": BATCHES, **wrong}
    with pytest.raises(ValueError, match=message):
        recover(apply, jp.quantize(PARAMS, 2), PARAMS, given.pop("batches"), **given)


@pytest.mark.parametrize(
    ("wrong", "message"), [({"held_back": 1.5}, "between 0 and 1, got 1.5"), ({"rates": ()}, "rates")]
)
def test_bad_settings(wrong, message):
    with pytest.raises(ValueError, match=message):
        RecoverySpec(**wrong)
