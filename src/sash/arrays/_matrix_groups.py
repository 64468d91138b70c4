"""Sparse matrices as groups of arrays, in zarr and HDF5: values, indices and pointers, plain or as AnnData lays them out."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sash.arrays._matrix import Matrix
from sash.arrays._matrix_sorted import deal_columns
from sash.arrays._matrix_stored import StoredDense, StoredRows, read_pointers
from sash.arrays._store import Source
from sash.arrays._store_source import Box, Seen, checked_dtype, checked_shape, needs, slices
from sash.arrays._store_zarr import open_zarr_array
from sash.errors import DoesNotFit, InputError
from sash.units import format_bytes

_CACHED = 2 << 20
"""What HDF5 keeps of each array: a chunk cache of 1 MiB, and as much for one that is being decoded."""
_PARTS = ("data", "indices", "indptr")


def open_zarr_matrix(source: Any, budget_bytes: int, scratch: Path | None) -> Matrix:
    """The matrix of a path, or of a group that is open: an array, a group of data, indices and indptr, or X of AnnData."""
    try:
        import zarr
    except ImportError:
        raise needs("zarr", f"reading {source}") from None
    found = source
    if isinstance(source, Path):
        try:
            found = zarr.open(source, mode="r")
        except Exception as error:
            raise InputError(f"{source} cannot be read as zarr ({error}).") from error
    told = str(source) if isinstance(source, Path) else str(found.store_path)
    return _matrix(found, open_zarr_array, told, budget_bytes, scratch)


def open_h5(path: Path, budget_bytes: int, scratch: Path | None) -> Matrix:
    """The matrix of an HDF5 file, of AnnData its X."""
    try:
        import h5py
    except ImportError:
        raise needs("h5py", f"reading {path}") from None
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path} cannot be read as HDF5 ({error}); it was cut off, or is of another kind.") from error
    seen = Seen.now(path)
    try:
        return _matrix(file, lambda array: H5Source(array, seen), str(path), budget_bytes, scratch)
    except BaseException:
        file.close()
        raise


class H5Source(Source):
    """An array of an HDF5 file, open as long as this is; HDF5 itself lets one thread in at a time."""

    def __init__(self, array: Any, seen: Seen) -> None:
        told = f"{seen.path}, {array.name}"
        self.shape, self.dtype = checked_shape(tuple(array.shape), told), checked_dtype(array.dtype, told)
        self.grain = array.chunks or (1,) * len(self.shape)
        self.held_bytes = _CACHED
        self._array, self._seen, self._told = array, seen, told

    def __reduce__(self) -> tuple[Any, ...]:
        return _h5_again, (self._seen, self._array.name)

    def close(self) -> None:
        """Let go of the file, and of all its arrays."""
        if self._array:
            self._array.file.close()

    def _fill(self, box: Box, into: np.ndarray) -> None:
        try:
            self._array.read_direct(into, slices(box))
        except (OSError, TypeError) as error:
            raise InputError(f"{self._told} cannot be read ({error}); it is damaged or was cut off.") from error
        self._seen.check(self._seen.path)

    def _identified(self) -> dict[str, Any]:
        return {**self._seen.identity, "array": self._array.name}


def _h5_again(seen: Seen, name: str) -> H5Source:
    import h5py

    seen.check(seen.path)
    return H5Source(h5py.File(seen.path, "r")[name], seen)


def _matrix(found: Any, opened: Any, told: str, budget_bytes: int, scratch: Path | None) -> Matrix:
    names = None
    if not hasattr(found, "shape") and "X" in found:
        names = _names_of(found)
        found = found["X"]
    if hasattr(found, "shape"):
        return StoredDense(opened(found), told, names)
    if missing := [part for part in _PARTS if part not in found]:
        raise InputError(
            f"{told} has no {' and no '.join(missing)}; a sparse matrix is a group of data, indices and indptr, or X of AnnData. "
            f"It has {', '.join(sorted(found)[:6]) or 'nothing'}."
        )
    attributes = dict(found.attrs)
    kind = str(attributes.get("encoding-type", attributes.get("h5sparse_format", attributes.get("format", "csr")))).removesuffix("_matrix")
    if kind not in ("csr", "csc"):
        raise InputError(f"{told} is of the kind {kind}; csr and csc are read.")
    values, indices, pointers = (opened(found[part]) for part in _PARTS)
    shape = _shape(found, attributes, kind, pointers.shape[0] - 1, told)
    if 24 * pointers.shape[0] > budget_bytes:
        least = 24 * pointers.shape[0]
        raise DoesNotFit(f"The row pointers of {told} take {format_bytes(least)}; the budget is {format_bytes(budget_bytes)}.", least)
    along = read_pointers(pointers)
    if len(along) != shape[0 if kind == "csr" else 1] + 1:
        raise InputError(f"{told} has {len(along)} pointers and the shape {shape}; there is one more than {kind[2:]}s.")
    if kind == "csr":
        identity = lambda: {"values": values.identity, "columns": indices.identity}  # noqa: E731
        return StoredRows(values, indices, along, shape[1], told, identity, names, pointers)
    identity = {"values": values.identity, "rows": indices.identity}
    try:
        return deal_columns(values, indices, along, shape, scratch, budget_bytes, told, identity, names)
    finally:
        values.close()


def _shape(found: Any, attributes: dict[str, Any], kind: str, lengths: int, told: str) -> tuple[int, int]:
    shape = attributes.get("shape", attributes.get("h5sparse_shape"))
    if shape is None and "shape" in found:
        shape = found["shape"][:]
    if shape is None or len(shape) != 2:
        near = f"({lengths}, columns)" if kind == "csr" else f"(rows, {lengths})"
        raise InputError(f"{told} does not say its shape; give the group the attribute shape: {near}.")
    return int(shape[0]), int(shape[1])


def _names_of(root: Any) -> tuple[str, ...] | None:
    """AnnData's names of columns, if they are there and are text."""
    with suppress(KeyError, TypeError, AttributeError, ValueError):
        frame = root["var"]
        array = frame[frame.attrs.get("_index", "_index")]
        found = array.asstr()[:] if hasattr(array, "asstr") else array[:]
        return tuple(str(name) for name in found)
    return None
