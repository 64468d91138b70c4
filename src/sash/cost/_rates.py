"""How fast this machine is: measured once per machine kind, torch version and thread count, and kept in the user's cache folder."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from sash.cache import alone, forget, keep, kept_path, processor
from sash.cost._environment import environment
from sash.errors import InputError, MeasureError

_SCHEMA = "sash.rates/2"
_LIMIT_S = 120
"""A calibration takes ten seconds on an idle machine; a child that takes this long hangs."""
_OVERRIDE = "SASH_RATES"
"""Environment variable naming a file of rates to use instead of this machine's own."""


@dataclass(frozen=True)
class Rates:
    """Measured speeds of one kind of machine under one torch with one number of threads."""

    machine: str
    """Processor, instruction set and cores."""
    torch: str
    threads: int
    made_s: float
    """Seconds that measuring took."""
    values: Mapping[str, float] = field(hash=False)
    """By name; the last word of a name is the unit: `linear.f32.macs_per_s`, `operator.forward.s`."""

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def to_json(self) -> str:
        """The rates as JSON, which `read_rates` reads back without loss."""
        found = {"schema": _SCHEMA, "machine": self.machine, "torch": self.torch, "threads": self.threads, "made_s": self.made_s}
        return json.dumps({**found, "values": dict(self.values)}, indent=1, allow_nan=False)

    def __str__(self) -> str:
        head = (
            f"{self.machine}, torch {self.torch}, {self.threads} thread{'' if self.threads == 1 else 's'}; measured in {self.made_s:.1f} s"
        )
        width = max(map(len, self.values))
        return "\n".join([head, *(f"{name:<{width}}  {_written(name, value)}" for name, value in self.values.items())])


def calibrate(again: bool = False) -> Rates:
    """This machine's rates: those kept, or measured now in a process of its own (some ten seconds); `again` measures in any case.

    They are kept under `$XDG_CACHE_HOME/sash` (`~/.cache/sash`) for this kind of machine, this torch, this number of threads and
    the way that they wait (`$OMP_WAIT_POLICY`).
    The file that `$SASH_RATES` names, where it is set, is used instead. A kept file that cannot be read is measured anew.
    Raises `InputError` where the named file cannot be read, `MeasureError` where measuring fails.
    """
    named = os.environ.get(_OVERRIDE)
    if named and not again:
        return _named_rates(named)
    path = rates_path()
    with alone(path):
        found = None if again else _kept_rates(path)
        if found is None:
            found = _measured()
            keep(path, found.to_json())
            _kept_text.cache_clear()
    return found


def stored_rates() -> Rates | None:
    """The rates that a forecast would use without measuring; None where there are none."""
    named = os.environ.get(_OVERRIDE)
    return _named_rates(named) if named else _kept_rates(rates_path())


def forget_rates() -> bool:
    """Whether there were rates kept for this machine, torch and number of threads; they are deleted."""
    return forget(rates_path())


def rates_path() -> Path:
    """Where this machine's rates are kept."""
    # Threads that sleep while they wait take ten times as long to start together as threads that spin.
    waiting = os.environ.get("OMP_WAIT_POLICY", "").lower()
    words = f"{machine_kind()} torch {torch.__version__} {torch.get_num_threads()} threads {waiting}"
    return kept_path(words)


def read_rates(text: str) -> Rates:
    """The rates that `to_json` wrote; raises `InputError` naming what is missing or of another kind."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"this is not JSON ({error}); give what `sash calibrate --json` printed.") from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != _SCHEMA:
        raise InputError(f"the schema is {schema!r}; this version of sash reads {_SCHEMA!r}.")
    kinds: dict[str, Any] = {"machine": str, "torch": str, "threads": int, "made_s": (int, float), "values": dict}
    for name, kind in kinds.items():
        if not isinstance(found.get(name), kind) or isinstance(found[name], bool):
            raise InputError(f"{name} is {found.get(name)!r}; that is not what `sash calibrate --json` writes.")
    from sash.cost._laws import NAMES

    values = found["values"]
    for name in NAMES:
        value = values.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            raise InputError(f"the rate {name} is {value!r}; it is a number above 0.")
    kept = MappingProxyType({name: float(values[name]) for name in NAMES})
    return Rates(found["machine"], found["torch"], found["threads"], float(found["made_s"]), kept)


@lru_cache(maxsize=1)
def machine_kind() -> str:
    """Processor, instruction set and cores."""
    return " ".join(f"{environment().machine} {processor()} {os.cpu_count()} cores".split())


def _named_rates(named: str) -> Rates:
    try:
        return _kept_text(Path(named).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"${_OVERRIDE} names {named}, which cannot be read ({error}); unset it, or name what `sash calibrate --json` printed."
        ) from error
    except InputError as error:
        raise InputError(f"${_OVERRIDE} names {named}: {error}") from error


def _kept_rates(path: Path) -> Rates | None:
    try:
        found = _kept_text(path.read_text())
    except (OSError, UnicodeDecodeError, InputError):
        return None
    # A file that was copied from another machine, or that another torch left, is no measure of this one.
    mine = (found.machine, found.torch, found.threads) == (machine_kind(), torch.__version__, torch.get_num_threads())
    return found if mine else None


@lru_cache(maxsize=4)
def _kept_text(text: str) -> Rates:
    return read_rates(text)


def _measured() -> Rates:
    """Measured in a process of its own: this one's memory stays as it is, and what it has allocated does not disturb the figures."""
    command = [sys.executable, "-m", "sash.cost._calibration", str(torch.get_num_threads())]
    # Blocks stay with the process once it has them: what their pages cost is a rate of its own.
    kept = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
    environment = {**os.environ, **kept, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LIMIT_S, env=environment)
    except subprocess.TimeoutExpired:
        raise MeasureError(
            f"the calibrating process did not end within {_LIMIT_S} s; is the machine busy? Try again when it is idle."
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise MeasureError(f"the calibrating process ended with exit code {done.returncode}: {last}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    text = Rates(machine_kind(), torch.__version__, torch.get_num_threads(), found["made_s"], found["values"]).to_json()
    return read_rates(text)


_UNITS = (
    ("macs_per_s", 1e9, "GMAC/s"),
    ("bytes_per_s", 1e9, "GB/s"),
    ("s_per_byte", 1e-9, "ns/byte"),
    ("s_per_weight_byte", 1e-9, "ns/byte"),
    ("s_per_item", 1e-9, "ns/item"),
    ("s", 1e-6, "µs"),
    ("call_s", 1e-6, "µs"),
    ("start_s", 1e-6, "µs"),
)


def _written(name: str, value: float) -> str:
    scale, unit = next((scale, unit) for ending, scale, unit in _UNITS if name.rsplit(".", 1)[-1] == ending)
    return f"{value / scale:10.4g} {unit}"
