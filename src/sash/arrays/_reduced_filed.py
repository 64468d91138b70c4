"""All eigenvalues of a Gram matrix that is larger than memory, and eigenvectors: on disk it becomes a band, then tridiagonal.

Two files, each as large as the matrix's lower triangle, and a note of what is done: whatever ends the process, the next one goes on from
there. From the tridiagonal matrix on, values and vectors are found as those of a matrix in memory.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from sash.arrays._band import Banding, turned_by_panels
from sash.arrays._chase import Chase, chains_bytes, turned_by_chase
from sash.arrays._gram import Gram
from sash.arrays._triangle import Triangle, triangle_bytes
from sash.arrays._tridiagonal import Tridiagonal

NOTED_S = 60.0
"""Seconds from one note to the next, at least, while the band becomes tridiagonal."""
_MAGIC = "sash.banding/1"
_NAMES = ("gram.0", "gram.1", "gram.note")
_IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})
_TURNED = 64
"""Vectors that a thread turns at once."""
ASSEMBLED, BANDED, CHASED = 0.05, 0.45, 0.1
"""Shares of the steps that are told, of all that `pca` does."""


@dataclass(frozen=True)
class Sizes:
    """How a matrix is reduced on disk."""

    side: int
    width: int
    """Of the band, and columns of a block."""
    gathered: int
    """Panels whose updates wait in memory."""

    @property
    def disk_bytes(self) -> int:
        """Of both files."""
        return 2 * triangle_bytes(self.side, self.width)

    @property
    def strip(self) -> int:
        """Columns of the Gram matrix that are made at once: they hold what the reduction will."""
        return min(2 * self.gathered * self.width, self.side)

    def moved_bytes(self, groups: int) -> int:
        """Read and written in all: the rest for each panel, written where so many were gathered; reflectors for each group of vectors."""
        whole, panels = triangle_bytes(self.side, self.width), -(-self.side // self.width)
        return int(whole * (panels / 3 * (1 + 1 / self.gathered) + 4 + 2 * groups))

    def reducing_bytes(self, threads: int) -> int:
        """Held while the matrix becomes a band: that, gathered updates, a panel with its products, and two block columns."""
        return 8 * self.side * ((2 * self.gathered + 5) * self.width + 1) + 8 * self.width**2 * (threads + 6)

    def turning_bytes(self) -> int:
        """Held beside vectors while they are turned back."""
        return 8 * self.side * self.width + chains_bytes(self.side, self.width)


@dataclass(frozen=True, eq=False)
class FiledReduced:
    """A symmetric matrix that became tridiagonal, with what turns vectors back in two files."""

    tridiagonal: Tridiagonal
    files: tuple[Triangle, Triangle]
    gathered: int

    def turned_back(self, vectors: np.ndarray, threads: int = 1) -> None:
        """Make eigenvectors of the tridiagonal matrix those of the matrix, in place; Fortran's order, or its columns from last to first."""
        forward = vectors if vectors.strides[1] > 0 else vectors[:, ::-1]
        pieces = [slice(start, min(start + _TURNED, forward.shape[1])) for start in range(0, forward.shape[1], _TURNED)]
        with ThreadPoolExecutor(threads, "sash") as pool:
            each = map if threads == 1 else pool.map
            turned_by_chase(forward, self.files, self.gathered, pieces, each)
            turned_by_panels(forward, self.files, self.gathered, pieces, each)


def reduced_in_files(gram: Gram, folder: Path, sizes: Sizes, ended: Callable[[float], None], resumed: bool) -> FiledReduced:
    """The Gram matrix, made and reduced in files in a folder; if `resumed`, from where an earlier run left them.

    `ended` is told shares of all that is to be done. Raises `InputError` where the disk has no room.
    """
    note = _Note(folder / _NAMES[2], sizes)
    paths = folder / _NAMES[0], folder / _NAMES[1]
    whole = all(path.exists() and path.stat().st_size == sizes.disk_bytes // 2 for path in paths)
    kept = note.read() if resumed and whole else None
    if kept is None:
        note.path.unlink(missing_ok=True)
    files = Triangle.at(paths[0], sizes.side, sizes.width), Triangle.at(paths[1], sizes.side, sizes.width)
    found = kept or {"step": "band", "done": 0, "waiting": 0}
    if kept is None:
        _assembled(gram, files[0], sizes, lambda share: ended(ASSEMBLED * share))
        files[0].sync()
    else:
        ended(ASSEMBLED)
    if found["step"] == "band":
        found = _banded(files, sizes, found, ended, gram.threads, note)
    else:
        ended(BANDED)
    if found["step"] == "chase":
        found = _chased(files, sizes, found, ended, note)
    else:
        ended(CHASED)
    return FiledReduced(Tridiagonal(found["diagonal"], found["beside"]), files, sizes.gathered)


def free_bytes(folder: Path) -> int:
    """Room for the files in a folder, what an earlier run left there included; none where the folder is kept in memory."""
    if _kind(folder) in _IN_MEMORY:
        return 0
    return shutil.disk_usage(folder).free + sum((folder / name).stat().st_size for name in _NAMES if (folder / name).exists())


def _kind(folder: Path) -> str:
    """Of the file system that a folder lies on; nothing where the system does not tell."""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    # Blanks in names are written as numbers there; of two that are mounted in one place the later counts.
    mounts = [(fields[1].replace("\\040", " "), fields[2]) for fields in map(str.split, lines)]
    whole = folder.resolve()
    above = [(len(Path(name).parts), place, kind) for place, (name, kind) in enumerate(mounts) if whole.is_relative_to(name)]
    return max(above)[2] if above else ""


def forget(folder: Path) -> None:
    """Take it away."""
    for name in (*_NAMES, f"{_NAMES[2]}.new"):
        (folder / name).unlink(missing_ok=True)


def _assembled(gram: Gram, into: Triangle, sizes: Sizes, ended: Callable[[float], None]) -> None:
    side, width = sizes.side, sizes.width
    for start in range(0, side, sizes.strip):
        stop = min(start + sizes.strip, side)
        area = ((side - start) ** 2 - (side - stop) ** 2) / side**2
        strip = gram.strip(start, stop, lambda share, area=area: ended(area * share))
        for first in range(0, stop - start, width):
            into.write((start + first) // width, np.asfortranarray(strip[first:, first : first + width]))
        del strip


def _banded(
    files: tuple[Triangle, Triangle], sizes: Sizes, found: dict[str, Any], ended: Callable[[float], None], threads: int, note: _Note
) -> dict[str, Any]:
    made = Banding(files, sizes.gathered)
    made.done, made.waiting = found["done"], found["waiting"]
    kept = made.waiting * sizes.width
    if "band" in found:
        made.band[...] = found["band"]
        made.vectors[:, :kept], made.images[:, :kept] = found["vectors"].T, found["images"].T
        ended(BANDED * (1 - max(1 - made.done * sizes.width / sizes.side, 0) ** 3))

    def noted() -> None:
        for file in files:
            file.sync()
        kept = made.waiting * sizes.width
        parts = {"band": made.band, "vectors": made.vectors[:, :kept].T, "images": made.images[:, :kept].T}
        note.write({"step": "band", "done": made.done, "waiting": made.waiting}, parts)

    if "band" not in found:
        noted()
    found.clear()
    made.run(lambda share: ended(BANDED * share), threads, noted)
    chase = Chase.of(files, sizes.gathered, made.band)
    for file in files:
        file.sync()
    note.write({"step": "chase", "done": 0}, {"rows": chase.rows})
    return {"step": "chase", "done": 0, "rows": chase.rows}


def _chased(
    files: tuple[Triangle, Triangle], sizes: Sizes, found: dict[str, Any], ended: Callable[[float], None], note: _Note
) -> dict[str, Any]:
    made, at = Chase(files, sizes.gathered, found["rows"], found["done"]), monotonic()
    ended(CHASED * (1 - max(1 - made.done * sizes.width / sizes.side, 0) ** 2))

    def noted() -> None:
        nonlocal at
        if monotonic() - at >= NOTED_S:
            for file in files:
                file.sync()
            note.write({"step": "chase", "done": made.done}, {"rows": made.rows})
            at = monotonic()

    made.run(lambda share: ended(CHASED * share), noted)
    for file in files:
        file.sync()
    diagonal, beside = made.tridiagonal
    note.write({"step": "tridiagonal"}, {"diagonal": diagonal, "beside": beside})
    return {"step": "tridiagonal", "diagonal": diagonal, "beside": beside}


@dataclass(frozen=True)
class _Note:
    """Where a reduction stands: a line of facts, and arrays."""

    path: Path
    sizes: Sizes

    def write(self, facts: dict[str, Any], parts: dict[str, np.ndarray]) -> None:
        """Note it; an older note stays until this one is whole."""
        fresh, sizes = self.path.with_name(self.path.name + ".new"), self.sizes
        line = {"schema": _MAGIC, "sizes": [sizes.side, sizes.width, sizes.gathered], **facts}
        line["parts"] = {name: part.shape for name, part in parts.items()}
        with fresh.open("wb") as file:
            file.write((json.dumps(line) + "\n").encode())
            for part in parts.values():
                file.write(part.data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self.path)

    def read(self) -> dict[str, Any] | None:
        """What was noted; None where that is nothing, or of other sizes."""
        if not self.path.exists():
            return None
        sizes = self.sizes
        with self.path.open("rb") as file:
            try:
                found = json.loads(file.readline())
            except ValueError:
                return None
            if found.pop("schema", None) != _MAGIC or found.pop("sizes") != [sizes.side, sizes.width, sizes.gathered]:
                return None
            for name, shape in found.pop("parts").items():
                found[name] = np.empty(shape)
                if found[name].size and file.readinto(found[name].data) != found[name].nbytes:
                    return None
        return found
