"""The float64 nearest to a decimal number of up to 19 digits, of two as near the even one.

Source: Lemire, Number parsing at a gigabyte per second, 2021, algorithm 1, with tables as in section 6.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit

from sash.arrays._matrix_words import product, zeros

_LEAST, _MOST = -342, 308
"""Exponents of ten of which there are powers in the table."""
_ROUNDED = -27
"""Down to which a power of five is rounded up in its last bit, so that products that are half way between two floats are seen as such."""
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


@cache
def powers() -> tuple[np.ndarray, np.ndarray]:
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


@njit(nogil=True, cache=True, forceinline=True)
def nearest(mantissa, power, upper_five, lower_five):
    """The bits of mantissa·10^power as float64, of a mantissa above 0; 0 where it is not sure, or not a normal number."""
    if power < _LEAST or power > _MOST:
        return np.uint64(0)
    place = np.uint64(power - _LEAST)
    empty = zeros(mantissa)
    mantissa <<= empty
    upper, lower = product(mantissa, upper_five[place])
    if upper & np.uint64(0x1FF) == np.uint64(0x1FF):
        more, _ = product(mantissa, lower_five[place])
        lower += more
        if more > lower:
            upper += np.uint64(1)
    if lower == _ALL and (power < _ROUNDED or power > 55):
        return np.uint64(0)
    top = upper >> np.uint64(63)
    shift = top + np.uint64(9)
    found = upper >> shift
    exponent = ((217706 * power) >> 16) + 63 + np.int64(top) - np.int64(empty) + 1023
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
