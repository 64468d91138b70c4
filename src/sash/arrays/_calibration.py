"""The calibrating process: `python -m sash.arrays._calibration THREADS` prints this machine's rates as JSON.

Every thread runs a stage on planes of its own, as a job does, and all at once: memory is shared between them. The seconds of a few shapes
give the laws of `_choose.py` their rates.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from threading import Barrier
from typing import Any

import numpy as np
from scipy.optimize import nnls
from threadpoolctl import threadpool_limits

from sash.arrays._border import places
from sash.arrays._choose import spline_features
from sash.arrays._gaussian import Direct, multirate
from sash.arrays._job import Job, Step, plan_job, run_job
from sash.arrays._overlap_save import OverlapSave, one_thread_each
from sash.arrays._planes import Planes
from sash.arrays._rates import KINDS, MATRIX_FEATURES, SIDES, SPLINE_FEATURES
from sash.arrays._running import Options
from sash.arrays._spmm import gathered
from sash.arrays._stage import Coarse, Correlate, Near, Restored, Stage, Thinned
from sash.arrays._store import open_source
from sash.heap import blocks_given_back
from sash.window import Interval

PLANE = (512, 2048)
"""Rows and columns of what a thread works on: more than its cache holds."""
TIMES = 4
TAPS = (7, 31, 95)
SPLINES = (
    ((2, 3), (2, 3)),
    ((6, 7), (6, 7)),
    ((20, 3), (20, 3)),
    ((1, 0), (8, 3)),
    ((8, 3), (1, 0)),
    ((4, 5), (12, 5)),
    ((1, 0), (3, 7)),
    ((3, 7), (1, 0)),
)
"""Steps and degrees down and along; step 1 stands for taps at every sample."""
FEW = 9
"""Those taps."""
KERNEL = 33
SMALL = 15
"""Jobs of next to nothing."""
LEAST_S = 1e-13


def rates(threads: int) -> dict[str, float]:
    """Every rate, by name."""
    found: dict[str, float] = {}
    with ThreadPoolExecutor(threads) as pool, one_thread_each():
        for kind in KINDS:
            dtype = np.dtype(np.float32 if kind == "f32" else np.float64)
            found.update({f"{kind}.{name}": value for name, value in _filters(pool, threads, dtype).items()})
            for side in SIDES[kind]:
                found[f"{kind}.fft.{side}.sample_s"] = _transform(pool, threads, dtype, side)
        found.update(_overheads())
        found.update(_matrices(pool, threads))
    return found


def _filters(pool: ThreadPoolExecutor, threads: int, dtype: np.dtype) -> dict[str, float]:
    """Laws of taps and of splines: seconds an output sample."""
    stages: list[Stage] = []
    for taps in TAPS:
        weights = np.full(taps, 1 / taps)
        stages.append(Correlate(PLANE, dtype, "reflect", weights, weights, (taps // 2, taps // 2)))
    pairs = [(_axis(0, *down), _axis(1, *along)) for down, along in SPLINES]
    for axes in pairs:
        stages += [Thinned(axes, dtype, "reflect"), Restored(axes, dtype)]
    seen = _swept(pool, threads, stages)
    both = 2 * np.array(TAPS, float)
    sample, tap = _law(np.stack([np.ones(len(TAPS)), both], 1), np.array(seen[: len(TAPS)]))
    rows, left = [], []
    for axes, down_s, up_s in zip(pairs, seen[len(TAPS) :: 2], seen[len(TAPS) + 1 :: 2], strict=True):
        share = axes[0].count * axes[1].count / np.prod(PLANE)
        taken = down_s * share + up_s
        taken -= share * (sample + tap * sum(len(axis.taps) for axis in axes))
        rows.append(spline_features(*axes))
        left.append(max(taken, 0.2 * sample))
    found = _law(np.array(rows, float), np.array(left))
    return {
        "taps.sample_s": sample,
        "taps.tap_s": tap,
        **{f"splines.{name}_s": value for name, value in zip(SPLINE_FEATURES, found, strict=True)},
    }


def _axis(axis: int, step: int, degree: int) -> Coarse:
    """An axis of the plane under a Gaussian."""
    found = Direct(np.full(FEW, 1 / FEW), 0.0) if step == 1 else multirate(1.8 * step, 0, step, degree, 1e-2)
    return Coarse.of(PLANE[axis], found)


def _transform(pool: ThreadPoolExecutor, threads: int, dtype: np.dtype, side: int) -> float:
    """Seconds a sample of a tile."""
    whole = side - KERNEL + 1
    tiles = max(1024 // side, 1)
    stage = OverlapSave((tiles * whole, tiles * whole), dtype, "constant", np.ones((KERNEL, KERNEL)), (0, 0), (side, side))
    return _swept(pool, threads, [stage])[0] * (whole / side) ** 2


def _swept(pool: ThreadPoolExecutor, threads: int, stages: Sequence[Stage]) -> list[float]:
    """Seconds an output sample of each stage, with a plane for each thread: the least of several sweeps through all of them, since what
    else the machine does comes and goes."""
    works = [_works(stage, threads) for stage in stages]
    with blocks_given_back(4 << 20):
        for work, *_ in works:
            work()  # compiles, and makes what is made once
        taken = [[_at_once(pool, work) for work in works] for _ in range(TIMES)]
    return [min(one) / (stage.shape[0] * stage.shape[1]) for one, stage in zip(zip(*taken, strict=True), stages, strict=True)]


def _works(stage: Stage, threads: int) -> list[Callable[[], None]]:
    """The stage over a plane, once for each thread."""
    rows, columns = Interval(0, stage.shape[0]), Interval(0, stage.shape[1])
    top, left = stage.reads(rows, columns)
    # A source plane of about the size that the stage reads, its ends looked up as at a border.
    deep, wide = top.length, left.length
    high, across = places(Interval(0, deep), deep, "reflect"), places(Interval(0, wide), wide, "reflect")
    found = []
    for thread in range(threads):
        near = Near(_plane(thread, (deep, wide), stage.dtype), high, across, (0, 0, wide), 0.0)
        found.append(partial(stage.run, near, rows, columns, np.empty(stage.shape, stage.dtype)))
    return found


@lru_cache(maxsize=64)
def _plane(thread: int, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    return np.ones(shape, dtype)


def _at_once(pool: ThreadPoolExecutor, works: list[Callable[[], None]]) -> float:
    begun = Barrier(len(works))

    def run(work: Callable[[], None]) -> tuple[float, float]:
        begun.wait()
        start = time.perf_counter()
        work()
        return start, time.perf_counter()

    starts, ends = zip(*pool.map(run, works), strict=True)
    return max(ends) - min(starts)


def _matrices(pool: ThreadPoolExecutor, threads: int) -> dict[str, float]:
    """Of products: sparse rows with a few vectors, dense blocks, and numbers that are only read; each thread on its own."""
    random = np.random.default_rng(0)
    rows, columns, each, width, side = 2000, 50_000, 200, 8, 512
    # Words of a text: few are frequent.
    at = np.sort((columns ** random.random((rows, each))).astype(np.int32) - 1, axis=1).reshape(-1)
    pointers, values, offset = np.arange(0, rows * each + 1, each, dtype=np.int32), random.random(rows * each), np.zeros(width)
    vectors, dense, long = random.random((columns, width)), random.random((side, side)), np.ones(12 << 20)

    def seconds(work: Callable[[], Any]) -> float:
        _at_once(pool, [work] * threads)
        return min(_at_once(pool, [work] * threads) for _ in range(TIMES))

    with threadpool_limits(1, "blas"):
        pair_s = seconds(lambda: gathered(pointers, at, values, vectors, offset, np.empty((rows, width)), 0, rows))
        flop_s = seconds(lambda: dense @ dense)
        byte_s = seconds(lambda: long.max())
    taken = pair_s / (rows * each * width), flop_s / (2 * side**3), byte_s / long.nbytes
    return {f"matrix.{name}_s": max(one, LEAST_S) for name, one in zip(MATRIX_FEATURES, taken, strict=True)}


def _overheads() -> dict[str, float]:
    """Seconds of a job that has next to nothing to do, and of each further pass."""
    size = (16, 16)
    planes = Planes(size, 0, 1, False)
    stage = Correlate(size, np.dtype(np.float32), "reflect", np.ones(1), np.ones(1), (0, 0))
    source = open_source(np.ones(size, np.float32))
    out = np.empty(size, np.float32)
    step = Step(stage, planes, planes)

    def seconds(passes: int) -> float:
        job = Job("blur", "direct", (step,) * passes, stage.dtype, 0.0, {})
        taken = []
        for _ in range(SMALL):
            start = time.perf_counter()
            run_job(plan_job(job, source, out, Options("64 MiB")), source, out, Options("64 MiB"))
            taken.append(time.perf_counter() - start)
        return float(np.median(taken))

    one, two = seconds(1), seconds(2)
    return {"job.s": one, "pass.s": max(two - one, LEAST_S)}


def _law(features: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Factors of the features, none below zero, that come nearest by ratio."""
    return np.maximum(nnls(features / seconds[:, None], np.ones(len(seconds)))[0], LEAST_S)


def main() -> None:
    """Print the rates."""
    with ThreadPoolExecutor(1) as pool:
        stage = Correlate((16, 16), np.dtype(np.float32), "reflect", np.ones(1), np.ones(1), (0, 0))
        _swept(pool, 1, [stage])
    start = time.perf_counter()
    values = rates(int(sys.argv[1]))
    print(json.dumps({"made_s": time.perf_counter() - start, "values": values}))


if __name__ == "__main__":
    main()
