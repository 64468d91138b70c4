"""A run whose output is a file: opened or taken up, its tasks noted while the disk writes, and published when it is whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Condition, Lock, Thread
from typing import Any

from sash.arrays._journal import Journal
from sash.arrays._store import Sink

EVERY_S = 0.5
"""Seconds between marks, at least: each waits for the disk's own journal."""


class Filed:
    """An output that is made, and the journal of it."""

    def __init__(self, journal: Journal, sink: Sink, before: set[int] | None) -> None:
        self.sink = sink
        self.again = before is not None
        """Whether an earlier run is gone on with."""
        self.done = before or set()
        """Tasks that it finished."""
        self._journal = journal

    @contextmanager
    def notes(self, *sinks: Sink) -> Iterator[Callable[[int], None]]:
        """The function that notes a finished task, from any thread, while tasks write to the output, or to `sinks`.

        A thread beside makes what they wrote outlast the machine; when this ends well, all of it does. Where the disk refuses, the next
        note raises `InputError`, and what is not marked does not count any more.
        """
        behind = _Behind(self._journal, sinks or (self.sink,))
        try:
            yield behind.note
        except BaseException:
            behind.stop()
            raise
        behind.stop()
        behind.settle()

    def finish(self) -> Any:
        """The path; the output appears under its name."""
        made = self.sink.finish()
        self._journal.remove()
        return made


@contextmanager
def filed(out: Path, facts: dict[str, Any], opened: Callable[[bool], Sink], restart: bool) -> Iterator[Filed]:
    """A run, for as long as this is open. `opened` opens the output, and is told whether it goes on with what was left.

    Raises `InputError` where an unfinished output is of another run.
    """
    journal = Journal(out, facts)
    before = journal.begun(restart)
    sink = opened(before is not None)
    try:
        journal.begin()
        if journal.count > journal.durable:
            # What a killed process wrote to the output is not among what the next mark looks at, where that is a file between phases.
            _flushed((sink,), journal)
        yield Filed(journal, sink, before)
    finally:
        sink.close()
        journal.close()


class _Behind:
    """The thread that makes what is in sinks outlast the machine while others write to them."""

    def __init__(self, journal: Journal, sinks: tuple[Sink, ...]) -> None:
        self._journal, self._sinks = journal, sinks
        self._changed, self._settling = Condition(), Lock()
        self._stopped = False
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="sash-disk", daemon=True)
        self._thread.start()

    def note(self, number: int) -> None:
        """A task has ended."""
        if self._error is not None:
            raise self._error
        self._journal.done(number)
        with self._changed:
            self._changed.notify_all()

    def settle(self) -> None:
        """All that is noted by now outlasts the machine; raises `InputError` where the disk refuses."""
        with self._settling:
            if self._error is not None:
                raise self._error
            count = self._journal.count
            if count == self._journal.durable:
                return
            _flushed(self._sinks, self._journal)
            self._journal.mark(count)

    def stop(self) -> None:
        """End the thread, once what it is at is written."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._journal.count > self._journal.durable)
                if self._stopped:
                    return
            try:
                self.settle()
            except BaseException as error:
                self._error = error
                return
            with self._changed:
                self._changed.wait_for(lambda: self._stopped, EVERY_S)


def _flushed(sinks: tuple[Sink, ...], journal: Journal) -> None:
    try:
        for sink in sinks:
            sink.flush()
    except BaseException:
        journal.lost()
        raise
