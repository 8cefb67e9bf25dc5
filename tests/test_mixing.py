"""The mixing coder of files: lossless, small where there is something to learn, the same on every machine, safe."""

import hashlib
import tracemalloc

import hypothesis.extra.numpy as hnp
import numpy as np
import oracles_files
import oracles_mixing as oracles
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxprune.files import learning, mixing, wavefront
from jaxprune.files.bytestream import FormatError, unsigned

pytestmark = pytest.mark.slow

MOST = 17
values = st.one_of(st.sampled_from((0, 0, 0, 1, -1, 2, -MOST, MOST)), st.integers(-MOST, MOST))


def drawn(shape, density, scale, seed=0):
    """Integers of which `density` are not 0, with magnitudes from 1 on: independent of each other."""
    rng = np.random.default_rng(seed)
    size = 1 + np.floor(np.abs(rng.normal(size=shape)) * scale)
    return (size * rng.choice([-1, 1], shape) * (rng.random(shape) < density)).astype(np.int32)


def image(side, columns, seed=0):
    """What a first layer learns of images: near pixels have like signs, the middle is dense, some units are more so."""
    rng = np.random.default_rng(seed)
    field = rng.normal(size=(columns, side + 4, side + 4))
    for _ in range(3):
        field = field + np.roll(field, 1, 1) + np.roll(field, 1, 2)
    at = np.arange(side)
    middle = np.exp(-(((at - side / 2) / side * 3) ** 2))
    density = 0.6 * np.outer(middle, middle) * rng.uniform(0.2, 1, (columns, 1, 1))
    codes = np.where(field[:, 4:, 4:] > 0, 1, -1) * (rng.random(density.shape) < density)
    return codes.reshape(columns, -1).T.astype(np.int32)


def low_rank(shape, rank, seed=0):
    rng = np.random.default_rng(seed)
    product = rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1]))
    return (np.sign(product) * (rng.random(shape) < 0.4)).astype(np.int32)


CASES = {
    "no rows": np.zeros((0, 5), np.int32),
    "no columns": np.zeros((3, 0), np.int32),
    "one": np.full((1, 1), 7, np.int32),
    "zero": np.zeros((4, 4), np.int32),
    "equal": np.full((9, 11), -3, np.int32),
    "least": np.full((2, 2), -MOST, np.int32),
    "extremes": np.array([[-MOST, MOST, 0], [MOST, MOST, -1]], np.int32),
    "row": drawn((1, 50), 0.5, 2),
    "column": drawn((50, 1), 0.5, 2),
    "ternary": drawn((30, 20), 0.2, 0),
    "outlier": np.where(np.arange(300).reshape(20, 15) == 77, MOST, drawn((20, 15), 0.3, 2)).astype(np.int32),
    "wide": np.clip(drawn((20, 20), 0.8, 8), -MOST, MOST),
    "dense": drawn((12, 40), 1.0, 4),
    "image": image(8, 20),
}


@pytest.mark.parametrize("name", CASES)
def test_codes_come_back(name):
    codes = CASES[name]
    data = mixing.encode(codes)
    assert isinstance(data, bytes)
    back = mixing.decode(data, codes.shape)
    assert back.dtype == np.int32
    np.testing.assert_array_equal(back, codes)
    turned = np.asfortranarray(codes)
    assert mixing.encode(turned) == data


@given(hnp.arrays(np.int32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9), elements=values))
def test_any_integers_come_back(codes):
    np.testing.assert_array_equal(mixing.decode(mixing.encode(codes), codes.shape), codes)


LAGGED = {
    "ternary": [1, 3],
    "outlier": [],
    "wide": [2],
    "dense": [],
    "row": [],
    "column": [1, 2],
    "image": [1, 7, 8, 9],
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ("outlier", "wide", "column") else []) for n in LAGGED]
)
def test_read_one_by_one_with_integers_of_python(name):
    codes = CASES[name][:, :12] if name == "image" else CASES[name]
    data = mixing._encode(codes, LAGGED[name])
    np.testing.assert_array_equal(oracles.mixed(data, codes.shape), codes)
    np.testing.assert_array_equal(mixing.decode(data, codes.shape), codes)


def test_the_bytes_never_change():
    digest = hashlib.sha256(b"".join(mixing._encode(CASES[name], lags) for name, lags in LAGGED.items())).hexdigest()
    assert digest[:16] == "5a01a04cceac6d6a"


def test_logarithms_and_sigmoids_are_exact():
    numbers = np.concatenate([np.arange(1, 5000), 2 ** np.arange(53), 2 ** np.arange(1, 53) - 1, 3 ** np.arange(33)])
    assert learning.log(numbers.astype(np.float64)).tolist() == [oracles.log(int(n)) for n in numbers]
    np.testing.assert_allclose(learning.log(numbers.astype(np.float64)) / 2**20, np.log(numbers), atol=2.6e-4)
    steps = np.arange(-3000, 3001)
    sigmoids = learning.squash(steps * 2.0**18)
    assert sigmoids.tolist() == [oracles._sigmoid(oracles.clip(int(s), 2816)) for s in steps]
    np.testing.assert_allclose(sigmoids / 2**16, 1 / (1 + np.exp(-steps / 256)), atol=2**-16)


def test_sums_are_exact_in_float64():
    most, longest = learning.UNIT // 4 + 1, 2**11  # p (1 - p); the shorter side of 2**22 entries
    assert longest**2 == mixing._MOST_ENTRIES
    assert learning.MOST**2 * most * longest < 2**53
    assert wavefront._NARROW**2 * most * longest * wavefront.LEVELS < 2**53
    features = mixing._LAGS + 3 + wavefront.LEVELS + 4
    assert learning._HEAVIEST * learning.MOST * features < 2**53


# ---------------------------------------------------------------------------------------------------------------------
# Small


@pytest.mark.parametrize(
    "shape, density, scale",
    [
        pytest.param(shape, *rest, marks=[] if i % 3 == j else pytest.mark.slow)
        for i, rest in enumerate([(0.02, 0), (0.1, 0), (0.5, 0), (0.1, 2), (0.3, 5), (1.0, 3)])
        for j, shape in enumerate([(12, 10), (150, 80)])
    ],
)
def test_little_above_the_entropy_where_nothing_can_be_learnt(shape, density, scale):
    codes = np.clip(drawn(shape, density, scale, seed=1), -MOST, MOST)
    entropy = oracles_files.entropy(codes) * codes.size / 8
    assert len(mixing.encode(codes)) <= 1.003 * entropy + 4 + len(np.unique(codes))


@pytest.mark.parametrize(
    "codes, most",
    [
        (image(16, 80), 0.92),
        (low_rank((150, 80), 1), 0.75),
        (drawn((200, 60), np.linspace(0, 0.3, 200)[:, None] ** 2 * np.linspace(1, 9, 60), 0), 0.88),
    ],
    ids=["image", "low rank", "rows and columns"],
)
def test_far_below_the_entropy_where_rows_and_columns_tell(codes, most):
    entropy = oracles_files.entropy(codes) * codes.size / 8
    assert len(mixing.encode(codes)) <= most * entropy


def test_lags_are_found():
    codes = image(16, 80)
    lags = mixing._lags(codes)
    assert {1, 16} <= set(lags) and len(lags) <= mixing._LAGS
    assert not mixing._lags(drawn((256, 80), 0.2, 0))
    assert len(mixing.encode(codes)) < 0.985 * len(mixing._encode(codes, []))


def test_the_shortest_bytes_are_written():
    ask, written = learning.writing()
    chances = np.random.default_rng(0).integers(1, 65536, 100).astype(np.float64)
    bits = np.random.default_rng(1).random(100) < chances / 65536
    ask(chances, bits)
    data = written()
    cost = -np.log2(np.where(bits, chances, 65536 - chances) / 65536).sum()
    assert cost / 8 <= len(data) <= cost / 8 + 1.1


def test_large_ones_are_left_to_others():
    for code in (MOST + 1, -MOST - 1, -(2**31), 2**31 - 1):
        assert mixing.encode(np.array([[0, 1], [code, 0]], np.int32)) is None
    assert mixing.encode(np.full((2, 2), -128, np.int8)) is None
    assert mixing.encode(np.zeros((1, 8192), np.int32)) is None
    assert mixing.encode(np.zeros((2049, 2049), np.int32)) is None
    for shape in ((1, 8192), (2049, 2049), (2**20, 2**20)):
        with pytest.raises(FormatError, match="more than this coder takes"):
            mixing.decode(b"\0", shape)


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def read(data, shape):
    """Codes of that shape or a FormatError, within memory: anything else fails."""
    try:
        codes = mixing.decode(data, shape)
    except FormatError:
        return None
    assert codes.shape == shape and codes.dtype == np.int32
    return codes


@given(st.sampled_from(("ternary", "outlier", "wide", "dense", "row", "image")), st.data())
def test_damage_raises_or_gives_codes(name, data):
    codes = CASES[name]
    whole = mixing._encode(codes, LAGGED[name])
    at = data.draw(st.integers(0, len(whole) - 1))
    mutant = data.draw(
        st.sampled_from(
            (
                whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :],
                whole[:at],
                whole[:at] + whole[at + 1 :],
                whole[: at % 8] + data.draw(st.binary(max_size=40)),
            )
        )
    )
    read(mutant, codes.shape)
    read(mutant, (7, 5))


@given(st.binary(max_size=60), st.sampled_from(((0, 3), (1, 1), (6, 7), (1, 20))))
@example(unsigned(3) + bytes([16]) + unsigned(4) + b"\xff" * 12, (1, 3))
def test_made_up_bytes_raise_or_give_codes(data, shape):
    read(data, shape)


@pytest.mark.parametrize("name", ["ternary", "dense", "row"])
def test_nothing_may_be_left(name):
    codes = CASES[name]
    data = mixing.encode(codes)
    for more in (b"\0", b"\0" * 9, b"\1" * 9, bytes(range(1, 20))):
        with pytest.raises(FormatError):
            mixing.decode(data + more, codes.shape)
    with pytest.raises(FormatError, match="1 bytes too many"):
        mixing.decode(b"\0\0", (3, 3))


@pytest.mark.parametrize(
    "head, message",
    [
        ([0x80], "wanted"),
        ([43], "the most is 42"),
        ([5, 221, 1], "the most is 220"),
        ([5, 17, 0], "a lag of 0 in 6 rows"),
        ([5, 34, 3, 3], "a lag of 6 in 6 rows"),
        ([5, 1, 69], "the most is 68"),
        ([5, 0, 1, 0], "zeros at the end"),
        ([5, 0], "entries are not zero, not 5"),
    ],
)
def test_what_is_wrong_is_said(head, message):
    with pytest.raises(FormatError, match=message):
        mixing.decode(bytes(head), (6, 7))


@pytest.mark.slow
def test_memory_stays_bounded():
    codes = drawn((160, 160), 1.0, 40)
    data = mixing._encode(codes, [1, 159])
    tracemalloc.start()
    read(data, codes.shape)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 32 * codes.size + 4e6
