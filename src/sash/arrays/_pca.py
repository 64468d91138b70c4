"""`pca`: principal components of a matrix, sparse or dense, centred without ever being formed, within a budget."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from math import ceil, inf
from pathlib import Path
from typing import Any, Literal

import numpy as np
from threadpoolctl import threadpool_limits

from sash.arrays._cluster import Seats
from sash.arrays._journal import Journal
from sash.arrays._loadings import Kept
from sash.arrays._matrix import Matrix
from sash.arrays._matrix_names import Names
from sash.arrays._pca_apart import placed
from sash.arrays._pca_choose import choose
from sash.arrays._pca_estimate import ComponentsEstimate, estimated_of
from sash.arrays._pca_methods import Task, centred_of, chunks, found_by
from sash.arrays._pca_open import opened_within
from sash.arrays._pca_result import PCA, PcaPlan
from sash.arrays._pca_store import Folder, Held, writing_bytes
from sash.arrays._pca_ways import CHUNK, STARTING_BYTES, Asked, Way, without_time
from sash.arrays._rates import array_rates
from sash.arrays._reduced_filed import forget, free_bytes
from sash.arrays._running import MAPPED_FROM, Options, showing
from sash.arrays._sweep_apart import Lanes
from sash.arrays._weights import Weighted, Weights
from sash.errors import DoesNotFit, InputError, SashError
from sash.heap import blocks_given_back
from sash.units import format_shape

METHODS = ("auto", "krylov", "gram", "randqb", "nystrom")
_WORTH = 0.2
"""Of the time of what is planned, that an estimate may take which might lead to another plan."""


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
    method: Literal["auto", "krylov", "gram", "randqb", "nystrom"] = "auto",
    seed: int = 0,
    loadings: Literal["float64", "float32"] = "float64",
    loadings_above: float | None = None,
    names: Names | None = None,
    workers: int | str | None = None,
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
    all eigenvalues of the Gram matrix of the smaller side, so that the number for a share is exact, and then the vectors. Where that matrix
    does not fit it is reduced on disk, beside `out` or in the folder for temporary files; the plan says how much that takes. Residuals are
    measured at the end; singular values below 1e-7 of the largest are rounding, and their residuals say so. "randqb" is quick where the
    matrix is of low rank, and may take some components more than the fewest. Bits are the same for the same seed, budget and workers.

    "nystrom" reads a file that is larger than memory twice, where the others read it tens of times: one pass finds means, variances and the
    covariance of twice as many random vectors as components, after a look at a hundredth of the rows; the next the best components of their
    range, exact where the rank is no more than theirs. Without room for all of them it takes one pass more, and one for each chunk. How
    near it comes rests on how fast singular values fall, and is not known before: residuals tell, and `shortfall`, which no explained
    variance is further below the true one than. It is taken on request alone.

    With the address of a Dask scheduler as `workers` ("tcp://host:8786") passes over the matrix run on its workers, which read the file
    themselves: a map over rows, and sums that are added here in order; a worker that dies costs time alone. What is dense runs in this
    process, and the budget bounds what it and all workers hold together. "krylov", "randqb" and "nystrom" have the bits of as many threads
    that read the file, whatever is lost on the way; "gram" has bits of its own for each number of workers' threads, and makes in this
    process a Gram matrix that is reduced on disk.

    Returns a `PCA`; with `out`, a name that ends in .zarr, that folder is written, chunk by chunk of components, and an interrupted run is
    taken up by the same call. `loadings` is the type that components are kept in. With `loadings_above` only loadings of a larger size are
    kept: components are a sparse array (in the folder a group as AnnData's), and `left_out` tells how long the rest of each is. A score
    that `transform` makes is off by at most that times the length of the centred row. Fewer than 1 / above² are kept of each, so that
    plans and budgets count no more. Scores and residuals are those of whole components.

    With `plan_only` nothing runs, and what would is returned: a `PcaPlan`. How many components a share takes decides what is quickest:
    where telling that beforehand takes a fifth of the time or less, it is estimated first, for a plan as well (see `estimate_components`).
    Raises `InputError` for what makes no components, `DoesNotFit` with the least budget that would do, before any work.
    Source: Grimes, Lewis, Simon 1994 (block Lanczos); Yu, Gu, Li 2018 (randQB_EI); Halko, Martinsson, Tropp 2011 (Nyström).
    """
    options = Options(budget, workers, overwrite, restart, progress)
    _check(components, variance, tolerance, method, seed)
    kept = _kept(loadings, loadings_above)
    with ExitStack() as now:
        now.enter_context(blocks_given_back(MAPPED_FROM))
        place = now.enter_context(placed(options, source, out))
        seats = place.seats
        scratch = now.enter_context(_scratch(out, plan_only))

        told: list[ComponentsEstimate] = []

        def planned(matrix: Matrix) -> tuple[Asked, Way, PcaPlan]:
            place.check(matrix)
            asked = _asked(matrix, components, variance, tolerance, out is not None, kept, scratch, seats.apart)
            if variance is None or method != "auto":
                return asked, *_planned(matrix, asked, options, seats, method)
            with place.lanes(matrix, "the estimate") as apart:
                return _of_share(matrix, asked, options, seats, scale, seed, told, apart)

        reading = source, options.budget_bytes, scratch, weights, planned, now, names, options.progress
        matrix, (asked, way, plan) = opened_within(*reading, filed=place.cluster is not None, counted=place.counted)
        if plan_only:
            return plan
        apart = now.enter_context(place.lanes(matrix, plan.operation))
        share = now.enter_context(showing(options.progress, f"{plan.operation}, {way.method}", 100 << 20))
        job = Task(matrix, asked, way, scale, seed, asked.here(way.workers), lambda part: share(part * (100 << 20)), scratch, apart)
        facts: dict[str, Any] = {"weights": weights, "scale": scale, "loadings": loadings, "loadings_above": kept.above}
        if out is None:
            return _held(job, weights, scale)
        return _filed(job, Path(out), options, facts)


def _check(components: Any, variance: Any, tolerance: float, method: str, seed: int) -> None:
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
    if method == "nystrom" and components is None:
        raise InputError("method 'nystrom' finds a number of components that is given; give components, or take 'gram'.")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"seed is {seed!r}; give a whole number from 0 on.")


def _kept(loadings: str, above: float | None) -> Kept:
    if loadings not in ("float64", "float32"):
        raise InputError(f"loadings is {loadings!r}; components are kept as float64 or float32.")
    if above is not None and (isinstance(above, bool) or not isinstance(above, (int, float, np.number)) or not 0 <= above < 1):
        raise InputError(
            f"loadings_above is {above!r}; components are unit vectors: give a size from 0 up to below 1, as 0.01, for the least kept."
        )
    return Kept(np.dtype(loadings), None if above is None else float(above))


def _asked(
    matrix: Matrix,
    components: int | None,
    variance: float | None,
    tolerance: float,
    filed: bool,
    loadings: Kept,
    scratch: Path | None,
    apart: int,
) -> Asked:
    rows, columns = matrix.shape
    if rows < 2:
        raise InputError("the matrix has a single row, so that nothing varies; give two at least.")
    most = min(rows - 1, columns)
    if components is not None and components > most:
        raise InputError(f"components is {components}; {rows} centred rows of {columns} columns have {most} at most.")
    likely = most if variance is None else max(int(most * (0.45 if variance < 0.95 else 0.8)), 1)
    share = None if variance is None else float(variance)
    disk = free_bytes(scratch) if scratch is not None and scratch.is_dir() else inf
    return Asked(None if components is None else int(components), share, float(tolerance), filed, loadings, likely, most, disk, apart)


def _of_share(
    matrix: Matrix,
    asked: Asked,
    options: Options,
    seats: Seats,
    scale: bool,
    seed: int,
    told: list[ComponentsEstimate],
    apart: Lanes | None,
) -> tuple[Asked, Way, PcaPlan]:
    """The plan for a share of the variance: how many components that takes decides the method, and is estimated first where that is quick.

    An estimate that was told is not made again.
    """
    refused: DoesNotFit | None = None
    try:
        found = asked, *_planned(matrix, asked, options, seats, "auto")
        worth_s = found[1].wall_s * _WORTH
    except DoesNotFit as error:
        found, refused, worth_s = None, error, inf
    assert asked.variance is not None
    if not told and (near := estimated_of(matrix, asked.variance, options.budget_bytes, seats, scale, seed, worth_s, apart)) is not None:
        told.append(near)
    for near in told:
        asked = replace(asked, likely=max(near.high, 1))
        return asked, *_planned(matrix, asked, options, seats, "auto", near)
    if found is None:
        assert refused is not None
        raise refused
    return found


def _planned(
    matrix: Matrix, asked: Asked, options: Options, seats: Seats, method: str, near: ComponentsEstimate | None = None
) -> tuple[Way, PcaPlan]:
    likely = min(asked.components or asked.likely, CHUNK)
    rates, spare = array_rates(), writing_bytes(max(matrix.shape), likely) if asked.filed else 0
    way, methods = choose(matrix, asked, options.budget_bytes, seats.threads, method, rates, spare)
    chosen = next(one for one in methods if one.name == way.method)
    count = asked.components or asked.likely
    written = 8 * matrix.shape[0] * count + asked.loadings.filed_bytes(matrix.shape[1], count)
    plan = PcaPlan(
        operation=f"PCA of {format_shape(matrix.shape)}{seats.told}",
        method=way.method,
        shape=(matrix.shape[0], count),
        dtype="float64",
        tasks=-(-count // way.chunk),
        task_shape=(matrix.shape[0], way.chunk),
        workers=way.workers,
        passes=ceil(way.passes),
        budget_bytes=options.budget_bytes,
        peak_bytes=max(way.peak_bytes, matrix.opening_bytes + STARTING_BYTES),
        read_bytes=round(way.passes * matrix.file_bytes),
        written_bytes=written,
        wall_s=way.wall_s,
        error=chosen.error,
        methods=methods,
        components=asked.components,
        variance=asked.variance,
        estimate=near,
        disk_bytes=way.disk_bytes,
        loadings_above=asked.loadings.above,
        loadings_most=asked.loadings.most(matrix.shape[1]),
    )
    return way, plan


@contextmanager
def _scratch(out: Any, plan_only: bool) -> Iterator[Path | None]:
    """A folder for what is larger than memory: beside the output, where an interrupted run finds it; else one that is gone at the end."""
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
    if there and plan_only:
        return
    shutil.rmtree(folder, ignore_errors=True)


def _held(job: Task, weights: Weights, scale: bool) -> PCA:
    into = Held(job.asked.loadings)
    with threadpool_limits(1, "blas"):
        centred = centred_of(job)
        made = found_by(job, centred, None, None)
        into.begin(*job.matrix.shape, made.count, job.way.chunk)
        for start, loadings, scores, small in chunks(job, centred, made, set()):
            into.put(start, loadings, scores, small)
            del loadings, scores
    return PCA(
        components=into.components(),
        scores=into.scores,
        mean=centred.moments.mean,
        scale=centred.moments.scale if scale else None,
        total_variance=centred.moments.total,
        method=job.way.method,
        weights=weights,
        idf=job.matrix.idf if isinstance(job.matrix, Weighted) else None,
        names=job.matrix.names,
        loadings_above=job.asked.loadings.above,
        shortfall=made.shortfall,
        **into.small,
    )


def _filed(job: Task, out: Path, options: Options, facts: dict[str, Any]) -> PCA:
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
        centred = centred_of(job)
        if done is None:
            note.unlink(missing_ok=True)
            idf = {} if not isinstance(job.matrix, Weighted) or job.matrix.idf is None else {"idf": job.matrix.idf}
            vectors = {"mean": centred.moments.mean, **({"scale": centred.moments.scale} if job.scale else {}), **idf}
            into.begin({"operation": "pca", **{key: value for key, value in resting.items() if key not in ("source", "way")}}, vectors)
        journal.begin()
        try:
            made = found_by(job, centred, note, done)
        except (InputError, SashError):
            # It would come again.
            journal.remove()
            note.unlink(missing_ok=True)
            if job.scratch is not None:
                forget(job.scratch)
            raise
        if into.arrange(*job.matrix.shape, made.count, job.way.chunk):
            done = set()
        for start, loadings, scores, small in chunks(job, centred, made, done or set()):
            into.put(start, loadings, scores, small)
            journal.done(start)
            del loadings, scores
    total = centred.moments.total
    attributes = {"method": job.way.method, "total_variance": total, "found": made.count, "shortfall": made.shortfall}
    if job.matrix.names:
        attributes["names"] = list(job.matrix.names)
    into.finish(attributes)
    journal.remove()
    note.unlink(missing_ok=True)
    return PCA.open(out)
