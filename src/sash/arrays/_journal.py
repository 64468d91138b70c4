"""Which tasks of a long run are done, so that an interrupted one is taken up where it stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sash.arrays._store_sink import partial_of, remove, sync
from sash.errors import InputError

_SCHEMA = 1
_SHORT = 40
"""Characters up to which a fact's value is told, and not only its name."""


class Journal:
    """A line for each finished task, after a first line with the facts that every task rests on."""

    def __init__(self, out: Path, facts: dict[str, Any]) -> None:
        self.partial = partial_of(out)
        """Where the output lies until it is whole."""
        self.path = self.partial.with_suffix(".journal")
        # As they come back from the file: tuples become lists, keys strings.
        self._facts = json.loads(json.dumps({"schema": _SCHEMA, **facts}))

    def begun(self, restart: bool) -> set[int] | None:
        """Tasks that an earlier run finished; None where a new one starts. Raises `InputError` where that run was another one.

        A line that was cut off does not count, and is taken away, so that the next one stands by itself.
        """
        if restart or not (self.path.exists() and self.partial.exists()):
            self.remove()
            return None
        text = self.path.read_bytes()
        first, *lines = text.split(b"\n")[:-1] or [b""]
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
        done: set[int] = set()
        kept = len(first) + 1
        for line in lines:
            number = _parsed(line)
            if not isinstance(number, int):
                break
            done.add(number)
            kept += len(line) + 1
        if kept < len(text):
            os.truncate(self.path, kept)
        return done

    def begin(self) -> None:
        """Write the facts."""
        self._append(json.dumps(self._facts), "w")
        sync(self.path.parent)

    def done(self, number: int) -> None:
        """A task is finished, and what it wrote was flushed."""
        self._append(str(number), "a")

    def remove(self) -> None:
        """Take it and the unfinished output away."""
        self.path.unlink(missing_ok=True)
        remove(self.partial)

    def _append(self, line: str, mode: str) -> None:
        with self.path.open(mode, encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())


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
