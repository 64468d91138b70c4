"""Tasks on an existing Dask cluster: submitted one by one, few at a time, each idempotent, noted when what it wrote outlasts its process.

A job's fixed part (stage, taps, sources, where the output lies) is sent once and opened once in each process; a task is a number. Workers
read the source and write the output themselves, so they see the same files under the same names. Nothing is tried again after an error,
which would come again; a task that was lost with its worker runs on another one. A budget bounds what all workers hold together.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any
from uuid import uuid4

from sash.arrays._cluster_shared import Fixed, Shared, do, end_run, pickled
from sash.arrays._journal import boot
from sash.arrays._store import Source
from sash.arrays._store_sink import Target, partial_of
from sash.arrays._store_tensor import TensorSource
from sash.errors import InputError

WRITTEN = (".npy", ".zarr", ".tif", ".tiff", ".wav", ".flac")
"""Files that several processes write to; pictures are encoded in one go."""
CONNECT_S = 10.0
"""Seconds until a scheduler has answered and has a worker."""
PATIENCE_S = 30.0
"""Seconds without any worker after which a run ends: a nanny starts another one in three."""
_LOOK_S = 2.0
"""Seconds between looks at which workers there are."""
_AHEAD = 2
"""Tasks for each thread that are on their way, so that none waits for the next."""
_ALIKE = ("sash", "numpy", "scipy", "numba", "torch")
"""Packages whose versions decide the last bits."""
_LARGE_GRAPH = "distributed.admin.large-graph-warning-threshold"
_MESSAGES_KEPT = "distributed.admin.low-level-log-length"
"""A thousand unless said otherwise: vectors of below 1 MB that were sent would stay, pass after pass."""
_AGAIN = "What is done is noted; the same call goes on from there."
_ANEW = "Start others and call again; what was written by then stays."
_TOLD = "Start one with: dask scheduler; and workers with: dask worker tcp://HOST:8786 --nthreads 1."


@dataclass(frozen=True)
class Seats:
    """Where tasks run side by side."""

    threads: int
    apart: int = 0
    """Processes of a cluster that they are in; 0: threads of this process."""

    @property
    def processes(self) -> int:
        """Those that hold what tasks share."""
        return max(self.apart, 1)

    @property
    def told(self) -> str:
        """To be put after what is done."""
        return f", on {self.apart} Dask worker{'s' if self.apart > 1 else ''}" if self.apart else ""


def is_address(workers: str) -> bool:
    """Whether it names a scheduler."""
    return re.fullmatch(r"(tcp|tls|ws|wss|ucx|inproc)://\S+", workers) is not None


def check_filed(source: Source, out: Any, address: str) -> None:
    """Raise `InputError` where what is read or written is in this process's memory, or written in one go."""
    if source.array is not None or isinstance(source, TensorSource):
        raise InputError(
            f"the source is an array in this process's memory, which the workers of {address} do not have; "
            "save it as .npy or .zarr and give the path, or let workers be a number of threads."
        )
    if not isinstance(out, (str, os.PathLike)):
        raise InputError(f"the workers of {address} write to a file; give `out`, the path of a {', '.join(WRITTEN)}.")
    if (suffix := Path(out).suffix.lower()) not in WRITTEN:
        raise InputError(f"{out} has the suffix {suffix or 'none'}; the workers of {address} write {', '.join(WRITTEN)}.")


def seats_at(address: str) -> Seats:
    """How many processes and threads a cluster has."""
    with _client(address) as client:
        return _seats(client)


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """A cluster, for as long as this is open; raises `InputError` where there is none."""
    with _client(address) as client:
        yield Cluster(client, address)


@contextmanager
def _client(address: str) -> Iterator[Any]:
    try:
        from dask import config
        from distributed import Client
    except ImportError:
        raise InputError(f"workers={address!r} needs dask, which is not installed: pip install 'sash[arrays]'.") from None
    try:
        with config.set({_MESSAGES_KEPT: 0}):
            client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {address} within {CONNECT_S:g} s ({_short(error)}). {_TOLD}") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_S)
        except TimeoutError:
            raise InputError(
                f"the Dask scheduler at {address} has no workers. Start one on each machine with: dask worker {address} --nthreads 1."
            ) from None
        yield client


class Cluster:
    """Workers of a Dask scheduler."""

    def __init__(self, client: Any, address: str) -> None:
        self._client, self._address = client, address
        self._looked, self._threads = monotonic(), _seats(client).threads

    @property
    def seats(self) -> Seats:
        """How many processes and threads it has."""
        return _seats(self._client)

    def check(self, out: Path, rests_on: Any, overwrite: bool, able: Callable[[], Any] | None = None) -> None:
        """Raise `InputError` if the output cannot be written, or a worker does not see its folder, what is read, or the same versions.

        `able` is called on each worker, and raises `InputError` for what it has not.
        """
        Target.of(out, overwrite, folder=out.suffix.lower() == ".zarr")
        probe, token = partial_of(out.absolute()).with_suffix(".probe"), uuid4().hex
        probe.write_text(token)
        try:
            found = self._client.run(_look, str(probe), token, pickled(rests_on), able, on_error="return")
        finally:
            probe.unlink()
        self._agree(found, f"Mount {probe.parent} and what is read there, under the same names.")

    def check_read(self, rests_on: Any, near: str) -> None:
        """The same of workers that read alone; `near` is what to do where one does not see what is read."""
        self._agree(self._client.run(_look, None, "", pickled(rests_on), None, on_error="return"), near)

    def _agree(self, found: dict[str, Any], near: str) -> None:
        for worker, answer in found.items():
            if isinstance(answer, ImportError):
                raise InputError(f"the worker {worker} cannot load sash ({answer}): pip install 'sash[arrays]' there, of the same version.")
            if isinstance(answer, InputError):
                raise InputError(f"the worker {worker}: {answer}")
            if isinstance(answer, BaseException):
                raise answer
            if isinstance(answer, str):
                raise InputError(f"the worker {worker} does not see the same files: {answer}. {near}")
            other = [f"{name} {answer[name]}, not {ours}" for name, ours in _versions().items() if answer[name] != ours]
            if other:
                raise InputError(f"the worker {worker} has {', '.join(other)}, so its bits may differ; install the same versions there.")

    def run(self, told: str, fixed: Fixed, numbers: Iterable[int], at_once: int, ended: Callable[[int], None]) -> None:
        """Run tasks by their numbers, at most so many at once. `ended` is told each one's, once what it wrote may be noted.

        What a task raises is raised here, once those at work have ended; others are not begun, and an interruption ends alike. Workers
        hold nothing of the run when this ends, so that the next one has the budget for itself.
        """
        from dask import config

        token, finished = uuid4().hex, SimpleQueue[Any]()
        running: dict[str, tuple[Any, int]] = {}
        left, client = iter(numbers), self._client
        # A result that can be made again, not scattered data, which would be lost with the worker that holds it.
        with config.set({_LARGE_GRAPH: "10 TiB"}):
            shared = client.submit(Shared, pickled(fixed), token, boot(), key=f"sash-fixed-{token}", pure=False)
        try:
            while True:
                for number in _next(left, self._window(at_once) - len(running)):
                    future = client.submit(do, shared, number, key=f"sash-task-{token}-{number}", pure=False)
                    running[future.key] = future, number
                    future.add_done_callback(finished.put)
                if not running:
                    return
                future = self._finished(finished, told)
                _, number = running[future.key]
                self._check(future, told)
                del running[future.key]
                ended(number)
        finally:
            self._end(token, [future for future, _ in running.values()])
            shared.release()

    @contextmanager
    def sharing(self, kind: Callable[[bytes, str], Any], fixed: Any) -> Iterator[tuple[str, Any]]:
        """A name for a run, and `kind` of what all its tasks share, which every process that has a task of it makes for itself."""
        token = uuid4().hex
        shared = self._kept(kind, pickled(fixed), token, key=f"sash-fixed-{token}")
        try:
            yield token, shared
        finally:
            shared.release()

    def mapped(
        self,
        told: str,
        sharing: tuple[str, Any],
        task: Callable[..., Any],
        common: Any,
        each: Iterable[tuple[Any, ...]],
        at_once: int,
        take: Callable[[int, Any], None],
    ) -> None:
        """Tell `take` what the task makes of what is shared, of what is common, and of each; in order, at most so many on their way.

        Results come from their workers directly. One that was lost with its worker is made again on another one. An error ends all of it.
        """
        (token, shared), run, seats = sharing, uuid4().hex, self._places()
        left, waiting = enumerate(each), deque[tuple[int, Any]]()
        kept = self._kept(_same, common, key=f"sash-common-{run}")
        try:
            while True:
                for number, own in _next(left, at_once - len(waiting)):
                    # Each at its own place, as long as that is there: what it reads is in that machine's memory from the last time.
                    place: dict[str, Any] = {"workers": [seats[number % len(seats)]], "allow_other_workers": True} if seats else {}
                    waiting.append((number, self._kept(task, shared, kept, *own, key=f"sash-part-{run}-{number}", **place)))
                if not waiting:
                    return
                take(waiting[0][0], self._fetched(waiting[0][1], told))
                waiting.popleft()[1].release()
        finally:
            if waiting:
                self._end(token, [future for _, future in waiting])
            kept.release()

    def _kept(self, function: Callable[..., Any], *given: Any, **words: Any) -> Any:
        """A result that can be made again, not scattered data, which would be lost with the worker that holds it."""
        from dask import config

        with config.set({_LARGE_GRAPH: "10 TiB"}):
            return self._client.submit(function, *given, pure=False, **words)

    def _places(self) -> list[str]:
        """A worker's address for each of its threads, workers in turn."""
        found = [(place, address) for address, threads in self._client.nthreads().items() for place in range(threads)]
        return [address for _, address in sorted(found)]

    def _fetched(self, future: Any, told: str) -> Any:
        """Its result, once there is one; raises what it raised, or `InputError` where there has been no worker for long."""
        asked = self._client.gather([future], direct=True, asynchronous=True)
        fetching = asyncio.run_coroutine_threadsafe(asked, self._client.loop.asyncio_loop)
        try:
            self._patiently(lambda: fetching if wait([fetching], _LOOK_S).done else None, told, _ANEW)
            return fetching.result()[0]
        except Exception as error:
            if not fetching.done():
                raise
            self._check(future, told, _ANEW)
            raise InputError(f"{told}: the scheduler at {self._address} was lost ({_short(error)}). {_ANEW}") from error
        finally:
            fetching.cancel()

    def _window(self, at_once: int) -> int:
        """Tasks on their way: with more threads than may be at work at once, as workers may have come since, no more than those."""
        if monotonic() - self._looked > _LOOK_S:
            self._looked, self._threads = monotonic(), _seats(self._client).threads
        return at_once if self._threads > at_once else _AHEAD * at_once

    def _finished(self, finished: SimpleQueue[Any], told: str) -> Any:
        """The next one that has."""

        def ask() -> Any:
            with suppress(Empty):
                return finished.get(timeout=_LOOK_S)

        return self._patiently(ask, told, _AGAIN)

    def _patiently(self, ask: Callable[[], Any], told: str, again: str) -> Any:
        """What `ask`, which waits a little, finds at last; raises `InputError` where there has been no worker for long."""
        since: float | None = None
        while True:
            if (found := ask()) is not None:
                return found
            there = bool(self._client.nthreads())
            since = None if there else since or monotonic()
            if since is not None and monotonic() - since >= PATIENCE_S:
                raise InputError(f"{told}: all workers of {self._address} are gone. {again}")

    def _check(self, future: Any, told: str, again: str = _AGAIN) -> None:
        """Raise what the task raised.

        Of one that ended well nothing is fetched: what counts is on the disk, and without workers asking would never end.
        """
        if future.status not in ("error", "cancelled"):
            return
        from distributed import KilledWorker
        from distributed.client import FutureCancelledError

        try:
            future.result()
        except KilledWorker as error:
            died, last = error.allowed_failures + 1, error.last_worker.address
            raise InputError(
                f"{told}: {died} workers of {self._address} died over one task, the last {last}; was it killed for its memory? {again}"
            ) from error
        except FutureCancelledError as error:
            raise InputError(f"{told}: the scheduler at {self._address} was lost ({error.reason}). {again}") from error

    def _end(self, token: str, futures: list[Any]) -> None:
        """Return when no worker writes any more, and none holds anything: the file may be taken away, or gone on with, at once."""
        if self._client.status != "running":
            return
        if futures:
            self._client.cancel(futures, force=True)
        self._client.run(end_run, token, on_error="ignore")


def _same(value: Any) -> Any:
    return value


def _look(probe: str | None, token: str, rests_on: bytes, able: Callable[[], Any] | None) -> str | dict[str, str]:
    """The versions that a worker has, or what it does not see; raises `InputError` for what it is not able to."""
    try:
        if probe is not None and Path(probe).read_text() != token:
            return f"{probe} is another file there"
        pickle.loads(rests_on)
    except (OSError, InputError) as error:
        return str(error)
    if able is not None:
        able()
    return _versions()


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in _ALIKE}


def _seats(client: Any) -> Seats:
    found = client.nthreads()
    return Seats(sum(found.values()), len(found))


def _next(left: Iterator[Any], count: int) -> Iterator[Any]:
    """At most so many more."""
    for _, one in zip(range(count), left, strict=False):
        yield one


def _short(error: BaseException) -> str:
    return str(error).split("\n")[0] or type(error).__name__
