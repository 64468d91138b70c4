"""The search: which levers to pull, in what measure, until a run stays inside its budget at the least extra time."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from sash.cost import Forecast, Workload, calibrate, forecast, stand_in
from sash.errors import DoesNotFit, InputError, SashError
from sash.plans import _fold, _inplace, _layout, _loss, _precision, _release, _separable, _tile
from sash.plans._graph import record
from sash.plans._headroom import needed, usable
from sash.plans._lever import Lever, pull
from sash.plans._microbatch import MicroBatch, considered, parts_of
from sash.plans._offload import Offload
from sash.plans._plan import Plan, describe_model
from sash.plans._recompute import least_recompute, recompute_within
from sash.plans._schedule import Problem
from sash.units import format_bytes, parse_bytes

ALLOWABLE = ("microbatch", "offload", "precision")
"""Levers that need the user's word: they change the result, or write to disk."""
SLOWER = 1.02
"""A lever that lowers the peak is taken as free where the step is forecast to take at most this share of its time."""
FASTER = 0.97
"""A lever that shortens the step to this share or less is taken even if the peak rises, by no larger a share than is won of the time."""
TRIES = 4
"""Schedules tried for one budget: each aims lower by what the last one's forecast was over."""
WORTH_COMPARING = 0.0
"""Extra time up to which no further way is looked for."""


def fit(work: Workload, budget: str | int, *, allow: Iterable[str] = (), bit_identical: bool = False) -> Plan:
    """The plan with the least extra time found whose forecast peak is within the budget ("6 GiB", or bytes).

    The budget holds the allocator's peak (`peak_bytes`): static bytes, activations, gradients, temporaries and kernel scratch. Nothing is
    run: every candidate is forecast. Levers that give the same bits, or the same sums in another order, are pulled as needed; with
    `bit_identical=True` only the former. Those that change the result or write to disk are pulled only if `allow` names them: "microbatch"
    (it is used without leave where it is exact), "precision", "offload".

    Raises `DoesNotFit` with the least budget that these levers can keep, `InputError` for what cannot be read, and what `forecast` raises.
    """
    started = time.perf_counter()
    budget_bytes = parse_bytes(budget)
    if budget_bytes == 0:
        raise InputError("the budget is 0 bytes; write it like '2 GiB', '512 MB' or 1073741824.")
    allowed = frozenset([allow] if isinstance(allow, str) else allow)
    for name in sorted(allowed.difference(ALLOWABLE)):
        near = difflib.get_close_matches(name, ALLOWABLE, 1) or ALLOWABLE
        raise InputError(f"allow names {name!r}; {near[0]!r} is the nearest that needs leave, of {', '.join(ALLOWABLE)}.")
    search = _Search(work, budget_bytes, allowed, bit_identical)
    found = search.run()
    overhead = _extra(found, search.plain)
    return Plan(
        work,
        budget_bytes,
        found.levers,
        found.forecast,
        search.plain.forecast.peak_bytes,
        overhead,
        describe_model(search.plain.model),
        time.perf_counter() - started,
    )


@dataclass(frozen=True)
class _Candidate:
    work: Workload
    levers: tuple[Lever, ...]
    forecast: Forecast

    @cached_property
    def model(self) -> nn.Module:
        """As the step meets it, on stand-ins."""
        return stand_in(self.work)

    @property
    def peak(self) -> int:
        return self.forecast.peak_bytes

    @property
    def seconds(self) -> float:
        """Of a step, but for new pages: their number is the allocator's whim, and would outweigh what levers cost."""
        return self.forecast.wall_s - self.forecast.paging_s

    @property
    def cost(self) -> tuple[float, int]:
        return self.seconds, self.peak


class _Search:
    def __init__(self, work: Workload, budget: int, allowed: frozenset[str], bit_identical: bool) -> None:
        self.budget = budget
        self.aim = usable(budget)
        self.allowed = allowed
        self.bit_identical = bit_identical
        self.plain = _Candidate(work, (), forecast(work))
        self.least = self.plain
        """Of all that was looked at, the lowest peak."""
        self.refused: list[str] = []
        """Why levers were not pulled."""

    def run(self) -> _Candidate:
        """The best candidate within the budget."""
        if self._fits(self.plain):
            return self.plain
        exact = self._free(self.plain, (_inplace.propose, _release.propose))
        if self._fits(exact):
            return exact
        quick = exact
        if not self.bit_identical:
            # In inference folding goes first: what it removes need not be laid out.
            quick = self._free(exact, (_loss.propose, _fold.propose, _separable.propose, _layout.propose))
            if self._fits(quick):
                return quick
        for bases in ((quick, *self._leaner(quick)), (exact,) * (quick is not exact)):
            found = [self._train(base) if base.work.train else self._infer(base) for base in bases]
            fitting = [one for one in found if one is not None]
            if fitting:
                return min(fitting, key=lambda one: one.cost)
        raise self._too_little()

    def _leaner(self, base: _Candidate) -> Iterator[_Candidate]:
        """The base with fused separable convolutions that save less, where it has any."""
        if base.work.train and any(isinstance(lever, _separable.Separable) for lever in base.levers):
            levers = [replace(lever, lean=True) if isinstance(lever, _separable.Separable) else lever for lever in base.levers]
            yield self._with(self.plain, *levers)

    def _fits(self, candidate: _Candidate) -> bool:
        if candidate.peak < self.least.peak:
            self.least = candidate
        return candidate.peak <= self.aim

    def _with(self, base: _Candidate, *levers: Lever) -> _Candidate:
        work = pull(base.work, levers)
        return _Candidate(work, (*base.levers, *levers), forecast(work))

    def _free(self, base: _Candidate, proposals: Iterable[Callable[..., Lever | None]]) -> _Candidate:
        """The base with every lever that lowers its peak or its time and costs nothing of the other; stops when it fits."""
        for propose in proposals:
            try:
                lever = propose(base.work, base.model)
                tried = None if lever is None else self._with(base, lever)
            except SashError as error:
                self.refused.append(str(error))
                continue
            if tried is None or not _better(tried, base):
                continue
            base = tried
            if self._fits(base):
                break
        return base

    def _train(self, base: _Candidate) -> _Candidate | None:
        if self._fits(base):
            return base
        found = [self._recomputed(base)]
        if found[0] is None or _extra(found[0], base) > WORTH_COMPARING:
            found += self._micro_batched(base)
        fitting = [one for one in found if one is not None]
        if fitting:
            return min(fitting, key=lambda one: one.cost)
        for kind in ("autocast", "weights") if "precision" in self.allowed else ():
            if _precision.why_not(base.work, base.model) is None:
                lower = self._with(base, _precision.Precision(kind))
                fitting = lower if self._fits(lower) else self._recomputed(lower)
                if fitting is not None:
                    return fitting
        return self._offloaded(base) if "offload" in self.allowed else None

    def _recomputed(self, base: _Candidate) -> _Candidate | None:
        """The base with the cheapest schedule of recomputation that its forecast confirms."""
        problem = Problem(record(base.work, calibrate()))
        target = self.aim
        # Below what is there before the step starts, the least that can be told is all there is to find.
        for _ in range(TRIES if base.forecast.static_bytes < self.aim else 0):
            found = recompute_within(problem, target)
            if found is None:
                break
            tried = self._with(base, found[0])
            if self._fits(tried):
                return tried
            target = min(target, found[1]) - (tried.peak - self.aim)
        tried = self._with(base, least_recompute(problem)[0])
        return tried if self._fits(tried) else None

    def _micro_batched(self, base: _Candidate) -> Iterator[_Candidate]:
        """The fewest micro-batches that fit by themselves, and half as many with recomputation; at last the most of them with it."""
        lever = self._micro_batch(base)
        if lever is None:
            return
        before = None
        numbers = parts_of(base.work)
        for parts in numbers:
            tried = self._with(base, replace(lever, parts=parts))
            if self._fits(tried):
                yield tried
                if before is not None and (both := self._recomputed(before)) is not None:
                    yield both
                return
            before = tried
        if before is not None and (both := self._recomputed(before)) is not None:
            yield both

    def _micro_batch(self, base: _Candidate) -> MicroBatch | None:
        allowed = "microbatch" in self.allowed
        if self.bit_identical and not allowed:
            return None
        found = considered(base.work, allowed)
        if isinstance(found, str):
            self.refused.append(found)
            return None
        return found

    def _offloaded(self, base: _Candidate) -> _Candidate | None:
        """The base with as little on disk as keeps the budget."""
        limit = int((base.peak - self.aim) * 1.05)
        for lever in (Offload(limit_bytes=limit), Offload(limit_bytes=2 * limit), Offload()):
            tried = self._with(base, lever)
            if self._fits(tried):
                return tried
        return None

    def _infer(self, base: _Candidate) -> _Candidate | None:
        if self._fits(base):
            return base
        if not self.bit_identical:
            why = _tile.why_not(base.work, base.model)
            if why is not None:
                self.refused.append(why)
            elif (tried := self._tiled(base)) is not None:
                return tried
        if "precision" in self.allowed and _precision.why_not(base.work, base.model) is None:
            tried = self._with(base, _precision.Precision())
            if self._fits(tried):
                return tried
        return None

    def _tiled(self, base: _Candidate) -> _Candidate | None:
        """The base in tiles; what the plan of the tiles does not count is taken off their budget."""
        budget = self.aim
        for _ in range(TRIES):
            lever = _tile.propose(base.work, base.model, budget)
            if lever is None:
                break
            tried = self._with(base, lever)
            if self._fits(tried):
                return tried
            budget -= tried.peak - self.aim
        least = _tile.least_budget(base.work, base.model)
        lever = None if least is None else _tile.propose(base.work, base.model, least)
        if lever is not None and self._fits(tried := self._with(base, lever)):
            return tried
        return None

    def _too_little(self) -> DoesNotFit:
        plain, least = self.plain.forecast, self.least
        parts = [
            f"{self.plain.work.name} ({self.plain.work.setting}) peaks at {format_bytes(plain.peak_bytes)}, "
            f"of which {format_bytes(plain.static_bytes)} are there before the step starts; the budget is {format_bytes(self.budget)}."
        ]
        how = ", ".join(lever.name for lever in least.levers)
        told = f"{format_bytes(needed(least.peak))} ({needed(least.peak)} bytes){f', with {how}' if how else ''}"
        parts.append(f"The least that can be kept is {told}.")
        parts += dict.fromkeys(self.refused)
        left = [name for name in ALLOWABLE if name not in self.allowed and (self.plain.work.train or name == "precision")]
        if left and plain.static_bytes <= self.budget:
            parts.append(f"Levers that need your leave were not tried: allow=[{', '.join(map(repr, left))}].")
        return DoesNotFit("\n".join(parts), needed(least.peak))


def _better(tried: _Candidate, base: _Candidate) -> bool:
    seconds, before = tried.seconds, base.seconds
    lower = tried.peak < 0.995 * base.peak and seconds <= SLOWER * before
    return lower or (before > 0 and seconds <= FASTER * before and tried.peak / base.peak <= 2 - seconds / before)


def _extra(candidate: _Candidate, base: _Candidate) -> float:
    return candidate.seconds / base.seconds - 1 if base.seconds else 0.0
