"""How far resident memory grows: the allocator's blocks followed through glibc's heap, and what a process needs beside them.

Sources: `_heap` for the heap's rules. What lies beside torch's allocator (code pages, generated kernels, the matrix library's packing
buffers, Python objects) was measured as the growth with every block mapped, less the allocator's peak, over the workloads of
bench/forecast.py (torch 2.13, x86, 2 threads) and fitted with non-negative weights: half of them came within 1.6 % of the growth, and
within 1.8 % when each was left out of its own fit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sash.cost._heap import LARGEST_IN_HEAP, Heap
from sash.cost._results import Category, Phase, Timeline
from sash.cost._trace import Life, Trace

MAPPED_ABOVE_BYTES = 1 << 16
"""Blocks from this size on are mapped one by one by `measure(work, allocator="mapped")`."""
_PRODUCTS = frozenset({"aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten._scaled_dot_product_flash_attention_for_cpu"})
_STEPS = 3
"""As many as are measured: by the third the heap has settled."""
_REGROWN = 0.5
"""Of what the heap's end grows by in a step, what it had given back before. Small blocks that no trace sees may hold the end where it is:
over the workloads of bench/time.py as many pages were faulted in as half of it, and the same step may meet all of it or nothing (one LSTM:
from 1 to 11,893 pages in twelve steps). Which moment pays hangs on them too: it is shared out over all that is made."""
_NODE_BYTES = 640
"""Small blocks that come and go with an operator's result: its tensor, its backward node. They hold the heap's end where it is."""
_PRIMITIVE_BYTES = 2048
"""What oneDNN keeps of each primitive, made between the blocks of its first run: it stays, and the heap cannot shrink past it."""


def beside_bytes(timeline: Timeline, transposed: bool) -> int:
    """What the process needs beside torch's allocator; `transposed`: the model has transposed convolutions."""
    blocks = sum(block.bytes >= MAPPED_ABOVE_BYTES for block in timeline.alive(timeline.peak_moment))
    operators = {moment.operator for moment in timeline.moments}
    products = [block.bytes for block in timeline.blocks if block.operator in _PRODUCTS and block.category is not Category.SCRATCH]
    needed = 1_530_000 + 41_000 * blocks + 170_000 * len(operators)
    if any("convolution" in operator for operator in operators):
        needed += 13_340_000 + (3_980_000 if transposed else 0)
    if products:
        needed += 4_110_000 + int(0.543 * min(max(products), 20_000_000))
    return needed


def bound_bytes(heap: int, timeline: Timeline, beside: int) -> int:
    """A bound on the process's growth: what the heap is followed to hold, and the holes that its real order of blocks may add.

    Small blocks that are not followed (Python's, autograd's, generated kernels') and where the kernel lets the heap begin decide which
    holes close: the same step grew by 251 or 370 MB in two runs. The allowance is four holes of the largest block that the heap can
    hold, and up to 30 MB: the least that no run of the bench exceeded (63 workloads, three runs each), plus two per cent.
    """
    end = len(timeline.moments)
    passing = [block.bytes for block in timeline.blocks if block.bytes <= LARGEST_IN_HEAP and not (block.born == 0 and block.died >= end)]
    return heap + min(int(0.3 * heap), 30_000_000) + 4 * max(passing, default=0) + beside


class HeapRun(NamedTuple):
    """What glibc's heap and maps do through the first steps."""

    peak_bytes: int
    """The most that they hold: torch's blocks, and the holes between them."""
    fresh: dict[int, int]
    """By moment of a steady step, bytes in pages that the system hands over: each of them costs a fault when it is first written."""


def run_heap(trace: Trace, first_optimizer: int | None, steady_optimizer: int | None) -> HeapRun:
    """The trace's blocks, in order, through glibc's heap and maps."""
    end = len(trace.moments)
    start = end if first_optimizer is None else first_optimizer
    steady = end if steady_optimizer is None else steady_optimizer
    born: list[list[int]] = [[] for _ in range(end + 1)]
    died: list[list[int]] = [[] for _ in range(end + 1)]
    heap = Heap()
    for index, life in enumerate(trace.lives):
        if life.phase is None:
            heap.take(life.bytes)
        elif life.category is not Category.SCRATCH:
            born[life.born].append(index)
            died[min(end if life.died is None else life.died, end)].append(index)
    scratch = {life.born: life.bytes for life in trace.lives if life.category is Category.SCRATCH}
    alive: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {}
    lasting = {
        index
        for index, life in enumerate(trace.lives)
        if life.phase is Phase.OPTIMIZER and life.born < steady and (life.died is None or life.died >= steady)
    }
    fresh_bytes: dict[int, int] = {}
    made_bytes: dict[int, int] = {}
    grown = 0
    for step in range(_STEPS):
        moments = range(steady) if step == 0 else [*range(start), *range(steady, end)]
        for moment in moments:
            for index in died[moment]:
                _give(heap, alive.pop(index, None))
            made = [index for index in born[moment] if index not in alive]
            before, grown_before = heap.fresh, heap.grown
            if trace.steps.get(moment):
                _replay(heap, trace.steps[moment], [(index, trace.lives[index]) for index in made], alive, first=step == 0)
            else:
                for index in made:
                    alive[index] = heap.take(trace.lives[index].bytes), heap.take(_NODE_BYTES)
                if moment in scratch:
                    heap.give(heap.take(scratch[moment]))
            if step == _STEPS - 1:
                fresh_bytes[moment] = heap.fresh - before
                made_bytes[moment] = sum(trace.lives[index].bytes for index in made) + scratch.get(moment, 0)
                grown += heap.grown - grown_before
        for index in [index for index in alive if index not in lasting]:
            _give(heap, alive.pop(index))
    share = _REGROWN * grown / max(sum(made_bytes.values()), 1)
    return HeapRun(heap.peak, {moment: size + int(share * made_bytes[moment]) for moment, size in fresh_bytes.items()})


def _replay(heap: Heap, steps: tuple[int, ...], results: Iterable[tuple[int, Life]], alive: dict, first: bool) -> None:
    """A kernel's own blocks in their order; what it does not give back are its results."""
    taken: dict[int, list[tuple[int, int]]] = {}
    for size in steps:
        if size > 0:
            taken.setdefault(size, []).append(heap.take(size))
            if first:
                heap.take(_PRIMITIVE_BYTES)
        elif taken.get(-size):
            heap.give(taken[-size].pop(0))
    for index, life in results:
        left = taken.get(life.bytes)
        alive[index] = left.pop() if left else heap.take(life.bytes), heap.take(_NODE_BYTES)
    for left in taken.values():
        for block in left:
            heap.give(block)


def _give(heap: Heap, blocks: tuple[tuple[int, int], tuple[int, int]] | None) -> None:
    for block in blocks or ():
        heap.give(block)
