"""Matrix Market files, text or gzip: read in parts, unusual ones by scipy's fast reader, into memory or into rows in order on disk."""

from __future__ import annotations

import gzip
import io
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import scipy.sparse

from sash.arrays._matrix import HeldMatrix, Matrix, no_numbers
from sash.arrays._matrix_header import LONGEST_LINE, Header, quoted, read_header
from sash.arrays._matrix_lines import FORTRAN, PLUS, line_ends, look
from sash.arrays._matrix_numbers import read
from sash.arrays._matrix_sorted import Dealt, dealt_before, open_dealt, sorting_bytes
from sash.arrays._running import processors, showing
from sash.arrays._store_source import Seen
from sash.errors import DoesNotFit, InputError
from sash.units import format_bytes

_MOST_TEXT = 4 << 20
"""Bytes of text that are read at once: more is not quicker."""
_LEAST_TEXT = 1 << 13
_PER_TEXT = 6
"""Bytes held for a byte of text that is being read: itself twice, and the numbers of the shortest lines."""
_PER_ENTRY = 32
"""Bytes held for an entry of a matrix in memory while it is put in order: row, column and value, twice."""


def open_market(path: Path, budget_bytes: int, scratch: Path | None, progress: bool | None, filed: bool = False) -> Matrix:
    """The matrix of a file; in memory where half of the budget holds it, else in rows in order below `scratch`, found again there later.

    `filed` puts rows in order there in any case. A pattern's entries are ones. Entries that come twice are summed. Raises `InputError` with
    the number of the line that is not as the format and the header say.
    """
    seen = Seen.now(path)
    told, identity = str(path), {"matrix": seen.identity}
    with _opened(path) as file:
        header = read_header(file, told)
        if header.entries == 0:
            raise no_numbers(told, header.shape)
        text = _Text(file, header, told, _text_bytes(budget_bytes))
        if header.layout == "array":
            return _dense(text, seen, budget_bytes)
        opening = header.most_nnz * _PER_ENTRY + 16 * header.shape[0] + text.held_bytes
        if not filed and opening <= budget_bytes // 2:
            held = HeldMatrix(_held(text), told, identity, owned=True)
            held.opening_bytes = opening
            seen.check(path)
            return held
        least = 2 * opening
        if scratch is None:
            raise DoesNotFit(
                f"{told} has {header.entries} entries, and reading them into memory takes a budget of {format_bytes(least)}; it is "
                f"{format_bytes(budget_bytes)}. Name an output on disk, beside which the rows are put in order.",
                least,
            )
        own = sorting_bytes(header.shape)
        if budget_bytes < own + text.held_bytes:
            # Beside the sorting there is the text: a quarter of the budget, or the least.
            least = max(own + _held_bytes(_LEAST_TEXT), -(-4 * own // 3) + 4)
            raise DoesNotFit(f"Sorting {told} takes a budget of {format_bytes(least)}; it is {format_bytes(budget_bytes)}.", least)
        folder = scratch / "rows"
        if not dealt_before(folder, identity):
            with showing(progress, f"reading {path.name}", seen.size) as tick:
                text.tick = tick
                _deal(text, Dealt(header.shape, header.most_nnz, folder, budget_bytes - text.held_bytes, told), identity)
        seen.check(path)
    opened = open_dealt(folder, header.shape[1], told, identity, None)
    opened.opening_bytes = budget_bytes
    return opened


@dataclass
class _Text:
    """The lines of numbers behind a header."""

    file: io.BufferedReader | gzip.GzipFile
    header: Header
    told: str
    part_bytes: int
    tick: Callable[[float], None] = lambda count: None
    """Told bytes of the file that were read, as they lie there."""
    into: tuple[np.ndarray, np.ndarray] | None = None
    """Rows and columns, (2, entries), and values, into which parts are read. Where blank lines are between them, entries lie further behind
    than their number; parts that there is no room for have arrays of their own."""

    @property
    def held_bytes(self) -> int:
        """While parts are read: of a plain text no more than all of it."""
        held = _held_bytes(self.part_bytes)
        return held if isinstance(self.file, gzip.GzipFile) else min(held, _PER_TEXT * os.fstat(self.file.fileno()).st_size)

    def entries(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Rows, columns and values of each part, in order; symmetric ones with what they stand for."""
        header = self.header
        lines, found = header.lines, 0
        for parsed in self._parsed():
            filled, more = parsed.filled, parsed.lines
            if found + filled > header.entries:
                raise InputError(
                    f"{self.told} has more entries than the {header.entries} that its header says: line "
                    f"{lines + 1 + _filled_line(parsed.text, header.entries - found)} is one too many."
                )
            if parsed.bad is not None:
                raise InputError(self._bad(parsed, lines))
            yield self._generalised(parsed.rows, parsed.columns, parsed.values)
            found, lines = found + filled, lines + more
        if found < header.entries:
            raise InputError(
                f"{self.told} was cut off, or its header lies: it ends after line {lines} with {found} of {header.entries} entries."
            )

    def _parsed(self) -> Iterator[_Part]:
        """Parts that were read, in order; a few of them ahead."""
        threads = processors()
        ahead: deque[Future[_Part]] = deque()
        with _one_thread_each(), ThreadPoolExecutor(threads) as pool:
            try:
                before = 0
                for text, lines in self._texts():
                    ahead.append(pool.submit(self._read, text, lines, before))
                    before += lines
                    if len(ahead) > threads:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _texts(self) -> Iterator[tuple[bytearray, int]]:
        """Whole lines, some at a time, and how many they are."""
        rest, lines, before = b"", self.header.lines, 0
        while True:
            text = bytearray(max(self.part_bytes, len(rest) + _LEAST_TEXT))
            text[: len(rest)] = rest
            size, failed = self._more(text, len(rest))
            place = self._place()
            self.tick(place - before)
            before = place
            del text[size:]
            if failed is not None:
                lines += line_ends(text)
                raise InputError(f"{self.told} is cut off or damaged behind line {lines} ({failed}).") from failed
            if size == len(rest):
                if rest:
                    self._unended = True
                    yield text + b"\n", 1
                return
            end = text.rfind(b"\n") + 1
            if not end and size > LONGEST_LINE:
                raise InputError(f"{self.told}, line {lines + 1}: {quoted(bytes(text))} has no end; a line of numbers is shorter.")
            rest = bytes(text[end:])
            if end:
                del text[end:]
                more = line_ends(text)
                lines += more
                yield text, more

    def _more(self, text: bytearray, size: int) -> tuple[int, Exception | None]:
        """Fill a text from a place on: how far it is filled, less at the end; and what stopped it, where the file is damaged."""
        with memoryview(text) as view:
            try:
                # By pieces: what was unpacked before a file is cut off has lines to be counted.
                while size < len(view) and (more := self.file.readinto1(view[size:])):
                    size += more
            except (EOFError, OSError, zlib.error) as error:
                return size, error
        return size, None

    def _place(self) -> int:
        """Bytes of the file that were read; of a packed one, packed."""
        return self.file.fileobj.tell() if isinstance(self.file, gzip.GzipFile) else self.file.tell()  # type: ignore[union-attr]

    _unended = False

    def _read(self, text: bytearray | bytes, lines: int, before: int) -> _Part:
        """A part, before which there are so many lines: whether its own are right, and then its numbers."""
        header = self.header
        indices = 2 if header.layout == "coordinate" else 0
        nothing = np.empty(0, np.int32)
        into = None
        if self.into is not None and before + lines <= len(self.into[1]):
            into = self.into[0][:, before : before + lines], self.into[1][before : before + lines]
        if (usual := read(text, header.shape, indices, header.field != "pattern", header.field == "integer", into)) is not None:
            places, values = usual
            own_rows, own_columns = places if indices else (nothing, nothing)
            return _Part(text, len(values), lines, own_rows, own_columns, values, None)
        # A line is wrong, or unusual: which, and what its numbers are.
        filled, lines, odd, bad = look(text, indices, header.words)
        if bad >= 0:
            # What is before it counts, so that whichever line is wrong first is told.
            return _Part(text, filled, lines, nothing, nothing, np.empty(0), (bad, ""))
        if odd & FORTRAN:
            text = text.translate(_EXPONENTS)
        if odd & PLUS:
            text = _PLUS.sub(b"\\1 ", text)
        rows, columns = header.shape
        size = f"{rows} {columns} {filled}" if indices else f"{filled} 1"
        # A file of whole numbers is read as floating ones: as such it would have 1.5 pass for 1.
        field = "pattern" if header.field == "pattern" else "real"
        first = f"%%MatrixMarket matrix {header.layout} {field} general\n{size}\n".encode()
        try:
            found: Any = scipy.io.mmread(io.BytesIO(first + text), spmatrix=False)
        except (ValueError, OverflowError) as error:
            number, _, why = str(error).removeprefix("Line ").partition(": ")
            return _Part(text, filled, lines, nothing, nothing, np.empty(0), (int(number) - 3, why))
        values = found.data if indices else found[:, 0]
        wrong = None
        if not (fine := np.isfinite(values)).all():
            wrong = (_filled_line(text, int(np.argmin(fine))), "out of the range of float64")
        elif header.field == "integer" and (np.floor(values) != values).any():
            wrong = (_filled_line(text, int(np.argmax(np.floor(values) != values))), "not whole, in a file of whole numbers")
        if not indices:
            return _Part(text, filled, lines, nothing, nothing, values, wrong)
        return _Part(text, filled, lines, found.coords[0], found.coords[1], values, wrong)

    def _generalised(self, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.header.symmetry == "general" or self.header.layout == "array":
            return rows, columns, values
        other = rows != columns
        sign = -1 if self.header.symmetry == "skew-symmetric" else 1
        mirrored = columns[other], rows[other], sign * values[other]
        joined = [np.concatenate(pair) for pair in zip((rows, columns, values), mirrored, strict=True)]
        return joined[0], joined[1], joined[2]

    def _bad(self, part: _Part, lines: int) -> str:
        assert part.bad is not None
        number, why = part.bad
        line = part.text.split(b"\n", number + 1)[number].strip()
        header = self.header
        if not why:
            low = line.lower()
            if b"nan" in low or b"inf" in low:
                why = "give finite numbers"
            elif header.layout == "array":
                why = "each line of an array has one number"
            else:
                why = f"each line has {'row, column and value' if header.words == 3 else 'row and column, as a pattern has no values'}"
            if self._unended and number + 2 == len(part.text.split(b"\n")):
                why += "; the file ends there, and was cut off"
        elif "index" in why.lower():
            why = f"the matrix has {header.shape[0]} rows and {header.shape[1]} columns, which count from 1"
        return f"{self.told}, line {lines + number + 1}: {quoted(bytes(line))}; {why.rstrip('.')}."


@dataclass(frozen=True)
class _Part:
    text: bytes | bytearray
    filled: int
    lines: int
    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    bad: tuple[int, str] | None
    """The first line in it that is wrong, from 0, and why, where the reader said so."""


_EXPONENTS = bytes.maketrans(b"dD", b"eE")
_PLUS = re.compile(rb"(^|[ \t\n])\+", re.MULTILINE)


def _held(text: _Text) -> scipy.sparse.csr_array:
    """In memory, in order; what is read is put where it stays, as the header says how many entries there are."""
    header = text.header
    index = np.dtype(np.int32 if max(header.shape) < 1 << 31 else np.int64)
    places, values = np.empty((2, header.most_nnz), index), np.empty(header.most_nnz)
    if header.symmetry == "general":
        text.into = places, values
    filled = 0
    for part in text.entries():
        end = filled + len(part[0])
        for into, found in zip((*places, values), part, strict=True):
            # Most were read to where they belong.
            if (here := into[filled:end]).ctypes.data != found.ctypes.data:
                here[:] = found
        filled = end
    entries = values[:filled], tuple(places[:, :filled])
    held = scipy.sparse.coo_array(entries, shape=header.shape).tocsr()
    held.sum_duplicates()
    return held


def _deal(text: _Text, dealt: Dealt, identity: dict[str, Any]) -> None:
    try:
        for rows, columns, values in text.entries():
            for first in range(0, len(rows), dealt.part_entries):
                part = slice(first, first + dealt.part_entries)
                dealt.add(rows[part], columns[part], values[part])
        dealt.finish(identity)
    except BaseException:
        dealt.abandon()
        raise


def _dense(text: _Text, seen: Seen, budget_bytes: int) -> Matrix:
    """Of the array layout: columns one after another, of symmetric ones what is below the diagonal."""
    header = text.header
    rows, columns = header.shape
    least = 2 * (3 * 8 * rows * columns + text.held_bytes)
    if least > budget_bytes:
        raise DoesNotFit(
            f"{text.told} is dense, as text; reading it takes a budget of {format_bytes(least)}, and it is {format_bytes(budget_bytes)}. "
            "Save it with numpy.save: a .npy file is read by parts.",
            least,
        )
    values = np.empty(header.entries)
    filled = 0
    for _, _, part in text.entries():
        values[filled : filled + len(part)] = part
        filled += len(part)
    if header.symmetry == "general":
        dense = np.ascontiguousarray(values.reshape(columns, rows).T)
    else:
        skew = header.symmetry == "skew-symmetric"
        dense = np.zeros((rows, columns))
        column, row = np.triu_indices(rows, int(skew))
        dense[row, column], dense[column, row] = values, -values if skew else values
    seen.check(seen.path)
    return HeldMatrix(dense, text.told, {"matrix": seen.identity}, owned=True)


def _opened(path: Path) -> io.BufferedReader | gzip.GzipFile:
    return gzip.GzipFile(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def _text_bytes(budget_bytes: int) -> int:
    """A quarter of the budget, for all that is read at once."""
    return min(_MOST_TEXT, max(_LEAST_TEXT, budget_bytes // (4 * _held_bytes(1))))


def _held_bytes(text_bytes: int) -> int:
    """While parts of so much text are read, one in each thread and one more."""
    return (processors() + 1) * text_bytes * _PER_TEXT


def _one_thread_each() -> Any:
    """Parts are read side by side: the reader's own threads on each took half as long again."""
    from threadpoolctl import threadpool_limits

    # What limits the reader is known once it was used.
    scipy.io.mminfo(io.BytesIO(b"%%MatrixMarket matrix array real general\n1 1\n0\n"))
    return threadpool_limits(1, "scipy")


def _filled_line(text: bytes | bytearray, count: int) -> int:
    """The number, from 0, of the filled line before which there are `count` others."""
    numbers = (number for number, line in enumerate(text.split(b"\n")) if line.strip())
    return next(number for index, number in enumerate(numbers) if index == count)
