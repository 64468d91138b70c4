"""Which way principal components are found: the quickest that keeps the budget, and what is told of the others."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from math import nan

from sash.arrays._matrix import Matrix
from sash.arrays._nystrom_ways import nystrom_ways
from sash.arrays._pca_ways import Asked, Way, reading_bytes, ways
from sash.arrays._plan import Method
from sash.arrays._rates import ArrayRates
from sash.errors import DoesNotFit
from sash.units import format_bytes

ON_REQUEST = ("randqb", "nystrom")
"""The one's number of components is not the least; how near the other comes is not known before."""


def choose(
    matrix: Matrix, asked: Asked, budget: int, workers: int, method: str, rates: ArrayRates, spare: int = 0
) -> tuple[Way, tuple[Method, ...]]:
    """The quickest way that keeps the budget, of those that `method` allows ("auto": those not on request), with all of them told.

    `spare` bytes are held beside. Raises `DoesNotFit` with the least budget that one of those allowed keeps.
    """
    found: dict[str, Way] = {}
    least: dict[str, int] = {}
    small_disk = ""
    reading = cache(partial(reading_bytes, matrix))
    for name in ("krylov", "gram", "randqb" if asked.components is None else "nystrom"):
        given = matrix, asked, budget - spare, workers, rates, reading
        for way in nystrom_ways(matrix, asked, workers, rates, reading) if name == "nystrom" else ways(name, *given):
            way = replace(way, peak_bytes=way.peak_bytes + spare)
            if way.disk_bytes > asked.disk:
                if way.peak_bytes > budget or method not in ("auto", name):
                    continue
                short = f"where {format_bytes(int(asked.disk))} are free" if asked.disk else "and the folder for it is kept in memory"
                taken = format_bytes(way.peak_bytes), format_bytes(way.disk_bytes)
                small_disk = f" With the Gram matrix on disk it takes {taken[0]}, and {taken[1]} there, {short}."
                continue
            least[name] = min(least.get(name, way.peak_bytes), way.peak_bytes)
            if way.peak_bytes <= budget:
                found[name] = way
                break
    able = [way for name, way in found.items() if (name not in ON_REQUEST if method == "auto" else name == method)]
    if not able:
        told = min((least[name] for name in least if (name not in ON_REQUEST if method == "auto" else name == method)), default=0)
        also = "" if asked.filed else " To a file, components and scores would not count: give `out`."
        how = "" if method == "auto" else f" by {method}"
        raise DoesNotFit(
            f"principal components{how} hold {format_bytes(told)} at least; the budget is {format_bytes(budget)}.{small_disk}{also}", told
        )
    chosen = min(able, key=lambda way: way.wall_s)
    methods = []
    for name, needed in least.items():
        if name in found:
            verdict = _verdict(found[name], chosen)
            if found[name].filed:
                verdict += f"; the Gram matrix is on disk, {format_bytes(found[name].disk_bytes)} there"
            methods.append(Method(name, found[name].peak_bytes, found[name].wall_s, _error(name, asked), verdict))
        else:
            methods.append(Method(name, needed, None, _error(name, asked), f"holds {format_bytes(needed)} at least"))
    return chosen, tuple(methods)


def _verdict(way: Way, chosen: Way) -> str:
    if way is chosen:
        return "chosen"
    if way.method == "randqb":
        return "on request: it finds components enough, not the fewest"
    if way.method == "nystrom":
        return f"on request: {way.passes:g} passes; how near it comes is told after"
    ratio = way.wall_s / chosen.wall_s
    return f"{ratio:.{2 if ratio < 10 else 0}f} times as long"


def _error(name: str, asked: Asked) -> float:
    """Largest residual, by a component's singular value; NaN where it is not known before."""
    return {"gram": 1e-10, "nystrom": nan}.get(name, asked.tolerance)
