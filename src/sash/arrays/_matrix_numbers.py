"""Lines of a Matrix Market file as numbers, checked and read in one go where they are as they usually are.

Usual are lines of digits, blanks and decimal numbers of up to 19 digits that are neither tiny nor huge. What is not is left to the fast
reader and to what looks at its lines before: `read` then says so, and what is wrong is told there.

A decimal number is the float64 that lies nearest, of two as near the even one. Source: Lemire, Number parsing at a gigabyte per second,
2021, algorithm 1, with tables as in section 6; Clinger, How to read floating point numbers accurately, 1990, for short ones.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit

_LEAST, _MOST = -342, 308
"""Exponents of ten of which there are powers in the table."""
_ROUNDED = -27
"""Down to which a power of five is rounded up in its last bit, so that products that are half way between two floats are seen as such."""
_EXACT = np.array([10.0**power for power in range(23)])
"""Powers of ten that are floats."""
_POINT, _MINUS, _PLUS, _LINE_END, _BLANK, _TAB, _RETURN = 46, 45, 43, 10, 32, 9, 13
_ZERO, _NINE, _TEN, _HALF, _LOW = np.uint64(48), np.uint64(9), np.uint64(10), np.uint64(32), np.uint64(0xFFFFFFFF)
_SMALL_E, _LARGE_E = 101, 69
_DIGITS, _INDEX_DIGITS = 19, 18
"""That a mantissa, and an index, have at most."""
_MANTISSA = np.uint64(1 << 53)


@cache
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """The 128 leading bits of powers of five, in two halves."""
    upper, lower = (np.empty(_MOST - _LEAST + 1, np.uint64) for _ in range(2))
    for power in range(_LEAST, _MOST + 1):
        five = 5 ** abs(power)
        if power < 0:
            five = (1 << (five.bit_length() + 127 if power >= _ROUNDED else 2 * five.bit_length() + 128)) // five + 1
        shift = five.bit_length() - 128
        five = five >> shift if shift > 0 else five << -shift
        upper[power - _LEAST], lower[power - _LEAST] = five >> 64, five & ((1 << 64) - 1)
    return upper, lower


@njit(nogil=True, cache=True)
def _product(x, y):
    """Both halves of the product of two numbers of 64 bits."""
    a, b, c, d = x >> _HALF, x & _LOW, y >> _HALF, y & _LOW
    low, cross, other = b * d, a * d, b * c
    middle = (low >> _HALF) + (cross & _LOW) + (other & _LOW)
    return a * c + (cross >> _HALF) + (other >> _HALF) + (middle >> _HALF), x * y


@njit(nogil=True, cache=True)
def _zeros(x):
    """In front of the first one of 64 bits; x is not 0."""
    count = np.uint64(0)
    for step in (32, 16, 8, 4, 2, 1):
        if x >> np.uint64(64 - step) == 0:
            count += np.uint64(step)
            x <<= np.uint64(step)
    return count


@njit(nogil=True, cache=True)
def _nearest(mantissa, power, upper_five, lower_five):
    """The bits of mantissa·10^power as float64; 0 where it is not sure, or not a normal number."""
    if power < _LEAST or power > _MOST:
        return np.uint64(0)
    zeros = _zeros(mantissa)
    mantissa <<= zeros
    upper, lower = _product(mantissa, upper_five[power - _LEAST])
    if upper & np.uint64(0x1FF) == np.uint64(0x1FF):
        more, _ = _product(mantissa, lower_five[power - _LEAST])
        lower += more
        if more > lower:
            upper += np.uint64(1)
    if lower == np.uint64(0xFFFFFFFFFFFFFFFF) and (power < _ROUNDED or power > 55):
        return np.uint64(0)
    top = upper >> np.uint64(63)
    shift = top + np.uint64(9)
    found = upper >> shift
    exponent = ((217706 * power) >> 16) + 63 + np.int64(top) - np.int64(zeros) + 1023
    if exponent <= 0:
        return np.uint64(0)
    # Half way between two floats: the even one.
    if lower <= np.uint64(1) and -4 <= power <= 23 and found & np.uint64(3) == np.uint64(1) and found << shift == upper:
        found &= ~np.uint64(1)
    found += found & np.uint64(1)
    found >>= np.uint64(1)
    if found >= np.uint64(1 << 53):
        found, exponent = np.uint64(1 << 52), exponent + 1
    if exponent >= 0x7FF:
        return np.uint64(0)
    return (np.uint64(exponent) << np.uint64(52)) | (found & np.uint64((1 << 52) - 1))


@njit(nogil=True, cache=True)
def _read(text, indices, valued, whole, lengths, places, values, bits, exact, upper_five, lower_five):
    """Lines that were read into places and values; -1 where one is not as usual."""
    at, filled, size = 0, 0, text.size
    while at < size:
        letter = text[at]
        if letter in (_BLANK, _TAB, _RETURN, _LINE_END):
            at += 1
            continue
        for which in range(indices):
            start, number = at, np.uint64(0)
            digit = np.uint64(text[at]) - _ZERO
            while digit <= _NINE:
                number = number * _TEN + digit
                at += 1
                digit = np.uint64(text[at]) - _ZERO
            place = np.int64(number) - 1
            if at == start or at - start > _INDEX_DIGITS or place < 0 or place >= lengths[which]:
                return -1
            places[which, filled] = place
            start = at
            while text[at] == _BLANK or text[at] == _TAB:
                at += 1
            if at == start and (which + 1 < indices or valued):
                return -1
        if valued:
            negative = text[at] == _MINUS
            if negative:
                at += 1
            start, power, mantissa = at, 0, np.uint64(0)
            while text[at] == 48:
                at += 1
            first = at
            digit = np.uint64(text[at]) - _ZERO
            while digit <= _NINE:
                mantissa = mantissa * _TEN + digit
                at += 1
                digit = np.uint64(text[at]) - _ZERO
            digits, count = at - start, at - first
            if not whole:
                if text[at] == _POINT:
                    at += 1
                    start = at
                    if count == 0:
                        while text[at] == 48:
                            at += 1
                    first = at
                    digit = np.uint64(text[at]) - _ZERO
                    while digit <= _NINE:
                        mantissa = mantissa * _TEN + digit
                        at += 1
                        digit = np.uint64(text[at]) - _ZERO
                    count += at - first
                    power = start - at
                    digits -= power
                if text[at] == _SMALL_E or text[at] == _LARGE_E:
                    at += 1
                    below = text[at] == _MINUS
                    if below or text[at] == _PLUS:
                        at += 1
                    start, written = at, 0
                    digit = np.uint64(text[at]) - _ZERO
                    while digit <= _NINE and at - start < 5:
                        written = written * 10 + np.int64(digit)
                        at += 1
                        digit = np.uint64(text[at]) - _ZERO
                    if at == start:
                        return -1
                    power += -written if below else written
            if digits == 0 or count > _DIGITS:
                return -1
            if mantissa <= _MANTISSA and -22 <= power <= 22:
                value = np.float64(mantissa)
                value = value * exact[power] if power >= 0 else value / exact[-power]
                values[filled] = -value if negative else value
            elif mantissa == 0:
                values[filled] = -0.0 if negative else 0.0
            else:
                found = _nearest(mantissa, power, upper_five, lower_five)
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


def read(text: bytes, shape: tuple[int, int], indices: int, valued: bool, whole: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Places from 0, (indices, lines), and values of the lines of a text that ends with the end of one; None where a line is not as usual.

    A line has `indices` whole numbers, 2 or none, and a value where `valued`, which is a whole number where `whole`; else values are ones.
    """
    lines = text.count(b"\n")
    places = np.empty((indices, lines), np.int32 if max(shape) < 1 << 31 else np.int64)
    values = np.empty(lines)
    letters, lengths = np.frombuffer(text, np.uint8), np.array(shape, np.int64)
    filled = _read(letters, indices, valued, whole, lengths, places, values, values.view(np.uint64), _EXACT, *_powers())
    return None if filled < 0 else (places[:, :filled], values[:filled])
