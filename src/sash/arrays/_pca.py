"""`pca`: principal components of a matrix, sparse or dense, centred without ever being formed, within a budget."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from threadpoolctl import threadpool_limits

from sash.arrays._centred import Centred
from sash.arrays._gram import Gram
from sash.arrays._journal import Journal
from sash.arrays._krylov import Pairs, State, largest
from sash.arrays._matrix import Matrix
from sash.arrays._matrix_names import Names
from sash.arrays._moments import Moments, moments
from sash.arrays._pca_open import opened_within
from sash.arrays._pca_result import PCA, PcaPlan
from sash.arrays._pca_store import WRITING_BYTES, Folder, Held, opened
from sash.arrays._pca_ways import Asked, Way, choose, without_time
from sash.arrays._rates import array_rates
from sash.arrays._running import MAPPED_FROM, Options, showing
from sash.arrays._sweep import Sweep, cut_rows
from sash.arrays._tridiagonal import Reduced, parted
from sash.arrays._weights import Weighted, Weights
from sash.errors import InputError, SashError
from sash.heap import blocks_given_back
from sash.units import format_shape

METHODS = ("auto", "krylov", "gram", "randqb")
_DOUBTFUL = 1e-8
"""Of the largest eigenvalue: smaller ones are found once more without squares."""
_MANY = 400
"""Components, after which looks at the Krylov space are dear."""
_MOST_PRODUCTS = 100
"""For each component, after which a Krylov space is given up."""


def pca(
    source: Any,
    components: int | None = None,
    variance: float | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    budget: str | int = "2 GiB",
    weights: Weights = "counts",
    scale: bool = False,
    tolerance: float = 1e-6,
    method: Literal["auto", "krylov", "gram", "randqb"] = "auto",
    seed: int = 0,
    loadings: Literal["float64", "float32"] = "float64",
    names: Names | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    restart: bool = False,
    progress: bool | None = None,
    plan_only: bool = False,
) -> Any:
    """Principal components of a matrix's rows: so many `components`, or the fewest that explain a share `variance` of the total.

    `source` is a numpy array, a matrix of scipy.sparse, or a file: .mtx, .mtx.gz, .npz, .npy, .zarr, .h5ad. Columns are centred exactly,
    and with `scale` divided by their standard deviations; the centred matrix is never formed. `variance` is above 0 and up to 1, which
    stands for all components that there are. `weights` are counts, log or tfidf. `names` of columns are a list, or a file
    with one a line; without them those in the file count, or docs.vocab.txt beside docs.mtx.

    "krylov" finds the largest components by block Lanczos, until each residual is at most `tolerance` of its singular value; "gram" finds
    all eigenvalues of the Gram matrix of the smaller side, so that the number for a share is exact, and then the vectors. Residuals are
    measured at the end; singular values below 1e-7 of the largest are rounding, and their residuals say so. "randqb" is quick where the
    matrix is of low rank, and may take some components more than the fewest. Bits are the same for the same seed, budget and workers.

    Returns a `PCA`; with `out`, a name that ends in .zarr, that folder is written, chunk by chunk of components, and an interrupted run is
    taken up by the same call. `loadings` is the type that components are kept in. With `plan_only` nothing runs, and what would is
    returned: a `PcaPlan`.
    Raises `InputError` for what makes no components, `DoesNotFit` with the least budget that would do, before any work.
    Source: Grimes, Lewis, Simon 1994 (block Lanczos); Yu, Gu, Li 2018 (randQB_EI).
    """
    options = Options(budget, workers, overwrite, restart, progress)
    threads = options.most_workers
    _check(components, variance, tolerance, method, loadings, seed)
    with ExitStack() as now:
        now.enter_context(blocks_given_back(MAPPED_FROM))
        scratch = now.enter_context(_scratch(out))

        def planned(matrix: Matrix) -> tuple[Asked, Way, PcaPlan]:
            asked = _asked(matrix, components, variance, tolerance, out is not None, np.dtype(loadings))
            return asked, *_planned(matrix, asked, options, threads, method, out is not None)

        matrix, (asked, way, plan) = opened_within(source, options.budget_bytes, scratch, weights, planned, now, names, options.progress)
        told = plan.operation
        if plan_only:
            return plan
        share = now.enter_context(showing(options.progress, f"{told}, {way.method}", 100 << 20))
        job = _Job(matrix, asked, way, scale, seed, threads, lambda part: share(part * (100 << 20)))
        facts: dict[str, Any] = {"weights": weights, "scale": scale, "loadings": loadings}
        if out is None:
            return _held(job, weights, scale)
        return _filed(job, Path(out), options, facts, scratch)


@dataclass(frozen=True, eq=False)
class _Job:
    """What runs."""

    matrix: Matrix
    asked: Asked
    way: Way
    scale: bool
    seed: int
    threads: int
    tick: Callable[[float], None]
    """Told shares of all that is to be done."""


def _check(components: Any, variance: Any, tolerance: float, method: str, loadings: str, seed: int) -> None:
    if (components is None) == (variance is None):
        raise InputError(
            f"components is {components} and variance {variance}; give one of them: a number of components, or a share as 0.9."
        )
    if components is not None and (isinstance(components, bool) or not isinstance(components, (int, np.integer)) or components < 1):
        near = " For a share of the variance say variance=." if isinstance(components, float) and 0 < components <= 1 else ""
        raise InputError(f"components is {components!r}; give a whole number from 1 on.{near}")
    if variance is not None and not (isinstance(variance, (int, float, np.number)) and 0 < variance <= 1):
        raise InputError(f"variance is {variance!r}; give a share above 0 and up to 1, as 0.9: 1 stands for all components that there are.")
    if not (isinstance(tolerance, (int, float)) and 1e-13 <= tolerance < 1):
        raise InputError(f"tolerance is {tolerance!r}; give a share of a singular value, from 1e-13 up to below 1.")
    if method not in METHODS:
        raise InputError(f"method is {method!r}; it is one of {', '.join(METHODS)}.")
    if method == "randqb" and variance is None:
        raise InputError("method 'randqb' finds components for a share of the variance; give variance, or take 'krylov'.")
    if loadings not in ("float64", "float32"):
        raise InputError(f"loadings is {loadings!r}; components are kept as float64 or float32.")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"seed is {seed!r}; give a whole number from 0 on.")


def _asked(matrix: Matrix, components: int | None, variance: float | None, tolerance: float, filed: bool, loadings: np.dtype) -> Asked:
    rows, columns = matrix.shape
    if rows < 2:
        raise InputError("the matrix has a single row, so that nothing varies; give two at least.")
    most = min(rows - 1, columns)
    if components is not None and components > most:
        raise InputError(f"components is {components}; {rows} centred rows of {columns} columns have {most} at most.")
    likely = most if variance is None else max(int(most * (0.45 if variance < 0.95 else 0.8)), 1)
    share = None if variance is None else float(variance)
    return Asked(None if components is None else int(components), share, float(tolerance), filed, loadings, likely, most)


def _planned(matrix: Matrix, asked: Asked, options: Options, threads: int, method: str, filed: bool) -> tuple[Way, PcaPlan]:
    rates, spare = array_rates(), WRITING_BYTES if filed else 0
    way, methods = choose(matrix, asked, options.budget_bytes, threads, method, rates, spare)
    chosen = next(one for one in methods if one.name == way.method)
    count = asked.components or asked.likely
    passes = 1 if way.method == "gram" or way.held else 2 + -(-int(4 * count) // way.block)
    written = count * (8 * matrix.shape[0] + asked.loadings.itemsize * matrix.shape[1])
    plan = PcaPlan(
        operation=f"PCA of {format_shape(matrix.shape)}",
        method=way.method,
        shape=(matrix.shape[0], count),
        dtype="float64",
        tasks=-(-count // way.chunk),
        task_shape=(matrix.shape[0], way.chunk),
        workers=way.workers,
        passes=passes,
        budget_bytes=options.budget_bytes,
        peak_bytes=way.peak_bytes,
        read_bytes=passes * matrix.file_bytes,
        written_bytes=written,
        wall_s=way.wall_s,
        error=chosen.error,
        methods=methods,
        components=asked.components,
        variance=asked.variance,
    )
    return way, plan


@contextmanager
def _scratch(out: Any) -> Iterator[Path | None]:
    """A folder for what is put in order: beside the output, where an interrupted run finds it again; else one that is gone at the end."""
    if out is None:
        folder = Path(tempfile.mkdtemp(prefix="sash-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    folder = Path(out).with_name(Path(out).name + ".scratch")
    there = folder.exists()
    if folder.parent.is_dir() and not there:
        folder.mkdir()
    try:
        yield folder
    except Exception:
        # What an earlier run left there is the resumed one's.
        if not there:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _held(job: _Job, weights: Weights, scale: bool) -> PCA:
    into = Held(job.asked.loadings)
    with threadpool_limits(1, "blas"):
        centred = _centred(job)
        made = _values(job, centred, None, None)
        into.begin(*job.matrix.shape, made.count, job.way.chunk)
        for start, loadings, scores, small in _chunks(job, centred, made, set()):
            into.put(start, loadings, scores, small)
    return _result(job, centred.moments, into.components, into.scores, into.small, weights, scale, None)


def _filed(job: _Job, out: Path, options: Options, facts: dict[str, Any], scratch: Path | None) -> PCA:
    into = Folder(out, job.asked.loadings, options.overwrite)
    asked = job.asked
    resting = {
        **facts,
        "components": asked.components,
        "variance": asked.variance,
        "tolerance": asked.tolerance,
        "seed": job.seed,
        "way": repr(without_time(job.way)),
        "source": job.matrix.identity,
        "numpy": np.__version__,
    }
    journal = Journal(out, resting)
    done = journal.begun(options.restart)
    note = into.target.final.with_name(into.target.final.name + ".reduced")
    with threadpool_limits(1, "blas"), closing(journal):
        centred = _centred(job)
        if done is None:
            note.unlink(missing_ok=True)
            idf = {} if not isinstance(job.matrix, Weighted) or job.matrix.idf is None else {"idf": job.matrix.idf}
            vectors = {"mean": centred.moments.mean, **({"scale": centred.moments.scale} if job.scale else {}), **idf}
            into.begin({"operation": "pca", **{key: value for key, value in resting.items() if key not in ("source", "way")}}, vectors)
        journal.begin()
        try:
            made = _values(job, centred, note, done)
        except (InputError, SashError):
            # It would come again.
            journal.remove()
            note.unlink(missing_ok=True)
            raise
        if into.arrange(*job.matrix.shape, made.count, job.way.chunk):
            done = set()
        for start, loadings, scores, small in _chunks(job, centred, made, done or set()):
            into.put(start, loadings, scores, small)
            journal.done(start)
    total = centred.moments.total
    attributes = {"method": job.way.method, "total_variance": total, "found": made.count}
    if job.matrix.names:
        attributes["names"] = list(job.matrix.names)
    into.finish(attributes)
    journal.remove()
    note.unlink(missing_ok=True)
    group = opened(out)
    from sash.arrays._pca_store import SMALL

    small = {name: np.asarray(group[name][...]) for name in SMALL}
    return _result(job, centred.moments, group["loadings"], group["scores"], small, facts["weights"], job.scale, out)


def _result(
    job: _Job, found: Moments, components: Any, scores: Any, small: dict[str, np.ndarray], weights: Weights, scale: bool, out: Path | None
) -> PCA:
    return PCA(
        components=components,
        scores=scores,
        mean=found.mean,
        scale=found.scale if scale else None,
        total_variance=found.total,
        method=job.way.method,
        weights=weights,
        idf=job.matrix.idf if isinstance(job.matrix, Weighted) else None,
        names=job.matrix.names,
        out=out,
        **small,
    )


def _centred(job: _Job) -> Centred:
    way = job.way
    found = moments(Sweep(job.matrix, way.workers, way.stored), job.scale)
    if found.total <= 0:
        raise InputError(f"all {job.matrix.shape[0]} rows of the matrix are equal, so that nothing varies; there are no components.")
    return Centred(Sweep(job.matrix, way.workers, way.stored), found, way.held)


@dataclass(frozen=True, eq=False)
class _Found:
    """Eigenvectors of the smaller side's Gram matrix, as far as they are made."""

    count: int
    vectors: Callable[[int, int], np.ndarray]
    """From the first to before the last, in columns."""
    spectrum: np.ndarray
    """The Gram matrix's largest eigenvalues: `count` of them at least."""
    groups: tuple[tuple[int, int], ...]
    """From the first to before the last of vectors that are made together."""


def _values(job: _Job, centred: Centred, note: Path | None, done: set[int] | None) -> _Found:
    if job.way.method == "gram":
        return _by_gram(job, centred, note, done is not None)
    found = _by_krylov(job, centred) if job.way.method == "krylov" else _by_randqb(job, centred)
    return _Found(len(found.values), lambda start, stop: found.vectors[:, start:stop], found.values, ((0, len(found.values)),))


def _by_krylov(job: _Job, centred: Centred) -> Pairs:
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
    found = largest(centred, enough, most=way.most, seed=job.seed, block=way.block, threads=way.workers, keep=keep, first=first)
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


def _by_gram(job: _Job, centred: Centred, note: Path | None, resumed: bool) -> _Found:
    asked, way, side = job.asked, job.way, centred.side
    reduced = Reduced.read(note, side) if note is not None and resumed else None
    if reduced is None:
        blocks = cut_rows(centred.moments.row_nnz, way.stored)
        gram = Gram(job.matrix, centred.moments, centred.of_rows, blocks, way.workers).make(lambda share: job.tick(0.05 * share))
        reduced = Reduced.of(gram)
        del gram
    else:
        job.tick(0.05 + 0.6 * (1 - (1 - reduced.done / side) ** 3))
    reduced.run(lambda share: job.tick(0.6 * share), note, threads=way.workers)
    values = np.maximum(reduced.eigenvalues(), 0.0)
    # Of all rows' Gram matrix one eigenvalue is zero, and so may others be.
    values[values <= values[0] * _rounding(job)] = 0.0
    count = asked.components
    if count is None:
        assert asked.variance is not None
        count = _fewest(values, float(values.sum()), asked.variance) or int(np.count_nonzero(values))
    _check_rank(job, values[:count], _rounding(job))
    whole = reduced

    def turned(start: int, stop: int) -> np.ndarray:
        found = whole.vectors(start, stop, values, way.workers)
        whole.turned_back(found, way.workers)
        if start == 0 and stop == count and values[count - 1] <= _DOUBTFUL * values[0] and (not asked.filed or count <= way.chunk):
            return _sharpened(centred, found)[1]
        return found

    groups = parted(values, 0, count, max(way.group, 1))
    if groups is None:
        raise SashError(f"more than {way.group} eigenvalues are equal but for rounding, and there is room for no more vectors at once.")
    return _Found(count, turned, values, tuple(groups))


def _by_randqb(job: _Job, centred: Centred) -> Pairs:
    """A basis that grows until what it leaves of the variance is little enough; its eigenvalues are at most the matrix's own."""
    from sash.arrays._randqb import randqb

    assert job.asked.variance is not None
    total = centred.moments.total * (job.matrix.shape[0] - 1)
    found = randqb(centred, total, job.asked.variance, seed=job.seed, threads=job.way.workers, most=job.way.most)
    count = _fewest(found.values, total, job.asked.variance)
    count = len(found.values) if count is None else count
    return replace(found, values=found.values[:count], vectors=found.vectors[:, :count], residuals=found.residuals[:count])


def _fewest(values: np.ndarray, total: float, share: float) -> int | None:
    """How many of the largest make up a share of the total, but for its rounding; None where all of them do not."""
    sums = np.cumsum(values)
    if not len(sums) or sums[-1] < total * share * (1 - 1e-12):
        return None
    return min(int(np.searchsorted(sums, total * share * (1 - 1e-12))) + 1, len(sums))


def _rounding(job: _Job) -> float:
    """Of a Gram matrix's largest eigenvalue: others below are zero, or might be."""
    return 8 * np.finfo(float).eps * max(job.matrix.shape) ** 0.5


def _check_rank(job: _Job, values: np.ndarray, least: float) -> None:
    rank = int(np.count_nonzero(values > values[0] * least))
    if rank < len(values):
        near = ", as far as a Gram matrix tells" if job.way.method == "gram" else ""
        raise InputError(f"components is {len(values)}, and the centred matrix has the rank {rank}{near}; give {rank} or fewer.")


def _chunks(
    job: _Job, centred: Centred, made: _Found, done: set[int]
) -> Iterator[tuple[int, np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
    """Loadings, scores and numbers of components, chunk by chunk, each with the place of its first."""
    rows, chunk = job.matrix.shape[0], job.way.chunk
    for first, last in made.groups:
        starts = [start for start in range(first, last, chunk) if start not in done]
        # All of a group, as in a run that was not interrupted: of other ranges the last bits are others.
        vectors = made.vectors(first, last) if starts else np.empty((0, 0))
        for start in starts:
            stop = min(start + chunk, last)
            own = np.array(vectors[:, start - first : stop - first], order="C")
            loadings, scores, values, residuals = _both_sides(centred, own)
            small = {
                "singular_values": values,
                "explained_variance": values**2 / (rows - 1),
                "explained_variance_ratio": values**2 / ((rows - 1) * centred.moments.total),
                "residuals": residuals,
            }
            job.tick(0.35 * (stop - start) / made.count)
            yield start, loadings, scores, small


def _both_sides(centred: Centred, own: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Loadings, scores, singular values and residuals, of unit vectors on the smaller side; the largest loading is positive."""
    other = centred.back(own) if centred.of_rows else centred.forth(own)
    values = _lengths(other)
    divisors = np.where(values > 0, values, 1.0)
    other /= divisors
    again = centred.forth(other) if centred.of_rows else centred.back(other)
    own *= values
    again -= own
    residuals = _lengths(again) / divisors
    del again
    if centred.of_rows:
        loadings, scores = other, own
    else:
        own /= divisors
        other *= values
        loadings, scores = own, other
    signs = np.where(loadings.max(axis=0) >= -loadings.min(axis=0), 1.0, -1.0)
    loadings *= signs
    scores *= signs
    return loadings, scores, values, residuals


def _lengths(columns: np.ndarray) -> np.ndarray:
    """Of columns, without a copy of their squares."""
    return np.sqrt(np.einsum("ij,ij->j", columns, columns))
