"""Lines of a Matrix Market file as numbers, checked and read in one go where they are as they usually are.

Usual are lines of digits, blanks and decimal numbers of up to 19 digits that are neither tiny nor huge. What is not is left to the fast
reader and to what looks at its lines before: `read` then says so, and what is wrong is told there.

A decimal number is the float64 that lies nearest. Digits behind the point are taken eight at a time; how many there are before it, and in
an index, can be foretold well enough that going one by one is quicker. Source: Lemire, Number parsing at a gigabyte per second, 2021,
section 5; Clinger, How to read floating point numbers accurately, 1990, for short ones.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from sash.arrays._matrix_decimals import nearest, powers
from sash.arrays._matrix_lines import line_ends
from sash.arrays._matrix_words import letters

_EXACT = np.array([10.0**power for power in range(23)])
"""Powers of ten that are floats."""
_POINT, _MINUS, _PLUS, _LINE_END, _BLANK, _TAB, _RETURN, _NOUGHT, _E = 46, 45, 43, 10, 32, 9, 13, 48, 101
_ZERO, _NINE, _TEN, _HUNDRED_MILLION = np.uint64(48), np.uint64(9), np.uint64(10), np.uint64(10**8)
_DIGITS, _INDEX_DIGITS, _EXPONENT_DIGITS = 19, 18, 5
"""That a mantissa, an index and an exponent have at most."""
_MANTISSA = np.uint64(1 << 53)
_ZEROS, _OVER, _TOPS = np.uint64(0x3030303030303030), np.uint64(0x7676767676767676), np.uint64(0x8080808080808080)
"""Of eight characters at once: zeros; what digits may grow by, and nothing else, before the top bit is set."""
_PAIRS, _FIRST, _SECOND = np.uint64(0x000000FF000000FF), np.uint64(100 + (10**6 << 32)), np.uint64(1 + (10**4 << 32))
_EIGHT, _SIXTEEN, _HALF = np.uint64(8), np.uint64(16), np.uint64(32)


@njit(nogil=True, cache=True, forceinline=True)
def _digits(text, at, number):
    """A number with the digits from a place on behind it, and the place after them."""
    digit = np.uint64(text[at]) - _ZERO
    while digit <= _NINE:
        number = number * _TEN + digit
        at += 1
        digit = np.uint64(text[at]) - _ZERO
    return number, at


@njit(nogil=True, cache=True, forceinline=True)
def _many_digits(text, at, number):
    """The same, of numbers that are often long: by eights."""
    while at + 8 <= text.size:
        word = letters(text, at) ^ _ZEROS
        if ((word + _OVER) | word) & _TOPS != 0:
            break
        pairs = word * _TEN + (word >> _EIGHT)
        number = number * _HUNDRED_MILLION + (((pairs & _PAIRS) * _FIRST + ((pairs >> _SIXTEEN) & _PAIRS) * _SECOND) >> _HALF)
        at += 8
    return _digits(text, at, number)


@njit(nogil=True, cache=True)
def _read(text, indices, valued, whole, lengths, rows, columns, values, bits, exact, upper_five, lower_five):
    """Lines that were read into rows, columns and values; -1 where one is not as usual."""
    at, filled, size = 0, 0, text.size
    while at < size:
        letter = text[at]
        if letter in (_BLANK, _TAB, _RETURN, _LINE_END):
            at += 1
            continue
        for which in range(indices):
            start = at
            number, at = _digits(text, at, np.uint64(0))
            place = np.int64(number) - 1
            if at == start or at - start > _INDEX_DIGITS or place < 0 or place >= lengths[which]:
                return -1
            if which == 0:
                rows[filled] = place
            else:
                columns[filled] = place
            start = at
            while text[at] == _BLANK or text[at] == _TAB:
                at += 1
            if at == start and (which + 1 < indices or valued):
                return -1
        if valued:
            negative = text[at] == _MINUS
            if negative:
                at += 1
            start, power = at, 0
            mantissa, at = _digits(text, at, np.uint64(0))
            digits = at - start
            if text[at] == _POINT and not whole:
                first = at + 1
                mantissa, at = _many_digits(text, first, mantissa)
                power = first - at
                digits -= power
            if digits > _DIGITS:
                # Zeros in front are no digits of a mantissa.
                first = start
                while first < at and (text[first] == _NOUGHT or text[first] == _POINT):
                    digits -= text[first] == _NOUGHT
                    first += 1
                if digits > _DIGITS:
                    return -1
                digits += 1
            if text[at] | 32 == _E and not whole:
                at += 1
                below = text[at] == _MINUS
                if below or text[at] == _PLUS:
                    at += 1
                first = at
                written, at = _digits(text, at, np.uint64(0))
                if at == first or at - first > _EXPONENT_DIGITS:
                    return -1
                power += -np.int64(written) if below else np.int64(written)
            if digits == 0:
                return -1
            if mantissa <= _MANTISSA and -22 <= power <= 22:
                value = np.float64(mantissa)
                value = value * exact[power] if power >= 0 else value / exact[-power]
                values[filled] = -value if negative else value
            elif mantissa == 0:
                values[filled] = -0.0 if negative else 0.0
            else:
                found = nearest(mantissa, power, upper_five, lower_five)
                if found == 0:
                    return -1
                bits[filled] = found | (np.uint64(negative) << np.uint64(63))
        else:
            values[filled] = 1.0
        while text[at] == _BLANK or text[at] == _TAB or text[at] == _RETURN:
            at += 1
        if text[at] != _LINE_END:
            return -1
        at += 1
        filled += 1
    return filled


def read(
    text: bytes | bytearray,
    shape: tuple[int, int],
    indices: int,
    valued: bool,
    whole: bool,
    into: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Places from 0, (indices, lines), and values of the lines of a text that ends with the end of one; None where a line is not as usual.

    A line has `indices` whole numbers, 2 or none, and a value where `valued`, which is a whole number where `whole`; else values are ones.
    They are put `into` places and values, where these are given, which have room for as many as there are lines.
    """
    if into is None:
        lines = line_ends(text)
        into = np.empty((indices, lines), np.int32 if max(shape) < 1 << 31 else np.int64), np.empty(lines)
    places, values = into
    rows, columns = places if indices else (np.empty(0, places.dtype),) * 2
    letters_of = np.frombuffer(memoryview(text).toreadonly(), np.uint8)
    lengths, bits = np.array(shape, np.int64), values.view(np.uint64)
    filled = _read(letters_of, indices, valued, whole, lengths, rows, columns, values, bits, _EXACT, *powers())
    return None if filled < 0 else (places[:, :filled], values[:filled])
