"""Coding by classes of rows and columns: nothing is lost, it pays, and damage shows."""

from math import erf

import numpy as np
import oracles_classes
import oracles_files
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune.files import classes, coders, tables
from jaxprune.files.bytestream import FormatError, Reader

LEAST, MOST = -(2**31), 2**31 - 1


def scaled(rows, columns, across=1.0, down=1.0, scale=5.0, seed=0):
    """Normal integers whose rows and columns have scales of their own."""
    rng = np.random.default_rng(seed)
    scales = scale * np.exp2(down * rng.normal(size=(rows, 1)) + across * rng.normal(size=columns))
    return np.rint(rng.normal(size=(rows, columns)) * scales).astype(np.int32)


CASES = {
    "both": scaled(90, 110),
    "rows": scaled(80, 90, across=0),
    "columns": scaled(300, 40, down=0, across=2),
    "many rows": scaled(2500, 20, scale=1),
    "narrow": scaled(100, 100, scale=0.3),
    "wide": np.clip(scaled(100, 100, scale=1000, across=2), -32767, 32767),
    "zeros": scaled(100, 120) * (np.random.default_rng(1).random((100, 120)) < 0.3),
    "empty rows": scaled(100, 100) * (np.arange(100)[:, None] % 2),
    "outlier": np.where(np.arange(10000).reshape(100, 100) == 77, 30000, scaled(100, 100)).astype(np.int32),
    "strided": scaled(200, 180)[::2, ::-1],
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_lost(case):
    codes = CASES[case]
    data = classes.encode(codes)
    assert type(data) is bytes and data == classes.encode(codes)
    back = classes.decode(data, codes.shape)
    assert np.can_cast(back.dtype, np.int32)
    np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize("case", ["both", "columns", "narrow", "zeros", "outlier"])
def test_bytes_are_read_as_documented(case):
    codes = CASES[case]
    np.testing.assert_array_equal(oracles_classes.classes(classes.encode(codes), codes.shape), codes)


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1), st.floats(0.3, 300), st.floats(0, 3), st.floats(0, 3))
def test_nothing_is_lost_at_any_scale(seed, scale, down, across):
    codes = np.clip(scaled(70, 66, across, down, scale, seed), -32767, 32767)
    data = classes.encode(codes)
    if data is not None:
        np.testing.assert_array_equal(classes.decode(data, codes.shape), codes)


@pytest.mark.parametrize(
    "codes",
    [
        np.full((1, 1), 3, np.int32),
        np.full((100, 100), 7, np.int32),
        scaled(100, 100, 0, 0),
        scaled(1, 9000, 2),
        scaled(9000, 1),
        scaled(100, 100) * 2**20,
        np.array([LEAST, MOST] * 3000, np.int32).reshape(60, 100),
    ],
    ids=str,
)
def test_what_does_not_pay_or_fit_is_left_to_others(codes):
    assert classes.encode(codes) is None


def test_it_takes_little_more_than_if_all_scales_were_known():
    codes = scaled(400, 500, 0.5, 0.5)
    rng = np.random.default_rng(0)
    scales = 5 * np.exp2(0.5 * rng.normal(size=(400, 1)) + 0.5 * rng.normal(size=500))
    below = np.vectorize(lambda z: 0.5 * (1 + erf(z / 2**0.5)))
    ideal = -np.log2(below((codes + 0.5) / scales) - below((codes - 0.5) / scales)).sum() / 8
    size = len(classes.encode(codes))
    assert size < 1.012 * ideal
    assert size < 0.98 * oracles_files.entropy(codes) * codes.size / 8
    assert coders.encode(codes)[0] == coders.CLASSES


@st.composite
def damaged(draw):
    shape = draw(st.sampled_from([(64, 64), (20, 300), (16, 16), (3, 40), (40, 3)]))
    if draw(st.booleans()) and shape[0] * shape[1] > 4096 - 1:
        data = bytearray(classes.encode(scaled(*shape, seed=draw(st.integers(0, 3)))))
        for _ in range(draw(st.integers(0, 3))):
            last = draw(st.sampled_from([200, len(data) - 1]))
            data[draw(st.integers(0, last))] = draw(st.integers(0, 255))
        cut = draw(st.integers(0, len(data)))
        data = draw(st.sampled_from([data, data[:cut], data + draw(st.binary(max_size=9)), data[cut:]]))
    else:
        data = bytes([draw(st.integers(0, 3)), draw(st.integers(0, 130))]) + draw(st.binary(max_size=300))
    return bytes(data), shape


@given(damaged())
def test_damage_shows(case):
    data, shape = case
    try:
        back = classes.decode(data, shape)
    except FormatError:
        return
    assert np.can_cast(back.dtype, np.int32) and back.shape == shape


def test_leftover_and_missing_bytes_show():
    codes = CASES["both"]
    data, wrongs = classes.encode(codes), 0
    for wrong in (data + b"\1", data + b"\0", data[:-1], data[:-4], data[:200], b"", b"\0", b"\x04"):
        try:
            assert (classes.decode(wrong, codes.shape) != codes).any()
        except FormatError:
            wrongs += 1
    assert wrongs >= 7
    with pytest.raises(FormatError, match="do not go with"):
        classes.decode(b"\1\0\x20", (500, 3))
    with pytest.raises(FormatError, match="classes from"):
        classes.decode(b"\1\x7f\0" + b"\x24\x92\x49" * 5, (40, 30))


@given(st.lists(st.integers(-40, 40), min_size=1, max_size=60), st.integers(LEAST + 40, MOST - 40))
def test_tables_are_read_as_written(values, shift):
    values = (np.array(values, np.int64) + shift).astype(np.int32)
    counted = tables.histogram(values)
    assert counted is not None
    table = tables.from_histogram(*counted)
    reader = Reader(tables.write(table))
    back = tables.read(reader, len(values))
    reader.end()
    np.testing.assert_array_equal(back.symbols, np.unique(values))
    np.testing.assert_array_equal(back.levels, table.levels)


@pytest.mark.parametrize("scale", [0.1, 0.3, 0.5, 1.0, 3.0, 8.0])
def test_frequencies_of_a_table_cost_little_more_than_their_own(scale):
    values = np.rint(np.random.default_rng(0).normal(size=20000) * scale - 0.3).astype(np.int32)
    table = tables.from_histogram(*tables.histogram(values))
    if len(table.symbols) > 1:
        share = tables.probabilities(table) / 2**24
        bits = -np.log2(share[np.searchsorted(table.symbols, values)]).mean()
        assert bits < oracles_files.entropy(values) + 0.01
