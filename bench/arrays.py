"""Array jobs beside what people use in their place: time, memory against the budget, and what is left after a kill.

    python bench/arrays.py                          every section; writes bench/results/arrays.json
    python bench/arrays.py --only blur --only flat  these; the rest of the file stays
    python bench/arrays.py --only huge --side 16384 another size, or --cases 20: prints only
    python bench/arrays.py --only truth --jobs 2    so many processes at once, where no time is measured
    python bench/arrays.py --summary                the tables of what is there

A section NAME is `_arrays_NAME.py`: `NAME_section` measures, `show_NAME` prints, `missed_NAME` has a line for each figure that misses its
aim. Its docstring says what is measured, and how. Each section is stored with the versions and the machine it was made on. `truth` and
`kill` go on where they were interrupted, as long as sash.arrays and the bench are unchanged. Files lie in a temporary folder, below
$SASH_BENCH_FOLDER where that is set, and are taken away again.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import inspect
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any

from _arrays_kept import Kept

BENCH = Path(__file__).resolve().parent
RESULT = BENCH / "results" / "arrays.json"
ORDER = ("blur", "flat", "convolve", "volume", "huge", "truth", "stft", "kill", "deconvolve", "dask", "chooser")
PACKAGES = (
    "sash", "numpy", "scipy", "torch", "numba", "zarr", "tifffile", "soundfile", "dask", "opencv-python-headless", "librosa",
)  # fmt: skip
THREADS = 2
WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads sleep at barriers: methods take turns, and one that spins would take the next one's core."""


def sections() -> tuple[str, ...]:
    """Those whose file is there; deconvolution, where sash has it."""
    there = (BENCH.parent / "src" / "sash" / "arrays" / "__init__.py").read_text()
    return tuple(name for name in ORDER if (BENCH / f"_arrays_{name}.py").exists() and (name != "deconvolve" or f'"{name}"' in there))


def setting() -> dict[str, Any]:
    """On what the numbers were made."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    facts = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.partition(":")[2].strip() for line in facts if line.startswith("model name")), platform.machine())
    waiting = {name: os.environ.get(name, value) for name, value in WAITING.items()}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "versions": versions,
        "python": platform.python_version(),
        "threads": THREADS,
        **waiting,
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_bytes": memory,
    }


def measured(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """A section's numbers."""
    section = getattr(importlib.import_module(f"_arrays_{name}"), f"{name}_section")
    takes = inspect.signature(section).parameters
    words = {key: value for key, value in vars(asked).items() if key in takes and value is not None}
    if "kept" in takes:
        words["kept"] = Kept.of(name, setting(), store=not special(asked))
    found = section(**words)
    if "kept" in takes:
        words["kept"].remove()
    return found


def special(asked: argparse.Namespace) -> bool:
    """Whether sizes are not the stated ones, so that nothing is written."""
    return any(getattr(asked, key) is not None for key in ("side", "cases", "rounds"))


def show(name: str, found: dict[str, Any]) -> None:
    """A section's table, and what misses its aim."""
    module = importlib.import_module(f"_arrays_{name}")
    getattr(module, f"show_{name}")(found)
    for line in getattr(module, f"missed_{name}", lambda found: [])(found):
        print(f"MISSED: {line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sections(), metavar="NAME", help=f"this section: {', '.join(sections())}")
    parser.add_argument("--side", type=int, help="of the pictures, where a section has one size; prints only")
    parser.add_argument("--cases", type=int, help="so many cases of a section that has many; prints only")
    parser.add_argument("--rounds", type=int, help="of what is timed; prints only")
    parser.add_argument("--jobs", type=int, help="cases at once, where no time is measured")
    parser.add_argument("--summary", action="store_true", help="measure nothing; print what is there")
    asked = parser.parse_args()
    for key, value in WAITING.items():
        os.environ.setdefault(key, value)
    # Temporary files are taken away when this is ended, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    kept: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"sections": {}}
    for name in asked.only or sections():
        if asked.summary:
            if name in kept["sections"]:
                show(name, kept["sections"][name])
            continue
        began = time.perf_counter()
        found = measured(name, asked)
        show(name, found)
        print(f"{name}: {(time.perf_counter() - began) / 60:.1f} minutes", file=sys.stderr, flush=True)
        if not special(asked):
            kept = json.loads(RESULT.read_text()) if RESULT.exists() else {"sections": {}}
            both = {**kept["sections"], name: {**found, "setting": setting()}}
            fresh = RESULT.with_suffix(".fresh")
            fresh.write_text(json.dumps({"sections": {key: both[key] for key in ORDER if key in both}}, indent=1) + "\n")
            fresh.replace(RESULT)


if __name__ == "__main__":
    main()
