"""One decomposition in a process of its own: `python bench/_pca_child.py JOB`, a job as JSON; the last line printed is the answer.

A job: `source`, a path; `what`, sash, estimate, arpack or truncated; `components` or `variance`; `words` for sash. Memory is that of
`_arrays_probe.py`: resident at most over the level after imports, after the matrix was read, where it is (`in_memory`), and after a small
matrix was decomposed the same way.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _arrays_probe import level_bytes, status_bytes


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds, bytes, and what was found."""
    import numpy as np
    import scipy.sparse

    from sash import arrays

    source: Any = scipy.sparse.csr_array(scipy.sparse.load_npz(job["source"])) if job.get("in_memory") else job["source"]
    count, share, words = job.get("components"), job.get("variance"), {"workers": 2, "progress": None, **job.get("words", {})}
    small = scipy.sparse.random_array((300, 400), density=0.1, rng=np.random.default_rng(0), format="csr")

    def run(matrix: Any, components: int | None) -> Any:
        if job["what"] == "sash":
            return arrays.pca(matrix, components, None if components else share, **words)
        if job["what"] == "estimate":
            return arrays.estimate_components(matrix, share, workers=2, **job.get("words", {}))
        from sklearn.decomposition import PCA, TruncatedSVD

        model = (
            PCA(components, svd_solver="arpack", random_state=0) if job["what"] == "arpack" else TruncatedSVD(components, random_state=0)
        )
        return model, model.fit_transform(matrix)

    if words.get("out") is None:
        run(small, min(count, 20) if count else None)
    else:
        warm(words)
    level = level_bytes()
    began = time.perf_counter()
    found = run(source, count)
    found_s = time.perf_counter() - began
    told: dict[str, Any] = {"wall_s": found_s, "growth_bytes": status_bytes("VmHWM") - level, "resident_bytes": status_bytes("VmHWM")}
    if job["what"] == "sash":
        ratio = found.explained_variance_ratio
        told |= {
            "components": len(ratio),
            "method": found.method,
            "worst_residual": float(found.residuals.max()),
            "share": float(ratio.sum()),
            "share_before": float(ratio[:-1].sum()),
            "singular_values": found.singular_values[[0, 1, len(ratio) // 2, -1]].tolist(),
        }
    elif job["what"] == "estimate":
        told |= json.loads(found.to_json())
    else:
        told["singular_values"] = found[0].singular_values_[[0, 1, count // 2, -1]].tolist()
    return told


def warm(words: dict[str, Any]) -> None:
    """Components of a small matrix to a folder, by all that they are found by: with its Gram matrix in memory, and on disk."""
    import numpy as np
    import scipy.sparse

    from sash import DoesNotFit
    from sash.arrays import pca

    small = scipy.sparse.random_array((520, 600), density=0.1, rng=np.random.default_rng(0), format="csr")
    with tempfile.TemporaryDirectory() as folder:
        least = {**words, "out": str(Path(folder) / "small.zarr"), "overwrite": True, "progress": False}
        pca(small, 20, **{**least, "budget": "1 GiB"})
        try:
            pca(small, 20, **{**least, "budget": 1})
        except DoesNotFit as error:
            pca(small, 20, **{**least, "budget": error.least_bytes})


def ask(job: dict[str, Any], limit_s: float = 7200) -> dict[str, Any]:
    """The answer of a fresh process; progress goes to this one's stderr."""
    command = [sys.executable, "-W", "ignore", __file__, json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=limit_s, cwd=Path(__file__).parent)
    if done.returncode:
        return {"error_text": f"exit code {done.returncode}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(answer(json.loads(sys.argv[1]))))
