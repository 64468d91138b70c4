"""Matrices from every other source: the same rows, in blocks of any size, and what is refused."""

import threading

import h5py
import numpy as np
import pytest
import scipy.sparse
import zarr

from sash.arrays._matrix_open import open_matrix
from sash.errors import DoesNotFit, InputError

RNG = np.random.default_rng(0)
DENSE = RNG.integers(0, 9, (37, 29)) * (RNG.random((37, 29)) < 0.2)
DENSE[5] = 0
ROWS = scipy.sparse.csr_array(DENSE)
BUDGET = 8 << 20
SMALL = 1 << 17
"""Holds what sorting takes, and no more than a part of the larger matrices here."""


def whole(matrix, step=7):
    rows = matrix.shape[0]
    blocks = [matrix.block(first, min(first + step, rows)) for first in range(0, rows, step)]
    assert all(block.has_canonical_format for block in blocks if scipy.sparse.issparse(block))
    return scipy.sparse.vstack(blocks).toarray() if scipy.sparse.issparse(blocks[0]) else np.vstack(blocks)


def group_of(root, matrix, **attributes):
    for name in ("data", "indices", "indptr"):
        part = getattr(matrix, name)
        if isinstance(root, zarr.Group):
            root.create_array(name, data=part, chunks=(16,))
        else:
            root.create_dataset(name, data=part, chunks=(16,))
    root.attrs.update(attributes)
    return root


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "lil", "dok", "bsr", "dia"])
def test_a_matrix_in_memory_is_read_by_rows_and_left_as_it_is(kind):
    given = ROWS.asformat(kind)
    matrix = open_matrix(given, budget_bytes=BUDGET)
    np.testing.assert_array_equal(whole(matrix), DENSE)
    np.testing.assert_array_equal(matrix.row_nnz(), np.count_nonzero(DENSE, axis=1))
    assert (matrix.shape, matrix.names, given.format) == ((37, 29), None, kind)
    assert (matrix.held_bytes == 0) == (kind == "csr")


def test_entries_of_one_place_are_summed_in_a_copy():
    given = scipy.sparse.csr_array((np.array([1.0, 2, 3]), np.array([2, 0, 2]), np.array([0, 3])), shape=(1, 4))
    matrix = open_matrix(given, budget_bytes=BUDGET)
    assert whole(matrix).tolist() == [[2, 0, 4, 0]]
    assert given.indices.tolist() == [2, 0, 2]
    assert matrix.nnz == 2
    assert matrix.held_bytes > 0


def test_dense_arrays_are_read_from_memory_maps_and_files_of_any_order(tmp_path):
    values = RNG.random((37, 29))
    np.save(tmp_path / "c.npy", values)
    np.save(tmp_path / "f.npy", np.asfortranarray(values))
    np.save(tmp_path / "big.npy", values.astype(">f8"))
    zarr.create_array(tmp_path / "a.zarr", data=values, chunks=(10, 10))
    sources = [values, values.T.copy().T, np.load(tmp_path / "c.npy", mmap_mode="r"), *sorted(tmp_path.iterdir())]
    for source in sources:
        matrix = open_matrix(source, budget_bytes=BUDGET)
        np.testing.assert_array_equal(whole(matrix), values)
        assert not matrix.sparse
        assert matrix.block(3, 4).flags.c_contiguous
        assert matrix.block(3, 4).dtype.isnative


@pytest.mark.parametrize("kind", ["csr", "csc"])
@pytest.mark.parametrize("library", ["zarr", "h5"])
def test_groups_as_anndata_lays_them_out_are_read_with_the_names_of_columns(tmp_path, library, kind):
    path = tmp_path / ("docs.zarr" if library == "zarr" else "docs.h5ad")
    root = zarr.create_group(path) if library == "zarr" else h5py.File(path, "w")
    root.attrs["encoding-type"] = "anndata"
    group_of(root.create_group("X"), ROWS.asformat(kind), **{"encoding-type": f"{kind}_matrix", "shape": ROWS.shape})
    names = [f"word{number}" for number in range(29)]
    frame = root.create_group("var")
    frame.attrs["_index"] = "term"
    if library == "zarr":
        frame.create_array("term", shape=(29,), dtype=str)[:] = np.array(names, dtype=object)
    else:
        frame.create_dataset("term", data=names)
        root.close()
    matrix = open_matrix(path, budget_bytes=BUDGET, scratch=tmp_path / "scratch")
    np.testing.assert_array_equal(whole(matrix), DENSE)
    assert matrix.names == tuple(names)
    assert matrix.block(0, 9).dtype == np.float64
    matrix.close()


def test_plain_groups_are_read_if_they_say_their_shape(tmp_path):
    group = group_of(zarr.create_group(tmp_path / "a.zarr"), ROWS)
    with pytest.raises(InputError, match=r"does not say its shape; give the group the attribute shape: \(37, columns\)"):
        open_matrix(tmp_path / "a.zarr", budget_bytes=BUDGET)
    group.attrs["shape"] = [37, 29]
    np.testing.assert_array_equal(whole(open_matrix(tmp_path / "a.zarr", budget_bytes=BUDGET)), DENSE)
    np.testing.assert_array_equal(whole(open_matrix(group, budget_bytes=BUDGET)), DENSE)


@pytest.mark.parametrize("kind", ["csr", "csc", "coo"])
@pytest.mark.parametrize("compressed", [True, False])
def test_files_of_scipy_are_read_into_memory_or_unpacked_within_a_budget(tmp_path, kind, compressed):
    dense = RNG.integers(1, 9, (300, 200)) * (RNG.random((300, 200)) < 0.3)
    scipy.sparse.save_npz(tmp_path / "a.npz", scipy.sparse.csr_array(dense).asformat(kind), compressed=compressed)
    for budget in (BUDGET, SMALL):
        matrix = open_matrix(tmp_path / "a.npz", budget_bytes=budget, scratch=tmp_path / "scratch")
        np.testing.assert_array_equal(whole(matrix), dense)
        assert (matrix.held_bytes > 10_000) == (budget == BUDGET)
        matrix.close()
    with pytest.raises(DoesNotFit, match="Name an output on disk"):
        open_matrix(tmp_path / "a.npz", budget_bytes=SMALL)


def test_rows_are_read_side_by_side(tmp_path):
    dense = RNG.integers(0, 5, (400, 50))
    group_of(zarr.create_group(tmp_path / "a.zarr"), scipy.sparse.csr_array(dense), shape=[400, 50])
    matrix = open_matrix(tmp_path / "a.zarr", budget_bytes=BUDGET)
    found = {}

    def read(first):
        found[first] = matrix.block(first, first + 40).toarray()

    threads = [threading.Thread(target=read, args=(first,)) for first in range(0, 400, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(np.vstack([found[first] for first in range(0, 400, 40)]), dense)


def test_names_come_from_beside_the_file_from_a_file_that_is_named_or_from_a_list(tmp_path):
    scipy.sparse.save_npz(tmp_path / "docs.npz", ROWS)
    names = [f"word {number}" for number in range(29)]
    (tmp_path / "other.txt").write_text("\n".join(names) + "\n")
    assert open_matrix(tmp_path / "docs.npz", budget_bytes=BUDGET, names=tmp_path / "other.txt").names == tuple(names)
    assert open_matrix(ROWS, budget_bytes=BUDGET, names=names).names == tuple(names)
    (tmp_path / "docs.vocab.txt").write_text("\r\n".join(names))
    assert open_matrix(tmp_path / "docs.npz", budget_bytes=BUDGET).names == tuple(names)
    (tmp_path / "docs.vocab.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match=r"docs\.vocab\.txt has 2 lines; the matrix has 29 columns"):
        open_matrix(tmp_path / "docs.npz", budget_bytes=BUDGET)
    with pytest.raises(InputError, match="there are 1 names"):
        open_matrix(ROWS, budget_bytes=BUDGET, names=["a"])


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (np.zeros((3, 0)), r"shape \(3, 0\); give rows and columns"),
        (np.ones(3), r"shape \(3,\)"),
        (np.ones((2, 2, 2)), r"shape \(2, 2, 2\)"),
        (np.ones((2, 2), complex), "complex128; .* give its real part"),
        (np.ones((2, 2), np.float16), "float16; .* convert it"),
        (np.array([["a"]]), "holds <U1"),
        (np.ma.masked_array(np.ones((2, 2))), "masked"),
        (np.array([[1, 2], [3, np.nan]]), "holds nan at row 1, column 1"),
        (scipy.sparse.csr_array([[0, 1.0], [np.inf, 0]]), "holds inf at row 1, column 0"),
        (scipy.sparse.csr_array((4, 5)), "4 × 5 holds no number but zero"),
        (scipy.sparse.coo_array(np.ones(3)), r"shape \(3,\)"),
        ([[1, 2]], "of type list"),
        ("nowhere.mtx", "there is no file nowhere.mtx"),
        ("nowhere.csv", r"nowhere.csv is none of \.mtx"),
    ],
)
def test_what_is_no_matrix_of_finite_real_numbers_is_refused(source, told):
    with pytest.raises(InputError, match=told):
        open_matrix(source, budget_bytes=BUDGET)


@pytest.mark.parametrize(
    ("part", "value", "told"),
    [
        ("indices", 29, r"has column 29 in row 0; its 29 columns count from 0"),
        ("indices", -1, r"has column -1 in row 0"),
        ("data", np.nan, r"holds nan at row 0, column \d+"),
        ("indptr", 7, r"row pointers that do not rise from 0"),
    ],
)
def test_a_damaged_group_is_refused_at_the_row_that_is_wrong(tmp_path, part, value, told):
    damaged = ROWS.astype(float)
    getattr(damaged, part)[0] = value
    group_of(zarr.create_group(tmp_path / "a.zarr"), damaged, shape=[37, 29])
    with pytest.raises(InputError, match=told):
        whole(open_matrix(tmp_path / "a.zarr", budget_bytes=BUDGET))


def test_groups_and_files_that_are_something_else_are_refused(tmp_path):
    zarr.create_group(tmp_path / "a.zarr").create_array("data", data=np.ones(3))
    with pytest.raises(InputError, match="has no indices and no indptr"):
        open_matrix(tmp_path / "a.zarr", budget_bytes=BUDGET)
    group_of(zarr.create_group(tmp_path / "b.zarr"), ROWS, shape=[36, 29])
    with pytest.raises(InputError, match=r"38 pointers and the shape \(36, 29\)"):
        open_matrix(tmp_path / "b.zarr", budget_bytes=BUDGET)
    (tmp_path / "c.h5ad").write_bytes(b"no HDF5")
    with pytest.raises(InputError, match="cannot be read as HDF5"):
        open_matrix(tmp_path / "c.h5ad", budget_bytes=BUDGET)
    np.savez(tmp_path / "d.npz", a=np.ones(3))
    with pytest.raises(InputError, match=r"has the arrays a; give what scipy\.sparse\.save_npz writes"):
        open_matrix(tmp_path / "d.npz", budget_bytes=BUDGET)
    scipy.sparse.save_npz(tmp_path / "e.npz", scipy.sparse.random_array((300, 200), density=0.3, rng=RNG))
    (tmp_path / "e.npz").write_bytes((tmp_path / "e.npz").read_bytes()[:2000])
    for budget in (BUDGET, SMALL):
        with pytest.raises(InputError, match="cut off or damaged"):
            open_matrix(tmp_path / "e.npz", budget_bytes=budget, scratch=tmp_path / "scratch")
    with pytest.raises(InputError, match=r"there is no file .*docs\.mtx\. The folder has"):
        open_matrix(tmp_path / "docs.mtx", budget_bytes=BUDGET)


def test_what_a_matrix_is_known_by_changes_with_its_content(tmp_path):
    other = ROWS.copy()
    other.data[3] += 1
    assert open_matrix(ROWS, budget_bytes=BUDGET).identity == open_matrix(ROWS.copy(), budget_bytes=BUDGET).identity
    assert open_matrix(ROWS, budget_bytes=BUDGET).identity != open_matrix(other, budget_bytes=BUDGET).identity
    scipy.sparse.save_npz(tmp_path / "a.npz", ROWS)
    assert open_matrix(tmp_path / "a.npz", budget_bytes=BUDGET).identity["matrix"]["path"] == str(tmp_path / "a.npz")


@pytest.mark.parametrize("kind", ["zarr", "zarr in shards", "npy"])
def test_rows_that_are_expected_are_fetched_whole_and_nothing_else(tmp_path, monkeypatch, kind):
    from sash.arrays import _store_raw, _store_zarr

    path = tmp_path / f"matrix.{kind[:4].strip()}"
    dense = np.arange(200.0 * 50).reshape(200, 50)
    if kind == "npy":
        np.save(path, dense)
        wanted = [(128 + 40 * 50 * 8, 128 + 80 * 50 * 8)]
    else:
        rows = scipy.sparse.csr_array(dense)
        group = zarr.create_group(path, attributes={"encoding-type": "csr_matrix", "shape": [200, 50]})
        sharded = "shards" in kind
        for name in ("data", "indices"):
            group.create_array(name, data=getattr(rows, name), chunks=(500,), shards=(2000,) if sharded else None)
        group.create_array("indptr", data=rows.indptr)
        places = range(2) if sharded else range(3, 8)
        wanted = [(0, (path / name / "c" / str(place)).stat().st_size) for name in ("data", "indices") for place in places]
    found = []
    for module in (_store_raw, _store_zarr):
        monkeypatch.setattr(module, "fetched", lambda file, start, stop: found.append((start, stop)))
    matrix = open_matrix(path, budget_bytes=1 << 20)
    # The first number is a zero, which a sparse matrix leaves out: rows 40 to 80 are its numbers 1999 to 3999.
    matrix.expect(40, 80)
    assert found == wanted
    matrix.close()
