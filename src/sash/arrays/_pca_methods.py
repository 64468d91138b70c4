"""The methods of `pca`: eigenvectors of the smaller side, whichever way, and from them loadings, scores and residuals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sash.arrays._centred import Centred
from sash.arrays._gram import Gram
from sash.arrays._krylov import Pairs, State, largest
from sash.arrays._matrix import Matrix
from sash.arrays._moments import moments
from sash.arrays._nystrom import basis_of, sketched, with_scores, without_scores
from sash.arrays._pca_ways import Asked, Way, gram_blocks
from sash.arrays._reduced_filed import FiledReduced, reduced_in_files
from sash.arrays._row_slices import Each, slices_of, sum_in_order
from sash.arrays._sweep import Sweep
from sash.arrays._tridiagonal import Reduced, parted
from sash.errors import InputError, SashError
from sash.heap import blocks_kept

if TYPE_CHECKING:
    from sash.arrays._sweep_apart import Lanes

_DOUBTFUL = 1e-8
"""Of the largest eigenvalue: smaller ones are found once more without squares."""
_MANY = 400
"""Components, after which looks at the Krylov space are dear."""
_MOST_PRODUCTS = 100
"""For each component, after which a Krylov space is given up."""


@dataclass(frozen=True, eq=False)
class Task:
    """What runs."""

    matrix: Matrix
    asked: Asked
    way: Way
    scale: bool
    seed: int
    threads: int
    """Of this process, for what is dense."""
    tick: Callable[[float], None]
    """Told shares of all that is to be done."""
    scratch: Path | None = None
    """A folder for what is larger than memory."""
    apart: Lanes | None = None
    """Where passes run, if it is not in this process."""


def centred_of(job: Task) -> Centred:
    """The matrix with its means, after a pass over it; raises `InputError` where nothing varies."""
    way = job.way
    sweep = Sweep(job.matrix, way.workers, way.stored, job.apart)
    if way.method == "nystrom":
        found, sketch = sketched(sweep, way.most, job.scale, job.seed, lambda share: job.tick(0.35 * share))
    else:
        found, sketch = moments(sweep, job.scale), None
    if found.total <= 0:
        raise InputError(f"all {job.matrix.shape[0]} rows of the matrix are equal, so that nothing varies; there are no components.")
    return Centred(sweep, found, way.held, sketch=sketch)


Sides = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Loadings, scores, singular values and residuals of some components."""


@dataclass(frozen=True, eq=False)
class Found:
    """Eigenvectors of the smaller side's Gram matrix, or of the columns', as far as they are made."""

    count: int
    vectors: Callable[[int, int], np.ndarray]
    """From the first to before the last, in columns."""
    spectrum: np.ndarray
    """The Gram matrix's largest eigenvalues: `count` of them at least."""
    groups: tuple[tuple[int, int], ...]
    """From the first to before the last of vectors that are made together."""
    shortfall: float | None = None
    """What the true explained variances are larger by, each at most, where residuals do not tell; but for rounding."""
    finished: Sides | None = None
    """All there is to find, where it was made on the way."""


def found_by(job: Task, centred: Centred, note: Path | None, done: set[int] | None) -> Found:
    """What the job's way finds; `note` is where a long reduction is noted, `done` are chunks of an earlier run, if there was one."""
    if job.way.method == "gram":
        return _by_gram(job, centred, note, done is not None)
    if job.way.method == "nystrom":
        return _by_nystrom(job, centred)
    found = _by_krylov(job, centred) if job.way.method == "krylov" else _by_randqb(job, centred)
    return Found(len(found.values), lambda start, stop: found.vectors[:, start:stop], found.values, ((0, len(found.values)),))


def _by_krylov(job: Task, centred: Centred) -> Pairs:
    asked, way, side = job.asked, job.way, centred.side
    total = centred.moments.total * (job.matrix.shape[0] - 1)
    told = 0.0

    def enough(state: State) -> int | None:
        nonlocal told
        # Values that are rounding have no direction to converge to.
        good = (state.residuals <= asked.tolerance) | (state.values <= 4 * np.finfo(float).eps * state.values[0])
        first = int(np.argmin(good)) if not good.all() else len(good)
        if asked.components is not None:
            wanted, share = asked.components, first / asked.components
        else:
            assert asked.variance is not None
            wanted = _fewest(state.values[:first], total, asked.variance)
            share = min(float(state.values[:first].sum()) / (total * asked.variance), 1.0)
        job.tick(0.6 * max(min(share, 1.0) - told, 0.0))
        told = max(told, min(share, 1.0))
        if wanted is not None and first >= wanted:
            return wanted
        if state.applied > _MOST_PRODUCTS * (asked.components or first + way.block) + 20 * way.most:
            raise SashError(
                f"after {state.applied} products, {first} components have residuals of {asked.tolerance:g} or less; "
                "say method='gram', or a larger tolerance."
            )
        if asked.components is None and first > way.most - 4 * way.block and way.most < side:
            raise SashError(
                f"{first} components do not explain {asked.variance:g} of the variance, and there is room for no more: say 'gram'."
            )
        return None

    keep = (asked.components or 0) + way.block
    # Many never converge in a space that is not half as large again, and looking takes as long as growing.
    first = keep if keep < _MANY else min(keep * 3 // 2, way.most)
    # New pages for every product cost a fifth of the time; what readers of files decode in many threads should not stay.
    with blocks_kept() if way.held else nullcontext():
        found = largest(centred, enough, most=way.most, seed=job.seed, block=way.block, threads=job.threads, keep=keep, first=first)
    if found.values[-1] <= _DOUBTFUL * found.values[0] and (not asked.filed or len(found.values) <= way.chunk):
        values, vectors = _sharpened(centred, found.vectors)
        _check_rank(job, values, (8 * np.finfo(float).eps * max(job.matrix.shape)) ** 2)
        found = replace(found, values=values, vectors=vectors)
    return found


def _sharpened(centred: Centred, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and vectors again, from what the matrix makes of the vectors: without the squares, in which small values drown."""
    own = np.ascontiguousarray(vectors)
    upper = np.linalg.qr(centred.back(own) if centred.of_rows else centred.forth(own), mode="r")
    _, values, rotation = np.linalg.svd(upper)
    return values**2, own @ rotation.T


def _by_gram(job: Task, centred: Centred, note: Path | None, resumed: bool) -> Found:
    asked, way = job.asked, job.way
    blocks = gram_blocks(job.matrix, asked, way.stored, way.workers)
    gram = Gram(job.matrix, centred.moments, centred.of_rows, blocks, job.threads)
    whole: Reduced | FiledReduced
    if way.filed:
        assert job.scratch is not None
        whole = reduced_in_files(gram, job.scratch, way.filed, job.tick, resumed)
    else:
        whole = _reduced(job, gram, note, resumed)
    tridiagonal = whole.tridiagonal
    values = np.maximum(tridiagonal.eigenvalues(), 0.0)
    # Of all rows' Gram matrix one eigenvalue is zero, and so may others be.
    values[values <= values[0] * _rounding(job)] = 0.0
    count = asked.components
    if count is None:
        assert asked.variance is not None
        count = _fewest(values, float(values.sum()), asked.variance) or int(np.count_nonzero(values))
    _check_rank(job, values[:count], _rounding(job))

    def turned(start: int, stop: int) -> np.ndarray:
        found = tridiagonal.vectors(start, stop, values, job.threads)
        whole.turned_back(found, job.threads)
        if start == 0 and stop == count and values[count - 1] <= _DOUBTFUL * values[0] and (not asked.filed or count <= way.chunk):
            return _sharpened(centred, found)[1]
        return found

    groups = parted(values, 0, count, max(way.group, 1))
    if groups is None:
        raise SashError(f"more than {way.group} eigenvalues are equal but for rounding, and there is room for no more vectors at once.")
    return Found(count, turned, values, tuple(groups))


def _reduced(job: Task, gram: Gram, note: Path | None, resumed: bool) -> Reduced:
    """The Gram matrix, made and reduced in memory."""
    reduced = Reduced.read(note, gram.side) if note is not None and resumed else None
    if reduced is None:
        reduced = Reduced.of(gram.make(lambda share: job.tick(0.05 * share), job.apart, job.way.workers))
    else:
        job.tick(0.05 + 0.6 * (1 - (1 - reduced.done / gram.side) ** 3))
    reduced.run(lambda share: job.tick(0.6 * share), note, threads=job.threads)
    return reduced


def _by_randqb(job: Task, centred: Centred) -> Pairs:
    """A basis that grows until what it leaves of the variance is little enough; its eigenvalues are at most the matrix's own."""
    from sash.arrays._randqb import randqb

    assert job.asked.variance is not None
    total = centred.moments.total * (job.matrix.shape[0] - 1)
    found = randqb(centred, total, job.asked.variance, seed=job.seed, threads=job.threads, most=job.way.most)
    count = _fewest(found.values, total, job.asked.variance)
    count = len(found.values) if count is None else count
    return replace(found, values=found.values[:count], vectors=found.vectors[:, :count], residuals=found.residuals[:count])


def _by_nystrom(job: Task, centred: Centred) -> Found:
    """Vectors of columns, whichever side is smaller: these go there and back in one pass."""
    asked, (rows, columns) = job.asked, job.matrix.shape
    assert asked.components is not None
    assert centred.sketch is not None
    sketch, centred.sketch = centred.sketch, None
    basis, count = basis_of(sketch, job.threads), asked.components
    at_once = job.way.chunk >= count
    told = replace(centred, passed=lambda share: job.tick(0.3 * share))
    products: tuple[np.ndarray, np.ndarray] | None = None
    if at_once:
        vectors, products, squares = with_scores(told, basis, count)
    else:
        vectors, squares = without_scores(told, basis, count)
    found = np.zeros(count)
    found[: len(squares[:count])] = squares[:count]
    _check_rank(job, found, (8 * np.finfo(float).eps * max(rows, columns)) ** 2)
    shortfall = max(centred.moments.total - float(squares.sum()) / (rows - 1), 0.0)
    finished = _finished(vectors, *products, job.threads) if products else None
    return Found(count, lambda start, stop: vectors[:, start:stop], found, ((0, count),), shortfall, finished)


def _fewest(values: np.ndarray, total: float, share: float) -> int | None:
    """How many of the largest make up a share of the total, but for its rounding; None where all of them do not."""
    sums = np.cumsum(values)
    if not len(sums) or sums[-1] < total * share * (1 - 1e-12):
        return None
    return min(int(np.searchsorted(sums, total * share * (1 - 1e-12))) + 1, len(sums))


def _rounding(job: Task) -> float:
    """Of a Gram matrix's largest eigenvalue: others below are zero, or might be."""
    return 8 * np.finfo(float).eps * max(job.matrix.shape) ** 0.5


def _check_rank(job: Task, values: np.ndarray, least: float) -> None:
    rank = int(np.count_nonzero(values > values[0] * least))
    if rank < len(values):
        near = ", as far as a Gram matrix tells" if job.way.method in ("gram", "nystrom") else ""
        raise InputError(f"components is {len(values)}, and the centred matrix has the rank {rank}{near}; give {rank} or fewer.")


def chunks(job: Task, centred: Centred, made: Found, done: set[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
    """Loadings, scores and numbers of components, chunk by chunk, each with the place of its first.

    There is room for one chunk: whoever takes it lets go of it before the next.
    """
    rows, chunk = job.matrix.shape[0], job.way.chunk
    for first, last in made.groups:
        starts = [start for start in range(first, last, chunk) if start not in done]
        # All of a group, as in a run that was not interrupted: of other ranges the last bits are others.
        vectors = made.vectors(first, last) if starts else np.empty((0, 0))
        for start in starts:
            stop = min(start + chunk, last)
            sides = made.finished or _both_sides(centred, np.array(vectors[:, start - first : stop - first], order="C"))
            loadings, scores, values, residuals = sides
            small = {
                "singular_values": values,
                "explained_variance": values**2 / (rows - 1),
                "explained_variance_ratio": values**2 / ((rows - 1) * centred.moments.total),
                "residuals": residuals,
            }
            job.tick(0.35 * (stop - start) / made.count)
            yield start, loadings, scores, small
            del sides, loadings, scores
        # There is room for one group.
        del vectors


def _both_sides(centred: Centred, own: np.ndarray) -> Sides:
    """Of unit vectors of the smaller side, or of columns; the largest loading is positive."""
    threads = centred.sweep.threads
    if not centred.of_rows or len(own) > centred.side:
        return _finished(own, *centred.forth_and_back(own), threads)
    other = centred.back(own)
    with slices_of(len(other), 8 * other.shape[1], threads) as long, slices_of(len(own), 8 * own.shape[1], threads) as short:
        values = _lengths(other, long)
        divisors = np.where(values > 0, values, 1.0)
        signs = _signs(other, long)
        _scale(other, signs / divisors, long)
        again = centred.forth(other)
        _scale(own, signs * values, short)
        short(partial(_subtract, again, own, 1.0))
        residuals = _lengths(again, short) / divisors
        return other, own, values, residuals


def _finished(own: np.ndarray, scores: np.ndarray, image: np.ndarray, threads: int) -> Sides:
    """Of unit vectors of columns, what the matrix makes of them, and its transpose of that; the last is overwritten."""
    with slices_of(len(scores), 8 * scores.shape[1], threads) as long, slices_of(len(own), 8 * own.shape[1], threads) as short:
        values = _lengths(scores, long)
        divisors = np.where(values > 0, values, 1.0)
        # By the values first: their squares may be too small for numbers.
        _scale(image, 1 / divisors, short)
        short(partial(_subtract, image, own, values))
        residuals = _lengths(image, short) / divisors
        signs = _signs(own, short)
        _scale(own, signs, short)
        _scale(scores, signs, long)
        return own, scores, values, residuals


def _lengths(columns: np.ndarray, each: Each) -> np.ndarray:
    """Of columns, without a copy of their squares."""
    return np.sqrt(sum_in_order(each(lambda rows: np.einsum("ij,ij->j", columns[rows], columns[rows]))))


def _signs(columns: np.ndarray, each: Each) -> np.ndarray:
    """What makes the largest number of each column positive."""
    most = np.max(each(lambda rows: columns[rows].max(axis=0)), axis=0)
    least = np.min(each(lambda rows: columns[rows].min(axis=0)), axis=0)
    return np.where(most >= -least, 1.0, -1.0)


def _subtract(columns: np.ndarray, others: np.ndarray, factors: np.ndarray | float, rows: slice) -> None:
    """In place."""
    columns[rows] -= others[rows] * factors


def _scale(columns: np.ndarray, factors: np.ndarray, each: Each) -> None:
    """In place."""
    each(lambda rows: np.multiply(columns[rows], factors, out=columns[rows]))
