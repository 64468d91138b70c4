"""What tasks of a run share in a process of a Dask worker: unpickled and opened once, and let go of when the run ends."""

from __future__ import annotations

import asyncio
import copyreg
import pickle
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, fields, is_dataclass
from io import BytesIO
from pathlib import Path
from threading import Condition, Lock
from typing import Any
from weakref import WeakSet, finalize

import numpy as np

from sash.arrays._journal import boot
from sash.arrays._store import Sink

Threads = Callable[[int], AbstractContextManager[Executor]]
"""So many threads of a process, for as long as tasks run in them."""


@dataclass(frozen=True, eq=False)
class Fixed:
    """What all tasks of a run share, in every process: what they write to, opened there by being unpickled, and the threads they run in."""

    sink: Sink
    tasks: Callable[[Sink], Sequence[Callable[[], None]]]
    threads: Threads


class Shared:
    """A run's fixed part in a worker's process: opened at the first task there, closed when the run lets go of it."""

    def __init__(self, pickled: bytes, token: str, noted_in: str) -> None:
        self._pickled, self.token, self._boot = pickled, token, noted_in
        self._opening, self._flushing, self._changed = Lock(), Lock(), Condition()
        self._at_work = 0
        self._sink: Sink | None = None
        self._tasks: Sequence[Callable[[], None]] = ()
        self._close: Callable[[], Any] = lambda: None
        # A worker that has just come may be sent this after it was told of the end.
        self._stopped = ended_with_run(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Shared, (self._pickled, self.token, self._boot)

    def do(self, number: int) -> None:
        """Do a task; what it wrote outlasts this process, and on another machine than the run's that as well."""
        with self._changed:
            if self._stopped:
                return
            self._at_work += 1
        try:
            sink = self._open()
            self._pool.submit(self._tasks[number]).result()
            if boot() != self._boot:
                # On another machine, which may be lost by itself. One at a time: a sink's flush takes over what others wrote.
                with self._flushing:
                    sink.flush()
        finally:
            with self._changed:
                self._at_work -= 1
                self._changed.notify_all()

    def end(self) -> None:
        """Begin no task any more; when those at work have ended, let go of what they share, and return."""
        with self._changed:
            self._stopped = True
            self._changed.wait_for(lambda: not self._at_work)
        self._tasks = ()
        self._close()

    def _open(self) -> Sink:
        with self._opening:
            if self._sink is None:
                from distributed import get_worker

                fixed: Fixed = pickle.loads(self._pickled)
                with ExitStack() as opened:
                    # Threads of its own: Dask's keep their settings.
                    self._pool = opened.enter_context(fixed.threads(get_worker().state.nthreads))
                    opened.callback(fixed.sink.close)
                    self._tasks = fixed.tasks(fixed.sink)
                    self._close = finalize(self, opened.pop_all().close)
                self._sink = fixed.sink
            return self._sink


_ALL, _LOCK = WeakSet[Any](), Lock()
_ENDED = deque[str](maxlen=1 << 10)
"""Runs that no task of is to begin any more."""


def ended_with_run(shared: Any) -> bool:
    """Have what tasks share, of any kind with a `token`, told to `end` when a run of that name does; whether that has."""
    with _LOCK:
        _ALL.add(shared)
        return shared.token in _ENDED


def do(shared: Shared, number: int) -> None:
    shared.do(number)


async def end_run(token: str) -> None:
    with _LOCK:
        _ENDED.append(token)
        found = [shared for shared in _ALL if shared.token == token]
    for shared in found:
        await asyncio.to_thread(shared.end)


def pickled(value: Any) -> bytes:
    """As bytes, for processes that may be in other folders: paths are absolute, and what can be made again stays behind."""
    into = BytesIO()
    _Pickler(into, pickle.HIGHEST_PROTOCOL).dump(value)
    return into.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Path):
            return type(obj), (str(obj.absolute()),)
        kind = type(obj)
        if is_dataclass(kind) and not hasattr(kind, "__slots__") and not isinstance(obj, np.ndarray):
            # Without cached properties: a spectrum is made again in less time than it travels.
            return copyreg.__newobj__, (kind,), {one.name: getattr(obj, one.name) for one in fields(kind)}  # pyright: ignore[reportAttributeAccessIssue]
        return NotImplemented
