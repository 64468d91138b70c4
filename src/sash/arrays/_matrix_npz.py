"""Sparse matrices that scipy.sparse.save_npz wrote: into memory, or member by member onto the disk."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from sash.arrays._matrix import HeldMatrix, Matrix, no_numbers
from sash.arrays._matrix_sorted import deal_columns, deal_entries, full
from sash.arrays._matrix_stored import StoredRows, read_pointers
from sash.arrays._store import open_source
from sash.arrays._store_source import Seen
from sash.errors import DoesNotFit, InputError
from sash.units import format_bytes

_PER_BYTE = 3
"""Held for a byte of the arrays while they are made rows in order."""


def open_npz(path: Path, budget_bytes: int, scratch: Path | None, filed: bool = False) -> Matrix:
    """The matrix of a file; in memory where half of the budget holds it, else by its arrays, which are laid out below `scratch`.

    `filed` lays them out in any case.
    """
    seen = Seen.now(path)
    identity = {"matrix": seen.identity}
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {member.filename.removesuffix(".npy"): member.file_size for member in archive.infolist()}
            if "format" not in sizes or "shape" not in sizes:
                raise InputError(f"{path} has the arrays {', '.join(sizes)}; give what scipy.sparse.save_npz writes, or a .npy file.")
            least = 2 * _PER_BYTE * sum(sizes.values())
            if least <= budget_bytes and not filed:
                matrix = scipy.sparse.load_npz(path)
                if not matrix.nnz:
                    raise no_numbers(str(path), matrix.shape)
                held = HeldMatrix(matrix, str(path), identity, owned=True)
                held.opening_bytes = sum(sizes.values()) * (1 if matrix.format == "csr" else _PER_BYTE)
                return held
            if scratch is None:
                raise DoesNotFit(
                    f"{path} unpacked into memory takes a budget of {format_bytes(least)}; it is {format_bytes(budget_bytes)}. Name an "
                    "output on disk, beside which it is unpacked.",
                    least,
                )
            return _unpacked(archive, sizes, seen, budget_bytes, scratch / "unpacked", identity)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read ({error}); it was cut off or damaged, or is no matrix of scipy.sparse.") from error


def _unpacked(
    archive: zipfile.ZipFile, sizes: dict[str, int], seen: Seen, budget_bytes: int, folder: Path, identity: dict[str, Any]
) -> Matrix:
    told = str(seen.path)
    try:
        kind, shape = (_small(archive, name) for name in ("format", "shape"))
        kind = kind.item()
        kind = kind.decode() if isinstance(kind, bytes) else str(kind)
        wanted = {"csr": ("data", "indices", "indptr"), "csc": ("data", "indices", "indptr"), "coo": ("data", "row", "col")}.get(kind)
        if wanted is None or len(shape) != 2:
            raise InputError(f"{told} is of the kind {kind}; larger than memory, csr, csc and coo are read: save .tocsr().")
        rows, columns = int(shape[0]), int(shape[1])
        folder.mkdir(parents=True, exist_ok=True)
        needed = sum(sizes.values())
        if needed > shutil.disk_usage(folder).free:
            raise full(told, needed, folder)
        for name in wanted:
            with archive.open(f"{name}.npy") as packed, (folder / f"{name}.npy").open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
        first, second, third = (open_source(folder / f"{name}.npy") for name in wanted)
        if kind == "coo":
            return deal_entries(second, third, first, (rows, columns), folder.parent, budget_bytes, told, identity)
        along = read_pointers(third)
        if kind == "csc":
            return deal_columns(first, second, along, (rows, columns), folder.parent, budget_bytes, told, identity, None)
        return StoredRows(first, second, along, columns, told, lambda: identity, lying=third)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _small(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)
