"""Names of a matrix's columns: a vocabulary beside it, one name a line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sash.errors import InputError

Names = str | os.PathLike[str] | Sequence[str]
"""The file that has them, or themselves."""


def column_names(names: Names, columns: int) -> tuple[str, ...]:
    """One name a column; raises `InputError` where there are more or fewer."""
    if isinstance(names, (str, os.PathLike)):
        path = Path(names)
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not text in UTF-8 ({error}); give a file of names, one a line.") from error
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); give a file of names, one a line.") from error
        # The end of the last line begins no other.
        found, told = [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)], f"{path} has {{}} lines"
    else:
        found, told = [str(name) for name in names], "there are {} names"
    if len(found) != columns:
        raise InputError(f"{told.format(len(found))}; the matrix has {columns} columns: give one name for each.")
    return tuple(found)


def vocabulary_of(path: Path) -> Path | None:
    """The file of names beside a matrix, docs.vocab.txt of docs.mtx, docs.mtx.gz or docs.npz; None where there is none."""
    stem = path.name.removesuffix(".gz").rsplit(".", 1)[0]
    beside = path.with_name(f"{stem}.vocab.txt")
    return beside if beside.is_file() else None
