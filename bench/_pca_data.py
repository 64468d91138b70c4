"""Documents made up: words by Zipf's law, some of them by topics, of which a few are frequent; and a matrix larger than memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

ROWS, COLUMNS, NNZ = 22_490, 120_000, 4_200_000


def documents(rows: int = ROWS, columns: int = COLUMNS, nnz: int = NNZ, topics: int = 1000, seed: int = 0) -> scipy.sparse.csr_array:
    """Counts: three topics a document, of a thousand words each, make two fifths of its words."""
    random = np.random.default_rng(seed)
    words = np.cumsum(1 / (np.arange(columns) + 2.7) ** 1.05)
    ranks = np.cumsum(1 / (np.arange(1000) + 2.7))
    liked = np.cumsum(1 / (np.arange(topics) + 5) ** 0.8)
    own = np.minimum((columns * random.random((topics, 1000)) ** 1.5).astype(np.int64), columns - 1)
    length = random.lognormal(0, 0.7, rows)
    # Words are drawn until so many different ones are there, about.
    lengths = np.maximum(random.poisson(length / length.mean() * 1.25 * nnz / rows), 1)
    document = np.repeat(np.arange(rows), lengths)
    word = _drawn(words, random, len(document))
    about = _drawn(liked, random, (rows, 3))
    topical = random.random(len(document)) < 0.4
    count = int(topical.sum())
    word[topical] = own[about[document[topical], random.integers(0, 3, count)], _drawn(ranks, random, count)]
    made = scipy.sparse.coo_array((np.ones(len(document)), (document, word)), shape=(rows, columns)).tocsr()
    made.sum_duplicates()
    return scipy.sparse.csr_array(made)


def _drawn(sums: np.ndarray, random: np.random.Generator, count: Any) -> np.ndarray:
    return np.minimum(np.searchsorted(sums, random.random(count) * sums[-1]), len(sums) - 1)


def saved(folder: Path, **sizes: int) -> Path:
    """The documents in a file, made where it is not there."""
    path = folder / f"docs-{'-'.join(str(value) for value in sizes.values()) or 'full'}.npz"
    if not path.exists():
        fresh = path.with_suffix(".fresh.npz")
        scipy.sparse.save_npz(fresh, documents(**sizes), compressed=False)
        fresh.replace(path)
    return path


def stored(folder: Path, rows: int, columns: int, each: int, block: int = 20_000) -> Path:
    """A sparse matrix in zarr, written block by block: `each` numbers a row, of columns by Zipf's law; float32 and int32."""
    import zarr

    path = folder / f"large-{rows}-{columns}-{each}.zarr"
    if path.exists():
        return path
    fresh = path.with_name(path.name + ".fresh.zarr")
    group = zarr.create_group(fresh, overwrite=True, attributes={"encoding-type": "csr_matrix", "shape": [rows, columns]})
    words: dict[str, Any] = {"chunks": (1 << 20,), "compressors": None}
    data = group.create_array("data", shape=(rows * each,), dtype=np.float32, **words)
    indices = group.create_array("indices", shape=(rows * each,), dtype=np.int32, **words)
    random = np.random.default_rng(0)
    for start in range(0, rows, block):
        count = min(block, rows - start)
        at = np.minimum(columns ** random.random((count, each)), columns - 1).astype(np.int64)
        # No column twice in a row: those that are move on to the next that is free.
        at.sort(axis=1)
        at = np.maximum.accumulate(at - np.arange(each), axis=1) + np.arange(each)
        over = np.maximum(at[:, -1:] - (columns - 1), 0)
        at = np.minimum(at, columns - each + np.arange(each) - 0 * over)
        own = slice(start * each, (start + count) * each)
        indices[own] = at.reshape(-1).astype(np.int32)
        data[own] = random.random(count * each, dtype=np.float32) + 0.5
    group.create_array("indptr", data=np.arange(0, rows * each + 1, each, dtype=np.int64))
    fresh.rename(path)
    return path
