"""What is measured once and kept in the user's cache folder: where, by whom alone, and whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path


def kept_path(words: str) -> Path:
    """The file of that name under `$XDG_CACHE_HOME/sash` (`~/.cache/sash`)."""
    home = os.environ.get("XDG_CACHE_HOME") or ""
    folder = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    return folder / "sash" / (re.sub(r"[^A-Za-z0-9.+]+", "-", words).strip("-") + ".json")


def processor() -> str:
    """The processor's own name; empty where the system does not tell."""
    with contextlib.suppress(OSError):
        facts = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line.partition(":")[2].strip() for line in facts if line.startswith("model name")), "")
    return ""


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Two processes that measure at once would each find half a machine: the second waits, and reads what the first wrote."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("w")
    except OSError:
        yield  # a cache folder that cannot be written: measure each time
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def keep(path: Path, text: str) -> None:
    """Write a file under another name first: whoever reads meanwhile finds the whole file or none. Does nothing where it cannot."""
    with contextlib.suppress(OSError):
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(handle, "w") as file:
            file.write(text + "\n")
        os.replace(name, path)


def forget(path: Path) -> bool:
    """Whether the file was there; it is deleted."""
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
