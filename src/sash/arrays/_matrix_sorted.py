"""Entries in any order, as compressed sparse rows on disk: dealt out by rows to files, and each of these sorted in memory."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from sash.arrays._matrix_stored import StoredRows, read_pointers
from sash.arrays._store import Box, Source
from sash.arrays._store_raw import RawSource
from sash.errors import DoesNotFit, InputError
from sash.units import format_bytes
from sash.window import Interval

_SORTED_BYTES = 64
"""Held for an entry while it is sorted: as it was dealt, apart, compressed, and once more in order."""
_DEALT_BYTES = 64
"""Held for an entry while it is dealt: its group, its place, and itself once more."""
_ROW_BYTES = 24
"""Held for a row meanwhile: how many entries it has, how many more a part has, and where it begins."""
_LEAST_SORTED = 1024
_MOST_FILES = 256
_NARROW = (np.int8, np.int16, np.int32)
"""Types that whole numbers are written in, where they fit: a pass reads less."""
_FACTS = "matrix.json"


class Dealt:
    """Entries that are added in any order, a part at a time, and then written row by row."""

    def __init__(self, shape: tuple[int, int], entries: int, folder: Path, budget_bytes: int, told: str) -> None:
        self.shape, self._folder, self._told = shape, folder, told
        if shape[0] >= 1 << 31:
            raise InputError(f"{told} has {shape[0]} rows; {(1 << 31) - 1} are the most that are put in order.")
        self._room = budget_bytes - _ROW_BYTES * shape[0]
        self.part_entries = max(1, self._room // (2 * _DEALT_BYTES))
        """Most entries to be added at once."""
        self._sorted = self._room // _SORTED_BYTES
        if budget_bytes < (least := sorting_bytes(shape)):
            raise DoesNotFit(f"Sorting {told} holds {format_bytes(least)} at least; it may hold {format_bytes(budget_bytes)}.", least)
        self._kind = np.dtype([("row", np.int32), ("column", _column_type(shape[1])), ("value", np.float64)])
        # Files of half of what is sorted at once, as rows are not all alike.
        files = min(max(1, -(-2 * entries // self._sorted)), _MOST_FILES, shape[0])
        self._rows_each = -(-shape[0] // files)
        self._counts = np.zeros(shape[0], np.int64)
        self._whole, self._largest = True, 0.0
        needed = entries * (self._kind.itemsize + 16)
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise full(told, needed, folder)
        self._needed = needed
        self._files = [self._open(f"part{number}", "wb") for number in range(-(-shape[0] // self._rows_each))]

    def add(self, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
        """Deal out entries; those of a row and column that come twice are summed in the order in which they came."""
        if not len(rows):
            return
        low = int(rows.min())
        more = np.bincount(rows - low)
        self._counts[low : low + len(more)] += more
        self._whole = self._whole and bool((np.floor(values) == values).all())
        self._largest = max(self._largest, float(np.abs(values).max(initial=0)))
        part = np.empty(len(rows), self._kind)
        groups = (rows // self._rows_each).astype(np.uint16)
        order = np.argsort(groups, kind="stable")
        part["row"], part["column"], part["value"] = rows[order], columns[order], values[order]
        ends = np.cumsum(np.bincount(groups, minlength=len(self._files)))
        start = 0
        with self._room_on_disk():
            for file, end in zip(self._files, ends, strict=True):
                if end > start:
                    file.write(part[start:end].view(np.uint8).data)
                start = end

    def finish(self, facts: dict[str, Any]) -> None:
        """Write values, columns and row pointers into the folder, and then `facts`; the parts are taken away."""
        with self._room_on_disk():
            for file in self._files:
                file.close()
        kinds = [kind for kind in _NARROW if self._largest <= np.iinfo(kind).max] if self._whole else []
        kind = next(kind.name for kind in map(np.dtype, (*kinds, np.float64)) if self._write(kind))
        for number in range(len(self._files)):
            (self._folder / f"part{number}").unlink()
        (self._folder / _FACTS).write_text(json.dumps({"of": facts, "values": kind}), encoding="utf-8")

    def abandon(self) -> None:
        """Take all of it away."""
        for file in self._files:
            # What is still to be written may not go onto a full disk.
            with suppress(OSError):
                file.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        with suppress(OSError):
            self._folder.parent.rmdir()

    def _write(self, kind: np.dtype) -> bool:
        """Whether all sums fit into the type."""
        pointers = np.zeros(self.shape[0] + 1, np.int64)
        with self._open("values", "wb") as values, self._open("columns", "wb") as columns, self._room_on_disk():
            for first, last in self._cuts():
                block = self._block(first, last)
                data = block.data.astype(kind)
                if kind != np.float64 and not np.array_equal(data, block.data):
                    return False
                values.write(data.data)
                columns.write(block.indices.astype(_column_type(self.shape[1]), copy=False).data)
                pointers[first + 1 : last + 1] = np.diff(block.indptr)
            np.cumsum(pointers, out=pointers)
            with self._open("pointers", "wb") as file:
                file.write(pointers.data)
        return True

    def _cuts(self) -> Iterator[tuple[int, int]]:
        """Rows of a file each, or of as many as are sorted at once."""
        for begin in range(0, self.shape[0], self._rows_each):
            end = min(begin + self._rows_each, self.shape[0])
            ends = np.cumsum(self._counts[begin:end])
            first = begin
            while first < end:
                before = int(ends[first - begin - 1]) if first > begin else 0
                last = begin + int(np.searchsorted(ends, before + self._sorted, "right"))
                if last == first:
                    least = _ROW_BYTES * self.shape[0] + int(self._counts[first]) * _SORTED_BYTES
                    raise DoesNotFit(
                        f"Row {first} of {self._told} has {self._counts[first]} entries; sorting them holds {format_bytes(least)}.", least
                    )
                yield first, last
                first = last

    def _block(self, first: int, last: int) -> scipy.sparse.csr_array:
        """Rows in order, read from the one file that they are in."""
        count = int(self._counts[first:last].sum())
        rows, columns, values = np.empty(count, np.int32), np.empty(count, _column_type(self.shape[1])), np.empty(count)
        filled = 0
        with self._open(f"part{first // self._rows_each}", "rb") as file:
            step = max(1, min(count, 1 << 16))
            while len(raw := file.read(step * self._kind.itemsize)):
                part = np.frombuffer(raw, self._kind)
                kept = (part["row"] >= first) & (part["row"] < last)
                found = part[kept]
                place = slice(filled, filled + len(found))
                rows[place], columns[place], values[place] = found["row"] - first, found["column"], found["value"]
                filled += len(found)
        block = scipy.sparse.csr_array((values, (rows, columns)), shape=(last - first, self.shape[1]))
        block.sum_duplicates()
        return block

    def _open(self, name: str, mode: str) -> Any:
        return (self._folder / name).open(mode)

    @contextmanager
    def _room_on_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise full(self._told, self._needed, self._folder) from error
            raise


def deal_entries(
    rows: Source,
    columns: Source,
    values: Source,
    shape: tuple[int, int],
    scratch: Path | None,
    budget_bytes: int,
    told: str,
    identity: dict[str, Any],
) -> StoredRows:
    """Entries of three arrays side by side, as rows in order below `scratch`."""
    count = values.shape[0]

    def parts(step: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for first in range(0, count, step):
            box = (Interval(first, min(first + step, count)),)
            yield _read(rows, box), _read(columns, box), _read(values, box)

    if not rows.shape == columns.shape == values.shape:
        raise InputError(f"{told} has {rows.shape[0]} rows, {columns.shape[0]} columns and {count} values; it is damaged.")
    return _dealt(parts, count, shape, scratch, budget_bytes, told, identity, None)


def deal_columns(
    values: Source,
    rows: Source,
    pointers: np.ndarray,
    shape: tuple[int, int],
    scratch: Path | None,
    budget_bytes: int,
    told: str,
    identity: dict[str, Any],
    names: tuple[str, ...] | None,
) -> StoredRows:
    """Compressed columns, as rows in order below `scratch`."""
    count = int(pointers[-1])
    if rows.shape != (count,) or values.shape != (count,) or pointers[0] or (np.diff(pointers) < 0).any():
        raise InputError(f"{told} has column pointers that do not fit its {rows.shape[0]} rows, {values.shape[0]} values.")

    def parts(step: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for first in range(0, count, step):
            last = min(first + step, count)
            box = (Interval(first, last),)
            begin, end = int(np.searchsorted(pointers, first, "right")) - 1, int(np.searchsorted(pointers, last, "left"))
            edges = np.clip(pointers[begin : end + 1], first, last)
            yield _read(rows, box), np.repeat(np.arange(begin, end), np.diff(edges)), _read(values, box)

    return _dealt(parts, count, shape, scratch, budget_bytes - pointers.nbytes, told, identity, names)


def _dealt(
    parts: Callable[[int], Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]],
    count: int,
    shape: tuple[int, int],
    scratch: Path | None,
    budget_bytes: int,
    told: str,
    identity: dict[str, Any],
    names: tuple[str, ...] | None,
) -> StoredRows:
    if scratch is None:
        raise InputError(f"{told} does not lie by rows, and is put in order beside the output: name an output on disk.")
    folder = scratch / "rows"
    if not dealt_before(folder, identity):
        dealt = Dealt(shape, count, folder, budget_bytes, told)
        try:
            done = 0
            for rows, columns, values in parts(dealt.part_entries):
                _check_entries(rows, columns, values, shape, done, told)
                dealt.add(rows.astype(np.int32), columns, values.astype(np.float64))
                done += len(rows)
            dealt.finish(identity)
        except BaseException:
            dealt.abandon()
            raise
    return open_dealt(folder, shape[1], told, identity, names)


def _check_entries(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: tuple[int, int], done: int, told: str) -> None:
    for name, indices, length in (("row", rows, shape[0]), ("column", columns, shape[1])):
        if indices.dtype.kind not in "iu":
            raise InputError(f"{told} numbers its {name}s in {indices.dtype}; they are whole numbers.")
        outside = (indices < 0) | (indices >= length)
        if outside.any():
            place = int(np.argmax(outside))
            raise InputError(f"{told} has {name} {indices[place]} in entry {done + place}; its {length} {name}s count from 0.")
    if values.dtype.kind not in "fiub":
        raise InputError(f"{told} holds {values.dtype}; give real numbers.")
    fine = np.isfinite(values)
    if not fine.all():
        place = int(np.argmin(fine))
        raise InputError(f"{told} holds {values[place]} at row {rows[place]}, column {columns[place]}; give finite numbers.")


def _read(source: Source, box: Box) -> np.ndarray:
    into = np.empty(box[0].length, source.dtype)
    source.read(box, into)
    return into


def sorting_bytes(shape: tuple[int, int]) -> int:
    """The least within which entries are put in order, as long as no row has many."""
    return _ROW_BYTES * shape[0] + _LEAST_SORTED * _SORTED_BYTES


def full(told: str, needed: int, folder: Path) -> InputError:
    """What to say where the disk has no room for the rows."""
    free = shutil.disk_usage(folder).free
    return InputError(
        f"the rows of {told} in order take {format_bytes(needed)} beside the output; {folder} has {format_bytes(free)} free. "
        "Make room there, or choose an output on another disk."
    )


def dealt_before(folder: Path, facts: dict[str, Any]) -> bool:
    """Whether the rows are there already, whole and of the same facts; what else is in the folder is taken away."""
    try:
        if json.loads((folder / _FACTS).read_text(encoding="utf-8"))["of"] == json.loads(json.dumps(facts)):
            return True
    except (OSError, ValueError, KeyError, TypeError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    return False


def open_dealt(folder: Path, width: int, told: str, identity: dict[str, Any], names: tuple[str, ...] | None) -> StoredRows:
    """The matrix whose rows were put in order there."""
    length = (folder / "pointers").stat().st_size // 8
    lying = RawSource(folder / "pointers", (length,), np.dtype(np.int64), (0,))
    pointers = read_pointers(lying)
    kind = np.dtype(json.loads((folder / _FACTS).read_text(encoding="utf-8"))["values"])
    entries = (int(pointers[-1]),)
    values = RawSource(folder / "values", entries, kind, (0,))
    columns = RawSource(folder / "columns", entries, _column_type(width), (0,))
    return StoredRows(values, columns, pointers, width, told, lambda: identity, names, lying)


def _column_type(width: int) -> np.dtype:
    return np.dtype(np.int32 if width < 1 << 31 else np.int64)
