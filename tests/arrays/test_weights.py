"""What counts weigh: scikit-learn's numbers, in blocks of any size, and the source as it was."""

import numpy as np
import pytest
import scipy.sparse
from sklearn.feature_extraction.text import TfidfTransformer

from sash.arrays._matrix_open import open_matrix
from sash.arrays._weights import row_blocks, weigh, weighted
from sash.errors import DoesNotFit, InputError

RNG = np.random.default_rng(0)
COUNTS = RNG.poisson(0.4, (60, 40)) * (RNG.random((60, 40)) < 0.5)
COUNTS[7], COUNTS[:, 3] = 0, 0
SOURCES = {"sparse": scipy.sparse.csr_array(COUNTS), "dense": COUNTS, "float32": scipy.sparse.csr_array(COUNTS.astype(np.float32))}


def read(matrix, step):
    blocks = [matrix.block(first, min(first + step, matrix.shape[0])) for first in range(0, matrix.shape[0], step)]
    return np.vstack([block.toarray() if scipy.sparse.issparse(block) else block for block in blocks])


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("weights", ["counts", "log", "tfidf"])
def test_weights_are_those_of_scikit_learn_and_the_source_stays(kind, weights):
    source = SOURCES[kind].copy()
    matrix = weighted(open_matrix(source, budget_bytes=1 << 20), weights, budget_bytes=4096)
    ours = read(matrix, 9)
    peer = {"counts": COUNTS, "log": np.log1p(COUNTS), "tfidf": TfidfTransformer().fit_transform(COUNTS.astype(float)).toarray()}
    # A row's length is the root of a sum whose order may differ; float32 rounds.
    np.testing.assert_allclose(ours, peer[weights], rtol=1e-6 if kind == "float32" else 1e-14)
    assert ours.dtype == {"counts": source.dtype, "float32": np.float32}.get(weights if weights == "counts" else kind, np.float64)
    np.testing.assert_array_equal(source.toarray() if scipy.sparse.issparse(source) else source, COUNTS)


def test_a_zero_that_is_stored_is_no_occurrence_of_its_term():
    stored = scipy.sparse.csr_array((np.array([1.0, 0, 2]), np.array([0, 1, 1]), np.array([0, 2, 3])), shape=(2, 2))
    dense = weighted(open_matrix(stored.toarray(), budget_bytes=1 << 20), "tfidf")
    sparse = weighted(open_matrix(stored, budget_bytes=1 << 20), "tfidf")
    np.testing.assert_allclose(read(sparse, 2), read(dense, 2), rtol=1e-15)


def test_other_rows_are_weighed_by_the_rarity_of_the_first():
    fitted = TfidfTransformer().fit(COUNTS)
    matrix = weighted(open_matrix(SOURCES["sparse"], budget_bytes=1 << 20), "tfidf")
    more = scipy.sparse.csr_array(RNG.poisson(1, (5, 40)))
    np.testing.assert_allclose(weigh(more, "tfidf", matrix.idf).toarray(), fitted.transform(more).toarray(), rtol=1e-14)


@pytest.mark.parametrize("weights", ["log", "tfidf"])
def test_numbers_below_zero_are_refused_with_their_rows(weights):
    source = COUNTS.astype(float)
    source[31, 2] = -1
    with pytest.raises(InputError, match=f"below zero in rows 30 to 39; {weights} weighs counts"):
        read(weighted(open_matrix(source, budget_bytes=1 << 20), weights), 10)


def test_unknown_weights_are_refused_with_those_that_are_known():
    with pytest.raises(InputError, match="'idf'; they are one of counts, log, tfidf"):
        weighted(open_matrix(COUNTS, budget_bytes=1 << 20), "idf")


def test_blocks_of_rows_hold_what_a_budget_allows_and_all_rows_once():
    matrix = weighted(open_matrix(SOURCES["sparse"], budget_bytes=1 << 20), "log")
    blocks = list(row_blocks(matrix, 600))
    assert len(blocks) > 3
    assert all(matrix.block_bytes(*block) <= 600 for block in blocks)
    assert [row for start, stop in blocks for row in range(start, stop)] == list(range(60))
    with pytest.raises(DoesNotFit, match="Row 0 takes") as caught:
        list(row_blocks(matrix, 8))
    # Enough for all rows, and no more than the longest takes.
    least = caught.value.least_bytes
    assert least == max(matrix.block_bytes(row, row + 1) for row in range(60))
    assert list(row_blocks(matrix, least))[-1][1] == 60


def test_weights_are_part_of_what_a_matrix_is_known_by():
    matrix = open_matrix(COUNTS, budget_bytes=1 << 20)
    identities = [str(weighted(matrix, kind).identity) for kind in ("counts", "log", "tfidf")]
    assert len(set(identities)) == 3
