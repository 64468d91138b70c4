"""Principal components of made-up documents beside scikit-learn: time, memory, the exact number for a share, matrices on disk.

    python bench/pca.py                      every section; writes bench/results/pca.json
    python bench/pca.py --only top --only estimate      these; the rest of the file stays
    python bench/pca.py --only exact         90 % of counts and of tf-idf at full size: half an hour each or less, taken up where it ended
    python bench/pca.py --only filed         of counts in 1 GiB, where their Gram matrix is on disk
    python bench/pca.py --rows 4000          smaller; prints only
    python bench/pca.py --summary            the tables of what is there

top: 100 and 1000 components of 22,490 x 120,000 with 4.2 M numbers, sash, PCA(arpack) and TruncatedSVD in turn, each in a fresh process.
estimate: how many components 90 % takes, about. exact: the number itself, its vectors and all scores and loadings (float32) written.
filed: the same in a memory that the Gram matrix, 3.8 GiB, does not fit in. disk: a matrix in zarr, in 3 GiB, where it does not fit; the
seconds of a pass beside those of only reading it, and a forecast for 1e9 numbers. truth: 50 random cases, budget against growth. Files lie
in $SASH_BENCH_FOLDER, or a temporary folder; those of exact stay there until it is done.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from _arrays_rounds import folder
from _pca_child import ask
from _pca_data import COLUMNS, NNZ, ROWS, saved, stored
from rich.console import Console
from rich.table import Table

from sash.units import parse_bytes

RESULT = Path(__file__).resolve().parent / "results" / "pca.json"
OUTSIDE = "3 GiB"
"""In which 60 million numbers do not fit beside the vectors, as 1,000 million do not in 4 GiB."""
SMALL = "1 GiB"
"""A quarter of what the Gram matrix of all documents takes."""
ORDER = ("top", "estimate", "exact", "filed", "disk", "truth")
PACKAGES = ("sash", "numpy", "scipy", "numba", "scikit-learn", "zarr")
SHARE = 0.9


def sizes(rows: int | None) -> dict[str, int]:
    """Of the documents: all, or as many with columns and numbers in proportion."""
    return {} if rows is None else {"rows": rows, "columns": COLUMNS * rows // ROWS, "nnz": NNZ * rows // ROWS}


def place() -> Path:
    """Where files lie that outlast a run."""
    found = Path(os.environ.get("SASH_BENCH_FOLDER") or Path(tempfile.gettempdir()) / "sash-bench-pca")
    found.mkdir(parents=True, exist_ok=True)
    return found


def top_section(rows: int | None, rounds: int) -> dict[str, Any]:
    """Seconds and bytes of each, the median of rounds; of 100 components by nystrom, too."""
    source, found = str(saved(place(), **sizes(rows))), {}
    own_ways = {"nystrom": {"what": "sash", "words": {"method": "nystrom"}}}
    for count, peers, turns in ((100, ("nystrom", "arpack", "truncated"), rounds), (1000, ("arpack",), 1)):
        taken: dict[str, list[dict[str, Any]]] = {what: [] for what in ("sash", *peers)}
        for _ in range(turns):
            for what, own in taken.items():
                own.append(ask({"source": source, "in_memory": True, "what": what, "components": count, **own_ways.get(what, {})}))
                print(count, what, own[-1], flush=True)
        found[str(count)] = {what: {**own[-1], "wall_s": median(one["wall_s"] for one in own)} for what, own in taken.items()}
    return found


def estimate_section(rows: int | None) -> dict[str, Any]:
    """The estimate for counts and tf-idf."""
    source = str(saved(place(), **sizes(rows)))
    jobs = {weights: {"what": "estimate", "variance": SHARE, "words": {"weights": weights}} for weights in ("counts", "tfidf")}
    return {weights: ask({"source": source, "in_memory": True, **job}) for weights, job in jobs.items()}


def exact_section(rows: int | None, only: str | None, budget: str = "8 GB") -> dict[str, Any]:
    """All components of 90 %, into a folder; a run that was ended is taken up by the same command."""
    source, found = str(saved(place(), **sizes(rows))), {}
    for weights in ("counts", "tfidf") if only is None else (only,):
        out = place() / f"{Path(source).stem}-{weights}-{budget.replace(' ', '')}.zarr"
        # Taken up, if an earlier run was interrupted; its seconds are then not the whole.
        again = out.with_name(out.name + ".partial").exists()
        words = {"weights": weights, "out": str(out), "budget": budget, "method": "gram", "loadings": "float32", "overwrite": True}
        found[weights] = {
            **ask({"source": source, "what": "sash", "variance": SHARE, "words": {**words, "progress": True}}),
            "taken_up": again,
        }
        print(weights, found[weights], flush=True)
        if "error_text" not in found[weights]:
            import shutil

            shutil.rmtree(out)
    return found


def disk_section(rows: int | None) -> dict[str, Any]:
    """A pass of products beside one that only reads, on a twentieth of ten million rows; and what all of them would take."""
    import numpy as np

    from sash.arrays import pca
    from sash.arrays._centred import Centred
    from sash.arrays._loadings import Kept
    from sash.arrays._matrix_open import open_matrix
    from sash.arrays._moments import moments
    from sash.arrays._pca_choose import choose
    from sash.arrays._pca_store import writing_bytes
    from sash.arrays._pca_ways import Asked
    from sash.arrays._rates import array_rates
    from sash.arrays._sweep import Sweep

    count, columns, each, full = rows or 600_000, 500_000, 100, 10_000_000
    with folder(count * each * 8 + (1 << 30)) as here:
        path = stored(here, count, columns, each)
        plan = pca(path, 50, budget=OUTSIDE, workers=2, method="krylov", out=here / "m.zarr", plan_only=True)
        matrix = open_matrix(path, budget_bytes=64 << 20)
        asked = Asked(50, None, 1e-6, True, Kept(np.dtype(np.float64)), 50, columns)
        way = choose(matrix, asked, parse_bytes(OUTSIDE), 2, "krylov", array_rates(), writing_bytes(count, 50))[0]
        sweep = Sweep(matrix, way.workers, way.stored)
        read, products = list[tuple[float, float]](), list[tuple[float, float]]()

        def reads(start: int, stop: int, lane: int) -> None:
            matrix.block(start, stop)

        centred = Centred(sweep, moments(sweep, False), False)
        vectors = np.random.default_rng(0).standard_normal((centred.side, way.block))
        # What is compiled or loaded once is no part of a pass.
        centred.gram(vectors)
        for _ in range(7):
            for passes, work in ((read, lambda: sweep.run(reads)), (products, lambda: centred.gram(vectors))):
                forgotten(path)
                began, before = time.perf_counter(), time.process_time()
                work()
                passes.append((time.perf_counter() - began, time.process_time() - before))
        matrix.close()
        began = time.perf_counter()
        words = {"budget": OUTSIDE, "out": str(here / "m.zarr"), "overwrite": True}
        found, few = (
            ask({"source": str(path), "what": "sash", "components": 50, "words": {**words, "method": method}})
            for method in ("krylov", "nystrom")
        )
    scale = full / count
    return {
        "rows": count, "columns": columns, "numbers": count * each, "block": way.block, "block_numbers": way.stored,
        "read_s": min(read)[0], "pass_s": min(products)[0], "ratio": min(products)[0] / min(read)[0],
        "median_ratio": median(wall_s for wall_s, _ in products) / median(wall_s for wall_s, _ in read),
        "read_cpu_s": median(cpu_s for _, cpu_s in read), "pass_cpu_s": median(cpu_s for _, cpu_s in products),
        "run": found, "run_nystrom": few, "plan_peak_bytes": plan.peak_bytes, "plan_passes": plan.passes,
        "forecast_full_s": found.get("wall_s", float("nan")) * scale, "forecast_full_pass_s": min(products)[0] * scale,
    }  # fmt: skip


def forgotten(path: Path) -> None:
    """The system forgets what it read of a folder's files: a pass over what is larger than memory finds nothing there."""
    for file in path.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def truth_section(cases: int) -> dict[str, Any]:
    """Random cases: the forecast peak beside the growth of a fresh process, or a refusal whose least budget runs."""
    from _pca_truth import compiled, row_of

    compiled()
    rows = []
    for index in range(cases):
        rows.append(row_of(index))
        print(
            index,
            {key: rows[-1].get(key) for key in ("kept", "method", "peak_bytes", "growth_bytes", "held_to_bytes", "error_text")},
            flush=True,
        )
    ratios = sorted(row["peak_bytes"] / max(row["growth_bytes"], 1) for row in rows if "peak_bytes" in row)
    return {
        "cases": cases,
        "kept": sum(row["kept"] for row in rows),
        "least_ratio": ratios[0],
        "median_ratio": median(ratios),
        "rows": rows,
    }


def show(name: str, found: dict[str, Any]) -> None:
    """A section's table, and what misses its aim."""
    table = Table(title=name, title_justify="left")
    aims: list[tuple[str, float, float, bool]] = []
    if name == "top":
        for heading in ("components", "what", "seconds", "MB grown", "worst residual"):
            table.add_column(heading)
        for count, rows in found.items():
            for what, row in rows.items():
                worst = f"{row['worst_residual']:.1e}" if "worst_residual" in row else ""
                table.add_row(count, what, f"{row['wall_s']:.2f}", f"{row['growth_bytes'] / 1e6:.0f}", worst)
        few, many = found["100"], found["1000"]
        aims = [
            ("k = 100: arpack / sash", few["arpack"]["wall_s"] / few["sash"]["wall_s"], 2, True),
            ("k = 100: TruncatedSVD / sash", few["truncated"]["wall_s"] / few["sash"]["wall_s"], 5, True),
            ("k = 100: MB grown", few["sash"]["growth_bytes"] / 1e6, 700, False),
            ("k = 100: worst residual", few["sash"]["worst_residual"], 1e-6, False),
            ("k = 1000: arpack / sash", many["arpack"]["wall_s"] / many["sash"]["wall_s"], 4, True),
        ]
    elif name in ("estimate", "exact", "filed"):
        for heading in ("weights", "components", "share", "share of one less", "seconds", "GB grown"):
            table.add_column(heading)
        for weights, row in found.items():
            told = str(row.get("components", f"{row.get('low')} .. {row.get('likely')} .. {row.get('high')}"))
            shares = [f"{row[key]:.10f}" if key in row else "" for key in ("share", "share_before")]
            table.add_row(weights, told, *shares, f"{row['wall_s']:.1f}", f"{row['growth_bytes'] / 1e9:.2f}")
            aims.append((f"{weights}: seconds", row["wall_s"], 60 if name == "estimate" else 1800, False))
            if name != "estimate":
                kept = 8 if name == "exact" else parse_bytes(SMALL) / 1e9
                aims.append((f"{weights}: GB grown", row["growth_bytes"] / 1e9, kept, False))
    elif name == "disk":
        table.add_column("figure")
        table.add_column("value")
        for key, value in found.items():
            table.add_row(key, json.dumps(value))
        aims = [("a pass by reading", found["ratio"], 1.5, False)]
    else:
        table.add_column("figure")
        table.add_column("value")
        for key in ("cases", "kept", "least_ratio", "median_ratio"):
            table.add_row(key, f"{found[key]:.3g}")
        aims = [("kept", found["kept"], found["cases"], True), ("least forecast / growth", found["least_ratio"], 1, True)]
    Console(width=140).print(table)
    for told, value, aim, least in aims:
        if value < aim if least else value > aim:
            print(f"MISSED: {told} is {value:.3g}; the aim is {aim:g}")


def setting() -> dict[str, Any]:
    """On what the numbers were made."""
    return {"versions": {name: importlib.metadata.version(name) for name in PACKAGES}, "python": platform.python_version(), "threads": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=ORDER)
    parser.add_argument("--rows", type=int, help="of the documents, with the rest in proportion; prints only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--weights", choices=("counts", "tfidf"), help="of exact; the other's row stays")
    parser.add_argument("--summary", action="store_true")
    asked = parser.parse_args()
    for name, value in (("OMP_NUM_THREADS", "2"), ("OPENBLAS_NUM_THREADS", "2"), ("OMP_WAIT_POLICY", "PASSIVE")):
        os.environ.setdefault(name, value)
    kept: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"sections": {}}
    for name in asked.only or ORDER:
        if asked.summary:
            if name in kept["sections"]:
                show(name, kept["sections"][name]["found"])
            continue
        began = time.perf_counter()
        given = {
            "top": lambda: top_section(asked.rows, asked.rounds),
            "estimate": lambda: estimate_section(asked.rows),
            "exact": lambda: exact_section(asked.rows, asked.weights),
            "filed": lambda: exact_section(asked.rows, "counts", SMALL),
            "disk": lambda: disk_section(asked.rows),
            "truth": lambda: truth_section(asked.cases),
        }[name]()
        show(name, given)
        print(f"{name}: {(time.perf_counter() - began) / 60:.1f} minutes", flush=True)
        if asked.rows is None and asked.cases == 50:
            kept = json.loads(RESULT.read_text()) if RESULT.exists() else {"sections": {}}
            if name == "exact":
                # Half an hour each: the other may be of another day.
                given = {**kept["sections"].get(name, {"found": {}})["found"], **given}
            both = {**kept["sections"], name: {"found": given, "setting": setting()}}
            fresh = RESULT.with_suffix(".fresh")
            fresh.write_text(json.dumps({"sections": {key: both[key] for key in ORDER if key in both}}, indent=1) + "\n")
            fresh.replace(RESULT)


if __name__ == "__main__":
    main()
