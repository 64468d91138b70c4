"""LAPACK and BLAS on parts of a matrix in place: scipy's own routines by their addresses, which f2py reaches for whole matrices alone."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from scipy.linalg import cython_blas, cython_lapack

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
