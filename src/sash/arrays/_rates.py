"""How fast this machine filters and transforms: measured once per machine kind, numba, torch and number of threads, and kept."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from sash.arrays._running import processors
from sash.cache import alone, forget, keep, kept_path, processor
from sash.errors import InputError, SashError

_SCHEMA = "sash.array-rates/2"
_OVERRIDE = "SASH_ARRAY_RATES"
"""Environment variable naming a file of rates to use instead of this machine's own."""
_LIMIT_S = 300
"""A calibration takes two seconds; the first one after an installation compiles as well."""
SIDES = {"f32": (256, 1024, 4096), "f64": (256, 1024)}
"""Of tiles whose transforms are measured, by the type of numbers."""
KINDS = ("f32", "f64")
SPLINE_FEATURES = ("sample", "tap", "between", "thinned")
"""Of a plane between two rates, by the names of their rates: `_choose.spline_features`."""
MATRIX_FEATURES = ("pair", "flop", "byte")
"""Of matrices: a number of a sparse one times one of a vector, some at once; an operation of a dense product; a byte that is read."""
_FILTERS = ("taps.sample_s", "taps.tap_s", *(f"splines.{name}_s" for name in SPLINE_FEATURES))
NAMES = (
    "job.s",
    "pass.s",
    *(f"matrix.{name}_s" for name in MATRIX_FEATURES),
    *(f"{kind}.{name}" for kind in KINDS for name in _FILTERS),
    *(f"{kind}.fft.{side}.sample_s" for kind in KINDS for side in SIDES[kind]),
)


@dataclass(frozen=True)
class ArrayRates:
    """Seconds of one thread, while all threads work."""

    machine: str
    versions: str
    """Of numba and torch."""
    threads: int
    made_s: float
    """Seconds that measuring took."""
    values: Mapping[str, float] = field(hash=False)

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def to_json(self) -> str:
        """The rates as JSON, which `read_array_rates` reads back without loss."""
        found = {"schema": _SCHEMA, "machine": self.machine, "versions": self.versions, "threads": self.threads, "made_s": self.made_s}
        return json.dumps({**found, "values": dict(self.values)}, indent=1, allow_nan=False)

    def __str__(self) -> str:
        head = f"arrays: {self.machine}, {self.versions}, {self.threads} threads; measured in {self.made_s:.1f} s"
        width = max(map(len, self.values))
        shown = (f"{name:<{width}}  {value * 1e9:10.4g} ns" for name, value in self.values.items())
        return "\n".join([head, *shown])


def array_rates(again: bool = False) -> ArrayRates:
    """This machine's rates: those kept, or measured now in a process of its own (some two seconds); `again` measures in any case.

    They are kept under `$XDG_CACHE_HOME/sash` (`~/.cache/sash`). The file that `$SASH_ARRAY_RATES` names, where it is set, is used
    instead. Raises `InputError` where that cannot be read, `SashError` where measuring fails.
    """
    if not again and (named := os.environ.get(_OVERRIDE)):
        return _named(named)
    path = array_rates_path()
    found = None if again else _kept(path)
    if found is not None:
        return found
    with alone(path):
        found = None if again else _kept(path)
        if found is None:
            found = _measured()
            keep(path, found.to_json())
            _read_once.cache_clear()
    return found


def stored_array_rates() -> ArrayRates | None:
    """The rates that a plan would use without measuring; None where there are none."""
    named = os.environ.get(_OVERRIDE)
    return _named(named) if named else _kept(array_rates_path())


def forget_array_rates() -> bool:
    """Whether there were rates kept for this machine, its libraries and number of threads; they are deleted."""
    return forget(array_rates_path())


def array_rates_path() -> Path:
    """Where this machine's rates are kept."""
    machine, versions, threads = _here()
    return kept_path(f"arrays {machine} {versions} {threads} threads")


def read_array_rates(text: str) -> ArrayRates:
    """The rates that `to_json` wrote; raises `InputError` naming what is missing or of another kind."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"this is not JSON ({error}); give what `sash calibrate --json` printed.") from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != _SCHEMA:
        raise InputError(f"the schema is {schema!r}; this version of sash reads {_SCHEMA!r}.")
    for name, kind in {"machine": str, "versions": str, "threads": int, "made_s": (int, float), "values": dict}.items():
        if not isinstance(found.get(name), kind) or isinstance(found[name], bool):
            raise InputError(f"{name} is {found.get(name)!r}; that is not what `sash calibrate --json` writes.")
    values = found["values"]
    for name in NAMES:
        value = values.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            raise InputError(f"the rate {name} is {value!r}; it is a number above 0.")
    kept = MappingProxyType({name: float(values[name]) for name in NAMES})
    return ArrayRates(found["machine"], found["versions"], found["threads"], float(found["made_s"]), kept)


@lru_cache(maxsize=1)
def _here() -> tuple[str, str, int]:
    """Machine, versions, and threads."""
    machine = " ".join(f"{platform.machine()} {processor()} {os.cpu_count()} cores".split())
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("numba", "torch"))
    return machine, versions, processors()


def _named(named: str) -> ArrayRates:
    try:
        return _read_once(Path(named).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"${_OVERRIDE} names {named}, which cannot be read ({error}); unset it, or name a file of rates.") from error
    except InputError as error:
        raise InputError(f"${_OVERRIDE} names {named}: {error}") from error


def _kept(path: Path) -> ArrayRates | None:
    try:
        found = _read_once(path.read_text())
    except (OSError, UnicodeDecodeError, InputError):
        return None
    # A file that was copied from another machine is no measure of this one.
    return found if (found.machine, found.versions, found.threads) == _here() else None


@lru_cache(maxsize=4)
def _read_once(text: str) -> ArrayRates:
    return read_array_rates(text)


def _measured() -> ArrayRates:
    """Measured in a process of its own: this one's memory stays as it is."""
    machine, versions, threads = _here()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "sash.arrays._calibration", str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LIMIT_S, env=environment)
    except subprocess.TimeoutExpired:
        raise SashError(
            f"the calibrating process did not end within {_LIMIT_S} s; is the machine busy? Try again when it is idle."
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise SashError(f"the calibrating process ended with exit code {done.returncode}: {last}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return read_array_rates(ArrayRates(machine, versions, threads, found["made_s"], found["values"]).to_json())
