"""How far resident memory grows: the allocator's blocks followed through glibc's heap, and what a process needs beside them.

Sources: `_heap` for the heap's rules. What lies beside torch's allocator (code pages, generated kernels, the matrix library's packing
buffers, Python objects) was measured as the growth with every block mapped, less the allocator's peak, over 40 workloads (torch 2.13,
x86, 2 threads), and fitted with non-negative weights; bench/results/forecast.json holds it to account.
"""

from __future__ import annotations

from collections.abc import Iterable

from sash.cost._heap import Heap
from sash.cost._results import Category, Phase, Timeline
from sash.cost._trace import Life, Trace

MAPPED_ABOVE_BYTES = 1 << 16
"""Blocks from this size on are mapped one by one by `measure(work, allocator="mapped")`."""
_PRODUCTS = frozenset({"aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten._scaled_dot_product_flash_attention_for_cpu"})
_STEPS = 3
"""As many as are measured: by the third the heap has settled."""
_NODE_BYTES = 640
"""Small blocks that come and go with an operator's result: its tensor, its backward node. They hold the heap's end where it is."""
_PRIMITIVE_BYTES = 2048
"""What oneDNN keeps of each primitive, made between the blocks of its first run: it stays, and the heap cannot shrink past it."""


def beside_bytes(timeline: Timeline, transposed: bool) -> int:
    """What the process needs beside torch's allocator."""
    blocks = sum(block.bytes >= MAPPED_ABOVE_BYTES for block in timeline.alive(timeline.peak_moment))
    products = [block.bytes for block in timeline.blocks if block.operator in _PRODUCTS and block.category is not Category.SCRATCH]
    bound = 15_100_000 + 49_000 * blocks + (6_300_000 if transposed else 0)
    return bound + (5_600_000 + int(0.55 * min(max(products), 20_000_000)) if products else 0)


def bound_bytes(heap: int, beside: int) -> int:
    """A bound on the process's growth: what the heap is followed to hold, and what its real order of blocks may add.

    Small blocks that are not followed (Python's, autograd's, generated kernels') decide which holes close, and differ from run to run;
    the allowance is the least that no measured run of 40 workloads exceeded, plus one per cent.
    """
    return int(1.12 * heap) + min(int(0.20 * heap), 80_000_000) + beside + 4_000_000


def heap_bytes(trace: Trace, first_optimizer: int | None, steady_optimizer: int | None) -> int:
    """The most that glibc's heap and maps hold through the first steps: torch's blocks, and the holes between them."""
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
    for step in range(_STEPS):
        moments = range(steady) if step == 0 else [*range(start), *range(steady, end)]
        for moment in moments:
            for index in died[moment]:
                _give(heap, alive.pop(index, None))
            fresh = [index for index in born[moment] if index not in alive]
            if trace.steps.get(moment):
                _replay(heap, trace.steps[moment], [(index, trace.lives[index]) for index in fresh], alive, first=step == 0)
                continue
            for index in fresh:
                alive[index] = heap.take(trace.lives[index].bytes), heap.take(_NODE_BYTES)
            if moment in scratch:
                heap.give(heap.take(scratch[moment]))
        for index in [index for index in alive if index not in lasting]:
            _give(heap, alive.pop(index))
    return heap.peak


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
