"""Principal components: what users see of them, and of how they will be found."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from sash.arrays._loadings import dense_loadings
from sash.arrays._pca_estimate import ComponentsEstimate
from sash.arrays._pca_scores import scores_of
from sash.arrays._pca_store import Written
from sash.arrays._plan import ArrayPlan
from sash.arrays._running import Options
from sash.arrays._topics_result import TopicModel
from sash.arrays._weights import Weights
from sash.units import format_bytes, format_seconds


@dataclass(frozen=True)
class PcaPlan(ArrayPlan):
    """Principal components before they are found; the error is a residual by its component's singular value.

    Passes are those over the open matrix: of "gram" and "nystrom" as many as there will be, where the number of components is known; of the
    others about as many. What opening it, counting terms and an early estimate read comes before.
    """

    components: int | None = None
    """None where their number follows from a share of the variance."""
    variance: float | None = None
    estimate: ComponentsEstimate | None = None
    """How many components that takes, where it was told beforehand."""
    disk_bytes: int = 0
    """Taken beside the output, or in the folder for temporary files, until it is whole: by a Gram matrix that is larger than memory."""
    loadings_above: float | None = None
    """The size above which loadings are kept; None where all are."""
    loadings_most: int = 0
    """That are kept of a component, at most."""

    def __str__(self) -> str:
        count = f"{self.components} components" if self.components else f"the components of {self.variance:.6g} of the variance"
        read = f"{format_bytes(self.read_bytes)} in {self.passes} passes" if self.read_bytes else "held in memory"
        lines = [
            f"{self.operation}: {count}, by {self.method}",
            f"input     {self.shape[0]} rows, {read}",
            f"peak      {format_bytes(self.peak_bytes)} of a budget of {format_bytes(self.budget_bytes)}, {self.workers} threads",
            "residuals " + ("told after the run" if isnan(self.error) else f"at most {self.error:.1e} of each singular value"),
        ]
        if self.estimate is not None:
            lines.insert(1, f"number    {self.estimate}")
        if self.disk_bytes:
            lines.append(f"disk      {format_bytes(self.disk_bytes)} for the Gram matrix, until all is done")
        if self.loadings_above is not None:
            lines.append(f"loadings  above {self.loadings_above:g} alone, at most {self.loadings_most:,} of a component")
        if self.wall_s is not None:
            lines.append(f"time      {format_seconds(self.wall_s)}, by forecast")
        lines += [f"  {method.name}: {method.verdict}" for method in self.methods]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class PCA:
    """Principal components of the rows of a matrix, the one that explains most first.

    Where they were written to a folder, `components` and `scores` are its zarr arrays, which are read as they are sliced.
    """

    components: Any
    """(components, columns): unit vectors, of which the largest number is positive. A sparse array where only the largest are kept; in a
    folder slices of it are."""
    singular_values: np.ndarray
    """Of the centred (and scaled) matrix."""
    explained_variance: np.ndarray
    """Squares of the singular values by rows - 1."""
    explained_variance_ratio: np.ndarray
    """By the total variance, of which they may be a part."""
    mean: np.ndarray
    """Of columns, as weighed."""
    scale: np.ndarray | None
    """What centred columns were multiplied by; None where they were left as they are."""
    scores: Any
    """(rows, components): the centred rows along the components."""
    residuals: np.ndarray
    """How far the matrix takes each component from its scores, by the singular value: an eigenvector of the covariance is that near."""
    total_variance: float
    """Of all columns; exact."""
    method: str
    weights: Weights = "counts"
    idf: np.ndarray | None = field(default=None, repr=False)
    """What "tfidf" multiplies counts by."""
    names: tuple[str, ...] | None = field(default=None, repr=False)
    """Of columns."""
    out: Path | None = None
    loadings_above: float | None = None
    """The size above which loadings are kept; None where all are."""
    left_out: np.ndarray | None = None
    """The length of what is not kept of each component, of which the whole length is 1; None where all is."""
    shortfall: float | None = None
    """Of "nystrom": what each explained variance is below the true one, at most, but for rounding."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> PCA:
        """Those that `pca` wrote to a folder; raises `InputError` for what is none, or not whole."""
        found = Written.of(Path(path))
        told = found.attributes
        return cls(
            components=found.components,
            scores=found.scores,
            mean=found.vectors["mean"],
            scale=found.vectors.get("scale"),
            idf=found.vectors.get("idf"),
            total_variance=told["total_variance"],
            method=told["method"],
            weights=told["weights"],
            names=tuple(told["names"]) if "names" in told else None,
            loadings_above=told.get("loadings_above"),
            shortfall=told.get("shortfall"),
            out=Path(path),
            **found.small,
        )

    def transform(
        self,
        rows: Any,
        out: str | os.PathLike[str] | None = None,
        *,
        budget: str | int = "2 GiB",
        workers: int | None = None,
        overwrite: bool = False,
        progress: bool | None = False,
    ) -> Any:
        """Scores of other rows with the same columns, (rows, components): weighed, centred and scaled as these were.

        `rows` are an array, a sparse matrix, or any file that `pca` reads; a block of them is read at a time, and what is held stays within
        `budget` bytes, the scores themselves among it. With `out`, a name that ends in .npy, these go to that file, which appears when it
        is whole, and its path is returned. Where only the largest loadings are kept, a score is off by at most `left_out` times the length
        of the centred and scaled row. Raises `InputError` for rows with other columns, or other names of them, and for numbers that are
        not finite; `DoesNotFit` with the least budget.
        """
        return scores_of(self, rows, out, Options(budget, workers, overwrite, False, progress))

    def top_terms(self, component: int, count: int = 10) -> tuple[tuple[str, float], ...]:
        """The columns with the largest loadings by size, with these: none that are zero, or not kept. Columns without names are told by
        their numbers."""
        own = dense_loadings(self.components[component])
        order = [place for place in np.argsort(-np.abs(own), kind="stable")[:count] if own[place]]
        return tuple((self.names[place] if self.names else str(place), float(own[place])) for place in order)

    def kept_told(self) -> str:
        """What is kept of the loadings, and how long the rest is."""
        if self.left_out is None:
            return "all loadings are kept"
        share = self.components.nnz / (self.components.shape[0] * self.components.shape[1])
        empty = int(np.count_nonzero(self.left_out >= 1 - 1e-9))
        nothing = f"; nothing is left of {empty} components: a lower size keeps more" if empty else ""
        longest = self.left_out.max()
        return f"loadings above {self.loadings_above:g} are kept, {share:.2%}; of one, {longest:.2f} of 1 is left out at most{nothing}"

    def to_json(self) -> str:
        """Everything but components and scores, as JSON."""
        return json.dumps(
            {
                "schema": "sash.pca/1",
                "method": self.method,
                "weights": self.weights,
                "components": len(self.singular_values),
                "total_variance": self.total_variance,
                **{
                    name: getattr(self, name).tolist()
                    for name in ("singular_values", "explained_variance", "explained_variance_ratio", "residuals")
                },
                **({} if self.left_out is None else {"loadings_above": self.loadings_above, "left_out": self.left_out.tolist()}),
                **({} if self.shortfall is None else {"shortfall": self.shortfall}),
                "out": None if self.out is None else str(self.out),
            }
        )

    def to_html(self, path: str | os.PathLike[str], topics: TopicModel | None = None, title: str = "matrix") -> None:
        """Write a page that opens offline, with a topic model beside it where one is given; raises `InputError` where it cannot."""
        from sash.report import components_to_html

        components_to_html(path, self, topics, title=title)

    def __str__(self) -> str:
        count, share = len(self.singular_values), self.explained_variance_ratio.sum()
        worst = self.residuals.max()
        lines = [f"{count} components explain {share:.8f} of the variance {self.total_variance:.6g}; residuals at most {worst:.1e}"]
        if self.left_out is not None:
            lines.append(f"  {self.kept_told()}")
        if self.shortfall is not None:
            share = self.shortfall / self.total_variance
            lines.append(f"  true explained variances are larger by {self.shortfall:.3g} at most, {share:.1%} of the total")
        for place in range(min(count, 5)):
            terms = ""
            if self.names:
                terms = ": " + ", ".join(f"{name} {value:+.2f}" for name, value in self.top_terms(place, 6))
            lines.append(f"  {place + 1}  {self.explained_variance_ratio[place]:.4f}{terms}")
        return "\n".join(lines)
