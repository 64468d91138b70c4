"""Where matrices come from: memory, Matrix Market, .npz, zarr, AnnData, .npy."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from sash.arrays._matrix import HeldMatrix, Matrix
from sash.arrays._matrix_groups import open_h5, open_zarr_matrix
from sash.arrays._matrix_market import open_market
from sash.arrays._matrix_names import Names, column_names, vocabulary_of
from sash.arrays._matrix_npz import open_npz
from sash.arrays._matrix_stored import StoredDense
from sash.arrays._store import open_source
from sash.errors import InputError

_SUFFIXES = (".mtx", ".mtx.gz", ".npz", ".npy", ".zarr", ".h5ad", ".h5")


def open_matrix(
    source: Any,
    *,
    budget_bytes: int,
    scratch: Path | None = None,
    names: Names | None = None,
    progress: bool | None = False,
    filed: bool = False,
) -> Matrix:
    """The matrix of a numpy array, one of scipy.sparse, or a file: .mtx, .mtx.gz, .npz, .npy, .zarr, .h5ad.

    What reading holds stays within `budget_bytes`, also while a file is put in order of rows. That is done below `scratch`, where a file
    is not in that order and half of the budget does not hold it; the folder is the caller's to take away once the job, and all taking
    up of it, is done. Without `names` those in the file count, or the lines of docs.vocab.txt beside docs.mtx.
    `progress` shows a bar while a text is put in order. With `filed` a file is never taken into memory: other processes open it too.
    Raises `InputError` for what is no matrix of finite real numbers, `DoesNotFit` where the budget does not hold what has to be.
    """
    matrix = source if isinstance(source, Matrix) else _opened(source, budget_bytes, scratch, progress, filed)
    try:
        if names is not None:
            matrix.names = column_names(names, matrix.shape[1])
        elif matrix.names is None and isinstance(source, (str, os.PathLike)) and (beside := vocabulary_of(Path(source))):
            matrix.names = column_names(beside, matrix.shape[1])
    except InputError:
        matrix.close()
        raise
    if matrix.names is not None and matrix is not source:
        matrix.held_bytes += sum(map(sys.getsizeof, matrix.names)) + 8 * len(matrix.names)
    return matrix


def _opened(source: Any, budget_bytes: int, scratch: Path | None, progress: bool | None, filed: bool) -> Matrix:
    if isinstance(source, (str, os.PathLike)):
        return _from_path(Path(source), budget_bytes, scratch, progress, filed)
    if scipy.sparse.issparse(source):
        return HeldMatrix(source)
    if isinstance(source, np.ndarray) and not isinstance(source, (np.memmap, np.ma.MaskedArray)):
        return HeldMatrix(source)
    if type(source).__module__.partition(".")[0] == "zarr" and not hasattr(source, "chunks"):
        return open_zarr_matrix(source, budget_bytes, scratch)
    return StoredDense(open_source(source), "the array")


def _from_path(path: Path, budget_bytes: int, scratch: Path | None, progress: bool | None, filed: bool) -> Matrix:
    name = path.name.lower()
    if not name.endswith(_SUFFIXES):
        raise InputError(f"{path} is none of {', '.join(_SUFFIXES)}; these are what matrices are read from.")
    if path.is_dir() and name.endswith(".zarr"):
        return open_zarr_matrix(path, budget_bytes, scratch)
    if not path.is_file():
        near = sorted(entry.name for entry in path.parent.glob("*") if entry.name.endswith(_SUFFIXES))[:4] if path.parent.is_dir() else []
        raise InputError(f"there is no file {path}." + (f" The folder has {', '.join(near)}." if near else ""))
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} cannot be read: its permissions do not allow it.")
    if name.endswith((".mtx", ".mtx.gz")):
        return open_market(path, budget_bytes, scratch, progress, filed)
    if name.endswith(".npz"):
        return open_npz(path, budget_bytes, scratch, filed)
    if name.endswith((".h5ad", ".h5")):
        return open_h5(path, budget_bytes, scratch)
    return StoredDense(open_source(path), str(path))
