"""Scores of other rows along components that were found: a block of rows at a time, within a budget, out of files and into them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse

from sash.arrays._loadings import CHUNK_BYTES, dense_loadings, is_sparse
from sash.arrays._matrix import Matrix, check_finite
from sash.arrays._matrix_open import open_matrix
from sash.arrays._pca_ways import STARTING_BYTES
from sash.arrays._running import MAPPED_FROM, Options, does_not_fit, showing
from sash.arrays._spmm import gathered
from sash.arrays._store import open_sink
from sash.arrays._sweep import cut_rows
from sash.arrays._weights import Weighted, blocks_within
from sash.errors import DoesNotFit, InputError
from sash.heap import blocks_given_back
from sash.window import Interval

if TYPE_CHECKING:
    from sash.arrays._pca_result import PCA

_WIDTHS = (256, 64, 16, 4, 1)
"""Components at once."""
_CALL = 1 << 20
"""Bytes that are read in the time of a call that reads none."""
_LEAST = 1 << 14
"""Numbers of a sparse block that are worth another thread."""


def scores_of(model: PCA, rows: Any, out: str | os.PathLike[str] | None, options: Options) -> Any:
    """(rows, components): an array, or the path of a file that has it; see `PCA.transform`."""
    count, threads = len(model.singular_values), options.most_workers
    if out is not None and Path(out).suffix.lower() != ".npy":
        raise InputError(f"out is {out}; scores go to an array in a file: give a name that ends in .npy.")
    with ExitStack() as now:
        now.enter_context(blocks_given_back(MAPPED_FROM))
        matrix, told = _opened(model, rows, options, now)
        shape = matrix.shape[0], count
        width, blocks = _cut(model, matrix, options.budget_bytes, out is None)
        sink = open_sink(None if out is None else Path(out), shape, float, overwrite=options.overwrite)
        now.callback(sink.close)
        share = now.enter_context(showing(options.progress, f"scores of {shape[0]} rows", 8 * shape[0] * count))
        try:
            for start, stop, first, last, part, block in _pairs(model, matrix, blocks, width, told):
                sink.write((Interval(start, stop), Interval(first, last)), part.scores(block, threads))
                share(8 * (stop - start) * (last - first))
                # There is room for one of each.
                del part, block
        except BaseException:
            sink.abandon()
            raise
        return sink.finish()


def _pairs(
    model: PCA, matrix: Matrix, blocks: list[tuple[int, int]], width: int, told: str
) -> Iterator[tuple[int, int, int, int, _Part, Any]]:
    """Every block of rows with every part of the components: of both those are read again and again that are fewer bytes."""
    count = len(model.singular_values)
    parts = [(first, min(first + width, count)) for first in range(0, count, width)]
    components_bytes = 8 * len(model.mean) * count + len(parts) * _CALL

    def block_of(start: int, stop: int) -> Any:
        block = matrix.block(start, stop)
        check_finite(block, start, told)
        return block

    if (len(blocks) - 1) * components_bytes <= (len(parts) - 1) * matrix.file_bytes:
        for start, stop in blocks:
            block = block_of(start, stop)
            for first, last in parts:
                yield start, stop, first, last, _Part.of(model, first, last), block
            del block
        return
    for first, last in parts:
        part = _Part.of(model, first, last)
        for start, stop in blocks:
            yield start, stop, first, last, part, block_of(start, stop)
        del part


def _opened(model: PCA, rows: Any, options: Options, now: ExitStack) -> tuple[Matrix, str]:
    """The rows, weighed as the model's were, and what to call them."""
    columns = len(model.mean)
    filed = isinstance(rows, (str, os.PathLike)) or type(rows).__module__.partition(".")[0] == "zarr"
    told = str(rows) if isinstance(rows, (str, os.PathLike)) else "the rows"
    if not filed and not scipy.sparse.issparse(rows) and not isinstance(rows, (np.ndarray, Matrix)):
        rows = np.asarray(rows)
    shape: Any = getattr(rows, "shape", ())
    if not filed and (len(shape) != 2 or shape[1] != columns):
        raise InputError(f"the rows have the shape {tuple(shape)}; give {columns} columns, as the matrix has.")
    stored: Any = rows
    if scipy.sparse.issparse(rows) and stored.nnz == 0:
        # Rows of zeros have scores, where a matrix of them has no components: a zero that is stored makes them readable.
        rows = scipy.sparse.csr_array(([0.0], ([0], [0])), shape=shape)
    folder = Path(tempfile.mkdtemp(prefix="sash-"))
    now.callback(shutil.rmtree, folder, ignore_errors=True)
    matrix = open_matrix(rows, budget_bytes=options.budget_bytes // 4, scratch=folder, progress=options.progress)
    if matrix is not rows:
        now.callback(matrix.close)
    if matrix.shape[1] != columns:
        raise InputError(f"{told} has {matrix.shape[1]} columns; give {columns}, as the matrix has.")
    if matrix.names is not None and model.names is not None and matrix.names != model.names:
        place = next(place for place, (ours, theirs) in enumerate(zip(matrix.names, model.names, strict=True)) if ours != theirs)
        raise InputError(
            f"column {place} of {told} is {matrix.names[place]!r}, and {model.names[place]!r} in the model; put columns in its order."
        )
    return (Weighted(matrix, model.weights, model.idf) if model.weights != "counts" else matrix), told


def _cut(model: PCA, matrix: Matrix, budget: int, in_memory: bool) -> tuple[int, list[tuple[int, int]]]:
    """Components and rows at once, as many as fit; raises `DoesNotFit`."""
    (rows, columns), count = matrix.shape, len(model.singular_values)
    held = STARTING_BYTES + matrix.held_bytes + (8 * rows * count if in_memory else 0)

    def taken(width: int) -> Callable[[int, int], int]:
        # A dense block may have to become float64; scores are made, less what the means have of them.
        each = 16 * width + (0 if matrix.sparse else 8 * columns)
        return lambda start, stop: matrix.block_bytes(start, stop) + (stop - start) * each

    for width in _widths(model.components, count):
        room = budget - held - _Part.held_bytes(model, width)
        # Components leave room for rows, but for the last ones.
        if room >= budget // 4 or width == 1:
            try:
                return width, list(blocks_within(rows, taken(width), room))
            except DoesNotFit:
                continue
    longest = int(np.argmax(matrix.row_nnz()))
    least = held + _Part.held_bytes(model, 1) + taken(1)(longest, longest + 1)
    raise does_not_fit(f"scores of {rows} rows", least, budget, in_memory)


def _together(components: Any) -> int:
    """Components that lie in a chunk."""
    return components.chunks[0] if hasattr(components, "chunks") else 1


def _segment(components: Any, width: int) -> int:
    """Columns that are read at once: whole chunks, where there are some."""
    chunk = components.chunks[1] if hasattr(components, "chunks") else 1
    whole = max(CHUNK_BYTES // (8 * max(width, _together(components)) * chunk), 1) * chunk
    return min(whole, components.shape[1])


def _widths(components: Any, count: int) -> list[int]:
    """To be tried, the widest first: whole chunks, and less where these are too many."""
    chunk = _together(components)
    return list(dict.fromkeys(min(width // chunk * chunk if width > chunk else width, count) for width in _WIDTHS))


@dataclass(frozen=True, eq=False)
class _Part:
    """Some of the components, ready to be multiplied."""

    vectors: np.ndarray
    """(columns, some), as scaled."""
    offset: np.ndarray
    """What the means have of them."""

    @classmethod
    def of(cls, model: PCA, start: int, stop: int) -> _Part:
        """Those from the first to before the last."""
        columns = len(model.mean)
        vectors = np.empty((columns, stop - start))
        if is_sparse(model.components):
            own = model.components[start:stop]
            for place in range(stop - start):
                vectors[:, place] = dense_loadings(own[place])
        else:
            for first in range(0, columns, step := _segment(model.components, stop - start)):
                vectors[first : first + step] = model.components[start:stop, first : first + step].T
        if model.scale is not None:
            vectors *= model.scale[:, None]
        return cls(vectors, model.mean @ vectors)

    @staticmethod
    def held_bytes(model: PCA, width: int) -> int:
        """Of so many, while they are made."""
        columns = len(model.mean)
        if is_sparse(model.components):
            # The sparse ones, at most as many as there are numbers, and one of them dense.
            return 8 * columns * (width + 1) + 12 * columns * width + CHUNK_BYTES
        step = _segment(model.components, width)
        # A segment is read, decoded and turned round; its chunks hold more components, perhaps.
        return 8 * columns * width + 3 * 8 * step * max(width, _together(model.components))

    def scores(self, block: scipy.sparse.csr_array | np.ndarray, threads: int) -> np.ndarray:
        """(rows, some)."""
        if isinstance(block, np.ndarray):
            made = block @ self.vectors
            made -= self.offset
            return made
        made = np.empty((len(block.indptr) - 1, self.vectors.shape[1]))

        def work(part: tuple[int, int]) -> None:
            gathered(block.indptr, block.indices, block.data, self.vectors, self.offset, made, *part)

        parts = cut_rows(np.diff(block.indptr), max(block.nnz // (4 * threads), _LEAST))
        if len(parts) == 1:
            work(parts[0])
            return made
        with ThreadPoolExecutor(threads, "sash") as pool:
            list(pool.map(work, parts))
        return made
