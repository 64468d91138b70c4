"""Decimal numbers in lines, beside what Python makes of them, bit for bit; and lines that are left to others."""

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sash.arrays._matrix_numbers import read


def bits_of(words):
    """What is read of one value a line; None where it is left."""
    text = "".join(f"{word}\n" for word in words).encode()
    found = read(text, (9, 9), 0, True, False)
    return None if found is None else found[1].view(np.int64).tolist()


def right(words):
    assert bits_of(words) == np.array([float(word) for word in words]).view(np.int64).tolist()


@given(st.lists(st.floats(min_value=1e-300, max_value=1e300), min_size=1))
def test_floats_are_read_as_they_were_written(values):
    right([repr(value) for value in values])
    right([f"{-value:.17e}" for value in values])


@given(st.integers(0, 10**19 - 1), st.integers(-270, 280))
def test_any_nineteen_digits_and_power_are_the_nearest_float(digits, power):
    right([f"{digits}e{power}", f"-0.{digits:019d}E{power}"])


@given(st.integers(1 << 53, (1 << 54) - 1), st.integers(0, 3))
def test_half_way_between_two_floats_lies_the_even_one(mantissa, halvings):
    word = format(Decimal(mantissa * 2 + 1) / Decimal(1 << halvings), "f")
    if len(word) <= 19:
        right([word])
    right([str(mantissa * 2 + 1)])


@given(st.integers(1, 1 << 52), st.integers(-4, 23), st.integers(-3, 3))
def test_beside_half_way_lies_the_float_of_that_side(mantissa, power, off):
    # Of many digits, so that what is added decides in the last one.
    half = (2 * ((1 << 52) + mantissa) + 1) << max(0, 10 - mantissa.bit_length() // 8)
    digits = min(half, 10**19 - 4) + off
    right([f"{digits}e{power}", f"{digits}", f"-{digits // 10**9}.{digits % 10**9:09d}E{power + 9}"])


@given(st.lists(st.tuples(st.text("0123456789", max_size=9), st.text("0123456789", max_size=20), st.integers(-30, 30)), min_size=1))
def test_digits_of_any_number_before_and_behind_the_point_are_read_or_left(parts):
    for front, behind, power in parts:
        if word := front + behind:
            told = [f"{front}.{behind}", f"-{front}.{behind}e{power:+d}", f"000{front}.{behind}E{power:03d}"]
            if len(word.lstrip("0")) <= 19:
                right(told)
            else:
                assert all(bits_of([one]) is None for one in told)


def test_zeros_and_short_forms_are_numbers():
    right(["0", "-0", "0.0", "-0.0e5", "0e999", "1.", ".5", "5e-1", "1E+5", "00012", "0.000000000000000000000000123456789", "1.e2"])
    right(["000000000000000000000000", "-0000000000000000000000000000.5e3", "000000000000.000000000000e-5"])


@pytest.mark.parametrize(
    "word",
    [
        "1e400",
        "1e-320",
        "12345678901234567890",
        "1.2345678901234567890",
        "0.12345678901234567890",
        "1.5e000001",
        "1.0D5",
        "+1",
        "abc",
        "1.5.2",
        "1e",
        ".",
        "-",
        "1 2",
        "nan",
        "inf",
        "1-2",
        "e5",
        "1e99999999",
    ],
)
def test_what_is_not_usual_is_left(word):
    assert bits_of([word]) is None


@pytest.mark.parametrize(
    "line", ["0 1 1", "6 1 1", "1 7 1", "1 1", "1", "a 1 1", "1.0 1 1", "-1 1 1", "1 1 1 x", "1 1 1 1", "1 11", "9" * 30 + " 1 1"]
)
def test_lines_with_other_words_are_left(line):
    assert read(f"1 1 1\n{line}\n".encode(), (5, 6), 2, True, False) is None


def test_lines_of_places_come_with_blanks_of_all_kinds():
    found = read(b"1 1 -3\r\n\n  5\t6   4  \n", (5, 6), 2, True, True)
    assert found is not None
    places, values = found
    assert places.tolist() == [[0, 4], [0, 5]]
    assert values.tolist() == [-3, 4]
    assert read(b"1 1 1.5\n", (5, 6), 2, True, True) is None
    assert read(b"1 1 12345678901234567890\n", (5, 6), 2, True, True) is None
    pattern = read(b"2 3\n4 5 \n", (5, 6), 2, False, False)
    assert pattern is not None
    assert pattern[0].tolist() == [[1, 3], [2, 4]]
    assert pattern[1].tolist() == [1, 1]
