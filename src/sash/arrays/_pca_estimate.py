"""How many components a share of the variance takes, before they are found: an estimate with bounds.

The total variance is exact after one pass, and so are the largest components that a small Krylov space has found. What lies below is seen
through random vectors: Lanczos on each gives a Gauss quadrature of the spectrum, whose nodes and weights bound how many eigenvalues there
are above a value, and what they sum to (Chebyshev, Markov and Stieltjes). The vectors are a sample, so that its bounds hold with a
confidence; those from the exact part alone hold always.

Source: Golub, Meurant, Matrices, moments and quadrature, 2010; Ubaru, Chen, Saad, Fast estimation of tr(f(A)) via stochastic Lanczos
quadrature, 2017.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from scipy.linalg import eigh_tridiagonal
from threadpoolctl import threadpool_limits

from sash.arrays._centred import Centred
from sash.arrays._cluster import Seats
from sash.arrays._krylov import State, largest, space_bytes
from sash.arrays._matrix import Matrix
from sash.arrays._moments import LANE_BYTES, moments
from sash.arrays._pca_apart import placed
from sash.arrays._pca_open import opened_within
from sash.arrays._pca_ways import BLOCK, STARTING_BYTES, seconds, sent_bytes
from sash.arrays._rates import array_rates
from sash.arrays._running import MAPPED_FROM, Options, does_not_fit
from sash.arrays._sweep import Sweep
from sash.arrays._sweep_apart import Lanes
from sash.arrays._weights import Weights
from sash.errors import DoesNotFit, InputError
from sash.heap import blocks_given_back
from sash.units import format_seconds

PROBES = 16
STEPS = 64
"""Nodes of each probe's quadrature."""
TOP = 32
"""Largest components that are found exactly, and taken out of the sample."""
_MOST = 4 * TOP + 10 * BLOCK
"""Columns of the space in which these are found."""
SPREAD = 3.0
"""Standard errors of the sample to each side."""


@dataclass(frozen=True)
class ComponentsEstimate:
    """How many components explain a share of the variance."""

    variance: float
    likely: int
    low: int
    high: int
    """Between these with the confidence of three standard errors of the sample."""
    sure_low: int
    sure_high: int
    """Between these in any case, but for rounding."""
    total_variance: float
    wall_s: float

    def to_json(self) -> str:
        """The estimate as JSON."""
        return json.dumps({"schema": "sash.components/1", **asdict(self)})

    def __str__(self) -> str:
        return (
            f"about {self.likely} components explain {self.variance:g} of the variance: {self.low} to {self.high} by three standard "
            f"errors of {PROBES} samples, {self.sure_low} to {self.sure_high} for certain; told in {format_seconds(self.wall_s)}"
        )


def estimate_components(
    source: Any,
    variance: float,
    *,
    budget: str | int = "2 GiB",
    weights: Weights = "counts",
    scale: bool = False,
    seed: int = 0,
    workers: int | str | None = None,
) -> ComponentsEstimate:
    """How many principal components explain a share of the variance, about, with bounds: `pca` finds the exact number.

    `source`, `weights` and `scale` as for `pca`, and `workers`: with the address of a Dask scheduler, as "tcp://host:8786", its workers
    read the file themselves, `budget` bounds what they and this process hold together, and the estimate has the bits of as many threads
    that read the file. A text is put in order first, in the folder for temporary files, which all have to see then.
    Raises `InputError` for a share that is none, `DoesNotFit` with the least budget.
    """
    began, options = perf_counter(), Options(budget, workers)
    if not (isinstance(variance, (int, float, np.number)) and 0 < variance <= 1):
        raise InputError(f"variance is {variance!r}; give a share above 0 and up to 1, as 0.9.")
    folder = Path(tempfile.mkdtemp(prefix="sash-"))
    with ExitStack() as now:
        now.callback(shutil.rmtree, folder, ignore_errors=True)
        now.enter_context(blocks_given_back(MAPPED_FROM))
        place = now.enter_context(placed(options, source, None))

        def planned(matrix: Matrix) -> tuple[Sweep, bool]:
            place.check(matrix)
            return _planned(matrix, options.budget_bytes, place.seats)

        reading = source, options.budget_bytes, folder, weights, planned, now
        matrix, (sweep, held) = opened_within(*reading, filed=place.cluster is not None, counted=place.counted)
        sweep = replace(sweep, apart=now.enter_context(place.lanes(matrix, "the estimate")))
        return _estimated(matrix, sweep, held, float(variance), scale, seed, began)


def estimated_of(
    matrix: Matrix, variance: float, budget: int, seats: Seats, scale: bool, seed: int, worth_s: float, apart: Lanes | None
) -> ComponentsEstimate | None:
    """The estimate of an opened matrix, on a cluster where lanes are apart; None where it is not worth its time, or does not fit."""
    pairs = 2 * matrix.nnz * (PROBES * STEPS + _MOST)
    if matrix.shape[0] < 2 or seconds(matrix, pairs, 0.0, 0.0, seats.threads, array_rates(), seats.threads) > worth_s:
        return None
    try:
        sweep, held = _planned(matrix, budget, seats)
    except DoesNotFit:
        return None
    return _estimated(matrix, replace(sweep, apart=apart), held, variance, scale, seed, perf_counter())


def _planned(matrix: Matrix, budget: int, seats: Seats) -> tuple[Sweep, bool]:
    """A pass over the matrix, and whether it is held in memory with its transpose; raises `DoesNotFit`."""
    rows, columns = matrix.shape
    side, threads = min(rows, columns), seats.threads
    sweep = Sweep(matrix, threads, 1 << 20)
    reading = threads * (sweep.block_bytes + (0 if matrix.sparse else 16 * sweep.block_rows * columns))
    working = max(space_bytes(side, min(_MOST, side), BLOCK), 8 * 6 * PROBES * side) + 8 * PROBES * (threads + 3) * columns + 8 * TOP * side
    working += sent_bytes(matrix, seats.apart, threads, PROBES, rows)
    fixed = (1 + seats.apart) * (STARTING_BYTES + matrix.held_bytes) + 8 * 9 * (rows + columns) + reading
    fixed += max(threads * LANE_BYTES * columns, working)
    if fixed > budget:
        raise does_not_fit("the estimate", fixed, budget, False)
    return sweep, matrix.sparse and not seats.apart and fixed + 20 * matrix.nnz + matrix.block_bytes(0, rows) <= budget


def _estimated(matrix: Matrix, sweep: Sweep, held: bool, share: float, scale: bool, seed: int, began: float) -> ComponentsEstimate:
    rows, columns = matrix.shape
    if rows < 2:
        raise InputError("the matrix has a single row, so that nothing varies; give two at least.")
    side = min(rows, columns)
    with threadpool_limits(1, "blas"):
        found = moments(sweep, scale)
        if found.total <= 0:
            raise InputError(f"all {rows} rows of the matrix are equal, so that nothing varies; there are no components.")
        centred, total = Centred(sweep, found, held), found.total * (rows - 1)
        values, vectors = _top(centred, min(_MOST, side), seed, sweep.threads)
        target = share * total - float(values.sum())
        rest = min(side, rows - 1) - len(values)
        if target <= 0 or rest <= 0:
            count = min(int(np.searchsorted(np.cumsum(values), share * total * (1 - 1e-12))) + 1, len(values))
            return ComponentsEstimate(share, count, count, count, count, count, found.total, perf_counter() - began)
        nodes, parts = _quadratures(centred, vectors, seed)
    sure = len(values) + ceil(target / values[-1]), len(values) + ceil(rest * min(target / (total - float(values.sum())), 1.0))
    likely, low, high = _counts(nodes, parts, target, total - float(values.sum()), side - len(values))
    low, likely, high = (int(min(max(len(values) + one, sure[0]), sure[1])) for one in (low, likely, high))
    return ComponentsEstimate(share, likely, low, high, sure[0], sure[1], found.total, perf_counter() - began)


def _top(centred: Centred, most: int, seed: int, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues, and their vectors, as many as were found in little time."""

    def enough(state: State) -> int | None:
        good = state.residuals <= 1e-4
        first = int(np.argmin(good)) if not good.all() else len(good)
        return min(max(first, 1), TOP) if first >= TOP or state.applied >= 10 * TOP else None

    found = largest(centred, enough, most=most, seed=seed, block=BLOCK, threads=threads, keep=TOP, first=min(TOP, centred.side))
    return found.values, found.vectors


def _quadratures(centred: Centred, known: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of each probe, (probes, steps), of the spectrum without what is known; weights of one probe sum to one."""
    random = np.random.default_rng([seed, 1])
    probes = random.choice([-1.0, 1.0], (centred.side, PROBES))
    probes -= known @ (known.T @ probes)
    probes /= np.linalg.norm(probes, axis=0)
    steps = min(STEPS, centred.side - known.shape[1])
    diagonal, beside = np.zeros((steps, PROBES)), np.zeros((steps, PROBES))
    before, now = np.zeros_like(probes), probes
    # Without being kept orthogonal: values that come twice share their weight.
    for step in range(steps):
        image = centred.gram(np.ascontiguousarray(now))
        image -= known @ (known.T @ image)
        diagonal[step] = np.einsum("ij,ij->j", now, image)
        image -= now * diagonal[step]
        image -= before * beside[step - 1] if step else 0.0
        beside[step] = np.linalg.norm(image, axis=0)
        before, now = now, image / np.maximum(beside[step], np.finfo(float).tiny)
    nodes, parts = np.zeros((PROBES, steps)), np.zeros((PROBES, steps))
    for place in range(PROBES):
        small = np.flatnonzero(beside[:, place] <= 1e-12 * diagonal[:, place].max())
        last = int(small[0]) + 1 if len(small) else steps
        values, rotation = eigh_tridiagonal(diagonal[:last, place], beside[: last - 1, place])
        nodes[place, :last], parts[place, :last] = np.maximum(values, 0.0), rotation[0] ** 2
    return nodes, parts


def _counts(nodes: np.ndarray, parts: np.ndarray, target: float, total: float, side: int) -> tuple[float, float, float]:
    """How many eigenvalues sum to the target: about, and by bounds of the quadrature and of the sample.

    The distribution lies between the weights strictly above a node and those with it; sums of eigenvalues are those weights times nodes.
    """
    grid = np.unique(nodes[parts > 1e-14])[::-1]
    counts, sums = np.zeros((3, len(grid), len(nodes))), np.zeros((len(grid), len(nodes)))
    for probe, (own, weights) in enumerate(zip(nodes, parts, strict=True)):
        order = np.argsort(-own)
        above, weighed = np.cumsum(weights[order]), np.cumsum(weights[order] * own[order])
        place = np.searchsorted(-own[order], -grid, "right")
        padded, padded_sums = np.concatenate([[0.0], above]), np.concatenate([[0.0], weighed])
        low, high = padded[np.maximum(place - 1, 0)], padded[np.minimum(place + 1, len(own))]
        counts[0, :, probe], counts[2, :, probe] = low, high
        counts[1, :, probe] = padded[place] - weights[order][np.maximum(place - 1, 0)] / 2
        # Each probe's sum of eigenvalues is brought to the exact total.
        sums[:, probe] = (padded_sums[place] - (weights * own)[order][np.maximum(place - 1, 0)] / 2) / max(weighed[-1], 1e-300) * total
    shares = sums.mean(axis=1)
    at = min(int(np.searchsorted(np.maximum.accumulate(shares), target)), len(grid) - 1)
    error = SPREAD * counts[1, at].std(ddof=1) / len(nodes) ** 0.5
    spread_at = SPREAD * sums[at].std(ddof=1) / len(nodes) ** 0.5
    first = min(int(np.searchsorted(np.maximum.accumulate(shares), target - spread_at)), len(grid) - 1)
    last = min(int(np.searchsorted(np.maximum.accumulate(shares), target + spread_at)), len(grid) - 1)
    likely = side * counts[1, at].mean()
    low = side * (counts[0, first].mean() - error)
    high = side * (counts[2, last].mean() + error)
    return likely, low, high
