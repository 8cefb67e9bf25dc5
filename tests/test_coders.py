"""The coders of files: they lose nothing, damage shows, memory stays bounded, and bytes are as documented."""

import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import coded
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import oracles_files as oracles
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from jaxprune.files import coders, lanes, tables
from jaxprune.files.bytestream import FormatError, Reader, read_list, unsigned, write_list
from jaxprune.quantization import pack, unpack

LEAST, MOST = -(2**31), 2**31 - 1


class Coder(NamedTuple):
    """A coder, and what reads its bytes one entry at a time."""

    number: int
    oracle: Callable[..., Any]

    def encode(self, codes):
        return coded.alone(self.number, codes)

    def decode(self, data, shape):
        return coders.decode(self.number, data, shape)


CODERS = {
    "packing": Coder(coders.PACKING, oracles.unpacked),
    "ans": Coder(coders.ANS, oracles.static),
    "lanes": Coder(coders.LANES, oracles.lanes),
    "gaps": Coder(coders.GAPS, oracles.gaps),
}
each = pytest.mark.parametrize("name", CODERS)


def normal(size, scale, seed=0, zeros=0.0):
    rng = np.random.default_rng(seed)
    values = np.rint(rng.normal(size=size) * scale).astype(np.int32)
    return np.where(rng.random(size) < zeros, 0, values).astype(np.int32)


def spread(distinct, size, seed=0):
    rng = np.random.default_rng(seed)
    alphabet = rng.integers(LEAST, MOST, distinct, endpoint=True).astype(np.int32)
    return alphabet[rng.integers(0, distinct, size)]


CASES = {
    "no rows": np.zeros((0, 5), np.int32),
    "no columns": np.zeros((3, 0), np.int32),
    "one": np.full((1, 1), 7, np.int32),
    "equal": np.full((9, 11), -3, np.int32),
    "least": np.full((2, 2), LEAST, np.int32),
    "extremes": np.array([[LEAST, MOST, 0], [MOST, MOST, -1]], np.int32),
    "two": np.arange(77, dtype=np.int32).reshape(7, 11) % 2,
    "rare": (np.arange(5000, dtype=np.int32) == 4321).reshape(50, 100).astype(np.int32) * MOST,
    "gaps": np.repeat(np.arange(40, dtype=np.int32), np.arange(40))[None] % 7 // 6,
    "normal": normal((60, 70), 20),
    "sparse": normal((64, 65), 3, zeros=0.8),
    "half": normal((100, 64), 30, zeros=0.5),
    "spaced": 4096 * normal((50, 50), 3) + 5,
    "spread": spread(257, (40, 50)),
    "uniform": np.random.default_rng(0).integers(0, 1000, (30, 40)).astype(np.int32),
    "heavy": np.clip(np.random.default_rng(0).standard_cauchy((50, 60)) * 5, -1e6, 1e6).astype(np.int32),
    "permutation": np.random.default_rng(0).permutation(1000).astype(np.int32).reshape(8, 125),
    "distinct": np.random.default_rng(0).permutation(70_000).astype(np.int32).reshape(7, -1),
    "sixteen bits": np.arange(65536, dtype=np.int32).reshape(256, 256) - 32768,
    "long tail": np.repeat(np.arange(24, dtype=np.int32), [1 << max(0, i - 7) for i in range(24)])[None],
}


def round_trip(coder, codes):
    data = coder.encode(codes)
    if data is not None:
        kind = tables.narrow(codes.min(initial=0), codes.max(initial=0))  # whose dtype makes no difference
        assert type(data) is bytes and data == coder.encode(codes) == coder.encode(codes.astype(kind))
        back = coder.decode(data, codes.shape)
        assert np.can_cast(back.dtype, np.int32) and back.shape == codes.shape
        np.testing.assert_array_equal(back, codes)
    return data


@st.composite
def code_arrays(draw):
    low, high = sorted(
        draw(st.tuples(*[st.one_of(st.sampled_from((LEAST, -1, 0, 1, MOST)), st.integers(-300, 300))] * 2))
    )
    values = st.one_of(st.integers(low, high), st.sampled_from(draw(st.lists(st.integers(low, high), min_size=1))))
    codes = draw(
        hnp.arrays(np.int32, draw(hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=12)), elements=values)
    )
    return draw(st.sampled_from((codes, codes[::-1], np.asfortranarray(codes), codes[:, ::2], np.tile(codes, (3, 7)))))


@each
@given(codes=code_arrays())
def test_nothing_is_lost(name, codes):
    data = round_trip(CODERS[name], codes)
    if data is not None:
        assert list(CODERS[name].oracle(data, codes.size)) == codes.reshape(-1).tolist()


@each
@pytest.mark.parametrize("case", CASES)
def test_nothing_is_lost_of(name, case):
    codes = CASES[case]
    data = round_trip(CODERS[name], codes)
    assert data is None or (data == b"") == (codes.size == 0)


@pytest.mark.parametrize("case", CASES)
def test_what_is_chosen_loses_nothing_and_is_no_longer_than_packing(case):
    codes = CASES[case]
    for effort in ("fast", "best") if codes.size < 10_000 else ("fast",):
        number, data = coders.encode(codes, effort)
        assert (number, data) == coders.encode(codes, effort)
        np.testing.assert_array_equal(coders.decode(number, data, codes.shape), codes)
        assert len(data) <= (len(coders.pack(codes)) if codes.size else 0)


@each
def test_bytes_are_read_as_documented(name):
    coder = CODERS[name]
    for codes in [CASES["sparse"], CASES["spread"][:20], CASES["heavy"][:9], CASES["gaps"]]:
        data = coder.encode(codes)
        assert data is None or list(coder.oracle(data, codes.size)) == codes.reshape(-1).tolist()


PINNED = {
    "packing": "0103491c24499224b19324",
    "ans": "010300888000985f0c4f251002",
    "gaps": "0004010201208020000400a18020000080de",
}


@pytest.mark.parametrize("name", PINNED)
def test_the_bytes_never_change(name):
    codes = np.zeros((2, 12), np.int32)
    codes[[0, 0, 1, 1], [3, 5, 5, 6]] = [5, -1, 5, 5]
    data = bytes.fromhex(PINNED[name])
    np.testing.assert_array_equal(CODERS[name].decode(data, codes.shape), codes)
    assert CODERS[name].encode(codes) == data


# ---------------------------------------------------------------------------------------------------------------------
# Size

SIZES = {
    "2 bits": normal(1000, 0.5),
    "4 bits": normal(3000, 2),
    "8 bits": normal(1000, 30),
    "8 bits, more": normal(200_000, 30),
    "pruned": normal(30_000, 40, zeros=0.9),
    "uniform": np.random.default_rng(0).integers(0, 256, 5000).astype(np.int32),
    "16 bits": np.random.default_rng(0).integers(0, 65536, 1_000_000).astype(np.int32),
    "student": np.rint(np.random.default_rng(0).standard_t(3, 100_000) * 5).astype(np.int32),
    "spaced": np.repeat(normal(2000, 5) * 1_000_003, 3),
    "spread": spread(257, 1_000_000),
    "rare": (np.arange(1_000_000) % 499_999 == 77).astype(np.int32),
    "few": np.array([5, 5, -9, 100], np.int32),
}


@pytest.mark.parametrize("case", SIZES)
def test_static_coding_is_near_the_entropy(case):
    codes = SIZES[case]
    data, counted = coders.encode(codes[None])[1], tables.histogram(codes)
    assert len(data) <= 1.005 * oracles.entropy(codes) * codes.size / 8 + 100
    assert counted is not None
    table = tables.from_histogram(*counted)
    if len(table.levels) < 1000:
        assert tables.probabilities(table).tolist() == oracles.frequencies(table.levels.tolist())


@pytest.mark.parametrize("case", ["4 bits", "8 bits, more", "pruned", "student", "spread", "rare"])
def test_lanes_need_little_more(case):
    codes = SIZES[case][None]
    data, plain = CODERS["lanes"].encode(codes), CODERS["ans"].encode(codes)
    assert data is not None and plain is not None and len(data) < 1.002 * len(plain) + 400
    np.testing.assert_array_equal(CODERS["lanes"].decode(data, codes.shape), codes)
    table = tables.from_histogram(*tables.histogram(codes))
    model = lanes._model(table)
    coarse, escape = oracles.lane_frequencies(table.levels.tolist())
    assert model is not None and model.frequencies.tolist() == [f for f in [*coarse, escape] if f]


def test_lanes_are_none_where_all_values_would_escape():
    codes = np.arange(257 * 8, dtype=np.int32).reshape(8, 257) % 257
    assert CODERS["lanes"].encode(codes) is None
    table = tables.from_histogram(*tables.histogram(codes))
    with pytest.raises(FormatError, match="a table of 257 values that lanes cannot have"):
        CODERS["lanes"].decode(tables.write(table) + bytes(300), codes.shape)


@pytest.mark.parametrize("size", [lanes.LANES * lanes._STEPS + 1, 64, 2, 4096, 5])
def test_lanes_go_on_from_call_to_call(size):
    codes = np.rint(np.random.default_rng(0).standard_t(2, (1, size)) * 3).astype(np.int32)
    codes[0, :2] = 1, 2
    assert round_trip(CODERS["lanes"], codes) is not None


def test_division_in_lanes_is_exact():
    rng = np.random.default_rng(0)
    b = np.concatenate([np.arange(1, 4096), [1, 4095, 1, 4095]]).astype(np.uint32)
    for a in (b << 20, (b << 20) - 1, b * rng.integers(0, 2**20, b.size).astype(np.uint32), b - 1, 0 * b):
        a = np.minimum(a, (b.astype(np.uint64) << 20) - 1).astype(np.uint32)
        for more in (-1, 0, 1):
            x = np.clip(a.astype(np.int64) + more, 0, (b.astype(np.int64) << 20) - 1).astype(np.uint32)
            quotient, left = lanes._divide(jnp.asarray(x), jnp.asarray(b))
            np.testing.assert_array_equal(quotient, x // b)
            np.testing.assert_array_equal(left, x % b)


def test_what_decodes_quickly_is_taken_where_it_costs_little():
    for codes, name in ((normal((1000, 200), 20), "lanes"), (normal((30, 100), 20), "ans")):
        number, data = coders.encode(codes)
        assert coders.NAMES[number] == name
        assert len(data) <= 1.006 * oracles.entropy(codes) * codes.size / 8 + 100


def test_the_best_effort_is_the_smallest():
    rng = np.random.default_rng(0)
    codes = (rng.random((60, 80)) < np.linspace(0, 1, 60)[:, None] ** 2 * np.linspace(0, 1, 80)).astype(np.int32)
    number, data = coders.encode(codes, "best")
    assert coders.NAMES[number] == "mixing" and len(data) < 0.95 * len(coders.encode(codes)[1])


def test_gaps_tell_clusters_that_frequencies_do_not():
    rng = np.random.default_rng(0)
    near = np.repeat(rng.random((60, 20)) < 0.1, 10, 1)
    codes = (near & (rng.random(near.shape) < 0.5)) * rng.integers(1, 8, near.shape, np.int32)
    number, data = coders.encode(codes)
    assert coders.NAMES[number] == "gaps" and len(data) < 0.9 * oracles.entropy(codes) * codes.size / 8
    for others in (codes * 0, np.where(rng.random(codes.shape) < 0.7, 0, codes + 1)):  # none of them, too many
        assert CODERS["gaps"].encode(others) is None


def test_integers_are_read_as_documented():
    rng = np.random.default_rng(0)
    for size in (1, 2, 50, 300):
        for values in (rng.integers(0, 2**32, size), rng.geometric(0.2, size), rng.integers(0, 2, size) << 20):
            data = write_list(values)
            assert oracles.small_integers(data, 0, size) == (values.tolist(), len(data))
            np.testing.assert_array_equal(read_list(Reader(data), size), values)


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def mutants(data, shape, number, seed=0):
    """Bytes and shapes that are not what was written, most of them nearly."""
    rng = np.random.default_rng(seed)
    for _ in range(number):
        changed, to = bytearray(data), shape
        kind = rng.integers(8)
        if kind <= 2 and changed:
            for _ in range(rng.integers(1, 4)):
                changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
        elif kind == 3 and changed:
            changed[rng.integers(min(12, len(changed)))] = rng.integers(256)
        elif kind == 4:
            changed = changed[: rng.integers(len(changed) + 1)]
        elif kind == 5:
            at = rng.integers(len(changed) + 1)
            changed[at:at] = rng.bytes(rng.integers(1, 9))
        elif kind == 6:
            changed = bytearray(rng.bytes(rng.integers(40)))
        else:
            to = tuple(int(side) for side in rng.integers(0, 80, 2))
        yield bytes(changed), to


MUTATED = ("extremes", "two", "normal", "sparse", "spread", "heavy", "equal", "gaps")


@each
@pytest.mark.parametrize("count", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_damage_shows_or_gives_other_codes(count, name):
    coder, found = CODERS[name], 0
    for case in MUTATED:
        codes = CASES[case][:20, :20]
        data = coder.encode(codes)
        for changed, shape in mutants(data or b"\0\1\2", codes.shape, count):
            try:
                back = coder.decode(changed, shape)
                assert np.can_cast(back.dtype, np.int32) and back.shape == shape
            except FormatError as error:
                found += 1
                assert str(error)
    assert found > 1000 * count / 300


@each
def test_all_bytes_are_used(name):
    coder = CODERS[name]
    for case, codes in CASES.items():
        data = coder.encode(codes)
        for more in (b"\0", b"\1", b"\xff" * 9) if data is not None and case != "distinct" else ():
            with pytest.raises(FormatError):
                coder.decode(data + more, codes.shape)
        for less in range(1, min(len(data or b""), 6)):
            try:
                assert not np.array_equal(coder.decode(data[:-less], codes.shape), codes)
            except FormatError:
                pass


def hostile():
    """Little data that could ask for much."""
    for length in (500, 2**16, 2**16 + 1, 2**40, 2**62):
        for rest in (b"\x20\x20", b"\xff" * 70_000, b"\0" * 70_000, b"\x1f" + b"\xff" * 300_000):
            for gaps in (b"", b"\x20", b"\0"):  # of any kind, none, or levels in their place
                yield b"\0" + unsigned(length) + gaps + rest
    yield b"\0" * 100_000
    yield b"\xff" * 10_000_000
    yield b"\0\2\x20\x20" + b"\1" * 10_000_000


@each
@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (1, 40_000)])
def test_memory_is_bounded_by_the_shape(name, shape):
    coder = CODERS[name]
    for data in hostile():
        tracemalloc.start()
        try:
            coder.decode(data, shape)
        except FormatError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak <= 32 * shape[0] * shape[1] + 4_000_000, len(data)


@pytest.mark.parametrize(
    ("coder", "data", "message"),
    [
        ("ans", b"\0", "1 bytes wanted, 0 left"),
        ("ans", b"\0\0", "a table of no values"),
        ("ans", b"\0\x0b", "a number of 11, where the most is 10"),
        ("ans", b"\0\2\0", "0 numbers, where 1 are expected"),
        ("ans", b"\0\2\x20\x1f\x08\x80", "an integer above 2[*][*]32 in a list"),
        ("ans", b"\0\2\x21", "no list of integers begins with 33"),
        ("ans", b"\0\2\x20\0\xc1", "spare bits that are not zeros"),
        ("ans", b"\0\2\x20\x0f\xc0\xff\xff\xff\xfc", "a number of 32767, where the most is 32766"),
        ("ans", b"\xfe\xff\xff\xff\x0f\2\x20\x20", "a value above 2[*][*]31 - 1"),
        ("ans", b"\0\2\x20\x20\0", "zeros at the end"),
        ("ans", b"\0\2\x20\x20" + b"\1" * 4, "something is left after the last entry"),
        ("ans", b"\0\2\x20\x20" + b"\1" * 99, "99 bytes for 10 entries: too many"),
        ("packing", b"\0\x21", "codes of 33 bits"),
        ("packing", b"\0\1\xff\xff", "spare bits that are not zeros"),
        ("packing", b"\xfe\xff\xff\xff\x0f\1\xff\3", "a code above 2[*][*]31 - 1"),
        ("packing", b"\0\1\xff\3\0", "1 bytes too many"),
        ("lanes", b"\0\1", "a table of 1 values that lanes cannot have"),
        ("lanes", b"\0\2\x20\x20\0\x20" + bytes(256), "a lane that begins at 0"),
        ("lanes", b"\0\2\x20\x20\0\x20" + b"\1" * 256, "something is left in a lane"),
        ("lanes", b"\0\2\x20\x20\0\x20" + b"\0\0\1\0" * 64, "a lane that ends too early"),
        ("lanes", b"\0\2\x20\x20\1\x20" + b"\1" * 256, "128 bytes wanted, 0 left"),
        ("lanes", b"\0\2\x20\x20", "1 bytes wanted, 0 left"),
        ("gaps", b"\0\x0b", "a number of 11, where the most is 10"),
        ("gaps", b"\0\0\2\1", "a number of 1, where the most is 0"),
        ("gaps", b"\0\0\2\0", "a table of no values"),
        ("gaps", b"\0\1\2\1\x14\1", "gaps from 10 on that lead to 10 in 10 entries"),
        ("gaps", b"\0\2\2\1\1\1", "gaps from -1 on that lead to -1 in 10 entries"),
        ("gaps", b"\0\1\2\1\0\1\1", "something is left after the last entry"),
        ("gaps", b"\0\1\2\1", "1 bytes wanted, 0 left"),
    ],
)
def test_errors_say_the_fault(coder, data, message):
    with pytest.raises(FormatError, match=message):
        CODERS[coder].decode(data, (2, 5))


def test_a_plane_of_nothing_has_no_data():
    assert coders.encode(np.zeros((0, 3), np.int32)) == (coders.PACKING, b"")
    with pytest.raises(FormatError, match="1 bytes too many"):
        coders.decode(coders.ANS, b"\0", (3, 0))
    with pytest.raises(FormatError, match="coder 6 is unknown"):
        coders.decode(6, b"\0", (3, 1))


# ---------------------------------------------------------------------------------------------------------------------
# Packing of any array

WIDTHS = range(1, 17)


@pytest.mark.parametrize(
    "bits", [pytest.param(b, marks=[] if b in (1, 3, 8, 11, 16) else pytest.mark.slow) for b in WIDTHS]
)
def test_packing_is_the_same_everywhere(bits):
    rng = np.random.default_rng(bits)
    for codes, signed in (
        (rng.integers(0, 2**bits, (5, 11)).astype(np.uint16), False),
        (rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (3, 8)).astype(np.int16), True),
    ):
        packed = pack(codes, bits)
        assert type(packed) is np.ndarray and packed.tobytes() == oracles.packed_bits(codes.reshape(-1), bits)
        back = unpack(packed, bits, codes.shape, signed=signed)
        assert type(back) is np.ndarray and back.dtype == f"{'' if signed else 'u'}int{8 if bits <= 8 else 16}"
        np.testing.assert_array_equal(back, codes)
        on_device = jax.jit(pack, static_argnums=1)(codes, bits)
        assert isinstance(on_device, jax.Array)
        chex.assert_trees_all_equal(on_device, jnp.asarray(packed))
        unpacked = jax.jit(partial(unpack, bits=bits, shape=codes.shape, signed=signed))
        chex.assert_trees_all_equal(unpacked(on_device), jnp.asarray(back))


def test_packing_under_jit_and_vmap():
    codes = np.random.default_rng(0).integers(-4, 4, (4, 3, 7)).astype(np.int8)
    packed = jax.jit(jax.vmap(lambda leaf: pack(leaf, 3)))(codes)
    assert packed.dtype == jnp.uint8 and packed.shape == (4, 8)
    for leaf, alone in zip(codes, packed, strict=True):
        np.testing.assert_array_equal(alone, pack(leaf, 3))
    back = jax.jit(jax.vmap(lambda data: unpack(data, 3, (3, 7), signed=True)))(packed)
    chex.assert_trees_all_equal(back, jnp.asarray(codes))


def test_packing_of_little():
    assert pack(np.zeros((0, 3), np.int8), 5).shape == (0,)
    assert unpack(jnp.zeros(0, jnp.uint8), 5, (0, 3)).shape == (0, 3)
    assert unpack(pack(np.array(True), 1), 1, ()) == 1
    np.testing.assert_array_equal(unpack(pack([3, 1], 2), 2, 2), [3, 1])


@pytest.mark.parametrize(
    ("error", "message", "codes", "bits"),
    [
        (ValueError, "codes from 0 to 16 do not fit into 4 bits", [0, 16], 4),
        (ValueError, "codes from -1 to 8 do not fit into 4 bits", [-1, 8], 4),
        (ValueError, "codes from -9 to 0 do not fit into 4 bits", [-9, 0], 4),
        (ValueError, "bits is an integer from 1 to 16, not 0", [0], 0),
        (ValueError, "bits is an integer from 1 to 16, not 17", [0], 17),
        (TypeError, "bits is a Python integer from 1 to 16, not 4.0", [0], 4.0),
        (TypeError, "codes are integers, not float32", np.zeros(3, np.float32), 4),
    ],
)
@pytest.mark.parametrize("make", [np.asarray, jnp.asarray])
def test_packing_refuses(error, message, codes, bits, make):
    with pytest.raises(error, match=message):
        pack(make(codes), bits)


def test_unpacking_refuses_other_lengths():
    with pytest.raises(ValueError, match=r"12 codes of 3 bits are uint8 \[5\], not uint8 \[6\]"):
        unpack(np.zeros(6, np.uint8), 3, (3, 4))
    with pytest.raises(ValueError, match=r"are uint8 \[5\], not int32 \[5\]"):
        unpack(jnp.zeros(5, jnp.int32), 3, (3, 4))


# ---------------------------------------------------------------------------------------------------------------------
# Bytes


def planes():
    rng = np.random.default_rng(0)
    yield np.zeros((3, 0), np.uint8)
    yield np.full((1, 1), 255, np.uint8)
    yield rng.integers(0, 256, (40, 7)).astype(np.uint8)
    yield np.clip(rng.normal(size=(300, 400)) * 2 + 120, 0, 255).astype(np.uint8)
    yield np.repeat(rng.integers(0, 256, (1, 500)).astype(np.uint8), 300, 0)[:, ::-1]


@pytest.mark.parametrize("effort", ["fast", "best"])
def test_bytes_come_back(effort):
    for plane in planes():
        for fraction, low in ((None, False), (2, False), (None, True)):
            number, data = coders.encode_bytes(plane, effort, fraction, low)
            back = coders.decode_bytes(number, data, plane.shape)
            assert back.dtype == np.uint8
            np.testing.assert_array_equal(back, plane)
            assert len(data) <= plane.size + 9


def test_exponents_of_rows_that_differ_in_scale_get_smaller():
    rng = np.random.default_rng(0)
    weights = (rng.normal(size=(400, 300)) * np.exp2(3 * rng.random((400, 1)))).astype(np.float32)
    plane = (weights.view(np.uint32) >> 23).astype(np.uint8)
    number, data = coders.encode_bytes(plane, "best", 0, False)
    assert coders.NAMES[number] == "classes" and len(data) < 0.93 * oracles.entropy(plane) * plane.size / 8
    assert number not in (
        coders.encode_bytes(plane, "best", None, False)[0],
        coders.encode_bytes(plane, "fast", 0, False)[0],
    )


def frame(size, claimed=None, window=None):
    how = zstandard.ZstdCompressionParameters(
        format=zstandard.FORMAT_ZSTD1_MAGICLESS, window_log=window or 12, write_content_size=claimed is not False
    )
    data = bytearray(zstandard.ZstdCompressor(compression_params=how).compress(bytes(size)))
    if claimed:
        data[2:6] = claimed.to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no frame of Zstandard"),
        (b"\xff" * 30, "Zstandard|a frame of"),
        (frame(100_000)[:-1], "Zstandard"),
        (frame(100_000) + b"\0", "Zstandard"),
        (frame(99_999), "a frame of 99999 bytes, where 100000 are expected"),
        (frame(99_999, claimed=100_000), "Zstandard|99999 bytes in a frame of 100000"),
        (frame(100_001, claimed=100_000), "Zstandard"),
        (frame(100_000, claimed=2**32 - 1), "a frame of 4294967295 bytes"),
        (frame(100_000, claimed=False), "a frame of"),
    ],
)
def test_frames_that_are_none(data, message):
    with pytest.raises(FormatError, match=message):
        coders.decode_bytes(coders.ZSTD, data, (100, 1000))


def test_bytes_are_bytes():
    with pytest.raises(FormatError, match="codes from -1 to 7"):
        coders.decode_bytes(coders.PACKING, coders.pack(np.array([[-1, 7]], np.int32)), (1, 2))
    with pytest.raises(FormatError, match="coder 7 is unknown"):
        coders.decode_bytes(7, b"", (1, 2))
