"""What a topic model says of a document-term matrix."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class TopicTerm:
    """A term of a topic."""

    column: int
    """Of the matrix, from 0."""
    name: str
    """Its name, or "column 7" where there are no names."""
    probability: float
    """That a word of the topic is this one."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A distribution over terms, told by those that are likeliest in it."""

    share: float
    """Of the words of all documents."""
    terms: tuple[TopicTerm, ...]
    """Likeliest first."""
    npmi: float
    """Mean normalised pointwise mutual information of pairs of `terms`, by the documents that they share: 1 always together, 0 as by
    chance, -1 never."""
    umass: float
    """Mean of ln((documents with both + 1) / documents with the likelier one) over pairs of `terms`; nearer to 0 is better."""


@dataclass(frozen=True, eq=False)
class TopicModel:
    """Latent Dirichlet allocation of a document-term matrix, and how well it tells of rows that it has not seen."""

    rows: int
    columns: int
    words: int
    """Sum of all counts."""
    topics: tuple[Topic, ...]
    """Largest share first."""
    held_out_rows: int
    """Rows that were not learnt from."""
    perplexity: float | None
    """Of half of the words of each of these, given the other half: as if each word were chosen from so many, alike. None without them."""
    unigram_perplexity: float | None
    """The same if all documents had the words of the whole: what topics have to be better than."""
    history: tuple[float, ...]
    """Perplexity after each pass."""
    passes: int
    npmi: float
    """Mean of the topics'."""
    umass: float
    seed: int
    budget_bytes: int
    peak_bytes: int
    """Bytes held at once, at most, by forecast."""
    wall_s: float
    topic_terms: np.ndarray
    """(topics, columns): probability of each term in each topic; rows sum to 1."""
    documents: np.ndarray | Path
    """(rows, topics): share of each topic in each row, or the zarr group whose array `documents` has them."""

    def to_json(self) -> str:
        """All but the arrays, as JSON."""
        told = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("topic_terms", "documents")}
        out = str(self.documents) if isinstance(self.documents, Path) else None
        return json.dumps({"schema": "sash.topics/1", **told, "out": out}, default=_as_object, allow_nan=False)

    def to_html(self, path: str | os.PathLike[str], title: str = "matrix") -> None:
        """Write a page that opens offline; raises `InputError` where `path` cannot be written."""
        from sash.report import components_to_html

        components_to_html(path, topics=self, title=title)

    def __str__(self) -> str:
        lines = [f"{len(self.topics)} topics of {self.rows} rows × {self.columns} columns, {self.passes} passes"]
        if self.perplexity is not None and self.unigram_perplexity is not None:
            lines.append(
                f"perplexity of {self.held_out_rows} held-out rows {self.perplexity:.0f} "
                f"(one distribution for all: {self.unigram_perplexity:.0f})"
            )
        lines.append(f"coherence  NPMI {self.npmi:.3f}, UMass {self.umass:.2f}")
        lines += [f"{topic.share:6.1%}  {topic.npmi:6.3f}  {' '.join(term.name for term in topic.terms)}" for topic in self.topics]
        return "\n".join(lines)


def _as_object(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}
