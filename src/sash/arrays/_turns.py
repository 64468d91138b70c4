"""Tasks side by side, none too far ahead of the slowest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Any


def run_in_turn(
    pool: Executor,
    tasks: Iterable[Callable[[], Any]],
    window: int,
    ended: Callable[[int], None],
    moved: Callable[[int], None] | None = None,
    needed: Callable[[int], int] = lambda place: -1,
) -> None:
    """Run all tasks, in order, each started only when those more than `window` - 1 before it have ended, and those up to `needed` of it.

    `ended` is called with the place of each task that has, from its own thread, before that takes another one; `moved` with that of the
    first that has not, when it is another one, from the thread that calls this. What a task raises is raised here, once those at work have
    ended; the others are not begun.
    """
    running: dict[Future[Any], int] = {}
    finished, oldest = set[int](), 0

    def settle() -> None:
        nonlocal oldest
        before = oldest
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            place = running.pop(future)
            future.result()
            finished.add(place)
        while oldest in finished:
            finished.discard(oldest)
            oldest += 1
        if moved is not None and oldest != before:
            moved(oldest)

    def whole(task: Callable[[], Any], place: int) -> None:
        task()
        ended(place)

    try:
        for place, task in enumerate(tasks):
            while place - oldest >= window or oldest <= needed(place):
                settle()
            running[pool.submit(whole, task, place)] = place
        while running:
            settle()
    finally:
        for future in running:
            future.cancel()
        wait(running)
