"""How far a topic's terms stand in the same documents."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import scipy.sparse


def shared_documents(blocks: Iterable[Any], terms: np.ndarray) -> np.ndarray:
    """(topics, terms, terms): rows that have both terms of a pair, of the columns `terms` (topics, terms) of sparse blocks; on the
    diagonal, rows that have the one."""
    topics, count = terms.shape
    used, places = np.unique(terms, return_inverse=True)
    places = places.reshape(terms.shape)
    found = np.zeros((topics, count, count), np.int64)
    for block in blocks:
        some: Any = scipy.sparse.csc_array(block[:, used] != 0).astype(np.int64)
        for topic in range(topics):
            part = some[:, places[topic]]
            found[topic] += (part.T @ part).toarray()
    return found


def npmi(shared: np.ndarray, rows: int) -> np.ndarray:
    """Mean over pairs of terms of ln(p(a, b) / (p(a) p(b))) / -ln p(a, b), for each topic; pairs that never meet count -1.

    Source: G. Bouma, Normalized (Pointwise) Mutual Information in Collocation Extraction, 2009; probabilities by documents.
    """
    one = np.einsum("tii->ti", shared) / rows
    first, second = np.triu_indices(shared.shape[1], 1)
    both = shared[:, first, second] / rows
    apart = one[:, first] * one[:, second]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(both / apart) / -np.log(both)
    # What is in every document tells nothing: as by chance.
    found = np.where(both == 0, -1.0, np.where(both == 1, 0.0, found))
    return found.mean(axis=1)


def umass(shared: np.ndarray) -> np.ndarray:
    """Mean over pairs of ln((rows with both + 1) / rows with the likelier), for each topic; terms stand likeliest first.

    Source: D. Mimno et al., Optimizing Semantic Coherence in Topic Models, EMNLP 2011, equation 1, as a mean.
    """
    one = np.einsum("tii->ti", shared)
    likelier, other = np.triu_indices(shared.shape[1], 1)
    return np.log((shared[:, likelier, other] + 1) / np.maximum(one[:, likelier], 1)).mean(axis=1)
