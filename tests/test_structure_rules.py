"""Each rule on functions of a few operations: what it ties, and that the smaller function equals the masked one."""

import functools

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from test_structure_zoo import FAST, close, random_plan

from jaxprune.program.primitives import RULES
from jaxprune.structure import trace

# Parameters by the letter of their name; all functions take an input (2, 3).
SHAPES = {"a": (3, 6), "b": (6, 4), "c": (3, 6), "d": (12, 4), "s": (6,), "w": (3, 12)}
TABLE = np.linspace(-1, 1, 36, dtype=np.float32).reshape(6, 6)


def struct(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)


class Asked(dict):
    """Parameters that come into being when a function asks for them."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes = shapes

    def __missing__(self, name):
        return self.setdefault(name, jnp.zeros(self.shapes[name]))


def case(function, *groups, **shapes):
    """A function of ``(params, x, h)`` with ``h = x @ a``, and its groups, as ``"size: path:axis ..."``."""
    return function, groups, SHAPES | shapes


def image(p, h):
    """A value (2, 4, 6) with 6 units along its last axis."""
    return h[:, None, :] * jnp.arange(1.0, 5)[:, None]


def collected(h, other):
    """Two sums by one collective, a mean, a maximum, over the axis of a vmap."""

    def one(h, other):
        first, second = lax.psum((h, other), "batch")
        return first * second + lax.pmean(h, "batch") * lax.pmax(lax.stop_gradient(h), "batch")

    return jax.vmap(one, axis_name="batch")(h, other)


@jax.custom_jvp
def tripled(x, y):
    return jnp.sin(x) * y


@tripled.defjvp
def _tripled_jvp(primals, tangents):
    return tripled(*primals), 3 * tangents[0] * primals[1] + tangents[1]  # not the derivative, on purpose


@jax.custom_vjp
def rounded(x):
    return jnp.round(4 * x) / 4


rounded.defvjp(lambda x: (rounded(x), jnp.abs(x) < 1), lambda inside, g: (jnp.where(inside, g, 0),))


def scanned(p, h):
    """Carries a value, takes a constant, steps over matrices, stacks what it passes."""

    def step(carry, matrix):
        carry = jnp.tanh(carry @ matrix) * p["s"]
        return carry, 2 * carry

    carry, stacked = lax.scan(step, h, p["m"], reverse=True)
    return carry @ p["b"] + stacked.sum(0) @ p["e"]


def looped(p, h):
    def body(state):
        i, h = state
        return i + 1, jnp.sin(h) * p["s"]

    return lax.while_loop(lambda state: (state[0] < 3) & (jnp.abs(state[1]).max() < 9), body, (0, h))[1] @ p["b"]


def branched(p, x, h):
    index = (x[0, 0] > 0).astype(jnp.int32) + (x[1, 0] > 0)
    branches = [lambda h: h * p["s"], lambda h: jnp.zeros((2, 6)), lambda h: h[:, ::-1]]
    return lax.switch(index, branches, h) @ p["b"]


ROWS = np.array([2, 0], np.int32)
SUMS = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
)
AB, ABS = "6: a:1 b:0", "6: a:1 b:0 s:0"
CASES = {
    "repeated along an axis": case(lambda p, x, h: lax.mul(h, p["r"]) @ p["b"], "6: a:1 b:0 r:1", r=(1, 6)),
    "repeated along both": case(
        lambda p, x, h: h @ lax.add(p["u"], p["v"]) @ p["y"], "6: a:1 u:0", "5: v:1 y:0", u=(6, 1), v=(1, 5), y=(5, 4)
    ),
    "three operands": case(lambda p, x, h: lax.select_n(h > 0, h * p["s"], x @ p["c"]) @ p["b"], ABS + " c:1"),
    "a scalar predicate": case(lambda p, x, h: lax.select_n(x[0, 0] > 0, h, x @ p["c"]) @ p["b"], AB + " c:1"),
    "clamp by scalars": case(lambda p, x, h: lax.clamp(-0.5, h, x[0, 0]) @ p["b"], AB),
    "clamp by arrays": case(lambda p, x, h: lax.clamp(-h * h, h, h * h + p["s"]) @ p["b"], ABS),
    "derivatives": case(lambda p, x, h: jax.vjp(jnp.tanh, h)[1](p["s"] * h)[0] @ p["b"], ABS),
    "logarithm": case(lambda p, x, h: jnp.log2(1 + h * h) @ p["b"], AB),
    "a polynomial": case(lambda p, x, h: jnp.polyval(jnp.array([1.0, -2, 3]), h) @ p["b"], AB),
    "placed": case(lambda p, x, h: jax.device_put(h) @ p["b"], AB),
    "a barrier": case(lambda p, x, h: sum(lax.optimization_barrier((h, x @ p["c"]))) @ p["b"], AB + " c:1"),
    "bits": case(lambda p, x, h: lax.bitcast_convert_type(h, jnp.int32).astype(jnp.float32) * 1e-9 @ p["b"], AB),
    "integers": case(lambda p, x, h: lax.population_count((9 * h).astype(jnp.uint32)) * h @ p["b"], AB),
    "merged": case(lambda p, x, h: (h[:, :, None] * x[:, None, :2]).reshape(2, 12) @ p["d"], "6: a:1 d:0"),
    "merged, last of two": case(lambda p, x, h: (x[:, :2, None] * h[:, None]).reshape(2, 12) @ p["d"], "6: a:1 d:0"),
    "split as it was merged": case(
        lambda p, x, h: (h[:, :, None] * x[:, None, :2]).reshape(2, 12).reshape(2, 6, 2)[..., 1] @ p["b"], AB
    ),
    "grouped anew": case(lambda p, x, h: (h.T @ p["k"]).reshape(4, 3).T @ p["b"].T, "2: a:1 b:1", k=(2, 2), b=(4, 4)),
    "axes of size 1": case(lambda p, x, h: h.reshape(1, 2, 1, 6, 1)[0, :, 0, :, 0] @ p["b"], AB),
    "transposed": case(lambda p, x, h: p["b"].T @ h.T, AB),
    "reversed": case(lambda p, x, h: h[:, ::-1] * p["s"] @ p["b"], ABS),
    "rolled": case(lambda p, x, h: (h + jnp.roll(h, 2, 1)) @ p["b"], "2: a:1 b:0"),
    "joined": case(lambda p, x, h: jnp.concatenate([h, x @ p["c"]], 1) @ p["d"], "6: a:1 d:0", "6: c:1 d:0"),
    "joined along another axis": case(lambda p, x, h: jnp.concatenate([h, x @ p["c"]]) @ p["b"], AB + " c:1"),
    "split in halves": case(
        lambda p, x, h: functools.reduce(jnp.multiply, jnp.split(x @ p["w"], 2, 1)) @ p["b"], "6: w:1 b:0", "6: a:1"
    ),
    "every other": case(lambda p, x, h: h[:, ::2] * h[:, 1::2] @ p["y"], "3: a:1 y:0", y=(3, 4)),
    "a part": case(lambda p, x, h: h[:, 1:5] @ p["y"], "4: a:1 y:0", "2: a:1", y=(4, 4)),
    "padded": case(lambda p, x, h: jnp.pad(h, ((0, 0), (1, 2))) @ p["y"], "6: a:1 y:0", "3: y:0", y=(9, 4)),
    "padded along another axis": case(lambda p, x, h: lax.pad(h, 0.5, ((1, 0, 2), (0, 0, 0))) @ p["b"], AB),
    "stacked": case(lambda p, x, h: jnp.stack([h, x @ p["c"]], 1).sum(1) @ p["b"], AB + " c:1"),
    "unstacked": case(lambda p, x, h: jnp.stack(jnp.unstack(h)[::-1]) @ p["b"], AB),
    "tiled": case(lambda p, x, h: jnp.tile(h, (2, 2)) @ p["d"], "6: a:1 d:0"),
    "one entry tiled": case(lambda p, x, h: jnp.tile(x[:, :1], (1, 6)) * h @ p["b"], AB),
    "repeated entries": case(lambda p, x, h: jnp.repeat(h, 2, 1) @ p["d"], "6: a:1 d:0"),
    "looked up": case(lambda p, x, h: p["e"][jnp.array([[3, 0], [1, 1]])] @ p["b"], "6: e:1 b:0", "6: a:1", e=(7, 6)),
    "looked up in a batch": case(
        lambda p, x, h: jnp.take_along_axis(h.T[:, :, None], jnp.ones((6, 1, 1), int), 1)[:, 0].T @ p["b"], AB
    ),
    "written": case(lambda p, x, h: jnp.zeros((3, 6)).at[jnp.array([2, 0])].set(h) @ p["b"], AB),
    "added where": case(lambda p, x, h: jnp.ones((3, 6)).at[jnp.array([2, 2])].add(h) @ p["b"], AB),
    "subtracted where": case(lambda p, x, h: jnp.ones((3, 6)).at[x[0, :2].astype(int)].subtract(h) @ p["b"], AB),
    "sliced at run time": case(
        lambda p, x, h: lax.dynamic_slice(h, ((x[0, 0] > 0).astype(int), 0), (1, 6)) @ p["b"], AB
    ),
    "updated at run time": case(
        lambda p, x, h: lax.dynamic_update_slice(jnp.ones((4, 6)), h, ((x[0, 0] > 0).astype(int), 0)) @ p["b"], AB
    ),
    "cumulative": case(lambda p, x, h: (lax.cumsum(h, 0) + lax.cummax(h, 0, reverse=True)) @ p["b"], AB),
    "sorted": case(
        lambda p, x, h: (lambda one, two: one @ p["b"] + two @ p["e"])(
            *lax.sort((h, x @ p["c"]), dimension=0, num_keys=1)
        ),
        "6: a:1 b:0 c:1 e:0",
        e=(6, 4),
    ),
    "positions of extremes": case(lambda p, x, h: (jnp.argmax(h, 0) + 2.0 * jnp.argmin(h, 0)) @ p["b"], AB),
    "largest": case(lambda p, x, h: lax.top_k(h.T, 1)[0].T @ p["b"], AB),
    "reduced": case(lambda p, x, h: (h.max(0) * h.min(0) + h.prod(0) - (h > 0).any(0)) @ p["b"], AB),
    "windows": case(
        lambda p, x, h: lax.reduce_window(image(p, h), -jnp.inf, lax.max, (1, 2, 1), (1, 2, 1), "SAME").sum(1) @ p["b"],
        AB,
    ),
    "a Fourier transform": case(lambda p, x, h: jnp.abs(jnp.fft.fft(h.T)).T @ p["b"], AB),
    "products in a batch": case(lambda p, x, h: jnp.einsum("bi,bi->b", h, x @ p["c"]), "6: a:1 c:1"),
    "products for each": case(lambda p, x, h: jnp.einsum("bi,ij->bi", h, p["b"] ** 2) @ p["b"], AB),
    "a convolution": case(
        lambda p, x, h: (
            lax.conv_general_dilated(image(p, h), p["k"], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")).sum(1)
            @ p["y"]
        ),
        "6: a:1 k:1",
        "5: k:2 y:0",
        k=(3, 6, 5),
        y=(5, 4),
    ),
    "a convolution in groups": case(
        lambda p, x, h: (
            lax.conv_general_dilated(
                image(p, h), p["k"], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"), feature_group_count=3
            ).sum(1)
            @ p["y"]
        ),
        "3: a:1 k:2 y:0",
        k=(3, 2, 9),
        y=(9, 4),
    ),
    "rows of groups": case(
        lambda p, x, h: lax.ragged_dot(h * lax.ragged_dot(x, p["up"], ROWS), p["down"], ROWS),
        "6: a:1 up:2 down:1",
        up=(2, 3, 6),
        down=(2, 6, 4),
    ),
    "sums of groups": case(
        lambda p, x, h: p["y"] @ lax.ragged_dot_general(h, x @ p["c"], ROWS, SUMS).sum(0) @ p["b"],
        "6: a:1 y:1",
        "6: c:1 b:0",
        y=(2, 6),
    ),
    "collected over a batch": case(lambda p, x, h: collected(h, x @ p["c"]) @ p["b"], AB + " c:1"),
    "looked up one by one": case(
        lambda p, x, h: jax.vmap(lambda i: p["e"][i])(jnp.array([3, 0])) * h @ p["b"], AB + " e:1", e=(7, 6)
    ),
    "written one by one": case(
        lambda p, x, h: jax.vmap(lambda i, row: jnp.zeros((3, 6)).at[i].set(row))(jnp.array([2, 0]), h).sum(1) @ p["b"],
        AB,
    ),
    "a mask of positions": case(lambda p, x, h: jnp.where(jnp.arange(6) % 2 == 0, h, 0.5) @ p["b"], AB),
    "random numbers": case(lambda p, x, h: (h + jax.random.normal(jax.random.key(3), (2, 6))) @ p["b"], AB),
    "random numbers of old keys": case(
        lambda p, x, h: h * jax.random.bernoulli(jax.random.PRNGKey(3), 0.5, (6,)) @ p["b"], AB
    ),
    "a table": case(lambda p, x, h: h * TABLE[0] @ jnp.asarray(TABLE) @ p["b"], "6: a:1", "6: b:0"),
    "jit": case(lambda p, x, h: jax.jit(lambda h, s: jnp.sin(h) * s)(h, p["s"]) @ p["b"], ABS),
    "jit, twice": case(
        lambda p, x, h: (lambda twice: jnp.concatenate([twice(h), twice(x @ p["c"])], 1))(jax.jit(jnp.sin)) @ p["d"],
        "6: a:1 d:0",
        "6: c:1 d:0",
    ),
    "remat": case(lambda p, x, h: jax.checkpoint(lambda h: jnp.sin(h) * p["s"])(h) @ p["b"], ABS),
    "scan": case(
        lambda p, x, h: scanned(p, h),
        "6: a:1 b:0 s:0 e:0 m:1 m:2",
        m=(3, 6, 6),
        e=(6, 4),
    ),
    "while": case(lambda p, x, h: looped(p, h), ABS),
    "branches": case(branched, "3: a:1 b:0 s:0"),
    "relu at 0": case(lambda p, x, h: jax.nn.relu(h - lax.stop_gradient(h) * (jnp.arange(6) > 2)) @ p["b"], AB),
    "a derivative of its own": case(lambda p, x, h: tripled(h, p["s"] * jnp.ones((2, 6))) @ p["b"], ABS),
    "straight through": case(lambda p, x, h: rounded(h * p["s"]) @ p["b"], ABS),
}
#: Where the gradients are compared as well.
GRADIENTS = set(list(CASES)[list(CASES).index("jit") :]) - {"while"}


@functools.cache
def traced(name):
    function, _, shapes = CASES[name]

    def whole(params, x):
        return function(params, x, x @ params["a"])

    asked = Asked(shapes)
    jax.eval_shape(lambda x: whole(asked, x), struct(2, 3))
    params = {key: struct(*shapes[key]) for key in asked}
    return whole, params, trace(whole, params, struct(2, 3))


def lines(graph):
    return {f"{g.size}: " + " ".join(sorted(f"{path}:{axis}" for path, axis in g.members)) for g in graph.groups}


@pytest.mark.parametrize("name", CASES)
def test_what_a_rule_ties(name):
    expected = {(line.partition(": ")[0], *sorted(line.partition(": ")[2].split())) for line in CASES[name][1]}
    assert len({group.name for group in traced(name)[2].groups}) == len(traced(name)[2].groups)
    assert {(line.partition(": ")[0], *line.partition(": ")[2].split()) for line in lines(traced(name)[2])} == expected


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_removal_equals_masking(name, seed):
    function, params, graph = traced(name)
    params, x = zoo.fill(params), zoo.fill(struct(3, 3), 1)[:2]
    smaller = graph.at(random_plan(graph.groups, seed))

    def answers(function, params):
        def loss(params):
            out = function(params, x)
            return jnp.vdot(jnp.cos(jnp.arange(out.size)).reshape(out.shape), out), out

        if name not in GRADIENTS:
            return loss(params)[1], None
        gradient, out = jax.grad(loss, has_aux=True)(params)
        return out, gradient

    @functools.partial(jax.jit, compiler_options=FAST)
    def compare(cut, masked):
        return answers(smaller.apply, cut), answers(function, masked)

    (out, gradient), (expected, expected_gradient) = compare(smaller.cut(params), smaller.mask(params))
    close(out, expected)
    if gradient is not None:
        close(gradient, smaller.cut(expected_gradient))


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("remat", "remat2|checkpoint"),
        ("scan", "scan"),
        ("while", "while"),
        ("branches", "cond"),
        ("relu at 0", "custom_jvp_call"),
        ("straight through", "custom_vjp_call"),
    ],
)
def test_programs_that_are_called_stay_what_they_are(name, operation):
    _, params, graph = traced(name)
    plan = random_plan(graph.groups)
    small = jax.make_jaxpr(graph.at(plan).apply)(graph.at(plan).cut(zoo.fill(params)), struct(2, 3))
    assert {equation.primitive.name for equation in small.jaxpr.eqns} & set(operation.split("|"))


def test_second_derivatives():
    """Products with the Hessian, through functions with derivatives of their own."""

    def function(params, x):
        h = jax.nn.gelu(x @ params["a"])
        h = tripled(h, jax.nn.silu(h)) + rounded(h) * h
        return ((jax.nn.relu(h * params["s"]) @ params["b"]) ** 2).sum()

    params = {"a": struct(3, 6), "s": struct(6), "b": struct(6, 4)}
    graph = trace(function, params, struct(2, 3))
    plan = random_plan(graph.groups)
    params, direction, x = zoo.fill(params), zoo.fill(params, 2), zoo.fill(struct(2, 3), 1)

    def products(function, params, direction):
        return jax.grad(lambda params: optax.tree.vdot(jax.grad(function)(params, x), direction))(params)

    @functools.partial(jax.jit, compiler_options=FAST)
    def compare(cut, masked):
        return products(graph.at(plan).apply, *cut), products(function, *masked)

    cut, masked = (
        [change(tree) for tree in (params, direction)] for change in (graph.at(plan).cut, graph.at(plan).mask)
    )
    small, dense = compare(cut, masked)
    close(small, graph.at(plan).cut(dense), 10)


# --- random networks ------------------------------------------------------------------------------------------------

ACTS = (jnp.tanh, jax.nn.relu, jax.nn.sigmoid, lambda h: h + 0.5)


@st.composite
def networks(draw):
    """Steps ``(kind, sources, detail)`` on a growing list of values (2, width), and the parameters' shapes."""
    widths, steps, shapes = [3], [], []

    def add(kind, sources, width, detail=None, shape=None):
        steps.append((kind, sources, detail))
        widths.append(width)
        shapes.append(struct(*shape) if shape else struct(1))

    add("dense", [0], 6, shape=(3, 6))
    for _ in range(draw(st.integers(2, 7))):
        source = draw(st.integers(1, len(widths) - 1))
        width = widths[source]
        alike = [i for i in range(1, len(widths)) if widths[i] == width]
        kinds = ["dense", "scale", "act", "add", "multiply", "join", "roll", "pad"] + ["halves", "pairs"] * (
            width % 2 == 0
        )
        kind = draw(st.sampled_from(kinds))
        if kind == "dense":
            out = draw(st.sampled_from([4, 6]))
            add(kind, [source], out, shape=(width, out))
        elif kind == "join":
            other = draw(st.integers(1, len(widths) - 1))
            add(kind, [source, other], width + widths[other])
        elif kind in ("add", "multiply"):
            add(kind, [source, draw(st.sampled_from(alike))], width)
        elif kind == "scale":
            add(kind, [source], width, shape=(width,))
        elif kind == "act":
            add(kind, [source], width, draw(st.integers(0, len(ACTS) - 1)))
        else:
            detail = draw(st.integers(1, 2))
            add(kind, [source], {"roll": width, "pad": width + detail}.get(kind, width // 2), detail)
    ends = sorted({len(widths) - 1, draw(st.integers(1, len(widths) - 1))})
    add("end", ends, 2, shape=(sum(widths[i] for i in ends), 2))
    return tuple(steps), shapes


def run(steps, params, x):
    values = [x]
    for (kind, sources, detail), param in zip(steps, params, strict=True):
        h, *others = (values[i] for i in sources)
        values.append(
            {
                "dense": lambda h=h, param=param: h @ param,
                "scale": lambda h=h, param=param: h * param,
                "act": lambda h=h, detail=detail: ACTS[detail](h),
                "add": lambda h=h, others=others: h + others[0],
                "multiply": lambda h=h, others=others: h * others[0],
                "join": lambda h=h, others=others: jnp.concatenate([h, *others], 1),
                "roll": lambda h=h, detail=detail: h + jnp.roll(h, detail, 1),
                "pad": lambda h=h, detail=detail: jnp.pad(h, ((0, 0), (detail, 0))),
                "halves": lambda h=h: functools.reduce(jnp.multiply, jnp.split(h, 2, 1)),
                "pairs": lambda h=h: jnp.multiply(*jnp.unstack(h.reshape(2, -1, 2), axis=2)),
                "end": lambda h=h, others=others, param=param: jnp.concatenate([h, *others], 1) @ param,
            }[kind]()
        )
    return values[-1]


NETWORKS = given(networks(), st.integers(0, 3))


@NETWORKS
@settings(max_examples=4)
def test_random_networks(network, seed):
    holds(network, seed)


@pytest.mark.slow
@NETWORKS
@settings(max_examples=40)
def test_many_random_networks(network, seed):
    holds(network, seed)


def holds(network, seed):
    steps, shapes = network
    function = functools.partial(run, steps)
    graph = trace(function, shapes, struct(2, 3))
    plan = random_plan(graph.groups, seed)
    params, x = zoo.fill(shapes, seed), zoo.fill(struct(2, 3), seed)
    cut, masked = graph.at(plan).cut(params), graph.at(plan).mask(params)
    for group in graph.groups:
        for (path, axis), units in zip(group.members, group.units, strict=True):
            lost = np.isin(units, np.setdiff1d(np.arange(group.size), plan[group.name])) & (units >= 0)
            assert not np.take(np.asarray(masked[int(path)]), np.flatnonzero(lost), axis).any()
    small = graph.at(plan).apply
    both = jax.jit(lambda cut, masked: (small(cut, x), function(masked, x)), compiler_options=FAST)
    close(*both(cut, masked))


# --- all operations -------------------------------------------------------------------------------------------------

#: Operations that pin what they touch, on purpose: they need their operands whole, or mix all of their entries, or are
#: met only inside bodies for several devices or kernels.
WITHOUT = """
after_all all_gather all_to_all approx_top_k axis_index call cholesky create_token custom_lin custom_linear_solve
dce_sink eig eigh empty2 eval_jaxpr get hessenberg householder_product linear_solve lu ppermute qr
ragged_all_to_all random_gamma random_split reduce reduce_window rng_bit_generator rng_uniform schur
select_and_gather_add select_and_scatter select_and_scatter_add sharding_constraint svd swap triangular_solve
tridiagonal tridiagonal_solve
""".split()

#: Names of operations on one of the supported versions of JAX alone, or that JAX does not list.
UNLISTED = """
checkpoint closed_call copy_p core_call empty log2 one_minus_square pjit polynomial ragged_dot_general
random_gamma_grad random_unwrap random_wrap remat
""".split()


def test_every_operation_has_a_rule_or_is_known_to_have_none():
    everything = [*vars(jex.primitives).values(), *(getattr(lax, name) for name in dir(lax) if name.endswith("_p"))]
    known = {value.name for value in everything if isinstance(value, jex.Primitive)}
    assert len(known) > 150
    new = known - RULES.keys() - set(WITHOUT)
    assert not new, (
        f"new operations {sorted(new)}: add each to the rules of its kind in jaxprune/program/primitives, with a case "
        "here (to elementwise.UNBOUND if it treats every entry alone), or to WITHOUT if it is to pin what it touches"
    )
    assert not RULES.keys() & set(WITHOUT)
    unknown = RULES.keys() - known - set(UNLISTED)
    assert not unknown, f"rules for operations that there are not: {sorted(unknown)}"
