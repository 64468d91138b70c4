"""Loadings above a size alone: a sparse matrix, with a bound of what that costs; the same in memory, in a folder, and taken up again."""

import json

import numpy as np
import pytest
import scipy.sparse
import zarr
from tests.arrays.test_pca_files import texts

from sash.arrays import _loadings, _pca_methods, _pca_ways, pca
from sash.arrays._loadings import HeldRows, Kept
from sash.errors import DoesNotFit, InputError

ABOVE = 0.05


@pytest.mark.parametrize("method", ["krylov", "gram"])
@pytest.mark.parametrize("loadings", ["float64", "float32"])
@pytest.mark.parametrize("above", [0.0, ABOVE, 0.3])
def test_what_is_kept_is_what_is_above_to_the_bit(tmp_path, method, loadings, above, monkeypatch):
    # Chunks of components, and parts of them that are written at once.
    monkeypatch.setattr(_pca_ways, "CHUNK", 8)
    monkeypatch.setattr(_pca_ways, "STRIP", 8)
    monkeypatch.setattr(_loadings, "_TOGETHER", 3 * 420 * 16)
    matrix, words = texts(), {"components": 20, "method": method, "scale": True}
    whole, dense = pca(matrix, **words, out=tmp_path / "dense.zarr"), pca(matrix, **words)
    held = pca(matrix, **words, loadings=loadings, loadings_above=above)
    filed = pca(matrix, **words, loadings=loadings, loadings_above=above, out=tmp_path / "sparse.zarr")
    for found, components in ((held, dense.components), (filed, whole.components[...])):
        kept = np.where(np.abs(components) > above, components, 0)
        made = found.components[...]
        assert isinstance(made, scipy.sparse.csr_array)
        assert made.dtype == found.components.dtype == loadings
        assert np.array_equal(made.toarray(), kept.astype(loadings))
        assert made.nnz == found.components.nnz == np.count_nonzero(kept)
        assert found.loadings_above == above
        np.testing.assert_allclose(found.left_out, np.linalg.norm(components - kept, axis=1), atol=1e-14)
    # Scores are those of whole components.
    assert np.array_equal(held.scores, dense.scores)
    assert np.array_equal(filed.scores[...], whole.scores[...])
    assert dense.left_out is None


@pytest.mark.parametrize("scale", [False, True])
def test_scores_of_new_rows_are_as_near_as_told(tmp_path, scale):
    matrix, new = texts(), texts(seed=3)[:50]
    dense = pca(matrix, 20, scale=scale)
    for found in (
        pca(matrix, 20, scale=scale, loadings_above=ABOVE),
        pca(matrix, 20, scale=scale, loadings_above=ABOVE, out=tmp_path / "model.zarr"),
    ):
        off = np.abs(found.transform(new) - dense.transform(new))
        centred = (new.toarray() - dense.mean) * (1 if dense.scale is None else dense.scale)
        bound = np.linalg.norm(centred, axis=1)[:, None] * found.left_out
        assert (off <= bound + 1e-12).all()
        # Not for nothing: most of the bound is met by some row.
        assert off.max() > 0.02 * bound.max()


def test_slices_of_loadings_in_a_folder_are_those_of_the_matrix(tmp_path):
    found = pca(texts(), 9, loadings_above=ABOVE, out=tmp_path / "model.zarr").components
    whole = found[...].toarray()
    assert found.shape == (9, 420)
    for places in (slice(2, 5), slice(None, None, 3), slice(7, 2, -2), slice(4, 4), slice(-3, None), slice(20, 30)):
        assert np.array_equal(found[places].toarray(), whole[places])
    for place in (0, 8, -1, -9, np.int64(3)):
        assert np.array_equal(found[place].toarray(), whole[place])
    with pytest.raises(IndexError):
        found[9]


def test_the_folder_is_a_sparse_matrix_that_is_read_as_one(tmp_path):
    pca(texts(), 30, loadings_above=ABOVE, out=tmp_path / "model.zarr")
    group = zarr.open_group(tmp_path / "model.zarr", mode="r")
    assert dict(group["loadings"].attrs) == {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [30, 420]}
    parts = (group["loadings"][name][...] for name in ("data", "indices", "indptr"))
    matrix = scipy.sparse.csr_array(tuple(parts), shape=(30, 420))
    matrix.check_format(full_check=True)
    assert matrix.has_sorted_indices
    np.testing.assert_allclose(pca(group["loadings"], 5).singular_values, pca(matrix, 5).singular_values)


def test_a_run_that_was_ended_while_it_wrote_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    matrix = texts()
    monkeypatch.setattr(_pca_ways, "CHUNK", 32)
    monkeypatch.setattr(_loadings, "_TOGETHER", 4 * 420 * 16)
    monkeypatch.setattr(_loadings, "CHUNK_BYTES", 1 << 10)
    words = {"variance": 0.95, "method": "gram", "workers": 2, "loadings_above": ABOVE}
    whole = pca(matrix, out=tmp_path / "whole.zarr", **words)
    out, some, left = tmp_path / "again.zarr", _loadings.FiledRows._some, iter((10, 15, 3))

    def ends_after(count):
        begun = []

        def ends(self, start, loadings):
            begun.append(start)
            if len(begun) == count:
                # What is written of a part before its pointers are.
                self._group["data"].resize((self._group["data"].shape[0] + 7,))
                self._group["data"][-7:] = 1.0
                raise KeyboardInterrupt
            return some(self, start, loadings)

        return ends, begun

    chunks, both = [], _pca_methods._both_sides
    monkeypatch.setattr(_pca_methods, "_both_sides", lambda centred, own: chunks.append(own.shape[1]) or both(centred, own))
    for count in left:
        ends, begun = ends_after(count)
        with monkeypatch.context() as patched:
            patched.setattr(_loadings.FiledRows, "_some", ends)
            with pytest.raises(KeyboardInterrupt):
                pca(matrix, out=out, **words)
        assert len(begun) == count
    found = pca(matrix, out=out, **words)
    # Chunks that were whole were not made again.
    assert sum(chunks) < 4 * len(found.singular_values)
    for name in ("data", "indices", "indptr"):
        ours, theirs = (zarr.open_group(path, mode="r")["loadings"][name][...] for path in (out, tmp_path / "whole.zarr"))
        assert np.array_equal(ours, theirs)
    assert np.array_equal(found.left_out, whole.left_out)
    files = [sorted(str(path.relative_to(root)) for path in root.rglob("*")) for root in (out, tmp_path / "whole.zarr")]
    assert files[0] == files[1]
    with pytest.raises(InputError, match="is there already"):
        pca(matrix, out=out, **words)


def test_another_threshold_is_another_run(tmp_path, monkeypatch):
    out = tmp_path / "model.zarr"
    with monkeypatch.context() as patched:
        patched.setattr(_pca_methods, "_both_sides", lambda centred, own: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pca(texts(), 5, out=out, loadings_above=0.1)
    with pytest.raises(InputError, match=r"other things changed: loadings_above \(0\.1 → null\)"):
        pca(texts(), 5, out=out)


@pytest.mark.parametrize("above", [-0.1, 1, 1.5, float("nan"), "0.1", True])
def test_sizes_that_are_none_are_refused(above):
    with pytest.raises(InputError, match="give a size from 0 up to below 1"):
        pca(texts(), 3, loadings_above=above)


def test_fewer_loadings_take_less_and_plans_say_so():
    matrix = scipy.sparse.random_array((60, 200_000), density=0.01, rng=np.random.default_rng(0), format="csr")
    dense, sparse = (pca(matrix, 20, loadings_above=above, plan_only=True) for above in (None, 0.1))
    # 100 of 200,000 at most.
    assert sparse.loadings_most == 100
    assert dense.peak_bytes - sparse.peak_bytes > 8 * 20 * 190_000
    assert dense.written_bytes - sparse.written_bytes > 8 * 20 * 190_000
    assert "above 0.1 alone, at most 100 of a component" in str(sparse)
    assert "above" not in str(dense)
    with pytest.raises(DoesNotFit) as told:
        pca(matrix, 20, budget="1 KiB", loadings_above=0.1)
    with pytest.raises(DoesNotFit):
        pca(matrix, 20, budget=told.value.least_bytes)
    pca(matrix, 20, budget=told.value.least_bytes, loadings_above=0.1)


def test_no_unit_vector_has_more_than_there_is_room_for():
    # Of equal numbers just above the size, as many as there can be.
    for above in (0.1, 0.05, 0.003):
        columns = int(above**-2)
        vector = np.full((columns, 1), columns**-0.5)
        kept = Kept(np.dtype(np.float64), np.nextafter(columns**-0.5, 0))
        rows = HeldRows(kept, 2 * columns, 1)
        left_out = rows.put(0, np.vstack([vector, np.zeros_like(vector)]))
        assert rows.rows().nnz == columns <= kept.most(2 * columns)
        assert left_out[0] == 0


def test_what_users_see_tells_what_was_left_out(tmp_path):
    matrix, names = texts(), [f"w{place}" for place in range(420)]
    found = pca(matrix, 6, loadings_above=0.2, names=names)
    assert found.kept_told() in str(found)
    assert "loadings above 0.2 are kept, " in str(found)
    assert f"{found.components.nnz / (6 * 420):.2%}" in str(found)
    for place in range(6):
        terms = found.top_terms(place, 50)
        assert len(terms) == len(found.components[place].data)
        assert all(abs(value) > 0.2 for _, value in terms)
    told = json.loads(found.to_json())
    assert told["loadings_above"] == 0.2
    assert told["left_out"] == found.left_out.tolist()
    nothing = pca(matrix, 6, loadings_above=0.9, names=names)
    assert "nothing is left of 6 components: a lower size keeps more" in str(nothing)
    assert not nothing.transform(matrix).any()
    found.to_html(tmp_path / "sparse.html")
    pca(matrix, 6, names=names).to_html(tmp_path / "dense.html")
    assert "loadings kept" in (tmp_path / "sparse.html").read_text()
    assert "loadings kept" not in (tmp_path / "dense.html").read_text()
