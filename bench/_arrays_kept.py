"""Rows of a section that takes long, kept as they come, so that an interrupted one goes on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent


@dataclass
class Kept:
    """Rows by key; those of other code, or of another machine, do not count."""

    path: Path | None
    key: dict[str, Any]
    rows: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, section: str, made_on: dict[str, Any], store: bool = True) -> Kept:
        """What there is of a section."""
        files = [*(BENCH.parent / "src" / "sash" / "arrays").glob("*.py"), *BENCH.glob("_arrays_*.py")]
        code = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()
        key = {"code": code, **made_on}
        path = BENCH / "results" / f"arrays-{section}.partial.json" if store else None
        found = json.loads(path.read_text()) if path is not None and path.exists() else {}
        return cls(path, key, found["rows"] if found.get("key") == key else {})

    def keep(self, name: str, row: Any) -> None:
        """One more."""
        self.rows[name] = row
        if self.path is not None:
            fresh = self.path.with_suffix(".fresh.partial.json")
            fresh.write_text(json.dumps({"key": self.key, "rows": self.rows}))
            fresh.replace(self.path)

    def remove(self) -> None:
        """All is measured."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
