"""LAPACK and BLAS on parts of a matrix in place: scipy's own routines by their addresses, which f2py reaches for whole matrices alone."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from scipy.linalg import cython_blas, cython_lapack  # pyright: ignore[reportAttributeAccessIssue] (compiled)

_STRIPE = 512
"""Columns that a thread updates at once."""
_NAME = ctypes.pythonapi.PyCapsule_GetName
_NAME.restype, _NAME.argtypes = ctypes.c_char_p, [ctypes.py_object]
_POINTER = ctypes.pythonapi.PyCapsule_GetPointer
_POINTER.restype, _POINTER.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


@cache
def _routine(name: str) -> Any:
    """A routine that is called without the interpreter's lock; its arguments are addresses."""
    module = cython_blas if name in cython_blas.__pyx_capi__ else cython_lapack
    capsule = module.__pyx_capi__[name]
    return ctypes.CFUNCTYPE(None)(_POINTER(capsule, _NAME(capsule)))


def call(name: str, *given: str | int | float | np.ndarray) -> int:
    """Call a routine; letters, whole and real numbers are passed by address, arrays by that of their first number.

    Returns the last whole number as the routine left it, which is LAPACK's `info` where there is one. Nothing is checked.
    """
    held: list[Any] = []
    for one in given:
        if isinstance(one, str):
            held.append(ctypes.c_char(one.encode()))
        elif isinstance(one, (int, np.integer)):
            held.append(ctypes.c_int(int(one)))
        elif isinstance(one, float):
            held.append(ctypes.c_double(one))
        else:
            held.append(one)
    places = [ctypes.c_void_p(one.ctypes.data) if isinstance(one, np.ndarray) else ctypes.byref(one) for one in held]
    _routine(name)(*places)
    whole = [one for one in held if isinstance(one, ctypes.c_int)]
    return whole[-1].value if whole else 0


def lower_added(made: np.ndarray, left: np.ndarray, right: np.ndarray, factor: float, threads: int) -> None:
    """`made += factor * left @ right.T` in the lower triangle, stripes of columns side by side; above the diagonal lies what may.

    All in Fortran's order, `made` perhaps a part of a larger matrix. BLAS's own threads wait by spinning, which on a machine that others
    use as well took seven times as long as threads that sleep.
    """
    side, width = len(made), left.shape[1]

    def stripe(start: int) -> None:
        stop = min(start + _STRIPE, side)
        call(
            "dgemm", "N", "T", side - start, stop - start, width, factor, left[start:], lead(left), right[start:], lead(right),
            1.0, made[start:, start:], lead(made),
        )  # fmt: skip

    starts = range(0, side, _STRIPE)
    if threads == 1 or len(starts) == 1:
        for start in starts:
            stripe(start)
        return
    with ThreadPoolExecutor(threads, "sash") as pool:
        list(pool.map(stripe, starts))


def product_added(made: np.ndarray, left: np.ndarray, right: np.ndarray, factor: float, turned: str = "NN") -> None:
    """`made += factor * left @ right`, either of them turned first where its letter is T; all in Fortran's order, parts perhaps."""
    shared = left.shape[1] if turned[0] == "N" else left.shape[0]
    if made.size and shared:
        call(
            "dgemm", turned[0], turned[1], *made.shape, shared, factor, left, lead(left), right, lead(right), 1.0, made, lead(made),
        )  # fmt: skip


def lead(matrix: np.ndarray) -> int:
    """Numbers from one column to the next."""
    return matrix.strides[1] // matrix.itemsize if matrix.shape[1] > 1 else max(len(matrix), 1)
