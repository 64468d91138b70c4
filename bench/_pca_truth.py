"""Random cases of principal components: what the budget was, what the process grew by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import scipy.sparse
from _arrays_probe import WORKERS, ask
from _arrays_rounds import folder


def row_of(index: int) -> dict[str, Any]:
    """A case: shape, density, format, what is asked, and a budget, ample or in every second case near the least; and its answer."""
    random = np.random.default_rng([6, index])
    rows, columns = (int(10 ** random.uniform(2, 3.6)) for _ in range(2))
    kind = str(random.choice(["npz", "mtx", "npy", "zarr"]))
    matrix: Any = scipy.sparse.random_array((rows, columns), density=float(10 ** random.uniform(-2.3, -0.7)), rng=random, format="csr")
    most = min(rows - 1, columns)
    words: dict[str, Any] = {"weights": str(random.choice(["counts", "tfidf"])), "scale": bool(random.random() < 0.3)}
    if random.random() < 0.3:
        words["variance"] = round(float(random.uniform(0.2, 0.95)), 2)
    else:
        words["components"] = int(min(10 ** random.uniform(0.3, 2), most))
    with folder() as place:
        source, small, middle = (place / f"{name}.{kind}" for name in ("matrix", "small", "middle"))
        # Of a side from 512 on a Gram matrix may lie on disk.
        others = scipy.sparse.random_array((530, 600), density=0.05, rng=random, format="csr")
        for path, own in ((source, matrix), (small, matrix[:60, :50] + scipy.sparse.csr_array(np.eye(60, 50))), (middle, others)):
            _write(path, scipy.sparse.csr_array(own))
        filed = bool(random.random() < 0.5)
        job: dict[str, Any] = {"operation": "pca", "source": str(source), "out": str(place / "out.zarr") if filed else None, "words": words}
        warm = {**words, **({"components": 5} if "components" in words else {})}
        job["warm"] = [
            {**job, "source": str(path), "words": {**warm, "method": method}, "out": str(place / "warm.zarr") if filed else None}
            for path, method in ((small, "krylov"), (small, "gram"), (middle, "gram"))
        ]
        job["budget"] = int(2 ** random.uniform(24.5, 29))
        if random.random() < 0.3:
            # Unit vectors of so many columns have numbers of about one by the root of it.
            words["loadings_above"] = round(float(random.uniform(0.5, 5)) / columns**0.5, 4)
            for warm_job in job["warm"]:
                warm_job["words"]["loadings_above"] = words["loadings_above"]
        if index % 2:
            job["budget"] = int(_least(job) * random.uniform(1, 2))
        found = ask(job, 600)
    kept = "error_text" not in found and found["growth_bytes"] <= found["held_to_bytes"]
    told = {key: value for key, value in found.items() if key not in ("shape", "dtype", "read_by_file", "written_by_file")}
    return {"rows": rows, "columns": columns, "kind": kind, "filed": filed, "budget": job["budget"], **words, **told, "kept": kept}


def compiled() -> None:
    """A job whose Gram matrix lies on disk, which the small warm ones do not reach: what it compiles stays in numba's cache, as libraries
    do on a machine where sash has run before."""
    from sash import DoesNotFit
    from sash.arrays import pca

    matrix = np.random.default_rng(0).standard_normal((600, 520))
    with folder() as place:
        words: dict[str, Any] = {"method": "gram", "out": place / "out.zarr", "progress": False}
        try:
            pca(matrix, 5, budget=1, **words)
        except DoesNotFit as error:
            pca(matrix, 5, budget=error.least_bytes, **words)


def _least(job: dict[str, Any]) -> int:
    """Bytes that the job can be done in."""
    from sash import DoesNotFit
    from sash.arrays import pca

    try:
        pca(job["source"], out=job["out"], budget=1, workers=WORKERS, plan_only=True, **job["words"])
    except DoesNotFit as error:
        return error.least_bytes
    raise AssertionError("a byte is enough")


def _write(path: Path, matrix: scipy.sparse.csr_array) -> None:
    if path.suffix == ".npz":
        scipy.sparse.save_npz(path, matrix)
    elif path.suffix == ".mtx":
        scipy.io.mmwrite(path, matrix)
    elif path.suffix == ".npy":
        np.save(path, matrix.toarray().astype(np.float32))
    else:
        import zarr

        group = zarr.create_group(path, attributes={"encoding-type": "csr_matrix", "shape": list(matrix.shape)})
        for name in ("data", "indices", "indptr"):
            group.create_array(name, data=getattr(matrix, name))
