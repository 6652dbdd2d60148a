"""Numbers and hashes of many fields at once are those of one field at a time."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from testbed.traces.digits import (
    Text,
    hashed,
    hashed_one,
    real,
    real_one,
    scaled,
    scaled_one,
    unsigned,
    unsigned_one,
)

NUMBERS = st.one_of(
    st.from_regex(rb"-?[0-9]{0,22}(\.[0-9]{0,26})?", fullmatch=True),
    st.from_regex(rb"[+-]?[0-9]{1,9}(\.[0-9]{1,9})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    st.floats(allow_nan=False, allow_infinity=False).map(lambda x: repr(x).encode()),
    st.binary(max_size=12).map(lambda b: b.replace(b",", b"")),
)


def fields_of(values: list[bytes]) -> tuple[Text, np.ndarray, np.ndarray]:
    text = Text(b",".join(values) + b",")
    end = text.find(ord(","))[:-2]
    return text, end - np.array([len(value) for value in values], dtype=np.intp), end


def one_by_one(values, parse):
    out = []
    for value in values:
        try:
            out.append(parse(value))
        except ValueError:
            out.append(None)
    return out


@given(st.lists(NUMBERS, min_size=1, max_size=20))
@example([b"18446744073709551615", b"18446744073709551616", b"99999999999999999999", b"0", b""])
def test_whole_numbers_are_those_of_int(values):
    got, ok = unsigned(*fields_of(values))
    expected = one_by_one(values, unsigned_one)
    assert [int(v) if good else None for v, good in zip(got, ok, strict=True)] == expected


@given(st.lists(NUMBERS, min_size=1, max_size=20), st.sampled_from([0, 3, 6, 9]))
@example(
    [b"0.0000000005", b"0.00000000049999", b"-0.5", b"-.5", b"5.", b"1e-5", b"4611686018.4", b"9999999999999.1"], 9
)
def test_decimals_that_are_read_together_are_those_read_alone(values, digits):
    got, ok = scaled(*fields_of(values), digits)
    for value, good, expected in zip(got, ok, one_by_one(values, lambda v: scaled_one(v, digits)), strict=True):
        assert not good or int(value) == expected


@given(st.lists(NUMBERS, min_size=1, max_size=20))
@example([b"0.1", b"123456789012345", b"0.3000000000000000166", b"1e400", b"5.", b".5", b"1_000", b"nan", b"0x10"])
def test_reals_are_those_of_float(values):
    got, ok = real(*fields_of(values))
    expected = one_by_one(values, real_one)
    assert [float(v) if good else None for v, good in zip(got, ok, strict=True)] == expected


def test_usual_numbers_do_not_need_the_slow_path():
    values = [b"0.11515061509231506", b"534.757", b"1190146243.326", b"0", b"-3.25", b"123456789.123456789"]
    assert scaled(*fields_of(values), 9)[1].all()


@pytest.mark.parametrize(
    "text", [b"", b" 1", b"1 ", b"1_0", b"nan", b"inf", b"--1", b"1e", b"0x1", b"1" * 65, "١".encode()]
)
def test_what_is_no_number_is_refused(text):
    with pytest.raises(ValueError, match="is"):
        real_one(text)
    with pytest.raises(ValueError, match="is"):
        scaled_one(text, 9)


def test_nanoseconds_are_rounded_to_the_nearest():
    assert [scaled_one(text, 9) for text in (b"1.0000000014", b"1.0000000015", b"-0.0000000005")] == [
        1_000_000_001,
        1_000_000_002,
        -1,
    ]


@given(st.lists(st.binary(max_size=600).map(lambda b: b.replace(b",", b"")), min_size=1, max_size=10))
def test_hashes_are_those_of_one_field(values):
    text, start, end = fields_of(values)
    first = hashed(text, start, end)
    assert first.tolist() == [hashed_one(value) for value in values]
    assert hashed(text, start, end, chain=first).tolist() == [hashed_one(v, hashed_one(v)) for v in values]


def test_the_hash_is_the_same_in_every_release():
    # Keys are part of published checksums.
    assert hashed_one(b"/dummy.php/?n=5478122") == 0xC33196474C437F60
    assert hashed_one(b"") == 0


def test_hashes_differ_where_texts_do():
    values = {b"", b"\0", b"\0\0", b"a", b"a\0", b"aaaaaaaa", b"aaaaaaaaa", b"b" * 16, b"b" * 17}
    assert len({hashed_one(value) for value in values}) == len(values)
