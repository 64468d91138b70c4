"""Sparse rows times dense vectors, beside the same products of dense rows."""

import numpy as np
import pytest
import scipy.sparse

from sash.arrays._spmm import gathered, scattered, there_and_back

WIDTHS = (1, 7, 8, 13, 16, 31, 32, 56, 67)
"""Runs of 32, 16 and 8 numbers, alone and one after another, and what is left of them."""


def rows_of(dtype: type, index: type) -> scipy.sparse.csr_array:
    """Rows of some numbers and none."""
    random = np.random.default_rng(0)
    dense = np.ceil(random.random((42, 60)) * 20) * (random.random((42, 60)) < 0.2)
    dense[20:22] = 0
    made = scipy.sparse.csr_array(dense.astype(dtype))
    made.indices, made.indptr = made.indices.astype(index), made.indptr.astype(index)
    return made


@pytest.mark.parametrize(("dtype", "index"), [(np.float64, np.int32), (np.float32, np.int64), (np.int16, np.int32), (np.bool_, np.int32)])
def test_products_are_those_of_dense_rows(dtype, index):
    # Sums of a dozen numbers up to 20, in another order: some units in the last place of 200.
    rows, random = rows_of(dtype, index), np.random.default_rng(1)
    dense, near = rows.toarray().astype(float), {"rtol": 0, "atol": 1e-11}
    for width in WIDTHS:
        vectors, offset, others = random.standard_normal((60, width)), random.standard_normal(width), random.standard_normal((42, width))
        made = np.zeros((42, width))
        gathered(rows.indptr, rows.indices, rows.data, vectors, offset, made, 0, 42)
        np.testing.assert_allclose(made, dense @ vectors - offset, **near)
        back = np.ones((60, width))
        scattered(rows.indptr, rows.indices, rows.data, others, back)
        np.testing.assert_allclose(back, 1 + dense.T @ others, **near)
        both, sums = np.ones((60, width)), np.zeros(width)
        there_and_back(rows.indptr, rows.indices, rows.data, vectors, offset, both, sums)
        np.testing.assert_allclose(both, 1 + dense.T @ made, rtol=1e-12, atol=1e-10)
        np.testing.assert_allclose(sums, made.sum(axis=0), **near)


def test_a_product_into_columns_of_a_wider_array_leaves_the_others():
    rows, vectors = rows_of(np.float64, np.int32), np.random.default_rng(2).standard_normal((60, 24))
    alone, wide = np.empty((42, 24)), np.full((42, 40), 7.0)
    gathered(rows.indptr, rows.indices, rows.data, vectors, np.zeros(24), alone, 0, 42)
    gathered(rows.indptr, rows.indices, rows.data, vectors, np.zeros(24), wide[:, 5:29], 0, 42)
    assert np.array_equal(wide[:, 5:29], alone)
    assert (wide[:, :5] == 7).all()
    assert (wide[:, 29:] == 7).all()


def test_a_column_of_a_run_has_the_same_bits_in_a_wider_one():
    rows, vectors = rows_of(np.float64, np.int32), np.random.default_rng(3).standard_normal((60, 32))
    wide, narrow = np.empty((42, 32)), np.empty((42, 8))
    gathered(rows.indptr, rows.indices, rows.data, vectors, np.zeros(32), wide, 0, 42)
    gathered(rows.indptr, rows.indices, rows.data, np.ascontiguousarray(vectors[:, 8:16]), np.zeros(8), narrow, 0, 42)
    assert np.array_equal(wide[:, 8:16], narrow)


def test_rows_without_numbers_make_what_is_taken_off_alone():
    empty, made = scipy.sparse.csr_array((3, 5)), np.empty((3, 16))
    gathered(empty.indptr, empty.indices, empty.data, np.ones((5, 16)), np.ones(16), made, 0, 3)
    assert (made == -1).all()
