"""Which tasks of a long run are done, so that an interrupted one is taken up where it stopped.

A finished task is noted at once, and nothing waits for the disk: what was written outlasts a process that is killed, since the system
still has it. What outlasts the machine is marked afterwards. So the journal has, after a line of facts: the boot in which each run began;
the number of each task; `durable`, how many of them are on the disk; and `lost`, where the disk refused what was written since.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import uuid4

from sash.arrays._store_sink import partial_of, remove, sync
from sash.errors import InputError

_SCHEMA = 2
_SHORT = 40
"""Characters up to which a fact's value is told, and not only its name."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@cache
def boot() -> str:
    """The boot of the machine that this process runs in; where the system does not tell, one of its own, as if each process had one."""
    try:
        return _BOOT.read_text().strip() or uuid4().hex
    except OSError:
        return uuid4().hex


class Journal:
    """A line for each finished task, after a first line with the facts that every task rests on. Lines may come from any thread."""

    def __init__(self, out: Path, facts: dict[str, Any]) -> None:
        self.partial = partial_of(out)
        """Where the output lies until it is whole."""
        self.path = self.partial.with_suffix(".journal")
        # As they come back from the file: tuples become lists, keys strings.
        self._facts = json.loads(json.dumps({"schema": _SCHEMA, **facts}))
        self._tasks: list[int] = []
        self._durable = 0
        self._file, self._lock, self._lost = -1, Lock(), False

    @property
    def count(self) -> int:
        """Tasks that are noted."""
        return len(self._tasks)

    @property
    def durable(self) -> int:
        """How many of them, the first ones, are marked as on the disk."""
        return self._durable

    def begun(self, restart: bool) -> set[int] | None:
        """Tasks that an earlier run finished; None where a new one starts. Raises `InputError` where that run was another one.

        Since another boot those count that are marked. A line that was cut off does not count.
        """
        self._tasks, self._durable = [], 0
        if restart or not (self.path.exists() and self.partial.exists()):
            self.remove()
            return None
        first, *lines = self.path.read_bytes().split(b"\n")[:-1] or [b""]
        before = _parsed(first)
        if not isinstance(before, dict):
            self.remove()
            return None
        changed = [key for key in {**before, **self._facts} if before.get(key) != self._facts.get(key)]
        if changed:
            told = ", ".join(_told(key, before.get(key), self._facts.get(key)) for key in changed)
            raise InputError(
                f"{self.partial.name} was left by an interrupted run, and since then other things changed: {told}. "
                "Undo that to go on with it, or say restart=True (--restart) to begin anew."
            )
        self._tasks, self._durable = _counted(lines)
        return set(self._tasks)

    def begin(self) -> None:
        """Write the facts, and what counts of an earlier run, in a new file that takes the old one's place once it is on the disk."""
        lines: list[Any] = [self._facts, {"boot": boot()}, *self._tasks]
        lines += [{"durable": self._durable}] if self._durable else []
        fresh = self.path.with_suffix(".journal-new")
        with self._told(), fresh.open("w", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path)
        sync(self.path.parent)
        self.close()
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)

    def done(self, number: int) -> None:
        """A task is finished: what it wrote is with the system."""
        with self._lock:
            if not self._lost:
                self._append(number)
                self._tasks.append(number)

    def mark(self, count: int) -> None:
        """What the first `count` tasks wrote is on the disk."""
        with self._lock:
            self._append({"durable": count})
            with self._told():
                os.fsync(self._file)
            self._durable = count

    def lost(self) -> None:
        """The disk refused what was written since the last mark; the system may have let go of it, so tasks since then do not count."""
        with self._lock:
            self._lost = True
            try:
                self._append({"lost": True})
            except InputError:
                # Without room for a line the run begins anew.
                self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def remove(self) -> None:
        """Take it and the unfinished output away."""
        self.close()
        self.path.unlink(missing_ok=True)
        remove(self.partial)

    def _append(self, line: Any) -> None:
        with self._told():
            data = (json.dumps(line) + "\n").encode()
            if os.write(self._file, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror}); make room in {self.path.parent}.") from error


def _counted(lines: list[bytes]) -> tuple[list[int], int]:
    """Tasks that count, in order, and how many of them are on the disk."""
    tasks, durable, began = list[int](), 0, ""
    for line in lines:
        match _parsed(line):
            case int(number):
                tasks.append(number)
            case {"boot": str(name)}:
                # What another boot did not mark was taken out when this one began.
                began = name
            case {"durable": int(count)} if count <= len(tasks):
                durable = count
            case {"lost": True}:
                del tasks[durable:]
            case _:
                break
    return (tasks if began == boot() else tasks[:durable]), durable


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _told(key: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        return f"{key} ({', '.join(name for name in {**before, **now} if before.get(name) != now.get(name))})"
    words = [json.dumps(value) for value in (before, now)]
    return key if max(map(len, words)) > _SHORT else f"{key} ({words[0]} → {words[1]})"
